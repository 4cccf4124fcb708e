"""Every router by its name and by its configuration."""

from typing import Any

from moe_cli.config.routers import (
    ExpertChoiceConfig,
    HashConfig,
    NoisyTopKConfig,
    RandomConfig,
    ReluConfig,
    RouterConfig,
    SigmoidConfig,
    SinkhornConfig,
    SoftConfig,
    SwitchConfig,
    TopKConfig,
)
from moe_cli.moe.experts import Experts
from moe_cli.moe.routers.expert_choice import ExpertChoiceRouter
from moe_cli.moe.routers.fixed import HashRouter, RandomRouter
from moe_cli.moe.routers.sinkhorn import SinkhornRouter
from moe_cli.moe.routers.soft import SoftRouter
from moe_cli.moe.routers.token_choice import (
    NoisyTopKRouter,
    ReluRouter,
    Router,
    SigmoidRouter,
    SwitchRouter,
    TopKRouter,
)

ROUTERS: dict[type[RouterConfig], type[Router] | type[RandomRouter] | type[SoftRouter]] = {
    TopKConfig: TopKRouter,
    SwitchConfig: SwitchRouter,
    NoisyTopKConfig: NoisyTopKRouter,
    SigmoidConfig: SigmoidRouter,
    SinkhornConfig: SinkhornRouter,
    ReluConfig: ReluRouter,
    HashConfig: HashRouter,
    ExpertChoiceConfig: ExpertChoiceRouter,
    SoftConfig: SoftRouter,
    RandomConfig: RandomRouter,
}
CONFIGS: dict[str, type[RouterConfig]] = {config.name: config for config in ROUTERS}


def make_router(
    config: RouterConfig, d_model: int, num_experts: int, top_k: int, experts: Experts | None = None,
    vocab_size: int | None = None,
) -> Any:  # fmt: skip
    """The router of a configuration.

    Args:
        experts: whom score=activation asks.
        vocab_size: how many token ids router=hash has a place for.
    """
    if isinstance(config, HashConfig):
        assert vocab_size is not None
        return HashRouter(d_model, num_experts, top_k, config, experts, vocab_size)
    return ROUTERS[type(config)](d_model, num_experts, top_k, config, experts)  # type: ignore[arg-type]
