"""A section of a page that Python writes: lines, a table, and a chart of points and lines."""

from dataclasses import dataclass

from moe_cli.formatting import sanitise
from moe_cli.report.html.downsample import rounded

POINT, RING = "point", "ring"


@dataclass(frozen=True)
class Line:
    """Points (x, y).

    Attributes:
        name: the name in the legend, which lists each name once.
        style: the colour and shape, which belong to the name.
        connect: whether a line connects the points.
        mark: the mark at each point: POINT, RING or none.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    style: int
    connect: bool = False
    mark: str = POINT


@dataclass(frozen=True)
class Chart:
    """Lines over one pair of axes."""

    x: str
    y: str
    lines: tuple[Line, ...]
    log_x: bool = False


@dataclass(frozen=True)
class HeatCell:
    """A cell of a heat map: its text, the text of its tooltip, and its colour, h0 to h8 of page.css."""

    text: str
    note: str
    shade: int


@dataclass(frozen=True)
class HeatMap:
    """Labelled rows of cells under headings; None is an empty cell."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[HeatCell | None, ...], ...]


@dataclass(frozen=True)
class Section:
    """A section of the page.

    Attributes:
        id: its anchor in the page.
        preformatted: the lines are columns of monospaced text.
        note: the explanation below the chart.
        before_table: whether the section is placed before the table.
    """

    id: str
    title: str
    lines: tuple[str, ...] = ()
    headings: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    chart: Chart | None = None
    preformatted: bool = False
    note: str = ""
    before_table: bool = False
    heat_map: HeatMap | None = None

    def content(self) -> dict[str, object]:
        """Returns the section for the page: plain values, finite numbers, text without control characters."""
        chart, heat = self.chart, self.heat_map
        return {
            "id": self.id,
            "title": self.title,
            "before_table": self.before_table,
            "preformatted": self.preformatted,
            "note": self.note,
            "lines": [sanitise(line) for line in self.lines],
            "headings": [sanitise(heading) for heading in self.headings],
            "rows": [[sanitise(cell) for cell in row] for row in self.rows],
            "heat_map": None
            if heat is None
            else {
                "columns": [sanitise(name) for name in heat.columns],
                "rows": [
                    {
                        "name": sanitise(name),
                        "cells": [
                            None
                            if cell is None
                            else {
                                "text": sanitise(cell.text),
                                "note": "\n".join(map(sanitise, cell.note.split("\n"))),
                                "shade": cell.shade,
                            }
                            for cell in cells
                        ],
                    }
                    for name, cells in zip(heat.rows, heat.cells, strict=True)
                ],
            },
            "chart": None
            if chart is None
            else {
                "x": chart.x,
                "y": chart.y,
                "log_x": chart.log_x,
                "series": [
                    {
                        "name": sanitise(line.name),
                        "style": line.style,
                        "line": line.connect,
                        "mark": line.mark,
                        "points": [[rounded(x), rounded(y)] for x, y in line.points],
                    }
                    for line in chart.lines
                ],
            },
        }
