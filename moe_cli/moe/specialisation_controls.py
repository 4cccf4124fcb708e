"""Is the specialisation of experts more than chance and more than geometry? Two controls of the same measure.

Domains that differ in their hidden states are separated by any linear map of these states, trained or not
(arXiv:2604.09780). So the specialisation of a router is compared with that of random routers of the same shape on the
same hidden states, and with that of shuffled domain labels.
T tokens, D width, E experts, K chosen, U units (documents), G domains, R random routers.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moe_cli.moe.routing_metrics import specialisations
from moe_cli.moe.routing_study import NUM_RANDOM_ROUTERS, NUM_SHUFFLES

# Rounds of the search for biases, and the entries of a table of scores that is made at a time.
BALANCING_ROUNDS = 20
MAX_SCORES = 2**22


def shuffled_specialisations(
    counts: Int[Tensor, "U E"], domains: Int[Tensor, " U"], num_domains: int, seed: int = 0
) -> list[float]:
    """Computes the specialisation with the domain labels of whole units shuffled, NUM_SHUFFLES times, in order.

    Documents, not tokens, change labels: the tokens of one document are routed alike whatever its domain, and shuffled
    tokens would hide that. The values are the distribution under the hypothesis that the routing of a document depends
    on its length only.

    Args:
        counts: assignments of each unit to each expert.
        domains: the domain of each unit.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.stack([domains[torch.randperm(len(domains), generator=generator)] for _ in range(NUM_SHUFFLES)])
    domain_ids, weights = torch.arange(num_domains), counts.double()
    values = [
        specialisations((part[:, None] == domain_ids[:, None]).double() @ weights)
        for part in labels.split(max(1, MAX_SCORES // max(1, num_domains * len(domains))))
    ]
    return sorted(torch.cat(values).tolist())


def permutation_p_value(measured: float, shuffled: list[float]) -> float:
    """Computes the p-value (1 + number of shuffled values of at least `measured`) / (1 + number of shuffles).

    Source: Phipson and Smyth 2010, Statistical Applications in Genetics and Molecular Biology 9(1), article 39.
    """
    return (1 + sum(value >= measured - 1e-12 for value in shuffled)) / (1 + len(shuffled))


class RandomRouters:
    """R random linear maps [D, E] of hidden states. Each sends a token to the K highest scores plus a bias.

    The biases give each map about the load of the router that it is compared with, on the tokens of `balance`: a
    measure of specialisation depends on the load too.
    """

    def __init__(self, width: int, num_experts: int, top_k: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        shape = (NUM_RANDOM_ROUTERS, width, num_experts)
        self.top_k = top_k
        self.weights: Float[Tensor, "R D E"] = torch.randn(shape, generator=generator) * width**-0.5
        self.bias: Float[Tensor, "R E"] = torch.zeros(NUM_RANDOM_ROUTERS, num_experts)

    def balance(self, tokens: Float[Tensor, "T D"], load: Float[Tensor, " E"]) -> None:
        """Sets the biases so that each map has about this load on these tokens.

        Args:
            load: the share of tokens that each expert is to get; the sum is K.
        """
        self.bias = balancing_bias(tokens.float() @ self.weights, load.float(), self.top_k)

    def choose(self, tokens: Float[Tensor, "T D"]) -> Int[Tensor, "R T K"]:
        """Returns the experts of each token. Scores are float32 in any precision, as those of a gate are."""
        self.weights, self.bias = self.weights.to(tokens.device), self.bias.to(tokens.device)
        size = max(1, MAX_SCORES // self.bias.numel())
        with torch.autocast(tokens.device.type, enabled=False):
            parts = [
                (part.float() @ self.weights + self.bias[:, None]).topk(self.top_k, dim=-1).indices
                for part in tokens.split(size)
            ]
        return torch.cat(parts, dim=1)


def balancing_bias(scores: Float[Tensor, "R T E"], load: Float[Tensor, " E"], top_k: int) -> Float[Tensor, "R E"]:
    """Returns biases with which the K highest scores of each token give about this load, for each of R tables.

    An expert is chosen where its score plus its bias exceeds the K-th highest of the others. Its bias is set to the
    quantile of that margin which the load asks for, all experts at once and half of the way, BALANCING_ROUNDS times;
    the biases with the smallest error are returned.

    Args:
        load: the share of tokens that each expert is to get, with the sum K.
    """
    num_routers, num_tokens, num_experts = scores.shape
    bias = -scores.mean(1)
    best, smallest = bias, torch.full((num_routers,), float("inf"), device=scores.device)
    # The index of the first score, in descending order, that must not be chosen.
    rank = (load.clamp(0, 1) * num_tokens).round().long().clamp(max=num_tokens - 1).expand(num_routers, 1, num_experts)
    for _ in range(BALANCING_ROUNDS):
        top = (scores + bias[:, None]).topk(top_k + 1, dim=-1)
        is_top = torch.zeros_like(scores, dtype=torch.bool).scatter_(2, top.indices[..., :top_k], True)
        error = (is_top.float().mean(1) - load).abs().sum(1)
        best = torch.where((error < smallest)[:, None], bias, best)
        smallest = torch.minimum(error, smallest)
        barrier = torch.where(is_top, top.values[..., top_k:], top.values[..., top_k - 1 : top_k])
        margins = (scores - barrier).sort(1, descending=True).values
        edge = (margins.gather(1, (rank - 1).clamp(min=0)) + margins.gather(1, rank)).squeeze(1) / 2
        bias = (bias - edge) / 2
    return best
