"""How does a token choose its experts? The token-choice routers.

T tokens, E experts (null ones included), K chosen per token, D width.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from moe_cli.config.routers import NoisyTopKConfig, ReluConfig, SigmoidConfig, SwitchConfig, TopKConfig
from moe_cli.distributed.collectives import all_reduce_mean
from moe_cli.moe.experts import Experts
from moe_cli.moe.gates import LinearGate, PerTaskGate
from moe_cli.moe.routers.router import GatedRouter, gather_scores, softmax, top_indices
from moe_cli.moe.routing import Routing, RoutingPolicy, routing_from_top_k


class TopKRouter(GatedRouter):
    """Selects the K largest of a softmax over E.

    The K weights are renormalised to sum to 1 for K > 1 (GShard, arXiv:2006.16668; Mixtral, arXiv:2401.04088).
    """

    config: TopKConfig

    def route(
        self, tokens: Float[Tensor, "T D"], token_ids: Int[Tensor, " T"] | None, policy: RoutingPolicy
    ) -> Routing:
        logits, probs = self.scores(tokens)
        expert_ids = self.select_experts(probs, policy)
        # The softmax over the chosen logits equals the renormalised softmax, without a gradient for the other experts.
        weights = softmax(gather_scores(logits, expert_ids)) if renormalises(self) else gather_scores(probs, expert_ids)
        return routing_from_top_k(logits, probs, expert_ids, weights)


def renormalises(router: GatedRouter) -> bool:
    """Returns True if the weights of the chosen experts are made to sum to 1; the default is the trained K > 1."""
    assert isinstance(router.config, TopKConfig | SigmoidConfig)
    return router.top_k > 1 if router.config.renormalise is None else router.config.renormalise


class SwitchRouter(GatedRouter):
    """Selects the most probable expert and weights its output by that probability (Switch, arXiv:2101.03961, eq. 1-2).

    In training the gate's input is multiplied by uniform noise (section 2.4), if `jitter` is set.
    """

    config: SwitchConfig

    def route(
        self, tokens: Float[Tensor, "T D"], token_ids: Int[Tensor, " T"] | None, policy: RoutingPolicy
    ) -> Routing:
        if self.training and self.config.jitter:
            tokens = tokens * torch.empty_like(tokens).uniform_(1 - self.config.jitter, 1 + self.config.jitter)
        logits, probs = self.scores(tokens)
        expert_ids = self.select_experts(probs, policy)
        return routing_from_top_k(logits, probs, expert_ids, gather_scores(probs, expert_ids))


class NoisyTopKRouter(GatedRouter):
    """Adds learned noise to the logits and takes the softmax over the K largest (Shazeer, arXiv:1701.06538, eq. 3-5).

    The logits are x W_g + N(0, 1) softplus(x W_n); the noise is added in training only.
    """

    def __init__(
        self, d_model: int, num_experts: int, top_k: int, config: NoisyTopKConfig, experts: Experts | None = None
    ) -> None:
        super().__init__(d_model, num_experts, top_k, config, experts)
        self.noise_gate: LinearGate | PerTaskGate = LinearGate(d_model, self.num_experts)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        super().reset_parameters(generator)
        for weight in self.noise_gate.parameters():
            nn.init.zeros_(weight)

    def use_task_gates(self, num_tasks: int) -> None:
        super().use_task_gates(num_tasks)
        self.noise_gate = PerTaskGate(self.noise_gate, num_tasks)

    def route(
        self, tokens: Float[Tensor, "T D"], token_ids: Int[Tensor, " T"] | None, policy: RoutingPolicy
    ) -> Routing:
        logits = self.logits(tokens)
        clean_logits = noise_std = None
        if self.training:
            with torch.autocast(tokens.device.type, enabled=False):
                clean_logits, noise_std = logits, F.softplus(self.noise_gate(tokens, logits.dtype))
                logits = clean_logits + torch.randn_like(clean_logits) * noise_std
        expert_ids = self.select_experts(logits, policy)
        weights = softmax(gather_scores(logits, expert_ids))
        return routing_from_top_k(
            logits, softmax(logits), expert_ids, weights, clean_logits=clean_logits, noise_std=noise_std
        )


class SigmoidRouter(GatedRouter):
    """Selects by sigmoid score plus bias, and weights by the score alone (DeepSeek-V3, arXiv:2412.19437, eq. 12-16).

    `Routing.probs` are the scores divided by their sum, which DeepSeek's balancing loss uses. With groups, a token can
    select experts of `top_groups` groups only: those whose two best biased scores have the largest sums.
    """

    config: SigmoidConfig

    def route(
        self, tokens: Float[Tensor, "T D"], token_ids: Int[Tensor, " T"] | None, policy: RoutingPolicy
    ) -> Routing:
        logits = self.logits(tokens)
        scores = logits.sigmoid()
        expert_ids = self.select_experts(scores, policy)
        weights = gather_scores(scores, expert_ids)
        if renormalises(self):
            weights = weights / weights.sum(-1, keepdim=True)
        probs = scores / scores.sum(-1, keepdim=True)
        return routing_from_top_k(logits, probs, expert_ids, weights * self.config.scale)

    def select_experts(self, scores: Float[Tensor, "T E"], policy: RoutingPolicy) -> Int[Tensor, "T K"]:
        biased = scores.detach() + self.expert_bias
        if self.config.groups > 1:
            grouped = biased.unflatten(-1, (self.config.groups, -1))
            best = top_indices(grouped.topk(2, dim=-1).values.sum(-1), self.config.top_groups)
            allowed = torch.zeros_like(grouped[..., 0], dtype=torch.bool).scatter_(1, best, True)
            biased = grouped.masked_fill(~allowed.unsqueeze(-1), -torch.inf).flatten(1)
        return top_indices(biased, policy.top_k or self.top_k)


class ReluRouter(GatedRouter):
    """Uses ReLU(x W) as weights; every expert with a positive weight is selected (ReMoE, arXiv:2412.14711, eq. 6).

    In training `Routing.router_loss` is the L1 penalty, in which each expert counts in proportion to its load (eq. 12).
    `after_step` adapts its coefficient `l1` until the fraction K / E of all weights is positive (eq. 9).
    """

    config: ReluConfig
    l1: Tensor

    def __init__(
        self, d_model: int, num_experts: int, top_k: int, config: ReluConfig, experts: Experts | None = None
    ) -> None:
        super().__init__(d_model, num_experts, top_k, config, experts)
        self.register_buffer("l1", torch.tensor(config.l1))

    def route(
        self, tokens: Float[Tensor, "T D"], token_ids: Int[Tensor, " T"] | None, policy: RoutingPolicy
    ) -> Routing:
        logits, probs = self.scores(tokens)
        weights = logits.relu()
        active = weights.detach() > 0
        assigned_tokens, expert_ids = active.nonzero().unbind(1)
        router_loss = None
        if self.training:
            fraction = active.to(weights.dtype).sum(0) / max(1, len(tokens))
            load = all_reduce_mean(fraction) * self.num_experts / self.top_k
            router_loss = self.l1 * (weights * load).sum() / max(1, weights.numel())
        kept = torch.ones_like(assigned_tokens, dtype=torch.bool)
        row_weights = weights[assigned_tokens, expert_ids]
        return Routing(
            logits, probs, assigned_tokens, expert_ids, row_weights, kept, router_loss=router_loss, is_dropless=True
        )

    def after_step(self, assigned: Int[Tensor, " E"], num_tokens: int) -> None:
        """Moves the L1 coefficient towards K active experts per token."""
        if num_tokens == 0:
            return
        excess = assigned.sum().item() / num_tokens - self.top_k
        if excess:
            self.l1.mul_(self.config.l1_rate if excess > 0 else 1 / self.config.l1_rate)
