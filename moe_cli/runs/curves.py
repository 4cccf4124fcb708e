"""Validation curves of runs, read from metrics.jsonl and thinned while they are read."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moe_cli.metrics import ESTIMATES, loss_unit
from moe_cli.runs.folder import Run

# The most points of a curve that a display keeps.
MAX_POINTS = 2048


@dataclass(frozen=True)
class Curve:
    """Estimates on part of the validation split over steps.

    Attributes:
        result: the estimated result: val_bpb, or val_loss where a run has no bits per byte.
        unit: bits/byte, or nats per token, image or other target.
        points: (step, estimate) of every evaluation, by step.
    """

    result: str
    unit: str
    points: tuple[tuple[float, float], ...]

    @property
    def values(self) -> list[float]:
        return [value for _, value in self.points]


def validation_curve(run: Run, newest: bool = False) -> Curve:
    """Returns the curve of a run; `newest`: its end alone, from the end of the file."""
    return validation_curves([run], newest)[0]


def validation_curves(runs: Sequence[Run], newest: bool = False) -> list[Curve]:
    """Returns the curves of runs in one unit: bits per byte where all that were evaluated have them, else nats."""
    found = [_estimates(run.latest_metrics() if newest else run.read_metrics()) for run in runs]
    evaluated = [each for each in found if any(each.values())]
    result = next((name for name in ESTIMATES if all(each[name] for each in evaluated)), "val_loss")
    units = ["bits/byte" if result == "val_bpb" else f"nats/{loss_unit(run.config_dict())}" for run in runs]
    return [Curve(result, unit, tuple(sorted(each[result].items()))) for each, unit in zip(found, units, strict=True)]


def _estimates(records: Iterable[Mapping[str, Any]]) -> dict[str, dict[float, float]]:
    """Returns the finite estimates of each result by step. The later of two estimates at one step is kept."""
    found = {name: ThinnedCurve() for name in ESTIMATES}
    for record in records:
        step = number(record.get("step"))
        for name, key in ESTIMATES.items():
            value = number(record.get(key))
            if step is not None and value is not None and math.isfinite(value):
                found[name].add(step, value)
    return {name: {step: value for step, (value, _) in each.points.items()} for name, each in found.items()}


class ThinnedCurve:
    """A curve that is thinned while it is read.

    Above `most` points, each four consecutive points are reduced to the lowest and the highest.

    Attributes:
        points: step -> value and other data of the step; the later of two records of one step is kept.
    """

    def __init__(self, most: int = MAX_POINTS) -> None:
        self.points: dict[float, tuple[float, Any]] = {}
        self._most = most

    def add(self, step: float, value: float, rest: Any = None) -> None:
        self.points[step] = value, rest
        if len(self.points) > self._most:
            steps, kept = list(self.points), set[float]()
            for start in range(0, len(steps), 4):
                four = steps[start : start + 4]
                kept |= {min(four, key=self._rank), max(four, key=self._rank)}
            kept |= {steps[0], steps[-1]}
            self.points = {step: self.points[step] for step in steps if step in kept}

    def _rank(self, step: float) -> tuple[bool, float]:
        value = self.points[step][0]
        return not math.isnan(value), value


def number(value: Any) -> float | None:
    """Returns the value as a float, None if it is not a number: damaged files must not stop a list."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
