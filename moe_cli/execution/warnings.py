"""Notes on a run before it starts."""

from moe_cli.execution.compilation import compile_warning, should_compile
from moe_cli.execution.data import model_vocab_size
from moe_cli.execution.estimate import RunEstimate
from moe_cli.execution.machine import oversubscription_warning
from moe_cli.execution.memory import memory_warning


def run_warnings(estimate: RunEstimate, device: str) -> tuple[str, ...]:
    """Returns notes on a run before it starts on a `cpu` or `cuda` device: memory, busy cores, a slow start."""
    compiled = should_compile(estimate.config, model_vocab_size(estimate.config, estimate.corpus), device)
    slow = compile_warning(estimate.config) if compiled else None
    return tuple(filter(None, (memory_warning(estimate), oversubscription_warning(estimate.threads), slow)))
