"""No link in an outputs folder makes a command change, empty or delete what lies outside it."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from moe_cli.cli.app import app
from moe_cli.errors import MoeError
from moe_cli.execution.data import load_run_data
from moe_cli.execution.run import run_one
from moe_cli.files.writing import write_json
from moe_cli.runs.folder import create_run
from moe_cli.runs.lookup import list_runs_by_age
from tests.cli.conftest import TINY as WORDS
from tests.runner import CliRunner
from tests.tiny import TINY, tiny_config, words

KINDS = ("file", "folder", "dangling", "hard")
Content = dict[str, tuple[int, bytes]]


def content(folder: Path) -> Content:
    """Every name below a folder with its permissions and bytes."""
    return {
        path.relative_to(folder).as_posix(): (path.lstat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in folder.rglob("*")
    }


def moe(*arguments: object) -> str:
    """Runs a command, which may fail, but only in the user's words."""
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.output


class Work:
    """All that the program does below one outputs folder, on a text that lies elsewhere."""

    def __init__(self, outputs: Path, text: Path) -> None:
        self.outputs = outputs
        self.settings = ["data=text", f"data.path={text}", *WORDS]
        self.config = tiny_config(text, log="tensorboard", train={"checkpoint_every": 2})
        self.others = [tiny_config(text, **TINY[name]) for name in ("vit", "mmoe")]

    def make(self) -> None:
        """A run that was interrupted, another in the trash, data of every kind, a sweep and a search with work left."""
        run = create_run(self.outputs, "runs", self.config)
        with pytest.raises(KeyboardInterrupt):
            run_one(run, self.outputs, interrupt)
        self.load()
        self.sweep()
        self.search(1)
        moe("runs", "tag", run.id, "good")
        for group in ("s", "q"):
            again = list_runs_by_age(self.outputs / group)[0]
            (again.path / "summary.json").unlink()
            write_json(again.path / "status.json", {"status": "interrupted"})
        other = list_runs_by_age(self.outputs / "s")[-1]
        moe("runs", "rm", other.id)

    def resume(self) -> None:
        run_one(list_runs_by_age(self.outputs / "runs")[0], self.outputs)

    def load(self) -> None:
        for config in self.others:
            load_run_data(config, self.outputs)

    def sweep(self) -> None:
        moe("sweep", "expert=4,8", "--name", "s", "-j", 1, *self.settings)

    def search(self, trials: int = 2) -> None:
        moe(
            "sweep",
            "expert=choice(4,8)",
            "--sampler",
            "random",
            "--trials",
            trials,
            "--name",
            "q",
            "-j",
            1,
            *self.settings,
        )

    def throw_away(self) -> None:
        for run in list_runs_by_age(self.outputs):
            moe("runs", "tag", f"{run.sweep}/{run.id}", "mine")
            moe("runs", "rm", f"{run.sweep}/{run.id}")
        moe("runs", "restore", "latest")

    def free(self) -> None:
        moe("runs", "clean", "--older-than", "0d", "--checkpoints", "--cache", "--yes")

    def report(self) -> None:
        moe("report", "s", "-o", self.outputs / "s" / "table.csv")

    def on(self, name: str) -> tuple[Callable[[], None], ...]:
        """Returns the operations that write near a name."""
        ends = (self.throw_away, self.free)
        return {
            "s": (self.sweep, self.report, *ends),
            "q": (self.search, *ends),
            "runs": (self.resume, *ends),
            ".cache": (self.resume, self.load, self.free),
        }.get(name.split("/")[0], (self.resume, *ends))


def interrupt(view: Any) -> None:
    if view.state.step == 3:
        raise KeyboardInterrupt


def names_in(outputs: Path, files_only: bool) -> Iterator[str]:
    """Every name that was written, one of those that differ only in the run, the step or the group they belong to."""
    seen = set()
    groups = ("runs", "s", "q")  # of a file in all of them, the one in the first
    tops = [outputs / name for name in (*groups, *sorted({each.name for each in outputs.iterdir()} - {*groups}))]
    for path in (path for top in tops for path in (top, *sorted(top.rglob("*")))):
        name = path.relative_to(outputs).as_posix()
        kind = re.sub(
            r"^(s|q|runs|\.trash)/[^/]*-s0-[0-9a-f]{8}(?=/)|step_\d+|tfevents\..*|(?<=-)[0-9a-f]{16}|(train|val|test)_.*",
            "*",
            name,
        )
        if kind not in seen and not (files_only and path.is_dir()):
            seen.add(kind)
            yield name


def plant(place: Path, kind: str, outside: Path) -> None:
    """Puts a link in the place of what is there, to a copy of it outside, to something of another kind, or to nothing.

    hard: another name of that copy, as `cp -al` makes them.
    """
    target, is_folder = outside / "target", place.is_dir()
    if kind == "folder" and is_folder:
        shutil.copytree(place, target, symlinks=True)
    elif kind in ("file", "hard") and not is_folder:
        shutil.copy2(place, target)
        if not place.stat().st_size:  # a lock
            target.write_text("precious")
    elif kind == "folder":
        target.mkdir()
        (target / "precious.txt").write_text("precious")
    elif kind == "file":
        target.write_text("precious")
    if is_folder:
        shutil.rmtree(place)
    else:
        place.unlink()
    (place.hardlink_to if kind == "hard" else place.symlink_to)(target)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(words(3000))
    return path


def check_links(work: Work, template: Path, outside: Path, name: str, kind: str) -> None:
    """Plants one link in a fresh copy, does all that writes near it, and looks whether anything outside has changed."""
    for folder in (work.outputs, outside):
        shutil.rmtree(folder, ignore_errors=True)
    outside.mkdir()
    shutil.copytree(template, work.outputs)
    plant(work.outputs / name, kind, outside)
    before = content(outside)
    for act in work.on(name):
        try:
            act()
        except (MoeError, OSError, IndexError):
            continue
    assert (name, kind, before) == (name, kind, content(outside))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_no_name_that_the_program_writes_leads_out(
    tmp_path: Path, text: Path, shared_fork_server: None, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Each name that a run, a sweep, a search, the trash and the caches write is a link out: nothing outside changes."""
    work, template, outside = Work(tmp_path / "outputs", text), tmp_path / "template", tmp_path / "outside"
    monkeypatch.setenv("MOE_OUTPUTS", str(work.outputs))
    work.make()
    work.outputs.rename(template)
    for name in names_in(template, files_only=kind == "hard"):
        check_links(work, template, outside, name, kind)
