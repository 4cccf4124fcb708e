"""Aligned columns for a terminal of any width: the least important ones leave first, and a line never wraps."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Span, Text

from moe_cli.cli.terminal import shown
from moe_cli.formatting import printable

GAP = "  "


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        cells: one text for each row.
        leaves: columns with larger numbers leave sooner when there is no room; 0 stays.
        left: set to the left; numbers are set to the right.
        styles: a style for each row; empty: none.
        shrinks: the least width to which long cells are cut before any column leaves; None: they are not cut.
    """

    heading: str
    cells: Sequence[str]
    leaves: int = 0
    left: bool = False
    styles: Sequence[str] = ()
    shrinks: int | None = None


def table_lines(columns: Sequence[Column], width: int | None, header: bool = True) -> list[Text]:
    """The rows under their headings, no line wider than `width`; None: as wide as it gets, with all columns."""
    widths = [
        max(map(cell_len, map(printable, (column.heading if header else "", *column.cells)))) for column in columns
    ]
    kept = [index for index, size in enumerate(widths) if size]
    if width is not None:
        kept, widths = _fitted(columns, kept, widths, width)
    lines = [_line([(columns[index].heading, "dim", index) for index in kept], columns, widths)] if header else []
    for row in range(len(columns[0].cells)):
        cells = [(columns[index].cells[row], _style(columns[index], row), index) for index in kept]
        lines.append(_line(cells, columns, widths))
    for line in lines:
        line.rstrip()
        if width is not None:
            line.truncate(width, overflow="ellipsis")
    return lines


def _style(column: Column, row: int) -> str:
    return column.styles[row] if column.styles else ""


def _fitted(columns: Sequence[Column], kept: list[int], widths: list[int], width: int) -> tuple[list[int], list[int]]:
    """Which columns stay and how wide: what may shrink does so first, then columns leave."""
    widths = list(widths)
    leaving = sorted((index for index in kept if columns[index].leaves), key=lambda index: -columns[index].leaves)
    while True:
        least = [widths[index] if columns[index].shrinks is None else min(widths[index], columns[index].shrinks or 0)
                 for index in kept]  # fmt: skip
        room = width - len(GAP) * (len(kept) - 1)
        if sum(least) <= room or not leaving:
            break
        kept = [index for index in kept if index != leaving[0]]
        del leaving[0]
    spare = max(0, room - sum(least))
    for index, smallest in zip(kept, least, strict=True):
        given = min(widths[index] - smallest, spare)
        spare -= given
        widths[index] = smallest + given
    return kept, widths


def _line(cells: Sequence[tuple[str, str, int]], columns: Sequence[Column], widths: Sequence[int]) -> Text:
    parts, spans, length = [], [], 0
    for cell, style, index in cells:
        text, size = printable(cell), widths[index]
        if cell_len(text) > size:
            text = set_cell_size(text, max(0, size - 1)) + "…"
        space = " " * (size - cell_len(text))
        padded = text + space if columns[index].left else space + text
        if style:
            spans.append(Span(length, length + len(padded), style))
        parts.append(padded)
        length += len(padded) + len(GAP)
    return Text(GAP.join(parts), no_wrap=True, overflow="ellipsis", spans=spans)


def print_lines(console: Console, lines: Sequence[Text]) -> None:
    """Each on a line of its own, however long."""
    if console.is_terminal or console.color_system is not None:
        console.print(Text("\n").join(lines), soft_wrap=True, highlight=False)
    else:
        console.file.write("".join(f"{shown(line.plain)}\n" for line in lines))
