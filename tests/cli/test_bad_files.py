"""Folders that were edited, damaged or made by others: a command names the bad file and goes on with the rest."""

import atexit
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from moe_cli.files.writing import write_json
from moe_cli.runs.folder import Run, make_sweep_folder
from tests.cli.conftest import Moe
from tests.report.folders import complete, set_status

FILES = ("status.json", "summary.json", "meta.json", "config.json", "tags.json", "metrics.jsonl", "routing.jsonl")
# Which of them each command opens, and so has to name.
OPENED = {
    ("runs", "ls"): ("status.json", "summary.json", "config.json", "tags.json"),
    ("report",): ("status.json", "summary.json", "config.json", "tags.json"),
}


def _numbers(text: str) -> Callable[[Path], None]:
    """Puts `text` in place of every number of every record."""

    def change(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: change(item) for key, item in value.items()}
        if isinstance(value, list):
            return list(map(change, value))
        return "@" if isinstance(value, int | float) and not isinstance(value, bool) else value

    def damage(path: Path) -> None:
        known = path.read_text()
        records = known.splitlines() if path.suffix == ".jsonl" else [known]
        lines = [json.dumps({**change(json.loads(record)), "n": "@"}) for record in records]
        path.write_text("\n".join(lines).replace('"@"', text) + "\n")

    return damage


def _content(content: bytes) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.write_bytes(content)

    return damage


def _instead(make: Callable[[Path], None]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


def _huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**36)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "400 digits": _numbers(f"1{'0' * 400}"),
    "NaN": _numbers("NaN"),
    "Infinity": _numbers("-Infinity"),
    "1e999": _numbers("1e999"),
    "nested": _content(b'{"a":' * 20_000 + b"1" + b"}" * 20_000 + b"\n"),
    "NUL": _content(b"\0" * 3000 + b"\n"),
    "no UTF-8": _content(bytes(range(256)) + b"\n"),
    "list": _content(b"[1, 2]\n"),
    "FIFO": _instead(os.mkfifo),
    "device": _instead(lambda path: path.symlink_to("/dev/zero")),
    "folder": _instead(Path.mkdir),
    "loop": _instead(lambda path: path.symlink_to(path.name)),
    "nowhere": _instead(lambda path: path.symlink_to("gone")),
    "64 GiB": _instead(_huge),
}


@cache
def _template(seed: int) -> Run:
    """A complete run with every file that a run may have; to be copied."""
    outputs = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, outputs, ignore_errors=True)
    run = complete(outputs, 1.7, seed=seed, expert=8, k=2)
    write_json(run.path / "meta.json", {"corpus": {"sha256": "ab" * 32, "name": "python", "num_bytes": 5}})
    write_json(run.path / "tags.json", {"tags": ["x"]})
    records = [{"step": step, "train/loss": 2.0, "val/bpb": 2.1} for step in (1, 2)]
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    load = {"step": 2, "layer": 0, "tokens_per_expert": [1, 2], "kept_per_expert": [1, 2]}
    (run.path / "routing.jsonl").write_text(json.dumps(load) + "\n")
    return run


def _make(outputs: Path, group: str, seed: int) -> Run:
    """A new run in the folder of a sweep, with every file that a run may have."""
    template = _template(seed)
    run = Run(Path(shutil.copytree(template.path, make_sweep_folder(outputs, group) / template.id)))
    set_status(run, "completed", created=time.time())
    return run


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    return tmp_path / "outputs"


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_bad_file_stops_no_list(moe: Moe, outputs: Path, damage: str) -> None:
    """Whatever has become of one file of a run, lists show the other runs, and name the file with the reason."""
    good = _make(outputs, "good", 0)
    bad = {}
    for name in FILES:
        bad[name] = _make(outputs, f"bad-{name.split('.')[0]}", 1).path / name
        DAMAGES[damage](bad[name])
    for words, opened in OPENED.items():
        result = moe(*words)
        assert (0, None) == (result.exit_code, result.exception)
        assert good.id in result.stdout or "8x2" in result.stdout
        lines = [line for line in result.stderr.splitlines() if line.startswith("unreadable: ")]
        assert {str(bad[name]) for name in opened} == {line.split()[1] for line in lines}
    for words in (("runs", "clean"), ("runs", "diff", good.path, bad["routing.jsonl"].parent)):
        result = moe(*words)
        assert (0, None) == (result.exit_code, result.exception)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_with_a_bad_file_is_shown(moe: Moe, outputs: Path, damage: str) -> None:
    """`moe runs show` shows what can be read of a run, and one line names the unreadable file."""
    for name in FILES:
        path = _make(outputs, f"bad-{name.split('.')[0]}", 1).path / name
        DAMAGES[damage](path)
        result = moe("runs", "show", path.parent)
        assert (name, 0, None) == (name, result.exit_code, result.exception)
        assert f"unreadable: {path} " in result.stderr


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_bad_note_in_a_sweep_or_in_the_trash_stops_nothing(moe: Moe, outputs: Path, damage: str) -> None:
    """The record of a sweep, the corpora that it began with, and what says where a removed run lay."""
    good = _make(outputs, "good", 0)
    assert 0 == moe("runs", "rm", _make(outputs, "gone", 1).path).exit_code
    (trashed,) = (outputs / ".trash").glob("*/trashed.json")
    write_json(
        good.path.parent / "sweep.json", {"name": "good", "created": 1.0, "commands": [], "looks": [{"time": 1.0}]}
    )
    write_json(good.path.parent / "corpora.json", {"{}": 5})
    bad = [trashed, *(good.path.parent / name for name in ("sweep.json", "corpora.json"))]
    for path in bad:
        DAMAGES[damage](path)
    result = moe("report", "good")
    assert (0, None) == (result.exit_code, result.exception)
    assert f"unreadable: {bad[1]} " in result.stderr
    for words in (("runs", "restore"), ("runs", "clean", "--older-than", "0d")):
        result = moe(*words)
        assert (0, None) == (result.exit_code, result.exception)
        assert f"unreadable: {trashed} " in result.stderr
    assert 2 == moe("runs", "restore", "latest").exit_code


@pytest.mark.parametrize(
    "value", ["text", "\ud800\x1b[31m", True, None, -1, 0, 1e300, 10**200, [[1], {}], {"a": 1}], ids=repr
)
def test_values_of_other_types_stop_nothing(moe: Moe, outputs: Path, value: Any) -> None:
    """Commands exit with code 0 although every value of a file has another type or is absurd."""

    def change(known: Any) -> Any:
        return {key: change(item) for key, item in known.items()} if isinstance(known, dict) else value

    for name in FILES:
        for at_work in (False, True) if name in ("status.json", "metrics.jsonl") else (False,):
            run = _make(outputs, f"{name.split('.')[0]}-{at_work}", 1)
            if at_work:
                (run.path / "summary.json").unlink()
                set_status(run, "running", host="elsewhere", heartbeat=time.time(), step=1, steps=2)
            known = (run.path / name).read_text()
            records = known.splitlines() if name.endswith(".jsonl") else [known]
            (run.path / name).write_text("\n".join(json.dumps(change(json.loads(each))) for each in records) + "\n")
            result = moe("runs", "show", run.path)
            assert (name, 0, None) == (name, result.exit_code, result.exception)
    for words in (("runs", "ls"), ("runs", "ls", "--json"), ("report",), ("recommend",), ("runs", "clean")):
        result = moe(*words)
        assert (0, None) == (result.exit_code, result.exception)


def test_a_folder_that_cannot_be_listed_is_named(moe: Moe, outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs of the others are listed; as root, who may list everything, the refusal is played."""
    good, bad = _make(outputs, "good", 0), _make(outputs, "bad", 1)
    scan = os.scandir

    def refuse(path: Any = ".") -> Any:
        if Path(path) == bad.path.parent:
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr("moe_cli.runs.lookup.os.scandir", refuse)
    for words in (("runs", "ls"), ("report",)):
        result = moe(*words)
        assert 0 == result.exit_code
        assert f"unreadable: {bad.path.parent} cannot be listed: Permission denied" in result.stderr
    assert good.id in moe("runs", "ls").stdout


def test_damaged_lines_are_counted(moe: Moe, outputs: Path) -> None:
    """Whole records of metrics.jsonl are shown; the note counts damaged lines, but not a torn last line."""
    run = _make(outputs, "s", 0)
    path = run.path / "metrics.jsonl"
    path.write_text('{"step": 1, "val/bpb": 3.0}\n{"st\n\n[1]\n{"step": 2, "val/bpb": 2.0}\n{"step": 3, "v')
    result = moe("runs", "show", run.path, "--json")
    assert [1, 2] == [point["step"] for point in json.loads(result.stdout)["curve"]]
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"unreadable: {path} 2 of 6 lines left out; line 2 is not valid JSON")


def test_a_changed_configuration_is_named(moe: Moe, outputs: Path) -> None:
    """Both the list of results and the run itself say that a configuration is not the one that the run's id names."""
    run = _make(outputs, "s", 0)
    assert "changed:" not in moe("report").stderr + moe("runs", "show", run.path).stderr
    write_json(run.path / "config.json", {**run.config_dict(), "expert": 16})
    for words in (("report",), ("runs", "show", run.path), ("runs", "diff", run.path, _make(outputs, "t", 1).path)):
        result = moe(*words)
        assert 0 == result.exit_code
        assert f"changed: {run.path} has a config.json that was changed: its id says {run.id[-8:]}," in result.stderr


@pytest.mark.parametrize("hidden", [False, True])
def test_edited_results_are_no_results(moe: Moe, finished: Run, outputs: Path, hidden: bool) -> None:
    """A figure of summary.json that was edited ranks nothing, also where its checksum was deleted: it has to be made again."""
    run = Run(Path(shutil.copytree(finished.path, outputs / "s" / finished.id)))
    path = run.path / "summary.json"
    assert "completed" == json.loads(moe("runs", "ls", "--json").stdout)[0]["status"]
    text = path.read_text()
    text = re.sub(r'"val_loss": [^,]*', '"val_loss": 0.5', text)
    path.write_text(re.sub(r',\s*"checksum": "\w+"', "", text) if hidden else text)
    why = f"is not as it was written: it has {'no' if hidden else 'another'} checksum"
    for words in (("runs", "ls"), ("report",), ("runs", "show", run.path)):
        assert f"unreadable: {path} {why}" in moe(*words).stderr
    (found,) = json.loads(moe("runs", "ls", "--json").stdout)
    assert ("interrupted", None) == (found["status"], found["val_loss"])
    assert f"Make it again: moe train --resume {run.id}" in found["reason"]
