"""Metrics of a Routing, each with its unit and range.

Experts that compute nothing are not measured: callers remove null experts (`moe_cli.moe.routing.without_null_experts`).
T tokens, E experts, K chosen, G groups of tokens (domains, or the tokens of the vocabulary).
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from moe_cli import metrics
from moe_cli.metrics import DEAD_BELOW
from moe_cli.moe.routing import Routing, without_null_experts


def max_violation(tokens_per_expert: Tensor) -> float:
    """Computes MaxVio of one layer, see `moe_cli.metrics.max_violation`."""
    return metrics.max_violation(tokens_per_expert.tolist())


def load_cv(tokens_per_expert: Tensor) -> float:
    """Computes the coefficient of variation of the load: population std / mean; 0 is even, sqrt(E - 1) at most."""
    load = tokens_per_expert.double()
    mean = load.mean().item()
    return load.std(correction=0).item() / mean if mean else 0.0


def chosen_mask(routing: Routing) -> Bool[Tensor, "T E"]:
    """Returns True for the experts that each token was assigned to, before drops."""
    chosen = torch.zeros(routing.probs.shape, dtype=torch.bool, device=routing.probs.device)
    chosen[routing.token_ids, routing.expert_ids] = True
    return chosen


def co_activation(chosen: Bool[Tensor, "T E"]) -> Int[Tensor, "E E"]:
    """Counts the tokens that chose both experts, for all pairs; on the diagonal, those that chose the one."""
    # Counts of one batch are far below the integers that float32 holds exactly.
    matrix = chosen.float()
    return (matrix.T @ matrix).round().long()


def router_saturation(chosen: Bool[Tensor, "T E"], final: Bool[Tensor, "T E"]) -> float:
    """Computes the fraction of the final router's choices that an earlier one shares (OLMoE, arXiv:2409.02060).

    Both route the same tokens. It is 0 to 1; K / E for routers that agree only by chance.
    """
    total = final.sum().item()
    return (chosen & final).sum().item() / total if total else 1.0


def assignments_by_group(routing: Routing, groups: Int[Tensor, " T"], num_groups: int) -> Int[Tensor, "G E"]:
    """Counts the assignments of each group of tokens to each expert."""
    pairs = groups[routing.token_ids] * routing.num_experts + routing.expert_ids
    counts = torch.bincount(pairs, minlength=num_groups * routing.num_experts)
    return counts.view(num_groups, routing.num_experts)


def specialisation(counts: Int[Tensor, "G E"]) -> float:
    """Computes the mutual information between group and expert, over its upper bound min(H(group), H(expert)); 0 to 1.

    0 means that the choice does not depend on the group, or that only one group or one expert is used. 1 means that one
    determines the other. From n counts it is about (G - 1)(E - 1) / (2 n) nats too high, so take n far above G E.
    """
    joint = counts.double() / counts.sum().clamp(min=1)
    entropies = [torch.special.entr(part).sum().item() for part in (joint.sum(1), joint.sum(0), joint)]
    bound = min(entropies[:2])
    information = entropies[0] + entropies[1] - entropies[2]
    return min(1.0, max(0.0, information / bound)) if bound > 1e-12 else 0.0


def dropped_fraction(routing: Routing) -> float:
    """Computes the fraction of the assignments to computing experts that were dropped, 0 to 1."""
    kept = without_null_experts(routing).kept
    return 1 - kept.double().mean().item() if len(kept) else 0.0


def routing_entropy(probs: Float[Tensor, "T E"]) -> float:
    """Computes the entropy of the routing probabilities, averaged over tokens, over ln E: 0 is certain, 1 is uniform.

    0 without tokens.
    """
    if probs.shape[-1] == 1 or not len(probs):
        return 0.0
    entropy = torch.special.entr(probs.double()).sum(-1).mean().item()
    return float(entropy / math.log(probs.shape[-1]))


def dead_experts(tokens_per_expert: Tensor) -> float:
    """Computes the fraction of experts with less than 1 % of a fair load, 0 to 1; counted over a whole evaluation."""
    load = tokens_per_expert.double()
    return (load < DEAD_BELOW * load.mean()).double().mean().item() if load.sum() else 1.0
