"""The loop's rules for runs that fail, hang, promise nothing or do not fit, on a pool that only pretends."""

import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from moe_cli.errors import DiskFull
from moe_cli.execution.worker import EXIT_BUSY, EXIT_DISK_FULL, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK
from moe_cli.runs.folder import Run, create_run
from moe_cli.runs.locks import lock
from moe_cli.runs.recorder import Recorder
from moe_cli.sweeps import scheduler
from moe_cli.sweeps.scheduler import FailurePolicy, ListFeed, Progress, pending_runs, run_all
from tests.tiny import tiny_config


class Pretended:
    """A job that ends with `code` at the first look, or with STOPPED once it is asked to stop, or when it is killed."""

    def __init__(self, run: Run, code: int | None, deaf: bool) -> None:
        self.run, self.code, self.deaf = run, code, deaf
        self.asked = self.killed = self.seen = False

    def poll(self) -> int | None:
        if self.code == EXIT_OK:
            Recorder(self.run).complete({"val_bpb": 1.0})
        if self.code == EXIT_FAILED:
            Recorder(self.run).status("failed", reason="the loss is nan.")
        self.seen = self.code is not None
        return self.code

    def stop(self) -> None:
        self.asked = True
        if self.code is None and not self.deaf:
            self.code = EXIT_INTERRUPTED

    def kill(self) -> None:
        self.killed = True
        self.code = -9


class Pretence:
    """Gives each run the codes of its starts in turn, None for one that goes on; then DONE."""

    def __init__(self, codes: dict[Run, list[int | None]], workers: int = 1, deaf: bool = False) -> None:
        self.codes, self.workers, self.deaf = codes, workers, deaf
        self.jobs: list[Pretended] = []
        self.closed = False

    def room(self) -> int:
        return self.workers - sum(not job.seen for job in self.jobs)

    def start(self, run: Run) -> Pretended:
        codes = self.codes.get(run, [])
        self.jobs.append(Pretended(run, codes.pop(0) if codes else EXIT_OK, self.deaf))
        return self.jobs[-1]

    def wait(self, seconds: float) -> None:
        time.sleep(0.001)

    def close(self) -> None:
        self.closed = True

    def started(self) -> list[Run]:
        return [job.run for job in self.jobs]


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    return [create_run(tmp_path, "sweep", tiny_config(tmp_path, seed=seed)) for seed in range(3)]


def test_a_run_that_fails_is_tried_again_as_often_as_allowed(runs: list[Run]) -> None:
    """With two retries the third start may succeed; a fourth is not made, and being busy elsewhere is no try."""
    lucky, unlucky, busy = runs
    pool = Pretence({lucky: [EXIT_FAILED, -9], unlucky: [EXIT_FAILED] * 4, busy: [EXIT_BUSY] * 5})
    progress = run_all(ListFeed(runs), pool, rules=FailurePolicy(retries=2))
    assert ([unlucky], {lucky, busy}) == (progress.failed, set(progress.finished))
    assert (3, 3, 6) == tuple(pool.started().count(run) for run in runs)
    assert 4 == progress.retried


def test_without_retries_a_failure_is_final(runs: list[Run]) -> None:
    """Each run is started once, and why the first one failed is kept."""
    pool = Pretence({runs[0]: [EXIT_FAILED]})
    progress = run_all(ListFeed(runs), pool)
    assert (runs[:1], runs[1:], runs) == (progress.failed, progress.finished, pool.started())
    assert "the loss is nan." == runs[0].status()["reason"]


def test_fail_fast_stops_the_others(runs: list[Run]) -> None:
    """The first failure has the other one at work save and stop, and the third is never started."""
    pool = Pretence({runs[0]: [None], runs[1]: [EXIT_FAILED]}, workers=2)
    stopping: list[bool] = []
    progress = run_all(ListFeed(runs), pool, rules=FailurePolicy(fail_fast=True), on_stop=lambda: stopping.append(True))
    assert (runs[1:2], runs[:2], 1) == (progress.failed, pool.started(), progress.waiting)
    assert (True, False, True) == (pool.jobs[0].asked, pool.jobs[0].killed, pool.closed)
    assert [True] == stopping


@pytest.mark.parametrize("deaf", [False, True])
def test_a_run_that_takes_too_long_is_stopped(runs: list[Run], deaf: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked to save; one that hangs is killed after a while; it has failed, is not tried again, and says why."""
    monkeypatch.setattr(scheduler, "GRACE_SECONDS", 0.05)
    pool = Pretence({runs[0]: [None]}, deaf=deaf)
    progress = run_all(ListFeed(runs), pool, rules=FailurePolicy(timeout=0.05, retries=3))
    assert (runs[:1], runs[1:], runs) == (progress.failed, progress.finished, pool.started())
    assert (True, deaf) == (pool.jobs[0].asked, pool.jobs[0].killed)
    assert ("failed", "took longer than 0s (--timeout)") == tuple(runs[0].status()[key] for key in ("status", "reason"))


def test_time_in_a_queue_does_not_count(runs: list[Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that waits for a node for longer than it may take is started all the same, and then has its whole time."""
    now = [0.0]
    monkeypatch.setattr(scheduler.time, "monotonic", lambda: now[0])

    class Queued(Pretended):
        def queued(self) -> bool:
            return now[0] < 50

    class Cluster(Pretence):
        def start(self, run: Run) -> Pretended:
            self.jobs.append(Queued(run, None, False))
            return self.jobs[-1]

    pool, asked = Cluster({}), []

    def look(progress: Progress) -> None:
        now[0] += 1
        asked.extend(now[0] for job in pool.jobs if job.asked)

    progress = run_all(ListFeed(runs[:1]), pool, look, FailurePolicy(timeout=20))
    assert runs[:1] == progress.failed
    assert 70 <= asked[0] <= 74


def test_a_returned_run_that_another_process_executes_is_given_last(runs: list[Run]) -> None:
    """Runs that were not given yet come first, then returned ones that are free, then the locked one."""
    feed = ListFeed(runs)
    for run in (feed.next_run(), feed.next_run()):
        assert run is not None
        feed.return_run(run)
    with lock(runs[0].path):
        assert 3 == feed.waiting()
        assert [runs[2], runs[1], runs[0], None] == [feed.next_run() for _ in range(4)]


class Critic(ListFeed):
    """A feed that finds some runs unpromising."""

    def __init__(self, runs: Sequence[Run], bad: Sequence[Run]) -> None:
        super().__init__(runs)
        self.bad = bad
        self.ended_runs: list[Run] = []

    def to_prune(self, running: Sequence[Run]) -> list[Run]:
        return [run for run in running if run in self.bad]

    def ended(self, run: Run) -> None:
        self.ended_runs.append(run)


def test_an_unpromising_run_is_pruned(runs: list[Run]) -> None:
    """It is asked to stop and is neither finished nor failed; the feed hears of its end; it is not taken up again."""
    Recorder(runs[0]).status("pending", step=7)
    pool = Pretence({runs[0]: [None]})
    feed = Critic(runs, runs[:1])
    progress = run_all(feed, pool, rules=FailurePolicy(retries=3))
    assert (runs[:1], runs[1:], []) == (progress.pruned, progress.finished, progress.failed)
    assert ("pruned", "pruned: other runs are better (step 7)") == tuple(
        runs[0].status()[key] for key in ("status", "reason")
    )
    assert runs == feed.ended_runs
    assert [] == pending_runs(runs, retry_failed=True)


def test_a_full_disk_ends_the_sweep(runs: list[Run]) -> None:
    """The error says what to do, the other run saves and stops, and neither has failed."""
    pool = Pretence({runs[0]: [None], runs[1]: [EXIT_DISK_FULL]}, workers=2)
    with pytest.raises(DiskFull, match=r"Make room; the same command goes on\."):
        run_all(ListFeed(runs), pool)
    assert (True, True) == (pool.jobs[0].asked, pool.closed)
    assert "failed" not in {run.status()["status"] for run in runs}


class Scales(Pretence):
    """A pool in which no run fits next to another."""

    def fits(self, run: Run) -> bool:
        return False


def test_a_run_that_does_not_fit_waits_until_it_is_alone(runs: list[Run]) -> None:
    """Where memory is short runs follow each other, in order, however many workers there are, and all of them run."""
    pool = Scales({}, workers=3)
    at_a_time: list[int] = []
    progress = run_all(ListFeed(runs), pool, lambda progress: at_a_time.append(len(progress.running)))
    assert (runs, runs) == (pool.started(), progress.finished)
    slow = Scales({run: [None] for run in runs[:1]}, workers=3)
    looks = 0

    def observe(progress: Progress) -> None:
        nonlocal looks
        looks += 1
        assert (1, 2) == (len(progress.running), progress.waiting) or looks > 5
        if looks == 5:
            slow.jobs[0].code = EXIT_OK

    for run in runs:
        (run.path / "summary.json").unlink()
    assert runs == run_all(ListFeed(runs), slow, observe).finished


def test_what_fails_in_another_terminal_has_failed_here_too(runs: list[Run]) -> None:
    """A run that another process holds is waited for; its failure there is not followed by a second try here."""
    held, old, _ = runs
    Recorder(old).status("failed", reason="long ago")
    pool = Pretence({})

    def fail_elsewhere(progress: Progress) -> None:
        if len(progress.finished) == 2:
            Recorder(held).status("failed", reason="elsewhere")
            holding.__exit__(None, None, None)

    holding = lock(held.path)
    holding.__enter__()
    progress = run_all(ListFeed(runs), pool, fail_elsewhere)
    assert ([held], set(runs[1:])) == (progress.failed, set(progress.finished))
    assert runs[1:] == pool.started()


@pytest.mark.parametrize(
    ("status", "retry", "expected"),
    [
        ("pending", False, True),
        ("interrupted", False, True),
        ("failed", False, False),
        ("failed", True, True),
        ("pruned", False, False),
        ("pruned", True, False),
    ],
)
def test_what_is_to_do(runs: list[Run], status: str, retry: bool, expected: bool) -> None:
    """Unfinished runs are pending, failed runs only on request, and pruned runs never."""
    Recorder(runs[0]).status(status)
    assert expected == (runs[0] in pending_runs(runs[:1], retry))


def test_a_run_ends_and_the_next_begins_at_once(runs: list[Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool that knows when a run ends is asked to wait, not the clock."""
    sleeps: list[float] = []
    monkeypatch.setattr(scheduler.time, "sleep", sleeps.append)
    waits: list[float] = []
    pool = Pretence({})
    pool.wait = waits.append  # type: ignore[method-assign]
    run_all(ListFeed(runs), pool)
    assert ([], {scheduler.POLL_SECONDS}) == (sleeps, set(waits))
