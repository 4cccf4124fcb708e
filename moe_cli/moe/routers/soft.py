"""Soft MoE: every expert sees mixtures of all tokens. G sequences, L positions, E experts, S slots each, D width."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from moe_cli.config.routers import SoftConfig
from moe_cli.moe.experts import Experts
from moe_cli.moe.routing import Routing


class SoftRouter(nn.Module):
    """Weights of a mixture instead of a choice (Soft MoE 2308.00951, section 2, with the normalisation of 2.3).

    Dispatch weights are a softmax over the positions of a sequence, combine weights one over the slots. Nothing is
    chosen and nothing dropped. Not for causal models: a slot holds later tokens.
    """

    def __init__(
        self, d_model: int, num_experts: int, top_k: int, config: SoftConfig, experts: Experts | None = None
    ) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.top_k = top_k
        self.slots = config.slots
        self.phi = nn.Parameter(torch.empty(num_experts * config.slots, d_model))
        self.scale = nn.Parameter(torch.ones(1))

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        nn.init.normal_(self.phi, std=self.phi.shape[1] ** -0.5, generator=generator)
        nn.init.ones_(self.scale)

    def logits(self, x: Float[Tensor, "G L D"]) -> Float[Tensor, "G L S_E"]:
        """The score of every position for every slot, in float32 (float64 for float64 weights)."""
        with torch.autocast(x.device.type, enabled=False):
            dtype = torch.float64 if self.phi.dtype == torch.float64 else torch.float32
            phi = self.scale.to(dtype) * F.normalize(self.phi.to(dtype), dim=-1)
            return F.linear(F.normalize(x.to(dtype), dim=-1), phi)

    def slot_tokens(
        self, x: Float[Tensor, "G L D"], logits: Float[Tensor, "G L S_E"], mask: Bool[Tensor, "G L"] | None = None
    ) -> Float[Tensor, "N D"]:
        """What the slots hold, G * E * S of them: nothing of padding (False in `mask`), zeros where all is padding."""
        if mask is not None:
            logits = logits.masked_fill(~mask.unsqueeze(-1), torch.finfo(logits.dtype).min)
        weights = logits.softmax(1)
        if mask is not None:
            weights = weights.masked_fill(~mask.unsqueeze(-1), 0)
        return (weights.to(x.dtype).mT @ x).flatten(0, 1)

    def slot_routing(self, num_sequences: int, device: torch.device) -> Routing:
        """Every slot goes to its one expert with weight 1."""
        expert_ids = torch.arange(self.num_experts, device=device).repeat_interleave(self.slots).repeat(num_sequences)
        ones = torch.ones(len(expert_ids), device=device)
        even = ones.unsqueeze(1).expand(-1, self.num_experts)
        slots = torch.arange(len(expert_ids), device=device)
        return Routing(torch.zeros_like(even), even / self.num_experts, slots, expert_ids, ones, ones.bool())

    def token_routing(self, flat: Float[Tensor, "T S_E"]) -> Routing:
        """The record seen from the tokens: each uses every expert, with the sum of its slots' combine weights."""
        by_expert = flat.unflatten(-1, (self.num_experts, self.slots))
        probs = flat.softmax(-1).unflatten(-1, (self.num_experts, self.slots)).sum(-1)
        tokens = torch.arange(len(flat), device=flat.device)
        expert_ids = torch.arange(self.num_experts, device=flat.device).repeat_interleave(len(flat))
        kept = torch.ones(len(expert_ids), dtype=torch.bool, device=flat.device)
        return Routing(
            by_expert.logsumexp(-1), probs, tokens.repeat(self.num_experts), expert_ids, probs.T.flatten(), kept
        )
