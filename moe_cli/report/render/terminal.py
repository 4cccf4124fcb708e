"""Text for a terminal of any width: tables that drop the least important columns first, and wrapped sentences."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.text import Span, Text

from moe_cli.formatting import sanitise
from moe_cli.report.render.line_wrap import wrap_lines

GAP = "  "
MIN_LABEL_WIDTH = 8
# The colours c0 to c9 of page.css on a light background. White text is readable on all of them.
PALETTE = (
    "#0b62b5",
    "#b54708",
    "#1a7f4b",
    "#8a3ffc",
    "#b3261e",
    "#00757d",
    "#a2296b",
    "#6b6200",
    "#3f51b5",
    "#5b6570",
)


@dataclass(frozen=True)
class TextColumn:
    """One column.

    Attributes:
        cells: one text for each row.
        drop_order: columns with larger numbers are dropped first if the width is too small; 0 is never dropped.
        align_left: left-aligned; numbers are right-aligned.
        styles: a style for each row; empty means none.
        min_width: the width to which long cells may be cut before any column is dropped; None means that they are not
            cut.
    """

    heading: str
    cells: Sequence[str]
    drop_order: int = 0
    align_left: bool = False
    styles: Sequence[str] = ()
    min_width: int | None = None


def table_lines(columns: Sequence[TextColumn], width: int | None, header: bool = True) -> list[Text]:
    """Returns the rows under their headings, with lines of at most `width`; None means unlimited, with all columns."""
    widths = [
        max(map(cell_len, map(sanitise, (column.heading if header else "", *column.cells)))) for column in columns
    ]
    kept = [index for index, size in enumerate(widths) if size]
    if width is not None:
        kept, widths = _fit(columns, kept, widths, width)
    lines = [_line([(columns[index].heading, "dim", index) for index in kept], columns, widths)] if header else []
    for row in range(len(columns[0].cells)):
        cells = [(columns[index].cells[row], _style(columns[index], row), index) for index in kept]
        lines.append(_line(cells, columns, widths))
    for line in lines:
        line.rstrip()
        if width is not None:
            line.truncate(width, overflow="ellipsis")
    return lines


def hidden_headings(columns: Sequence[TextColumn], width: int) -> list[str]:
    """Returns the headings of the columns that `table_lines` leaves out at a width."""
    widths = [max(map(cell_len, map(sanitise, (column.heading, *column.cells)))) for column in columns]
    kept, _ = _fit(columns, list(range(len(columns))), widths, width)
    return [column.heading for index, column in enumerate(columns) if index not in kept and any(column.cells)]


def _style(column: TextColumn, row: int) -> str:
    return column.styles[row] if column.styles else ""


def _fit(columns: Sequence[TextColumn], kept: list[int], widths: list[int], width: int) -> tuple[list[int], list[int]]:
    """Returns the columns that fit, and their widths. Columns shrink to their minimum width before any are dropped."""
    widths = list(widths)
    leaving = sorted(
        (index for index in kept if columns[index].drop_order), key=lambda index: -columns[index].drop_order
    )
    while True:
        least = [
            widths[index] if columns[index].min_width is None else min(widths[index], columns[index].min_width or 0)
            for index in kept
        ]
        room = width - len(GAP) * (len(kept) - 1)
        if sum(least) <= room or not leaving:
            break
        kept = [index for index in kept if index != leaving[0]]
        del leaving[0]
    spare = max(0, room - sum(least))
    for index, smallest in zip(kept, least, strict=True):
        growth = min(widths[index] - smallest, spare)
        spare -= growth
        widths[index] = smallest + growth
    return kept, widths


def _line(cells: Sequence[tuple[str, str, int]], columns: Sequence[TextColumn], widths: Sequence[int]) -> Text:
    parts, spans, length = [], [], 0
    for cell, style, index in cells:
        text, size = sanitise(cell), widths[index]
        if cell_len(text) > size:
            text = set_cell_size(text, max(0, size - 1)) + "…"
        space = " " * (size - cell_len(text))
        padded = text + space if columns[index].align_left else space + text
        if style:
            spans.append(Span(length, length + len(padded), style))
        parts.append(padded)
        length += len(padded) + len(GAP)
    return Text(GAP.join(parts), no_wrap=True, overflow="ellipsis", spans=spans)


def plain_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], width: int | None, num_left: int = 1
) -> list[Text]:
    """Returns a table of texts, its first `num_left` columns set to the left; long cells of the first one are cut."""
    columns = [
        TextColumn(
            heading,
            [row[index] for row in rows],
            align_left=index < num_left,
            min_width=None if index else MIN_LABEL_WIDTH,
        )
        for index, heading in enumerate(headings)
    ]
    return table_lines(columns, width)


def wrap(sentence: str, width: int, style: str = "", indent: str = "") -> list[Text]:
    """Returns a sentence on as many lines as it takes, continued with a deeper indent."""
    lines = wrap_lines(sentence, width, indent)
    return [Text(line, style) for line in lines]
