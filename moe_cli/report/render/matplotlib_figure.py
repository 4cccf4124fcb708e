"""A report as a figure: loss against sparsity, against FLOPs, and over training. Needs matplotlib."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_cli.errors import ConfigError
from moe_cli.formatting import sanitise
from moe_cli.metrics import BY_KEY, ESTIMATES, curve_title
from moe_cli.report.columns import score_column, truncate_left
from moe_cli.report.configuration import Configuration
from moe_cli.report.curves import thinned_curves
from moe_cli.report.pareto import pareto_front
from moe_cli.report.render.terminal import PALETTE
from moe_cli.report.render.terminal_chart import number_of
from moe_cli.report.table import ReportTable
from moe_cli.runs.folder import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# More names than these would leave no room for the figure.
MAX_NAMES = 16
MARKERS = "os^Dv<>ph*X8"


def figure_bytes(table: ReportTable, ending: str, title: str) -> bytes:
    """Returns a .png or .svg of the rows with results.

    Raises ConfigError: matplotlib is not installed, or nothing to draw.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("figures need matplotlib, which is not installed: pip install 'moe-cli[plots]'") from None
    rows = [row for row in table.rows if row.is_complete]
    score = score_column(rows)
    rows = [row for row in rows if row.get(score) is not None]
    if not rows:
        raise ConfigError("there is nothing to draw: no run shown is complete.")
    file = io.BytesIO()
    # Names of runs are text, whatever dollar signs they have.
    with rc_context({"text.parse_math": False, "text.usetex": False, "svg.fonttype": "none", "svg.hashsalt": "moe"}):
        figure = Figure(figsize=(12.6, 4.6), layout="constrained")
        FigureCanvasAgg(figure)
        first, second, third = figure.subplots(1, 3)
        _points(first, table, rows, score, "sparsity")
        _points(second, table, rows, score, "flops_per_token")
        _curves(third, rows, score)
        figure.suptitle(sanitise(title))
        handles, names = first.get_legend_handles_labels()
        if 1 < len(names) <= MAX_NAMES:
            figure.legend(handles, names, loc="outside lower center", ncols=min(4, len(names)), frameon=False)
        about = {"Date": None} if ending == ".svg" else {"Software": "moe report"}
        figure.savefig(file, format=ending[1:], dpi=200, metadata=about)
    return file.getvalue()


def _look(index: int) -> dict[str, Any]:
    return {"color": PALETTE[index % len(PALETTE)], "marker": MARKERS[index % len(MARKERS)]}


def _points(axes: "Axes", table: ReportTable, rows: Sequence[Configuration], score: str, name: str) -> None:
    places = [number_of(row, name) for row in rows]
    for index, (row, place) in enumerate(zip(rows, places, strict=True)):
        half, at = number_of(row, f"{score}_interval"), [] if place is None else [place]
        axes.errorbar(
            at,
            [number_of(row, score) or 0.0] if at else [],
            yerr=None if not at or half is None else [half],
            capsize=3,
            linestyle="none",
            label=truncate_left(table.label(row)),
            **_look(index),
        )
    axes.set_ylabel(BY_KEY[score].title)
    axes.grid(alpha=0.3)
    if name == "sparsity":
        axes.set_xlabel("sparsity, 1 - k / experts")
        return
    axes.set_xlabel("training FLOP per token")
    there = [place for place in places if place]
    if there and max(there) > 1.5 * min(there):
        axes.set_xscale("log")
    _count_in_thousands(axes, minor=bool(there) and max(there) < 10 * min(there))
    for front in _fronts([row for row in rows if row.get(name)], name, score):
        axes.plot([x for x, _ in front], [y for _, y in front], "--", color="0.3", linewidth=1, zorder=0)
        axes.set_xlabel("training FLOP per token; dashed: Pareto front")


def _count_in_thousands(axes: "Axes", minor: bool = False) -> None:
    """Writes 1.2M: a power of ten at the end of the axis would cover its name, and formulas are not drawn.

    It must follow the choice of a scale, which brings formatters of its own.

    Args:
        minor: whether minor ticks have labels too, for an axis of less than a power of ten.
    """
    from matplotlib.ticker import EngFormatter, NullFormatter

    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(EngFormatter(sep="") if minor else NullFormatter())


def _fronts(rows: Sequence[Configuration], name: str, score: str) -> list[list[tuple[float, float]]]:
    """Returns the Pareto front of the score and a cost, if it has two points or more, for each data set and budget."""
    fronts: dict[tuple[object, ...], list[tuple[float, float]]] = {}
    for row, mark in zip(rows, pareto_front(rows, {name: -1}), strict=True):
        if mark:
            fronts.setdefault(row.comparison_key, []).append(
                (number_of(row, name) or 0.0, number_of(row, score) or 0.0)
            )
    return [sorted(front) for front in fronts.values() if len(set(front)) > 1]


def _curves(axes: "Axes", rows: Sequence[Configuration], score: str) -> None:
    """Draws the curve of the first run of every row, over tokens."""
    key = ESTIMATES[score]
    for index, row in enumerate(rows):
        points = thinned_curves(Run(Path(row.path)), [key])[key]
        look = {**_look(index), "marker": ""}
        axes.plot([point.tokens for point in points], [point.value for point in points], linewidth=1.4, **look)
    axes.set_xlabel("training tokens; the first seed of each")
    _count_in_thousands(axes)
    axes.set_ylabel(curve_title(ESTIMATES[score]))
    axes.grid(alpha=0.3)
