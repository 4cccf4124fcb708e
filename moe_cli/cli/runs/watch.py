"""Output of moe runs watch: follows a sweep or a run of another process through its folders."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.text import Text

from moe_cli.cli.progress import LivePanel, SweepProgress, bar_line, failure_reason, finished_line
from moe_cli.cli.runs.settings import run_labels
from moe_cli.formatting import count, duration, percent, plural, sanitise, sparkline
from moe_cli.runs.curves import validation_curve
from moe_cli.runs.folder import COMPLETED, DONE, FAILED, IMPORTED, INTERRUPTED, PENDING, PRUNED, RUNNING, Run
from moe_cli.runs.locks import is_sweep_running
from moe_cli.runs.lookup import find_folder, find_run, is_run, list_runs, list_runs_by_age, newest_sweep
from moe_cli.runs.status import RunStatus, StatusCache

POLL_SECONDS = 1.0
# A sweep counts as stopped if it has no process on this machine and no heartbeat for this long.
STALE_SECONDS = 60.0
RESCAN_SECONDS = 10.0
CURVE_WIDTH = 40
Sleep = Callable[[float], None]


def resolve_target(outputs: Path, name: str | None) -> Path | Run:
    """Returns the folder of a sweep, or a run. Without a name: the newest sweep, or the newest run if no sweep exists.

    Raises:
        RunNotFound: no sweep or run has this name.
    """
    if name is None:
        group = newest_sweep(outputs)
        return list_runs_by_age(outputs)[-1] if group == "runs" else outputs / group
    folder = find_folder(outputs, name)
    return folder if folder and not is_run(folder) else find_run(outputs, name)


class SweepFolder:
    """The runs of a sweep's folder, which is polled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs: list[Run] = []
        self._watcher = StatusCache()
        self._scanned = (0, 0.0)

    def rescan(self) -> bool:
        """Lists the runs again. Returns whether runs were added or removed."""
        changed, before = os.stat(self.folder).st_mtime_ns, self._scanned
        if before[0] == changed and time.monotonic() - before[1] < RESCAN_SECONDS:
            return False
        self._scanned = (changed, time.monotonic())
        found = sorted(list_runs(self.folder), key=lambda run: run.id)
        found, self.runs, old = found, found, self.runs
        return found != old

    def read_progress(self) -> tuple[SweepProgress, float]:
        """Returns the statuses of the runs, and the time of the last heartbeat."""
        seen = [self._watcher.get(run) for run in self.runs]
        by = {
            name: [status for status in seen if status.status == name] for name in (COMPLETED, RUNNING, FAILED, PRUNED)
        }
        by[COMPLETED] += [status for status in seen if status.status == IMPORTED]
        waiting = len(seen) - sum(map(len, by.values()))
        last_heartbeat = max(
            (max(status.created, status.started, status.last_heartbeat) for status in seen), default=0.0
        )
        return SweepProgress(by[COMPLETED], by[RUNNING], by[FAILED], waiting, len(by[PRUNED])), last_heartbeat


def watch_sweep(console: Console, folder: Path, sleep: Sleep = time.sleep) -> int:
    """Shows a sweep until it ends or stops. Returns the exit code: 0, or 3 if runs are not complete."""
    sweep = SweepFolder(folder)
    reported: dict[Path, str] | None = None
    with LivePanel(console, {}) as board:
        while True:
            if sweep.rescan():
                board.labels = run_labels(sweep.runs)
            progress, last_heartbeat = sweep.read_progress()
            changed = _changed(progress, reported or {})
            for status in changed if not console.is_terminal or reported is not None else []:
                if not (console.is_terminal and status.status == RUNNING):
                    board.print(_change(status, board.label(status.run)))
            reported = {**(reported or {}), **{status.run.path: status.status for status in changed}}
            board.show(progress)
            waits = progress.waiting and (is_sweep_running(folder) or time.time() - last_heartbeat < STALE_SECONDS)
            if not progress.running and not waits:
                break
            sleep(POLL_SECONDS)
    return _end(console, folder.name, progress)


def _changed(progress: SweepProgress, reported: Mapping[Path, str]) -> list[RunStatus]:
    """Returns the runs that started or ended since `reported`, by time."""
    seen = (*progress.done, *progress.failed, *progress.running)
    changed = [status for status in seen if reported.get(status.run.path) != status.status]
    return sorted(changed, key=lambda status: status.started if status.status == RUNNING else status.last_heartbeat)


def _change(status: RunStatus, label: str) -> Text:
    return Text(f"running {sanitise(label)}") if status.status == RUNNING else finished_line(status, label)


def _end(console: Console, name: str, progress: SweepProgress) -> int:
    text = f"{len(progress.done)} of {plural(progress.total, 'run')} complete"
    text += f", {len(progress.failed)} failed" if progress.failed else ""
    text += f", {progress.pruned} pruned" if progress.pruned else ""
    text += f", {progress.waiting} not running: the same sweep command continues" if progress.waiting else ""
    console.print(Text(f"{text}. See: moe report {sanitise(name)}"), soft_wrap=True, highlight=False)
    return 3 if progress.failed or progress.waiting else 0


def watch_run(console: Console, run: Run, sleep: Sleep = time.sleep) -> int:
    """Shows a run until it ends or stops. Returns the exit code: 0 if it is complete, else 1."""
    watcher, reported = StatusCache(), None
    last, curve = None, list[float]()
    with LivePanel(console, {}) as board:
        while True:
            status = watcher.get(run)
            if status is not last:
                last, curve = status, validation_curve(run).values
            news = status.val_loss if status.status == RUNNING else None
            if not console.is_terminal and news is not None and news != reported:
                reported = news
                board.print(Text("  ".join([_step(status), *_facts(status)])))
            board.draw(run_panel(status, curve, console.width, time.time()))
            if status.status != RUNNING and not _waits(status):
                break
            sleep(POLL_SECONDS)
    if status.status in (*DONE, FAILED, PRUNED):
        board.print(finished_line(status, run.id))
    else:
        hint = f"Continue it: moe train --resume {sanitise(run.id)}"
        board.print(Text(f"{sanitise(run.id)} is {status.status} and not running. {hint}"))
    return 0 if status.status in DONE else 1


def _waits(status: RunStatus) -> bool:
    """Returns whether a run is expected to start or continue: its sweep is running, or it was created recently."""
    young = status.status == PENDING and time.time() - status.created < STALE_SECONDS
    return status.status in (PENDING, INTERRUPTED) and (young or is_sweep_running(status.run.path.parent))


def _step(status: RunStatus) -> str:
    return f"step {status.step:,}" + (f"/{status.steps:,}" if status.steps else "")


def run_panel(status: RunStatus, curve: Sequence[float], width: int, now: float) -> Group:
    """Returns the progress of one run: step and time left, losses and load, the curve so far."""
    texts = {"share": Text(f"{100 * status.progress:z.0f} %")}
    if status.tokens_per_second is not None:
        texts["speed"] = Text(f"{count(status.tokens_per_second)} tok/s")
    if status.started and 0 < status.progress < 1:
        texts["left"] = Text(duration((now - status.started) / status.progress * (1 - status.progress)) + " left")
    head = bar_line(_step(status), status.progress, texts, ("speed", "share"), width)
    rows: list[Any] = [
        Text(f"{sanitise(status.run.id)}   {status.status}", "bold", no_wrap=True, overflow="ellipsis"),
        head,
    ]
    rows.append(Text("  " + "   ".join(_facts(status)), no_wrap=True, overflow="ellipsis"))
    if len(curve) > 1:
        rows.append(Text(f"  curve {curve[0]:z.3f} {sparkline(curve, CURVE_WIDTH)} {curve[-1]:z.3f}", no_wrap=True))
    if status.status == FAILED:
        rows.append(Text(failure_reason(status), "red", no_wrap=True, overflow="ellipsis"))
    return Group(*rows)


def _facts(status: RunStatus) -> list[str]:
    facts = [] if status.train_loss is None else [f"train {status.train_loss:z.3f}"]
    if status.val_loss is not None:
        bits = "" if status.val_bpb is None else f" ({status.val_bpb:z.3f} bits/byte)"
        facts.append(f"val {status.val_loss:z.3f}{bits}")
    if status.max_violation is not None:
        facts.append(f"MaxVio {percent(status.max_violation, signed=True)}")
    if status.dead_experts is not None:
        facts.append(f"dead {percent(status.dead_experts)}")
    return facts or ["starting"]
