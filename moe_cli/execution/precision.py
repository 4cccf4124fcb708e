"""Decision which precision `train.precision=auto` is: by the device and, on a CPU, by the model. Without torch."""

from typing import Any

from moe_cli.config.layer_costs import rows_per_expert
from moe_cli.config.model import GPTConfig
from moe_cli.config.schema import RunConfig
from moe_cli.costs.processor import cpu_has_bfloat16
from moe_cli.execution.machine import visible_gpus

# The smallest sizes at which `auto` is bfloat16 on a CPU that multiplies it, see `cpu_precision`: width of the model,
# width of an expert, rows per expert, and tokens of a pass.
MIN_D_MODEL, MIN_D_EXPERT, MIN_ROWS, MIN_TOKENS = 96, 128, 64, 512


def decide_precision(config: RunConfig, device: Any) -> str:
    """Returns train.precision or, if it is auto, the precision of a run that starts on this torch device."""
    if config.train.precision != "auto":
        return config.train.precision
    if device.type == "cpu":
        return cpu_precision(config)
    from moe_cli.training.precision import pick_precision

    return pick_precision("auto", device)


def planned_precision(config: RunConfig) -> str | None:
    """Returns the precision of a run that will start on this machine; None if a GPU will decide it."""
    if config.train.precision != "auto":
        return config.train.precision
    return None if config.train.device != "cpu" and visible_gpus() else cpu_precision(config)


def cpu_precision(config: RunConfig) -> str:
    """Returns the faster precision on a CPU.

    Source: docs/benchmarks.md, section "bfloat16 on a CPU".
    """
    return "bfloat16" if cpu_has_bfloat16() and is_faster_in_bfloat16(config) else "float32"


def is_faster_in_bfloat16(config: RunConfig) -> bool:
    """Returns whether a model is a gpt, the only one whose loss was compared, with products that are large enough."""
    model, tokens = config.model, config.train.batch_size * config.model.context_length / config.launch.num_processes
    if not isinstance(model, GPTConfig) or model.d_model < MIN_D_MODEL or tokens < MIN_TOKENS:
        return False
    if config.dense:
        return True
    return model.block_width >= MIN_D_EXPERT and rows_per_expert(config) >= MIN_ROWS
