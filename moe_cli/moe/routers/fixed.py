"""Routers in which a token does not choose alone: by balance over the batch, by the experts, or by a fixed table.

T tokens, E experts (null ones included), K chosen per token, C capacity of an expert, V token ids, D width.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moe_cli.config.routers import ExpertChoiceConfig, HashConfig, SinkhornConfig
from moe_cli.distributed.collectives import all_gather_rows, local_rows, rank, world_size
from moe_cli.moe.experts import Experts
from moe_cli.moe.routers.token_choice import Router, top_indices
from moe_cli.moe.routing import Routing, expert_capacity, from_choices


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
