"""How can tokens choose experts with an even load in each batch? The Sinkhorn router.

T tokens, E experts (null ones included), K chosen per token, D width.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moe_cli.config.routers import SinkhornConfig
from moe_cli.distributed.collectives import all_gather_rows, local_rows
from moe_cli.moe.routers.router import GatedRouter, gather_scores, top_indices
from moe_cli.moe.routing import Routing, RoutingPolicy, routing_from_top_k


class SinkhornRouter(GatedRouter):
    """Selects by Sinkhorn-balanced scores in training, and the K largest at evaluation (S-BASE, arXiv:2202.01169).

    The iterations affect the selection only. The weights are the softmax, renormalised for K > 1; the gradient flows
    through them.
    """

    config: SinkhornConfig

    def route(
        self, tokens: Float[Tensor, "T D"], token_ids: Int[Tensor, " T"] | None, policy: RoutingPolicy
    ) -> Routing:
        logits, probs = self.scores(tokens)
        top_k = policy.top_k or self.top_k
        if self.training:
            balanced = sinkhorn(all_gather_rows(logits.detach()), self.config.iterations)
            expert_ids = top_indices(local_rows(balanced), top_k)
        else:
            expert_ids = self.select_experts(probs, policy)
        weights = gather_scores(probs, expert_ids) if top_k == 1 else gather_scores(logits, expert_ids).softmax(-1)
        return routing_from_top_k(logits, probs, expert_ids, weights)


def sinkhorn(logits: Float[Tensor, "T E"], iterations: int) -> Float[Tensor, "T E"]:
    """Scales exp(logits) so that every row sums to about 1 / T and every column to 1 / E (Sinkhorn and Knopp, 1967).

    Each iteration scales the rows and then the columns.
    """
    log = logits - logits.logsumexp((0, 1))
    log_rows, log_columns = (torch.tensor(float(size)).log() for size in logits.shape)
    for _ in range(iterations):
        log = log - log.logsumexp(1, keepdim=True) - log_rows
        log = log - log.logsumexp(0, keepdim=True) - log_columns
    return log.exp()
