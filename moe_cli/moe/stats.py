"""How experts are used: measures of a Routing, each with its unit and range. T tokens, E experts, K chosen."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moe_cli.moe.routing import Routing

# An expert with less than this share of a fair load over an evaluation counts as dead.
DEAD_BELOW = 0.01


def tokens_per_expert(routing: Routing, *, kept: bool = False) -> Int[Tensor, " E"]:
    """Assignments asked of each expert, before drops; with `kept`, those it kept. Sums to T * K when nothing drops."""
    chosen = routing.expert_ids[routing.kept] if kept else routing.expert_ids
    return torch.bincount(chosen, minlength=routing.num_experts)


def max_violation(tokens_per_expert: Tensor) -> float:
    """MaxVio: (largest load - mean load) / mean load; 0 is even, E / K - 1 at most (arXiv:2408.15664)."""
    load = tokens_per_expert.double()
    mean = load.mean().item()
    return (load.max().item() - mean) / mean if mean else 0.0


def dropped_fraction(routing: Routing) -> float:
    """Share of assignments that found no room, 0 to 1."""
    return 1 - routing.kept.double().mean().item() if len(routing.kept) else 0.0


def routing_entropy(probs: Float[Tensor, "T E"]) -> float:
    """Mean over tokens of the entropy of the routing probabilities, divided by ln E: 0 is sure, 1 is undecided."""
    if probs.shape[-1] == 1:
        return 0.0
    entropy = torch.special.entr(probs.double()).sum(-1).mean().item()
    return float(entropy / math.log(probs.shape[-1]))


def dead_experts(tokens_per_expert: Tensor) -> float:
    """Share of experts that got less than 1 % of a fair load, 0 to 1; counted over a whole evaluation."""
    load = tokens_per_expert.double()
    return (load < DEAD_BELOW * load.mean()).double().mean().item() if load.sum() else 1.0
