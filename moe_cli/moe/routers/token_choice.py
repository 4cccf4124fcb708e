"""Routers in which each token chooses its own experts. T tokens, E experts (null ones included), K chosen per token, D width."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from moe_cli.config.routers import NoisyTopKConfig, ReluConfig, SigmoidConfig, SwitchConfig, TopKConfig
from moe_cli.distributed.collectives import all_reduce_mean
from moe_cli.moe.experts import Experts
from moe_cli.moe.gates import LinearGate
from moe_cli.moe.routers.router import GatedRouter, top_indices
from moe_cli.moe.routing import Routing, RoutingPolicy, routing_from_top_k


class TopKRouter(GatedRouter):
    """Softmax over E, keep the K largest, renormalised to sum to 1 for K > 1 (GShard 2006.16668, Mixtral 2401.04088)."""

    config: TopKConfig

    def route(
        self, tokens: Float[Tensor, "T D"], token_ids: Int[Tensor, " T"] | None, policy: RoutingPolicy
    ) -> Routing:
        logits, probs = self.scores(tokens)
        chosen = self.select_experts(probs, policy)
        # The softmax over the chosen is the renormalised one, with no gradient at all for the others.
        weights = logits.gather(1, chosen).softmax(-1) if renormalises(self) else probs.gather(1, chosen)
        return routing_from_top_k(logits, probs, chosen, weights)


def renormalises(router: GatedRouter) -> bool:
    """Returns True if the weights of the chosen experts are made to sum to 1; by default for K > 1, as trained."""
    assert isinstance(router.config, TopKConfig | SigmoidConfig)
    return router.top_k > 1 if router.config.renormalise is None else router.config.renormalise


class SwitchRouter(GatedRouter):
    """Softmax, keep one, weight it with its probability; input jitter in training (Switch 2101.03961, section 2.2)."""

    config: SwitchConfig

    def route(
        self, tokens: Float[Tensor, "T D"], token_ids: Int[Tensor, " T"] | None, policy: RoutingPolicy
    ) -> Routing:
        if self.training and self.config.jitter:
            tokens = tokens * torch.empty_like(tokens).uniform_(1 - self.config.jitter, 1 + self.config.jitter)
        logits, probs = self.scores(tokens)
        chosen = self.select_experts(probs, policy)
        return routing_from_top_k(logits, probs, chosen, probs.gather(1, chosen))


class NoisyTopKRouter(GatedRouter):
    """h = x W_g + N(0, 1) softplus(x W_n), softmax over the K largest; noise in training only (1701.06538, eq. 3-5)."""

    def __init__(
        self, d_model: int, num_experts: int, top_k: int, config: NoisyTopKConfig, experts: Experts | None = None
    ) -> None:
        super().__init__(d_model, num_experts, top_k, config, experts)
        self.noise_gate = LinearGate(d_model, self.num_experts)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        super().reset_parameters(generator)
        for weight in self.noise_gate.parameters():
            nn.init.zeros_(weight)

    def route(
        self, tokens: Float[Tensor, "T D"], token_ids: Int[Tensor, " T"] | None, policy: RoutingPolicy
    ) -> Routing:
        logits = self.logits(tokens)
        clean_logits = noise_std = None
        if self.training:
            with torch.autocast(tokens.device.type, enabled=False):
                clean_logits, noise_std = logits, F.softplus(self.noise_gate(tokens.to(logits.dtype)))
                logits = clean_logits + torch.randn_like(clean_logits) * noise_std
        chosen = self.select_experts(logits, policy)
        weights = logits.gather(1, chosen).softmax(-1)
        return routing_from_top_k(
            logits, logits.softmax(-1), chosen, weights, clean_logits=clean_logits, noise_std=noise_std
        )


class SigmoidRouter(GatedRouter):
    """Sigmoid scores; chosen by score + bias, weighted by the unbiased score (DeepSeek-V3 2412.19437, eq. 12-16).

    The record's `probs` are the scores divided by their sum, as its balancing loss takes them. With groups, a token may
    use the experts of the `top_groups` groups whose two best biased scores have the largest sum.
    """

    config: SigmoidConfig

    def route(
        self, tokens: Float[Tensor, "T D"], token_ids: Int[Tensor, " T"] | None, policy: RoutingPolicy
    ) -> Routing:
        logits = self.logits(tokens)
        scores = logits.sigmoid()
        chosen = self.select_experts(scores, policy)
        weights = scores.gather(1, chosen)
        if renormalises(self):
            weights = weights / weights.sum(-1, keepdim=True)
        probs = scores / scores.sum(-1, keepdim=True)
        return routing_from_top_k(logits, probs, chosen, weights * self.config.scale)

    def select_experts(self, scores: Float[Tensor, "T E"], policy: RoutingPolicy) -> Int[Tensor, "T K"]:
        biased = scores.detach() + self.expert_bias
        if self.config.groups > 1:
            grouped = biased.unflatten(-1, (self.config.groups, -1))
            best = top_indices(grouped.topk(2, dim=-1).values.sum(-1), self.config.top_groups)
            allowed = torch.zeros_like(grouped[..., 0], dtype=torch.bool).scatter_(1, best, True)
            biased = grouped.masked_fill(~allowed.unsqueeze(-1), -torch.inf).flatten(1)
        return top_indices(biased, policy.top_k or self.top_k)


class ReluRouter(GatedRouter):
    """ReLU(x W) as weights, as many experts as are above zero (ReMoE 2412.14711, eq. 6).

    In training the record carries the L1 penalty, each expert's part weighted by its share of the load (eq. 12);
    `after_step` adapts the coefficient until a share K / E of all weights is above zero (eq. 9).
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
        kept = torch.ones(len(assigned_tokens), dtype=torch.bool, device=tokens.device)
        row_weights = weights[assigned_tokens, expert_ids]
        return Routing(logits, probs, assigned_tokens, expert_ids, row_weights, kept, router_loss=router_loss)

    def after_step(self, assigned: Int[Tensor, " E"], num_tokens: int) -> None:
        """Moves the L1 coefficient towards K active experts per token."""
        if num_tokens == 0:
            return
        excess = assigned.sum().item() / num_tokens - self.top_k
        if excess:
            self.l1.mul_(self.config.l1_rate if excess > 0 else 1 / self.config.l1_rate)
