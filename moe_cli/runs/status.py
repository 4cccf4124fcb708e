"""A run folder at a glance: what lists and live tables show, from as few and as small files as can be."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moe_cli.config.build import did_you_mean
from moe_cli.errors import RunNotFound
from moe_cli.files.reading import time_in
from moe_cli.metrics import BY_KEY, ESTIMATES, target
from moe_cli.runs.folder import COMPLETED, RUNNING, Run, read_json, read_lines, run_folders, spellings
from moe_cli.runs.tags import tags_of

# Of metrics.jsonl: room for the newest evaluation of a model with many layers.
NEWEST_BYTES = 65_536
FILES = ("status.json", "summary.json", "metrics.jsonl")
# Results that are estimated while a run trains.
MEASURED = ("val_loss", "val_bpb", "train_loss", "tokens_per_second", "max_violation", "dead_experts")
# Of a curve for a display so many points are remembered.
MAX_POINTS = 2048


@dataclass(frozen=True)
class Glance:
    """Where a run stands.

    Attributes:
        reason: why it failed or was stopped.
        created, started, written: seconds since 1970; `written` is when it last said that it lives.
        val_bpb: of the whole split once it is complete, before that the newest estimate; so are the other measures.
        max_violation, dead_experts: shares, None for a dense model.
        results: summary.json; empty before the run is complete.
    """

    run: Run
    status: str
    reason: str | None
    created: float
    started: float
    written: float
    step: int
    steps: int
    val_loss: float | None
    val_bpb: float | None
    train_loss: float | None
    tokens_per_second: float | None
    max_violation: float | None
    dead_experts: float | None
    results: Mapping[str, Any] = field(repr=False)
    tags: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """How much of its steps is done, 0 to 1; 0 when nobody knows how many there are."""
        if self.status == COMPLETED:
            return 1.0
        return min(1.0, self.step / self.steps) if self.steps else 0.0


def glance(run: Run) -> Glance:
    """Reads a run folder. Whatever is absent, torn or of another type counts as unknown."""
    results = run.summary()
    status = run.really(read_json(run.path / "status.json") or {}, results is not None)
    newest = _newest(run) if results is None and status["status"] == RUNNING else {}
    found = results or {}
    reason = status.get("reason")
    steps = _whole(status.get("steps"))
    return Glance(
        run=run, status=status["status"], reason=str(reason) if reason else None,
        created=time_in(status.get("created")) or 0.0, started=time_in(status.get("started")) or 0.0,
        written=time_in(status.get("heartbeat")) or 0.0,
        step=_whole(found.get("steps")) or max(_whole(newest.get("step")), _whole(status.get("step"))),
        steps=steps or _whole(found.get("steps")),
        **{key: number(found.get(key, newest.get(BY_KEY[key].curve_key or ""))) for key in MEASURED},
        results=found, tags=tags_of(run),
    )  # fmt: skip


def glances(runs: Iterable[Run]) -> list[Glance]:
    """One for each run, oldest first."""
    return sorted(map(glance, runs), key=lambda each: (each.created, each.run.id))


def _newest(run: Run) -> dict[str, Any]:
    """The newest value of every measure. A value that was not finite is null in the file, and not among these."""
    newest: dict[str, Any] = {}
    for record in read_lines(run.path / "metrics.jsonl", last_bytes=NEWEST_BYTES):
        newest.update({key: value for key, value in record.items() if value is not None})
    return newest


@dataclass(frozen=True)
class Curve:
    """Estimates on part of the validation split over steps.

    Attributes:
        result: what they are estimates of: val_bpb, or val_loss where a run has no bits per byte.
        unit: bits/byte, or nats per token, image and so on.
        points: (step, estimate) of every evaluation, by step.
    """

    result: str
    unit: str
    points: tuple[tuple[float, float], ...]

    @property
    def values(self) -> list[float]:
        return [value for _, value in self.points]


def validation_curve(run: Run, newest: bool = False) -> Curve:
    """The curve of a run; `newest`: its end alone, from the end of the file."""
    return validation_curves([run], newest)[0]


def validation_curves(runs: Sequence[Run], newest: bool = False) -> list[Curve]:
    """The curves of runs in one unit: bits per byte where all that were evaluated have them, else nats."""
    found = [_estimates(run.latest_metrics() if newest else run.read_metrics()) for run in runs]
    evaluated = [each for each in found if any(each.values())]
    result = next((name for name in ESTIMATES if all(each[name] for each in evaluated)), "val_loss")
    units = ["bits/byte" if result == "val_bpb" else f"nats/{target(run.config_dict())}" for run in runs]
    return [Curve(result, unit, tuple(sorted(each[result].items()))) for each, unit in zip(found, units, strict=True)]


def _estimates(records: Iterable[Mapping[str, Any]]) -> dict[str, dict[float, float]]:
    """For each result its finite estimates by step; of two of one step the later."""
    found = {name: Thinning() for name in ESTIMATES}
    for record in records:
        step = number(record.get("step"))
        for name, key in ESTIMATES.items():
            value = number(record.get(key))
            if step is not None and value is not None and math.isfinite(value):
                found[name].add(step, value)
    return {name: {step: value for step, (value, _) in each.points.items()} for name, each in found.items()}


class Thinning:
    """A curve as it is read: of more than `most` points, of each four that follow each other the lowest and the highest.

    Attributes:
        points: step -> value, and what else is known there; of two of one step the later.
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
    """The value if it is a number: a stranger's files must not stop a list."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63 else 0


class Watcher:
    """Glances at the same folders again and again; a file is read only when it has changed since."""

    def __init__(self) -> None:
        self._kept: dict[Path, tuple[tuple[int, ...], Glance]] = {}

    def look(self, run: Run) -> Glance:
        stamp = tuple(_modified(os.path.join(run.path, name)) for name in FILES)
        kept = self._kept.get(run.path)
        if kept and kept[0] == stamp and (kept[1].status != RUNNING or run.status()["status"] == RUNNING):
            return kept[1]
        seen = glance(run)
        self._kept[run.path] = (stamp, seen)
        return seen


def _modified(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def find_folder(outputs: Path, name: str) -> Path | None:
    """The folder with runs that a user means: that of a sweep, by its name (paper/x or paper-x), or any other."""
    places = [*(outputs / each for each in spellings(name)), Path(name).expanduser().absolute()]
    return next((folder for folder in places if folder.is_dir() and run_folders(folder)), None)


def find_runs(outputs: Path, name: str | None) -> list[Run]:
    """The runs of a sweep or in a folder, in no order; without a name, all of them.

    Raises:
        RunNotFound: there is no such sweep or folder, or it holds no run.
    """
    if name is None:
        runs = run_folders(outputs)
        if not runs:
            raise RunNotFound(f"no runs in {outputs}. Make one: moe train")
        return runs
    if folder := find_folder(outputs, name):
        return run_folders(folder)
    groups = sorted({run.group for run in run_folders(outputs)})
    hint = did_you_mean(name, groups) or (f" There are: {', '.join(groups[:8])}." if groups else "")
    raise RunNotFound(f"no runs in a sweep or folder '{name}' of {outputs}.{hint}")


def newest_group(outputs: Path) -> str:
    """The sweep that was begun or worked on last; of folders other than `runs`, unless there is no other.

    Raises:
        RunNotFound: there are no runs.
    """
    groups: dict[str, float] = {}
    for run in find_runs(outputs, None):
        groups[run.group] = max(groups.get(run.group, 0.0), _modified(str(run.path / "status.json")) / 1e9)
    sweeps = {name: seen for name, seen in groups.items() if name != "runs"} or groups
    return max(sweeps, key=lambda name: sweeps[name])
