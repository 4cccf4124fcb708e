"""How does a sparse model start from the weights of a dense run? By sparse upcycling, arXiv:2212.05055.

E experts, G parts of a dense network, F its width, f = F / G the width of an expert, H = 2F for a gated network or F.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moe_cli.errors import ConfigError
from moe_cli.moe.experts import Experts
from moe_cli.moe.gates import LinearGate
from moe_cli.moe.sparse_layer import SparseLayer
from moe_cli.runs.folder import Run
from moe_cli.training.checkpoint import latest_checkpoint

# Parameters of a sparse layer that a dense layer does not have. All others must have a counterpart.
_NEW = ("router.", "shared_experts.", "shared_gate.")


@torch.no_grad()
def upcycle(model: nn.Module, source: Run, seed: int = 0, *, noise: float = 0.0, drop: float = 0.0) -> None:
    """Copies the dense network of each layer into all its experts, and all other weights. Routers keep their weights.

    The second matrix of shared experts is set to zero. If the weights of a token's experts sum to 1, the model then
    computes the function of the dense model. So does a model whose experts are parts of the dense network, if its
    router and its numbers are those that `moe_cli.execution.upcycling.check_upcycle` requires.

    Args:
        model: a model of the source's shape, whose `d_expert` is the source's `d_ff`, or divides it; see
            `moe_cli.execution.upcycling.check_upcycle`.
        seed: determines noise and dropped units.
        noise, drop: see `vary_experts`.

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
        if weight is not None and is_expert and layer is not None:
            weight = split_network(weight, layers[layer].experts, is_first=local_name.endswith("w_in"))
        if weight is None or weight.shape != param.shape:
            raise _misfit(source, f"{name} {list(param.shape)} of this model")
        param.copy_(weight)
        copied.add(counterpart)
    if unused := sorted(dense.keys() - copied):
        raise _misfit(source, f"{unused[0]} {list(dense[unused[0]].shape)} of the run")
    generator = torch.Generator().manual_seed(seed)
    for prefix, module in layers.items():
        num_parts = dense[f"{prefix}.w_out"].shape[-1] // module.experts.w_out.shape[-1]
        if num_parts > 1:
            _tie_gates(module, num_parts)
        vary_experts(module.experts, generator, noise=noise, drop=drop)
        if module.shared_experts is not None:
            module.shared_experts.w_out.zero_()


def split_network(weight: Tensor, experts: Experts, *, is_first: bool) -> Tensor | None:
    """Returns the stacked weights of E experts that are copies of a dense network, or of its G parts in turn.

    Expert e is part e % G of a copy. The second matrix is multiplied by G, because the router weighs G parts with 1/G
    each (the "virtual groups" of arXiv:2410.07524).

    Args:
        weight: the first matrix [H, D_in] of the dense network, or its second [D_out, F].

    Returns None if the shapes do not fit.
    """
    if weight.ndim != 2:
        return None
    num_experts, _, width = experts.w_out.shape
    num_matrices = 2 if is_first and experts.ffn_type == "glu" else 1
    full = weight.shape[0] // num_matrices if is_first else weight.shape[1]
    num_parts, rest = divmod(full, width)
    if rest or not num_parts or num_experts % num_parts:
        return None
    if is_first:
        parts = weight.unflatten(0, (num_matrices, num_parts, width)).transpose(0, 1).flatten(1, 2)
    else:
        parts = weight.unflatten(1, (num_parts, width)).transpose(0, 1) * num_parts
    return torch.cat([parts] * (num_experts // num_parts))


def _tie_gates(layer: SparseLayer, num_parts: int) -> None:
    """Gives all parts of one copy the gate weights of its first part, so that the router chooses whole copies."""
    for gate in layer.router.modules():
        if isinstance(gate, LinearGate):
            rows = gate.weight.unflatten(0, (-1, num_parts))
            rows.copy_(rows[:, :1].clone().expand_as(rows))


@torch.no_grad()
def vary_experts(experts: Experts, generator: torch.Generator, *, noise: float, drop: float) -> None:
    """Draws new weights for some hidden units of each expert, and adds noise to the weights of the others.

    A dropped unit loses its row of the first matrix, of both for a gated network, and its column of the second. The new
    weights are normal, with the mean and deviation that the dropped weights of this matrix had (Drop-Upcycling,
    arXiv:2502.19261, section 3). Each expert drops units of its own.

    Args:
        noise: standard deviation of the noise, as a multiple of that of the matrix.
        drop: share of the hidden units that are dropped, rounded down to whole units.
    """
    if not (noise or drop):
        return
    width = experts.w_out.shape[2]
    num_dropped = math.floor(drop * width + 1e-9)
    for w_in, w_out in zip(experts.w_in, experts.w_out, strict=True):
        units = torch.randperm(width, generator=generator)
        dropped, kept = (part.to(w_out.device) for part in units.split([num_dropped, width - num_dropped]))
        for matrix in (*w_in.unflatten(0, (-1, width)), w_out.T):
            deviation = matrix.std(correction=0)
            if num_dropped:
                old = matrix[dropped]
                matrix[dropped] = _normal(old, generator) * old.std(correction=0) + old.mean()
            if noise:
                matrix[kept] += _normal(matrix[kept], generator) * (noise * deviation)


def _normal(like: Tensor, generator: torch.Generator) -> Float[Tensor, "F D"]:
    """Draws on the CPU, so that all devices have the same weights."""
    return torch.randn(like.shape, generator=generator).to(like)


def _misfit(source: Run, tensor: str) -> ConfigError:
    return ConfigError(
        f"train.upcycle_from={source.id} does not fit: {tensor} has no counterpart of its shape.\n"
        f"Give a dense run with the same model settings. To see what differs: moe runs diff {source.id} OTHER"
    )
