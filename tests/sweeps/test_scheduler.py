"""Runs as processes: one that is killed costs only itself, one that is busy elsewhere is waited for."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from moe_cli import sweep
from moe_cli.config.compose import load_config
from moe_cli.errors import MoeError
from moe_cli.execution.worker import EXIT_BUSY, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK
from moe_cli.files.writing import write_json
from moe_cli.runs.folder import Run, open_or_create_run
from moe_cli.runs.locks import is_locked, lock
from moe_cli.runs.lookup import list_runs_by_age
from moe_cli.runs.recorder import Recorder
from moe_cli.sweeps import scheduler as module
from moe_cli.sweeps.executors import local
from moe_cli.sweeps.executors.local import LocalPool
from moe_cli.sweeps.scheduler import ListFeed, Observer, Progress, pending_runs, record_worker_failure, run_all
from tests.cli.conftest import ONCE, TINY
from tests.elided import Elided

# What becomes of runs is asked here; of the process that they are forked from, in test_local.py.
pytestmark = pytest.mark.usefixtures("shared_fork_server")
TEXT = "each expert learns from the tokens it was given and from no others " * 60


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    path = tmp_path / "words.txt"
    path.write_text(TEXT)
    return ["data=text", f"data.path={path}", *TINY, ONCE]


def make_runs(outputs: Path, words: list[str], *settings: str) -> list[Run]:
    return [open_or_create_run(outputs, "sweep", load_config([*words, setting]).config) for setting in settings]


def run_local(
    runs: list[Run], outputs: Path, workers: int, observer: Observer = lambda progress: None, warm: bool = True
) -> Progress:
    return run_all(ListFeed(runs), LocalPool(outputs, workers, warm), observer)


@pytest.mark.parametrize("warm", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_killed_worker_costs_only_itself(tmp_path: Path, words: list[str], warm: bool) -> None:
    """A run killed with SIGKILL is failed, its reason names the signal, and the other run completes."""
    first, second = make_runs(tmp_path, words, "train.steps=100000", "train.steps=4")

    def kill_first(progress: Progress) -> None:
        if first in progress.running and any("train/loss" in record for record in first.metrics()):
            os.kill(first.status()["pid"], signal.SIGKILL)

    progress = run_local([first, second], tmp_path, 1, kill_first, warm)
    assert (progress.failed, progress.finished) == ([first], [second])
    assert first.status()["status"] == "failed"
    assert first.status()["reason"].startswith("killed by signal 9 (SIGKILL)")
    assert pending_runs([first, second], retry_failed=False) == []
    assert pending_runs([first, second], retry_failed=True) == [first]


def test_a_busy_run_is_waited_for(tmp_path: Path, words: list[str]) -> None:
    """While another process holds a run it is not started; when that one lets go, it is."""
    (run,) = make_runs(tmp_path, words, "train.steps=4")
    seen_busy = threading.Event()
    holding = threading.Event()

    def hold() -> None:
        with lock(run.path):
            holding.set()
            seen_busy.wait(timeout=60)

    holder = threading.Thread(target=hold)
    holder.start()
    holding.wait()

    def observe(progress: Progress) -> None:
        if holder.is_alive():
            assert not progress.running
            seen_busy.set()

    progress = run_local([run], tmp_path, 1, observe)
    holder.join()
    assert progress.finished == [run]


@pytest.mark.parametrize("warm", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_an_interrupt_asks_the_workers_to_save(tmp_path: Path, words: list[str], warm: bool) -> None:
    """KeyboardInterrupt leaves no process behind, the run interrupted, and its checkpoint saved."""
    (run,) = make_runs(tmp_path, words, "train.steps=100000")

    def interrupt(progress: Progress) -> None:
        if any("train/loss" in record for record in run.metrics()):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_local([run], tmp_path, 1, interrupt, warm)
    assert not is_locked(run.path)
    assert run.status()["status"] == "interrupted"
    assert run.checkpoints()


def test_sweep_from_python(tmp_path: Path, words: list[str]) -> None:
    """sweep(...) runs a grid in its outputs folder and gives a row per run; a wrong word raises MoeError."""
    frame = sweep(["expert=1,4", "k=1", *words], seeds=1, jobs=2, outputs=tmp_path / "outputs")
    assert sorted(frame["expert"]) == [1, 4]
    assert ["sweep", "sweep"] == [run.sweep for run in list_runs_by_age(tmp_path / "outputs")]
    assert frame["val_bpb"].notna().all()
    assert ["outputs", "words.txt"] == sorted(path.name for path in tmp_path.iterdir())
    (dense,) = [run for run in list_runs_by_age(tmp_path / "outputs") if run.config().dense]
    write_json(dense.path / "meta.json", {**dense.meta(), "packages": {"moe-cli": "0"}})
    outputs = tmp_path / "outputs"
    again = sweep(["expert=1,4", "k=1", *words], seeds=1, where=["expert == 1"], rerun_stale=True, outputs=outputs)
    assert "0" != dense.meta()["packages"]["moe-cli"]
    assert sorted(again["expert"]) == [1, 4]
    with pytest.raises(MoeError, match="no combination"):
        sweep(["expert=1,4", *words], where=["expert > 9"], outputs=outputs)
    with pytest.raises(MoeError, match="no setting 'exprt'"):
        sweep(["exprt=1,4"], outputs=tmp_path / "outputs")


def test_workers_leave_nothing_running(tmp_path: Path, words: list[str]) -> None:
    """After a sweep no worker of it is alive."""
    runs = make_runs(tmp_path, words, "train.steps=4", "train.steps=5")
    run_local(runs, tmp_path, 2)
    time.sleep(0.1)
    for run in runs:
        with pytest.raises(ProcessLookupError):
            os.kill(run.status()["pid"], 0)


class FakeWorker:
    """A process that is busy elsewhere at first, and completes its run at the third look."""

    started: list["FakeWorker"] = []
    pid = 0

    def __init__(self, command: list[str], env: dict[str, str], start_new_session: bool, **options: Any) -> None:
        self.run, self.env, self.alone, self.looks = Run(Path(command[3])), env, start_new_session, 0
        self.turned_away = self.run not in [worker.run for worker in self.started]
        self.started.append(self)

    def poll(self) -> int | None:
        self.looks += 1
        if self.looks < 3:
            return None
        if self.turned_away:
            return EXIT_BUSY
        Recorder(self.run).complete({"val_bpb": 1.0})
        return EXIT_OK


def test_workers_share_the_machine(tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As many runs at a time as asked for and never more, out of Ctrl-C's reach, threads theirs; BUSY waits its turn."""
    monkeypatch.setattr(FakeWorker, "started", [])
    monkeypatch.setattr(local, "visible_gpus", lambda: ())
    monkeypatch.setattr(local.subprocess, "Popen", FakeWorker)
    monkeypatch.setattr(module, "POLL_SECONDS", 0.0)
    runs = make_runs(tmp_path, words, *(f"train.steps={steps}" for steps in range(1, 6)))
    at_a_time: list[int] = []
    progress = run_local(runs, tmp_path, 2, lambda progress: at_a_time.append(len(progress.running)), False)
    assert 2 == max(at_a_time)
    assert {run.id for run in runs} == {run.id for run in progress.finished}
    assert 2 * len(runs) == len(FakeWorker.started)
    given = os.environ.get("OMP_NUM_THREADS")
    assert {(given, True)} == {(worker.env.get("OMP_NUM_THREADS"), worker.alone) for worker in FakeWorker.started}


def test_sigterm_stops_a_sweep_as_ctrl_c_does(tmp_path: Path, words: list[str]) -> None:
    """It raises KeyboardInterrupt inside, the handler is as it was afterwards, and a thread does without."""
    (run,) = make_runs(tmp_path, words, "train.steps=4")
    Recorder(run).complete({"val_bpb": 1.0})
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        run_local([run], tmp_path, 1, lambda progress: os.kill(os.getpid(), signal.SIGTERM))
    assert before == signal.getsignal(signal.SIGTERM)
    done: list[Progress] = []
    thread = threading.Thread(target=lambda: done.append(run_local([], tmp_path, 1)))
    thread.start()
    thread.join()
    assert 1 == len(done)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (-signal.SIGKILL, "killed by signal 9 (SIGKILL): out of memory? Lower train.batch_size or -j"),
        (-signal.SIGTERM, "killed by signal 15 (SIGTERM)"),
        (-63, "killed by signal 63 (a real-time signal)"),
        (EXIT_INTERRUPTED, "stopped from outside; ..."),
        (EXIT_FAILED, "ended with exit code 1"),
        (7, "ended with exit code 7"),
    ],
)
def test_a_worker_that_could_not_say_why_it_ended_is_explained(
    tmp_path: Path, words: list[str], code: int, reason: str
) -> None:
    """The run is failed, with what its exit code tells and where its log is; a reason of its own is kept."""
    (run,) = make_runs(tmp_path, words, "train.steps=4")
    (run.path / "log.txt").write_text("")
    record_worker_failure(run, code)
    assert ("failed", Elided(f"{reason} (log: {run.path / 'log.txt'})")) == (
        run.status()["status"],
        run.status()["reason"],
    )
    Recorder(run).status("failed", reason="its own")
    record_worker_failure(run, EXIT_FAILED)
    assert "its own" == run.status()["reason"]
