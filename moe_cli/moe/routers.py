"""Which experts a token goes to, and with what weight: every router, and ROUTERS.

To add one: a config class in config/routers.py, a module here whose forward gives a Routing, one line in ROUTERS, and
conf/router/NAME.yaml. T tokens, E experts, K chosen per token, D width.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from moe_cli.config.routers import RandomConfig, RouterConfig, SwitchConfig, TopKConfig
from moe_cli.moe.routing import Routing, from_choices

GATE_STD = 0.02


class Router(nn.Module):
    """A gate and a rule. The gate is float32 whatever the precision of the rest."""

    expert_bias: Tensor

    def __init__(self, d_model: int, num_experts: int, top_k: int) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.top_k = top_k
        self.gate = nn.Linear(d_model, num_experts, bias=False)
        # Moves the choice and never the weight: loss-free balancing, arXiv:2408.15664.
        self.register_buffer("expert_bias", torch.zeros(num_experts))

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        nn.init.normal_(self.gate.weight, std=GATE_STD, generator=generator)

    def scores(self, x: Float[Tensor, "T D"]) -> tuple[Float[Tensor, "T E"], Float[Tensor, "T E"]]:
        """Logits and their softmax, in float32 (float64 for a float64 gate) also under autocast."""
        with torch.autocast(x.device.type, enabled=False):
            dtype = torch.float64 if self.gate.weight.dtype == torch.float64 else torch.float32
            logits = F.linear(x.to(dtype), self.gate.weight.to(dtype))
            return logits, logits.softmax(-1)

    def choose(self, probs: Float[Tensor, "T E"]) -> Int[Tensor, "T K"]:
        """The K experts of highest probability plus bias, best first."""
        return top_indices(probs.detach() + self.expert_bias, self.top_k)


class TopKRouter(Router):
    """Softmax over E, keep the K largest, renormalised to sum to 1 (GShard 2006.16668, Mixtral 2401.04088)."""

    def __init__(self, d_model: int, num_experts: int, top_k: int, config: TopKConfig) -> None:
        super().__init__(d_model, num_experts, top_k)
        self.renormalise = top_k > 1 if config.renormalise is None else config.renormalise

    def forward(self, x: Float[Tensor, "T D"]) -> Routing:
        logits, probs = self.scores(x)
        chosen = self.choose(probs)
        weights = probs.gather(1, chosen)
        if self.renormalise:
            weights = weights / weights.sum(-1, keepdim=True)
        return from_choices(logits, probs, chosen, weights)


class SwitchRouter(Router):
    """Softmax, keep one, weight it with its probability; input jitter in training (Switch 2101.03961, section 2.2)."""

    def __init__(self, d_model: int, num_experts: int, top_k: int, config: SwitchConfig) -> None:
        super().__init__(d_model, num_experts, top_k)
        self.jitter = config.jitter

    def forward(self, x: Float[Tensor, "T D"]) -> Routing:
        if self.training and self.jitter:
            x = x * torch.empty_like(x).uniform_(1 - self.jitter, 1 + self.jitter)
        logits, probs = self.scores(x)
        chosen = self.choose(probs)
        return from_choices(logits, probs, chosen, probs.gather(1, chosen))


class RandomRouter(nn.Module):
    """K distinct experts drawn uniformly, each weighted 1/K: the control. Has no parameters."""

    def __init__(self, d_model: int, num_experts: int, top_k: int, config: RandomConfig) -> None:
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


def top_indices(scores: Float[Tensor, "T E"], top_k: int) -> Int[Tensor, "T K"]:
    """Indices of the K largest per row, largest first; on a CPU the earlier first among equals.

    On a CPU, for small K, K times argmax is as fast as `topk`, which leaves the order of equals open.
    """
    if scores.device.type != "cpu":
        return scores.topk(top_k, dim=-1).indices
    if top_k > 8:
        return scores.argsort(dim=-1, descending=True, stable=True)[:, :top_k]
    scores = scores.clone()
    chosen = []
    for _ in range(top_k):
        best = scores.argmax(-1, keepdim=True)
        chosen.append(best)
        scores.scatter_(1, best, -torch.inf)
    return torch.cat(chosen, dim=1)


ROUTERS = {TopKConfig: TopKRouter, SwitchConfig: SwitchRouter, RandomConfig: RandomRouter}
CONFIGS: dict[str, type[RouterConfig]] = {"topk": TopKConfig, "switch": SwitchConfig, "random": RandomConfig}


def make_router(
    config: RouterConfig, d_model: int, num_experts: int, top_k: int
) -> TopKRouter | SwitchRouter | RandomRouter:
    return ROUTERS[type(config)](d_model, num_experts, top_k, config)  # type: ignore[no-any-return]
