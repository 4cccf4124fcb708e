"""Does a router keep the promises of a router? T tokens, E experts, K chosen per token, D width."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_type_hints

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from moe_cli.config.capacity import expert_capacity
from moe_cli.config.routers import (
    PluginRouter,
    RandomConfig,
    ReluConfig,
    RouterConfig,
    gate_flops,
    gate_params,
    is_causal,
    null_experts,
    takes_one,
)
from moe_cli.errors import ConfigError
from moe_cli.moe.experts import Experts
from moe_cli.moe.layer import MoELayer
from moe_cli.moe.routers.registry import make_router, named_config
from moe_cli.moe.routers.router import Router
from moe_cli.moe.routing import Routing, RoutingPolicy
from moe_cli.plugins import Plugin, plugin_of
from moe_cli.testing.promise import (
    choices,
    dense_weights,
    equal,
    expected_to_run,
    random_tokens,
    randomise,
    require,
    same_routing,
    with_seed,
)

T, E, D, D_EXPERT, VOCABULARY = 24, 4, 8, 6, 50


@dataclass(frozen=True)
class _Case:
    """A router under test. `build` makes it from D, E, K, its settings and the experts."""

    name: str
    config: RouterConfig
    build: Callable[..., Router]
    top_k: int

    @property
    def draws(self) -> bool:
        """Returns whether it is router=random, the control, whose choice does not depend on the tokens at all."""
        return isinstance(self.config, RandomConfig)

    def layer(self, training: bool, **options: Any) -> MoELayer:
        """Returns a layer with this router and every weight at random, in float64."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layer = MoELayer(D, E, self.top_k, D_EXPERT, **options)
            layer.router = self.router(layer.experts)
        randomise(layer)
        return layer.double().train(training)

    def router(self, experts: Experts | None) -> Router:
        with expected_to_run(self.name, "building it"):
            router = self.build(D, E, self.top_k, self.config, experts)
        require(isinstance(router, Router), self.name, "it is no subclass of moe_cli.moe.routers.router.Router.")
        return router

    def route(
        self, layer: MoELayer, tokens: Tensor, ids: Tensor | None = None, policy: RoutingPolicy | None = None
    ) -> Routing:
        """Returns what the router itself answers, before drops, with the same random numbers each time."""
        ids = torch.arange(len(tokens)) % VOCABULARY if ids is None else ids
        with expected_to_run(self.name, f"routing {len(tokens)} tokens"):
            routing: Routing = with_seed(1, lambda: layer.router(tokens, ids, policy or RoutingPolicy()))
        require(isinstance(routing, Routing), self.name, f"it returns {type(routing).__name__}, not Routing.")
        return routing


def check_router(
    router: Plugin | type[Router] | RouterConfig | str, config: RouterConfig | None = None, *, top_k: int | None = None
) -> None:
    """Checks a router: its record, gradients, order of tokens, evaluation, causality, capacity, padding and costs.

    Args:
        router: a plug-in, the class of a router, the settings of one, or a name.
        config: the settings; None means the defaults. A class has those of its annotation `config: MySettings`.
        top_k: K; None means 2, and 1 for a router that sends each token to one expert.

    Raises:
        AssertionError: the first promise that is broken.
    """
    case = _case(router, config, top_k)
    for check in CHECKS:
        check(case)


def _case(router: Any, config: RouterConfig | None, top_k: int | None) -> _Case:
    name = router if isinstance(router, str) else getattr(router, "__name__", "") or getattr(router, "name", "")
    build: Callable[..., Router]
    if isinstance(router, type) and issubclass(router, Router):
        config, build = config or _annotated_config(router), router
    else:
        if isinstance(router, Plugin):
            assert router.config is not None, f"{name}: it is the plug-in of a logger, not of a router."
            config = config or router.config()
        else:
            config = config or (_named(router) if isinstance(router, str) else router)
        assert config is not None
        plugin = plugin_of(config)
        build = plugin.code() if plugin else _built_in
    return _Case(str(name), config, build, top_k or (1 if takes_one(config) else 2))


def _named(name: str) -> RouterConfig:
    try:
        return named_config(name)
    except ConfigError as error:
        raise AssertionError(str(error)) from None


def _annotated_config(router: type[Router]) -> RouterConfig:
    cls: Any = get_type_hints(router).get("config")
    try:
        assert isinstance(cls, type)
        config: RouterConfig = cls()
    except (AssertionError, TypeError, ConfigError) as error:
        raise AssertionError(
            f"{router.__name__}: its settings are not known. Write `config: MySettings` in the class, for settings "
            f"that have a Plugin, or give check_router(..., config=MySettings(...)). {error}"
        ) from None
    return config


def _built_in(d_model: int, num_experts: int, top_k: int, config: RouterConfig, experts: Experts | None) -> Router:
    return make_router(config, d_model, num_experts, top_k, experts, VOCABULARY)


def check_record(case: _Case) -> None:
    """The record lists experts and tokens that exist, with finite weights, K experts for each token, and no drops."""
    layer = case.layer(training=False)
    for top_k in (case.top_k, 1):
        routing = case.route(layer, random_tokens(T, D), policy=RoutingPolicy(top_k=top_k))
        sizes = {len(ids) for ids in (routing.token_ids, routing.expert_ids, routing.weights, routing.kept)}
        require(len(sizes) == 1, case.name, "token_ids, expert_ids, weights and kept differ in length.")
        columns = E + null_experts(case.config)
        require(routing.probs.shape == (T, columns), case.name, f"probs are {tuple(routing.probs.shape)}, not [T, E].")
        ids = routing.expert_ids
        exist = bool(
            ((ids >= 0) & (ids < columns)).all() and ((routing.token_ids >= 0) & (routing.token_ids < T)).all()
        )
        require(exist, case.name, "the record has a token or an expert that does not exist.")
        require(bool(routing.weights.isfinite().all()), case.name, "a weight is not finite.")
        require(int(choices(routing).max()) <= 1, case.name, "a token has the same expert twice.")
        if layer.router.fills_capacity:
            continue
        require(bool(routing.kept.all()), case.name, "it drops assignments itself: drops are up to the layer.")
        if not isinstance(case.config, ReluConfig):
            counts = choices(routing).sum(1)
            require(
                bool((counts == top_k).all()), case.name, f"a token has {int(counts.max())} experts with top_k={top_k}."
            )


def check_gradients(case: _Case) -> None:
    """Every trained parameter gets a gradient through the layer's output, and the tokens get a finite one."""
    layer = case.layer(training=True)
    tokens = random_tokens(T, D).requires_grad_()
    with expected_to_run(case.name, "training"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        y, routing = layer(tokens, torch.arange(T))
        loss = y.square().sum() + (0 if routing.router_loss is None else routing.router_loss)
        loss.backward()
    for name, parameter in layer.router.named_parameters():
        grad = parameter.grad
        require(grad is not None and bool(grad.any()), case.name, f"no gradient reaches {name}: it cannot learn.")
        require(grad is None or bool(grad.isfinite().all()), case.name, f"the gradient of {name} is not finite.")
    require(tokens.grad is not None and bool(tokens.grad.isfinite().all()), case.name, "tokens get no finite gradient.")


def check_permutation(case: _Case) -> None:
    """Tokens in another order get the same experts and weights."""
    if case.draws:
        return
    layer = case.layer(training=False)
    tokens, order = random_tokens(T, D), torch.randperm(T, generator=torch.Generator().manual_seed(3))
    ids = torch.arange(T)
    first, second = case.route(layer, tokens, ids), case.route(layer, tokens[order], ids[order])
    is_same = torch.equal(choices(first)[order], choices(second))
    is_same &= equal(dense_weights(first)[order], dense_weights(second))
    require(is_same, case.name, "the choice for a token depends on its place among the tokens.")


def check_evaluation(case: _Case) -> None:
    """Evaluation twice gives the same, whatever the state of torch's generator, and changes no state."""
    if case.draws:
        return
    layer = case.layer(training=False)
    tokens, ids = random_tokens(T, D), torch.arange(T)
    first = case.route(layer, tokens, ids)
    with expected_to_run(case.name, "evaluation"):
        second = with_seed(99, lambda: layer.router(tokens, ids))
    require(
        same_routing(first, second), case.name, "evaluation is not deterministic: it draws numbers or keeps a state."
    )


def check_causality(case: _Case) -> None:
    """The choice for a token does not depend on later tokens, if the settings say so."""
    if case.draws or not is_causal(case.config):
        return
    layer = case.layer(training=False)
    tokens, later = random_tokens(T, D), random_tokens(T, D, seed=5)
    ids = torch.arange(T)
    whole = case.route(layer, tokens, ids)
    for length in (1, T // 2, T - 1):
        mixed = torch.cat([tokens[:length], later[length:]])
        other = case.route(layer, mixed, torch.cat([ids[:length], ids[length:] + 1]))
        is_same = torch.equal(choices(whole)[:length], choices(other)[:length])
        is_same &= equal(dense_weights(whole)[:length], dense_weights(other)[:length])
        require(is_same, case.name, "the choice for a token depends on later tokens: say causal = False.")


def check_capacity(case: _Case) -> None:
    """No expert keeps more than its capacity."""
    for factor in (0.5, 1.0):
        layer = case.layer(training=True, capacity_factor=factor)
        with expected_to_run(case.name, "training with a capacity"):
            routing = with_seed(1, lambda layer=layer: layer(random_tokens(T, D), torch.arange(T))[1])  # type: ignore[misc]
        capacity = expert_capacity(T, E, case.top_k, factor)
        most = int(routing.kept_per_expert[:E].max())
        require(most <= capacity, case.name, f"an expert keeps {most} tokens with a capacity of {capacity}.")


def check_padding(case: _Case) -> None:
    """Padding changes nothing, any number of tokens is taken, and none at all too."""
    layer = case.layer(training=False)
    x, ids = random_tokens(3 * 7, D).view(3, 7, D), torch.arange(21).view(3, 7)
    mask = torch.arange(7) < torch.tensor([[7], [3], [0]])
    with expected_to_run(case.name, "padding"):
        hidden = x.masked_fill(~mask.unsqueeze(-1), torch.nan)
        y = with_seed(1, lambda: layer(hidden, ids, mask)[0])
        alone = with_seed(1, lambda: layer(x[mask], ids[mask])[0])
        layer(x[:0], ids[:0])
    require(equal(y[mask], alone) and not y[~mask].any(), case.name, "padding changes the output of other tokens.")


def check_seed(case: _Case) -> None:
    """`reset_parameters` with equal generators gives equal weights, whatever torch's own generator."""
    router = case.router(Experts(E, D, D_EXPERT, D, ffn_type="mlp", activation="gelu"))
    drawn = []
    for seed in (1, 2):
        with torch.random.fork_rng(devices=[]), expected_to_run(case.name, "reset_parameters"):
            torch.manual_seed(seed)
            router.reset_parameters(torch.Generator().manual_seed(7))
        drawn.append([parameter.detach().clone() for parameter in router.parameters()])
    is_same = all(torch.equal(first, second) for first, second in zip(*drawn, strict=True))
    require(is_same, case.name, "reset_parameters does not draw its weights from the generator that it gets.")


def check_bias(case: _Case) -> None:
    """The bias of loss-free balancing moves the choice, if the settings say so, and changes no weight otherwise."""
    if not isinstance(case.config, PluginRouter) or not case.config.bias_methods:
        return
    layer = case.layer(training=False)
    require(isinstance(getattr(layer.router, "expert_bias", None), Tensor), case.name, "it has no expert_bias.")
    assert isinstance(layer.router.expert_bias, Tensor)
    layer.router.expert_bias[E - 1] = 1e6
    routing = case.route(layer, random_tokens(T, D))
    count = int(choices(routing)[:, E - 1].sum())
    require(count == T, case.name, "bias_methods names methods, and the choice does not follow expert_bias.")


def check_costs(case: _Case) -> None:
    """The stated parameters and FLOPs of the gate are those that are counted."""
    layer = case.layer(training=True)
    own = {id(parameter) for parameter in layer.experts.parameters()}
    counted = sum(parameter.numel() for parameter in layer.router.parameters() if id(parameter) not in own)
    stated = gate_params(case.config, D, E)
    require(counted == stated, case.name, f"gate_params says {stated} parameters, and there are {counted}.")
    with FlopCounterMode(display=False) as counter:
        case.route(layer, random_tokens(T, D))
    flops = T * gate_flops(case.config, D, E, layer.experts.w_in.shape[-2])
    total = counter.get_total_flops()
    require(
        abs(total - flops) <= 0.02 * flops,
        case.name,
        f"gate_flops says {flops} for {T} tokens, and torch counts {total}.",
    )


CHECKS: tuple[Callable[[_Case], None], ...] = (
    check_record,
    check_gradients,
    check_evaluation,
    check_permutation,
    check_causality,
    check_capacity,
    check_padding,
    check_seed,
    check_bias,
    check_costs,
)
