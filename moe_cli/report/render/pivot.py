"""A pivot table as text: for a terminal, csv, json, markdown and LaTeX."""

import json
from collections.abc import Sequence

from rich.cells import cell_len
from rich.text import Text

from moe_cli.formatting import plural
from moe_cli.report.columns import PLUS_MINUS
from moe_cli.report.pivot import AxisValue, Pivot, PivotCell
from moe_cli.report.render.captions import footer_lines, header_lines
from moe_cli.report.render.latex import cell as latex_cell
from moe_cli.report.render.latex import escaped as latex_escaped
from moe_cli.report.render.latex import table_environment
from moe_cli.report.render.tables import aligned, csv_lines, markdown_escaped
from moe_cli.report.render.terminal import GAP, TextColumn, table_lines, wrap
from moe_cli.report.table import ReportTable

BEST_MARK, EMPTY = "*", "-"
LOW, HIGH = "lowest", "highest"


def pivot_lines(pivot: Pivot, table: ReportTable, title: str, width: int) -> list[Text]:
    """Returns the pivot table for a terminal of `width` characters, between the captions of the report.

    A narrow terminal shows means without intervals, and then several tables below each other.
    """
    texts = [[cell_text(cell, True) for cell in pivot.line(row)] for row in range(len(pivot.rows))]
    notes = []
    if pivot.has_intervals and _width(pivot, texts) > width:
        texts = [[cell_text(cell, False) for cell in pivot.line(row)] for row in range(len(pivot.rows))]
        notes = wrap("intervals do not fit here: use a wider terminal, or --format csv", width, "dim")
    blocks = []
    for columns in _blocks(pivot, texts, width):
        blocks += [*_block(pivot, texts, columns), Text()]
    return [
        *header_lines(table, title, width),
        *wrap(caption(pivot), width),
        Text(),
        *blocks,
        *(line for note in pivot_notes(pivot) for line in wrap(note, width, "dim")),
        *notes,
        *footer_lines(table, width),
    ]


def caption(pivot: Pivot) -> str:
    """Returns the line that names the metric and both axes."""
    return f"{pivot.heading} by {pivot.row_heading} (rows) and {pivot.column_heading} (columns)"


def pivot_notes(pivot: Pivot) -> list[str]:
    """Returns the mark of the best cells, settings that differ between cells, and missing values."""
    found = []
    if num_best := sum(cell.is_best for cell in pivot.cells.values()):
        among = ", of equal data and budget" if num_best > 1 else ""
        found.append(f"{BEST_MARK} {LOW if pivot.direction < 0 else HIGH} {pivot.heading}{among}")
    if pivot.also_varying:
        found.append(f"cells also differ in {', '.join(pivot.also_varying)}: compare them with care")
    if pivot.num_missing:
        found.append(f"{plural(pivot.num_missing, 'configuration')} without a value of {pivot.heading}")
    return found


def cell_text(cell: PivotCell | None, with_interval: bool) -> str:
    """Returns the mean of a cell, with the mark of the best; `-` for an empty cell."""
    if cell is None:
        return EMPTY
    text = cell.text if with_interval else cell.text.partition(PLUS_MINUS)[0]
    return f"{text} {BEST_MARK}" if cell.is_best else text


def _widths(pivot: Pivot, texts: Sequence[Sequence[str]]) -> tuple[int, list[int]]:
    """Returns the width of the labels and that of each column."""
    columns = zip(*texts, strict=True)
    sizes = [
        max(cell_len(value.heading), *map(cell_len, _aligned(column)))
        for value, column in zip(pivot.columns, columns, strict=True)
    ]
    return max(cell_len(label) for label in (pivot.row_heading, *row_labels(pivot))), sizes


def _width(pivot: Pivot, texts: Sequence[Sequence[str]]) -> int:
    first, sizes = _widths(pivot, texts)
    return first + sum(len(GAP) + size for size in sizes)


def _blocks(pivot: Pivot, texts: Sequence[Sequence[str]], width: int) -> list[list[int]]:
    """Returns the columns of each table, as many as fit."""
    first, sizes = _widths(pivot, texts)
    blocks: list[list[int]] = [[]]
    used = first
    for column, size in enumerate(sizes):
        if blocks[-1] and used + len(GAP) + size > width:
            blocks.append([])
            used = first
        blocks[-1].append(column)
        used += len(GAP) + size
    return blocks


def _block(pivot: Pivot, texts: Sequence[Sequence[str]], columns: Sequence[int]) -> list[Text]:
    shown = [TextColumn(pivot.row_heading, row_labels(pivot), align_left=True)]
    for column in columns:
        marks = [bool(cell and cell.is_best) for row in range(len(pivot.rows)) for cell in [pivot.line(row)[column]]]
        heading = pivot.columns[column].heading + (" " * len(f" {BEST_MARK}") if any(marks) else "")
        cells = _aligned([line[column] for line in texts])
        shown.append(TextColumn(heading, cells, styles=["bold green" if mark else "" for mark in marks]))
    return table_lines(shown, None)


def row_labels(pivot: Pivot) -> list[str]:
    """Returns the labels of the rows."""
    return [value.label for value in pivot.rows]


def _aligned(texts: Sequence[str]) -> list[str]:
    """Returns the cells of a column with room for the mark of the best, so that numbers are aligned."""
    marked = any(text.endswith(f" {BEST_MARK}") for text in texts)
    bare = aligned([text.removesuffix(f" {BEST_MARK}") for text in texts])
    if not marked:
        return bare
    return [
        f"{new} {BEST_MARK if old.endswith(f' {BEST_MARK}') else ' '}" for old, new in zip(texts, bare, strict=True)
    ]


def pivot_csv(pivot: Pivot) -> str:
    """Returns a line per row to full precision: two cells for each column, the mean and half its 95 % interval."""
    headings = [name for value in pivot.columns for name in (value.heading, f"{value.heading} interval")]
    lines: list[list[object]] = [[pivot.row_setting, *headings]]
    for row, value in enumerate(pivot.rows):
        cells = [(cell.value, cell.half_width) if cell else (None, None) for cell in pivot.line(row)]
        lines.append([value.label, *(number for pair in cells for number in pair)])
    return csv_lines(lines)


def pivot_json(pivot: Pivot) -> str:
    """Returns the axes and a list of cells, row by row; empty cells are left out."""

    def values(axis: Sequence[AxisValue]) -> list[dict[str, object]]:
        return [{"value": value.value, "label": value.label, "applies": value.applies} for value in axis]

    content = {
        "row_setting": pivot.row_setting,
        "column_setting": pivot.column_setting,
        "value": pivot.value,
        "also_varying": list(pivot.also_varying),
        "rows": values(pivot.rows),
        "columns": values(pivot.columns),
        "cells": [
            {
                "row": row,
                "column": column,
                "value": cell.value,
                "interval": cell.half_width,
                "best": cell.is_best,
                "seeds": cell.row.seeds,
                "runs": [run.run for run in cell.row.runs],
            }
            for (row, column), cell in sorted(pivot.cells.items())
        ],
    }
    return json.dumps(content, indent=2, allow_nan=False)


def pivot_markdown(pivot: Pivot) -> str:
    """Returns the table with all its columns; the best cells are bold."""
    heads = [pivot.row_heading, *(value.heading for value in pivot.columns)]
    lines = ["| " + " | ".join(map(markdown_escaped, heads)) + " |", "|:--" + "|--:" * len(pivot.columns) + "|"]
    for row, value in enumerate(pivot.rows):
        cells = [
            "" if cell is None else f"**{text}**" if cell.is_best else text
            for cell in pivot.line(row)
            for text in [markdown_escaped(cell.text) if cell else ""]
        ]
        lines.append("| " + " | ".join([markdown_escaped(value.label), *cells]) + " |")
    return "\n".join(lines) + "\n"


def pivot_latex(pivot: Pivot) -> str:
    """Returns a table environment with all columns; the best cells are bold. It needs \\usepackage{booktabs}."""
    sentences = [f"{caption(pivot)}."]
    if pivot.has_intervals:
        sentences.append("Means over seeds with 95 % intervals.")
    if any(cell.is_best for cell in pivot.cells.values()):
        sentences.append("The best in bold.")
    if pivot.also_varying:
        sentences.append(f"Cells also differ in {', '.join(pivot.also_varying)}.")
    headings = [(pivot.row_heading, "l"), *((column.heading, "r") for column in pivot.columns)]
    rows = [
        [latex_escaped(value.label), *(latex_cell(cell.text, cell.is_best) if cell else "" for cell in pivot.line(row))]
        for row, value in enumerate(pivot.rows)
    ]
    return table_environment(latex_escaped(" ".join(sentences)), headings, rows)


def pivot_text(pivot: Pivot, form: str) -> str:
    """Returns the pivot table in a format: csv, json, md or latex. The text ends with a newline."""
    write = {"csv": pivot_csv, "json": pivot_json, "md": pivot_markdown, "latex": pivot_latex}[form]
    return write(pivot).rstrip("\n") + "\n"
