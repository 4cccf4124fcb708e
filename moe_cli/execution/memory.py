"""Estimates the main memory of a run and compares it with that of this machine."""

from collections.abc import Iterable

from moe_cli.config.schema import RunConfig
from moe_cli.costs.model import Cost, estimate_cost
from moe_cli.errors import ConfigError
from moe_cli.execution.estimate import RunEstimate
from moe_cli.execution.machine import available_memory_bytes, total_memory_bytes, visible_gpus
from moe_cli.formatting import format_bytes

# Memory of a process besides its model: torch and its libraries, freed blocks, counts of an evaluation.
PROCESS_BYTES = 420e6
# A run is refused if it needs more than this multiple of the machine's memory. A run above the free memory is noted.
MAX_MEMORY_RATIO = 2
_REMEDY = "Lower train.batch_size, model.context_length or the model's size."


def memory_bytes(costs: Cost, on_gpu: bool = False) -> int:
    """Returns the expected main memory of a run; with a GPU, only the new weights are in main memory."""
    return int(PROCESS_BYTES + (4 * costs.num_params if on_gpu else costs.state_bytes + costs.activation_bytes))


def memory_warning(estimate: RunEstimate) -> str | None:
    """Returns a warning if a run may need more memory than is free; None if it fits or may use a GPU."""
    need, free = memory_bytes(estimate.cost), available_memory_bytes()
    if free is None or need <= free or (estimate.config.train.device != "cpu" and visible_gpus()):
        return None
    return f"about {format_bytes(need)} of memory are needed, {format_bytes(free)} are free. {_REMEDY}"


def check_memory(estimates: Iterable[RunEstimate], force: bool = False) -> None:
    """Raises ConfigError for a run that needs far more memory than this machine has, unless `force` is set.

    The system may grant more memory than exists. The process then swaps, and handles no signal until it is killed.
    """
    for estimate in () if force else estimates:
        if why := _refusal(estimate.config, estimate.cost):
            raise ConfigError(f"{why}\nTo start it anyway: --force-memory")


def check_config_memory(config: RunConfig, vocab_size: int) -> None:
    """Raises ConfigError as `check_memory` does, for a configuration without an estimate."""
    if why := _refusal(config, estimate_cost(config, vocab_size)):
        raise ConfigError(why)


def _refusal(config: RunConfig, costs: Cost) -> str | None:
    """Returns a message if a run needs far more memory than this machine has; None if not, or if it may use a GPU."""
    total = total_memory_bytes()
    need = memory_bytes(costs) + int((config.launch.num_processes - 1) * PROCESS_BYTES)
    if total is None or need <= MAX_MEMORY_RATIO * total or (config.train.device != "cpu" and visible_gpus()):
        return None
    needed, there = format_bytes(need), format_bytes(total)
    return f"{config.run_id}: about {needed} of memory are needed, and this machine has {there}. {_REMEDY}"
