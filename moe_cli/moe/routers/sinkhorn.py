"""The router in which tokens choose so that experts are loaded evenly over the batch.

T tokens, E experts (null ones included), K chosen per token, D width.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from moe_cli.config.routers import SinkhornConfig
from moe_cli.distributed.collectives import all_gather_rows, local_rows
from moe_cli.moe.experts import Experts
from moe_cli.moe.routers.token_choice import Router, top_indices
from moe_cli.moe.routing import Routing, from_choices


class SinkhornRouter(Router):
    """Balanced choice by Sinkhorn iterations in training, the plain K largest at evaluation (S-BASE, 2202.01169).

    The iterations only decide who is chosen; the weights are the softmax, renormalised for K > 1, and carry the gradient.
    """

    def __init__(
        self, d_model: int, num_experts: int, top_k: int, config: SinkhornConfig, experts: Experts | None = None
    ) -> None:
        super().__init__(d_model, num_experts, top_k, config, experts)
        self.iterations = config.iterations

    def forward(self, x: Float[Tensor, "T D"]) -> Routing:
        logits, probs = self.scores(x)
        if self.training:
            chosen = top_indices(local_rows(sinkhorn(all_gather_rows(logits.detach()), self.iterations)), self.top_k)
        else:
            chosen = self.choose(probs)
        weights = probs.gather(1, chosen) if self.top_k == 1 else logits.gather(1, chosen).softmax(-1)
        return from_choices(logits, probs, chosen, weights)


def sinkhorn(logits: Float[Tensor, "T E"], iterations: int) -> Float[Tensor, "T E"]:
    """exp(logits) scaled until every row sums to 1 / T and, last, every column to 1 / E (Sinkhorn and Knopp 1967)."""
    log = logits - logits.logsumexp((0, 1))
    for _ in range(iterations):
        log = log - log.logsumexp(1, keepdim=True) - torch.tensor(float(log.shape[0])).log()
        log = log - log.logsumexp(0, keepdim=True) - torch.tensor(float(log.shape[1])).log()
    return log.exp()
