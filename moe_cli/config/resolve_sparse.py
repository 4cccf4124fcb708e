"""Derives the settings of experts and routing, and removes those without effect; see `moe_cli.config.resolve`."""

from moe_cli.config.balances import (
    LossFreeBalance,
    Method,
    NoBalance,
    QuantileBalance,
    SwitchBalance,
    methods_of,
    replace_method,
    setting_key,
    without_method,
)
from moe_cli.config.identity import PLACEMENT
from moe_cli.config.ignored_settings import ROUTING_AT_EVALUATION, SPARSE_ONLY, Notes
from moe_cli.config.matching import ALL, matched_d_expert, unmatched
from moe_cli.config.model import T5Config
from moe_cli.config.optim import AdamWConfig, MuonConfig, SGDConfig
from moe_cli.config.ranges import format_setting
from moe_cli.config.routers import (
    ExpertChoiceConfig,
    GateConfig,
    HashConfig,
    NoisyTopKConfig,
    PluginRouter,
    RandomConfig,
    ReluConfig,
    RouterConfig,
    SigmoidConfig,
    SinkhornConfig,
    SoftConfig,
    SwitchConfig,
    TopKConfig,
    gate_params,
    null_experts,
    sums_to_one,
    takes_one,
)
from moe_cli.config.schema import DEFAULT_TOP_K, RunConfig
from moe_cli.config.settings import default_of, replace_group, replace_unchecked
from moe_cli.errors import ConfigError

MAX_EXPERT_PERIOD = 4
# The routers whose choice a bias can move, for each method that learns one.
ROUTERS_WITH_BIAS: dict[type, tuple[str, ...]] = {
    LossFreeBalance: ("topk", "switch", "noisy_topk", "sigmoid"),
    QuantileBalance: ("topk", "switch"),
}


def top_k(config: RunConfig) -> int | tuple[int, ...]:
    """Returns k, or its default; one number for a list of equal ones."""
    if config.dense:
        return 1
    if config.k is not None and not isinstance(config.router, SoftConfig):
        is_list = isinstance(config.k, tuple) and len(config.k) == len(config.sparse_layers)
        return config.k_values[0] if is_list and len(set(config.k_values)) == 1 else config.k
    return 1 if takes_one(config.router) else min(DEFAULT_TOP_K, config.expert)


def default_expert_period(num_experts: int, top_k: float) -> int:
    """Returns the steps in which an expert gets a quarter of the tokens of a step, at most MAX_EXPERT_PERIOD.

    docs/benchmarks.md has the losses and times of other periods.
    """
    return max(1, min(MAX_EXPERT_PERIOD, int(num_experts / (4 * top_k))))


def with_moe_layers(config: RunConfig, notes: Notes) -> RunConfig:
    """Sorts the list of layers with experts, and removes the rules that it replaces, or a list that is the default.

    Raises:
        ConfigError: the user gave the list and a rule.
    """
    model = config.model
    if model.moe_layers is None:
        return config
    for name in PLACEMENT:
        if f"model.{name}" in notes.user_keys:
            raise ConfigError(
                f"model.moe_layers={format_setting(model.moe_layers)} and "
                f"model.{name}={getattr(model, name)} both place the experts: give one of them."
            )
    ruled = replace_unchecked(model, moe_layers=None, **{name: default_of(model, name) for name in PLACEMENT})
    layers = tuple(sorted(model.moe_layers))
    placed = ruled if ruled.sparse_layers == model.sparse_layers else replace_unchecked(ruled, moe_layers=layers)
    return replace_unchecked(config, model=placed)


def without_experts(config: RunConfig, notes: Notes, initial_k: int | tuple[int, ...] | None) -> RunConfig:
    """Removes the settings of experts from a dense configuration. `initial_k` is k before resolution; None if unset."""
    keys = SPARSE_ONLY if initial_k not in (None, 1) else (key for key in SPARSE_ONLY if key != "k")
    notes.ignored("expert=1 is dense", *keys)
    config = replace_group(
        config,
        "model",
        d_expert=None,
        shared_experts=0,
        d_shared=None,
        shared_gate=False,
        expert_dropout=0.0,
        expert_init_scale=1.0,
        moe_layer_freq=1,
        first_k_dense=0,
        moe_layers=None,
        dispatch="auto",
    )
    config = replace_group(config, "optim", skip_idle_experts=False, router_lr=None)
    if isinstance(config.optim, MuonConfig):
        config = replace_group(config, "optim", expert_period=1)
    config = replace_group(config, "launch", expert_parallel_size=1)
    config = replace_group(config, "train", upcycle_noise=0.0, upcycle_drop=0.0)
    return replace_unchecked(
        _evaluated_as_trained(config),
        router=None,
        balance=None,
        capacity=None,
        drop=None,
        renormalise_after_drop=False,
        match="none",
    )


def resolve_sparse(config: RunConfig, notes: Notes, initial_k: int | tuple[int, ...] | None) -> RunConfig:
    """Resolves the settings of experts. `initial_k` is k before resolution; None if unset."""
    if not config.model.shared_experts:
        config = replace_group(config, "model", shared_gate=False, d_shared=None)
        notes.ignored("there are no model.shared_experts", "model.shared_gate", "model.d_shared")
    uses_d_ff = len(config.sparse_layers) < config.model.num_layers or config.train.upcycle_from is not None
    if config.match == "none" and config.model.d_expert is not None and not uses_d_ff:
        notes.ignored("match=none leaves the width of experts to model.d_expert", "model.d_ff")
    if isinstance(config.optim, MuonConfig) and config.optim.expert_period is None:
        config = replace_group(config, "optim", expert_period=default_expert_period(config.expert, config.mean_k))
    config = _with_router(config, notes)
    if config.eval.k == config.k:  # before the test whether evaluation has another k
        config = replace_group(config, "eval", k=None)
    if isinstance(config.router, RandomConfig | HashConfig):
        if not isinstance(config.balance, NoBalance):
            notes.ignored(f"router={config.router.name} learns no choice", "balance")
        config = replace_unchecked(config, balance=NoBalance())
    config = _with_choice(_with_balance(config, notes), notes, initial_k)
    if config.train.upcycle_from is not None:
        return _with_copies(config, notes)
    notes.ignored("there is no train.upcycle_from", "train.upcycle_noise", "train.upcycle_drop")
    return replace_group(config, "train", upcycle_noise=0.0, upcycle_drop=0.0)


def _with_router(config: RunConfig, notes: Notes) -> RunConfig:
    router = config.router or TopKConfig()
    if isinstance(router, TopKConfig | SigmoidConfig) and router.renormalise is None:
        # Where layers differ in it, null stays: true in those with k > 1.
        renormalise = {k > 1 for k in config.k_values}
        router = replace_unchecked(router, renormalise=renormalise.pop() if len(renormalise) == 1 else None)
    if isinstance(router, SigmoidConfig) and router.groups == router.top_groups > 1:
        notes.ignored("router.top_groups=router.groups is no limit", "router.groups", "router.top_groups")
        router = replace_unchecked(router, groups=1, top_groups=1)
    config = replace_unchecked(
        config, router=router, balance=config.balance or NoBalance(), drop=config.drop or "position"
    )
    d_expert = _d_expert(config)
    if config.match == ALL and isinstance(d_expert, int) and (differing := unmatched(config, d_expert)):
        notes.lines.append(differing + ". Compare them also at match=total and match=flops.")
    d_shared = None if config.model.d_shared == d_expert else config.model.d_shared
    return _with_gate(replace_group(config, "model", d_expert=d_expert, d_shared=d_shared), notes)


def _with_gate(config: RunConfig, notes: Notes) -> RunConfig:
    """Removes settings of the gate's weights where there are none, and a rate that is that of the other weights."""
    optim, router = config.optim, config.router
    rate = None if optim.router_lr == gate_rate(optim) else optim.router_lr
    if not gate_params(router, config.model.d_model, config.expert):
        notes.ignored("the router has no weights", "optim.router_lr", "router.init_scale")
        rate = None
        if isinstance(router, GateConfig):
            config = replace_group(config, "router", init_scale=default_of(router, "init_scale"))
    return replace_group(config, "optim", router_lr=rate)


def gate_rate(optim: MuonConfig | AdamWConfig | SGDConfig) -> float:
    """Returns the peak learning rate of the gates without optim.router_lr."""
    return optim.adam_lr if isinstance(optim, MuonConfig) else optim.lr


def _d_expert(config: RunConfig) -> int | tuple[int, ...]:
    """Returns the width of one expert, or that of each: the one that `match` requires, or the user's own."""
    model = config.model
    if config.match == "none":
        widths = model.d_expert or model.d_ff
        return widths[0] if isinstance(widths, tuple) and len(set(widths)) == 1 else widths
    matched = matched_d_expert(config)
    if model.d_expert not in (None, matched):
        raise ConfigError(
            f"model.d_expert={format_setting(model.d_expert)} is set by match={config.match} to {matched}. "
            "To choose it yourself: match=none"
        )
    return matched


def _with_copies(config: RunConfig, notes: Notes) -> RunConfig:
    """Adapts settings of a model whose experts start as copies of a dense network."""
    notes.ignored("train.upcycle_from copies the experts' first weights", "model.expert_init_scale")
    if not all(sums_to_one(config.router, k) for k in config.k_values):
        name = config.router.name if config.router else ""
        notes.lines.append(
            f"train.upcycle_from with router={name} k={format_setting(config.k)}: the weights of a token's "
            "experts do not sum to 1, so the model does not start as the dense run's function."
        )
    return replace_group(config, "model", expert_init_scale=1.0)


def _with_choice(config: RunConfig, notes: Notes, initial_k: int | tuple[int, ...] | None) -> RunConfig:
    """Removes settings of a choice that the router does not make, and those that only state the default."""
    router = config.router
    if isinstance(router, SoftConfig | ExpertChoiceConfig):
        notes.ignored(f"router={router.name} gives every expert tokens", "optim.skip_idle_experts")
        config = replace_group(config, "optim", skip_idle_experts=False)
    if isinstance(router, SoftConfig):
        keys = ("capacity", "drop", "renormalise_after_drop", *ROUTING_AT_EVALUATION, *(["k"] if initial_k else []))
        notes.ignored("router=soft chooses no experts and drops no tokens", *keys)
        return replace_unchecked(_evaluated_as_trained(config), capacity=None, drop=None, renormalise_after_drop=False)
    config = _with_capacity(config, notes)
    if isinstance(router, ExpertChoiceConfig):
        reason = "router=expert_choice fills each expert to its capacity and has no overflow to drop"
        notes.ignored(reason, "drop", "renormalise_after_drop", "eval.drop")
        config = replace_unchecked(config, drop=None, renormalise_after_drop=False)
        config = replace_group(config, "eval", drop=None)
    elif config.capacity is None:
        notes.ignored("training drops nothing without a capacity", "drop")
        config = replace_unchecked(config, drop=None)
        if config.eval.capacity is None:
            notes.ignored("nothing is dropped without a capacity", "renormalise_after_drop")
            config = replace_unchecked(config, renormalise_after_drop=False)
    if config.k == 1 and config.eval.k is None and not isinstance(router, ReluConfig | ExpertChoiceConfig):
        notes.ignored("k=1 leaves a token no weight after a drop", "renormalise_after_drop")
        config = replace_unchecked(config, renormalise_after_drop=False)
    if isinstance(router, ReluConfig) and config.capacity is None and config.eval.capacity is None:
        notes.ignored("router=relu uses every expert with a score above 0", "eval.k")
        config = replace_group(config, "eval", k=None)
    if isinstance(router, RandomConfig) or (isinstance(router, HashConfig) and not router.learned):
        config = _with_equal_weights(config, notes)
    return _with_evaluation(config, notes)


def _with_capacity(config: RunConfig, notes: Notes) -> RunConfig:
    """Removes a capacity that holds every token: from E / K on, each expert can hold all of them."""
    chooses, least = isinstance(config.router, ExpertChoiceConfig), min(config.k_values)
    most_evaluated = config.expert / (config.eval.k or least)
    capacity = _equivalent_capacity(config.capacity, config.expert / least, chooses, "capacity", notes)
    evaluated = _equivalent_capacity(config.eval.capacity, most_evaluated, chooses, "eval.capacity", notes)
    if chooses:  # null is 1 in training, and at evaluation the training value
        capacity = None if capacity == 1 else capacity
        evaluated = None if evaluated == min(capacity or 1.0, most_evaluated) else evaluated
    return replace_group(replace_unchecked(config, capacity=capacity), "eval", capacity=evaluated)


def _equivalent_capacity(factor: float | None, most: float, chooses: bool, key: str, notes: Notes) -> float | None:
    """Returns the equivalent capacity factor: None if nothing can be dropped; with expert choice, at most E / K."""
    if factor is None or round(factor / most, 9) < 1:
        return factor
    if not chooses:
        notes.changed(key, f"{key}={factor:g} is null here: from {most:g} (expert / k) on, nothing is dropped.")
        return None
    if factor != most:
        notes.changed(key, f"{key}={factor:g} is {most:g} (expert / k) here: every expert takes all tokens.")
    return most


def _with_evaluation(config: RunConfig, notes: Notes) -> RunConfig:
    """Removes settings of routing at evaluation that only state the default."""
    drop = config.eval.drop
    if config.capacity is None and config.eval.capacity is None and not isinstance(config.router, ExpertChoiceConfig):
        notes.ignored("evaluation drops nothing without a capacity", "eval.drop")
        drop = None
    # In T5, null means a different drop rule in encoder and decoder, so an explicit value is kept.
    elif not isinstance(config.model, T5Config) and drop == replace_group(config, "eval", drop=None).eval_drop:
        drop = None
    return replace_group(config, "eval", drop=drop)


def _evaluated_as_trained(config: RunConfig) -> RunConfig:
    """Returns the configuration without the settings of routing at evaluation."""
    return replace_group(config, "eval", k=None, capacity=None, drop=None)


def _with_equal_weights(config: RunConfig, notes: Notes) -> RunConfig:
    """Replaces the drop rule `probability` by `position` if all weights are equal, because both are then the same."""
    for key, holder in (("drop", config), ("eval.drop", config.eval)):
        if holder.drop == "probability":
            notes.changed(key, f"{key}=probability is {key}=position here: all weights are equal.")
    if config.drop == "probability":
        config = replace_unchecked(config, drop="position")
    return replace_group(config, "eval", drop="position") if config.eval.drop == "probability" else config


def _takes_all_experts(config: RunConfig) -> bool:
    """Returns whether every token goes to every expert, so that nothing can be balanced."""
    chooses = isinstance(config.router, TopKConfig | SwitchConfig | NoisyTopKConfig | SigmoidConfig | SinkhornConfig)
    return chooses and config.k == config.expert and not null_experts(config.router) and config.eval.k is None


def _takes_bias(router: RouterConfig | None, method: Method) -> bool:
    """Returns whether a method has no bias, or one that can move the choice of the router."""
    if isinstance(router, PluginRouter):
        return type(method) not in ROUTERS_WITH_BIAS or method.name in router.bias_methods
    return router is None or router.name in ROUTERS_WITH_BIAS.get(type(method), (router.name,))


def _with_balance(config: RunConfig, notes: Notes) -> RunConfig:
    """Replaces equivalent scopes by the simplest one. Raises ConfigError for a balance that the router cannot have."""
    balance = config.balance or NoBalance()
    router: str = config.router.name if config.router else ""
    for method in methods_of(balance):
        if method.name == "load" and router != "noisy_topk":
            raise ConfigError(
                f"balance={balance.name}: the load loss is estimated from the noise of the router, and "
                f"router={router} has none. Use router=noisy_topk, or balance=importance."
            )
        if router and not _takes_bias(config.router, method):
            raise ConfigError(
                f"balance={balance.name}: {method.name} adds a bias to the scores, and router={router} has no bias. "
                f"Use one of router={','.join(ROUTERS_WITH_BIAS[type(method)])}."
            )
        prefix = setting_key(balance, method)
        name = prefix.strip(".")
        if _takes_all_experts(config) and method.name in ("switch", "load", "loss_free", "quantile"):
            reason = f"k={config.k} is all experts, which have equal load"
            notes.ignored(reason, name, renamed={"balance": name})
            balance = without_method(balance, method)
            continue
        if not isinstance(method, SwitchBalance):
            continue
        changed = method
        if method.scope == "global" and config.train.grad_accumulation == 1:
            changed = replace_unchecked(changed, scope="batch")
            notes.ignored("train.grad_accumulation=1 makes a step of one batch", f"{prefix}scope")
        if method.scope == "sequence" and config.train.batch_size == 1:
            changed = replace_unchecked(changed, scope="batch")
            notes.ignored("train.batch_size=1 makes a batch of one sequence", f"{prefix}scope")
        balance = replace_method(balance, changed)
        if router == "soft" or (router == "expert_choice" and changed.scope != "sequence"):
            reason = f"router={router} gives all experts equal load, so that this loss is constant"
            notes.ignored(reason, name, renamed={"balance": name})
            balance = without_method(balance, changed)
    return replace_unchecked(config, balance=balance)
