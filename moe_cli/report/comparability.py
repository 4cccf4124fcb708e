"""The definition of comparable losses, and the selection of runs that can be ranked together.

Losses are comparable if the runs are equal in every aspect of `ASPECTS`. `ComparableRuns.left_out` counts the runs that
differ in an aspect.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_cli.config.build import did_you_mean
from moe_cli.config.data import HELD_OUT
from moe_cli.errors import ConfigError
from moe_cli.metrics import eval_windows
from moe_cli.runs.folder import Run

if TYPE_CHECKING:
    from moe_cli.report.run_row import Record, RunRow

DATA, TOKENIZER, VALIDATION, BUDGET, CODE = "data", "tokenizer", "validation", "budget", "code"
EVAL_CONTEXT = "eval_context"
ASPECTS = (DATA, TOKENIZER, VALIDATION, EVAL_CONTEXT, BUDGET, CODE)
TOKENIZER_SETTINGS = ("data.tokenizer", "data.bpe_vocab")


@dataclass(frozen=True)
class ComparableRuns:
    """Comparable runs, and the number of other runs for each aspect in which they differ."""

    rows: tuple["RunRow", ...]
    left_out: Mapping[str, int]


def check_across(names: Collection[str]) -> frozenset[str]:
    """Returns the aspects that may differ. Raises ConfigError if an aspect does not exist."""
    for name in names:
        if name not in ASPECTS:
            raise ConfigError(
                f"no aspect '{name}' to compare across.{did_you_mean(name, ASPECTS)} There are: {', '.join(ASPECTS)}"
            )
    return frozenset(names)


def comparison_key(row: "Record") -> tuple[Any, Any]:
    """Returns the text, unit and evaluation of the loss, and the budget. Equal keys mean comparable losses.

    The version of the code is not in the key, although it is one of `ASPECTS`.

    The key is computed once per row: see `Record.comparison_key`.
    """
    settings, results = row.settings, row.results
    text = (
        data_aspect(settings, row.corpus_sha256),
        unit_aspect(settings, results.val_bpb),
        validation_aspect(settings),
        eval_windows(settings),
    )
    return text, budget_aspect(settings, results.tokens)


def data_aspect(settings: Mapping[str, Any], corpus_sha256: str | None) -> tuple[Any, ...]:
    """Returns the text and the task."""
    data = corpus_sha256 or (settings.get("data.name"), settings.get("data.path"))
    return (data, settings.get("task.name") or "causal_lm")


def unit_aspect(settings: Mapping[str, Any], val_bpb: float | None) -> tuple[Any, ...]:
    """Returns the unit of the loss: bits per byte, or nats per token of a tokenizer if the bytes are unknown.

    Bits per byte are comparable between tokenizers of the same text and validation bytes (docs/explanation/concepts.md,
    9). Nats per token are not.
    """
    return ("bits",) if val_bpb is not None else ("nats", *map(settings.get, TOKENIZER_SETTINGS))


def validation_aspect(settings: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(map(settings.get, HELD_OUT))


def budget_aspect(settings: Mapping[str, Any], tokens: float | None) -> tuple[str, Any]:
    """Returns the kind of the budget and its size. Budgets of steps and of tokens are one kind."""
    for budget in ("train.flops", "train.model_flops", "train.minutes"):
        if settings.get(budget) is not None:
            return (budget, settings[budget])
    return ("tokens", tokens)


def select_comparable(rows: Collection["RunRow"], across: Collection[str]) -> ComparableRuns:
    """Returns the complete runs of the largest comparable group (`_largest_group`). Aspects in `across` may differ."""
    kept = list(rows)
    left_out: dict[str, int] = {}
    for aspect in ASPECTS:
        if aspect in across or not kept:
            continue
        kinds = [_aspect_value(aspect, row) for row in kept]
        most = _largest_group(kept, kinds)
        if len(set(kinds)) > 1:
            left_out[aspect] = sum(kind != most for kind in kinds)
        kept = [row for row, kind in zip(kept, kinds, strict=True) if kind == most]
    return ComparableRuns(tuple(kept), left_out)


def is_comparable(row: "RunRow", other: "RunRow", across: Collection[str] = ()) -> bool:
    """Returns whether two runs are comparable, except for the aspects that may differ."""
    return all(aspect in across or _aspect_value(aspect, row) == _aspect_value(aspect, other) for aspect in ASPECTS)


def count_code_versions(paths: Collection[str]) -> int:
    """Returns the number of states of the program that these runs were made with."""
    return len({_code_version(path) for path in paths})


def _largest_group(rows: Collection["RunRow"], kinds: Collection[Any]) -> Any:
    """Returns the largest group: most configurations with several seeds, then most configurations, then most runs.

    A configuration here consists of experts, k, capacity, router and balance. Of equally large groups the newest is
    returned.
    """
    seeds: dict[Any, dict[Any, set[Any]]] = {}
    for row, kind in zip(rows, kinds, strict=True):
        shape = (row.expert, row.get("k"), row.capacity, row.router, row.balance)
        seeds.setdefault(kind, {}).setdefault(shape, set()).add(row.seed)
    runs = Counter(kinds)
    newest = dict(zip(kinds, rows, strict=True))

    def richness(kind: Any) -> tuple[int, int, int, float]:
        repeated = sum(len(run_seeds) > 1 for run_seeds in seeds[kind].values())
        return (repeated, len(seeds[kind]), runs[kind], newest[kind].created or 0.0)

    return max(seeds, key=richness)


def _aspect_value(aspect: str, row: "RunRow") -> Any:
    if aspect == CODE:
        return _code_version(row.path)
    (data, unit, validation, windows), budget = row.comparison_key
    return {DATA: data, TOKENIZER: unit, VALIDATION: validation, EVAL_CONTEXT: windows, BUDGET: budget}[aspect]


def _code_version(path: str) -> tuple[Any, ...]:
    """Returns version, commit and uncommitted changes of the package, from meta.json; None for missing entries."""
    meta = Run(Path(path)).meta()
    packages, git = (part if isinstance(part := meta.get(key), dict) else {} for key in ("packages", "git"))
    changes = str(git.get("diff") or "").split("diff --git ")
    package = "".join(change for change in changes if change.startswith("a/moe_cli/"))
    return (str(packages.get("moe-cli")), str(git.get("commit")), package)
