"""Curves of metrics.jsonl as typed points, thinned as they are read: for charts, figures and the page."""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from moe_cli.files.reading import number_in, whole_number_in
from moe_cli.runs.curves import ThinnedCurve
from moe_cli.runs.folder import Run


@dataclass(frozen=True)
class CurvePoint:
    """One value of a metric; `tokens` are those seen in training by then."""

    step: int
    tokens: int
    value: float


def thinned_curves(run: Run, metrics: Collection[str]) -> dict[str, list[CurvePoint]]:
    """Returns the finite values of some metrics by step, each curve thinned: see `moe_cli.runs.curves.ThinnedCurve`.

    Values whose number of tokens the run did not record are left out.
    """
    curves = {metric: ThinnedCurve() for metric in metrics}
    for step, tokens, metric, value in read_values(run, metrics):
        curves[metric].add(step, value, tokens)
    per_step = tokens_per_step(run)
    return {
        metric: [
            CurvePoint(int(step), tokens, value)
            for step, (value, recorded) in sorted(curve.points.items())
            if not math.isnan(value) and (tokens := tokens_at(recorded, int(step), per_step)) is not None
        ]
        for metric, curve in curves.items()
    }


def read_values(run: Run, metrics: Collection[str] | None = None) -> Iterator[tuple[int, int | None, str, float]]:
    """Yields step, tokens, metric and value of each measurement of metrics.jsonl, or of some metrics."""
    for record in run.read_metrics():
        step, tokens = whole_number_in(record.get("step")), whole_number_in(record.get("tokens"))
        if step is None:
            continue
        for metric, recorded in record.items():
            if metric not in ("step", "tokens") and (metrics is None or metric in metrics):
                value = measured_value(recorded)
                if value is not None:
                    yield step, tokens, metric, value


def tokens_per_step(run: Run) -> int | None:
    """Returns `RunConfig.tokens_per_step`; None if config.json does not contain it."""
    config = run.config_dict()
    train, model = config.get("train"), config.get("model")
    if not isinstance(train, dict) or not isinstance(model, dict):
        return None
    factors = [
        whole_number_in(train.get("batch_size")),
        whole_number_in(train.get("grad_accumulation", 1)),
        whole_number_in(model.get("context_length")),
    ]
    known = [factor for factor in factors if factor is not None]
    return math.prod(known) if len(known) == len(factors) else None


def tokens_at(recorded: int | None, step: int, per_step: int | None) -> int | None:
    """Returns the tokens seen in training by a step."""
    tokens = step * per_step if recorded is None and per_step is not None else recorded
    return None if tokens is None or tokens >= 2**63 else tokens


def measured_value(recorded: Any) -> float | None:
    """Returns a measurement: NaN for null, which the file has for non-finite values; None for other non-numbers."""
    if isinstance(recorded, bool) or not isinstance(recorded, int | float | None):
        return None
    value = number_in(recorded)
    return math.nan if value is None else value
