"""The sparse layers of other libraries, if installed, as candidates of `moe bench layer`.

They get our weights if their layout allows it. A peer without gated experts gets matrices of one and a half times the
width, which are the same FLOPs. Noise and drops are disabled if the library allows it.
T tokens, E experts, K chosen, D width, F width of an expert.
"""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from moe_cli.bench.candidates import DTYPES, Builder, Candidate, Shape, SkipCandidate, make_layer
from moe_cli.formatting import format_bytes

IMPLEMENTATIONS = ("eager", "grouped_mm", "batched_mm")
# A candidate that would copy more bytes is skipped, because several candidates are in memory at once.
MAX_COPY_BYTES = 2**30
# Indexing a stacked weight by expert writes a full gradient for each expert; more bytes would take minutes.
MAX_GRADIENT_BYTES = 2**36


def peer_builders(shape: Shape, device: str = "cpu") -> dict[str, Builder]:
    """Returns the builders of all peers by name. A builder raises an error if its library is missing."""
    builders: dict[str, Builder] = {}
    for family, make in FAMILIES.items():
        for implementation in IMPLEMENTATIONS:
            name = f"transformers {family}, {implementation}"
            builders[name] = partial(_transformers, name, make, implementation, shape, device)
    for name, build in (
        ("transformers Switch", _switch),
        ("st-moe-pytorch", _st_moe),
        ("mixture-of-experts", _mixture_of_experts),
    ):
        builders[name] = partial(_build_peer, name, build, shape, device)
    return builders


def _transformers(
    name: str, make: Callable[[Shape], nn.Module], implementation: str, shape: Shape, device: str
) -> Candidate:
    if implementation == "batched_mm":
        _refuse_copies(shape.tokens * shape.k * shape.expert_params * DTYPES[shape.dtype].itemsize, "weights")
    if implementation == "eager":
        written = shape.experts**2 * shape.expert_params * DTYPES[shape.dtype].itemsize
        if written > MAX_GRADIENT_BYTES:
            raise SkipCandidate(f"would write {format_bytes(written)} of gradients: all experts' for each expert")
    block: Any = make(shape)
    block.experts.config._experts_implementation = implementation
    layer: Any = make_layer(shape)
    with torch.no_grad():
        block.gate.weight.copy_(layer.router.get_parameter("gate.weight"))
        block.experts.gate_up_proj.copy_(layer.experts.w_in)
        block.experts.down_proj.copy_(layer.experts.w_out)
    return Candidate(name, block.to(device, DTYPES[shape.dtype]), shape.tokens, partial(_call_block, block))


def _build_peer(name: str, build: Callable[[Shape], nn.Module], shape: Shape, device: str) -> Candidate:
    module = build(shape).to(device, DTYPES[shape.dtype])
    return Candidate(name, module, shape.tokens, partial(_call_block, module))


def _call_block(block: nn.Module, x: Tensor) -> Tensor:
    """Calls a block that takes a batch of sequences and may return losses with its output, on rows [T, D]."""
    y = block(x.unsqueeze(0))
    return (y[0] if isinstance(y, tuple) else y).squeeze(0)  # type: ignore[no-any-return]


def _refuse_copies(num_bytes: int, copied: str) -> None:
    if num_bytes > MAX_COPY_BYTES:
        raise SkipCandidate(f"would copy {format_bytes(num_bytes)} of {copied}")


def _model(family: str) -> Any:
    return importlib.import_module(f"transformers.models.{family}.modeling_{family}")


def _sparse_block(family: str, config: str, block: str, shape: Shape, **settings: Any) -> nn.Module:
    """Builds a sparse block of transformers from the names of its family, its configuration and its class."""
    make_config = getattr(importlib.import_module("transformers"), config)
    options = make_config(hidden_size=shape.d_model, num_experts_per_tok=shape.k, **settings)
    return getattr(_model(family), block)(options)  # type: ignore[no-any-return]


def _mixtral(shape: Shape) -> nn.Module:
    sizes = {"intermediate_size": shape.d_expert, "num_local_experts": shape.experts}
    return _sparse_block("mixtral", "MixtralConfig", "MixtralSparseMoeBlock", shape, **sizes)


def _olmoe(shape: Shape) -> nn.Module:
    sizes = {"intermediate_size": shape.d_expert, "num_experts": shape.experts, "norm_topk_prob": shape.k > 1}
    return _sparse_block("olmoe", "OlmoeConfig", "OlmoeSparseMoeBlock", shape, **sizes)


def _qwen3(shape: Shape) -> nn.Module:
    sizes = {"moe_intermediate_size": shape.d_expert, "num_experts": shape.experts, "norm_topk_prob": shape.k > 1}
    return _sparse_block("qwen3_moe", "Qwen3MoeConfig", "Qwen3MoeSparseMoeBlock", shape, **sizes)


def _deepseek(shape: Shape) -> nn.Module:
    """Builds DeepSeek's layer: sigmoid scores, one group, and no shared expert, which would add active FLOPs."""
    sizes = {"moe_intermediate_size": shape.d_expert, "n_routed_experts": shape.experts}
    routing = {"n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0}
    block = _sparse_block("deepseek_v3", "DeepseekV3Config", "DeepseekV3MoE", shape, **sizes, **routing)
    block.shared_experts = _Zero()
    return block


class _Zero(nn.Module):
    def forward(self, x: Tensor) -> float:
        return 0.0


FAMILIES: dict[str, Callable[[Shape], nn.Module]] = {
    "Mixtral": _mixtral,
    "OLMoE": _olmoe,
    "Qwen3-MoE": _qwen3,
    "DeepSeek-V3": _deepseek,
}


def _plain_width(shape: Shape) -> int:
    if shape.d_expert % 2:
        raise SkipCandidate("has two matrices per expert: equal FLOPs need an even d_expert")
    return shape.d_expert * 3 // 2


def _switch(shape: Shape) -> nn.Module:
    from transformers import SwitchTransformersConfig

    if shape.k != 1:
        raise SkipCandidate(f"sends each token to one expert, here k={shape.k}")
    config = SwitchTransformersConfig(
        d_model=shape.d_model,
        d_ff=_plain_width(shape),
        num_experts=shape.experts,
        expert_capacity=shape.tokens,
        dropout_rate=0.0,
        router_jitter_noise=0.0,
    )
    return _model("switch_transformers").SwitchTransformersSparseMLP(config)  # type: ignore[no-any-return]


def _refuse_large_one_hot(shape: Shape) -> None:
    """Raises SkipCandidate if dispatch and combine tensors [T, E, C], with C = T K / E, are too large."""
    _refuse_copies(4 * shape.tokens * shape.tokens * shape.k * DTYPES[shape.dtype].itemsize, "one-hot dispatch")


def _st_moe(shape: Shape) -> nn.Module:
    from st_moe_pytorch import MoE

    if shape.k < 2:
        raise SkipCandidate("needs k of at least 2")
    _refuse_large_one_hot(shape)
    # Its width is int(dim * mult * 2 / 3); the half prevents that rounding makes it one less.
    return MoE(  # type: ignore[no-any-return]
        dim=shape.d_model,
        num_experts=shape.experts,
        gating_top_n=shape.k,
        threshold_train=0.0,
        capacity_factor_train=float(shape.k),
        expert_hidden_mult=1.5 * (shape.d_expert + 0.5) / shape.d_model,
    )


def _mixture_of_experts(shape: Shape) -> nn.Module:
    from mixture_of_experts import MoE

    if shape.k != 2:
        raise SkipCandidate(f"sends each token to two experts, here k={shape.k}")
    _refuse_large_one_hot(shape)
    return MoE(  # type: ignore[no-any-return]
        dim=shape.d_model,
        num_experts=shape.experts,
        hidden_dim=_plain_width(shape),
        second_policy_train="all",
        capacity_factor_train=2.0,
    )
