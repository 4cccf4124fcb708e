"""All routers by name and by configuration. router=soft is a layer: see `moe_cli.moe.soft`."""

from moe_cli.config.routers import (
    ExpertChoiceConfig,
    HashConfig,
    NoisyTopKConfig,
    PluginRouter,
    RandomConfig,
    ReluConfig,
    RouterConfig,
    SigmoidConfig,
    SinkhornConfig,
    SwitchConfig,
    TopKConfig,
)
from moe_cli.errors import ConfigError
from moe_cli.moe.experts import Experts
from moe_cli.moe.routers.expert_choice import ExpertChoiceRouter
from moe_cli.moe.routers.hash_and_random import HashRouter, RandomRouter
from moe_cli.moe.routers.router import Router
from moe_cli.moe.routers.sinkhorn import SinkhornRouter
from moe_cli.moe.routers.token_choice import NoisyTopKRouter, ReluRouter, SigmoidRouter, SwitchRouter, TopKRouter
from moe_cli.plugins import find, names, plugin_of

ROUTERS: dict[type[RouterConfig], type[Router]] = {
    TopKConfig: TopKRouter,
    SwitchConfig: SwitchRouter,
    NoisyTopKConfig: NoisyTopKRouter,
    SigmoidConfig: SigmoidRouter,
    SinkhornConfig: SinkhornRouter,
    ReluConfig: ReluRouter,
    HashConfig: HashRouter,
    ExpertChoiceConfig: ExpertChoiceRouter,
    RandomConfig: RandomRouter,
}
ROUTER_CONFIGS: dict[str, type[RouterConfig]] = {config.name: config for config in ROUTERS}


def named_config(name: str) -> RouterConfig:
    """Returns the configuration of a router by its name, that of a plug-in included. Raises ConfigError."""
    if name in ROUTER_CONFIGS:
        return ROUTER_CONFIGS[name]()
    plugin = find("router", name)
    if plugin is None or plugin.config is None:
        raise ConfigError(f"router={name!r} is not one of: {', '.join([*ROUTER_CONFIGS, *names('router')])}.")
    config: RouterConfig = plugin.config()
    return config


def make_router(
    config: RouterConfig,
    d_model: int,
    num_experts: int,
    top_k: int,
    experts: Experts | None = None,
    vocab_size: int | None = None,
) -> Router:
    """Builds the router of a configuration.

    Args:
        experts: the experts whose weights score=activation reads.
        vocab_size: number of token ids in the table of router=hash.
    """
    if isinstance(config, HashConfig):
        assert vocab_size is not None
        return HashRouter(d_model, num_experts, top_k, config, experts, vocab_size)
    if isinstance(config, PluginRouter):
        plugin = plugin_of(config)
        assert plugin is not None
        router: Router = plugin.code()(d_model, num_experts, top_k, config, experts)
        return router
    return ROUTERS[type(config)](d_model, num_experts, top_k, config, experts)
