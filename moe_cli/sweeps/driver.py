"""Drives many runs to their end: what starts, what has ended and why. Who carries a run out is a pool's affair.

A *feed* says which run is next, a *pool* carries runs out, and this loop stands between them. Every pool starts the same
worker, `python -m moe_cli.run RUN_FOLDER OUTPUTS` or its equal, which reads and writes the run's folder and nothing else;
a run's outcome stands in its folder, so that whatever befalls a run costs only that run.
"""

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol

from moe_cli.errors import RunBusy
from moe_cli.run import BUSY, DONE, STOPPED, WRONG
from moe_cli.store import COMPLETED, FAILED, PRUNED, Recorder, Run, is_locked, lock

POLL_SECONDS = 0.2
STOP_SECONDS = 60.0


class Job(Protocol):
    """One run at work somewhere."""

    def poll(self) -> int | None:
        """None while it goes on; then its worker's exit code, negative for a signal. See `moe_cli.run`."""

    def stop(self) -> None:
        """Asks it to save and stop; it will end with STOPPED."""

    def kill(self) -> None:
        """Ends it at once."""


class Pool(Protocol):
    """Carries runs out: on this machine, on a cluster."""

    def room(self) -> int:
        """How many more runs may start now."""

    def start(self, run: Run) -> Job:
        """Starts a run whose folder is there."""

    def close(self) -> None:
        """Leaves nothing running."""


class Feed(Protocol):
    """Which runs are wanted."""

    def take(self) -> Run | None:
        """The next run, or None if there is none now."""

    def put_back(self, run: Run) -> None:
        """It is at work elsewhere: ask again later."""

    def ended(self, run: Run) -> None:
        """It is completed, failed or pruned."""

    def waiting(self) -> int:
        """How many runs `take` will still give, as far as is known; 0 ends the sweep when nothing runs."""

    def unpromising(self, running: Sequence[Run]) -> list[Run]:
        """Those at work that are to be stopped for good: pruned."""


class Listed:
    """A feed of runs that are known from the start."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = deque(runs)

    def take(self) -> Run | None:
        return self._runs.popleft() if self._runs else None

    def put_back(self, run: Run) -> None:
        self._runs.append(run)

    def ended(self, run: Run) -> None: ...

    def waiting(self) -> int:
        return len(self._runs)

    def unpromising(self, running: Sequence[Run]) -> list[Run]:
        return []


@dataclass
class Progress:
    """Where a sweep stands; given to the observer at every change and about five times a second."""

    waiting: int = 0
    running: dict[Run, Job] = field(default_factory=dict)
    finished: list[Run] = field(default_factory=list)
    failed: list[Run] = field(default_factory=list)
    pruned: list[Run] = field(default_factory=list)
    pruning: set[Run] = field(default_factory=set)


Observer = Callable[[Progress], None]


def drive(feed: Feed, pool: Pool, observer: Observer = lambda progress: None) -> Progress:
    """Carries out what the feed gives, until it gives no more.

    A run that another process is working on is waited for and not done twice. On KeyboardInterrupt, or if anything else
    goes wrong here, the runs are asked to save and stop before the exception goes on.
    """
    progress = Progress()
    with _sigterm_interrupts():
        try:
            while (waiting := feed.waiting()) or progress.running:
                progress.waiting = waiting
                _start(progress, feed, pool)
                _collect(progress, feed)
                _prune(progress, feed)
                observer(progress)
                time.sleep(POLL_SECONDS)
        except BaseException:
            _stop(list(progress.running.values()))
            raise
        finally:
            pool.close()
    progress.waiting = 0
    observer(progress)
    return progress


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Within it SIGTERM is as Ctrl-C; in other threads than the main one, where Python allows no handlers, nothing is."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _start(progress: Progress, feed: Feed, pool: Pool) -> None:
    for _ in range(feed.waiting()):
        if pool.room() < 1:
            return
        run = feed.take()
        if run is None:
            return
        if run.summary() is not None:
            progress.finished.append(run)
            feed.ended(run)
        elif is_locked(run.path):
            feed.put_back(run)
        else:
            progress.running[run] = pool.start(run)


def _collect(progress: Progress, feed: Feed) -> None:
    for run, job in list(progress.running.items()):
        code = job.poll()
        if code is None:
            continue
        del progress.running[run]
        if code == BUSY:
            feed.put_back(run)
            continue
        if code == DONE and run.summary() is not None:
            progress.finished.append(run)
        elif run in progress.pruning:
            progress.pruned.append(run)
            _mark_pruned(run)
        else:
            progress.failed.append(run)
            explain(run, code)
        feed.ended(run)


def _prune(progress: Progress, feed: Feed) -> None:
    """Asks what is not worth going on with to save and stop."""
    for run in feed.unpromising(list(progress.running)):
        progress.pruning.add(run)
        progress.running[run].stop()


def _mark_pruned(run: Run) -> None:
    with suppress(RunBusy, OSError), lock(run.path):
        Recorder(run).status(PRUNED, reason="pruned")


def explain(run: Run, code: int) -> None:
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


def _stop(jobs: Sequence[Job]) -> None:
    """Asks every worker to save, waits, and ends those that do not; a second Ctrl-C ends them at once."""
    try:
        for job in jobs:
            job.stop()
        deadline = time.monotonic() + STOP_SECONDS
        while any(job.poll() is None for job in jobs) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS / 4)
    except KeyboardInterrupt:
        pass
    finally:
        for job in jobs:
            if job.poll() is None:
                job.kill()


def to_do(runs: Sequence[Run], retry_failed: bool) -> list[Run]:
    """The runs that are not done; failed ones only on request, pruned ones never."""
    skip = {COMPLETED, PRUNED} if retry_failed else {COMPLETED, PRUNED, FAILED}
    return [run for run in runs if run.status()["status"] not in skip]
