"""How does an expert choose its tokens? The expert-choice router.

T tokens, E experts, K chosen per token on average, C capacity of an expert, D width.
"""

from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moe_cli.config.capacity import expert_capacity
from moe_cli.distributed.collectives import all_gather_rows, rank, world_size
from moe_cli.moe.routers.router import GatedRouter, top_indices
from moe_cli.moe.routing import Routing, RoutingPolicy


class ExpertChoiceRouter(GatedRouter):
    """Lets each expert select the C tokens with the highest softmax probability (arXiv:2202.09368, section 3.2).

    C = ceil(capacity_factor * T * K / E). All experts have the same load; a token has 0 to E experts. In training T
    includes the tokens of all processes, and an expert selects from all of them. Not for causal models, because the
    selection depends on later tokens.
    """

    fills_capacity: ClassVar[bool] = True

    def route(
        self, tokens: Float[Tensor, "T D"], token_ids: Int[Tensor, " T"] | None, policy: RoutingPolicy
    ) -> Routing:
        logits, probs = self.scores(tokens)
        is_gathered = self.training and world_size() > 1  # an evaluation batch belongs to one process
        scores = all_gather_rows(probs.detach()) if is_gathered else probs.detach()
        factor, top_k = policy.capacity_factor or 1.0, policy.top_k or self.top_k
        capacity = min(len(scores), expert_capacity(len(scores), self.num_experts, top_k, factor))
        rows = top_indices(scores.T.contiguous(), capacity).flatten()
        expert_ids = torch.arange(self.num_experts, device=tokens.device).repeat_interleave(capacity)
        if is_gathered:
            is_local = rows // len(tokens) == rank()
            rows, expert_ids = rows[is_local] % len(tokens), expert_ids[is_local]
        kept = torch.ones(len(rows), dtype=torch.bool, device=tokens.device)
        weights = probs[rows, expert_ids]
        return Routing(logits, probs, rows, expert_ids, weights, kept, is_dropless=True)
