"""The precision of matrix products in a forward pass: from `train.precision` to an autocast context."""

from contextlib import AbstractContextManager
from typing import Any

import torch


def pick_precision(precision: str, device: torch.device) -> str:
    """Resolves `auto`: bfloat16 on a GPU with bfloat16 units (capability 8.0 or more), else float32.

    On a CPU a run has decided before, by its model (moe_cli.execution.precision).
    """
    if precision != "auto":
        return precision
    has_bfloat16 = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return "bfloat16" if has_bfloat16 else "float32"


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Returns the autocast context of a forward pass. Weights, gradients, optimizer state and gates stay float32."""
    enabled = pick_precision(precision, device) == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)
