"""Sections of a page that say what the runs mean: the recommendation, and a scaling law through them."""

import math
from typing import TYPE_CHECKING

import numpy as np

from moe_cli.errors import MoeError
from moe_cli.report.memo import memo
from moe_cli.report.page.sections import Chart, Line, Section
from moe_cli.report.recommend import recommend
from moe_cli.report.scaling.lines import study_lines

if TYPE_CHECKING:
    import pandas as pd

    from moe_cli.report.scaling.answers import IsoFlop
    from moe_cli.report.scaling.fit import Fit
    from moe_cli.report.scaling.study import Study

LINE_WIDTH = 110


def answer_section(frame: "pd.DataFrame", elsewhere: "pd.DataFrame | None") -> list[Section]:
    """What `moe report --recommend` says of these runs; nothing where there is nothing to recommend."""
    try:
        lines = memo(recommend(frame, (), elsewhere))
    except MoeError:
        return []
    return [Section("answer", "In short", tuple(lines), first=True)]


def fit_sections(found: "Study", title: str) -> list[Section]:
    """The law against what was measured, its constants and answers, and loss against size at equal FLOPs."""
    text = [line.plain for line in study_lines(found, title, LINE_WIDTH)]
    sections = [
        Section("scaling", "Scaling law", tuple(line for line in text if line.strip()), chart=_fitted(found.fit))
    ]
    if found.iso_flop:
        lines = tuple(_iso_line(each) for each in found.iso_flop)
        chart = Chart("active parameters", "loss, nats per token", lines, log_x=True)
        sections.append(Section("isoflop", "Loss against size at equal training FLOPs", chart=chart))
    return sections


def _fitted(found: "Fit") -> Chart:
    """Measured loss over training FLOPs, and beside each point what the law says of it."""
    points = found.points
    said = np.exp(found.log_loss(points))
    lines = []
    for each in sorted(set(points.expansion.tolist())):
        chosen = points.expansion == each
        name = "dense" if each == 1 else f"{each:g} experts per chosen one"
        order = np.argsort(points.flops[chosen])
        flops = points.flops[chosen][order]
        lines.append(Line(f"{name}, measured", _pairs(flops, points.loss[chosen][order])))
        lines.append(Line(f"{name}, by {found.law.name}", _pairs(flops, said[chosen][order])))
    return Chart("training FLOP", "loss, nats per token", tuple(lines), log_x=True)


def _iso_line(each: "IsoFlop") -> Line:
    name = f"{each.flops:.2g} FLOP, " + ("dense" if each.expansion == 1 else f"E/k {each.expansion:g}")
    return Line(name, _pairs(each.sizes, each.losses), joined=True)


def _pairs(xs: object, ys: object) -> tuple[tuple[float, float], ...]:
    together = zip(np.asarray(xs, float).tolist(), np.asarray(ys, float).tolist(), strict=True)
    return tuple((x, y) for x, y in together if x > 0 and math.isfinite(x) and math.isfinite(y))
