"""Points of a report drawn with characters: one column against another, a mark for each series, intervals as bars.

Written here because rich is installed anyway; a plotting library would be one more dependency.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from moe_cli.config.ranges import format_setting
from moe_cli.errors import ConfigError
from moe_cli.files.reading import number_in
from moe_cli.formatting import count, sanitise
from moe_cli.report.columns import column_named
from moe_cli.report.configuration import Configuration
from moe_cli.report.render.line_wrap import pack
from moe_cli.report.run_row import TOP_LEVEL, Cell, setting_applies
from moe_cli.report.table import ReportTable

MARKS = "ox+*#@%&"
# An axis is logarithmic where its largest value is more than this many times its least.
LOG_AXIS_RATIO = 8.0
STYLES = ("blue", "magenta", "green", "yellow", "red", "blue", "magenta", "green")
OVERLAP_MARK = "="


def _sparsity(row: Configuration) -> float | None:
    if row.is_dense:
        return 0.0
    return 1 - row.mean_k / row.expert if row.expert and row.mean_k else None


def _product(a: float | None, b: float | None) -> float | None:
    return a * b if a and b is not None else None


# Quantities derived from the columns of a row. train_flops is the sum of model and optimizer.
DERIVED: dict[str, Callable[[Configuration], float | None]] = {
    "sparsity": _sparsity,
    "active_flops": lambda row: row.results.forward_flops_per_token,
    "model_flops": lambda row: _product(row.results.tokens, row.results.model_flops_per_token or None),
    "optimizer_flops": lambda row: _product(row.results.steps, row.results.optimizer_flops_per_step),
    "train_flops": lambda row: row.results.train_flops,
}


@dataclass(frozen=True)
class Point:
    """One row of the report: where it lies, and half its interval; None for one seed."""

    x: float
    y: float
    half_width: float | None


@dataclass(frozen=True)
class Series:
    """Points that share a mark."""

    name: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Chart:
    """The content of a chart: the names of both columns, the series, and the number of rows without a value."""

    y: str
    x: str
    series: tuple[Series, ...]
    left_out: int


def make_chart(table: ReportTable, request: str) -> Chart:
    """Parses `Y:X` or `Y:X:SERIES`: columns of the report, or names of DERIVED.

    Raises:
        ConfigError: a name is not a numeric column, or the chart would be empty.
    """
    parts = [part.strip() for part in request.split(":")]
    if len(parts) not in (2, 3) or not all(parts):
        raise ConfigError(
            f"--plot {request}: give two columns as Y:X, such as val_bpb:expert, or a third for the marks, as Y:X:k"
        )
    known = [*table.aggregate.columns, *DERIVED]
    parts = [column_named(name, known, table.columns) for name in parts]
    y, x = parts[:2]
    by = parts[2] if len(parts) == 3 else _series_setting(table, x)
    groups: dict[Any, list[Point]] = {}
    left_out = 0
    for row in table.rows:
        place, height = number_of(row, x), number_of(row, y)
        if place is None or height is None:
            left_out += 1
            continue
        groups.setdefault(_series_name(row, by), []).append(Point(place, height, number_of(row, f"{y}_interval")))
    if not groups:
        raise ConfigError(f"--plot {request}: no row has a number for both {y} and {x}.")
    series = [
        Series(name, tuple(sorted(groups[name], key=lambda point: point.x))) for name in sorted(groups, key=_natural)
    ]
    return Chart(y, x, tuple(series), left_out)


def number_of(row: Configuration, name: str) -> float | None:
    """Returns the value of a column, or of a name of DERIVED, if it is a finite number."""
    return number_in(DERIVED[name](row)) if name in DERIVED else row.number(name)


def _series_setting(table: ReportTable, x: str) -> str | None:
    """Returns the varying setting with the fewest values, those of experts first, not determined by the x axis."""
    candidates = {}
    for name in table.varying:
        values = {_series_name(row, name) for row in table.rows if setting_applies(name, row.settings)}
        places: dict[Any, set[Any]] = {}
        for row in table.rows:
            if setting_applies(name, row.settings):
                places.setdefault(number_of(row, x), set()).add(row.get(name))
        if (
            name != x
            and len(values) > 1
            and (any(len(cells) > 1 for cells in places.values()) or x not in table.varying)
        ):
            candidates[name] = len(values)
    fitting = {name: size for name, size in candidates.items() if size <= len(MARKS) - 1}
    return min(fitting, key=lambda name: (name not in TOP_LEVEL, fitting[name])) if fitting else None


def _series_name(row: Configuration, by: str | None) -> str:
    if by is None:
        return ""
    if not setting_applies(by, row.settings):
        return "dense"
    value: Cell = number_of(row, by) if by in DERIVED else row.get(by)
    text = (
        f"{value:.4g}"
        if isinstance(value, float)
        else format_setting(value)
        if not isinstance(value, list)
        else ",".join(map(str, value))
    )
    return sanitise(f"{by}={text}")


def _natural(name: str) -> tuple[str, float, str]:
    head, _, tail = name.rpartition("=")
    try:
        return (head, float(tail), "")
    except ValueError:
        return (head, math.inf, tail)


@dataclass(frozen=True)
class Axis:
    """Values onto 0 to 1."""

    low: float
    high: float
    log: bool

    def place(self, value: float) -> float:
        low, high, value = map(math.log, (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return (value - low) / (high - low) if high > low else 0.5

    def value(self, place: float) -> float:
        if self.log:
            return math.exp(math.log(self.low) + place * (math.log(self.high) - math.log(self.low)))
        return self.low + place * (self.high - self.low)


def make_axis(values: Sequence[float]) -> Axis:
    """Returns the axis of the values; logarithmic if all are positive and span more than a factor of 8."""
    low, high = min(values), max(values)
    return Axis(low, high, low > 0 and high / low > LOG_AXIS_RATIO)


def chart_lines(chart: Chart, title: str, width: int, height: int = 18, ascii_only: bool = False) -> list[Text]:
    """Returns the chart in a frame of `width` columns: title, legend, points with their intervals, and both axes."""
    points = [point for series in chart.series for point in series.points]
    across = make_axis([point.x for point in points])
    up = make_axis([end for point in points for end in _ends(point)])
    labels = {
        row: _number(up.value(1 - row / (height - 1)), up.high - up.low)
        for row in range(0, height, max(1, (height - 1) // 4))
    }
    labels = {
        row: text for row, text in labels.items() if text not in [labels[above] for above in labels if above < row]
    }
    margin = max(map(len, labels.values()))
    room = max(10, width - margin - 3)
    rows = _drawn(chart, across, up, room, height)
    tick, line, corner = ("|", "-", "+") if ascii_only else ("┤", "─", "└")
    bar = "|" if ascii_only else "│"
    lines = [Text.assemble((sanitise(title), "bold"), f"   {chart.y} against {chart.x}"), *_legend(chart, width)]
    for number, cells in enumerate(rows):
        text = Text(f"{labels.get(number, ''):>{margin}} {tick if number in labels else bar}", no_wrap=True)
        for mark, style in cells:
            text.append(bar if mark == "|" else mark, style)
        text.rstrip()
        lines.append(text)
    lines.append(Text(" " * (margin + 1) + corner + line * room))
    lines += [
        Text(" " * (margin + 2) + _x_labels(across, [point.x for point in points], room)),
        *_remarks(chart, across, up, width),
    ]
    return lines


def _ends(point: Point) -> tuple[float, float]:
    half = point.half_width or 0.0
    return point.y - half, point.y + half


def _drawn(chart: Chart, across: Axis, up: Axis, room: int, height: int) -> list[list[tuple[str, str]]]:
    """Returns rows of marks with their styles.

    Points cover intervals; `=` marks points of several series in one cell.
    """
    cells = [[(" ", "")] * room for _ in range(height)]

    def row_of(value: float) -> int:
        return round((1 - up.place(value)) * (height - 1))

    for point in (point for series in chart.series for point in series.points if point.half_width):
        column = round(across.place(point.x) * (room - 1))
        low, high = _ends(point)
        for row in range(row_of(high), row_of(low) + 1):
            cells[row][column] = ("|", "dim")
    for number, series in enumerate(chart.series):
        mark, style = MARKS[number % len(MARKS)], STYLES[number % len(STYLES)]
        for point in series.points:
            row, column = row_of(point.y), round(across.place(point.x) * (room - 1))
            there = cells[row][column][0]
            cells[row][column] = (mark, style) if there in (" ", "|", mark) else (OVERLAP_MARK, "bold")
    return cells


def _legend(chart: Chart, width: int) -> list[Text]:
    if len(chart.series) == 1 and not chart.series[0].name:
        return []
    lines = [Text()]
    for number, series in enumerate(chart.series):
        piece = Text.assemble((MARKS[number % len(MARKS)], STYLES[number % len(STYLES)]), f" {series.name or 'all'}   ")
        if lines[-1] and len(lines[-1]) + len(piece) - 3 > width:
            lines.append(Text())
        lines[-1].append(piece)
    for line in lines:
        line.rstrip()
    return lines


def _number(value: float, span: float) -> str:
    if abs(value) >= 1000:
        # Where the axis is short compared with its values, three digits would make all labels the same.
        return count(value) if span >= 0.05 * abs(value) else f"{value:,.0f}" if abs(value) < 1e9 else f"{value:.6g}"
    digits = max(0, min(6, 2 - math.floor(math.log10(span)))) if span > 0 else 3
    return f"{value:z.{digits}f}"


def _x_labels(axis: Axis, values: Sequence[float], room: int) -> str:
    """Returns the numbers below the axis: those of the points if all have room, else even steps between the ends."""
    exact = [(value, count(value) if abs(value) >= 1000 else f"{value:.4g}") for value in sorted(set(values))]
    line, complete = _label_line(axis, exact, room)
    if complete:
        return line
    number = max(2, min(6, room // 14))
    even = [axis.value(index / (number - 1)) for index in range(number)]
    steps = [(value, _number(value, value if axis.log else axis.high - axis.low)) for value in even]
    return _label_line(axis, steps, room)[0]


def _label_line(axis: Axis, labels: Sequence[tuple[float, str]], room: int) -> tuple[str, bool]:
    """Returns a line of labels at their places, and whether all had room. Equal texts are written once."""
    line = [" "] * room
    end, shown = -1, list[str]()
    for value, text in labels:
        first = max(0, min(room - len(text), round(axis.place(value) * (room - 1)) - len(text) // 2))
        if first > end and text not in shown:
            shown.append(text)
            line[first : first + len(text)] = text
            end = first + len(text)
    return "".join(line).rstrip(), len(shown) == len(labels)


def _remarks(chart: Chart, across: Axis, up: Axis, width: int) -> list[Text]:
    remarks = []
    for name, axis in ((chart.x, across), (chart.y, up)):
        remarks += [f"{name}: log axis"] if axis.log else []
    if any(point.half_width for series in chart.series for point in series.points):
        remarks.append("bars: 95 % intervals over seeds")
    if len(chart.series) > len(MARKS):
        remarks.append("marks repeat: choose fewer series with Y:X:SERIES")
    if len(chart.series) > 1:
        remarks.append(f"{OVERLAP_MARK} several series")
    if chart.left_out:
        remarks.append(f"{chart.left_out} row{'s' if chart.left_out > 1 else ''} without a number")
    return [Text(line, "dim") for line in pack(remarks, width)]
