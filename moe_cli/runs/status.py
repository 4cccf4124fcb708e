"""Reads the status of a run for lists and live tables, from few and small files."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moe_cli.files.reading import number_in, read_json, read_lines, time_in, whole_number_in
from moe_cli.metrics import BY_KEY
from moe_cli.runs.folder import DONE, RUNNING, Run
from moe_cli.runs.tags import read_tags

# The end of metrics.jsonl that is read. The newest evaluation of a model with many layers fits in it.
NEWEST_BYTES = 65_536
WATCHED_FILES = ("status.json", "summary.json", "metrics.jsonl")
# Results with an estimate while a run trains.
MEASURED = ("val_loss", "val_bpb", "train_loss", "tokens_per_second", "max_violation", "dead_experts")


@dataclass(frozen=True)
class RunStatus:
    """The state of a run.

    Attributes:
        reason: the reason of a failure or a stop.
        created, started, last_heartbeat: seconds since 1970.
        val_loss, val_bpb, ...: the results of a complete run, else the newest estimates.
        max_violation, dead_experts: fractions; None for a dense model.
        results: summary.json; empty before the run is complete.
    """

    run: Run
    status: str
    reason: str | None
    created: float
    started: float
    last_heartbeat: float
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
    def progress(self) -> float:
        """Returns the fraction of its steps that is done; 0 when their number is unknown."""
        if self.status in DONE:
            return 1.0
        return min(1.0, self.step / self.steps) if self.steps else 0.0

    def record(self) -> dict[str, Any]:
        """Returns the run and its status as a JSON object."""
        return {
            "run": self.run.id,
            "sweep": self.run.sweep,
            "path": str(self.run.path),
            "status": self.status,
            "reason": self.reason,
            "created": self.created or None,
            "step": self.step,
            "steps": self.steps or None,
            "tags": list(self.tags),
        }


def read_status(run: Run) -> RunStatus:
    """Reads the status of a run. Values that are absent, damaged or of another type count as unknown."""
    results = run.summary()
    status = run.effective_status(read_json(run.path / "status.json") or {}, results is not None)
    newest = _newest(run) if results is None and status["status"] == RUNNING else {}
    found = results or {}
    reason = status.get("reason")
    steps, step = whole_number_in(found.get("steps")), whole_number_in(status.get("step")) or 0
    return RunStatus(
        run=run,
        status=status["status"],
        reason=str(reason) if reason else None,
        created=time_in(status.get("created")) or 0.0,
        started=time_in(status.get("started")) or 0.0,
        last_heartbeat=time_in(status.get("heartbeat")) or 0.0,
        step=steps or max(whole_number_in(newest.get("step")) or 0, step),
        steps=whole_number_in(status.get("steps")) or steps or 0,
        **{key: number_in(found.get(key, newest.get(BY_KEY[key].curve_key or ""))) for key in MEASURED},
        results=found,
        tags=read_tags(run),
    )


def read_statuses(runs: Iterable[Run]) -> list[RunStatus]:
    """Returns one status for each run, oldest first."""
    return sorted(map(read_status, runs), key=lambda status: (status.created, status.run.id))


def _newest(run: Run) -> dict[str, Any]:
    """Returns the newest finite value of each metric. Values that are not finite are null in the file."""
    newest: dict[str, Any] = {}
    for record in read_lines(run.path / "metrics.jsonl", last_bytes=NEWEST_BYTES):
        newest.update({key: value for key, value in record.items() if value is not None})
    return newest


class StatusCache:
    """Statuses of runs that are polled. A run is read again only if its files have changed."""

    def __init__(self) -> None:
        self._cached: dict[Path, tuple[tuple[int, ...], RunStatus]] = {}

    def get(self, run: Run) -> RunStatus:
        stamp = tuple(modified_ns(os.path.join(run.path, name)) for name in WATCHED_FILES)
        cached = self._cached.get(run.path)
        if cached and cached[0] == stamp and (cached[1].status != RUNNING or run.status()["status"] == RUNNING):
            return cached[1]
        status = read_status(run)
        self._cached[run.path] = (stamp, status)
        return status


def modified_ns(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0
