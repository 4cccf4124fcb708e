"""How does Soft MoE mix tokens instead of choosing experts? Its layer and its gate.

G sequences, L positions, T = G * L tokens, E experts, S slots per expert, N = G * E * S slots, D width.
"""

from collections.abc import Sequence
from typing import Unpack

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from moe_cli.config.ranges import check_above, check_whole
from moe_cli.moe.routers.router import gate_dtype
from moe_cli.moe.routing import Routing, RoutingPolicy, identity_routing
from moe_cli.moe.sparse_layer import ExpertOptions, SparseLayer


class SoftMoELayer(SparseLayer):
    """A layer whose experts process slots. A slot is a mixture of the tokens of one sequence.

    Dispatch weights are a softmax over the positions of a sequence. Combine weights are a softmax over the slots; a
    token's output is the mixture of the slots' outputs. No expert is chosen and no token is dropped. Not for causal
    models, because a slot contains later tokens. Source: Soft MoE, arXiv:2308.00951, section 2, with the normalisation
    of section 2.3.

    Args:
        d_model: width D of a token, in and out.
        num_experts: E.
        d_expert: hidden width of one expert, or a width for each.
        slots: S, slots per expert.
        init_scale: initial factor of the cosine of token and slot.
        options: see `ExpertOptions`.

    Raises:
        ConfigError: a count or width is not an integer of at least 1, or a name is unknown.
    """

    def __init__(
        self,
        d_model: int,
        num_experts: int,
        d_expert: int | Sequence[int],
        slots: int = 1,
        init_scale: float = 1.0,
        **options: Unpack[ExpertOptions],
    ) -> None:
        check_whole("num_experts", num_experts)
        check_whole("slots", slots)
        check_above("init_scale", init_scale, 0)
        super().__init__(
            d_model, num_experts, d_expert, lambda _: SlotGate(d_model, num_experts, slots, init_scale), **options
        )
        self.router: SlotGate
        self.top_k = num_experts

    def forward(
        self,
        x: Float[Tensor, "*batch D"],
        token_ids: Int[Tensor, "*batch"] | None = None,
        mask: Bool[Tensor, "*batch"] | None = None,
        policy: RoutingPolicy | None = None,
    ) -> tuple[Float[Tensor, "*batch D"], Routing]:
        """Returns the layer's output, and the routing of the tokens, in which each token uses every expert.

        Args:
            x: sequences; the second-last dimension are the positions.
            token_ids: ignored; every sparse layer has this argument.
            mask: False for padding, which is in no slot and has output zero.
            policy: ignored; every sparse layer has this argument.
        """
        x = x if mask is None else x.masked_fill(~mask.unsqueeze(-1), 0)
        tokens = x.reshape(-1, x.shape[-1])
        sequences = x.reshape((1,) * (3 - x.ndim) + x.shape).flatten(0, -3)
        mask = None if mask is None else mask.reshape(sequences.shape[:-1])
        logits = self.router(sequences)
        slots = self.router.mix_tokens(sequences, logits, mask)
        outputs = self.run_experts(slots, self.router.slot_routing(sequences.shape[0], x.device))
        y = logits.softmax(-1).to(outputs.dtype) @ outputs.view(sequences.shape[0], logits.shape[-1], outputs.shape[-1])
        y = y if mask is None else y.masked_fill(~mask.unsqueeze(-1), 0)
        y = self.add_shared(y.flatten(0, 1), tokens)
        return y.view(x.shape), self.router.token_routing(logits.flatten(0, 1) if mask is None else logits[mask])


class SlotGate(nn.Module):
    """Scores every position for every slot.

    Attributes:
        phi: [E * S, D], one embedding per slot.
        scale: factor of the cosine of token and slot.
    """

    def __init__(self, d_model: int, num_experts: int, slots: int, init_scale: float = 1.0) -> None:
        super().__init__()
        self.init_scale = init_scale
        self.num_experts = num_experts
        self.slots = slots
        self.phi = nn.Parameter(torch.empty(num_experts * slots, d_model))
        self.scale = nn.Parameter(torch.ones(1))

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        nn.init.normal_(self.phi, std=self.phi.shape[1] ** -0.5, generator=generator)
        nn.init.constant_(self.scale, self.init_scale)

    def forward(self, x: Float[Tensor, "G L D"]) -> Float[Tensor, "G L S_E"]:
        """Computes the score of every position for every slot, in float32 (float64 for float64 weights)."""
        with torch.autocast(x.device.type, enabled=False):
            dtype = gate_dtype(self.phi)
            phi = self.scale.to(dtype) * F.normalize(self.phi.to(dtype), dim=-1)
            return F.linear(F.normalize(x.to(dtype), dim=-1), phi)

    def mix_tokens(
        self, x: Float[Tensor, "G L D"], logits: Float[Tensor, "G L S_E"], mask: Bool[Tensor, "G L"] | None = None
    ) -> Float[Tensor, "N D"]:
        """Computes the contents of all slots; a slot of a sequence that is all padding is zero.

        Args:
            mask: False for padding, which has no weight.
        """
        if mask is not None:
            logits = logits.masked_fill(~mask.unsqueeze(-1), torch.finfo(logits.dtype).min)
        weights = logits.softmax(1)
        if mask is not None:
            weights = weights.masked_fill(~mask.unsqueeze(-1), 0)
        return (weights.to(x.dtype).mT @ x).flatten(0, 1)

    def slot_routing(self, num_sequences: int, device: torch.device) -> Routing:
        """Returns the routing that sends every slot to its expert with weight 1."""
        expert_ids = torch.arange(self.num_experts, device=device).repeat_interleave(self.slots).repeat(num_sequences)
        return identity_routing(expert_ids, self.num_experts)

    def token_routing(self, flat: Float[Tensor, "T S_E"]) -> Routing:
        """Returns the routing of the tokens: each uses all experts, weighted by the sums of its combine weights."""
        by_expert = flat.unflatten(-1, (self.num_experts, self.slots))
        probs = flat.softmax(-1).unflatten(-1, (self.num_experts, self.slots)).sum(-1)
        tokens = torch.arange(flat.shape[0], device=flat.device)
        expert_ids = torch.arange(self.num_experts, device=flat.device).repeat_interleave(flat.shape[0])
        kept = torch.ones_like(expert_ids, dtype=torch.bool)
        return Routing(
            by_expert.logsumexp(-1),
            probs,
            tokens.repeat(self.num_experts),
            expert_ids,
            probs.T.flatten(),
            kept,
            is_dropless=True,
        )
