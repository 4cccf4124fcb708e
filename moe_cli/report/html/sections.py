"""What else a page can show: a section of lines, a table, and a chart of points and lines."""

from dataclasses import dataclass, field

from moe_cli.formatting import printable
from moe_cli.report.html.thin import rounded

POINT, RING = "point", "ring"


@dataclass(frozen=True)
class Line:
    """Points (x, y).

    Attributes:
        name: in the legend, where those of one name stand once.
        look: its colour and shape, which belong to the name.
        joined: by a line.
        mark: what stands at each point: POINT, RING or nothing.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    look: int
    joined: bool = False
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
    aligned: the lines are columns of text, each character as wide as another.
    note: below the chart, how to read it.
    first: it stands before the table.
    """

    id: str
    title: str
    lines: tuple[str, ...] = ()
    headings: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    chart: Chart | None = field(default=None)
    aligned: bool = False
    note: str = ""
    first: bool = False

    def content(self) -> dict[str, object]:
        """For the page: plain values, numbers finite, text without control characters."""
        chart = self.chart
        return {
            "id": self.id, "title": self.title, "first": self.first, "aligned": self.aligned, "note": self.note,
            "lines": [printable(line) for line in self.lines],
            "headings": [printable(heading) for heading in self.headings],
            "rows": [[printable(cell) for cell in row] for row in self.rows],
            "chart": None if chart is None else {
                "x": chart.x, "y": chart.y, "log_x": chart.log_x, "log_y": chart.log_y,
                "series": [
                    {"name": printable(line.name), "look": line.look, "line": line.joined, "mark": line.mark,
                     "points": [[rounded(x), rounded(y)] for x, y in line.points]}
                    for line in chart.lines
                ],
            },
        }  # fmt: skip
