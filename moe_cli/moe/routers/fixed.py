"""Routers whose choice no gate makes: by a fixed table of token ids, and by chance.

T tokens, E experts, K chosen per token, V token ids, D width.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from moe_cli.config.routers import HashConfig, RandomConfig
from moe_cli.moe.experts import Experts
from moe_cli.moe.routers.token_choice import Router, top_indices
from moe_cli.moe.routing import Routing, from_choices


class RandomRouter(nn.Module):
    """K distinct experts drawn uniformly, each weighted 1/K: the control. Has no parameters."""

    reads_token_ids = False

    def __init__(
        self, d_model: int, num_experts: int, top_k: int, config: RandomConfig, experts: Experts | None = None
    ) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.top_k = top_k

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Nothing to set: there is no gate."""

    def forward(self, x: Float[Tensor, "T D"]) -> Routing:
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        draw = torch.rand(x.shape[0], self.num_experts, dtype=dtype, device=x.device)
        chosen = top_indices(draw, self.top_k)
        probs = torch.full_like(draw, 1 / self.num_experts)
        weights = torch.full(chosen.shape, 1 / self.top_k, dtype=dtype, device=x.device)
        return from_choices(torch.zeros_like(draw), probs, chosen, weights)


class HashRouter(Router):
    """A fixed balanced table from token id to K experts; weights learned, or 1 / K (Hash Layers, 2106.04426).

    Of every E ids in a row each goes first to another expert; further choices are the same table, shifted.
    """

    table: Tensor
    shifts: Tensor
    reads_token_ids = True

    def __init__(
        self, d_model: int, num_experts: int, top_k: int, config: HashConfig, experts: Experts | None = None,
        vocab_size: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(d_model, num_experts, top_k, config, experts)
        self.learned = config.learned
        if not self.learned:
            del self.gate
        self.register_buffer("table", balanced_table(vocab_size, num_experts))
        self.register_buffer("shifts", torch.randperm(num_experts, generator=torch.Generator().manual_seed(1)))

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        if self.learned:
            super().reset_parameters(generator)

    def logits(self, x: Float[Tensor, "T D"]) -> Float[Tensor, "T E"]:
        """The gate's scores; zeros where there is no gate."""
        if self.learned:
            return super().logits(x)
        return torch.zeros(
            len(x),
            self.num_experts,
            dtype=torch.float64 if x.dtype == torch.float64 else torch.float32,
            device=x.device,
        )

    def forward(self, x: Float[Tensor, "T D"], token_ids: Int[Tensor, " T"]) -> Routing:
        logits, probs = self.scores(x)
        shifts = (self.shifts[: self.top_k] - self.shifts[0]) % self.num_experts
        chosen = (self.table[token_ids].unsqueeze(1) + shifts) % self.num_experts
        if self.learned and self.top_k == 1:
            return from_choices(logits, probs, chosen, probs.gather(1, chosen))
        # Of equal scores, where nothing is learned, the softmax is 1 / K.
        weights = logits.gather(1, chosen).softmax(-1)
        return from_choices(logits, probs, chosen, weights)


def balanced_table(vocab_size: int, num_experts: int) -> Int[Tensor, " V"]:
    """An expert for every token id, at random, each expert for V / E of them; always the same table."""
    generator = torch.Generator().manual_seed(0)
    blocks = -(-vocab_size // num_experts)
    rows = [torch.randperm(num_experts, generator=generator) for _ in range(blocks)]
    return torch.cat([*rows, torch.empty(0, dtype=torch.int64)])[:vocab_size]
