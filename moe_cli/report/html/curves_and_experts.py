"""Curves and expert usage of runs for the page, thinned so that a page of any number of runs stays small."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moe_cli.formatting import plural, sanitise
from moe_cli.metrics import curve_title
from moe_cli.report.configuration import Configuration
from moe_cli.report.curves import CurvePoint, thinned_curves
from moe_cli.report.expert_usage import LayerUsage, read_expert_usage
from moe_cli.report.html.downsample import downsampled, rounded
from moe_cli.report.render.expert_usage import spelled
from moe_cli.runs.folder import Run

# With all of these a page has about 1.5 MB.
MAX_POINTS, MAX_CELLS, MAX_DETAILS = 40_000, 80_000, 80_000
MAX_RUNS = 400
MAX_CURVE_POINTS, MIN_CURVE_POINTS = 150, 16
MAX_DOMAINS, MAX_TOKENS = 12, 5
# The curves that are drawn, by their keys in metrics.jsonl.
CURVES = (
    "val/bpb",
    "val/loss",
    "train/loss",
    "moe/max_violation",
    "val/max_violation",
    "val/dead_experts",
    "val/routing_entropy",
    "moe/dropped_fraction",
    "train/aux_loss",
    "train/grad_norm",
    "lr",
)


def curve_content(runs: Sequence[Sequence[Configuration]]) -> tuple[dict[str, Any], list[str]]:
    """Returns the curves of the runs of each row, and lines on omitted runs."""
    indexed_runs = [(index, run) for index, members in enumerate(runs) for run in members]
    kept = indexed_runs[:MAX_RUNS]
    found: list[tuple[int, dict[str, list[CurvePoint]]]] = []
    for row, run in kept:
        curves = thinned_curves(Run(Path(run.path)), CURVES)
        found.append((row, {metric: points for metric, points in curves.items() if points}))
    metrics = [name for name in CURVES if any(name in curves for _, curves in found)]
    num_curves = sum(len(curves) for _, curves in found)
    most = min(MAX_CURVE_POINTS, max(MIN_CURVE_POINTS, MAX_POINTS // max(1, num_curves)))
    series = []
    for row, curves in found:
        for number, metric in enumerate(metrics):
            if metric in curves:
                steps = [point.step for point in curves[metric]]
                tokens = dict(zip(steps, (point.tokens for point in curves[metric]), strict=True))
                at, values = downsampled(steps, [point.value for point in curves[metric]], most)
                series.append(
                    {
                        "row": row,
                        "metric": number,
                        "step": at,
                        "tokens": [tokens[step] for step in at],
                        "value": [rounded(value) for value in values],
                    }
                )
    left = len(indexed_runs) - len(kept)
    notes = (
        [f"Curves of the first {MAX_RUNS} runs only: the page would be too large with those of {left} more."]
        if left
        else []
    )
    return {"metrics": [curve_title(name) for name in metrics], "series": series}, notes


def expert_content(runs: Sequence[Sequence[Configuration]]) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns the expert usage of each sparse run, within MAX_CELLS and MAX_DETAILS, and lines on omitted runs."""
    cells, details = MAX_CELLS, MAX_DETAILS
    content: list[dict[str, Any]] = []
    left = 0
    for index, members in enumerate(runs):
        for run in members:
            if not run.is_complete or run.is_dense:
                continue
            if cells <= 0:
                left += 1
                continue
            layers = read_expert_usage(Run(Path(run.path))).layers
            if not layers:
                continue
            cells -= sum(len(layer.load) for layer in layers)
            shown = []
            for layer in layers:
                size = _size(layer)
                shown.append(_layer(layer, size <= details))
                details -= size if size <= details else 0
            content.append({"row": index, "seed": run.seed, "layers": shown})
    notes = [f"Experts of {plural(left, 'run')} are left out: the page would be too large."] if left else []
    return content, notes


def _size(layer: LayerUsage) -> int:
    domains = min(MAX_DOMAINS, len(layer.by_domain)) * len(layer.load)
    return len(layer.co_activation) ** 2 + domains + MAX_TOKENS * 2 * len(layer.top_tokens)


def _layer(layer: LayerUsage, whole: bool) -> dict[str, Any]:
    domains = sorted(layer.by_domain.items(), key=lambda item: -max(item[1]))[:MAX_DOMAINS]
    pairs = [
        [0 if i == j else round(100 * cell) for j, cell in enumerate(row)] for i, row in enumerate(layer.co_activation)
    ]
    return {
        "layer": layer.layer,
        "load": [round(load, 2) for load in layer.load],
        "pairs": pairs if whole and any(map(any, pairs)) else [],
        "domains": [[sanitise(name)[:60], [round(100 * share) for share in row]] for name, row in domains]
        if whole
        else [],
        "tokens": [[spelled(token) for token in row[:MAX_TOKENS]] for row in layer.top_tokens] if whole else [],
    }
