"""Reads the validation curves of runs from metrics.jsonl, and thins them while reading."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moe_cli.files.reading import number_in
from moe_cli.metrics import ESTIMATES, target_name
from moe_cli.runs.folder import Run

# The maximum number of points of a curve.
MAX_POINTS = 2048


@dataclass(frozen=True)
class Curve:
    """A validation curve: estimates on part of the validation split by step.

    Attributes:
        result: the estimated result: val_bpb, or val_loss where a run has no bits per byte.
        unit: bits/byte, or nats per token, image or other target.
        points: (step, estimate) of each evaluation, sorted by step.
    """

    result: str
    unit: str
    points: tuple[tuple[float, float], ...]

    @property
    def values(self) -> list[float]:
        return [value for _, value in self.points]


def validation_curve(run: Run, newest: bool = False) -> Curve:
    """Returns the curve of a run; with `newest`, only its end, read from the end of the file."""
    return validation_curves([run], newest)[0]


def validation_curves(runs: Sequence[Run], newest: bool = False) -> list[Curve]:
    """Returns the curves of runs in one unit: bits per byte if all evaluated runs have them, else nats."""
    found = [_estimates(run.latest_metrics() if newest else run.read_metrics()) for run in runs]
    evaluated = [estimates for estimates in found if any(estimates.values())]
    result = next((name for name in ESTIMATES if all(estimates[name] for estimates in evaluated)), "val_loss")
    units = ["bits/byte" if result == "val_bpb" else f"nats/{target_name(run.config_dict())}" for run in runs]
    return [
        Curve(result, unit, tuple(sorted(estimates[result].items())))
        for estimates, unit in zip(found, units, strict=True)
    ]


def _estimates(records: Iterable[Mapping[str, Any]]) -> dict[str, dict[float, float]]:
    """Returns the finite estimates of each result by step, the last one of each step."""
    found = {name: ThinnedCurve() for name in ESTIMATES}
    for record in records:
        step = number_in(record.get("step"))
        for name, key in ESTIMATES.items():
            value = number_in(record.get(key))
            if step is not None and value is not None:
                found[name].add(step, value)
    return {name: {step: value for step, (value, _) in curve.points.items()} for name, curve in found.items()}


class ThinnedCurve:
    """A curve that is thinned while it is read.

    Above `max_points` points, each four consecutive points are reduced to the lowest and the highest.

    Attributes:
        points: step -> value and other data of the step, of the last record of each step.
    """

    def __init__(self, max_points: int = MAX_POINTS) -> None:
        self.points: dict[float, tuple[float, Any]] = {}
        self._max_points = max_points

    def add(self, step: float, value: float, rest: Any = None) -> None:
        self.points[step] = value, rest
        if len(self.points) > self._max_points:
            steps, kept = list(self.points), set[float]()
            for start in range(0, len(steps), 4):
                four = steps[start : start + 4]
                kept |= {min(four, key=self._rank), max(four, key=self._rank)}
            kept |= {steps[0], steps[-1]}
            self.points = {step: self.points[step] for step in steps if step in kept}

    def _rank(self, step: float) -> tuple[bool, float]:
        value = self.points[step][0]
        return not math.isnan(value), value
