"""The comparison of runs at equal training time, or at equal tokens or FLOPs, by their validation curves.

The common time of two runs of one seed is the training time of the baseline's run. The estimate of each at that time is
interpolated between the evaluations of its own curve. Training time is without evaluations and checkpoints.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from moe_cli.files.reading import number_in
from moe_cli.metrics import ESTIMATES
from moe_cli.report.baseline_runs import SeedRuns
from moe_cli.report.comparability import budget_aspect
from moe_cli.report.intervals import mean_and_interval, paired_difference
from moe_cli.report.run_row import RunRow
from moe_cli.runs.curves import ThinnedCurve
from moe_cli.runs.folder import Run

# Curves of more runs are not read, because that would take longer than the rest of a report.
MAX_RUNS = 1000
# The reasons for which a run has no value.
NO_CURVE, EARLIER, LATER, MACHINE = "no curve", "ended earlier", "not evaluated by then", "another machine"
# The quantity over which curves are read. FLOPs are those of training, of model and optimizer.
SECONDS, TOKENS, FLOPS = "seconds", "tokens", "FLOPs"
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class EqualTime:
    """A configuration against its baseline at equal training time.

    Attributes:
        difference: the relative difference of the losses, mean over seeds; negative is better. None means no value.
        interval: half-width of its 95 % interval; None for one seed.
        seeds: the number of seeds with a value.
        seconds: the common time, mean over seeds.
        is_budget: whether the time is the budget of the runs (train.minutes), so that final losses are compared.
        missing: the number of runs without a value, by reason.
    """

    difference: float | None
    interval: float | None
    seeds: int
    seconds: float | None
    is_budget: bool
    missing: Mapping[str, int]

    @property
    def is_undecided(self) -> bool:
        """Returns whether the interval contains no difference."""
        return self.interval is not None and abs(self.difference or 0.0) <= self.interval


class TimedCurves:
    """The validation curves of runs over training time, or over another quantity. Each is read once."""

    def __init__(self, axis: str = SECONDS) -> None:
        self.axis = axis
        self._known: dict[str, Points] = {}

    def read_points(self, run: RunRow) -> Points:
        """Returns (quantity of training, estimate) of each evaluation, in the unit of the run's result."""
        if run.path not in self._known:
            key = ESTIMATES["val_loss" if run.results.val_bpb is None else "val_bpb"]
            if self.axis == SECONDS:
                self._known[run.path] = estimates_over_time(run.path, key)
            else:
                per_step = self._per_step(run)
                points = estimates_by_step(run.path, key) if per_step else []
                self._known[run.path] = [(step * (per_step or 0.0), value) for step, _, value in points]
        return self._known[run.path]

    def _per_step(self, run: RunRow) -> float | None:
        """Returns the tokens or FLOPs of an optimizer step; None where the results do not say."""
        tokens, steps, flops = run.results.tokens, run.results.steps, run.results.flops_per_token
        if not tokens or not steps or (self.axis == FLOPS and not flops):
            return None
        return tokens / steps * (flops or 0.0 if self.axis == FLOPS else 1.0)

    def end(self, run: RunRow) -> float | None:
        """Returns the training time of a run, or another quantity, up to its last estimate; None without a curve."""
        points = self.read_points(run)
        return points[-1][0] if points else None

    def is_comparable(self, run: RunRow, other: RunRow) -> bool:
        """Returns whether the quantities of two runs compare: times do only on one machine."""
        return self.axis != SECONDS or is_same_machine(run, other)


def estimates_over_time(path: str, key: str) -> Points:
    """Returns (seconds of training, estimate) of each evaluation of a run, by the estimate's key in metrics.jsonl."""
    return [(seconds, value) for _, seconds, value in estimates_by_step(path, key)]


def estimates_by_step(path: str, key: str) -> list[tuple[float, float, float]]:
    """Returns (step, seconds of training, estimate) of each evaluation of a run, by its key in metrics.jsonl."""
    curve = ThinnedCurve()
    for record in Run(Path(path)).read_metrics():
        if key in record:
            step, seconds, value = (number_in(record.get(name)) for name in ("step", "seconds", key))
            if step is not None and seconds is not None and value is not None:
                curve.add(step, value, seconds)
    return [(step, seconds, value) for step, (value, seconds) in sorted(curve.points.items())]


def compare_at_equal_time(
    runs: Iterable[RunRow], baseline: SeedRuns, curves: TimedCurves, ends: Mapping[int | None, float] | None = None
) -> EqualTime | None:
    """Compares runs with those of the baseline that have the same seed; None where no seed is shared.

    Args:
        ends: the common time of each seed; None means the training time of the baseline's run.
    """
    values: dict[int, float] = {}
    others: dict[int, float] = {}
    times, missing = [], Counter[str]()
    is_budget = False
    for run in runs:
        base = baseline.get(run.seed)
        if base is None or run.seed is None:
            continue
        is_budget = curves.axis == SECONDS and budget_aspect(run.settings, None)[0] == "train.minutes"
        end = curves.end(base) if ends is None else ends.get(run.seed)
        found: tuple[float, float] | str
        if is_budget:
            found, end = _final_losses(run, base), base.results.seconds
        else:
            found = NO_CURVE if end is None else _losses_at(end, run, base, curves)
        if isinstance(found, str):
            missing[found] += 1
        else:
            values[run.seed], others[run.seed] = found
            times.append(end or 0.0)
    if not times and not missing:
        return None
    estimate = paired_difference(values, others)
    return EqualTime(
        estimate.mean if estimate else None,
        estimate.half_width if estimate else None,
        len(values),
        mean_and_interval(times).mean if times else None,
        is_budget,
        dict(missing),
    )


def shortest_times(runs: Iterable[RunRow], reference: SeedRuns, curves: TimedCurves) -> dict[int | None, float]:
    """Returns the time of the shortest run of each seed, among runs on the machine of the reference of that seed."""
    found: dict[int | None, float] = {}
    for run in runs:
        end = curves.end(run)
        if end is not None and run.seed in reference and curves.is_comparable(run, reference[run.seed]):
            found[run.seed] = min(end, found.get(run.seed, end))
    return found


def is_same_machine(run: RunRow, other: RunRow) -> bool:
    """Returns whether the training times of two runs compare. Runs on an unknown or on several machines do not."""
    machine = run.others.get("machine")
    return machine is not None and machine == other.others.get("machine")


def _final_losses(run: RunRow, base: RunRow) -> tuple[float, float] | str:
    if not is_same_machine(run, base):
        return MACHINE
    loss, other = run.primary_loss, base.primary_loss
    return NO_CURVE if loss is None or other is None else (loss, other)


def _losses_at(place: float, run: RunRow, base: RunRow, curves: TimedCurves) -> tuple[float, float] | str:
    """Returns the losses of both runs at a place of the axis, or the reason why they are unknown."""
    own, other = curves.read_points(run), interpolate(curves.read_points(base), place)
    if not own or other is None:
        return NO_CURVE
    if not curves.is_comparable(run, base):
        return MACHINE
    loss = interpolate(own, place)
    if loss is None:
        return EARLIER if own[-1][0] < place else LATER
    return loss, other


def interpolate(points: Points, x: float) -> float | None:
    """Interpolates linearly between points; None outside."""
    if points and x == points[-1][0]:
        return points[-1][1]
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 <= x < x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return None
