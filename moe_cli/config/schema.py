"""Every setting: one frozen dataclass per group of conf/, its ranges, and the rules between settings.

The names that users type (`expert`, `k`, `capacity`, `balance`) meet the field's terms here: `expert` is num_experts,
`k` is top_k, `capacity` is capacity_factor. Group classes with a `name` are variants: the name picks the class, so a
setting that belongs to another variant is refused as unknown.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

from moe_cli.config.balances import BalanceConfig, CombinedBalance, SwitchBalance, methods_of
from moe_cli.config.bounds import THREADS
from moe_cli.config.build import build, names_of_variants
from moe_cli.config.capacity import Drop
from moe_cli.config.data import CorpusConfig, DataConfig, PluginCorpus
from moe_cli.config.launch import LaunchConfig, check_launch
from moe_cli.config.loggers import LOG_KEYS, check_log
from moe_cli.config.model import ModelConfig
from moe_cli.config.probes import ProbeConfig
from moe_cli.config.ranges import format_setting
from moe_cli.config.routers import (
    ExpertChoiceConfig,
    HashConfig,
    ReluConfig,
    RouterConfig,
    SinkhornConfig,
    SoftConfig,
    check_router,
    check_task_router,
)
from moe_cli.config.settings import (
    PluginSettings,
    Settings,
    fields_of,
    read_choice,
    read_conf,
    replace_unchecked,
    setting,
)
from moe_cli.config.tasks import OWN_TEXT, TEXT_TASKS, TaskConfig, check_task
from moe_cli.errors import ConfigError
from moe_cli.formatting import plural, sanitise
from moe_cli.plugins import Origin, origin_of

DEFAULT_STEPS = 1500
# The most blocks of an expert where widths are unequal: each is a row of its own.
MAX_BLOCKS = 64
DEFAULT_TOP_K = 2
Match = Literal["active", "total", "flops", "model_flops", "active+total+flops", "none"]
BUDGETS = ("steps", "tokens", "flops", "model_flops", "minutes")
# Prefix of train.upcycle_from before the folder of a model of transformers.
FOREIGN_MODEL = "hf:"
# With train.eval_every=null. The last evaluation is at the end.
EVALUATIONS_PER_RUN = 10
# Settings of train= for execution and logging, which do not affect the trained model and are not part of its identity.
EXECUTION_KEYS = (
    "threads",
    "device",
    "compile",
    "log_every",
    "eval_every",
    "eval_tokens",
    "checkpoint_every",
    "keep_checkpoints",
    "keep_best",
)


def is_execution(key: str) -> bool:
    """Returns whether a dotted setting only affects execution or logging."""
    group, _, name = key.partition(".")
    return group in ("launch", *LOG_KEYS) or (group == "train" and name in EXECUTION_KEYS)


@dataclass(frozen=True)
class OptimConfig(Settings):
    """Settings of all optimizers: the schedule, in fractions of the training budget, and clipping.

    Attributes:
        skip_idle_experts: an expert without tokens in a step keeps its weights and its optimizer state.
        router_lr: peak learning rate of the gates; None means that of the other weights of their optimizer.
        ema_decay: decay of the running average of the weights that is evaluated; None means that the weights are
            evaluated.
    """

    group: ClassVar[str] = "optim"
    lr: float = setting(above=0)
    weight_decay: float = setting(at_least=0)
    schedule: Literal["cosine", "linear", "wsd", "constant"] = setting()
    warmup_fraction: float = setting(between=(0, 1))
    decay_fraction: float | None = setting(between=(0, 1))
    min_lr_ratio: float | None = setting(between=(0, 1))
    grad_clip: float | None = setting(above=0)
    skip_idle_experts: bool = setting()
    router_lr: float | None = setting(above=0)
    ema_decay: float | None = setting(fraction=True)

    def check(self) -> None:
        if self.warmup_fraction + (self.decay_fraction or 0) > 1:
            raise ConfigError(
                f"optim.warmup_fraction={format_setting(self.warmup_fraction)} and "
                f"optim.decay_fraction={format_setting(self.decay_fraction)} are shares of the budget: "
                "together at most 1."
            )


@dataclass(frozen=True)
class AdamConfig(OptimConfig):
    """Optimizers that train all or some parameters with AdamW."""

    beta1: float = setting(fraction=True)
    beta2: float = setting(fraction=True)


@dataclass(frozen=True)
class AdamWConfig(AdamConfig):
    name: Literal["adamw"] = "adamw"


@dataclass(frozen=True)
class SGDConfig(OptimConfig):
    """Gradient descent with momentum."""

    name: Literal["sgd"] = "sgd"
    momentum: float = setting(fraction=True)


@dataclass(frozen=True)
class MuonConfig(AdamConfig):
    """Muon for matrices and stacked experts (`lr`), AdamW for embedding, head, gates and norms (`adam_lr`).

    Attributes:
        expert_period: steps between two updates of the same experts; None means that the number of experts decides.
    """

    name: Literal["muon"] = "muon"
    adam_lr: float = setting(above=0)
    momentum: float = setting(fraction=True)
    expert_period: int | None = setting(at_least=1, at_most=1024)


@dataclass(frozen=True)
class TrainConfig(Settings):
    """The budget (one of `BUDGETS`), the batch, and the intervals of evaluations and checkpoints."""

    group: ClassVar[str] = "train"
    steps: int | None = setting(at_least=1, at_most=10**12)
    tokens: int | None = setting(at_least=1, at_most=10**18)
    flops: float | None = setting(above=0, at_most=1e29)
    model_flops: float | None = setting(above=0, at_most=1e29)
    minutes: float | None = setting(above=0, at_most=1e7)
    batch_size: int = setting(at_least=1, at_most=2**24)
    grad_accumulation: int = setting(at_least=1, at_most=2**20)
    eval_every: int | None = setting(at_least=1)
    eval_tokens: int = setting(at_least=1)
    checkpoint_every: int | None = setting(at_least=1)
    log_every: int = setting(at_least=1)
    threads: int | None = setting(at_least=1, at_most=THREADS)
    device: str = setting()
    compile: Literal["auto", "on", "off"] = setting()
    precision: Literal["auto", "float32", "bfloat16"] = setting()
    upcycle_from: str | None = setting()
    upcycle_noise: float = setting(between=(0, 1000))
    upcycle_drop: float = setting(between=(0, 1))
    on_nan: Literal["stop", "skip", "rewind"] = setting()
    keep_checkpoints: int = setting(at_least=1)
    keep_best: bool = setting()

    @classmethod
    def from_conf(cls, name: str) -> dict[str, Any]:
        return read_choice("train", "default")

    def check(self) -> None:
        if self.upcycle_from == "latest":
            raise ConfigError("train.upcycle_from=latest changes with every run. Give a run id: see moe report --runs")
        if self.upcycle_from is not None and self.upcycle_from.startswith(FOREIGN_MODEL):
            raise ConfigError(
                f"train.upcycle_from={self.upcycle_from} is read from the words of moe train and moe sweep alone. "
                "Elsewhere name a run: moe import FOLDER --no-eval"
            )
        budgets = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(budgets) > 1:
            raise ConfigError(
                f"{' and '.join(f'train.{name}={format_setting(getattr(self, name))}' for name in budgets)} are "
                f"{len(budgets)} budgets: give one, and null to the others."
            )
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ConfigError(f"train.device={self.device} is not one of: auto, cpu, cuda, cuda:N.")

    @property
    def budget(self) -> tuple[str, float]:
        """Returns the budget of a resolved configuration, such as ("steps", 600)."""
        return next((name, amount) for name in BUDGETS if (amount := getattr(self, name)) is not None)

    def num_evaluations(self, steps: float | None) -> int:
        """Returns the number of evaluations before the end of a run; steps are unknown with a budget of time."""
        if steps is None:
            return EVALUATIONS_PER_RUN - 1
        count = math.ceil(steps / (self.eval_every or 1)) - 1
        return max(0, count if self.eval_every else min(EVALUATIONS_PER_RUN - 1, count))


@dataclass(frozen=True)
class EvalConfig(Settings):
    """Routing and context at evaluation; null means as many experts as in training, and no drops.

    Attributes:
        drop: null means `causal` for a model that must not see later tokens, else as in training.
        context_length: tokens of a validation window; null means that of the model.
        stride: tokens from one validation window to the next; a window scores its last `stride` tokens; null means
            windows without overlap.
    """

    group: ClassVar[str] = "eval"
    k: int | None = setting(at_least=1, at_most=2**20)
    capacity: float | None = setting(above=0, at_most=1e6)
    drop: Drop | None = setting()
    context_length: int | None = setting(at_least=1)
    stride: int | None = setting(at_least=1)


@dataclass(frozen=True)
class RunConfig(Settings):
    """All settings of one run. In a resolved configuration, every derivable setting has a value.

    Attributes:
        k: experts per token; a list has one value for each sparse layer, the first layer's first.
    """

    group: ClassVar[str] = ""
    expert: int = setting(at_least=1, at_most=2**20)
    k: int | tuple[int, ...] | None = setting(at_least=1, at_most=2**20)
    capacity: float | None = setting(above=0, at_most=1e6)
    drop: Drop | None = setting()
    renormalise_after_drop: bool = setting()
    match: Match = setting()
    seed: int = setting(at_least=0, at_most=2**63 - 1)
    log: str | None = setting()
    log_project: str | None = setting()
    model: ModelConfig = setting()
    router: RouterConfig | None = setting()
    balance: BalanceConfig | None = setting()
    task: TaskConfig = setting()
    data: DataConfig = setting()
    optim: MuonConfig | AdamWConfig | SGDConfig = setting()
    train: TrainConfig = setting()
    eval: EvalConfig = setting()
    launch: LaunchConfig = setting()

    @classmethod
    def from_conf(cls, name: str) -> dict[str, Any]:
        values = read_conf("config")
        choices = {
            group: choice
            for default in values.pop("defaults")
            if default != "_self_"
            for group, choice in default.items()
        }
        groups = {group: read_choice(group, choice) for group, choice in choices.items() if choice is not None}
        return dict(vars(build(cls, values | groups)))

    def check(self) -> None:
        data = OWN_TEXT if isinstance(self.data, PluginCorpus) else self.data.name
        check_task(self.task, self.model.name, data, getattr(self.model, "task", None))
        self.check_choice()
        check_launch(self.launch, self.train.batch_size, 1 if self.dense else self.expert)
        check_log(self.log, self.log_project)
        self._check_shards()
        self._check_packing()
        self._check_windows()

    def check_choice(self) -> None:
        """Raises ConfigError where the router cannot choose k experts."""
        if self.dense:
            return
        if isinstance(self.k, tuple) and len(self.k) != (number := len(self.sparse_layers)):
            raise ConfigError(
                f"k={format_setting(self.k)} has {plural(len(self.k), 'value')}, and the model {number} sparse "
                f"layer{'' if number == 1 else 's'}: give {number}, the first layer's first, or one number for all."
            )
        for key, k in (*(("k", k) for k in self.k_values), ("eval.k", self.eval.k)):
            if k is not None and k > self.expert:
                raise ConfigError(
                    f"{key}={k} is more than expert={self.expert}: a token cannot choose more experts than there are."
                )
        self._check_widths()
        if self.k is not None:
            if isinstance(self.router, HashConfig) and self.task.name == "images":
                raise ConfigError("router=hash needs token ids, and patches of images have none. Use router=topk")
            if self.task.name == "ratings":
                check_task_router(self.router)
            for k in {*self.k_values, max(*self.k_values, self.eval.k or 1)}:
                check_router(self.router, self.expert, k, causal=self.model.causal)

    def _check_widths(self) -> None:
        """Raises ConfigError for experts of unequal widths that cannot be."""
        widths = self.model.d_expert
        if not isinstance(widths, tuple):
            return
        shown = f"model.d_expert={format_setting(widths)}"
        if len(widths) != self.expert:
            raise ConfigError(
                f"{shown} has {plural(len(widths), 'width')}, and expert={self.expert}: give one for each expert, "
                "or one number for all."
            )
        if max(widths) > MAX_BLOCKS * self.model.block_width:
            raise ConfigError(
                f"{shown} is computed in blocks of the greatest common divisor, {self.model.block_width}: at most "
                f"{MAX_BLOCKS} fit in an expert. Use multiples of a larger number, such as 16."
            )
        refused = [
            (
                self.model.shared_experts and self.model.d_shared is None,
                "model.shared_experts",
                "Add: model.d_shared=64",
            ),
            (
                getattr(self.router, "score", None) == "activation",
                "router.score=activation",
                "Use router.score=linear",
            ),
            (
                self.launch.expert_parallel_size > 1,
                f"launch.expert_parallel_size={self.launch.expert_parallel_size}",
                "Use launch.expert_parallel_size=1",
            ),
        ]
        for wrong, other, instead in refused:
            if wrong:
                raise ConfigError(f"{shown}: {other} needs experts of one width. {instead}")

    def _check_shards(self) -> None:
        if self.train.compile == "on" and self.launch.num_processes > 1:
            raise ConfigError("train.compile=on is for one process. Use train.compile=off, or launch.num_processes=1")
        if self.launch.data_parallel == "fsdp" and self.optim.skip_idle_experts and not self.dense:
            raise ConfigError(
                "optim.skip_idle_experts=true updates single experts, and launch.data_parallel=fsdp shards them. Use "
                "launch.data_parallel=dp"
            )
        if (
            self.launch.expert_parallel_size > 1
            and getattr(self.router, "score", None) == "activation"
            and not self.dense
        ):
            raise ConfigError(
                "router.score=activation asks every expert, and launch.expert_parallel_size has some elsewhere. "
                "Use launch.expert_parallel_size=1"
            )

    def _check_packing(self) -> None:
        packing = self.data.packing if isinstance(self.data, CorpusConfig) else "concat"
        scopes = [method.scope for method in methods_of(self.balance) if isinstance(method, SwitchBalance)]
        router = None if self.dense else self.router
        refused = [
            (
                packing != "concat" and self.task.name == "span_corruption",
                "spans are removed from whole windows",
                "concat",
            ),
            (packing == "isolate" and self.model.name == "lstm", "model=lstm has no attention to isolate", "pad"),
            (
                packing != "concat" and isinstance(router, SoftConfig),
                "router=soft mixes all tokens of a window",
                "concat",
            ),
            (packing == "pad" and isinstance(router, ReluConfig), "router=relu assumes full windows", "isolate"),
            (
                packing == "pad" and not self.dense and "sequence" in scopes,
                "balance.scope=sequence needs windows of equal length",
                "isolate",
            ),
            (
                packing == "pad" and self.train.grad_accumulation > 1,
                "train.grad_accumulation averages windows of equal length",
                "isolate",
            ),
            (
                packing == "pad" and self.launch.num_processes > 1,
                "launch.num_processes divides windows of equal length",
                "isolate",
            ),
        ]
        for wrong, why, instead in refused:
            if wrong:
                raise ConfigError(f"data.packing={packing}: {why}. Use data.packing={instead}")

    def _check_windows(self) -> None:
        for key, tasks in (("context_length", TEXT_TASKS), ("stride", ("causal_lm",))):
            if getattr(self.eval, key) is not None and self.task.kind not in tasks:
                raise ConfigError(
                    f"eval.{key}={getattr(self.eval, key)} has no effect on task={self.task.name}. It is for "
                    f"task={', '.join(tasks)}."
                )
            if getattr(self.eval, key) is not None and isinstance(self.data, ProbeConfig):
                raise ConfigError(
                    f"eval.{key}={getattr(self.eval, key)} has no effect on data={self.data.name}, whose questions are "
                    "read whole. Leave it out."
                )
        if self.eval_length > self.model.context_length:
            raise ConfigError(
                f"eval.context_length={self.eval_length} is more than "
                f"model.context_length={self.model.context_length}, the most that the model can read."
            )
        if self.eval_stride > self.eval_length:
            raise ConfigError(
                f"eval.stride={self.eval_stride} is more than the {self.eval_length} tokens of a validation window: "
                "some tokens would not be scored."
            )

    @property
    def drops(self) -> bool:
        """Returns whether training drops assignments: experts have a capacity, and the router is not expert choice."""
        return self.capacity is not None and not isinstance(self.router, ExpertChoiceConfig)

    @property
    def eval_drop(self) -> str:
        """Returns the drop rule at evaluation; of an encoder and decoder, that of the decoder."""
        return self.eval.drop or ("causal" if self.model.causal else self.drop or "position")

    @property
    def sees_later_tokens(self) -> bool:
        """Returns whether, with a capacity at evaluation, a causal model's prediction depends on later tokens."""
        return self.model.causal and self.eval_drop != "causal"

    @property
    def trains_on_later_tokens(self) -> bool:
        """Returns whether the routing of a causal model's token in training depends on later tokens."""
        by_drop = self.capacity is not None and self.drop != "causal"
        return self.model.causal and not self.dense and (by_drop or isinstance(self.router, SinkhornConfig))

    @property
    def eval_length(self) -> int:
        """Tokens of a validation window."""
        return self.eval.context_length or self.model.context_length

    @property
    def eval_stride(self) -> int:
        """Tokens from one validation window to the next."""
        return self.eval.stride or self.eval_length

    @property
    def dense(self) -> bool:
        """Returns whether this is the baseline without experts."""
        return self.expert == 1

    @property
    def sparse_layers(self) -> tuple[int, ...]:
        return () if self.dense else self.model.sparse_layers

    @property
    def k_values(self) -> tuple[int, ...]:
        """Returns k: one value for all sparse layers, or that of each one."""
        return self.k if isinstance(self.k, tuple) else (self.k or 1,)

    @property
    def top_ks(self) -> tuple[int, ...]:
        """Returns k of each sparse layer, the first layer's first; none in a dense model."""
        return () if self.dense else self.k if isinstance(self.k, tuple) else self.k_values * len(self.sparse_layers)

    @property
    def mean_k(self) -> float:
        """Returns the mean of k over the sparse layers, a whole number as such; 1 in a dense model."""
        mean = 1 if self.dense else sum(self.k_values) / len(self.k_values)
        return int(mean) if mean == int(mean) else mean

    def at_layer(self, layer: int) -> "RunConfig":
        """Returns the configuration as one layer, counted from 0, has it: with its own k."""
        if not isinstance(self.k, tuple) or layer not in self.sparse_layers:
            return self
        return replace_unchecked(self, k=self.k[self.sparse_layers.index(layer)])

    @property
    def tokens_per_step(self) -> int:
        return self.train.batch_size * self.train.grad_accumulation * self.model.context_length

    def to_dict(self) -> dict[str, Any]:
        values = _values(self)
        if isinstance(self.balance, CombinedBalance):
            values["balance"] = self.balance.to_dict()
        return values | ({"plugins": plugins} if (plugins := self.plugins()) else {})

    def plugins(self) -> dict[str, dict[str, str]]:
        """Returns where the plug-ins of this configuration come from, by group and name; they are part of its identity.

        An executor and a logger are not part of it.
        """
        found: dict[str, dict[str, str]] = {}
        for choice in (self.model, self.task, self.router, *methods_of(self.balance), self.data):
            if isinstance(choice, PluginSettings):
                origin = origin_of(choice.group, choice.name)
                found.setdefault(choice.group, {})[choice.name] = str(origin or "unknown")
        return found

    @cached_property
    def digest(self) -> str:
        """Returns eight hexadecimal digits that identify this configuration; equal for equal training anywhere."""
        return digest_of_text(_identity_text(self.to_dict(), self.sparse_layers))

    @property
    def shape(self) -> str:
        """Returns experts x chosen, such as 8x2, with the mean of k over layers: 8x2.25; or dense."""
        mean = self.mean_k
        return "dense" if self.dense else f"{self.expert}x{mean if isinstance(mean, int) else f'{mean:.4g}'}"

    @property
    def run_id(self) -> str:
        """Returns the id of the run, such as gpt-8x2-s0-3fa91c: model, experts x chosen, seed, digest."""
        return f"{self.model.name}-{self.shape}-s{self.seed}-{self.digest}"


def digest_of(values: dict[str, Any]) -> str | None:
    """Returns the digest of the configuration in a config.json; None if it is invalid.

    Ten times as fast as `from_dict`.
    """
    text = identity_text(values)
    return None if text is None else digest_of_text(text)


def identity_text(values: dict[str, Any]) -> str | None:
    """Returns the text that the digest of a config.json is computed from; None if it is no configuration."""
    try:
        known = values["expert"] == 1 or "model" in values.get("plugins", ())
        return _identity_text(values, () if known else _sparse_layers(values["model"]))
    except (ConfigError, KeyError, TypeError, AttributeError, ValueError):
        return None


def digest_of_text(text: str) -> str:
    """Returns the digest of a configuration from its `identity_text`."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


@dataclass(frozen=True)
class _OfModel:
    model: ModelConfig


# Keyed by the settings of a model as text: many runs share few models.
_known_layers: dict[str, tuple[int, ...]] = {}
MAX_KNOWN_LAYERS = 1024


def _sparse_layers(model: dict[str, Any]) -> tuple[int, ...]:
    key = repr(model)
    if key not in _known_layers:
        if model["name"] not in names_of_variants(_OfModel, "model"):  # a name in a file imports no plug-in
            raise ConfigError(f"model={model['name']} is a plug-in, and its distribution is not recorded.")
        config: _OfModel = build(_OfModel, {"model": model})
        if len(_known_layers) >= MAX_KNOWN_LAYERS:
            _known_layers.clear()
        _known_layers[key] = config.model.sparse_layers
    return _known_layers[key]


# Settings of a model that place its experts by a rule.
PLACEMENT = ("moe_layer_freq", "first_k_dense")
# Settings that were added when runs existed. At these values they are left out, so that the digests stay.
ADDED_SETTINGS: dict[str, dict[str, Any]] = {
    "model": {"d_shared": None, "moe_layers": None},
    "router": {"init_scale": 1.0},
    "optim": {"router_lr": None},
}


def _without(values: dict[str, Any] | None, left_out: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the settings of a group but those that have these values."""
    if values is None:
        return None
    return {key: value for key, value in values.items() if key not in left_out or value != left_out[key]}


def _identity_text(values: dict[str, Any], sparse_layers: tuple[int, ...]) -> str:
    """Returns the settings that determine the trained model as canonical JSON; does not change `values`."""
    left_out = (
        "launch",
        "match",
        *LOG_KEYS,
    )  # results do not depend on them; match acts through the width of the experts
    values = {key: value for key, value in values.items() if key not in left_out}
    values["train"] = {key: value for key, value in values["train"].items() if key not in EXECUTION_KEYS}
    for group, added in ADDED_SETTINGS.items():
        values[group] = _without(values[group], added)
    if "model" in values.get("plugins", ()):  # whose layers with experts are known to the plug-in only
        return json.dumps(values, sort_keys=True)
    # Left out, because `sparse_layers` says it: what places the experts; and d_ff if no layer is dense.
    model = values["model"] | {"sparse_layers": sparse_layers}
    through = (*PLACEMENT, "moe_layers", *(["d_ff"] if len(sparse_layers) == model["num_layers"] else []))
    values["model"] = {key: value for key, value in model.items() if key not in through}
    return json.dumps(values, sort_keys=True)


_PLAIN = (int, float, str, bool, type(None))


def _values(config: Any) -> dict[str, Any]:
    """Converts like dataclasses.asdict, in a third of the time: settings are immutable plain values."""
    cls: Any = type(config)
    values = {name: getattr(config, name) for name in fields_of(cls)}
    for key, value in values.items():
        if type(value) not in _PLAIN:
            values[key] = list(value) if isinstance(value, tuple) else _values(value)  # lists, as JSON has them
    return values


def from_dict(values: dict[str, Any]) -> RunConfig:
    """Returns the configuration stored in a run folder's config.json.

    Raises:
        ConfigError: a key or value this version does not know.
    """
    values = dict(values)
    recorded = values.pop("plugins", {})
    check_plugins(recorded)
    config: RunConfig = build(RunConfig, values)
    for group, found in config.plugins().items():
        if left_out := sorted(found.keys() - recorded.get(group, {}).keys()):
            raise ConfigError(f"{group}={left_out[0]} is a plug-in, and `plugins` does not record its version.")
    return config


def check_plugins(recorded: Any) -> None:
    """Raises ConfigError where a recorded plug-in is not installed, or is another version. Imports none.

    Args:
        recorded: the `plugins` of a config.json.
    """
    if not isinstance(recorded, dict) or not all(isinstance(found, dict) for found in recorded.values()):
        raise ConfigError("plugins must be names of plug-ins with their distributions, by group.")
    for group, found in recorded.items():
        for name, origin in found.items():
            here = origin_of(group, name)
            if here is None or str(here) != origin:
                raise ConfigError(_missing_plugin(f"{group}={name}", origin, here))


def _missing_plugin(choice: str, recorded: Any, here: Origin | None) -> str:
    source, _, version = sanitise(str(recorded)).rpartition(" ")
    found = "which is not here" if here is None else f"and here is {here}"
    return f"{choice} came from {source} {version}, {found}. {Origin(source, version).how_to_get}"
