"""One run in the report: its identity, settings and results; and the role of each setting in comparisons."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache, cached_property, lru_cache
from itertools import chain
from typing import Any, get_args

from moe_cli.config.build import LIST_TEXT, mean_of_list
from moe_cli.config.expressions import Expression
from moe_cli.config.ignored_settings import SPARSE_ONLY, is_in_group
from moe_cli.config.launch import LaunchConfig
from moe_cli.config.probes import PROBE_CLASSES
from moe_cli.config.resolve import default_num_heads
from moe_cli.config.resolve_sparse import default_expert_period
from moe_cli.config.schema import Match
from moe_cli.config.settings import fields_of
from moe_cli.config.training import EXECUTION_KEYS
from moe_cli.errors import ConfigError
from moe_cli.files.reading import number_in
from moe_cli.report import comparability

Value = str | int | float | bool | None
Settings = Mapping[str, Value]
# A column may also hold a list: tags, seeds, runs.
Cell = Value | Sequence[str] | Sequence[int] | Sequence[float]

IDENTITY = ("run", "sweep", "status", "reason", "created", "path", "tags")
SETTINGS = ("expert", "k", "capacity", "router", "balance", "seed")
CORPUS = ("corpus", "corpus_sha256")
MODEL_TASK_DATA = ("model.name", "task.name", "data.name")
TOP_LEVEL = ("expert", "k", "capacity", "drop", "renormalise_after_drop", "router", "balance", "match")
# Execution settings, which do not change the trained model.
EXECUTION = frozenset(
    (*(f"train.{key}" for key in EXECUTION_KEYS), *(f"launch.{entry.name}" for entry in fields(LaunchConfig)))
)
# Columns in which the runs of one configuration may differ before anything is measured.
RUN_LEVEL_COLUMNS = EXECUTION | {*IDENTITY, "seed"}
# The settings that decide each of these. They tell configurations apart only where their parents are equal.
SETTING_PARENTS: dict[str, tuple[str, ...]] = {
    "drop": ("capacity",),
    "renormalise_after_drop": ("capacity",),
    **{f"{group}.name": () for group in ("model", "task", "data")},
    **{f"{group}.": (f"{group}.name",) for group in ("model", "task", "data")},
    "model.d_expert": ("model.name", "model.d_ff", "match"),
    "eval.context_length": ("model.context_length",),
    "eval.stride": ("model.context_length", "eval.context_length"),
    "router.": ("router", "k"),
    "balance.": ("balance",),
    "optim.name": (),
    "optim.schedule": ("optim.name",),
    "optim.": ("optim.name", "optim.schedule"),
    "optim.expert_period": ("optim.name", "optim.schedule", "expert", "k"),
}


def _question_length(row: Settings) -> int:
    """Returns the context that the questions of a probe need. Raises KeyError for other data."""
    cls: Any = PROBE_CLASSES[str(row["data.name"])]
    values: dict[str, Any] = {name: row[f"data.{name}"] for name in fields_of(cls)}
    return int(cls(**values).context_length)


# Settings that follow from others unless they are set. They tell apart only configurations in which one was set.
FOLLOWS: dict[str, Callable[[Settings], Value]] = {
    "model.context_length": _question_length,
    "model.num_heads": lambda row: default_num_heads(int(str(row["model.d_model"]))),
    "model.num_kv_heads": lambda row: row["model.num_heads"],
    "model.d_head": lambda row: int(str(row["model.d_model"])) // int(str(row["model.num_heads"])),
    "optim.expert_period": lambda row: default_expert_period(
        int(str(row["expert"])), float(str(mean_of_list(row["k"])))
    ),
}
# The baseline unless a sweep or the user names another: the model without experts.
DENSE: Mapping[str, Value] = {"expert": 1}


@dataclass(frozen=True)
class Results:
    """The results of a run, or their means over runs; the fields are metrics of the registry `moe_cli.metrics`."""

    params: float | None = None
    active_params: float | None = None
    flops_per_token: float | None = None
    val_loss: float | None = None
    val_bpb: float | None = None
    tokens_per_second: float | None = None
    max_violation: float | None = None
    dropped_fraction: float | None = None
    dead_experts: float | None = None
    forward_flops_per_token: float | None = None
    model_flops_per_token: float | None = None
    optimizer_flops_per_step: float | None = None
    val_perplexity: float | None = None
    val_tokens: float | None = None
    val_bytes: float | None = None
    capacity_val_loss: float | None = None
    eval_context: float | None = None
    train_loss: float | None = None
    routing_entropy: float | None = None
    mean_routing_entropy: float | None = None
    load_cv: float | None = None
    token_specialisation: float | None = None
    domain_specialisation: float | None = None
    null_fraction: float | None = None
    router_saturation: float | None = None
    vocab_size: float | None = None
    steps: float | None = None
    tokens: float | None = None
    seconds: float | None = None
    peak_memory_bytes: float | None = None
    non_embedding_params: float | None = None
    active_non_embedding_params: float | None = None
    loss_gap: float | None = None
    epochs: float | None = None
    tokens_per_expert: float | None = None
    bigram_bpb: float | None = None
    gzip_bpb: float | None = None

    @property
    def train_flops(self) -> float | None:
        """Returns the FLOPs of the whole training, of model and optimizer; None means unknown."""
        return self.flops_per_token * self.tokens if self.flops_per_token and self.tokens else None

    @classmethod
    def from_dict(cls, values: dict[str, float | None]) -> "Results":
        """Returns the results with these fields, in a tenth of the time of the constructor. Keeps the dictionary."""
        results = cls.__new__(cls)
        object.__setattr__(results, "__dict__", values)
        return results


RESULTS = tuple(entry.name for entry in fields(Results))
_RESULTS = frozenset(RESULTS)


def is_list(value: object) -> bool:
    """Returns whether a value is the text of a list of whole numbers: [1,2]."""
    return isinstance(value, str) and LIST_TEXT.fullmatch(value) is not None


def mean_setting(settings: Settings, name: str) -> float | None:
    """Returns a setting that is a number, or the mean of one that is a list; None for other values."""
    return number_in(mean_of_list(settings.get(name)))


class Record:
    """The common fields of a run and of a configuration of several runs.

    `record[name]` and `record.get(name)` return the value of any column; None means no value.
    """

    settings: Settings
    execution: Settings
    results: Results
    others: Settings

    @property
    def expert(self) -> int | None:
        return self._whole("expert")

    @property
    def k(self) -> int | None:
        return self._whole("k")

    @property
    def mean_k(self) -> float | None:
        """Returns k, or its mean over layers that have their own."""
        return mean_setting(self.settings, "k")

    @property
    def capacity(self) -> float | None:
        return number_in(self.settings.get("capacity"))

    @property
    def router(self) -> str | None:
        return self._text("router")

    @property
    def balance(self) -> str | None:
        return self._text("balance")

    @property
    def corpus(self) -> str | None:
        value = self.others.get("corpus")
        return None if value is None else str(value)

    @property
    def corpus_sha256(self) -> str | None:
        value = self.others.get("corpus_sha256")
        return None if value is None else str(value)

    def _whole(self, name: str) -> int | None:
        value = self.settings.get(name)
        return value if isinstance(value, int) else None

    def _text(self, name: str) -> str | None:
        value = self.settings.get(name)
        return None if value is None else str(value)

    @property
    def is_dense(self) -> bool:
        return self.expert == 1

    @property
    def is_countable(self) -> bool:
        """Returns whether the record has a valid number of experts. Files of other programs may not."""
        return self.expert is not None and self.expert >= 1

    @property
    def primary_loss(self) -> float | None:
        """Returns the loss that configurations are ranked by: bits per byte, or nats if bytes are unknown."""
        return self.results.val_loss if self.results.val_bpb is None else self.results.val_bpb

    @cached_property
    def comparison_key(self) -> tuple[Any, Any]:
        """Returns `comparability.comparison_key`."""
        return comparability.comparison_key(self)

    def get(self, name: str) -> Cell:
        if name in self.settings:
            return self.settings[name]
        if name in _RESULTS:
            value: float | None = getattr(self.results, name)
            return value
        if name in self.execution:
            return self.execution[name]
        return self.others.get(name)

    def number(self, name: str) -> float | None:
        """Returns the value of a column if it is a finite number."""
        return number_in(self.get(name))

    def __getitem__(self, name: str) -> Cell:
        return self.get(name)


@dataclass(frozen=True)
class RunRow(Record):
    """One run.

    Attributes:
        run, sweep, path: its id, the name of its parent folder, and its path.
        reason: the reason of a failure or a stop.
        created: seconds since 1970.
        settings: the settings that determine the trained model, and the seed, by dotted names; `router` and `balance`
            are names.
        execution: the settings of `EXECUTION`.
        results: empty before the run is complete.
        others: other entries of summary.json and config.json, such as the corpus.
    """

    run: str
    sweep: str
    path: str
    status: str
    reason: str | None
    created: float | None
    tags: tuple[str, ...]
    settings: Settings
    execution: Settings = field(default_factory=dict)
    results: Results = field(default_factory=Results)
    others: Settings = field(default_factory=dict)

    @cached_property
    def seed(self) -> int | None:
        return self._whole("seed")

    def get(self, name: str) -> Cell:
        if name == "tags":
            return list(self.tags)
        if name in IDENTITY:
            value: Value = getattr(self, name)
            return value
        return super().get(name)


def column_names(rows: Iterable[RunRow]) -> list[str]:
    """Returns the columns of runs: identity, settings, results, corpus, other entries, and dotted settings last."""
    found = chain.from_iterable(dict.fromkeys((*row.settings, *row.execution, *row.others) for row in rows))
    names = dict.fromkeys([*IDENTITY, *SETTINGS, *RESULTS, *CORPUS, *found])
    return sorted(names, key=lambda name: name in ("drop", "match") or "." in name)


def settings_of(columns: Iterable[str]) -> list[str]:
    """Returns the columns that determine the trained model, without the seed, the most important first."""
    columns = list(columns)
    dotted = [name for name in columns if "." in name and name not in EXECUTION and name not in MODEL_TASK_DATA]
    return [name for name in (*MODEL_TASK_DATA, *TOP_LEVEL) if name in columns] + dotted


def is_setting(name: str) -> bool:
    """Returns whether a column determines the trained model, the seed included."""
    return ("." in name or name in TOP_LEVEL or name == "seed") and name not in EXECUTION


@cache
def _is_sparse_only(name: str) -> bool:
    return is_in_group(name, SPARSE_ONLY)


def setting_applies(name: str, settings: Settings) -> bool:
    """Returns whether a setting has an effect in a configuration with these settings."""
    if name == "model.d_expert" and settings.get("match") in get_args(Match)[:-1]:
        return False
    return settings.get("expert") != 1 or not _is_sparse_only(name)


@lru_cache(maxsize=256)
def _sparse_only(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(filter(_is_sparse_only, names))


def inapplicable_settings(settings: Settings) -> list[str]:
    """Returns the settings that have no effect in a configuration with these settings."""
    names = _sparse_only(tuple(settings)) if settings.get("expert") == 1 else ()
    return [*names, *(name for name in ("model.d_expert",) if name in settings and not setting_applies(name, settings))]


def varying_settings(rows: Collection[Settings], names: Iterable[str]) -> list[str]:
    """Returns the settings that tell these configurations apart, in order.

    A setting counts only where it applies. One that others decide (a weight by the balancing loss it belongs to) counts
    only when configurations equal in those others still differ in it.
    """
    varying = []
    for name in names:
        if len({row.get(name) for row in rows}) < 2 or all(setting_follows(name, row) for row in rows):
            continue
        parents = setting_parents(name)
        values: dict[tuple[Value, ...], set[Value]] = {}
        for row in rows:
            if setting_applies(name, row):
                values.setdefault(tuple(row.get(parent) for parent in parents), set()).add(row.get(name))
        if any(len(alternatives) > 1 for alternatives in values.values()):
            varying.append(name)
    return varying


def setting_follows(name: str, row: Settings) -> bool:
    """Returns whether a setting has the value that follows from others."""
    if name not in FOLLOWS or row.get(name) is None:
        return name in FOLLOWS
    try:
        return FOLLOWS[name](row) == row[name]
    except (KeyError, TypeError, ValueError, ZeroDivisionError, ConfigError):  # a file of another version
        return False


def setting_parents(name: str) -> tuple[str, ...]:
    """Returns the settings that decide this one."""
    group = name.partition(".")[0] + "." if "." in name else ""
    return SETTING_PARENTS[name] if name in SETTING_PARENTS else SETTING_PARENTS.get(group, ())


def is_baseline(row: Record, baseline: Settings) -> bool:
    """Returns whether a run or configuration has the settings of the baseline.

    Choices of a group are compared by name.
    """

    def value(name: str) -> Cell:
        found = row.get(name)
        return row.get(f"{name}.name") if found is None else found

    return all(value(name) == wanted for name, wanted in baseline.items())


def matches(conditions: Iterable[Expression], row: Record) -> bool:
    """Returns whether every condition holds for a row."""
    return all(condition.holds({name: row.get(name) for name in condition.names}) for condition in conditions)
