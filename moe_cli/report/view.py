"""What a report shows: which rows, in which order, under which columns."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from moe_cli.config.expressions import Expression, all_hold, parse_expression
from moe_cli.errors import ConfigError
from moe_cli.report.aggregate import (
    OF_RUNS,
    PLAIN_KEYS,
    Row,
    best_rows,
    comparable,
    fold,
    is_countable,
    rows_of,
    score,
    settings_of,
    varying,
)
from moe_cli.report.baseline import sweep_baseline
from moe_cli.report.columns import CURVE, Column, column_named, heading_of, make_columns, result_columns
from moe_cli.report.load import CORPUS, SETTINGS
from moe_cli.report.recommend.choice import choose
from moe_cli.report.recommend.looks import Look, look_at
from moe_cli.runs.curves import validation_curve
from moe_cli.runs.folder import COMPLETED, Run


@dataclass(frozen=True)
class Question:
    """What the user asks: a condition, an order (`-name`: largest first), columns, a row per run or not."""

    condition: str | None = None
    sort: str | None = None
    columns: tuple[str, ...] = ()
    by_run: bool = False


@dataclass(frozen=True)
class View:
    """The answer.

    Attributes:
        frame: the rows asked for, in order, with every column; those without results last.
        rows: the same rows as plain values, as far as a table shows them.
        unfinished: the runs without results, but for those whose settings, tags and so on are not asked for.
        names: the columns asked for by name; empty: the usual ones.
        varying: the settings that tell the rows of the table apart.
        json_varying: the same for all rows of the frame.
        columns: of the table.
        best: the rows of the lowest loss.
        recommended: the rows that are recommended, see choice.py; of each data and budget one.
        pareto: others that no row is better than in everything: loss, FLOPs, speed and memory.
        baseline: the settings of what differences are taken to.
        pairs: how many pairs the verdicts allow for where differences are taken to the lowest; None: to the baseline.
        look: which look at these verdicts this is.
    """

    frame: pd.DataFrame
    rows: list[Row]
    unfinished: list[Row]
    names: tuple[str, ...]
    varying: list[str]
    json_varying: list[str]
    columns: list[Column]
    best: list[Row]
    pareto: list[Row]
    by_run: bool
    baseline: Mapping[str, Any]
    pairs: int | None
    look: Look
    recommended: list[Row]


def make_view(
    frame: pd.DataFrame,
    question: Question,
    elsewhere: pd.DataFrame | None = None,
    baseline: Mapping[str, Any] | None = None,
) -> View:
    """Folds a frame of runs and answers the question.

    Args:
        baseline: the settings of what differences are taken to; None: what the sweep declares, else the dense model.

    Raises:
        ConfigError: the question names a column that is not there, or cannot be read.
    """
    baseline = sweep_baseline(frame) if baseline is None else baseline
    # Means are over the runs asked for. Verdicts allow for all comparisons, also those of rows that are not asked for.
    parts = _parts(question.condition, [*map(str, frame.columns), *PLAIN_KEYS])
    on_runs = [part for part in parts if part.names & OF_RUNS and not question.by_run]
    on_rows = [part for part in parts if part not in on_runs]
    folded = fold(frame, question.by_run, elsewhere, baseline, on_runs)
    known = [str(name) for name in folded.columns]
    unmeasured = {*OF_RUNS, *SETTINGS, *CORPUS, *settings_of(known)}
    _check_conditions(parts, on_runs, known, unmeasured)
    rows = rows_of(folded)
    chosen, pairs = [index for index, row in enumerate(rows) if all_hold(on_rows, row)], folded.attrs["pairs"]
    shown = _shown([rows[index] for index in chosen], question.by_run)
    names = varying([row for row in shown if row["expert"] is not None], settings_of(known))
    usual = _columns(shown, names, question.by_run, baseline, pairs)
    asked = tuple(dict.fromkeys(column_named(name, [*known, CURVE], usual) for name in question.columns))
    if CURVE in asked:
        folded[CURVE] = pd.Series([validation_curve(Run(Path(row["path"]))).values for row in rows], dtype="object")
    chosen = _sorted(chosen, rows, _sort_key(question.sort, known, usual))
    ordered = [rows[index] for index in chosen]
    shown = _shown(ordered, question.by_run)
    return View(
        folded.iloc[chosen],
        shown,
        _unfinished(rows, [part for part in on_rows if part.names <= unmeasured]),
        asked,
        names,
        varying([row for row in ordered if row["expert"] is not None], settings_of(known)),
        make_columns(asked, pairs is not None) if asked else usual,
        best_rows(shown),
        [] if question.by_run else [row for row in shown if row["pareto"]],
        question.by_run,
        baseline,
        pairs,
        look_at(shown, baseline if pairs is None else None),
        [] if question.by_run else _recommended(ordered, frame, elsewhere, baseline, pairs),
    )


def _recommended(
    rows: list[Row], frame: pd.DataFrame, elsewhere: pd.DataFrame | None, baseline: Mapping[str, Any], pairs: int | None
) -> list[Row]:
    """What `choose` says of the rows of equal data and budget, where there are several."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if score(row) is not None and row["status"] == COMPLETED and is_countable(row):
            groups.setdefault(comparable(row), []).append(row)
    runs = {run["path"]: run for known in (frame, elsewhere) if known is not None for run in rows_of(known)}
    choices = [choose(group, runs, baseline, pairs is not None) for group in groups.values() if len(group) > 1]
    return [choice.row for choice in choices if choice.reason != "worse"]


def _unfinished(rows: list[Row], on_settings: Sequence[Expression]) -> list[Row]:
    """The rows without results for whose settings the conditions hold."""
    return [row for row in rows if row["status"] != COMPLETED and all_hold(on_settings, row)]


def _shown(rows: list[Row], by_run: bool) -> list[Row]:
    """The rows with results, or all where none has, or where every run is a row."""
    return [row for row in rows if row["status"] == COMPLETED or by_run] or rows


def _columns(
    rows: list[Row], names: list[str], by_run: bool, baseline: Mapping[str, Any], pairs: int | None
) -> list[Column]:
    folded = any(len(row["runs"]) > 1 for row in rows)
    identity = ["run"] if by_run or not (names or folded) else [] if names else ["expert", "k"]
    seeds = ["seed"] if by_run and len({row["seed"] for row in rows}) > 1 else []
    status = ["status"] if any(row["status"] != COMPLETED for row in rows) else []
    if status and not any(row["status"] == COMPLETED for row in rows):
        return make_columns(["run", "status", *names, *seeds, "reason"])
    return make_columns([*identity, *status, *names, *seeds]) + result_columns(rows, baseline, pairs is not None)


def select(frame: pd.DataFrame, condition: str | None) -> pd.DataFrame:
    """The runs of a frame that a condition holds for. Raises ConfigError when it cannot be read, or holds for none."""
    if condition is None:
        return frame
    known = [str(name) for name in frame.columns]
    expression = with_columns(parse_expression(condition), [*known, *PLAIN_KEYS])
    if together := sorted(expression.names.intersection(PLAIN_KEYS).difference(known)):
        raise ConfigError(f"--where chooses runs here, and {together[0]} is of a row of several: {condition}")
    expression.check(known)
    chosen = frame[[expression.holds(row) for row in rows_of(frame)]]
    if chosen.empty:
        raise ConfigError(f"no run matches --where '{condition}'.")
    return chosen


def _parts(condition: str | None, known: Sequence[str]) -> tuple[Expression, ...]:
    """The parts of a condition that `and` joins, on columns."""
    return () if condition is None else with_columns(parse_expression(condition), known).parts


def _check_conditions(
    parts: Sequence[Expression], on_runs: Sequence[Expression], known: Sequence[str], unmeasured: Set[str]
) -> None:
    """Raises ConfigError: a condition names no column, or joins what cannot be asked together."""
    for part in parts:
        part.check(known)
    for part in on_runs:
        _check_of_runs(part, unmeasured)


def _check_of_runs(condition: Expression, unmeasured: Set[str]) -> None:
    """Raises ConfigError: one condition on what the runs of a row differ in, and on what they come to together."""
    if together := sorted(condition.names - unmeasured):
        own = min(condition.names & OF_RUNS)
        raise ConfigError(
            f"a condition on runs ({own}) and rows ({together[0]}) at once: {condition.text}\n"
            "Join the two by 'and', or add --runs: a row per run."
        )


def _sort_key(sort: str | None, known: Sequence[str], shown: Sequence[Column]) -> str | None:
    """`--sort` with the name of its column; a leading minus stays."""
    if sort is None:
        return None
    if sort.removeprefix("-") == CURVE:
        raise ConfigError(f"'{CURVE}' cannot be sorted by: it is a line of values. Sort by val_loss, say.")
    return "-" * sort.startswith("-") + column_named(sort.removeprefix("-"), known, shown)


def _sorted(indices: list[int], rows: list[Row], sort: str | None) -> list[int]:
    """In order of a column, rows without a value last whichever way.

    By default the lowest loss first, rows of the same data and task together, without results at the very end.
    """
    if sort is None:
        by_score = [index for index in indices if score(rows[index]) is not None]
        by_score.sort(key=lambda index: score(rows[index]) or 0.0)
        kinds = list(dict.fromkeys(comparable(rows[index])[0] for index in by_score))
        by_score.sort(key=lambda index: kinds.index(comparable(rows[index])[0]))
        return by_score + [index for index in indices if score(rows[index]) is None]
    name = sort.removeprefix("-")
    there = [index for index in indices if rows[index][name] is not None]
    there.sort(key=lambda index: _order(rows[index][name]), reverse=sort.startswith("-"))
    return there + [index for index in indices if rows[index][name] is None]


def _order(value: object) -> tuple[bool, object]:
    """Numbers before text, so that a column that holds both has an order."""
    if isinstance(value, list):
        return (True, ",".join(map(str, value)))
    return (isinstance(value, str), value)


def with_columns(condition: Expression, known: Sequence[str]) -> Expression:
    """The condition with the name of the column for each heading in it, such as max_violation for MaxVio.

    Raises:
        ConfigError: several columns have such a heading.
    """
    columns: dict[str, str] = {}
    for name in sorted(condition.names - set(known)):
        under = [column for column in dict.fromkeys(known) if heading_of(column) == name]
        if len(under) > 1:
            raise ConfigError(
                f"no column '{name}' in '{condition.text}'. '{name}' is a heading: write {' or '.join(under)}"
            )
        if under:
            columns[name] = under[0]
    return condition.renamed(columns)
