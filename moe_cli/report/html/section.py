"""A section of a page that Python writes: lines, a table, and a chart of points and lines."""

from dataclasses import dataclass, field

from moe_cli.formatting import printable
from moe_cli.report.html.downsample import rounded

POINT, RING = "point", "ring"


@dataclass(frozen=True)
class Line:
    """Points (x, y).

    Attributes:
        name: in the legend, where those of one name stand once.
        style: its colour and shape, which belong to the name.
        connect: by a line.
        mark: what stands at each point: POINT, RING or nothing.
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
    log_y: bool = False


@dataclass(frozen=True)
class Section:
    """Attributes:
    id: its anchor in the page.
    preformatted: the lines are columns of text, each character as wide as another.
    note: below the chart, how to read it.
    before_table: it stands before the table.
    """

    id: str
    title: str
    lines: tuple[str, ...] = ()
    headings: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    chart: Chart | None = field(default=None)
    preformatted: bool = False
    note: str = ""
    before_table: bool = False

    def content(self) -> dict[str, object]:
        """For the page: plain values, numbers finite, text without control characters."""
        chart = self.chart
        return {
            "id": self.id, "title": self.title, "before_table": self.before_table, "preformatted": self.preformatted, "note": self.note,
            "lines": [printable(line) for line in self.lines],
            "headings": [printable(heading) for heading in self.headings],
            "rows": [[printable(cell) for cell in row] for row in self.rows],
            "chart": None if chart is None else {
                "x": chart.x, "y": chart.y, "log_x": chart.log_x, "log_y": chart.log_y,
                "series": [
                    {"name": printable(line.name), "style": line.style, "line": line.connect, "mark": line.mark,
                     "points": [[rounded(x), rounded(y)] for x, y in line.points]}
                    for line in chart.lines
                ],
            },
        }  # fmt: skip
