"""Statuses are right, cheap when nothing has changed, and robust against damaged files."""

import json
import os
import time
from pathlib import Path

import pytest

import moe_cli.runs.folder
import moe_cli.runs.status
from moe_cli.errors import RunNotFound
from moe_cli.files.checksums import write_sealed
from moe_cli.files.writing import write_json
from moe_cli.runs.folder import COMPLETED, FAILED, INTERRUPTED, PENDING, RUNNING, Run
from moe_cli.runs.lookup import find_runs, list_runs_by_age, newest_sweep
from moe_cli.runs.status import StatusCache, read_status, read_statuses
from tests.report.folders import complete, set_status, stopped


def run_elsewhere(outputs: Path, **fields: object) -> Run:
    """A run that another machine is at work on, as far as its heartbeat says."""
    run = stopped(outputs, RUNNING)
    set_status(run, RUNNING, host="elsewhere", heartbeat=time.time(), started=time.time() - 60, **fields)
    return run


def append(run: Run, **record: object) -> None:
    with open(run.path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def test_a_complete_run_shows_its_results(tmp_path: Path) -> None:
    """Results come from summary.json, and a complete run is done whatever its steps."""
    run = complete(tmp_path, 1.75, expert=8, k=2)
    set_status(run, COMPLETED, steps=9_999)
    each = read_status(run)
    assert (each.status, each.val_bpb, each.max_violation, each.progress) == (COMPLETED, 1.75, 0.21, 1.0)


def test_a_running_run_shows_its_newest_estimates(tmp_path: Path) -> None:
    """Each measure is the newest that was finite, though they stand in different records; a torn line is left out."""
    run = run_elsewhere(tmp_path, step=10, steps=100)
    append(run, **{"step": 20, "val/loss": 1.5, "val/bpb": 2.1, "val/max_violation": 0.4})
    append(run, **{"step": 25, "train/loss": 1.4, "tokens_per_second": 9000.0, "val/loss": None})
    with open(run.path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 30, "val/lo')
    each = read_status(run)
    assert (each.status, each.step, each.progress) == (RUNNING, 25, 0.25)
    assert (each.val_loss, each.val_bpb, each.train_loss, each.max_violation) == (1.5, 2.1, 1.4, 0.4)


def test_damaged_files_stop_nothing(tmp_path: Path) -> None:
    """Whatever is of another type than it should be is unknown."""
    run = stopped(tmp_path, FAILED)
    set_status(run, FAILED, reason=["x"], created="long ago", step=-3, steps="many", heartbeat=True)
    write_json(run.path / "tags.json", {"tags": ["good", 3, None]})
    each = read_status(run)
    assert (each.reason, each.created, each.step, each.steps, each.last_heartbeat) == ("['x']", 0.0, 0, 0, 0.0)
    assert each.tags == ("good",)
    write_sealed(run.path / "summary.json", {"val_bpb": "low", "steps": None})
    assert (read_status(run).status, read_status(run).val_bpb) == (COMPLETED, None)


def test_oldest_first(tmp_path: Path) -> None:
    """A list is in order of creation."""
    for seed, created in ((0, 30.0), (1, 10.0), (2, 20.0)):
        set_status(stopped(tmp_path, PENDING, seed=seed), PENDING, created=created)
    assert [each.created for each in read_statuses(list_runs_by_age(tmp_path))] == [10.0, 20.0, 30.0]


def test_a_watcher_reads_only_what_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unchanged run is not read again; a changed one is."""
    read: list[Run] = []
    monkeypatch.setattr(moe_cli.runs.status, "read_status", lambda run: (read.append(run), read_status(run))[1])
    run, watcher = stopped(tmp_path, PENDING), StatusCache()
    first = watcher.get(run)
    assert watcher.get(run) is first
    assert len(read) == 1
    set_status(run, FAILED, reason="out of memory")
    os.utime(run.path / "status.json", ns=(1, 1))  # clocks of file systems are coarse
    assert (watcher.get(run).status, len(read)) == (FAILED, 2)


def test_a_watcher_notices_death(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose files stay as they are is interrupted once its process has been silent for long."""
    run, watcher = run_elsewhere(tmp_path), StatusCache()
    assert watcher.get(run).status == RUNNING
    monkeypatch.setattr(moe_cli.runs.folder, "HEARTBEAT_TIMEOUT", 0.0)
    assert watcher.get(run).status == INTERRUPTED


def test_runs_are_found_by_sweep_or_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep's name, a folder's path or nothing; a name that means nothing is an error that names what there is."""
    inside, other = complete(tmp_path, 1.7, "sparsity"), complete(tmp_path, 1.8, "runs", seed=1)
    assert find_runs(tmp_path, "sparsity") == [inside]
    assert find_runs(tmp_path, str(other.path.parent)) == [other]
    monkeypatch.chdir(tmp_path)
    assert find_runs(tmp_path / "nowhere", "runs") == [other]
    assert sorted(run.id for run in find_runs(tmp_path, None)) == sorted([inside.id, other.id])
    with pytest.raises(RunNotFound, match="Did you mean 'sparsity'"):
        find_runs(tmp_path, "sparsty")


def test_the_newest_sweep_comes_before_single_runs(tmp_path: Path) -> None:
    """The sweep that was worked on last; the folder of single runs only where there is no sweep."""
    moments = (
        (complete(tmp_path, 1.7, "runs"), 3),
        (complete(tmp_path, 1.7, "a"), 2),
        (complete(tmp_path, 1.7, "b"), 1),
    )
    for run, moment in moments:
        os.utime(run.path / "status.json", (moment, moment))
    assert newest_sweep(tmp_path) == "a"
    single = tmp_path / "other"
    complete(single, 1.7)
    assert newest_sweep(single) == "runs"
