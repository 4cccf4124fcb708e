"""A report as the plain values that the page reads: rows and their runs, quantities to draw, settings."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

from moe_cli.files.reading import number_in
from moe_cli.formatting import first_line, sanitise
from moe_cli.metrics import BY_KEY
from moe_cli.report.columns import Column, score_column, truncate_left
from moe_cli.report.configuration import Configuration
from moe_cli.report.html.curves_and_experts import curve_content, expert_content
from moe_cli.report.html.downsample import rounded
from moe_cli.report.html.section import Section
from moe_cli.report.pareto import as_cost, fronts_of, tolerance
from moe_cli.report.render.captions import footer_lines, header_lines
from moe_cli.report.render.tables import BEST, PARETO, RECOMMENDED, mark_of
from moe_cli.report.render.terminal_chart import DERIVED, make_axis, number_of
from moe_cli.report.run_row import TOP_LEVEL, Cell, RunRow, Value, setting_applies, settings_of
from moe_cli.report.table import ReportTable

LINE_WIDTH = 10_000  # lines are the page's to wrap
MAX_UNFINISHED = 100
MAX_TEXT_LENGTH = 300
# With more varying settings than this, the legend leaves out the values that most rows have.
MAX_VARYING = 3
# The quantities of the axes, see `moe_cli.metrics`.
QUANTITIES = (
    "sparsity",
    "flops_per_token",
    "train_flops",
    "model_flops",
    "active_params",
    "params",
    "tokens_per_second",
    "peak_memory_bytes",
    "seconds",
    "tokens",
    "val_bpb",
    "val_loss",
    "max_violation",
    "dead_experts",
    "dropped_fraction",
)


@dataclass(frozen=True)
class Source:
    """The runs of a report and its origin.

    Attributes:
        runs: all runs that were selected.
        extra_baselines: other runs that may serve as baselines.
        program: the program that made the report, with its version.
    """

    runs: Sequence[RunRow]
    extra_baselines: Sequence[RunRow]
    title: str
    program: str


def page_content(table: ReportTable, source: Source, sections: Sequence[Section]) -> dict[str, Any]:
    """Returns all content of the page."""
    runs = [[row] if table.by_run else table.aggregate.single_runs(row) for row in table.rows]
    score = score_column(table.rows)
    columns = _columns(table, score)
    curves, notes = curve_content(runs)
    experts, more = expert_content(runs)
    settings = _settings(table)
    own_settings = settings.pop("of")
    quantities = _quantities(table)
    return {
        "title": sanitise(source.title),
        "generated": f"made by {source.program}, {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC",
        "by_run": table.by_run,
        "score": score,
        "above": _above(table, source.title),
        "below": _lines(footer_lines(table, LINE_WIDTH)),
        "notes": [*notes, *more],
        "columns": [
            {"name": column.name, "heading": sanitise(column.heading), "left": column.left} for column in columns
        ],
        "rows": _rows(table, columns, runs, own_settings, quantities),
        "quantities": quantities,
        "fronts": _fronts(table, quantities),
        "settings": settings,
        "curves": curves,
        "experts": experts,
        "sections": [section.content() for section in (*sections, *_unfinished(table))],
    }


def _above(table: ReportTable, title: str) -> list[str]:
    """Returns the lines above the table; the title, which the first begins with, is the page's heading already."""
    first, *others = _lines(header_lines(table, title, LINE_WIDTH))
    return [line for line in (first.removeprefix(truncate_left(sanitise(title))).lstrip(), *others) if line]


def _lines(lines: Sequence[Any]) -> list[str]:
    return [line.plain for line in lines]


def _columns(table: ReportTable, score: str) -> list[Column]:
    """Returns the columns: settings, score and verdict come before sizes and costs, so that a phone shows them."""
    if table.names:
        return table.columns
    answers = [column for column in table.columns if column.name in (score, "vs_baseline", "verdict")]
    others = [column for column in table.columns if column not in answers]
    settings = [column for column in others if column.name not in BY_KEY]
    return [*settings, *answers, *(column for column in others if column not in settings)]


def _rows(
    table: ReportTable,
    columns: Sequence[Column],
    runs: Sequence[Sequence[Configuration]],
    own_settings: Sequence[Mapping[str, Value]],
    quantities: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    content = []
    for index, (row, members) in enumerate(zip(table.rows, runs, strict=True)):
        cells = [sanitise(column.write(row)) for column in columns]
        label = table.label(row)[:MAX_TEXT_LENGTH]
        mark = mark_of(row, table)
        parts = [label, *cells, *(f"{run.run} {' '.join(run.tags)}" for run in members), row.status]
        content.append(
            {
                "index": index,
                "label": label,
                "short_label": short_label(table, row)[:MAX_TEXT_LENGTH],
                "cells": cells,
                "sort_keys": [_sort_key(row, column) for column in columns],
                "best": mark in (BEST, RECOMMENDED),
                "mark": mark if mark != PARETO else "",
                "pareto": bool(row.pareto),
                "text": sanitise(" ".join(parts)).lower(),
                "flops": _plain(row.results.flops_per_token),
                "values": {quantity["name"]: _plain(_quantity(row, quantity["name"])) for quantity in quantities},
                "interval": {"val_bpb": _plain(row.val_bpb_interval), "val_loss": _plain(row.val_loss_interval)},
                "settings": own_settings[index],
                "runs": [_run(run, columns) for run in members],
            }
        )
    return content


def short_label(table: ReportTable, row: Configuration) -> str:
    """Returns the label without settings that have the value of most rows; the whole label where few settings vary."""
    common = {name: Counter(other.get(name) for other in table.rows).most_common(1)[0][0] for name in table.varying}
    names = [name for name in table.varying if name in ("expert", "k") or row.get(name) != common[name]]
    return table.label(row, names) if len(table.varying) > MAX_VARYING and names else table.label(row)


def _run(run: Configuration, columns: Sequence[Column]) -> dict[str, Any]:
    return {
        "id": sanitise(run.run),
        "seed": _plain(run.seed),
        "tags": [sanitise(tag) for tag in run.tags],
        "cells": [sanitise(column.write(run)) for column in columns],
    }


def _sort_key(row: Configuration, column: Column) -> Value:
    """Returns the value that a column is sorted by; its text if the value is neither a number nor a text."""
    value = row.get(column.name)
    if value is None or column.write(row) == "-":
        return None
    return _plain(value) if isinstance(value, str | int | float) else sanitise(column.write(row))


def _plain(value: Cell) -> Value:
    if isinstance(value, str):
        return sanitise(value)[:MAX_TEXT_LENGTH]
    if isinstance(value, bool) or (isinstance(value, int) and abs(value) < 2**53):
        return value
    return rounded(float(value), 7) if isinstance(value, int | float) else None


def _quantity(row: Configuration, name: str) -> Cell:
    if name in DERIVED:
        return DERIVED[name](row)
    return row.get(name) if setting_applies(name, row.settings) else None


def _quantities(table: ReportTable) -> list[dict[str, Any]]:
    """Returns the metrics that some row has, and the settings that vary in number."""
    metrics = [BY_KEY[name] for name in QUANTITIES if any(_quantity(row, name) is not None for row in table.rows)]
    known = [(metric.key, metric.title, metric.log_scale, metric.direction) for metric in metrics]
    known += [
        (name, sanitise(name), make_axis(values).log, 0) for name in table.varying if (values := _numbers(table, name))
    ]
    return [{"name": name, "heading": text, "log": log, "better": way} for name, text, log, way in known]


def _numbers(table: ReportTable, name: str) -> list[float]:
    """Returns the values of a setting if all existing ones are numbers; empty for other settings."""
    values = [value for row in table.rows if (value := _quantity(row, name)) is not None]
    numbers = [number for value in values if (number := number_in(value)) is not None]
    return numbers if len(numbers) == len(values) else []


def _fronts(table: ReportTable, quantities: Sequence[Mapping[str, Any]]) -> dict[str, list[list[int]]]:
    """Returns the rows on the Pareto front by "X|Y", for each pair of quantities with a better side.

    The rows are a list for each group of comparable rows, sorted by X.
    """
    directed = [(quantity["name"], quantity["better"]) for quantity in quantities if quantity["better"]]
    found = {}
    for (x, x_better), (y, y_better) in permutations(directed, 2):
        points = [(place, number_of(row, x), number_of(row, y)) for place, row in enumerate(table.rows)]
        known = [(place, a, b) for place, a, b in points if a is not None and b is not None]
        costs = [(as_cost(a, x_better), as_cost(b, y_better)) for _, a, b in known]
        marks = fronts_of([table.rows[place] for place, _, _ in known], costs, (tolerance(x), tolerance(y)))
        groups: dict[object, list[int]] = {}
        for (place, _, _), mark in sorted(
            zip(known, marks, strict=True), key=lambda entry: (entry[0][1], -entry[0][2])
        ):
            if mark:
                groups.setdefault(table.rows[place].comparison_key, []).append(place)
        found[f"{x}|{y}"] = list(groups.values())
    return found


def _settings(table: ReportTable) -> dict[str, Any]:
    """Returns the settings that are the same for all rows, and those of each row alone."""
    names = settings_of(table.aggregate.columns)
    applicable = [
        {name: _plain(row.get(name)) for name in names if setting_applies(name, row.settings)} for row in table.rows
    ]
    same = {
        name: applicable[0].get(name)
        for name in names
        if applicable and len({repr(one.get(name)) for one in applicable}) == 1
    }
    own = [{name: value for name, value in one.items() if name not in same} for one in applicable]
    return {
        "names": [sanitise(name) for name in names],
        "same": {sanitise(name): value for name, value in same.items() if value is not None or name in TOP_LEVEL},
        "of": [{sanitise(name): value for name, value in one.items()} for one in own],
    }


def _unfinished(table: ReportTable) -> list[Section]:
    """Returns the section that lists runs without results, with the reasons; empty if there are none."""
    if not table.unfinished:
        return []
    rows = [
        (row.run, row.status, first_line(row.reason, "-")[:MAX_TEXT_LENGTH])
        for row in table.unfinished[:MAX_UNFINISHED]
    ]
    more = len(table.unfinished) - len(rows)
    return [
        Section(
            "unfinished",
            "Without results",
            (f"and {more} more",) if more else (),
            ("run", "status", "why"),
            tuple(rows),
        )
    ]
