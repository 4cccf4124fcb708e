"""Scheduler of many runs: starts runs in a pool, collects exit codes, and applies timeouts and retries.

A *feed* gives the next run. A *pool* executes runs. Every pool starts the same worker, `python -m
moe_cli.execution.worker RUN_FOLDER OUTPUTS` or its equal, which reads and writes the run's folder and nothing else. The
outcome of a run is in its folder, so that a failure affects only that run.
"""

import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from moe_cli.errors import DiskFull, RunBusy, UnsafePath
from moe_cli.execution.worker import EXIT_BUSY, EXIT_DISK_FULL, EXIT_FAILED, EXIT_INTERRUPTED
from moe_cli.files.writing import check_file
from moe_cli.formatting import duration
from moe_cli.runs.folder import COMPLETED, FAILED, PRUNED, Run
from moe_cli.runs.locks import is_locked, lock
from moe_cli.runs.recorder import Recorder
from moe_cli.training.signals import interrupt_on_signals

POLL_SECONDS = 0.2
# For saving: when the sweep is stopped, and when a run is.
STOP_SECONDS, GRACE_SECONDS = 60.0, 20.0


class Job(Protocol):
    """One run at work somewhere."""

    def poll(self) -> int | None:
        """Returns None while the worker is running, then its exit code, negative for a signal.

        The codes are those of `moe_cli.execution.worker`.
        """

    def stop(self) -> None:
        """Asks it to save and stop; it will end with STOPPED."""

    def kill(self) -> None:
        """Ends it at once."""


class Pool(Protocol):
    """Carries runs out: on this machine, on a cluster."""

    def room(self) -> int:
        """Returns the number of further runs that may start now."""

    def start(self, run: Run) -> Job:
        """Starts a run whose folder is there."""

    def close(self) -> None:
        """Leaves nothing running."""


@runtime_checkable
class SupportsWait(Protocol):
    """A pool that knows at once when a run ends."""

    def wait(self, seconds: float) -> None:
        """Waits until a run ends, at most `seconds`."""


@runtime_checkable
class SupportsCapacity(Protocol):
    """A pool that knows the resources that runs need."""

    def fits(self, run: Run) -> bool:
        """Returns whether the pool can hold the run next to the running ones.

        If none is running, every run may start.
        """


@runtime_checkable
class SupportsQueueState(Protocol):
    """A job that may have to wait for a place."""

    def queued(self) -> bool:
        """Returns whether the job waits in a queue."""


class RunSource(Protocol):
    """Gives the runs that are to be carried out, one after the other."""

    def next_run(self) -> Run | None:
        """Returns the next run, or None if there is none now."""

    def requeue(self, run: Run) -> None:
        """Puts back a run that another process is executing, to be requested again later."""

    def ended(self, run: Run) -> None:
        """Handles a run that is completed, failed or pruned."""

    def waiting(self) -> int:
        """Returns the known number of runs that `next_run` will still give; 0 ends the sweep when no run is running."""

    def to_prune(self, running: Sequence[Run]) -> list[Run]:
        """Returns the running runs that are to be pruned."""


class RunList:
    """A feed of runs that are known from the start."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = deque(runs)

    def next_run(self) -> Run | None:
        return self._runs.popleft() if self._runs else None

    def requeue(self, run: Run) -> None:
        self._runs.append(run)

    def ended(self, run: Run) -> None: ...

    def waiting(self) -> int:
        return len(self._runs)

    def to_prune(self, running: Sequence[Run]) -> list[Run]:
        return []


@dataclass(frozen=True)
class FailurePolicy:
    """Limits and retries of runs that fail.

    Attributes:
        timeout: seconds that a run may take, without the time in a cluster's queue; None means no limit.
        retries: the number of times that a failed run starts again, from its last checkpoint. A run that timed out does
            not.
        fail_fast: the first run that fails ends the sweep; the other running ones save and stop.
    """

    timeout: float | None = None
    retries: int = 0
    fail_fast: bool = False


@dataclass
class Progress:
    """The state of a sweep, given to the observer at every change and about five times a second.

    Attributes:
        retried: the number of times that a failed run was queued again.
    """

    waiting: int = 0
    running: dict[Run, Job] = field(default_factory=dict)
    finished: list[Run] = field(default_factory=list)
    failed: list[Run] = field(default_factory=list)
    pruned: list[Run] = field(default_factory=list)
    retried: int = 0


Observer = Callable[[Progress], None]


def _ignore(*progress: Progress) -> None: ...


def run_all(
    feed: RunSource,
    pool: Pool,
    observer: Observer = _ignore,
    rules: FailurePolicy = FailurePolicy(),
    on_stop: Callable[[], None] = _ignore,
) -> Progress:
    """Executes all runs of the feed.

    A run that another process is executing is waited for and not executed twice. On KeyboardInterrupt or another error
    here, the runs are asked to save and stop before the exception is raised again. `on_stop` is then called.

    Raises:
        DiskFull: a run could not write. The same command continues all runs.
    """
    run_all = _Scheduler(feed, pool, rules)
    progress = run_all.progress
    with interrupt_on_signals():
        try:
            while run_all.waiting() or progress.running:
                run_all.start()
                run_all.collect()
                progress.waiting = run_all.waiting()
                observer(progress)
                if rules.fail_fast and progress.failed:
                    run_all.stop(on_stop)
                    break
                run_all.enforce_limits()
                run_all.wait()
        except BaseException:
            run_all.stop(on_stop)
            raise
        finally:
            pool.close()
    progress.waiting = run_all.waiting()
    observer(progress)
    return progress


class _Scheduler:
    """The state of each run during a sweep."""

    def __init__(self, feed: RunSource, pool: Pool, rules: FailurePolicy) -> None:
        self.feed = feed
        self.pool = pool
        self.rules = rules
        self.progress = Progress()
        self.began = time.time()
        self.deferred: Run | None = None  # taken from the feed, waits for memory
        self.starts = Counter[Run]()
        self.started: dict[Run, float] = {}
        self.endings: dict[Run, _StopRequest] = {}

    def waiting(self) -> int:
        return self.feed.waiting() + (self.deferred is not None)

    def start(self) -> None:
        for _ in range(self.waiting()):
            if self.pool.room() < 1:
                return
            run = self.deferred or self.feed.next_run()
            self.deferred = None
            if run is None:
                return
            if self._settled(run):
                self.feed.ended(run)
            elif is_locked(run.path):
                self.feed.requeue(run)
            elif self.progress.running and isinstance(self.pool, SupportsCapacity) and not self.pool.fits(run):
                self.deferred = run
                return
            else:
                self._begin(run)

    def _begin(self, run: Run) -> None:
        """Starts a run; one whose folder links elsewhere fails, with the reason in it."""
        try:
            for name in (".lock", "log.txt"):
                check_file(run.path / name)
            self.progress.running[run] = self.pool.start(run)
        except UnsafePath as error:
            _record_end(run, FAILED, str(error))
            self.progress.failed.append(run)
            self.feed.ended(run)
        else:
            self.started[run] = time.monotonic()
            self.starts[run] += 1

    def _settled(self, run: Run) -> bool:
        """Returns whether the run has ended already. A failure in another process counts as its end."""
        status = run.status()
        ends = {COMPLETED: self.progress.finished, FAILED: self.progress.failed, PRUNED: self.progress.pruned}
        end = ends.get(status["status"])
        if end is None or (status["status"] != COMPLETED and (self.starts[run] or self._before(status))):
            return False
        end.append(run)
        return True

    def _before(self, status: Mapping[str, Any]) -> bool:
        """Returns whether this status was written before the sweep began."""
        said = status.get("heartbeat")
        return not isinstance(said, int | float) or said < self.began

    def collect(self) -> None:
        """Collects the exit codes of ended runs. Raises DiskFull."""
        for run, job in list(self.progress.running.items()):
            code = job.poll()
            if code is not None:
                del self.progress.running[run]
                self._end(run, code, self.endings.pop(run, None))

    def _end(self, run: Run, code: int, ending: "_StopRequest | None") -> None:
        progress, again = self.progress, False
        if run.summary() is not None:
            progress.finished.append(run)
        elif code == EXIT_BUSY:
            self.starts[run] -= 1
            again = True
        elif code == EXIT_DISK_FULL:
            raise DiskFull(
                f"{run.id} could not write: the disk is full, see {run.path / 'log.txt'}\n"
                "Make room; the same command goes on."
            )
        elif not ending and self.starts[run] <= self.rules.retries:
            progress.retried += 1
            again = True
        elif not (_record_end(run, ending.status, ending.reason) if ending else record_worker_failure(run, code)):
            again = True  # another process has taken it up meanwhile
        else:
            (progress.pruned if ending and ending.status == PRUNED else progress.failed).append(run)
        (self.feed.requeue if again else self.feed.ended)(run)

    def enforce_limits(self) -> None:
        """Asks those to stop that take too long or promise nothing, and ends those that do not."""
        now, running, limit = time.monotonic(), self.progress.running, self.rules.timeout
        for run in self.feed.to_prune([run for run in running if run not in self.endings]):
            step = run.status().get("step")
            self._ask(run, _StopRequest(PRUNED, f"pruned: others do better{f' (step {step})' if step else ''}", now))
        for run, job in running.items():
            if isinstance(job, SupportsQueueState) and job.queued():
                self.started[run] = now
            if run in self.endings:
                if now - self.endings[run].asked > GRACE_SECONDS:
                    job.kill()
            elif limit is not None and now - self.started[run] > limit:
                self._ask(run, _StopRequest(FAILED, f"took longer than {duration(limit)} (--timeout)", now))

    def _ask(self, run: Run, ending: "_StopRequest") -> None:
        self.endings[run] = ending
        self.progress.running[run].stop()

    def wait(self) -> None:
        """Waits until a run may have ended; at most POLL_SECONDS, so that displays are updated."""
        if isinstance(self.pool, SupportsWait):
            self.pool.wait(POLL_SECONDS)
        else:
            time.sleep(POLL_SECONDS)

    def stop(self, on_stop: Callable[[], None]) -> None:
        """Asks every worker to save, waits, and ends those that do not; a second Ctrl-C ends them at once."""
        jobs = self.progress.running
        try:
            for job in jobs.values():
                job.stop()
            with suppress(Exception):  # an error of a display must not keep runs from stopping
                on_stop()
            deadline = time.monotonic() + STOP_SECONDS
            while any(job.poll() is None for job in jobs.values()) and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS / 4)
        except KeyboardInterrupt:
            pass
        finally:
            for job in jobs.values():
                if job.poll() is None:
                    job.kill()
        self.progress.finished += [run for run in jobs if run.summary() is not None]
        jobs.clear()


@dataclass(frozen=True)
class _StopRequest:
    """A request to stop a run: its final status, the reason, and the monotonic time of the request."""

    status: str
    reason: str
    asked: float


def record_worker_failure(run: Run, code: int) -> bool:
    """Writes why a worker ended that could not say so itself; False if another process is working on the run."""
    status = run.status()
    if code == EXIT_FAILED and status["status"] == FAILED and status.get("reason"):
        return True
    if code < 0:
        name = next((each.name for each in signal.Signals if each == -code), "a real-time signal")
        reason = f"killed by signal {-code} ({name})"
        reason += ": out of memory? Lower train.batch_size or -j" if -code == signal.SIGKILL else ""
    elif code == EXIT_INTERRUPTED:
        reason = f"stopped from outside; {run.kept()}"
    else:
        reason = status.get("reason") or f"ended with exit code {code}"
    log = run.path / "log.txt"
    return _record_end(run, FAILED, f"{reason} (log: {log})" if log.is_file() else reason)


def _record_end(run: Run, status: str, reason: str) -> bool:
    """Writes how a run has ended; False if another process is working on it."""
    try:
        with lock(run.path):
            Recorder(run).status(status, reason=reason)
    except RunBusy:
        return False
    except UnsafePath:  # of the lock: no process holds it
        with suppress(OSError, UnsafePath):
            Recorder(run).status(status, reason=reason)
    except OSError:
        pass
    return True


def pending_runs(runs: Sequence[Run], retry_failed: bool) -> list[Run]:
    """Returns the runs that are neither done nor pruned; failed ones only on request."""
    skip = {COMPLETED, PRUNED} if retry_failed else {COMPLETED, PRUNED, FAILED}
    return [run for run in runs if run.status()["status"] not in skip]
