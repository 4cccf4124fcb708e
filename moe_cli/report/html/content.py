"""A view as the plain values that the page reads: rows and their runs, quantities to draw, settings."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moe_cli.config.build import show
from moe_cli.formatting import printable
from moe_cli.metrics import BY_KEY
from moe_cli.report.aggregate import TOP_LEVEL, Row, applies, comparable, fold, front_of, rows_of, settings_of
from moe_cli.report.aggregate import score as score_of
from moe_cli.report.columns import Column, never_leave, shorten
from moe_cli.report.html.details import curve_content, expert_content
from moe_cli.report.html.sections import Section
from moe_cli.report.html.thin import rounded
from moe_cli.report.pareto import tolerance
from moe_cli.report.render.captions import above, below
from moe_cli.report.render.charts import DERIVED, make_axis
from moe_cli.report.render.tables import BEST, PARETO, RECOMMENDED, mark_of
from moe_cli.report.view import View

if TYPE_CHECKING:
    import pandas as pd

LINE_WIDTH = 10_000  # lines are the page's to wrap
MOST_UNFINISHED = 100
LONGEST_TEXT = 300
# What can be drawn against what, see `moe_cli.metrics`.
QUANTITIES = ("sparsity", "flops_per_token", "train_flops", "model_flops", "active_params", "params",
              "tokens_per_second", "peak_memory_bytes", "seconds", "tokens", "val_bpb", "val_loss", "max_violation",
              "dead_experts", "dropped_fraction")  # fmt: skip


@dataclass(frozen=True)
class Source:
    """What a view was made of.

    Attributes:
        frame: the runs.
        elsewhere: runs outside the frame that may serve as baselines.
        title: of the report.
        program: that made it, with its version.
    """

    frame: "pd.DataFrame"
    elsewhere: "pd.DataFrame | None"
    title: str
    program: str


def page_content(view: View, source: Source, sections: Sequence[Section]) -> dict[str, Any]:
    """Everything that the page shows."""
    runs = _runs_of(view, source)
    score = never_leave(view.rows)[1] if view.rows else "val_bpb"
    curves, notes = curve_content(runs)
    experts, more = expert_content(runs)
    settings = _settings(view)
    return {
        "title": printable(source.title), "made": f"made by {source.program}, {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC",
        "by_run": view.by_run, "score": score, "above": _above(view, source.title),
        "below": _lines(below(view, LINE_WIDTH)), "notes": [*notes, *more],
        "columns": [{"name": column.name, "heading": printable(column.heading), "left": column.left}
                    for column in view.columns],
        "rows": _rows(view, runs, settings), "quantities": _quantities(view),
        "settings": settings, "curves": curves, "experts": experts,
        "sections": [each.content() for each in (*sections, *_unfinished(view))],
    }  # fmt: skip


def _above(view: View, title: str) -> list[str]:
    """The lines above the table; the title, which the first begins with, is the page's heading already."""
    first, *others = _lines(above(view, title, LINE_WIDTH))
    return [line for line in (first.removeprefix(shorten(printable(title))).lstrip(), *others) if line]


def _lines(lines: Sequence[Any]) -> list[str]:
    return [line.plain for line in lines]


def _runs_of(view: View, source: Source) -> list[list[Row]]:
    """The runs that each row of the view is made of, as rows of their own."""
    if view.by_run:
        return [[row] for row in view.rows]
    single = sorted(
        rows_of(fold(source.frame, True, source.elsewhere, view.baseline)), key=lambda row: row["created"] or 0
    )
    by_path = {row["path"]: row for row in single}
    return [[by_path[path] for path in row["paths"] if path in by_path] for row in view.rows]


def _rows(view: View, runs: Sequence[Sequence[Row]], settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    leagues: dict[Any, int] = {}
    content = []
    quantities, by_flops = _quantities(view), _front_by_flops(view)
    for index, (row, members) in enumerate(zip(view.rows, runs, strict=True)):
        cells = [printable(column.write(row)) for column in view.columns]
        label = label_of(row, view)
        mark = mark_of(row, view)
        words = [label, *cells, *(f"{run['run']} {' '.join(run['tags'])}" for run in members), str(row["status"])]
        content.append({
            "index": index, "label": label, "cells": cells,
            "values": [_sortable(row, column) for column in view.columns],
            "best": mark in (BEST, RECOMMENDED), "mark": mark if mark != PARETO else "", "front": bool(row.get("pareto")),
            "front_by_flops": index in by_flops,
            "league": leagues.setdefault(comparable(row), len(leagues)),
            "text": printable(" ".join(words)).lower(), "flops": _value(row["flops_per_token"]),
            "at": {each["name"]: _value(_quantity(row, each["name"])) for each in quantities},
            "half": {name: _value(row[f"{name}_interval"]) for name in ("val_bpb", "val_loss")},
            "settings": settings["of"][index],
            "runs": [_run(run, view) for run in members],
        })  # fmt: skip
    return content


def _run(run: Row, view: View) -> dict[str, Any]:
    return {
        "id": printable(run["run"]), "seed": _value(run["seed"]), "tags": [printable(tag) for tag in run["tags"]],
        "cells": [printable(column.write(run)) for column in view.columns],
    }  # fmt: skip


def label_of(row: Row, view: View) -> str:
    """The settings that tell the row apart, or the run where none does."""
    words = [_word(name, row) for name in view.varying if applies(name, row)]
    if view.by_run or not words:
        words = [row["run"] if len(row["runs"]) <= 1 else f"expert={show(row['expert'])} k={show(row['k'])}"]
    if row["expert"] == 1:
        words.append("(dense)")
    return printable(" ".join(words))[:LONGEST_TEXT]


def _word(name: str, row: Row) -> str:
    dropless = name == "capacity" and row[name] is None
    return "dropless" if dropless else f"{name.removesuffix('.name')}={show(row[name])}"


def _sortable(row: Row, column: Column) -> float | int | str | None:
    """What a column is sorted by: the value, or what is written of it where that is no number or text."""
    value = row.get(column.name)
    if value is None or column.write(row) == "-":
        return None
    return _value(value) if isinstance(value, str | int | float) else printable(column.write(row))


def _value(value: Any) -> float | int | str | bool | None:
    if isinstance(value, str):
        return printable(value)[:LONGEST_TEXT]
    if isinstance(value, bool) or (isinstance(value, int) and abs(value) < 2**53):
        return value
    return rounded(float(value), 7) if isinstance(value, int | float) else None


def _quantity(row: Row, name: str) -> Any:
    if name in DERIVED:
        return DERIVED[name](row)
    return row.get(name) if applies(name, row) else None


def _quantities(view: View) -> list[dict[str, Any]]:
    """Those that some row has, and the settings that vary in number."""
    metrics = [BY_KEY[name] for name in QUANTITIES if any(_quantity(row, name) is not None for row in view.rows)]
    known = [(metric.key, metric.title, metric.log_scale, metric.direction) for metric in metrics]
    known += [
        (name, printable(name), make_axis(values).log, 0) for name in view.varying if (values := _numbers(view, name))
    ]
    return [{"name": name, "heading": text, "log": log, "better": way, "same": tolerance(name)}
            for name, text, log, way in known]  # fmt: skip


def _numbers(view: View, name: str) -> list[float]:
    """The values of a setting where all that are there are numbers; empty for other settings."""
    values = [value for row in view.rows if (value := _quantity(row, name)) is not None]
    numbers = all(
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) for value in values
    )
    return values if numbers else []


def _front_by_flops(view: View) -> set[int]:
    """The rows on the Pareto front of score and training FLOPs per token, by their places."""
    places = [place for place, row in enumerate(view.rows) if score_of(row) is not None and row["flops_per_token"]]
    marks = front_of([view.rows[place] for place in places], {"flops_per_token": -1})
    return {place for place, mark in zip(places, marks, strict=True) if mark}


def _settings(view: View) -> dict[str, Any]:
    """What is the same for all rows, and what each has of its own."""
    names = settings_of(map(str, view.frame.columns))
    each = [{name: _setting(row, name) for name in names if applies(name, row)} for row in view.rows]
    same = {name: each[0].get(name) for name in names if each and len({repr(one.get(name)) for one in each}) == 1}
    own = [{name: value for name, value in one.items() if name not in same} for one in each]
    return {
        "names": [printable(name) for name in names],
        "same": {printable(name): value for name, value in same.items() if value is not None or name in TOP_LEVEL},
        "of": [{printable(name): value for name, value in one.items()} for one in own],
    }


def _setting(row: Row, name: str) -> float | int | str | bool | None:
    value = row.get(name)
    return None if isinstance(value, float) and not math.isfinite(value) else _value(value)


def _unfinished(view: View) -> list[Section]:
    """Which runs have no results, and why."""
    if not view.unfinished:
        return []
    rows = [
        (row["run"], row["status"], ((row["reason"] or "").strip().splitlines() or ["-"])[0][:LONGEST_TEXT])
        for row in view.unfinished[:MOST_UNFINISHED]
    ]
    more = len(view.unfinished) - len(rows)
    return [
        Section(
            "unfinished",
            "Without results",
            (f"and {more} more",) if more else (),
            ("run", "status", "why"),
            tuple(rows),
        )
    ]
