"""Which experts a token goes to, and with what weight: routers in which each token chooses for itself.

Of equal scores the expert of the lowest index is chosen (on a GPU, the one that torch.topk takes): a token of zeros, or
a gate of zeros, goes to experts 0 to K - 1. Gates therefore start at small random weights, never at zero.

To add one: a config class in config/routers.py, a module here whose forward gives a Routing, one line in ROUTERS
(routers/registry.py), and conf/router/NAME.yaml. T tokens, E experts (null ones included), K chosen per token, D width.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from moe_cli.config.routers import (
    NoisyTopKConfig,
    ReluConfig,
    SigmoidConfig,
    SwitchConfig,
    TokenChoiceConfig,
    TopKConfig,
)
from moe_cli.distributed.collectives import all_reduce_mean
from moe_cli.moe.experts import Experts
from moe_cli.moe.gates import LinearGate, make_gate
from moe_cli.moe.routing import Routing, from_choices


class Router(nn.Module):
    """A gate and a rule. The gate is float32 whatever the precision of the rest."""

    expert_bias: Tensor
    reads_token_ids = False

    def __init__(
        self, d_model: int, num_experts: int, top_k: int, config: object, experts: Experts | None = None
    ) -> None:
        super().__init__()
        plain = TopKConfig(score="linear", temperature=1.0, null_experts=0)
        choice = config if isinstance(config, TokenChoiceConfig) else plain
        self.num_experts = num_experts + choice.null_experts
        self.top_k = top_k
        self.temperature = choice.temperature
        self.gate = make_gate(choice.score, d_model, self.num_experts, experts)
        # Moves the choice and never the weight: loss-free balancing, arXiv:2408.15664.
        self.register_buffer("expert_bias", torch.zeros(self.num_experts))

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        self.gate.reset_parameters(generator)  # type: ignore[operator]

    def logits(self, x: Float[Tensor, "T D"]) -> Float[Tensor, "T E"]:
        """The gate's scores over the temperature, in float32 (float64 for float64 weights) also under autocast."""
        with torch.autocast(x.device.type, enabled=False):
            scores: Tensor = self.gate(x.to(self._dtype(x))) / self.temperature
            return scores

    def _dtype(self, x: Tensor) -> torch.dtype:
        weight = next(self.gate.parameters(), x)
        return torch.float64 if weight.dtype == torch.float64 else torch.float32

    def scores(self, x: Float[Tensor, "T D"]) -> tuple[Float[Tensor, "T E"], Float[Tensor, "T E"]]:
        """Logits and their softmax."""
        logits = self.logits(x)
        return logits, logits.softmax(-1)

    def choose(self, scores: Float[Tensor, "T E"]) -> Int[Tensor, "T K"]:
        """The K experts of highest score plus bias, best first."""
        return top_indices(scores.detach() + self.expert_bias, self.top_k)


class TopKRouter(Router):
    """Softmax over E, keep the K largest, renormalised to sum to 1 (GShard 2006.16668, Mixtral 2401.04088)."""

    def __init__(
        self, d_model: int, num_experts: int, top_k: int, config: TopKConfig, experts: Experts | None = None
    ) -> None:
        super().__init__(d_model, num_experts, top_k, config, experts)
        self.renormalise = top_k > 1 if config.renormalise is None else config.renormalise

    def forward(self, x: Float[Tensor, "T D"]) -> Routing:
        logits, probs = self.scores(x)
        chosen = self.choose(probs)
        # The softmax over the chosen is the renormalised one, with no gradient at all for the others.
        weights = logits.gather(1, chosen).softmax(-1) if self.renormalise else probs.gather(1, chosen)
        return from_choices(logits, probs, chosen, weights)


class SwitchRouter(Router):
    """Softmax, keep one, weight it with its probability; input jitter in training (Switch 2101.03961, section 2.2)."""

    def __init__(
        self, d_model: int, num_experts: int, top_k: int, config: SwitchConfig, experts: Experts | None = None
    ) -> None:
        super().__init__(d_model, num_experts, top_k, config, experts)
        self.jitter = config.jitter

    def forward(self, x: Float[Tensor, "T D"]) -> Routing:
        if self.training and self.jitter:
            x = x * torch.empty_like(x).uniform_(1 - self.jitter, 1 + self.jitter)
        logits, probs = self.scores(x)
        chosen = self.choose(probs)
        return from_choices(logits, probs, chosen, probs.gather(1, chosen))


class NoisyTopKRouter(Router):
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

    def forward(self, x: Float[Tensor, "T D"]) -> Routing:
        clean = self.logits(x)
        if not self.training:
            return self._routing(clean, None, None)
        with torch.autocast(x.device.type, enabled=False):
            std = F.softplus(self.noise_gate(x.to(clean.dtype)))
            return self._routing(clean + torch.randn_like(clean) * std, clean, std)

    def _routing(self, logits: Tensor, clean: Tensor | None, std: Tensor | None) -> Routing:
        chosen = self.choose(logits)
        weights = logits.gather(1, chosen).softmax(-1)
        return from_choices(logits, logits.softmax(-1), chosen, weights, clean_logits=clean, noise_std=std)


class SigmoidRouter(Router):
    """Sigmoid scores; chosen by score + bias, weighted by the unbiased score (DeepSeek-V3 2412.19437, eq. 12-16).

    The record's `probs` are the scores divided by their sum, as its balancing loss takes them. With groups, a token may
    use the experts of the `top_groups` groups whose two best biased scores have the largest sum.
    """

    def __init__(
        self, d_model: int, num_experts: int, top_k: int, config: SigmoidConfig, experts: Experts | None = None
    ) -> None:
        super().__init__(d_model, num_experts, top_k, config, experts)
        self.renormalise = top_k > 1 if config.renormalise is None else config.renormalise
        self.scale = config.scale
        self.groups = config.groups
        self.top_groups = config.top_groups

    def forward(self, x: Float[Tensor, "T D"]) -> Routing:
        logits = self.logits(x)
        scores = logits.sigmoid()
        chosen = self.choose(scores)
        weights = scores.gather(1, chosen)
        if self.renormalise:
            weights = weights / weights.sum(-1, keepdim=True)
        return from_choices(logits, scores / scores.sum(-1, keepdim=True), chosen, weights * self.scale)

    def choose(self, scores: Float[Tensor, "T E"]) -> Int[Tensor, "T K"]:
        biased = scores.detach() + self.expert_bias
        if self.groups > 1:
            grouped = biased.unflatten(-1, (self.groups, -1))
            best = top_indices(grouped.topk(2, dim=-1).values.sum(-1), self.top_groups)
            allowed = torch.zeros_like(grouped[..., 0], dtype=torch.bool).scatter_(1, best, True)
            biased = grouped.masked_fill(~allowed.unsqueeze(-1), -torch.inf).flatten(1)
        return top_indices(biased, self.top_k)


class ReluRouter(Router):
    """ReLU(x W) as weights, as many experts as fire (ReMoE 2412.14711, eq. 6).

    In training the record carries the L1 penalty, each expert's part weighted by its share of the load (eq. 12);
    `after_step` adapts the coefficient until a share K / E of all weights is above zero (eq. 9).
    """

    l1: Tensor

    def __init__(
        self, d_model: int, num_experts: int, top_k: int, config: ReluConfig, experts: Experts | None = None
    ) -> None:
        super().__init__(d_model, num_experts, top_k, config, experts)
        self.l1_rate = config.l1_rate
        self.register_buffer("l1", torch.tensor(config.l1))

    def forward(self, x: Float[Tensor, "T D"]) -> Routing:
        logits, probs = self.scores(x)
        weights = logits.relu()
        fires = weights.detach() > 0
        token_ids, expert_ids = fires.nonzero().unbind(1)
        penalty = None
        if self.training:
            load = all_reduce_mean(fires.to(weights.dtype).sum(0) / max(1, len(x))) * self.num_experts / self.top_k
            penalty = self.l1 * (weights * load).sum() / max(1, weights.numel())
        kept = torch.ones(len(token_ids), dtype=torch.bool, device=x.device)
        return Routing(logits, probs, token_ids, expert_ids, weights[token_ids, expert_ids], kept, penalty=penalty)

    def after_step(self, fired: Int[Tensor, " E"], num_tokens: int) -> None:
        """Moves the L1 coefficient after an optimizer step in which expert i fired for `fired[i]` tokens."""
        if num_tokens == 0:
            return
        excess = fired.sum().item() / num_tokens - self.top_k
        if excess:
            self.l1.mul_(self.l1_rate if excess > 0 else 1 / self.l1_rate)


def top_indices(scores: Float[Tensor, "T E"], top_k: int) -> Int[Tensor, "T K"]:
    """Indices of the K largest per row, largest first; on a CPU the earlier first among equals.

    On a CPU, for small K, K times argmax is as fast as `topk`, which leaves the order of equals open.
    """
    if scores.device.type != "cpu":
        return scores.topk(top_k, dim=-1).indices
    if not 0 < top_k <= 8:
        return scores.argsort(dim=-1, descending=True, stable=True)[:, :top_k]
    scores = scores.clone()
    chosen = []
    for _ in range(top_k):
        best = scores.argmax(-1, keepdim=True)
        chosen.append(best)
        scores.scatter_(1, best, -torch.inf)
    return torch.cat(chosen, dim=1)
