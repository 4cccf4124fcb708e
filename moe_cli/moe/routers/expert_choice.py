"""The router in which experts choose their tokens.

T tokens, E experts, K chosen per token on average, C capacity of an expert, D width.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from moe_cli.config.routers import ExpertChoiceConfig
from moe_cli.distributed.collectives import all_gather_rows, rank, world_size
from moe_cli.moe.experts import Experts
from moe_cli.moe.routers.token_choice import Router, top_indices
from moe_cli.moe.routing import Routing, expert_capacity


class ExpertChoiceRouter(Router):
    """Softmax over E; each expert takes its C best tokens, C = ceil(capacity * T * K / E) (2202.09368, section 3.2).

    Every expert is used alike by construction; a token gets none to E of them. Not for causal models: who is taken
    depends on later tokens. In training T counts, and an expert chooses from, the tokens of all processes.
    """

    def __init__(
        self, d_model: int, num_experts: int, top_k: int, config: ExpertChoiceConfig, experts: Experts | None = None
    ) -> None:
        super().__init__(d_model, num_experts, top_k, config, experts)
        self.capacity_factor = 1.0

    def forward(self, x: Float[Tensor, "T D"]) -> Routing:
        logits, probs = self.scores(x)
        together = self.training and world_size() > 1  # an evaluation batch is looked at whole by one process
        scores = probs.detach() + self.expert_bias
        scores = all_gather_rows(scores) if together else scores
        capacity = min(len(scores), expert_capacity(len(scores), self.num_experts, self.top_k, self.capacity_factor))
        token_ids = top_indices(scores.T.contiguous(), capacity).flatten()
        expert_ids = torch.arange(self.num_experts, device=x.device).repeat_interleave(capacity)
        if together:
            own = token_ids // len(x) == rank()
            token_ids, expert_ids = token_ids[own] % len(x), expert_ids[own]
        kept = torch.ones(len(token_ids), dtype=torch.bool, device=x.device)
        return Routing(logits, probs, token_ids, expert_ids, probs[token_ids, expert_ids], kept)
