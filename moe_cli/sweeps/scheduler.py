"""Scheduler of many runs: starts runs in a pool, collects exit codes, and applies timeouts and retries.

A *feed* gives the next run. A *pool* executes runs, each by the worker `python -m moe_cli.execution.worker RUN_FOLDER
OUTPUTS` or an equivalent process. The worker writes only the folder of its run and the caches of outputs/.cache, so
that a failure affects no other run.

A sweep executes each run exactly once, also if several processes execute the same sweep. Four steps ensure this:

    sweeps/plan.py        equal points of a sweep become one configuration
    runs/folder.py        one configuration has one folder in a sweep, named after the digest of its settings
    this module           a run starts if it has not ended and no process holds its lock
    execution/run.py      the worker locks the folder and stops if there is a summary (`claim_run` of runs/locks.py)
"""

import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
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
# The time that runs have to save: when the whole sweep is stopped, and when a single run is.
STOP_SECONDS, GRACE_SECONDS = 60.0, 20.0


class Job(Protocol):
    """A run that a pool has started."""

    def poll(self) -> int | None:
        """Returns None while the worker is running, then its exit code, negative for a signal.

        The codes are those of `moe_cli.execution.worker`.
        """

    def stop(self) -> None:
        """Asks the worker to save and stop; it then ends with EXIT_INTERRUPTED."""

    def kill(self) -> None:
        """Kills the worker."""


class Pool(Protocol):
    """Executes runs on this machine or on a cluster."""

    @property
    def workers(self) -> int:
        """Returns the maximum number of parallel runs."""

    def room(self) -> int:
        """Returns the number of further runs that may start now."""

    def start(self, run: Run) -> Job:
        """Starts a run, whose folder exists."""

    def close(self) -> None:
        """Kills the runs that are left."""


@runtime_checkable
class SupportsWait(Protocol):
    """A pool that can wait for the end of a run."""

    def wait(self, seconds: float) -> None:
        """Waits until a run ends, at most `seconds`."""


@runtime_checkable
class SupportsCapacity(Protocol):
    """A pool that knows the memory that runs need."""

    def fits(self, run: Run) -> bool:
        """Returns whether the run fits next to the running ones. Not asked if none is running."""


@runtime_checkable
class SupportsQueueState(Protocol):
    """A job that may wait in a queue."""

    def queued(self) -> bool:
        """Returns whether the job is waiting."""


class RunFeed(Protocol):
    """The feed of the scheduler: gives one run after the other."""

    def next_run(self) -> Run | None:
        """Returns the next run; None if no run can start now."""

    def return_run(self, run: Run) -> None:
        """Returns a run to the feed, which gives it again later."""

    def ended(self, run: Run) -> None:
        """Handles the end of a run: completed, failed or pruned."""

    def waiting(self) -> int:
        """Returns the number of runs that are still to start. The sweep ends at 0 when no run is running."""

    def to_prune(self, running: Sequence[Run]) -> list[Run]:
        """Returns those of the running runs that are to be pruned."""


class ListFeed:
    """Feed of a queue of runs. A returned run is given again when no other process executes it, or no other is left."""

    def __init__(self, runs: Iterable[Run] = ()) -> None:
        self._waiting = deque(runs)
        self._busy: deque[Run] = deque()  # returned
        self._active: set[Run] = set()  # given, and neither returned nor ended

    def next_run(self) -> Run | None:
        if self._waiting:
            run = self._waiting.popleft()
        elif self._busy:
            run = next((run for run in self._busy if not is_locked(run.path)), self._busy[0])
            self._busy.remove(run)
        else:
            return None
        self._active.add(run)
        return run

    def return_run(self, run: Run) -> None:
        self._active.discard(run)
        self._busy.append(run)

    def ended(self, run: Run) -> None:
        self._active.discard(run)

    def waiting(self) -> int:
        return len(self._waiting) + len(self._busy)

    def to_prune(self, running: Sequence[Run]) -> list[Run]:
        return []


@dataclass(frozen=True)
class FailurePolicy:
    """Limits and retries of runs that fail.

    Attributes:
        timeout: the limit of a run's time in seconds, without its time in a queue; None means no limit.
        retries: how many times a failed run starts again from its last checkpoint. Runs that timed out do not.
        fail_fast: stop the sweep at the first failure; the other runs save and stop.
    """

    timeout: float | None = None
    retries: int = 0
    fail_fast: bool = False


@dataclass
class Progress:
    """The state of a sweep, which the observer receives at each change and about five times a second.

    Attributes:
        retried: how many times failed runs were queued again.
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
    feed: RunFeed,
    pool: Pool,
    observer: Observer = _ignore,
    rules: FailurePolicy = FailurePolicy(),
    on_stop: Callable[[], None] = _ignore,
) -> Progress:
    """Executes all runs of the feed.

    The scheduler does not execute a run of another process, but waits for its end. On KeyboardInterrupt or another
    exception, it asks the running runs to save and stop, calls `on_stop`, and raises the exception again.

    Raises:
        DiskFull: the disk is full, so that a run could not write.
    """
    scheduler = _Scheduler(feed, pool, rules)
    progress = scheduler.progress
    with interrupt_on_signals():
        try:
            while scheduler.waiting() or progress.running:
                scheduler.start()
                scheduler.collect()
                progress.waiting = scheduler.waiting()
                observer(progress)
                if rules.fail_fast and progress.failed:
                    scheduler.stop(on_stop)
                    break
                scheduler.enforce_limits()
                scheduler.wait()
        except BaseException:
            scheduler.stop(on_stop)
            raise
        finally:
            pool.close()
    progress.waiting = scheduler.waiting()
    observer(progress)
    return progress


class _Scheduler:
    """Starts, observes and stops the runs of a sweep."""

    def __init__(self, feed: RunFeed, pool: Pool, rules: FailurePolicy) -> None:
        self.feed = feed
        self.pool = pool
        self.rules = rules
        self.progress = Progress()
        self.start_time = time.time()
        self.deferred: Run | None = None  # taken from the feed, but too large for the free memory
        self.num_starts = Counter[Run]()
        self.start_times: dict[Run, float] = {}
        self.stop_requests: dict[Run, _StopRequest] = {}

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
            if self._has_ended(run):
                self.feed.ended(run)
            elif is_locked(run.path):
                self.feed.return_run(run)
            elif self.progress.running and isinstance(self.pool, SupportsCapacity) and not self.pool.fits(run):
                self.deferred = run
                return
            else:
                self._begin(run)

    def _begin(self, run: Run) -> None:
        """Starts a run. A run with links in its folder fails, and its status says why."""
        try:
            for name in (".lock", "log.txt"):
                check_file(run.path / name)
            self.progress.running[run] = self.pool.start(run)
        except UnsafePath as error:
            _record_end(run, FAILED, str(error))
            self.progress.failed.append(run)
            self.feed.ended(run)
        else:
            self.start_times[run] = time.monotonic()
            self.num_starts[run] += 1

    def _has_ended(self, run: Run) -> bool:
        """Returns whether the run has ended, here or in another process, and then counts it."""
        status = run.status()
        ends = {COMPLETED: self.progress.finished, FAILED: self.progress.failed, PRUNED: self.progress.pruned}
        end = ends.get(status["status"])
        if end is None or (status["status"] != COMPLETED and (self.num_starts[run] or self._is_older(status))):
            return False
        end.append(run)
        return True

    def _is_older(self, status: Mapping[str, Any]) -> bool:
        """Returns whether a status was written before this sweep started."""
        heartbeat = status.get("heartbeat")
        return not isinstance(heartbeat, int | float) or heartbeat < self.start_time

    def collect(self) -> None:
        """Handles the runs that have ended. Raises DiskFull."""
        for run, job in list(self.progress.running.items()):
            code = job.poll()
            if code is not None:
                del self.progress.running[run]
                self._end(run, code, self.stop_requests.pop(run, None))

    def _end(self, run: Run, code: int, request: "_StopRequest | None") -> None:
        progress, retry = self.progress, False
        if run.summary() is not None:
            progress.finished.append(run)
        elif code == EXIT_BUSY:
            self.num_starts[run] -= 1
            retry = True
        elif code == EXIT_DISK_FULL:
            raise DiskFull(
                f"{run.id} could not write: the disk is full, see {run.path / 'log.txt'}\n"
                "Make room; the same command goes on."
            )
        elif not request and self.num_starts[run] <= self.rules.retries:
            progress.retried += 1
            retry = True
        elif not (_record_end(run, request.status, request.reason) if request else record_worker_failure(run, code)):
            retry = True  # another process executes the run now
        else:
            (progress.pruned if request and request.status == PRUNED else progress.failed).append(run)
        (self.feed.return_run if retry else self.feed.ended)(run)

    def enforce_limits(self) -> None:
        """Stops runs that exceed the timeout or are to be pruned, and kills those that do not stop in time."""
        now, running, limit = time.monotonic(), self.progress.running, self.rules.timeout
        for run in self.feed.to_prune([run for run in running if run not in self.stop_requests]):
            step = run.status().get("step")
            reason = f"pruned: other runs are better{f' (step {step})' if step else ''}"
            self._request_stop(run, _StopRequest(PRUNED, reason, now))
        for run, job in running.items():
            if isinstance(job, SupportsQueueState) and job.queued():
                self.start_times[run] = now
            if run in self.stop_requests:
                if now - self.stop_requests[run].time > GRACE_SECONDS:
                    job.kill()
            elif limit is not None and now - self.start_times[run] > limit:
                self._request_stop(run, _StopRequest(FAILED, f"took longer than {duration(limit)} (--timeout)", now))

    def _request_stop(self, run: Run, request: "_StopRequest") -> None:
        self.stop_requests[run] = request
        self.progress.running[run].stop()

    def wait(self) -> None:
        """Waits until a run may have ended, at most POLL_SECONDS, so that the display stays up to date."""
        if isinstance(self.pool, SupportsWait):
            self.pool.wait(POLL_SECONDS)
        else:
            time.sleep(POLL_SECONDS)

    def stop(self, on_stop: Callable[[], None]) -> None:
        """Asks the workers to save, waits, and kills those that are late. A second Ctrl-C kills all at once."""
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
    time: float


def record_worker_failure(run: Run, code: int) -> bool:
    """Records the failure of a worker that could not record it itself.

    Returns False if another process executes the run.
    """
    status = run.status()
    if code == EXIT_FAILED and status["status"] == FAILED and status.get("reason"):
        return True
    if code < 0:
        name = next((known.name for known in signal.Signals if known == -code), "a real-time signal")
        reason = f"killed by signal {-code} ({name})"
        reason += ": out of memory? Lower train.batch_size or -j" if -code == signal.SIGKILL else ""
    elif code == EXIT_INTERRUPTED:
        reason = f"stopped from outside; {run.kept()}"
    else:
        reason = status.get("reason") or f"ended with exit code {code}"
    log = run.path / "log.txt"
    return _record_end(run, FAILED, f"{reason} (log: {log})" if log.is_file() else reason)


def _record_end(run: Run, status: str, reason: str) -> bool:
    """Records the status and reason of an ended run; returns False if another process executes it."""
    try:
        with lock(run.path):
            Recorder(run).status(status, reason=reason)
    except RunBusy:
        return False
    except UnsafePath:  # the lock is a link, so that no process holds it
        with suppress(OSError, UnsafePath):
            Recorder(run).status(status, reason=reason)
    except OSError:
        pass
    return True


def pending_runs(runs: Sequence[Run], retry_failed: bool) -> list[Run]:
    """Returns the runs that are not completed, pruned or, without `retry_failed`, failed."""
    skip = {COMPLETED, PRUNED} if retry_failed else {COMPLETED, PRUNED, FAILED}
    return [run for run in runs if run.status()["status"] not in skip]
