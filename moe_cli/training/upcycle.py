"""How does a sparse model start from the weights of a dense run? By sparse upcycling, arXiv:2212.05055."""

import torch
from torch import nn

from moe_cli.errors import ConfigError
from moe_cli.moe.sparse_layer import SparseLayer
from moe_cli.runs.folder import Run
from moe_cli.training.checkpoint import latest_checkpoint

# Parameters of a sparse layer that a dense layer does not have. All others must have a counterpart.
_NEW = ("router.", "shared_experts.", "shared_gate.")


@torch.no_grad()
def upcycle(model: nn.Module, source: Run) -> None:
    """Copies the dense network of each layer into all its experts, and all other weights. Routers keep their weights.

    The second matrix of shared experts is set to zero. If the weights of a token's experts sum to 1, the model then
    computes the function of the dense model.

    Args:
        model: a model of the source's shape, whose `d_expert` is the source's `d_ff`; see
            `moe_cli.execution.upcycling.check_upcycle`.

    Raises:
        CheckpointError: the source's checkpoint is damaged.
        ConfigError: a tensor of one model has no counterpart of its shape in the other.
    """
    dense = latest_checkpoint(source).model_tensors()
    layers = {name: module for name, module in model.named_modules() if isinstance(module, SparseLayer)}
    copied = set()
    for name, param in model.named_parameters():
        layer = next((prefix for prefix in layers if name.startswith(f"{prefix}.")), None)
        local_name = name if layer is None else name.removeprefix(f"{layer}.")
        if layer is not None and local_name.startswith(_NEW):
            continue
        is_expert = layer is not None and local_name.startswith("experts.")
        counterpart = f"{layer}.{local_name.removeprefix('experts.')}" if is_expert else name
        weight = dense.get(counterpart)
        if weight is None or weight.shape != (param.shape[1:] if is_expert else param.shape):
            raise _misfit(source, f"{name} {list(param.shape)} of this model")
        param.copy_(weight)  # broadcast over E for experts
        copied.add(counterpart)
    if unused := sorted(dense.keys() - copied):
        raise _misfit(source, f"{unused[0]} {list(dense[unused[0]].shape)} of the run")
    for module in layers.values():
        if module.shared_experts is not None:
            module.shared_experts.w_out.zero_()


def _misfit(source: Run, tensor: str) -> ConfigError:
    return ConfigError(
        f"train.upcycle_from={source.id} does not fit: {tensor} has no counterpart of its shape.\n"
        f"Give a dense run with the same model settings. To see what differs: moe runs diff {source.id} OTHER"
    )
