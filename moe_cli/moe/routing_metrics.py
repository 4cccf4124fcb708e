"""How evenly, certainly and specifically are tokens routed? The metrics of a Routing, each with its unit and range.

Null experts take part in the entropies, which measure the router's decision. `dropped_fraction` removes
them. For every other metric the caller does (`moe_cli.moe.routing.without_null_experts`).

T tokens, E experts, K chosen, G groups of tokens (domains, or token ids of the vocabulary).
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from moe_cli.metrics import DEAD_BELOW
from moe_cli.moe.routing import Routing, without_null_experts

# Rounds of iterative scaling; the error falls by a constant factor in each.
SCALING_ROUNDS = 200


def load_cv(tokens_per_expert: Tensor) -> float:
    """Computes the coefficient of variation of the load: population standard deviation / mean.

    0 means an even load; the maximum is sqrt(E - 1). Without assignments it is 0.
    """
    load = tokens_per_expert.double()
    mean = load.mean().item()
    return load.std(correction=0).item() / mean if mean else 0.0


def relative_load(counts: Int[Tensor, " E"]) -> tuple[float, ...]:
    """Returns the assignments to each expert as a multiple of an even share; 0 for all if there are none."""
    return tuple((counts * len(counts) / counts.sum().clamp(min=1)).tolist())


def assignment_mask(routing: Routing) -> Bool[Tensor, "T E"]:
    """Returns True for the experts that each token was assigned to, before drops."""
    mask = torch.zeros(routing.probs.shape, dtype=torch.bool, device=routing.probs.device)
    mask[routing.token_ids, routing.expert_ids] = True
    return mask


def co_activation(mask: Bool[Tensor, "T E"]) -> Int[Tensor, "E E"]:
    """Counts, for each pair of experts, the tokens that chose both; the diagonal counts the tokens of one expert."""
    # float32 is exact here, because a batch has far fewer than 2^24 tokens.
    matrix = mask.float()
    return (matrix.T @ matrix).round().long()


def expected_co_activation(pairs: Int[Tensor, "E E"]) -> Float[Tensor, "E E"]:
    """Computes the pairs of experts to expect if the experts of a token were independent of each other.

    A token has two different experts, so the diagonal is empty and products of loads are too large. The table is
    that of quasi-independence (Goodman 1968, Journal of the American Statistical Association 63): w_i w_j off the
    diagonal, with the row sums of `pairs`, fitted by iterative scaling. For K = 2 it is the distribution of largest
    entropy with this load.

    Args:
        pairs: as `co_activation` counts them; the diagonal is ignored.
    """
    rows = pairs.double() - pairs.diag().diag().double()
    row_sums = rows.sum(1)
    weights = row_sums / row_sums.sum().clamp(min=1).sqrt()
    for _ in range(SCALING_ROUNDS):
        others = (weights.sum() - weights).clamp(min=1e-300)
        weights = (weights * row_sums / others).sqrt()
    expected = torch.outer(weights, weights)
    return expected - expected.diag().diag()


def co_activation_dependence(pairs: Int[Tensor, "E E"], expected: Float[Tensor, "E E"]) -> float:
    """Computes the share of pairs that would have to change to make them independent (total variation distance).

    The range is 0 to 1; without pairs it is 0.
    """
    rows = pairs.double() - pairs.diag().diag().double()
    total = rows.sum().item()
    return (rows - expected).abs().sum().item() / (2 * total) if total else 0.0


def router_saturation(mask: Bool[Tensor, "T E"], final: Bool[Tensor, "T E"]) -> float:
    """Computes the fraction of the final router's choices that an earlier router also made (OLMoE, arXiv:2409.02060).

    Both route the same tokens. The range is 0 to 1; about K / E means agreement by chance, see `chance_saturation`.
    """
    total = final.sum().item()
    return (mask & final).sum().item() / total if total else 1.0


def chance_saturation(mask: Bool[Tensor, "T E"], final: Bool[Tensor, "T E"]) -> float:
    """Computes the expected `router_saturation` of two routers of these loads that choose independently of each other.

    It is K / E for even loads, and more if both prefer the same experts.
    """
    total = final.sum().item()
    agreements = (mask.double().mean(0) * final.double().sum(0)).sum().item()
    return agreements / total if total else 1.0


def assignments_by_group(routing: Routing, groups: Int[Tensor, " T"], num_groups: int) -> Int[Tensor, "G E"]:
    """Counts the assignments of each group of tokens to each expert."""
    pairs = groups[routing.token_ids] * routing.num_experts + routing.expert_ids
    counts = torch.bincount(pairs, minlength=num_groups * routing.num_experts)
    return counts.view(num_groups, routing.num_experts)


def specialisation(counts: Int[Tensor, "G E"]) -> float:
    """Computes the mutual information of group and expert, divided by its upper bound min(H(group), H(expert)).

    The range is 0 to 1. 0 means that the choice is independent of the group, or that only one group or one expert is
    used. 1 means that one determines the other. The estimate from n counts is about (G - 1)(E - 1) / (2 n) nats too
    high, so n should be far above G E.
    """
    return specialisations(counts.unsqueeze(0)).item()


def specialisations(tables: Int[Tensor, "N G E"] | Float[Tensor, "N G E"]) -> Float[Tensor, " N"]:
    """Computes `specialisation` of each of N tables of counts."""
    probs = tables.double() / tables.sum((1, 2), keepdim=True).clamp(min=1)
    group, expert, joint = (torch.special.entr(part).flatten(1).sum(1) for part in (probs.sum(2), probs.sum(1), probs))
    return _share_of_bound(group, expert, joint)


def _share_of_bound(
    group: Float[Tensor, "*N"], expert: Float[Tensor, "*N"], joint: Float[Tensor, "*N"]
) -> Float[Tensor, "*N"]:
    """Computes the information of entropies, divided by its upper bound; 0 where that is 0."""
    bound = torch.minimum(group, expert)
    share = ((group + expert - joint) / bound.clamp(min=1e-12)).clamp(0, 1)
    return share.where(bound > 1e-12, torch.zeros_like(share))


def normalised_information(
    by_group: Int[Tensor, " G"], by_expert: Int[Tensor, " E"], joint: Int[Tensor, "*pairs"]
) -> float:
    """Computes `specialisation` from the two marginal counts and the joint counts, whose zeros may be left out."""
    total = joint.sum().clamp(min=1)
    entropies = [torch.special.entr(counts.double() / total).sum() for counts in (by_group, by_expert, joint)]
    return _share_of_bound(*entropies).item()


def dropped_fraction(routing: Routing) -> Float[Tensor, ""]:
    """Computes the fraction of assignments that were dropped, a float64 tensor on the routing's device.

    The range is 0 to 1; without assignments it is 0. Null experts are not counted.
    """
    dropped = 1 - without_null_experts(routing).kept.double()
    return dropped.sum() / max(1, len(dropped))


def routing_entropy(probs: Float[Tensor, "T E"]) -> float:
    """Computes the mean entropy of a token's routing probabilities, divided by ln E.

    0 means certain, 1 means uniform. Without tokens it is 0.
    """
    if probs.shape[-1] == 1 or not len(probs):
        return 0.0
    entropy = torch.special.entr(probs.double()).sum(-1).mean().item()
    return float(entropy / math.log(probs.shape[-1]))


def dead_experts(tokens_per_expert: Tensor) -> float:
    """Computes the fraction of experts whose load is below DEAD_BELOW (1 %) of the mean load, 0 to 1.

    Counts of a whole evaluation make it meaningful. Without assignments it is 1.
    """
    load = tokens_per_expert.double()
    return (load < DEAD_BELOW * load.mean()).double().mean().item() if load.sum() else 1.0
