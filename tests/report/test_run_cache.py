"""The index of run folders changes nothing but the time: every frame equals that of reading all files."""

import json
import os
import random
import shutil
import socket
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from moe_cli import load_runs
from moe_cli.files.reading import read_json
from moe_cli.files.writing import write_json
from moe_cli.report import load as frame_module
from moe_cli.report import run_cache as index_module
from moe_cli.report.load import runs_frame
from moe_cli.report.run_cache import Column, Index, read_index, write_index
from moe_cli.runs.folder import COMPLETED, FAILED, RUNNING, Run
from moe_cli.runs.locks import lock
from moe_cli.runs.lookup import list_runs_by_age
from moe_cli.runs.tags import set_tags
from tests.report.folders import complete, set_status, stopped


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs of several kinds, with an index that is made for few runs and trusts files at once."""
    monkeypatch.setattr(index_module, "SETTLED_SECONDS", -60.0)
    monkeypatch.setattr(frame_module, "FEWEST", 1)
    for seed in range(3):
        complete(tmp_path, 1.8 + seed / 100, "one", expert=1, seed=seed)
        complete(
            tmp_path,
            1.7 + seed / 100,
            "two",
            expert=8,
            k=2,
            seed=seed,
            results={"extra": seed, "odd": [1, True, 1.0][seed]},
        )
    set_tags(stopped(tmp_path, FAILED, "out of memory", "two", expert=16, k=2), ["a", "b"])
    return tmp_path


def check(outputs: Path) -> None:
    """What is loaded is what all the files say."""
    pd.testing.assert_frame_equal(load_runs(outputs), runs_frame(list_runs_by_age(outputs)), check_like=True)


def reads(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs whose files are opened by a load."""
    opened: list[str] = []
    read = frame_module._read

    def spy(run: Run) -> Any:
        opened.append(run.id)
        return read(run)

    with monkeypatch.context() as patch:
        patch.setattr(frame_module, "_read", spy)
        load_runs(outputs)
    return opened


def test_a_second_load_opens_no_run(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first reads everything, the second nothing, and both give the same frame, to the order of columns."""
    first = load_runs(outputs)
    assert reads(outputs, monkeypatch) == []
    pd.testing.assert_frame_equal(first, load_runs(outputs))
    check(outputs)


def test_any_change_is_seen(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results, status, tags and settings written anew, a file edited in place, one gone, runs made, copied and removed."""
    load_runs(outputs)
    runs = list_runs_by_age(outputs / "two")
    write_json(runs[0].path / "summary.json", {**(runs[0].summary() or {}), "val_bpb": 1.1})
    assert reads(outputs, monkeypatch) == [runs[0].id]
    check(outputs)
    set_tags(runs[1], ["new"])
    set_status(runs[-1], FAILED, reason="another")
    check(outputs)
    config = runs[2].path / "config.json"
    text = config.read_text()
    before = config.stat()
    config.write_text(text.replace('"d_model": 96', '"d_model": 97'))
    os.utime(config, ns=(before.st_atime_ns, before.st_mtime_ns))
    check(outputs)
    assert 97 in load_runs(outputs)["model.d_model"].tolist()
    (runs[1].path / "summary.json").unlink()
    check(outputs)
    shutil.copytree(runs[0].path, outputs / "two" / "copy")
    shutil.rmtree(runs[2].path)
    complete(outputs, 1.5, "three", expert=4)
    check(outputs)


def test_random_changes_in_any_order(outputs: Path) -> None:
    """Twenty-five changes drawn at random; after each the frame is true."""
    draw = random.Random(0)
    for number in range(25):
        runs = list_runs_by_age(outputs)
        run = draw.choice(runs)
        what = draw.randrange(5)
        if what == 0:
            write_json(
                run.path / "summary.json",
                {"val_bpb": draw.choice([1, 1.0, True, "x", None, 2.5]), f"k{draw.randrange(3)}": number},
            )
        elif what == 1:
            set_status(run, draw.choice([COMPLETED, FAILED, RUNNING]), created=draw.random())
        elif what == 2:
            set_tags(run, [str(number)])
        elif what == 3 and len(runs) > 3:
            shutil.rmtree(run.path)
        else:
            complete(outputs, draw.random(), draw.choice(["one", "new"]), expert=4, seed=number)
        check(outputs)


def test_a_running_run_is_asked_every_time(outputs: Path) -> None:
    """Its status follows its lock, though no file changes."""
    run = stopped(outputs, RUNNING, group="one", expert=32, k=2)
    set_status(run, RUNNING, host=socket.gethostname())

    def status() -> str:
        frame = load_runs(outputs)
        return str(frame.loc[frame["run"] == run.id, "status"].item())

    assert status() == "interrupted"
    with lock(run.path):
        assert status() == status() == RUNNING
    assert status() == "interrupted"


def test_a_file_just_written_is_not_trusted(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its next change might bear the same time."""
    monkeypatch.setattr(index_module, "SETTLED_SECONDS", 60.0)
    load_runs(outputs)
    assert len(reads(outputs, monkeypatch)) == 7


@pytest.mark.parametrize("harm", ["torn", "flipped", "empty", "version", "codes", "list", "folder"])
def test_a_damaged_index_is_made_anew(outputs: Path, harm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torn, damaged, of another version, with places beyond the values: it is not believed, and replaced."""
    load_runs(outputs)
    path = outputs / ".cache" / index_module.NAME
    content = path.read_bytes()
    index = read_index(outputs)
    assert index is not None
    if harm == "codes":
        column = index.columns["k"]
        write_index(
            outputs, Index(index.keys, index.stamps, {**index.columns, "k": Column(column.values, column.codes + 99)})
        )
    elif harm == "list":
        body = b"[]"
        path.write_bytes(index_module.MAGIC + f"{index_module.zlib.crc32(body):08x}{len(body):08x}".encode() + body)
    elif harm == "folder":
        path.unlink()
        path.mkdir()
    else:
        damaged = {"torn": content[: len(content) // 2], "flipped": content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
                   "empty": b"", "version": content.replace(b"moe runs 2", b"moe runs 0", 1)}  # fmt: skip
        path.write_bytes(damaged[harm])
    assert read_index(outputs) is None
    check(outputs)
    assert (reads(outputs, monkeypatch) == []) == (harm != "folder")


def test_where_it_cannot_be_written_there_is_none(outputs: Path) -> None:
    """A file in the place of .cache, as a folder that is read-only has none: the frame is the same."""
    (outputs / ".cache").write_text("in the way")
    check(outputs)
    assert (outputs / ".cache").read_text() == "in the way"


def test_a_sweeps_folder_uses_it_and_leaves_it(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of the runs neither makes an index in the wrong place nor takes others out of the right one."""
    load_runs(outputs / "two")
    assert not list(outputs.rglob(index_module.NAME))
    load_runs(outputs)
    before = (outputs / ".cache" / index_module.NAME).read_bytes()
    assert reads(outputs / "two", monkeypatch) == []
    pd.testing.assert_frame_equal(
        load_runs(outputs / "two"), runs_frame(list_runs_by_age(outputs / "two")), check_like=True
    )
    assert (outputs / ".cache" / index_module.NAME).read_bytes() == before


def test_a_moved_outputs_folder_is_read_anew(outputs: Path) -> None:
    """Paths are those of now, and a copy's files are other files."""
    load_runs(outputs)
    shutil.copytree(outputs, outputs.parent / "copy")
    check(outputs.parent / "copy")
    (outputs.parent / "copy").rename(outputs.parent / "moved")
    check(outputs.parent / "moved")


def test_few_runs_make_no_index(tmp_path: Path) -> None:
    """They are read as quickly."""
    complete(tmp_path, 1.7)
    load_runs(tmp_path)
    assert not (tmp_path / ".cache").exists()


def test_the_index_holds_no_code(outputs: Path) -> None:
    """Its values are JSON, and the rest whole numbers."""
    load_runs(outputs)
    content = (outputs / ".cache" / index_module.NAME).read_bytes()
    start = len(index_module.MAGIC) + 16
    length = int(content[len(index_module.MAGIC) + 8 : start], 16)
    assert set(json.loads(content[start : start + length])) == {"keys", "columns"}
    assert read_json(outputs / ".cache" / index_module.NAME) is None


@pytest.mark.parametrize("name", ["config.json", "summary.json", "status.json", "tags.json"])
def test_what_could_not_be_read_once_is_read_again(outputs: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A file that is there and cannot be opened, for want of rights or handles, leaves nothing wrong behind."""
    whole = frame_module.read_json

    def refused(path: Path | str) -> dict[str, Any] | None:
        return None if Path(path).name == name else whole(path)

    with monkeypatch.context() as patch:
        patch.setattr(frame_module, "read_json", refused)
        load_runs(outputs)
    check(outputs)
