"""Carrying out many runs: one process per run, so that whatever befalls a run costs only that run.

The seam for other executors is a function (runs, outputs, observer) -> None that leaves every run's outcome in its folder;
the worker it must start is `python -m moe_cli.run RUN_FOLDER OUTPUTS`.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from moe_cli.errors import RunBusy
from moe_cli.run import BUSY, DONE, STOPPED, WRONG
from moe_cli.store import COMPLETED, FAILED, Recorder, Run, is_locked, lock, outputs_folder
from moe_cli.sweeps.plan import plan_sweep

if TYPE_CHECKING:
    import pandas as pd

POLL_SECONDS = 0.2
STOP_SECONDS = 60.0


@dataclass
class Progress:
    """Where a sweep stands; given to the observer at every change and about five times a second."""

    waiting: deque[Run]
    running: dict[Run, subprocess.Popen[bytes]] = field(default_factory=dict)
    finished: list[Run] = field(default_factory=list)
    failed: list[Run] = field(default_factory=list)


Observer = Callable[[Progress], None]


def default_workers() -> int:
    """One run per two cores: small models gain little from more, and each needs some memory."""
    return max(1, (os.cpu_count() or 1) // 2)


def threads_per_run(workers: int) -> int:
    """The cores divided among the runs that go on at a time."""
    return max(1, (os.cpu_count() or 1) // workers)


def run_local(runs: Sequence[Run], outputs: Path, workers: int, observer: Observer = lambda progress: None) -> Progress:
    """Carries out `runs` on this machine, `workers` at a time, cores divided among them.

    A run that another process is working on is waited for and not done twice. On KeyboardInterrupt, or if anything else
    goes wrong here, the runs are asked to save and stop before the exception goes on.
    """
    threads = threads_per_run(workers)
    progress = Progress(deque(runs))
    # Python allows handlers in the main thread alone: `sweep` may be called in another.
    in_main = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGTERM, _interrupt) if in_main else None
    try:
        while progress.waiting or progress.running:
            _start(progress, outputs, workers, threads)
            _collect(progress)
            observer(progress)
            time.sleep(POLL_SECONDS)
    except BaseException:
        _stop(progress)
        raise
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)
    observer(progress)
    return progress


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _start(progress: Progress, outputs: Path, workers: int, threads: int) -> None:
    for _ in range(len(progress.waiting)):
        if len(progress.running) >= workers:
            return
        run = progress.waiting.popleft()
        if run.summary() is not None:
            progress.finished.append(run)
        elif is_locked(run.path):
            progress.waiting.append(run)
        else:
            progress.running[run] = _spawn(run, outputs, threads)


def _spawn(run: Run, outputs: Path, threads: int) -> subprocess.Popen[bytes]:
    """Its own session: Ctrl-C reaches it through us, once, as a request to save."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    with open(run.path / "log.txt", "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "moe_cli.run", str(run.path), str(outputs)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
        )  # fmt: skip


def _collect(progress: Progress) -> None:
    for run, process in list(progress.running.items()):
        code = process.poll()
        if code is None:
            continue
        del progress.running[run]
        if code == BUSY:
            progress.waiting.append(run)
        elif code == DONE and run.summary() is not None:
            progress.finished.append(run)
        else:
            progress.failed.append(run)
            _explain(run, code)


def _explain(run: Run, code: int) -> None:
    """Writes why a worker ended that could not say so itself."""
    if code == WRONG and run.status()["status"] == FAILED:
        return
    if code < 0:
        name = next((each.name for each in signal.Signals if each == -code), "a real-time signal")
        reason = f"killed by signal {-code} ({name})"
        reason += ": out of memory? Lower train.batch_size or -j" if -code == signal.SIGKILL else ""
    elif code == STOPPED:
        reason = "stopped from outside; its checkpoint is saved"
    else:
        reason = run.status().get("reason") or f"ended with exit code {code}"
    try:
        with lock(run.path):
            Recorder(run).status(FAILED, reason=f"{reason} (log: {run.path / 'log.txt'})")
    except (RunBusy, OSError):
        pass


def _stop(progress: Progress) -> None:
    """Asks every worker to save, waits, and ends those that do not; a second Ctrl-C ends them at once."""
    processes = list(progress.running.values())
    try:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        for process in processes:
            process.wait(timeout=max(0.1, deadline - time.monotonic()))
    except (KeyboardInterrupt, subprocess.TimeoutExpired):
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


def to_do(runs: Sequence[Run], retry_failed: bool) -> list[Run]:
    """The runs that are not done; failed ones only on request."""
    skip = {COMPLETED} if retry_failed else {COMPLETED, FAILED}
    return [run for run in runs if run.status()["status"] not in skip]


def sweep(
    words: Sequence[str],
    *,
    seeds: int | None = None,
    name: str | None = None,
    workers: int | None = None,
    outputs: Path | None = None,
) -> "pd.DataFrame":
    """Carries out `moe sweep WORDS` and gives one row a run, as `load_runs` does.

    Raises:
        MoeError: a word is wrong, or no point can be run. A run that fails is a row with status `failed`.
    """
    from moe_cli.report.frame import load_runs

    folder = outputs_folder(outputs)
    plan = plan_sweep(words, seeds=seeds, name=name).pinned(folder)
    run_local(to_do(plan.open(folder), retry_failed=False), folder, workers or default_workers())
    return load_runs(folder / plan.name)
