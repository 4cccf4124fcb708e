"""Every option of `moe sweep` reaches what it is for; what is printed when runs are left, pruned or too large."""

from pathlib import Path
from typing import Any

import pytest

from moe_cli.errors import DiskFull
from moe_cli.files.writing import write_json
from moe_cli.runs.folder import Run
from moe_cli.runs.lookup import list_runs_by_age
from moe_cli.runs.recorder import Recorder
from moe_cli.sweeps import run_sweep
from moe_cli.sweeps.executors import local
from moe_cli.sweeps.scheduler import FailurePolicy, Progress, RunFeed
from tests.cli.conftest import Moe

GRID = ("sweep", "seed=0,1,2")


class Pretended:
    """Instead of `drive`: completes what the feed gives, but for runs with another fate; keeps what it was called with."""

    def __init__(self) -> None:
        self.rules = FailurePolicy()
        self.workers = 0
        self.seen: list[Run] = []
        self.fates: dict[int, str] = {}

    def __call__(self, feed: RunFeed, pool: Any, observer: Any, rules: FailurePolicy, on_stop: Any) -> Progress:
        self.rules, self.workers, self.seen = rules, pool.workers, []
        while run := feed.next_run():
            self.seen.append(run)
            fate = self.fates.get(run.config().seed, "completed")
            if fate == "completed":
                Recorder(run).complete({"val_bpb": 1.0})
            elif fate != "left":
                Recorder(run).status(fate, reason=f"it was to be {fate}")
        return Progress()


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Pretended:
    pretended = Pretended()
    monkeypatch.setattr(run_sweep, "run_all", pretended)
    return pretended


@pytest.mark.parametrize(
    ("words", "rules"),
    [
        ((), FailurePolicy()),
        (("--timeout", "1h30m"), FailurePolicy(timeout=5400)),
        (("--retries", 3), FailurePolicy(retries=3)),
        (("--fail-fast",), FailurePolicy(fail_fast=True)),
    ],
)
def test_rules(
    moe: Moe, settings: list[str], pretended: Pretended, words: tuple[Any, ...], rules: FailurePolicy
) -> None:
    """--timeout, --retries and --fail-fast are the rules by which runs are driven."""
    result = moe(*GRID, *settings, *words)
    assert (0, rules) == (result.exit_code, pretended.rules), result.output


def test_how_many_at_a_time(
    moe: Moe, settings: list[str], pretended: Pretended, monkeypatch: pytest.MonkeyPatch
) -> None:
    """-j; by default what the machine bears; never more than there are points."""
    monkeypatch.setattr(local, "count_cores", lambda: 2)
    monkeypatch.setattr("moe_cli.sweeps.executors.local.visible_gpus", lambda: ())
    for words, expected in (((), 2), (("-j", 1), 1), (("-j", 9), 3)):
        moe(*GRID, *settings, *words, "--force")
        assert expected == pretended.workers
    monkeypatch.setattr("moe_cli.sweeps.executors.local.visible_gpus", lambda: ("0", "1", "2"))
    moe(*GRID, *settings, "--force")
    assert 3 == pretended.workers
    moe(*GRID, *settings, "--force", "train.device=cpu")
    assert 2 == pretended.workers


def test_failed_points_are_run_again_on_request(moe: Moe, settings: list[str], pretended: Pretended) -> None:
    """The same command runs what is left, not what failed; --retry-failed that too; points that are added run alone."""
    pretended.fates = {0: "failed", 1: "left"}
    result = moe(*GRID, *settings)
    assert 3 == result.exit_code
    assert "1 of 3 runs complete" in result.stdout
    assert "1 failed. Reason of the first: it was to be failed" in result.stdout
    assert "1 not complete; the same command continues." in result.stdout
    pretended.fates = {}
    assert 3 == moe(*GRID, *settings).exit_code
    assert [1] == [run.config().seed for run in pretended.seen]
    assert 0 == moe(*GRID, *settings, "--retry-failed").exit_code
    assert [0] == [run.config().seed for run in pretended.seen]
    assert 0 == moe("sweep", "seed=0,1,2,3", *settings).exit_code
    assert [3] == [run.config().seed for run in pretended.seen]


def test_pruned_points_are_no_failures(moe: Moe, settings: list[str], pretended: Pretended) -> None:
    """They are counted, the exit code is 0, the same command does not take them up, and the report names them."""
    pretended.fates = {0: "pruned"}
    result = moe(*GRID, *settings)
    assert (0, True) == (result.exit_code, "2 of 3 runs complete, 1 pruned." in result.stdout), result.output
    pretended.seen = []
    moe(*GRID, *settings, "--retry-failed")
    assert [] == pretended.seen


def test_force_begins_again(moe: Moe, settings: list[str], pretended: Pretended, tmp_path: Path) -> None:
    """--force moves what there is to the trash and runs every point; with --dry-run it only says how many."""
    moe(*GRID, *settings)
    said = moe(*GRID, *settings, "--force", "--dry-run").stdout
    assert all(part in said for part in ("0 done before, 3 to go", "3 from the start; the old folders go to the trash"))
    assert not (tmp_path / "outputs" / ".trash").exists()
    assert "3 from the start; the old folders go to the trash" in moe(*GRID, *settings, "--force").stdout
    assert 3 == len(pretended.seen)
    assert 3 == len(list((tmp_path / "outputs" / ".trash").glob("*/summary.json")))
    assert 3 == len(list_runs_by_age(tmp_path / "outputs"))


def test_rerun_on_code(moe: Moe, settings: list[str], pretended: Pretended, tmp_path: Path) -> None:
    """Points that another version has made run again, those of this one do not."""
    moe(*GRID, *settings)
    for run in list_runs_by_age(tmp_path / "outputs"):
        write_json(run.path / "meta.json", {"packages": {"moe-cli": "0.0"}} if run.config().seed == 1 else {})
    assert 0 == moe(*GRID, *settings, "--rerun-stale").exit_code
    assert [1] == [run.config().seed for run in pretended.seen]


def test_runs_that_are_too_large_are_named(
    moe: Moe, settings: list[str], pretended: Pretended, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, before anything starts: how many there are, what they take and what is free."""
    pretended.fates = {1: "left", 2: "left"}
    assert "memory" not in moe(*GRID, *settings).stdout
    monkeypatch.setattr("moe_cli.cli.sweep_preview.available_memory_bytes", lambda: 10**8)
    printed = moe(*GRID, *settings).stdout
    assert "2 of 2 runs may need up to 421 MB, 100 MB are free: each of them runs alone" in printed


def test_a_full_disk_is_an_error_in_two_lines(moe: Moe, settings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk prints the error and the advice, with exit code 1."""

    def fail(*arguments: object) -> None:
        raise DiskFull("the disk is full\nMake room; the same command goes on.")

    monkeypatch.setattr(run_sweep, "run_all", fail)
    result = moe(*GRID, *settings)
    assert (1, "error: the disk is full\nMake room; the same command goes on.\n") == (result.exit_code, result.stderr)
