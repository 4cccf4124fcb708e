"""Sections of a page with conclusions: the recommendation, and a scaling law."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from moe_cli.errors import MoeError
from moe_cli.formatting import format_flops, sanitise
from moe_cli.report.html.section import RING, Chart, Line, Section
from moe_cli.report.price import Pricing
from moe_cli.report.recommend.recommendation import make_recommendation
from moe_cli.report.recommend.text import format_recommendation
from moe_cli.report.run_row import RunRow, Settings
from moe_cli.report.scaling.text import analysis_lines

if TYPE_CHECKING:
    from moe_cli.report.scaling.analysis import Analysis
    from moe_cli.report.scaling.fit import Fit
    from moe_cli.report.scaling.observations import Array, Points
    from moe_cli.report.scaling.predictions import IsoFlop

LINE_WIDTH = 110


def recommendation_section(
    runs: Sequence[RunRow],
    extra_baselines: Sequence[RunRow],
    baseline: Settings | None,
    pricing: Pricing | None,
) -> list[Section]:
    """Returns the section with the output of `moe recommend`; empty if nothing can be recommended."""
    try:
        lines = format_recommendation(make_recommendation(runs, (), extra_baselines, baseline, pricing))
    except MoeError:
        return []
    return [Section("answer", "In short", tuple(lines), before_table=True)]


def fit_sections(found: "Analysis", title: str) -> list[Section]:
    """Returns the sections of the law: its fit, its constants and results, and loss against size at equal FLOPs."""
    first, *others = (line.plain for line in analysis_lines(found, title, LINE_WIDTH))
    text = (first.removeprefix(sanitise(title)).lstrip(), *others)  # the page has its title
    note = f"Points are measurements. Each line is the prediction of the {found.fit.law.name} law at equal tokens."
    sections = [Section("scaling", "Scaling law", text, chart=_fitted(found.fit), preformatted=True, note=note)]
    if found.iso_flop:
        lines = tuple(line for style, budget in enumerate(found.iso_flop) for line in _iso_lines(style, budget))
        chart = Chart("active parameters", "loss, nats per token", lines, log_x=True)
        note = "Each line is one budget. A ring marks its best size, from a parabola of log loss over log size."
        sections.append(Section("isoflop", "Loss against size at equal training FLOPs", chart=chart, note=note))
    return sections


def _fitted(found: "Fit") -> Chart:
    """Returns the chart of measured loss over training FLOPs, with the law's predictions at equal other settings."""
    points = found.points
    predicted = np.exp(found.log_loss(points))
    lines = []
    for style, expansion in enumerate(sorted(set(points.expansion.tolist()))):
        mask = points.expansion == expansion
        name = "dense" if expansion == 1 else f"{expansion:g} experts per chosen one"
        lines.append(Line(name, _pairs(points.flops[mask], points.loss[mask]), style))
        lines += [
            Line(name, _pairs(points.flops[one], predicted[one]), style, connect=True, mark="")
            for one in _equal(points, mask)
        ]
    return Chart("training FLOP", "loss, nats per token", tuple(lines), log_x=True)


def _equal(points: "Points", mask: "Array") -> list["Array"]:
    """Returns the points of equal tokens and equal expert shape, by FLOPs, if they have several sizes."""
    found = []
    keys = list(zip(points.tokens, points.granularity, points.density, strict=True))
    for key in sorted({keys[place] for place in np.flatnonzero(mask)}):
        places = np.array([place for place in np.flatnonzero(mask) if keys[place] == key])
        if len(set(points.flops[places].tolist())) > 1:
            found.append(places[np.argsort(points.flops[places])])
    return found


def _iso_lines(style: int, budget: "IsoFlop") -> list[Line]:
    """Returns the line of the measurements at one budget, and the point of the size with the lowest loss if known."""
    name = f"{format_flops(budget.flops)}, " + ("dense" if budget.expansion == 1 else f"expert/k {budget.expansion:g}")
    lines = [Line(name, _pairs(budget.sizes, budget.losses), style, connect=True)]
    if budget.best is not None and budget.best_loss is not None:
        lines.append(Line(name, _pairs([budget.best], [budget.best_loss]), style, mark=RING))
    return lines


def _pairs(xs: object, ys: object) -> tuple[tuple[float, float], ...]:
    together = zip(np.asarray(xs, float).tolist(), np.asarray(ys, float).tolist(), strict=True)
    return tuple((x, y) for x, y in together if x > 0 and math.isfinite(x) and math.isfinite(y))
