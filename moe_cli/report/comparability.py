"""Selection of runs that can be ranked together: same text, validation, evaluation context, budget and code.

Other runs are listed by name and not ranked.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_cli.config.build import did_you_mean
from moe_cli.config.data import HELD_OUT
from moe_cli.errors import ConfigError
from moe_cli.metrics import eval_windows
from moe_cli.report.run_row import RunRow
from moe_cli.runs.folder import Run

DATA, TOKENIZER, VALIDATION, BUDGET, CODE = "data", "tokenizer", "validation", "budget", "code"
EVAL_CONTEXT = "eval_context"
ASPECTS = (DATA, TOKENIZER, VALIDATION, EVAL_CONTEXT, BUDGET, CODE)


@dataclass(frozen=True)
class ComparableRuns:
    """Comparable runs, and the number of other runs for each aspect in which they differ."""

    rows: tuple[RunRow, ...]
    left_out: Mapping[str, int]


def check_across(names: Collection[str]) -> frozenset[str]:
    """Returns the aspects that may differ. Raises ConfigError if an aspect does not exist."""
    for name in names:
        if name not in ASPECTS:
            raise ConfigError(
                f"no aspect '{name}' to compare across.{did_you_mean(name, ASPECTS) or ''} There are: "
                f"{', '.join(ASPECTS)}"
            )
    return frozenset(names)


def select_comparable(rows: Collection[RunRow], across: Collection[str] = ()) -> ComparableRuns:
    """Returns the complete runs of the largest comparable group, see `_largest_group`. Aspects in `across` may differ.

    Bits per byte are comparable between tokenizers of the same text and validation bytes (docs/explanation/concepts.md,
    9). If all runs have them, the tokenizer is no aspect. Nats per token are not comparable.
    """
    free = set(across) | ({TOKENIZER} if all(row.results.val_bpb is not None for row in rows) else set())
    kept = list(rows)
    left_out: dict[str, int] = {}
    codes = {id(row): _code_version(row.path) for row in rows} if CODE not in free else {}
    for aspect in ASPECTS:
        if aspect in free or not kept:
            continue
        kinds = [codes[id(row)] if aspect == CODE else _aspect_value(aspect, row) for row in kept]
        most = _largest_group(kept, kinds)
        if len(set(kinds)) > 1:
            left_out[aspect] = sum(kind != most for kind in kinds)
        kept = [row for row, kind in zip(kept, kinds, strict=True) if kind == most]
    return ComparableRuns(tuple(kept), left_out)


def is_comparable(row: RunRow, other: RunRow, across: Collection[str] = ()) -> bool:
    """Returns whether two runs are comparable, except for the aspects that may differ."""
    free = set(across) | (
        {TOKENIZER} if row.results.val_bpb is not None and other.results.val_bpb is not None else set()
    )
    return all(
        aspect in free
        or (
            _code_version(row.path) == _code_version(other.path)
            if aspect == CODE
            else _aspect_value(aspect, row) == _aspect_value(aspect, other)
        )
        for aspect in ASPECTS
    )


def count_code_versions(paths: Collection[str]) -> int:
    """Returns the number of states of the program that these runs were made with."""
    return len({_code_version(path) for path in paths})


def _largest_group(rows: Collection[RunRow], kinds: Collection[Any]) -> Any:
    """Returns the largest group: most configurations with several seeds, then most configurations, then most runs.

    A configuration here consists of the settings in a run's name: experts, k, capacity, router and balance. Of equally
    large groups the newest is returned.
    """
    seeds: dict[Any, dict[Any, set[Any]]] = {}
    for row, kind in zip(rows, kinds, strict=True):
        shape = (row.expert, row.k, row.capacity, row.router, row.balance)
        seeds.setdefault(kind, {}).setdefault(shape, set()).add(row.seed)
    runs = Counter(kinds)
    newest = dict(zip(kinds, rows, strict=True))

    def richness(kind: Any) -> tuple[int, int, int, float]:
        repeated = sum(len(each) > 1 for each in seeds[kind].values())
        return (repeated, len(seeds[kind]), runs[kind], newest[kind].created or 0.0)

    return max(seeds, key=richness)


def _aspect_value(aspect: str, row: RunRow) -> Any:
    settings = row.settings
    if aspect == DATA:
        data = row.corpus_sha256 or (settings.get("data.name"), settings.get("data.path"))
        return (data, settings.get("task.name") or "causal_lm")
    if aspect == TOKENIZER:
        return (settings.get("data.tokenizer"), settings.get("data.bpe_vocab"))
    if aspect == VALIDATION:
        return tuple(settings.get(name) for name in HELD_OUT)
    if aspect == EVAL_CONTEXT:
        return eval_windows(settings)
    for budget in ("train.flops", "train.minutes"):
        if settings.get(budget) is not None:
            return (budget, settings[budget])
    return ("tokens", row.results.tokens)


def _code_version(path: str) -> tuple[Any, ...]:
    """Returns version, commit and uncommitted changes of the package, from meta.json; None for missing entries."""
    meta = Run(Path(path)).meta()
    packages, git = (part if isinstance(part := meta.get(key), dict) else {} for key in ("packages", "git"))
    changes = str(git.get("diff") or "").split("diff --git ")
    package = "".join(change for change in changes if change.startswith("a/moe_cli/"))
    return (str(packages.get("moe-cli")), str(git.get("commit")), package)
