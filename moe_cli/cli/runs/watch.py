"""moe runs watch: a sweep or a run seen from another terminal, by its folders alone."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.text import Text

from moe_cli.cli.progress import LivePanel, SweepProgress, bar_line, failure_reason, finished_line
from moe_cli.cli.runs.settings import run_labels
from moe_cli.formatting import count, duration, percent, plural, printable, sparkline
from moe_cli.runs.curves import validation_curve
from moe_cli.runs.folder import COMPLETED, FAILED, INTERRUPTED, PENDING, PRUNED, RUNNING, Run
from moe_cli.runs.locks import is_sweep_running
from moe_cli.runs.lookup import find_folder, find_run, is_run, list_runs, list_runs_by_age, newest_sweep
from moe_cli.runs.status import RunStatus, StatusCache

POLL_SECONDS = 1.0
# A sweep without a process on this machine, whose folders did not change for this long, was stopped.
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
    """The runs of a sweep's folder, looked at again and again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs: list[Run] = []
        self._watcher = StatusCache()
        self._scanned = (0, 0.0)

    def rescan(self) -> bool:
        """Looks for runs that were added or removed. True when there were any."""
        changed, before = os.stat(self.folder).st_mtime_ns, self._scanned
        if before[0] == changed and time.monotonic() - before[1] < RESCAN_SECONDS:
            return False
        self._scanned = (changed, time.monotonic())
        found = sorted(list_runs(self.folder), key=lambda run: run.id)
        found, self.runs, old = found, found, self.runs
        return found != old

    def standing(self) -> tuple[SweepProgress, float]:
        """Returns their states, and the time of the last heartbeat."""
        seen = [self._watcher.get(run) for run in self.runs]
        by = {
            status: [each for each in seen if each.status == status] for status in (COMPLETED, RUNNING, FAILED, PRUNED)
        }
        waiting = len(seen) - sum(map(len, by.values()))
        last_heartbeat = max((max(each.created, each.started, each.last_heartbeat) for each in seen), default=0.0)
        return SweepProgress(by[COMPLETED], by[RUNNING], by[FAILED], waiting, len(by[PRUNED])), last_heartbeat


def watch_sweep(console: Console, folder: Path, sleep: Sleep = time.sleep) -> int:
    """Shows a sweep until it ends or stops. Returns the exit code: 0, or 3 if runs are not complete."""
    sweep = SweepFolder(folder)
    reported: dict[Path, str] | None = None
    with LivePanel(console, {}) as board:
        while True:
            if sweep.rescan():
                board.labels = run_labels(sweep.runs)
            standing, last_heartbeat = sweep.standing()
            changed = _changed(standing, reported or {})
            for each in changed if not console.is_terminal or reported is not None else []:
                if not (console.is_terminal and each.status == RUNNING):
                    board.print(_change(each, board.label(each.run)))
            reported = {**(reported or {}), **{each.run.path: each.status for each in changed}}
            board.show(standing)
            waits = standing.waiting and (is_sweep_running(folder) or time.time() - last_heartbeat < STALE_SECONDS)
            if not standing.running and not waits:
                break
            sleep(POLL_SECONDS)
    return _end(console, folder.name, standing)


def _changed(standing: SweepProgress, reported: Mapping[Path, str]) -> list[RunStatus]:
    """Returns the runs that began or ended since `reported`, in that order."""
    seen = (*standing.done, *standing.failed, *standing.running)
    changed = [each for each in seen if reported.get(each.run.path) != each.status]
    return sorted(changed, key=lambda each: each.started if each.status == RUNNING else each.last_heartbeat)


def _change(each: RunStatus, label: str) -> Text:
    return Text(f"running {printable(label)}") if each.status == RUNNING else finished_line(each, label)


def _end(console: Console, name: str, standing: SweepProgress) -> int:
    text = f"{len(standing.done)} of {plural(standing.total, 'run')} complete"
    text += f", {len(standing.failed)} failed" if standing.failed else ""
    text += f", {standing.pruned} pruned" if standing.pruned else ""
    text += f", {standing.waiting} to go and not running: the same sweep command continues" if standing.waiting else ""
    console.print(Text(f"{text}. See: moe report {printable(name)}"), soft_wrap=True, highlight=False)
    return 3 if standing.failed or standing.waiting else 0


def watch_run(console: Console, run: Run, sleep: Sleep = time.sleep) -> int:
    """Shows a run until it ends or stops. Returns the exit code: 0 if it is complete, else 1."""
    watcher, reported = StatusCache(), None
    last, curve = None, list[float]()
    with LivePanel(console, {}) as board:
        while True:
            each = watcher.get(run)
            if each is not last:
                last, curve = each, validation_curve(run).values
            news = each.val_loss if each.status == RUNNING else None
            if not console.is_terminal and news is not None and news != reported:
                reported = news
                board.print(Text("  ".join([_step(each), *_facts(each)])))
            board.draw(run_panel(each, curve, console.width, time.time()))
            if each.status != RUNNING and not _waits(each):
                break
            sleep(POLL_SECONDS)
    if each.status in (COMPLETED, FAILED, PRUNED):
        board.print(finished_line(each, run.id))
    else:
        hint = f"Continue it: moe train --resume {printable(run.id)}"
        board.print(Text(f"{printable(run.id)} is {each.status} and not running. {hint}"))
    return 0 if each.status == COMPLETED else 1


def _waits(each: RunStatus) -> bool:
    """Returns whether a run is expected to start or continue: its sweep is running, or it was created recently."""
    young = each.status == PENDING and time.time() - each.created < STALE_SECONDS
    return each.status in (PENDING, INTERRUPTED) and (young or is_sweep_running(each.run.path.parent))


def _step(each: RunStatus) -> str:
    return f"step {each.step:,}" + (f"/{each.steps:,}" if each.steps else "")


def run_panel(each: RunStatus, curve: Sequence[float], width: int, now: float) -> Group:
    """Returns the progress of one run: step and time left, losses and load, the curve so far."""
    texts = {"share": Text(f"{100 * each.progress:z.0f} %")}
    if each.tokens_per_second is not None:
        texts["speed"] = Text(f"{count(each.tokens_per_second)} tok/s")
    if each.started and 0 < each.progress < 1:
        texts["left"] = Text(duration((now - each.started) / each.progress * (1 - each.progress)) + " left")
    head = bar_line(_step(each), each.progress, texts, ("speed", "share"), width)
    rows: list[Any] = [
        Text(f"{printable(each.run.id)}   {each.status}", "bold", no_wrap=True, overflow="ellipsis"),
        head,
    ]
    rows.append(Text("  " + "   ".join(_facts(each)), no_wrap=True, overflow="ellipsis"))
    if len(curve) > 1:
        rows.append(Text(f"  curve {curve[0]:z.3f} {sparkline(curve, CURVE_WIDTH)} {curve[-1]:z.3f}", no_wrap=True))
    if each.status == FAILED:
        rows.append(Text(failure_reason(each), "red", no_wrap=True, overflow="ellipsis"))
    return Group(*rows)


def _facts(each: RunStatus) -> list[str]:
    facts = [] if each.train_loss is None else [f"train {each.train_loss:z.3f}"]
    if each.val_loss is not None:
        bits = "" if each.val_bpb is None else f" ({each.val_bpb:z.3f} bits/byte)"
        facts.append(f"val {each.val_loss:z.3f}{bits}")
    if each.max_violation is not None:
        facts.append(f"MaxVio {percent(each.max_violation, signed=True)}")
    if each.dead_experts is not None:
        facts.append(f"dead {percent(each.dead_experts)}")
    return facts or ["starting"]
