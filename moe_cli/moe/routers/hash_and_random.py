"""How are tokens assigned without a gate? By a fixed table of token ids, or at random.

T tokens, E experts, K chosen per token, V token ids, D width.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moe_cli.config.routers import HashConfig
from moe_cli.moe.experts import Experts
from moe_cli.moe.routers.router import GatedRouter, Router, gate_dtype, gather_scores, top_indices
from moe_cli.moe.routing import Routing, RoutingPolicy, routing_from_top_k


class RandomRouter(Router):
    """Draws K distinct experts uniformly, each with weight 1 / K: the control of an experiment. Has no parameters."""

    def route(
        self, tokens: Float[Tensor, "T D"], token_ids: Int[Tensor, " T"] | None, policy: RoutingPolicy
    ) -> Routing:
        scores = torch.rand(len(tokens), self.num_experts, dtype=gate_dtype(tokens), device=tokens.device)
        expert_ids = top_indices(scores, policy.top_k or self.top_k)
        probs = torch.full_like(scores, 1 / self.num_experts)
        weights = torch.full(expert_ids.shape, 1 / expert_ids.shape[1], dtype=scores.dtype, device=tokens.device)
        return routing_from_top_k(torch.zeros_like(scores), probs, expert_ids, weights)


class HashRouter(GatedRouter):
    """Looks up the K experts of a token id in a fixed balanced table (Hash Layers, arXiv:2106.04426).

    Weights come from a gate with `learned`, else they are 1 / K. In the table, each block of E consecutive ids is a
    permutation of the experts. Choice j of a token is (first choice + fixed shift j) mod E.
    """

    config: HashConfig
    table: Tensor
    shifts: Tensor

    def __init__(
        self,
        d_model: int,
        num_experts: int,
        top_k: int,
        config: HashConfig,
        experts: Experts | None = None,
        vocab_size: int = 0,
    ) -> None:
        super().__init__(d_model, num_experts, top_k, config, experts)
        if not config.learned:
            del self.gate
        self.register_buffer("table", balanced_table(vocab_size, num_experts))
        self.register_buffer("shifts", torch.randperm(num_experts, generator=torch.Generator().manual_seed(1)))

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        if self.config.learned:
            super().reset_parameters(generator)

    def logits(self, tokens: Float[Tensor, "T D"]) -> Float[Tensor, "T E"]:
        """Computes the gate's scores; zeros if the router has no gate."""
        if self.config.learned:
            return super().logits(tokens)
        return torch.zeros(tokens.shape[0], self.num_experts, dtype=gate_dtype(tokens), device=tokens.device)

    def route(
        self, tokens: Float[Tensor, "T D"], token_ids: Int[Tensor, " T"] | None, policy: RoutingPolicy
    ) -> Routing:
        assert token_ids is not None, "router=hash looks up token ids"
        top_k = policy.top_k or self.top_k
        logits, probs = self.scores(tokens)
        shifts = (self.shifts[:top_k] - self.shifts[0]) % self.num_experts
        expert_ids = (self.table[token_ids].unsqueeze(1) + shifts) % self.num_experts
        if self.config.learned and top_k == 1:
            return routing_from_top_k(logits, probs, expert_ids, gather_scores(probs, expert_ids))
        # Without a gate all scores are equal, and this softmax is 1 / K.
        weights = gather_scores(logits, expert_ids).softmax(-1)
        return routing_from_top_k(logits, probs, expert_ids, weights)


def balanced_table(vocab_size: int, num_experts: int) -> Int[Tensor, " V"]:
    """Returns the expert of each token id; each expert has V / E ids. The table is the same in every run."""
    generator = torch.Generator().manual_seed(0)
    blocks = -(-vocab_size // num_experts)
    rows = [torch.randperm(num_experts, generator=generator) for _ in range(blocks)]
    return torch.cat([*rows, torch.empty(0, dtype=torch.int64)])[:vocab_size]
