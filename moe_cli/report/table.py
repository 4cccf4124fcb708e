"""The table of a report: which configurations, in which order, under which columns."""

import re
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path

from moe_cli.config.expressions import Expression, parse_expression
from moe_cli.config.ranges import format_setting
from moe_cli.errors import ConfigError
from moe_cli.formatting import sanitise
from moe_cli.report.aggregate import Aggregate, aggregate_seeds
from moe_cli.report.baseline import sweep_baseline
from moe_cli.report.columns import CURVE, Column, column_named, heading_of, make_columns, result_columns
from moe_cli.report.configuration import JSON_KEYS, Configuration, best_rows, group_comparable
from moe_cli.report.load import without_garbage_collection
from moe_cli.report.looks import Look
from moe_cli.report.metric_plugins import add_metrics
from moe_cli.report.price import Pricing
from moe_cli.report.recommend.choice import choose
from moe_cli.report.run_row import (
    CORPUS,
    RUN_LEVEL_COLUMNS,
    SETTINGS,
    Cell,
    RunRow,
    Settings,
    column_names,
    matches,
    setting_applies,
    settings_of,
    varying_settings,
)
from moe_cli.runs.curves import validation_curve
from moe_cli.runs.folder import DONE, Run


@dataclass(frozen=True)
class ReportQuery:
    """The options of a report: a condition, an order (`-name`: largest first), columns, a row per run or not.

    Attributes:
        plot: the columns of a chart, as Y:X[:SERIES].
    """

    condition: str | None = None
    sort: str | None = None
    columns: tuple[str, ...] = ()
    by_run: bool = False
    plot: str | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """Returns the texts that name columns."""
        return tuple(filter(None, (self.condition, self.sort, self.plot, *self.columns)))


@dataclass(frozen=True)
class ReportTable:
    """The rows and columns that every renderer shows.

    Attributes:
        all_rows: the configurations that fulfil the condition, in order; those without results last.
        rows: the rows of a displayed table: only rows with results, if any exist.
        unfinished: the runs without results, except those whose settings do not fulfil the condition.
        names: the columns that the query names; empty means the default columns.
        varying: the settings that differ among `rows`.
        all_varying: the settings that differ among `all_rows`.
        best: the rows of the lowest loss.
        recommended: the recommended rows, see recommend/choice.py: one for each data and budget.
        pareto: the rows of the Pareto front in loss, FLOPs, speed and memory.
        baseline: the settings of the baseline of differences.
        aggregate: all configurations, and the comparisons that their verdicts are based on.
    """

    all_rows: list[Configuration]
    rows: list[Configuration]
    unfinished: list[Configuration]
    names: tuple[str, ...]
    varying: list[str]
    all_varying: list[str]
    columns: list[Column]
    best: list[Configuration]
    recommended: list[Configuration]
    pareto: list[Configuration]
    by_run: bool
    baseline: Settings
    aggregate: Aggregate

    @property
    def pairs(self) -> int | None:
        """Returns the number of pairs in the correction; None means that differences are to a baseline."""
        return self.aggregate.pairs

    @property
    def look(self) -> Look:
        """Returns the number of this look at the verdicts."""
        return self.aggregate.look

    def value(self, row: Configuration, name: str) -> Cell:
        """Returns the value of a column, the validation curve included."""
        return validation_curve(Run(Path(row.path))).values if name == CURVE else row.get(name)

    def label(self, row: Configuration, names: Sequence[str] | None = None) -> str:
        """Returns the settings that tell the row apart, or those that are named; the run if there are none."""
        parts = [
            _word(name, row)
            for name in (self.varying if names is None else names)
            if setting_applies(name, row.settings)
        ]
        if self.by_run or not parts:
            parts = [
                row.run
                if len(row.runs) <= 1
                else f"expert={format_setting(row.expert)} k={format_setting(row.get('k'))}"
            ]
        if row.is_dense:
            parts.append("(dense)")
        return sanitise(" ".join(parts))

    def _repr_html_(self) -> str:
        """Returns the table of `moe report` for a notebook."""
        from moe_cli.report.render.notebook import table_html

        return table_html(self)


def _word(name: str, row: Configuration) -> str:
    value = row.get(name)
    return (
        "dropless" if name == "capacity" and value is None else f"{name.removesuffix('.name')}={format_setting(value)}"
    )


def build_table(
    runs: Sequence[RunRow],
    query: ReportQuery,
    extra_baselines: Sequence[RunRow] = (),
    baseline: Settings | None = None,
    pricing: Pricing | None = None,
) -> ReportTable:
    """Aggregates runs over seeds and evaluates a query.

    Args:
        extra_baselines: runs that may serve as baselines, but are not shown.
        baseline: the settings of the baseline; None means the one that the sweep declares, else the dense model.
        pricing: how price tags are determined; None means by the runs alone.

    Raises:
        ConfigError: the query names a missing column, or cannot be parsed.
    """
    with without_garbage_collection():
        base = sweep_baseline(runs) if baseline is None else baseline
        return _build_table(runs, query, extra_baselines, base, pricing)


def _build_table(
    runs: Sequence[RunRow],
    query: ReportQuery,
    extra_baselines: Sequence[RunRow],
    baseline: Settings,
    pricing: Pricing | None,
) -> ReportTable:
    runs = add_metrics(runs, query.texts)
    # Means are over the runs that match. Verdicts allow for all comparisons, also those of rows that do not match.
    parts = _parts(query.condition, [*column_names(runs), *JSON_KEYS])
    on_runs = [part for part in parts if part.names & RUN_LEVEL_COLUMNS and not query.by_run]
    on_rows = [part for part in parts if part not in on_runs]
    aggregate = aggregate_seeds(runs, query.by_run, extra_baselines, baseline, on_runs, pricing)
    known, rows = aggregate.columns, aggregate.configurations
    settings = settings_of(known)
    unmeasured = {*RUN_LEVEL_COLUMNS, *SETTINGS, *CORPUS, *settings}
    _check_conditions(parts, on_runs, known, unmeasured)
    matching = [row for row in rows if matches(on_rows, row)]
    shown = _with_results(matching, query.by_run)
    varying = _varying(shown, settings)
    usual = _usual_columns(shown, varying, query.by_run, baseline, aggregate.pairs)
    names = tuple(dict.fromkeys(column_named(name, [*known, CURVE], usual) for name in query.columns))
    ordered = _sorted(matching, _sort_key(query.sort, known, usual))
    shown = _with_results(ordered, query.by_run)
    to_lowest = aggregate.pairs is not None
    return ReportTable(
        all_rows=ordered,
        rows=shown,
        unfinished=_unfinished(rows, [part for part in on_rows if part.names <= unmeasured]),
        names=names,
        varying=varying,
        all_varying=varying if len(shown) == len(ordered) else _varying(ordered, settings),
        columns=make_columns(names, to_lowest) if names else usual,
        best=best_rows(shown),
        recommended=[] if query.by_run else _recommended(ordered, baseline, to_lowest, aggregate.look),
        pareto=[] if query.by_run else [row for row in shown if row.pareto],
        by_run=query.by_run,
        baseline=baseline,
        aggregate=aggregate,
    )


def _varying(rows: Sequence[Configuration], settings: Sequence[str]) -> list[str]:
    return varying_settings([row.settings for row in rows if row.expert is not None], settings)


def _recommended(rows: Sequence[Configuration], baseline: Settings, to_lowest: bool, look: Look) -> list[Configuration]:
    """Returns the recommended row of each group of equal data and budget that has several."""
    candidates = [row for row in rows if row.primary_loss is not None and row.is_complete and row.is_countable]
    groups = [[candidates[place] for place in group] for group in group_comparable(candidates).values()]
    choices = [choose(group, baseline, to_lowest, look) for group in groups if len(group) > 1]
    return [choice.row for choice in choices if choice.reason != "worse"]


def _unfinished(rows: Sequence[Configuration], on_settings: Sequence[Expression]) -> list[Configuration]:
    """Returns the rows without results for whose settings the conditions hold."""
    return [row for row in rows if row.status not in DONE and matches(on_settings, row)]


def _with_results(rows: list[Configuration], by_run: bool) -> list[Configuration]:
    """Returns the rows with results, or all where none has, or where every run is a row."""
    return [row for row in rows if row.is_complete or by_run] or rows


def _usual_columns(
    rows: Sequence[Configuration], varying: Sequence[str], by_run: bool, baseline: Settings, pairs: int | None
) -> list[Column]:
    several_seeds = any(len(row.runs) > 1 for row in rows)
    identity = ["run"] if by_run or not (varying or several_seeds) else [] if varying else ["expert", "k"]
    seeds = ["seed"] if by_run and len({row.seed for row in rows}) > 1 else []
    status = ["status"] if any(not row.is_complete for row in rows) else []
    if status and not any(row.is_complete for row in rows):
        return make_columns(["run", "status", *varying, *seeds, "reason"])
    return make_columns([*identity, *status, *varying, *seeds]) + result_columns(rows, baseline, pairs is not None)


def select_runs(runs: Sequence[RunRow], condition: str | None) -> list[RunRow]:
    """Returns the runs that a condition holds for. Raises ConfigError when it cannot be read, or holds for none."""
    if condition is None:
        return list(runs)
    known = column_names(runs)
    expression = parse_condition(condition, [*known, *JSON_KEYS])
    if together := sorted(expression.names.intersection(JSON_KEYS).difference(known)):
        raise ConfigError(f"--where chooses runs here, and {together[0]} is of a row of several: {condition}")
    expression.check(known)
    matching = [run for run in runs if matches([expression], run)]
    if not matching:
        raise ConfigError(f"no run matches --where '{condition}'.")
    return matching


def _parts(condition: str | None, known: Sequence[str]) -> tuple[Expression, ...]:
    """Returns the parts of a condition that `and` joins, on columns."""
    return () if condition is None else parse_condition(condition, known).parts


def _check_conditions(
    parts: Sequence[Expression], on_runs: Sequence[Expression], known: Sequence[str], unmeasured: Set[str]
) -> None:
    """Raises ConfigError: a condition names no column, or one part of it is on runs and on rows."""
    for part in parts:
        part.check(known)
    for part in on_runs:
        if together := sorted(part.names - unmeasured):
            own = min(part.names & RUN_LEVEL_COLUMNS)
            raise ConfigError(
                f"a condition on runs ({own}) and rows ({together[0]}) at once: {part.text}\n"
                "Join the two by 'and', or add --runs: a row per run."
            )


def _sort_key(sort: str | None, known: Sequence[str], shown: Sequence[Column]) -> str | None:
    """Returns `--sort` with the name of its column; a leading minus is kept."""
    if sort is None:
        return None
    if sort.removeprefix("-") == CURVE:
        raise ConfigError(f"'{CURVE}' cannot be sorted by: it is a line of values. Sort by val_loss, say.")
    return "-" * sort.startswith("-") + column_named(sort.removeprefix("-"), known, shown)


def _sorted(rows: Sequence[Configuration], sort: str | None) -> list[Configuration]:
    """Sorts rows by a column. Rows without a value are last in both directions.

    The default order is the lowest loss first, with rows of the same data and task together, and rows without results
    last.
    """
    if sort is None:
        return _by_loss(rows)
    name = sort.removeprefix("-")
    with_value = [(value, row) for row in rows if (value := row.get(name)) is not None]
    with_value.sort(key=lambda pair: _order(pair[0]), reverse=sort.startswith("-"))
    return [row for _, row in with_value] + [row for row in rows if row.get(name) is None]


def _by_loss(rows: Sequence[Configuration]) -> list[Configuration]:
    scored = sorted((loss, place) for place, row in enumerate(rows) if (loss := row.primary_loss) is not None)
    by_data: dict[object, list[Configuration]] = {}
    for _, place in scored:
        by_data.setdefault(rows[place].comparison_key[0], []).append(rows[place])
    return [row for group in by_data.values() for row in group] + [row for row in rows if row.primary_loss is None]


def _order(value: Cell) -> tuple[bool, Cell]:
    """Numbers before text, so that a column that holds both has an order."""
    if isinstance(value, list):
        return (True, ",".join(map(str, value)))
    return (isinstance(value, str), value)


def parse_condition(text: str, known: Sequence[str]) -> Expression:
    """Returns the condition on columns. Headings may stand for columns: MaxVio > 1 and val loss < 2.

    Raises:
        ConfigError: the condition cannot be read, or several columns have a heading in it.
    """
    by_heading: dict[str, list[str]] = {}
    for name in dict.fromkeys(known):
        by_heading.setdefault(heading_of(name), []).append(name)

    def column(heading: str) -> str:
        under = by_heading[heading]
        if len(under) > 1:
            raise ConfigError(
                f"no column '{heading}' in '{text}'. '{heading}' is a heading: write {' or '.join(under)}"
            )
        return under[0]

    # Headings such as bits/byte and val loss are no names in a condition, so their columns are written first.
    phrases = sorted((heading for heading in by_heading if not heading.isidentifier()), key=len, reverse=True)
    phrases = [heading for heading in phrases if heading not in known]
    quoted, phrase = r"\"[^\"]*\"|'[^']*'", "|".join(map(re.escape, phrases))
    pattern = rf"{quoted}|`([^`]*)`|(?<![\w.])({phrase})(?![\w.])" if phrases else quoted

    def written(found: re.Match[str]) -> str:
        heading = next(filter(None, found.groups()), "")
        return column(heading) if heading in by_heading else heading or found[0]

    condition = replace(parse_expression(re.sub(pattern, written, text)), text=text)
    return condition.renamed({name: column(name) for name in condition.names - set(known) if name in by_heading})
