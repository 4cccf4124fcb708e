"""Files below an outputs folder are written through no link, whole, with the umask's permissions, without scraps."""

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from moe_cli.cli.app import app
from moe_cli.errors import MoeError, UnsafePath
from moe_cli.execution.data import load_run_data
from moe_cli.files.writing import (
    abandoned,
    adopt,
    append,
    check_file,
    delete,
    delete_abandoned,
    delete_empty,
    edit,
    ensure_folder,
    guard,
    hold,
    make_folder,
    mark_outputs,
    new_folder,
    rename,
    write_bytes,
    write_json,
    write_text,
)
from moe_cli.report.report_file import write_file
from moe_cli.runs import folder as run_folder
from moe_cli.runs.cleanup import delete_reclaimable, find_reclaimable
from moe_cli.runs.folder import create_run
from moe_cli.runs.locks import is_locked, lock, sweep_lock
from moe_cli.runs.lookup import list_runs_by_age
from moe_cli.runs.trash import remove, restore, trashed_runs
from moe_cli.sweeps.scheduler import ListFeed, run_all
from tests.report.folders import complete, configure
from tests.runner import CliRunner
from tests.sweeps.fake import FakePool
from tests.tiny import TINY, finish, tiny_config

Act = Callable[[Path], Any]


def enter(manager: Any) -> None:
    with manager:
        pass


ACTS: dict[str, Act] = {
    "write": lambda path: write_text(path, "new"),
    "bytes": lambda path: write_bytes(path, b"new"),
    "append": lambda path: enter(append(path)),
    "edit": lambda path: enter(edit(path)),
    "hold": lambda path: enter(hold(path)),
    "check": check_file,
    "adopt": adopt,
    "make": make_folder,
    "ensure": ensure_folder,
    "new folder": lambda path: enter(new_folder(path.parent, ".new-")),
    "delete": delete,
    "delete empty": delete_empty,
    "rename from": lambda path: rename(path, path.with_name("other")),
    "rename to": lambda path: rename(path.parent.parent / "mine", path),
    "report": lambda path: write_file(path, "new"),
}


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        path.relative_to(folder).as_posix(): (path.lstat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in folder.rglob("*")
    }


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder with what must stay as it is."""
    (tmp_path / "outside" / "empty").mkdir(parents=True)
    (tmp_path / "outside" / "file").write_text("precious")
    return tmp_path / "outside"


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """An outputs folder with the folder of a sweep in it."""
    (tmp_path / "outputs" / "sweep").mkdir(parents=True)
    (tmp_path / "outputs" / "mine").write_text("mine")
    mark_outputs(tmp_path / "outputs")
    return tmp_path / "outputs"


@pytest.mark.parametrize("target", ["file", "empty", "absent"])
@pytest.mark.parametrize("act", ACTS)
def test_a_link_is_not_passed_through(outputs: Path, outside: Path, act: str, target: str) -> None:
    """Whatever is done to a link changes the link at the most."""
    link, before = outputs / "sweep" / "link", state(outside)
    link.symlink_to(outside / target)
    with suppress(UnsafePath, OSError):
        ACTS[act](link)
    assert before == state(outside)


@pytest.mark.parametrize("act", ACTS)
def test_a_linked_folder_is_not_entered(outputs: Path, outside: Path, act: str) -> None:
    """Files behind a linked folder are neither changed nor deleted, and the error names the link."""
    before, link = state(outside), outputs / "linked"
    link.symlink_to(outside)
    for name in ("file", "empty", "absent"):
        with pytest.raises(MoeError, match=f"{link} is a link, and nothing is written or deleted through it"):
            ACTS[act](link / name)
    assert before == state(outside)


def test_an_outputs_folder_without_a_marker_is_guarded(tmp_path: Path, outside: Path) -> None:
    """It is enough that a command was given it."""
    outputs = guard(tmp_path / "plain")
    outputs.mkdir()
    (outputs / "runs").symlink_to(outside)
    with pytest.raises(UnsafePath):
        make_folder(outputs / "runs" / "new")
    assert {"file", "empty"} == state(outside).keys()


@pytest.mark.parametrize("act", ["append", "hold", "write", "make"])
def test_links_of_the_user_are_followed(tmp_path: Path, act: str) -> None:
    """The outputs folder itself may be a link, and so may what lies above it."""
    (tmp_path / "disk" / "outputs").mkdir(parents=True)
    mark_outputs(tmp_path / "disk" / "outputs")
    (tmp_path / "above").symlink_to(tmp_path / "disk")
    (tmp_path / "itself").symlink_to(tmp_path / "disk" / "outputs")
    for number, outputs in enumerate((tmp_path / "above" / "outputs", tmp_path / "itself")):
        ACTS[act](outputs / f"new-{number}")
    assert {".moe-outputs", "new-0", "new-1"} == set(os.listdir(tmp_path / "disk" / "outputs"))


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir])
@pytest.mark.parametrize("act", ["append", "edit", "hold", "check"])
def test_only_regular_files_are_opened(outputs: Path, act: str, make: Act) -> None:
    """A named pipe or a folder in the place of a file is refused at once."""
    make(outputs / "file")
    with pytest.raises(UnsafePath, match="is no regular file"):
        ACTS[act](outputs / "file")


def test_another_name_of_a_file_keeps_its_content(outputs: Path, outside: Path) -> None:
    """Writes leave the other name of a hard-linked file, as `cp -al` makes it, unchanged."""
    for name in ("appended", "cut"):
        os.link(outside / "file", outputs / name)
    with append(outputs / "appended") as file:
        file.write(b"!")
    with edit(outputs / "cut") as file:
        file.truncate(3)
    assert ("precious", "precious!", "pre") == tuple(
        path.read_text() for path in (outside / "file", outputs / "appended", outputs / "cut")
    )


def test_a_lock_that_is_a_link_empties_nothing(tmp_path: Path, outside: Path) -> None:
    """Moving such a run to the trash is refused."""
    run = complete(tmp_path, 1.7)
    (run.path / ".lock").symlink_to(outside / "file")
    with pytest.raises(UnsafePath, match=r"\.lock is a link"):
        remove(run, tmp_path)
    assert "precious" == (outside / "file").read_text()


def test_what_links_lead_to_is_no_waste(tmp_path: Path, outside: Path) -> None:
    """Checkpoints, trash and caches that lie elsewhere are not offered to be freed, and cannot be."""
    run = complete(tmp_path, 1.7)
    for name in ("step_00000001", "step_00000002", "corpus"):
        (outside / name).mkdir()
        (outside / name / "meta.json").write_text("{}")
    (tmp_path / ".cache").mkdir()
    for link in (run.path / "checkpoints", tmp_path / ".trash", tmp_path / ".cache" / "corpora"):
        link.symlink_to(outside)
    before = state(outside)
    for waste in find_reclaimable(tmp_path, 0):
        delete_reclaimable(waste)
    assert before == state(outside)


@pytest.mark.parametrize("mask", [0o002, 0o027, 0o077])
def test_permissions_are_those_of_the_umask(tmp_path: Path, text_file: Path, mask: int) -> None:
    """Every file and folder that a run, its checkpoints and the caches of all kinds of data write."""
    before = os.umask(mask)
    try:
        finish(tiny_config(text_file, train={"steps": 2}), tmp_path / "outputs")
        load_run_data(tiny_config(text_file, **TINY["mmoe"]), tmp_path / "outputs")
        remove(complete(tmp_path / "outputs", 1.7), tmp_path / "outputs")
    finally:
        os.umask(before)
    modes = {path: path.lstat().st_mode for path in (tmp_path / "outputs").rglob("*")}
    folders = {oct(mode & 0o777) for mode in modes.values() if stat.S_ISDIR(mode)}
    files = {oct(mode & 0o777) for mode in modes.values() if stat.S_ISREG(mode)}
    assert ({oct(0o777 & ~mask)}, {oct(0o666 & ~mask)}) == (folders, files)


def dies(act: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> None:
    """Carries out `act` in a process that is killed when it calls module.name."""
    if (pid := os.fork()) == 0:
        try:
            monkeypatch.setattr(module, name, lambda *arguments, **options: os._exit(9))
            act()
        finally:
            os._exit(0)
    assert 9 == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def grow_old(folder: Path) -> None:
    for path in folder.rglob("*"):
        os.utime(path, (1, 1))


@pytest.mark.parametrize("call", ["write_text", "write_json", "rename"])
def test_a_kill_while_a_run_folder_is_made_leaves_none(
    tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """The next run has its plain name, and the scrap goes."""
    config = tiny_config(text_file)
    dies(lambda: create_run(tmp_path, "runs", config), monkeypatch, run_folder, call)
    assert [] == list_runs_by_age(tmp_path)
    grow_old(tmp_path)
    run = create_run(tmp_path, "runs", config)
    assert (config.run_id, {".moe-outputs", config.run_id}) == (run.id, set(os.listdir(tmp_path / "runs")))


def test_an_empty_folder_takes_no_name(tmp_path: Path, text_file: Path) -> None:
    """Such as was left by a process that was killed before it could write the first file."""
    config = tiny_config(text_file)
    (tmp_path / "runs" / config.run_id).mkdir(parents=True)
    assert config.run_id == create_run(tmp_path, "runs", config).id


def test_a_folder_that_cannot_be_made_names_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the folder that takes no new one, and not the temporary name."""

    def refuse(path: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(PermissionError) as error, new_folder(tmp_path, ".making-"):
        pass
    assert str(tmp_path) == error.value.filename


def scraps(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*.tmp")]


def half_write(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves what a process leaves that is killed while it writes a file."""
    dies(lambda: write_text(path, "new"), monkeypatch, os, "fsync")
    grow_old(path.parent)


def test_what_a_killed_writer_left_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the next process that takes the run, or works on the sweep."""
    run = complete(tmp_path, 1.7, "sweep")
    half_write(run.path / "status.json", monkeypatch)
    half_write(run.path.parent / "sweep.json", monkeypatch)
    assert 2 == len(scraps(tmp_path))
    with sweep_lock(run.path.parent), lock(run.path):
        assert [] == scraps(tmp_path)


def test_what_killed_writers_left_can_be_freed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever in an outputs folder it lies."""
    run = complete(tmp_path, 1.7, "sweep")
    (tmp_path / ".cache").mkdir()
    for folder in (tmp_path, tmp_path / ".cache", run.path.parent, run.path):
        half_write(folder / "file.json", monkeypatch)
    for waste in find_reclaimable(tmp_path, 0):
        delete_reclaimable(waste)
    assert [] == scraps(tmp_path)


def test_what_is_being_written_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The temporary file of a living writer is held, and a new one might be held in a moment."""
    found = []

    def look(handle: int) -> None:
        grow_old(tmp_path)
        found.append((len(scraps(tmp_path)), abandoned(tmp_path)))

    monkeypatch.setattr(os, "fsync", look)
    write_text(tmp_path / "file", "new")
    (tmp_path / ".file.x.tmp").touch()
    assert ([(1, [])], []) == (found, abandoned(tmp_path))


@pytest.mark.parametrize("origin", [".runs/x", "runs/.x", "runs/" + 300 * "x", "../x", ".trash/x", "a/b/c", ""])
def test_a_run_does_not_come_back_out_of_sight(tmp_path: Path, origin: str) -> None:
    """`restore` refuses a place in trashed.json where commands would not find the run."""
    removed = remove(complete(tmp_path, 1.7), tmp_path)
    write_json(removed.path / "trashed.json", {"from": origin, "time": 1.0})
    with pytest.raises(MoeError, match="no valid origin of the run"):
        restore(trashed_runs(tmp_path)[0], tmp_path)
    assert [removed.path] == [each.path for each in trashed_runs(tmp_path)]


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2Jb", "a\u202eb"])
def test_a_run_comes_back_under_a_harmless_name(tmp_path: Path, name: str) -> None:
    """Characters that move a cursor or turn writing around are no part of a folder's name any more."""
    removed = remove(complete(tmp_path, 1.7), tmp_path)
    write_json(removed.path / "trashed.json", {"from": f"runs/{name}", "time": 1.0})
    assert f"a_{name[2:]}" == restore(trashed_runs(tmp_path)[0], tmp_path).id


@pytest.mark.parametrize("command", ["rm", "tag"])
def test_a_full_disk_names_a_way_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    """The run stays as it is, and the user reads how to make room."""
    run = complete(tmp_path, 1.7)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    words = ["runs", command, run.id, *["good"] * (command == "tag"), "--outputs", str(tmp_path)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code in (1, 2)
    assert "No space left on device" in result.output
    assert "moe runs clean --older-than 0d --yes" in result.output
    assert [run.path] == [each.path for each in list_runs_by_age(tmp_path)]


def test_a_sweep_goes_on_without_a_run_that_links_elsewhere(tmp_path: Path, outside: Path) -> None:
    """That run fails, with the reason in its folder."""
    good, bad = (create_run(tmp_path, "s", configure(seed=seed)) for seed in (1, 2))
    (bad.path / "log.txt").symlink_to(outside / "file")
    progress = run_all(ListFeed([bad, good]), FakePool(lambda config: {"val_bpb": 1.0}))
    assert ([good], [bad]) == (progress.finished, progress.failed)
    assert "log.txt is a link" in bad.status()["reason"]
    assert "precious" == (outside / "file").read_text()


@pytest.mark.parametrize("words", [["train", "--dry-run"], ["sweep", "seed=1,2", "--dry-run"], ["plan"]])
def test_plans_need_no_outputs_that_can_be_written(tmp_path: Path, text_file: Path, words: list[str]) -> None:
    """Where the folder cannot be made, what is to be learned from is looked at elsewhere, and nothing is left there."""
    settings = ["data=text", f"data.path={text_file}", "data.tokenizer=chars", "train.steps=2", "train.threads=1"]
    result = CliRunner().invoke(app, [*words, *settings, "--outputs", "/proc/outputs"])
    assert (0, []) == (result.exit_code, os.listdir(tmp_path)), result.output


def test_what_a_killed_search_left_goes(tmp_path: Path) -> None:
    """The next search takes away the sign by which others would have seen that it lives; those of living ones stay."""
    dead, alive = (make_folder(tmp_path / "searchers" / name) for name in ("dead", "alive"))
    with lock(alive):
        for folder in (dead, alive):
            os.utime(folder, (1, 1))
        delete_abandoned(tmp_path / "searchers", "*", lambda folder: not is_locked(folder))
        assert ["alive"] == os.listdir(tmp_path / "searchers")
