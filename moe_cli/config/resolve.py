"""Derives open settings of a configuration, and removes settings without effect, with a note.

A setting without effect in the configuration (a router for a dense model, a drop rule without a capacity) is removed,
so that equal trainings have equal digests and a grid contains each model once. A note reports a removed setting that
the user gave.
"""

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from moe_cli.config.balances import (
    LossFreeBalance,
    NoBalance,
    QuantileBalance,
    SwitchBalance,
    methods_of,
    replace_method,
    setting_key,
    without_method,
)
from moe_cli.config.data import (
    TOKENIZERS,
    CorpusConfig,
    DataConfig,
    HubConfig,
    ImageData,
    MovieLensConfig,
    is_local,
)
from moe_cli.config.matching import matched_d_expert
from moe_cli.config.model import T5Config, TransformerConfig, ViTConfig
from moe_cli.config.routers import (
    ExpertChoiceConfig,
    HashConfig,
    NoisyTopKConfig,
    RandomConfig,
    ReluConfig,
    SigmoidConfig,
    SinkhornConfig,
    SoftConfig,
    SwitchConfig,
    TopKConfig,
    null_experts,
    sums_to_one,
)
from moe_cli.config.schema import BUDGETS, DEFAULT_STEPS, DEFAULT_TOP_K, EvalConfig, RunConfig
from moe_cli.config.settings import Settings, default_of, replace_unchecked
from moe_cli.config.tasks import RatingTask, SpanCorruption
from moe_cli.errors import ConfigError

Transformer = TypeVar("Transformer", bound=TransformerConfig)

# Routers whose choice the methods that work by a bias can move.
BIASED: dict[type, tuple[str, ...]] = {
    LossFreeBalance: ("topk", "switch", "noisy_topk", "sigmoid"),
    QuantileBalance: ("topk", "switch"),
}
# Settings and groups that mean nothing without experts.
ROUTING_AT_EVALUATION = ("eval.k", "eval.capacity", "eval.drop")
SPARSE_ONLY = (
    "k",
    "match",
    "router",
    "balance",
    "capacity",
    "drop",
    *ROUTING_AT_EVALUATION,
    "renormalise_after_drop",
    "model.d_expert",
    "model.shared_experts",
    "model.moe_layer_freq",
    "model.first_k_dense",
    "model.expert_dropout",
    "model.expert_init_scale",
    "model.shared_gate",
    "model.dispatch",
    "optim.skip_idle_experts",
    "launch.expert_parallel_size",
)
# What holds embeddings of users and items down: people's ratings are noisier than planted ones.
L2_PLANTED, L2_STARS = 0.1, 0.5


@dataclass(frozen=True)
class Resolved:
    config: RunConfig
    notes: tuple[str, ...]


def resolve(config: RunConfig, given: Collection[str] = ()) -> Resolved:
    """Returns the configuration with every derived value filled in; `given` are the keys the user typed.

    Raises:
        ConfigError: the settings cannot hold together.
    """
    notes: list[str] = []
    open_config, asked = config, config.k
    config = replace_unchecked(config, k=_top_k(config))
    config.check_choice()  # the derived k too, because widths and balance depend on it
    config = _with_shape(config, given, notes)
    if config.dense:
        config = _without_experts(config)
        typed = [name for name in given if name != "k" or asked not in (None, 1)]
        notes += _set_aside(typed, "expert=1 is dense", *SPARSE_ONLY)
    else:
        if not config.model.shared_experts and config.model.shared_gate:
            config = replace_unchecked(config, model=replace_unchecked(config.model, shared_gate=False))
            notes += _set_aside(given, "there are no model.shared_experts", "model.shared_gate")
        if (
            config.match == "none"
            and config.model.d_expert is not None
            and len(config.sparse_layers) == config.model.num_layers
            and config.train.upcycle_from is None
        ):
            notes += _set_aside(given, "match=none leaves the width of experts to model.d_expert", "model.d_ff")
        config = _with_experts(config, given, notes)
        if config.eval.k == config.k:  # before the test whether evaluation has another k
            config = replace_unchecked(config, eval=replace_unchecked(config.eval, k=None))
        if isinstance(config.router, RandomConfig | HashConfig):
            if not isinstance(config.balance, NoBalance):
                notes += _set_aside(given, f"router={config.router.name} learns no choice", "balance")
            config = replace_unchecked(config, balance=NoBalance())
        config = _with_balance(config, given, notes)
        config = _with_choice(config, given, notes, asked)
        if config.train.upcycle_from is not None:
            config = _with_copies(config, given, notes)
    config = _with_training(config, given, notes)
    _check_changes(open_config, config)
    return Resolved(config, tuple(notes))


def _check_changes(before: RunConfig, after: RunConfig) -> None:
    """Checks the groups of settings that have changed, then the whole configuration."""
    known = vars(before)
    for name, group in vars(after).items():
        if isinstance(group, Settings) and group is not known[name]:
            group.check_whole()
    after.check_whole()


def _set_aside(given: Collection[str], reason: str, *keys: str) -> list[str]:
    idle = [name for name in given if concerns(name, keys)]
    return [f"{reason}: {', '.join(sorted(idle))} set aside."] if idle else []


def concerns(name: str, keys: Collection[str]) -> bool:
    """Returns whether a setting is one of `keys`, or belongs to a group that is."""
    return any(name == key or name.startswith(key + ".") for key in keys)


def _with_shape(config: RunConfig, given: Collection[str], notes: list[str]) -> RunConfig:
    """Derives settings of a model family from its sizes and the data."""
    if isinstance(config.model, ViTConfig):
        config = replace_unchecked(config, model=_with_patches(config, config.model, given))
    if isinstance(config.model, TransformerConfig):
        config = replace_unchecked(config, model=_with_attention(config.model, given, notes))
    if isinstance(config.model, T5Config):
        heads = _num_heads(config.model)
        model = replace_unchecked(
            config.model, num_heads=heads, d_head=config.model.d_head or config.model.d_model // heads
        )
        model.check()
        config = replace_unchecked(config, model=model)
    if isinstance(config.task, RatingTask) and config.task.l2_embedding is None:
        fitting = L2_STARS if isinstance(config.data, MovieLensConfig) else L2_PLANTED
        config = replace_unchecked(config, task=replace_unchecked(config.task, l2_embedding=fitting))
    if isinstance(config.task, SpanCorruption):
        config.task.check_sentinels(config.model.context_length)
    # What says the same as null is null.
    length, stride = config.eval.context_length, config.eval.stride
    return replace_unchecked(
        config,
        eval=replace_unchecked(
            config.eval,
            context_length=None if length == config.model.context_length else length,
            stride=None if stride == config.eval_length else stride,
        ),
    )


def _with_attention(model: Transformer, given: Collection[str], notes: list[str]) -> Transformer:
    num_heads = _num_heads(model)
    model = replace_unchecked(
        model,
        num_heads=num_heads,
        num_kv_heads=model.num_kv_heads or num_heads,
        d_head=model.d_head or model.d_model // num_heads,
    )
    model.check()
    if model.kv_lora_rank is None:
        notes += _set_aside(
            given, "model.kv_lora_rank=null is plain attention", "model.q_lora_rank", "model.qk_rope_head_dim"
        )
        model = replace_unchecked(model, q_lora_rank=None, qk_rope_head_dim=None)
    else:
        notes += _set_aside(given, "model.kv_lora_rank is latent attention", "model.num_kv_heads", "model.qk_norm")
        model = replace_unchecked(
            model,
            num_kv_heads=num_heads,
            qk_norm=False,
            qk_rope_head_dim=model.qk_rope_head_dim or max(2, (model.d_head or 0) // 4 * 2),
        )
    if model.sliding_window is not None and model.sliding_window >= model.context_length:
        notes += _set_aside(
            given, f"model.context_length={model.context_length} is within the window", "model.sliding_window"
        )
        model = replace_unchecked(model, sliding_window=None)
    if model.attention_dropout == model.dropout:
        model = replace_unchecked(model, attention_dropout=None)
    if model.position_encoding == "learned":
        model = replace_unchecked(model, rope_base=default_of(model, "rope_base"))
        notes += _set_aside(given, "model.position_encoding=learned turns nothing", "model.rope_base")
    return model


def _with_patches(config: RunConfig, model: ViTConfig, given: Collection[str]) -> ViTConfig:
    """Sets the number of positions to the number of patches of an image."""
    assert isinstance(config.data, ImageData)
    size = config.data.image_size
    if size % model.patch_size:
        raise ConfigError(
            f"model.patch_size={model.patch_size} cannot cut images of {size} x {size} pixels evenly: choose a "
            f"divisor of {size}."
        )
    num_patches = (size // model.patch_size) ** 2
    if "model.context_length" in given and model.context_length != num_patches:
        raise ConfigError(
            f"model.context_length={model.context_length}: images of {size} x {size} pixels have {num_patches} "
            "patches. Set model.patch_size."
        )
    return replace_unchecked(model, context_length=num_patches)


def _num_heads(model: TransformerConfig | T5Config) -> int:
    """Heads of width 32, or of the next even width that divides d_model."""
    if model.num_heads is not None:
        return model.num_heads
    return next((heads for heads in range(model.d_model // 32, 1, -1) if model.d_model % (2 * heads) == 0), 1)


def _top_k(config: RunConfig) -> int:
    if config.dense:
        return 1
    if config.k is not None and not isinstance(config.router, SoftConfig):
        return config.k
    return 1 if isinstance(config.router, SwitchConfig) else min(DEFAULT_TOP_K, config.expert)


def _without_experts(config: RunConfig) -> RunConfig:
    model = replace_unchecked(
        config.model,
        d_expert=None,
        shared_experts=0,
        shared_gate=False,
        expert_dropout=0.0,
        expert_init_scale=1.0,
        moe_layer_freq=1,
        first_k_dense=0,
        dispatch="auto",
    )
    optim = replace_unchecked(config.optim, skip_idle_experts=False)
    return replace_unchecked(
        config,
        router=None,
        balance=None,
        capacity=None,
        drop=None,
        renormalise_after_drop=False,
        match="none",
        model=model,
        optim=optim,
        eval=_as_trained(config.eval),
        launch=replace_unchecked(config.launch, expert_parallel_size=1),
    )


def _with_experts(config: RunConfig, given: Collection[str], notes: list[str]) -> RunConfig:
    router = config.router or TopKConfig()
    if isinstance(router, TopKConfig | SigmoidConfig) and router.renormalise is None:
        router = replace_unchecked(router, renormalise=config.k != 1)
    if isinstance(router, SigmoidConfig) and router.groups == router.top_groups > 1:
        notes += _set_aside(given, "router.top_groups=router.groups is no limit", "router.groups", "router.top_groups")
        router = replace_unchecked(router, groups=1, top_groups=1)
    drop = config.drop or "position"
    model = replace_unchecked(config.model, d_expert=_d_expert(replace_unchecked(config, router=router)))
    return replace_unchecked(config, router=router, balance=config.balance or NoBalance(), drop=drop, model=model)


def _with_copies(config: RunConfig, given: Collection[str], notes: list[str]) -> RunConfig:
    """Adapts settings of a model whose experts start as copies of a dense network."""
    notes += _set_aside(given, "train.upcycle_from copies the experts' first weights", "model.expert_init_scale")
    if not sums_to_one(config.router, config.k or 1):
        name = config.router.name if config.router else ""
        notes.append(
            f"train.upcycle_from with router={name} k={config.k}: the weights of a token's experts do not sum to 1, so "
            "the model does not start as the dense run's function."
        )
    return replace_unchecked(config, model=replace_unchecked(config.model, expert_init_scale=1.0))


def _with_choice(config: RunConfig, given: Collection[str], notes: list[str], asked: int | None) -> RunConfig:
    """Removes settings of a choice that the router does not make, and those that only state the default."""
    router = config.router
    if isinstance(router, SoftConfig | ExpertChoiceConfig):
        notes += _set_aside(given, f"router={router.name} gives every expert tokens", "optim.skip_idle_experts")
        config = replace_unchecked(config, optim=replace_unchecked(config.optim, skip_idle_experts=False))
    if isinstance(router, SoftConfig):
        typed = [name for name in given if name != "k" or asked is not None]
        unused = ("k", "capacity", "drop", "renormalise_after_drop", *ROUTING_AT_EVALUATION)
        notes += _set_aside(typed, "router=soft chooses no experts and drops no tokens", *unused)
        return replace_unchecked(
            config, capacity=None, drop=None, renormalise_after_drop=False, eval=_as_trained(config.eval)
        )
    config = _with_capacity(config, given, notes)
    if isinstance(router, ExpertChoiceConfig):
        reason = "router=expert_choice fills each expert to its capacity and has no overflow to drop"
        notes += _set_aside(given, reason, "drop", "renormalise_after_drop", "eval.drop")
        config = replace_unchecked(
            config, drop=None, renormalise_after_drop=False, eval=replace_unchecked(config.eval, drop=None)
        )
    elif config.capacity is None:
        notes += _set_aside(given, "training drops nothing without a capacity", "drop")
        config = replace_unchecked(config, drop=None)
        if config.eval.capacity is None:
            notes += _set_aside(given, "nothing is dropped without a capacity", "renormalise_after_drop")
            config = replace_unchecked(config, renormalise_after_drop=False)
    if config.k == 1 and config.eval.k is None and not isinstance(router, ReluConfig | ExpertChoiceConfig):
        notes += _set_aside(given, "k=1 leaves a token no weight after a drop", "renormalise_after_drop")
        config = replace_unchecked(config, renormalise_after_drop=False)
    if isinstance(router, ReluConfig) and config.capacity is None and config.eval.capacity is None:
        notes += _set_aside(given, "router=relu uses every expert that fires", "eval.k")
        config = replace_unchecked(config, eval=replace_unchecked(config.eval, k=None))
    if isinstance(router, RandomConfig) or (isinstance(router, HashConfig) and not router.learned):
        config = _with_equal_weights(config, given, notes)
    return _with_evaluation(config, given, notes)


def _with_capacity(config: RunConfig, given: Collection[str], notes: list[str]) -> RunConfig:
    """Removes a capacity that holds every token: from E / K on, each expert can hold all of them."""
    assert config.k is not None
    chooses = isinstance(config.router, ExpertChoiceConfig)
    policy = config.eval
    capacity = _equivalent_capacity(config.capacity, config.expert / config.k, chooses, "capacity", given, notes)
    evaluated = _equivalent_capacity(
        policy.capacity, config.expert / (policy.k or config.k), chooses, "eval.capacity", given, notes
    )
    if chooses:  # null is 1 in training, and at evaluation the training value
        capacity = None if capacity == 1 else capacity
        own = min(capacity or 1.0, config.expert / (policy.k or config.k))
        evaluated = None if evaluated == own else evaluated
    return replace_unchecked(config, capacity=capacity, eval=replace_unchecked(policy, capacity=evaluated))


def _equivalent_capacity(
    factor: float | None, most: float, chooses: bool, key: str, given: Collection[str], notes: list[str]
) -> float | None:
    """Returns the equivalent capacity factor: None if nothing can be dropped; with expert choice, at most E / K."""
    if factor is None or round(factor / most, 9) < 1:
        return factor
    if not chooses:
        if key in given:
            notes.append(f"{key}={factor:g} is null here: from {most:g} (expert / k) on, nothing is dropped.")
        return None
    if factor != most and key in given:
        notes.append(f"{key}={factor:g} is {most:g} (expert / k) here: every expert takes all tokens.")
    return most


def _with_evaluation(config: RunConfig, given: Collection[str], notes: list[str]) -> RunConfig:
    """Removes settings of routing at evaluation that only state the default."""
    policy = config.eval
    drop = policy.drop
    if config.capacity is None and policy.capacity is None and not isinstance(config.router, ExpertChoiceConfig):
        notes += _set_aside(given, "evaluation drops nothing without a capacity", "eval.drop")
        drop = None
    # In T5, null means a different drop rule in encoder and decoder, so an explicit value is kept.
    elif drop == replace_unchecked(config, eval=replace_unchecked(policy, drop=None)).eval_drop and not isinstance(
        config.model, T5Config
    ):
        drop = None
    return replace_unchecked(config, eval=replace_unchecked(policy, drop=drop))


def _as_trained(policy: EvalConfig) -> EvalConfig:
    """Returns the policy without the settings of routing at evaluation."""
    return replace_unchecked(policy, k=None, capacity=None, drop=None)


def _with_equal_weights(config: RunConfig, given: Collection[str], notes: list[str]) -> RunConfig:
    """Replaces the drop rule `probability` by `position` if all weights are equal, because both are then the same."""
    for key, holder in (("drop", config), ("eval.drop", config.eval)):
        if holder.drop == "probability" and key in given:
            notes.append(f"{key}=probability is {key}=position here: all weights are equal.")
    if config.drop == "probability":
        config = replace_unchecked(config, drop="position")
    if config.eval.drop == "probability":
        config = replace_unchecked(config, eval=replace_unchecked(config.eval, drop="position"))
    return config


def _takes_all_experts(config: RunConfig) -> bool:
    """Returns whether every token goes to every expert, so that nothing can be balanced."""
    chooses = isinstance(config.router, TopKConfig | SwitchConfig | NoisyTopKConfig | SigmoidConfig | SinkhornConfig)
    return chooses and config.k == config.expert and not null_experts(config.router) and config.eval.k is None


def _with_balance(config: RunConfig, given: Collection[str], notes: list[str]) -> RunConfig:
    """Replaces equivalent scopes by the simplest one. Raises ConfigError for a balance that the router cannot have."""
    balance = config.balance or NoBalance()
    router: str = config.router.name if config.router else ""
    for method in methods_of(balance):
        if method.name == "load" and router != "noisy_topk":
            raise ConfigError(
                f"balance={balance.name}: the load loss is estimated from the noise of the router, and "
                f"router={router} has none. Use router=noisy_topk, or balance=importance."
            )
        if router and router not in BIASED.get(type(method), (router,)):
            raise ConfigError(
                f"balance={balance.name}: {method.name} moves the choice by a bias, which router={router} does not "
                f"read. Use one of router={','.join(BIASED[type(method)])}."
            )
        key = setting_key(balance, method)
        if _takes_all_experts(config) and method.name in ("switch", "load", "loss_free", "quantile"):
            name = key.strip(".")
            typed = [name if each == "balance" else each for each in given]
            notes += _set_aside(typed, f"k={config.k} is all experts, which are loaded alike", name)
            balance = without_method(balance, method)
            continue
        if not isinstance(method, SwitchBalance):
            continue
        own = method
        if method.scope == "global" and config.train.grad_accumulation == 1:
            own = replace_unchecked(own, scope="batch")
            notes += _set_aside(given, "train.grad_accumulation=1 makes a step of one batch", f"{key}scope")
        if method.scope == "sequence" and config.train.batch_size == 1:
            own = replace_unchecked(own, scope="batch")
            notes += _set_aside(given, "train.batch_size=1 makes a batch of one sequence", f"{key}scope")
        balance = replace_method(balance, own)
        if router == "soft" or (router == "expert_choice" and own.scope != "sequence"):
            name = key.strip(".")
            typed = [name if each == "balance" else each for each in given]
            notes += _set_aside(typed, f"router={router} loads all experts alike, so that this loss is constant", name)
            balance = without_method(balance, own)
    return replace_unchecked(config, balance=balance)


def _d_expert(config: RunConfig) -> int:
    """Returns the width of one expert: the one that `match` requires, or the user's own."""
    model = config.model
    if config.match == "none":
        return model.d_expert or model.d_ff
    matched = matched_d_expert(config)
    if model.d_expert not in (None, matched):
        raise ConfigError(
            f"model.d_expert={model.d_expert} is set by match={config.match} to {matched}. To choose it yourself: "
            "match=none"
        )
    return matched


def _with_training(config: RunConfig, given: Collection[str], notes: list[str]) -> RunConfig:
    optim, train, data = config.optim, config.train, config.data
    if optim.schedule == "wsd" and optim.decay_fraction is None:
        optim = replace_unchecked(optim, decay_fraction=round(min(0.6, 1 - optim.warmup_fraction), 12))
    if optim.schedule == "wsd" and optim.decay_fraction == 0:
        optim = replace_unchecked(optim, schedule="constant", decay_fraction=None)
    if optim.schedule != "wsd" and optim.decay_fraction is not None:
        optim = replace_unchecked(optim, decay_fraction=None)
        notes += _set_aside(given, f"optim.schedule={optim.schedule} has no plateau", "optim.decay_fraction")
    if optim.schedule == "constant":
        optim = replace_unchecked(optim, min_lr_ratio=None)
        notes += _set_aside(given, "optim.schedule=constant never falls", "optim.min_lr_ratio")
    elif optim.min_lr_ratio == 1:
        optim = replace_unchecked(optim, schedule="constant", decay_fraction=None, min_lr_ratio=None)
        notes += _set_aside(given, "optim.min_lr_ratio=1 never falls", "optim.schedule", "optim.decay_fraction")
    elif optim.warmup_fraction == 1:
        optim = replace_unchecked(optim, schedule="constant", min_lr_ratio=None)
        notes += _set_aside(
            given, "optim.warmup_fraction=1 leaves no time to fall", "optim.schedule", "optim.min_lr_ratio"
        )
    elif optim.min_lr_ratio is None:
        optim = replace_unchecked(optim, min_lr_ratio=0.02)
    if optim.ema_decay == 0:
        optim = replace_unchecked(optim, ema_decay=None)
        notes += _set_aside(given, "an average that keeps nothing of earlier weights is the weights", "optim.ema_decay")
    if all(getattr(train, budget) is None for budget in BUDGETS):
        train = replace_unchecked(train, steps=DEFAULT_STEPS)
    return replace_unchecked(config, optim=optim, train=train, data=_with_paths(_with_tokenizer(data, given, notes)))


def _with_tokenizer(data: DataConfig, given: Collection[str], notes: list[str]) -> DataConfig:
    if not isinstance(data, CorpusConfig) or data.tokenizer == "bpe":
        return data
    notes += _set_aside(given, f"data.tokenizer={data.tokenizer} has its own vocabulary", "data.bpe_vocab")
    return replace_unchecked(data, bpe_vocab=None)


def _with_paths(data: DataConfig) -> DataConfig:
    """Makes paths absolute, so that the run finds its data from any working directory, and sorts patterns."""
    path: str | None = getattr(data, "path", None)
    if exclude := getattr(data, "exclude", ()):
        data = replace_unchecked(data, exclude=tuple(sorted(set(exclude))))
    if path is not None and not (isinstance(data, HubConfig) and not is_local(path)):
        data = replace_unchecked(data, path=_absolute(path))
    if isinstance(data, CorpusConfig) and data.tokenizer not in TOKENIZERS:
        data = replace_unchecked(data, tokenizer=_absolute(data.tokenizer))
    return data


def _absolute(path: str) -> str:
    """Returns the absolute path. The name of a link is kept, because it gives the kind of the file."""
    given = Path(os.path.expanduser(path))
    if ".." not in given.parts:
        return os.path.abspath(given)
    # What .. leads to behind a link only the file system knows.
    return str(given.resolve() if given.name == ".." else given.parent.resolve() / given.name)
