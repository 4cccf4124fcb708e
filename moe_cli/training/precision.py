"""The precision of matrix products in a forward pass: `train.precision` -> an autocast context."""

from contextlib import AbstractContextManager
from typing import Any

import torch


def pick_precision(precision: str, device: torch.device) -> Any:
    """Resolves `auto`: bfloat16 on a GPU that multiplies it (capability 8.0 or more), else float32."""
    if precision != "auto":
        return precision
    fast = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return "bfloat16" if fast else "float32"


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Returns the autocast context of the forward pass. Weights, gradients, optimizer and the gate stay float32."""
    enabled = pick_precision(precision, device) == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)
