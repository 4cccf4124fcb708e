"""The one orchestration of sweeps and searches: what can fail comes before what destroys, in commands and in Python."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moe_cli import sweep
from moe_cli.cli.app import app
from moe_cli.config.compose import load_config
from moe_cli.errors import MoeError, RunBusy
from moe_cli.execution.estimate import estimate_runs
from moe_cli.execution.memory import memory_bytes
from moe_cli.files.writing import rename
from moe_cli.runs import trash
from moe_cli.runs.folder import Run
from moe_cli.runs.locks import is_sweep_running, lock
from moe_cli.runs.lookup import list_runs_by_age
from moe_cli.runs.trash import find_trashed, restore, trashed_runs
from moe_cli.sweeps import plan, run_sweep
from moe_cli.sweeps.executors import slurm
from tests.runner import CliRunner
from tests.sweeps.fake import FakePool

TINY = (
    "expert=1,4",
    "k=1",
    "model.d_model=16",
    "model.num_layers=1",
    "model.num_heads=2",
    "model.context_length=16",
    "train.steps=2",
    "train.batch_size=2",
)


def content(outputs: Path) -> dict[str, bytes]:
    """Every file of the runs of an outputs folder, its trash included; without locks, which hold nothing."""
    folders = [folder for folder in outputs.iterdir() if folder.name != ".cache"]
    return {
        path.relative_to(outputs).as_posix(): path.read_bytes()
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (".lock", ".at-work")
    }


@pytest.fixture
def outputs(tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A complete sweep of two runs, without training; what is run after it completes at once."""
    monkeypatch.setattr(run_sweep, "make_pool", lambda *arguments: FakePool(lambda config: {"val_bpb": 1.0}))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.txt").write_bytes(text_file.read_bytes())
    sweep(["data=text", "data.path=words.txt", *TINY], outputs=tmp_path / "outputs")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert ["completed"] * 2 == [run.status()["status"] for run in list_runs_by_age(tmp_path / "outputs")]
    return tmp_path / "outputs"


def without_ray(monkeypatch: pytest.MonkeyPatch, outputs: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)


def without_slurm(monkeypatch: pytest.MonkeyPatch, outputs: Path) -> None:
    monkeypatch.setenv("PATH", "")


def silent_slurm(monkeypatch: pytest.MonkeyPatch, outputs: Path) -> None:
    def fail() -> None:
        raise MoeError("squeue has not answered for 60 seconds: is Slurm down?")

    monkeypatch.setattr(slurm, "query_states", fail)


def second_move_fails(monkeypatch: pytest.MonkeyPatch, outputs: Path) -> None:
    moves = [0]

    def limited(source: Any, target: Any) -> None:
        to_trash = ".trash" in str(target)
        moves[0] += to_trash
        if to_trash and moves[0] == 2:
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(trash, "rename", limited)


def folders_cannot_be_made(monkeypatch: pytest.MonkeyPatch, outputs: Path) -> None:
    made, original = [0], plan.open_or_create_run

    def limited(*arguments: Any) -> Run:
        made[0] += 1
        if made[0] == 2:
            raise MoeError("cannot make the folder: No space left on device.")
        return original(*arguments)

    monkeypatch.setattr(plan, "open_or_create_run", limited)


def no_data(monkeypatch: pytest.MonkeyPatch, outputs: Path) -> None:
    (outputs.parent / "words.txt").unlink()


def nothing(monkeypatch: pytest.MonkeyPatch, outputs: Path) -> None: ...


Break = Callable[[pytest.MonkeyPatch, Path], None]
FAILURES: dict[str, tuple[Break, list[str]]] = {
    "no Ray": (without_ray, ["executor=ray"]),
    "no Slurm": (without_slurm, ["executor=slurm"]),
    "Slurm does not answer": (silent_slurm, ["executor=slurm"]),
    "no such executor": (nothing, ["executor=slrum"]),
    "no such setting of the executor": (nothing, ["executor=slurm", "executor.adress=x"]),
    "no such setting": (nothing, ["exprt=8"]),
    "no point can be": (nothing, ["expert=4,8", "k=9"]),
    "no device": (nothing, ["train.device=cuda:7"]),
    "no library of a logger": (nothing, ["log=wandb"]),
    "no data": (no_data, []),
    "no run to start from": (nothing, ["train.upcycle_from=nosuch"]),
    "a run cannot be moved": (second_move_fails, []),
    "a folder cannot be made": (folders_cannot_be_made, []),
}


@pytest.mark.parametrize(
    ("failure", "caller"),
    [
        *((failure, "command") for failure in FAILURES),
        ("no Ray", "Python"),
        ("no data", "Python"),
        ("a run cannot be moved", "Python"),
    ],
)
def test_what_fails_destroys_nothing(failure: str, caller: str, outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --force, whatever keeps a sweep from starting, every complete run is as it was, byte by byte."""
    breaks, more = FAILURES[failure]
    before = content(outputs)
    breaks(monkeypatch, outputs)
    words = ["data=text", "data.path=words.txt", *TINY, *more]
    if caller == "Python":
        with pytest.raises(MoeError):
            sweep(words, outputs=outputs, force=True)
    else:
        result = CliRunner().invoke(app, ["sweep", *words, "--force", "--outputs", str(outputs)])
        assert 2 == result.exit_code, result.output
        assert 1 <= len(result.stderr.splitlines()) <= 3
    assert before == content(outputs)


def test_a_run_at_work_keeps_all_where_they_are(outputs: Path) -> None:
    """--force is refused before anything is moved."""
    before = content(outputs)
    with lock(list_runs_by_age(outputs)[1].path), pytest.raises(RunBusy):
        sweep(["data=text", "data.path=words.txt", *TINY], outputs=outputs, force=True)
    assert before == content(outputs)


@pytest.mark.parametrize("killed_at", ["open_or_create_run", "run_all"])
def test_what_was_moved_comes_back_after_a_kill(killed_at: str, outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the move to the trash and the first run, the sweep can be restored, and is as it was."""

    def die(*arguments: object) -> None:
        os._exit(9)

    before = {name: text for name, text in content(outputs).items() if not name.endswith("sweep.json")}
    if (pid := os.fork()) == 0:
        try:
            monkeypatch.setattr(plan if killed_at == "open_or_create_run" else run_sweep, killed_at, die)
            sweep(["data=text", "data.path=words.txt", *TINY], outputs=outputs, force=True)
        finally:
            os._exit(1)
    assert 9 == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert 2 == len(trashed_runs(outputs))
    for removed in find_trashed("sweep", trashed_runs(outputs)):
        restore(removed, outputs)
    after = content(outputs)
    assert before == {name: after.get(name) for name in before}


def test_a_sweep_is_marked_while_it_is_at_work(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep's folder shows whether a process is at work on it."""
    seen = []

    def drive(*arguments: object) -> None:
        seen.append(is_sweep_running(outputs / "sweep"))

    monkeypatch.setattr(run_sweep, "run_all", drive)
    sweep(["data=text", "data.path=words.txt", *TINY], outputs=outputs, force=True)
    assert [True, False] == [*seen, is_sweep_running(outputs / "sweep")]


def test_a_search_that_cannot_start_leaves_nothing(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a folder nor a question that would keep another one from being asked."""
    monkeypatch.setitem(sys.modules, "ray", None)
    before = content(outputs)
    with pytest.raises(MoeError, match="executor=ray needs Ray"):
        sweep(["data=text", "data.path=words.txt", *TINY], sampler="random", executor="ray", outputs=outputs)
    assert before == content(outputs)
    assert not (outputs / "search").exists()


def search_exit_code(monkeypatch: pytest.MonkeyPatch, outputs: Path, fails: set[int], *options: str) -> int:
    """Returns the exit code of a search over four expert counts; the runs with counts in `fails` fail."""
    pool = FakePool(lambda config: None if config.expert in fails else {"val_bpb": 1.0 / config.expert})
    monkeypatch.setattr(run_sweep, "make_pool", lambda *arguments: pool)
    words = ["data=text", "data.path=words.txt", *TINY, "expert=2,4,8,16", "--sampler", "random", "--trials", "8"]
    result = CliRunner().invoke(app, ["sweep", *words, "--outputs", str(outputs), *options])
    assert isinstance(result.exception, SystemExit | None), result.output
    return result.exit_code


def test_a_search_with_a_result_has_succeeded(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials may fail; only a search without a result, or one that stops before its last trial, ends with exit code 3."""
    assert 0 == search_exit_code(monkeypatch, outputs, set(), "--name", "a")
    assert 0 == search_exit_code(monkeypatch, outputs, {2, 16}, "--name", "b")
    assert 3 == search_exit_code(monkeypatch, outputs, {2, 4, 8, 16}, "--name", "c")
    assert 3 == search_exit_code(monkeypatch, outputs, {2, 4, 8, 16}, "--name", "d", "--fail-fast")


def test_devices_are_checked_once_in_python(outputs: Path) -> None:
    """A device that is not there is one error, and no run is made that would fail."""
    words = ["data=text", "data.path=words.txt", *TINY, "train.device=cuda:7"]
    for more in ({}, {"sampler": "random"}):
        with pytest.raises(MoeError, match=r"train\.device=cuda:7: torch sees"):
            sweep(words, outputs=outputs, name="gpu", **more)
    assert not (outputs / "gpu").exists()


def test_an_executor_can_be_named_in_python(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sweep(executor=...) is `--executor`; a word that names another one is refused."""
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MoeError, match="executor=slurm needs Slurm's commands"):
        sweep(["data=text", "data.path=words.txt", *TINY], outputs=outputs, name="a", executor="slurm")
    with pytest.raises(MoeError, match="executor=ray and --executor slurm both name an executor"):
        sweep([*TINY, "executor=ray"], outputs=outputs, executor="slurm")


@pytest.mark.parametrize("kind", ["sweep", "search"])
def test_python_gives_the_notes_of_the_command(
    kind: str, outputs: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    """A setting that is ignored is said by the logger moe_cli; with progress, printed as the command prints it."""
    monkeypatch.setattr(run_sweep, "make_pool", lambda *arguments: FakePool(lambda config: {"val_bpb": 1.0}))
    words = ["data=text", "data.path=words.txt", *TINY, "eval.k=1", "expert=1,2"]
    options: dict[str, Any] = {"sampler": "random", "trials": 2} if kind == "search" else {}
    sweep(words, outputs=outputs, name="quiet", **options)
    notes = [record.getMessage() for record in caplog.records if record.name == "moe_cli"]
    assert "" == capsys.readouterr().out
    sweep(words, outputs=outputs, name="shown", progress=True, **options)
    printed = " ".join(capsys.readouterr().out.split())
    assert notes
    assert [] == [note for note in notes if note not in printed]
    assert "moe report shown" in printed


def test_a_search_draws_no_run_that_needs_far_more_memory_than_there_is(
    outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a draw is ignored and does not count as a trial; --force-memory runs it. With no other draw it is an error."""
    monkeypatch.setattr(run_sweep, "make_pool", lambda *arguments: FakePool(lambda config: {"val_bpb": 1.0}))
    words = ["data=text", "data.path=words.txt", *TINY[1:], "match=none"]
    small = estimate_runs([load_config([*words, "expert=2"]).config], outputs, 1e9)
    monkeypatch.setattr("moe_cli.execution.memory.total_memory_bytes", lambda: memory_bytes(small[0].cost) // 2 + 1)
    options: dict[str, Any] = {"sampler": "random", "trials": 6, "outputs": outputs}
    found = sweep([*words, "expert=2,1024"], **options, name="refused")
    assert {2} == set(found["expert"])
    assert {2, 1024} == set(sweep([*words, "expert=2,1024"], **options, name="forced", force_memory=True)["expert"])
    with pytest.raises(MoeError, match="of memory are needed"):
        sweep([*words, "expert=1024,2048"], **options, name="none")
