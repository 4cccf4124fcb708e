"""The command that would make a recommendation surer: more experts where the best is at the edge, and more seeds."""

import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from moe_cli.config.parse import show
from moe_cli.errors import MoeError
from moe_cli.report.baseline import differences_to, resolved_point
from moe_cli.report.fold import EXECUTION, Row, applies

FEWEST_SEEDS, MOST_SEEDS = 3, 20


@dataclass(frozen=True)
class NextSweep:
    """A command, and the configurations in it: these numbers of experts, the dense model among them, this k, so many seeds."""

    command: str
    experts: tuple[int, ...]
    k: int
    seeds: int


def next_sweep(best: Row, rows: Sequence[Row], others: Collection[int], more: int | None) -> NextSweep | None:
    """`moe sweep` with the dense model, the best and its neighbours, and enough seeds; the rest of the settings is the best's.

    None where this version cannot make the best's settings. `others` are numbers of experts to be run too.
    """
    settings = _settings(best)
    if settings is None:
        return None
    experts = sorted({row["expert"] for row in rows if row["expert"]})
    wanted = {1, best["expert"], *others}
    if best["expert"] > 1:
        wanted |= {each for each in experts if each != 1 and best["expert"] / 2 <= each <= best["expert"] * 2}
        if best["expert"] == experts[-1]:
            wanted.add(2 * best["expert"])
    else:
        wanted |= {each for each in experts if each > 1} or {8}
    done = max((len(row["seeds"]) for row in rows), default=1)
    seeds = min(MOST_SEEDS, max(FEWEST_SEEDS, done + (more or (2 if done >= FEWEST_SEEDS else 0))))
    words: dict[str, Any] = {**settings, "expert": ",".join(map(str, sorted(wanted)))}
    condition = ""
    k = best["k"] if best["expert"] > 1 else next((row["k"] for row in rows if row["expert"] != 1 and row["k"]), 2)
    words["k"] = k = k or 2
    if k != 1:  # a dense model has k=1
        condition = f" --where {shlex.quote('expert == 1 or k != 1')}"
        words["k"] = f"1,{k}"
    name = best["group"] if best["group"] not in (None, "runs", "sweep") and best["group"].isprintable() else ""
    command = f"moe sweep {_written(words)} --seeds {seeds}{condition}" + (
        f" --name {shlex.quote(name)}" if name else ""
    )
    return NextSweep(command, tuple(sorted(wanted)), k, seeds)


def _settings(row: Row) -> dict[str, Any] | None:
    """How the row differs from the defaults; None where this version cannot make it."""
    from moe_cli.config.load import Composer

    words: dict[str, Any] = {"expert": row["expert"] if row["expert"] > 1 else 8}
    if row["expert"] > 1:
        words["k"] = row["k"]
    own = {name: value for name, value in row.items()
           if (("." in name and name not in EXECUTION) or name in ("capacity", "drop", "match"))
           and applies(name, row)}  # fmt: skip
    try:
        composer = Composer()
        for group in ("router", "balance"):
            if row["expert"] > 1 and row[group] and "+" not in str(row[group]):
                words[group] = row[group]
        default = resolved_point(composer, words)
        for group in ("model", "data", "optim"):
            if own.get(f"{group}.name") not in (None, default.get(f"{group}.name")):
                words[group] = own[f"{group}.name"]
        words.update((name, own[name]) for name in ("data.path", "data.vocab_size") if own.get(name))
        words.update(differences_to(resolved_point(composer, words), own, with_null=False))
        words.update(differences_to(resolved_point(composer, words), own, with_null=True))
        resolved_point(composer, words)
        for group in ("router", "balance"):
            bare = {name: value for name, value in words.items() if name != group}
            if group in words and resolved_point(composer, bare) == resolved_point(composer, words):
                words = bare
    except MoeError:
        return None
    return words


def _written(words: dict[str, Any]) -> str:
    return " ".join(
        shlex.quote(f"{key}={value if key in ('expert', 'k') else show(value)}") for key, value in words.items()
    )
