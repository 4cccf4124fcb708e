"""Reference formulas: routers and layers written on dense T x E matrices, and random routings.

Nothing here uses Routing's order, a back end or the activations of the package. T tokens, E experts, K chosen, D width.
"""

import torch
from hypothesis import strategies as st
from torch import Tensor

from moe_cli.config.routers import RandomConfig, RouterConfig, SwitchConfig, TopKConfig
from moe_cli.moe.routing import Routing

FFN_TYPES = ("glu", "mlp")
ACTIVATIONS = {
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5)),
    "relu": lambda x: x * (x > 0),
    "relu2": lambda x: x * x * (x > 0),
}
# Name, config and K of the routers that the oracles run through.
ROUTERS: dict[str, tuple[RouterConfig, int]] = {
    "top1": (TopKConfig(renormalise=False), 1),
    "top2": (TopKConfig(), 2),
    "top5": (TopKConfig(), 5),
    "switch": (SwitchConfig(jitter=0.1), 1),
    "random": (RandomConfig(), 2),
}


def network(x: Tensor, w_in: Tensor, w_out: Tensor, ffn_type: str, activation: str) -> Tensor:
    """act(gate) * up, or act, between two matrices."""
    pre, act, width = x @ w_in.T, ACTIVATIONS[activation], w_out.shape[1]
    return (act(pre[:, :width]) * pre[:, width:] if ffn_type == "glu" else act(pre)) @ w_out.T


def top_k_weights(x: Tensor, gate: Tensor, top_k: int, renormalise: bool) -> Tensor:
    """T x E: the softmax where it is among the row's K largest, else 0."""
    probs = torch.softmax(x @ gate.T, -1)
    weights = probs * (probs >= probs.sort(-1).values[:, -top_k, None])
    return weights / weights.sum(-1, keepdim=True) if renormalise else weights


def dense(routing: Routing, values: Tensor) -> Tensor:
    """One value per assignment, added up into a T x E matrix."""
    matrix = torch.zeros(routing.num_tokens, routing.num_experts, dtype=values.dtype)
    return matrix.index_put((routing.token_ids, routing.expert_ids), values, accumulate=True)


@st.composite
def routings(draw: st.DrawFn, num_experts: int | None = None) -> Routing:
    """Any record a router could ever make: assignments in any order, repeated, missing, some dropped already."""
    tokens, experts = draw(st.integers(1, 12)), num_experts or draw(st.integers(1, 6))
    size, seed = draw(st.integers(0, 40)), draw(st.integers(0, 2**16))
    generator = torch.Generator().manual_seed(seed)
    # Coarse logits, so that equal probabilities occur.
    logits = torch.randint(-2, 3, (tokens, experts), generator=generator).double()
    return Routing(
        logits=logits,
        probs=logits.softmax(-1),
        token_ids=torch.randint(tokens, (size,), generator=generator),
        expert_ids=torch.randint(experts, (size,), generator=generator),
        weights=torch.rand(size, dtype=torch.float64, generator=generator),
        kept=torch.rand(size, generator=generator) < draw(st.sampled_from([1.0, 0.7])),
    )
