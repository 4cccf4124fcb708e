"""A report as text: aligned for a terminal, or csv, json and markdown."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.text import Text

from moe_cli.formatting import BARS, DIGITS
from moe_cli.report.columns import CURVE, CURVE_WIDTH, DROP_ORDER, PLUS_MINUS, Column, curve_column, score_column
from moe_cli.report.configuration import JSON_KEYS, Configuration
from moe_cli.report.render import terminal
from moe_cli.report.render.captions import footer_lines, header_lines, hidden_columns_note
from moe_cli.report.render.terminal import GAP, TextColumn
from moe_cli.report.run_row import Cell
from moe_cli.report.table import ReportTable

BEST, LOWEST, RECOMMENDED, PARETO = "best", "lowest", "recommended", "pareto"
IN_BOLD = (BEST, RECOMMENDED)


def report_lines(table: ReportTable, title: str, width: int, curves: bool = True) -> list[Text]:
    """Returns the report for a terminal of `width` characters: captions, aligned rows, best in bold, hidden columns.

    With `curves`, training curves are shown as sparklines if all other columns fit. Without, a requested curve is shown
    in digits.
    """
    if not table.rows:
        return [
            *header_lines(table, title, width),
            Text(),
            Text("no row matches --where", "yellow"),
            *footer_lines(table, width),
        ]
    cells = {column.name: aligned([column.write(row) for row in table.rows]) for column in table.columns}
    if CURVE in cells and not curves:
        cells[CURVE] = [text.translate(str.maketrans(BARS, DIGITS)) for text in cells[CURVE]]
    widths = {column.name: max(map(cell_len, [column.heading, *cells[column.name]])) for column in table.columns}
    marks = [mark_of(row, table) for row in table.rows]
    room = width - (len(GAP) + max(map(len, marks)) if any(marks) else 0)
    kept = _fitting(table.columns, widths, room, ("run", score_column(table.rows)))
    used = sum(widths[column.name] + len(GAP) for column in kept)
    if (
        curves
        and not table.names
        and kept == list(table.columns)
        and used + CURVE_WIDTH <= room
        and (curve := curve_column(table.rows))
    ):
        cells[curve.name], widths[curve.name] = [curve.write(row) for row in table.rows], CURVE_WIDTH
        kept.append(curve)
    bold = ["bold" if mark in IN_BOLD else "" for mark in marks]
    columns = [TextColumn(column.heading, cells[column.name], align_left=column.left, styles=bold) for column in kept]
    columns.append(TextColumn("", marks, align_left=True, styles=["bold green" if style else "dim" for style in bold]))
    lines = terminal.table_lines(columns, None)
    missing = hidden_columns_note([column.heading for column in table.columns if column not in kept], width)
    return [*header_lines(table, title, width), Text(), *lines, Text(), *footer_lines(table, width), *missing]


def columns_within(columns: Sequence[Column], rows: Sequence[Configuration], width: int) -> list[Column]:
    """Returns the columns that fit into `width` characters when the least important are dropped."""
    widths = {
        column.name: max([cell_len(column.heading), *(cell_len(column.write(row)) for row in rows)])
        for column in columns
    }
    return _fitting(columns, widths, width, ("run", score_column(rows)))


def mark_of(row: Configuration, table: ReportTable) -> str:
    """Returns the marks of a row: lowest loss, recommended, or on the front. The first two may be different rows."""
    lowest, recommended, front = (
        any(row is member for member in rows) for rows in (table.best, table.recommended, table.pareto)
    )
    if lowest and (recommended or table.by_run):
        return BEST
    return LOWEST if lowest else RECOMMENDED if recommended else PARETO if front else ""


def aligned(cells: Sequence[str]) -> list[str]:
    """Pads cells without an interval if others have one, so that means are aligned when cells are right-aligned."""
    parts = [cell.partition(PLUS_MINUS) for cell in cells]
    if not any(sign for _, sign, _ in parts):
        return list(cells)
    spread = max(len(interval) for _, _, interval in parts)
    return [f"{mean}{sign:{len(PLUS_MINUS)}}{interval:>{spread}}" for mean, sign, interval in parts]


def _fitting(columns: Sequence[Column], widths: dict[str, int], width: int, staying: Sequence[str]) -> list[Column]:
    """Returns the columns that fit side by side, after the least important have left."""
    kept = list(columns)
    names = [column.name for column in columns]
    order = [name for name in DROP_ORDER if name in names]
    order += [name for name in reversed(names) if name not in order]
    leaving = [name for name in order if name not in staying]
    while leaving and sum(widths[column.name] + len(GAP) for column in kept) - len(GAP) > width:
        name = leaving.pop(0)
        kept = [column for column in kept if column.name != name]
    return kept


def json_text(table: ReportTable, importance: Mapping[str, Any] | None = None) -> str:
    """Returns a list of objects, one per row, with `JSON_KEYS` and the settings that vary; null means no value.

    Rows of a search also have its `importance`, which is looked up by the sweep's name.
    """
    names = table.names or (*JSON_KEYS, *(name for name in table.all_varying if name not in JSON_KEYS))
    content = []
    for row in table.all_rows:
        found = {"importance": importance[row.sweep]} if importance and row.sweep in importance else {}
        content.append({**{name: table.value(row, name) for name in names}, **found})
    return json.dumps(content, indent=2, allow_nan=False)


def csv_text(table: ReportTable) -> str:
    """Returns every column, or those of the query, to full precision; lists are joined by spaces."""
    names = table.names or table.aggregate.columns
    return csv_lines([names, *([_csv_cell(table.value(row, name)) for name in names] for row in table.all_rows)])


def csv_lines(rows: Iterable[Iterable[object]]) -> str:
    """Returns a line of CSV for each row."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _csv_cell(value: Cell) -> object:
    return " ".join(map(str, value)) if isinstance(value, list) else value


def markdown_text(table: ReportTable) -> str:
    """Returns the table of the terminal with all its columns, whatever their width; in bold the same rows."""
    lines = [
        "| " + " | ".join(markdown_escaped(column.heading) for column in table.columns) + " |",
        "|" + "|".join(":--" if column.left else "--:" for column in table.columns) + "|",
    ]
    for row in table.rows:
        mark = "**" if mark_of(row, table) in IN_BOLD else ""
        cells = [markdown_escaped(column.write(row)) for column in table.columns]
        # Two marks around nothing would be printed as they are.
        lines.append("| " + " | ".join(f"{mark}{cell}{mark}" if cell else "" for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def markdown_escaped(text: str) -> str:
    """Returns the text with every character that has a meaning in Markdown escaped."""
    for character in "\\`*_[]<|":
        text = text.replace(character, {"<": "&lt;"}.get(character, "\\" + character))
    return text
