"""The router in which experts choose their tokens.

T tokens, E experts, K chosen per token on average, C capacity of an expert, D width.
"""

from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moe_cli.distributed.collectives import all_gather_rows, rank, world_size
from moe_cli.moe.routers.router import GatedRouter, top_indices
from moe_cli.moe.routing import Routing, RoutingPolicy, expert_capacity


class ExpertChoiceRouter(GatedRouter):
    """Softmax over E; each expert takes its C best tokens, C = ceil(capacity * T * K / E) (2202.09368, section 3.2).

    Every expert has the same load by construction; a token gets none to E of them. Not for causal models: the choice
    depends on later tokens. In training T counts, and an expert chooses from, the tokens of all processes.
    """

    fills_capacity: ClassVar[bool] = True

    def route(
        self, tokens: Float[Tensor, "T D"], token_ids: Int[Tensor, " T"] | None, policy: RoutingPolicy
    ) -> Routing:
        logits, probs = self.scores(tokens)
        together = self.training and world_size() > 1  # an evaluation batch belongs to one process
        scores = probs.detach() + self.expert_bias
        scores = all_gather_rows(scores) if together else scores
        factor, top_k = policy.capacity_factor or 1.0, policy.top_k or self.top_k
        capacity = min(len(scores), expert_capacity(len(scores), self.num_experts, top_k, factor))
        chosen = top_indices(scores.T.contiguous(), capacity).flatten()
        expert_ids = torch.arange(self.num_experts, device=tokens.device).repeat_interleave(capacity)
        if together:
            local = chosen // len(tokens) == rank()
            chosen, expert_ids = chosen[local] % len(tokens), expert_ids[local]
        kept = torch.ones(len(chosen), dtype=torch.bool, device=tokens.device)
        return Routing(logits, probs, chosen, expert_ids, probs[chosen, expert_ids], kept)
