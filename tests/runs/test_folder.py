"""Run folders: made, found, locked, torn, moved."""

import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from moe_cli.config.schema import RunConfig
from moe_cli.errors import ConfigError, MoeError, RunBusy, RunNotFound
from moe_cli.files.checksums import write_sealed
from moe_cli.files.reading import read_json
from moe_cli.files.writing import make_folder, write_json
from moe_cli.runs.folder import Run, create_run, open_or_create_run, outputs_folder
from moe_cli.runs.locks import is_locked, lock
from moe_cli.runs.lookup import find_run, list_runs_by_age
from moe_cli.runs.recorder import Recorder
from tests.tiny import tiny_config

TEXT = Path("/text.txt")
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
records = st.lists(st.dictionaries(st.text(min_size=1), values, max_size=4), min_size=1, max_size=5)


def make(outputs: Path, group: str = "runs", **changes: Any) -> Run:
    return create_run(outputs, group, tiny_config(TEXT, **changes))


@contextmanager
def other_writer(run: Run) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the run's lock until it is killed."""
    code = "import sys, time; from pathlib import Path; from moe_cli.runs.locks import lock\n"
    code += "with lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code, str(run.path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert "held\n" == process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_new_run_holds_its_configuration_and_waits(tmp_path: Path) -> None:
    """A new folder has the configuration for machines and for people, and the status pending."""
    config = tiny_config(TEXT, expert=8)
    run = create_run(tmp_path, "runs", config)
    assert tmp_path / "runs" / config.run_id == run.path
    assert config == run.config()
    assert config.to_dict() == yaml.safe_load((run.path / "config.yaml").read_text())
    assert "pending" == run.status()["status"]
    assert ("runs", None, []) == (run.sweep, run.summary(), run.metrics())


def test_a_taken_name_gets_a_number(tmp_path: Path) -> None:
    """Training the same configuration again makes a folder with the next number."""
    first, second, third = (make(tmp_path) for _ in range(3))
    assert [first.id, f"{first.id}-2", f"{first.id}-3"] == [first.id, second.id, third.id]


def test_a_sweep_has_one_folder_per_configuration(tmp_path: Path) -> None:
    """Opening a configuration again finds its folder, with what was recorded in it."""
    config = tiny_config(TEXT)
    run = open_or_create_run(tmp_path, "grid", config)
    Recorder(run).status("failed", reason="x")
    assert run == open_or_create_run(tmp_path, "grid", config)
    assert "failed" == run.status()["status"]


@pytest.mark.parametrize("name", ["config.json", "status.json"])
def test_a_half_made_folder_is_mended(tmp_path: Path, name: str) -> None:
    """A folder whose making was cut short gets the files it lacks."""
    config = tiny_config(TEXT)
    run = open_or_create_run(tmp_path, "grid", config)
    (run.path / name).write_text("{")
    assert config == open_or_create_run(tmp_path, "grid", config).config()
    assert "pending" == run.status()["status"]


def test_a_run_is_found_by_folder_id_prefix_and_latest(tmp_path: Path) -> None:
    """Whatever names one run finds it: its folder, the folder below outputs, its id, a beginning of it, `latest`."""
    old, new = make(tmp_path, expert=4), make(tmp_path, "grid", expert=8)
    for name in (str(old.path), f"runs/{old.id}", old.id, "gpt-4x2"):
        assert old == find_run(tmp_path, name)
    for name in (str(new.path), f"grid/{new.id}", new.id, "gpt-8", "latest"):
        assert new == find_run(tmp_path, name)


def test_a_whole_id_wins_over_the_runs_it_begins(tmp_path: Path) -> None:
    """An id that is also the beginning of another id means the run of that id."""
    first, second = make(tmp_path), make(tmp_path)
    assert second.id.startswith(first.id)
    assert first == find_run(tmp_path, first.id)


def test_names_of_no_or_several_runs_are_refused(tmp_path: Path) -> None:
    """The message lists the candidates, or says that there are none."""
    with pytest.raises(RunNotFound, match="no runs in"):
        find_run(tmp_path, "latest")
    first, second = make(tmp_path, seed=1), make(tmp_path, seed=2)
    with pytest.raises(
        RunNotFound, match=rf"could be 2 runs: runs/{first.id} \(seed=1\), runs/{second.id} \(seed=2\)\."
    ):
        find_run(tmp_path, "gpt")
    with pytest.raises(RunNotFound, match="'bert'"):
        find_run(tmp_path, "bert")


def test_runs_are_listed_oldest_first_without_hidden_folders(tmp_path: Path) -> None:
    """The outputs folder, a group and a run folder each give the runs at or below them."""
    first, second, third = make(tmp_path, seed=3), make(tmp_path, "grid", seed=1), make(tmp_path, seed=2)
    make(tmp_path, ".trash")
    assert [first, second, third] == list_runs_by_age(tmp_path)
    assert [first, third] == list_runs_by_age(tmp_path / "runs")
    assert [second] == list_runs_by_age(second.path)


def test_a_moved_folder_is_the_same_run(tmp_path: Path, finished: Run) -> None:
    """Everything a run recorded is read alike from a copy elsewhere."""
    shutil.copytree(finished.path, tmp_path / "elsewhere" / finished.id)
    moved = find_run(tmp_path, finished.id)
    assert moved.path != finished.path
    for read in (Run.config, Run.summary, Run.status, Run.metrics, Run.routing, Run.meta):
        assert read(finished) == read(moved)
    assert [path.name for path in finished.checkpoints()] == [path.name for path in moved.checkpoints()]


@given(records, st.data())
def test_records_come_back_and_a_torn_last_line_is_ignored(lines: list[dict[str, Any]], data: st.DataObject) -> None:
    """Any records round trip; a file cut anywhere within its last line gives all records but that one."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        for line in lines:
            Recorder(run).metrics(line)
        assert lines == run.metrics()
        path = run.path / "metrics.jsonl"
        raw = path.read_bytes()
        last = raw.rstrip(b"\n").rfind(b"\n") + 1
        path.write_bytes(raw[: data.draw(st.integers(last, len(raw) - 2))])
        assert lines[:-1] == run.metrics()


def test_what_json_lacks_is_null(tmp_path: Path) -> None:
    """NaN and infinities are written as null, however deep they lie."""
    run = make(tmp_path)
    Recorder(run).metrics({"step": 1, "loss": float("nan"), "deep": [1.5, {"x": float("-inf")}]})
    assert [{"step": 1, "loss": None, "deep": [1.5, {"x": None}]}] == run.metrics()
    write_json(tmp_path / "x.json", {"x": float("inf")})
    assert {"x": None} == json.loads((tmp_path / "x.json").read_text())


def test_rewinding_forgets_later_steps_and_torn_lines(tmp_path: Path) -> None:
    """After a rewind to step 4 only whole records up to it are left, as they were written."""
    run = make(tmp_path)
    recorder = Recorder(run)
    for step in (2, 4, 6):
        recorder.metrics({"step": step, "x": 0.1})
        recorder.routing({"step": step})
    before = (run.path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 3')
    recorder.rewind(4)
    assert b"".join(before[:2]) == (run.path / "metrics.jsonl").read_bytes()
    assert [{"step": 2}, {"step": 4}] == run.routing()
    recorder.rewind(-1)
    assert [] == run.metrics()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """On a full disk the file keeps its old content and no scrap is left next to it."""

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "status.json"
    write_json(path, {"old": 1})
    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space"):
        write_json(path, {"new": 2})
    assert {"old": 1} == read_json(path)
    assert [path] == list(tmp_path.iterdir())


def test_only_one_process_writes(tmp_path: Path) -> None:
    """A second writer is refused while the first lives, and let in when it was killed."""
    run = make(tmp_path)
    with other_writer(run) as process:
        assert is_locked(run.path)
        with pytest.raises(RunBusy, match=run.id), lock(run.path):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not is_locked(run.path)
        with lock(run.path):
            assert is_locked(run.path)
    assert not is_locked(run.path)


def test_a_run_whose_process_died_is_interrupted(tmp_path: Path) -> None:
    """`running` is believed while a process holds the folder, and no longer."""
    run = make(tmp_path)
    with other_writer(run):
        Recorder(run).status("running", step=3)
        assert "running" == run.status()["status"]
    assert ("interrupted", 3) == (run.status()["status"], run.status()["step"])


@pytest.mark.parametrize(
    ("silence", "expected"), [(5.0, "running"), (500.0, "interrupted"), (-5.0, "running"), (-500.0, "interrupted")]
)
def test_a_run_on_another_machine_lives_by_its_heartbeat(tmp_path: Path, silence: float, expected: str) -> None:
    """A lock of another machine cannot be seen, so a run there counts as running until it has long been silent, by either clock."""
    run = make(tmp_path)
    host = socket.gethostname() + "-other"
    write_json(run.path / "status.json", {"status": "running", "host": host, "heartbeat": time.time() - silence})
    assert expected == run.status()["status"]


def test_a_run_is_complete_when_its_summary_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a completion cut short nor one taken back counts as completed."""
    run = make(tmp_path)
    recorder = Recorder(run)
    with monkeypatch.context() as patch:
        patch.setattr("moe_cli.runs.recorder.write_sealed", lambda path, content: None)
        recorder.complete({"val_loss": 1.0})
    assert ("interrupted", None) == (run.status()["status"], run.summary())
    recorder.status("failed", reason="of an earlier attempt")
    recorder.complete({"val_loss": 1.0})
    assert ("completed", {"val_loss": 1.0}) == (run.status()["status"], run.summary())
    assert run.status()["reason"] is None
    (run.path / "summary.json").unlink()
    assert ("interrupted", None) == (run.status()["status"], run.summary())


@pytest.mark.parametrize("content", ["", "{", '{"expert": 0}', '{"exprt": 1}', "[]"])
def test_a_damaged_configuration_is_named(tmp_path: Path, content: str) -> None:
    """A config.json that is torn, out of range or of another version is a ConfigError with its path."""
    run = make(tmp_path)
    (run.path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"config\.json"):
        run.config()


def test_the_outputs_folder_is_option_variable_or_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--outputs wins over MOE_OUTPUTS, which wins over ./outputs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MOE_OUTPUTS", raising=False)
    assert tmp_path / "outputs" == outputs_folder()
    monkeypatch.setenv("MOE_OUTPUTS", "variable")
    assert tmp_path / "variable" == outputs_folder()
    assert tmp_path / "option" == outputs_folder(Path("option"))


def test_a_folder_that_cannot_be_made_is_an_error_of_ours(tmp_path: Path) -> None:
    """A file in the way of the outputs folder gives a MoeError that names the option."""
    (tmp_path / "file").write_text("")
    with pytest.raises(MoeError, match="--outputs DIR"):
        make_folder(tmp_path / "file" / "runs")


def test_a_sweeps_run_takes_over_how_it_is_with_execution_settings(tmp_path: Path) -> None:
    """New device, threads and intervals reach an unlocked, incomplete run; a complete run stays as it was."""
    config = RunConfig()
    again = replace(config, train=replace(config.train, threads=3, eval_every=7))
    run = open_or_create_run(tmp_path, "sweep", config)
    with lock(run.path):
        assert config == open_or_create_run(tmp_path, "sweep", again).config()
    assert again == open_or_create_run(tmp_path, "sweep", again).config()
    write_sealed(run.path / "summary.json", {})
    assert again == open_or_create_run(tmp_path, "sweep", config).config()


def test_the_latest_records_come_from_the_end_of_the_file(tmp_path: Path) -> None:
    """However long metrics.jsonl is, the newest records are whole, and few bytes are read."""
    run = create_run(tmp_path, "runs", RunConfig())
    assert [] == run.latest_metrics()
    lines = [json.dumps({"step": step}) for step in range(10_000)]
    (run.path / "metrics.jsonl").write_text("\n".join(lines))
    latest = run.latest_metrics()
    assert [{"step": step} for step in range(10_000 - len(latest), 10_000)] == latest
    assert 100 < len(latest) < 2_000


@pytest.mark.parametrize("value", ["yesterday", [], {}, None])
def test_an_edited_status_harms_nothing(tmp_path: Path, value: Any) -> None:
    """Times that are no numbers count as long ago."""
    run = create_run(tmp_path, "runs", RunConfig())
    write_json(
        run.path / "status.json", {"status": "running", "host": "elsewhere", "heartbeat": value, "created": value}
    )
    assert [run] == list_runs_by_age(tmp_path)
    assert "interrupted" == run.status()["status"]


@pytest.mark.parametrize("status", [{}, {"status": "done"}, {"status": ["running"]}, {"status": None, "step": 3}])
def test_a_status_that_is_no_status_is_pending(tmp_path: Path, status: dict[str, Any]) -> None:
    """A word that is none of ours, or none at all, is a run that waits."""
    run = create_run(tmp_path, "runs", RunConfig())
    write_json(run.path / "status.json", status)
    assert {**status, "status": "pending"} == run.status()


@pytest.mark.parametrize("content", ["", '{"val_loss": 1.', "[]"])
def test_a_summary_that_is_not_whole_is_none(tmp_path: Path, content: str) -> None:
    """A summary.json cut short, by a copy that was stopped, leaves the run to be done again, and it is said how."""
    run = make(tmp_path)
    Recorder(run).complete({"val_loss": 1.0})
    (run.path / "summary.json").write_text(content)
    assert ("interrupted", None) == (run.status()["status"], run.summary())
    assert run.status()["reason"].endswith(f"Make it again: moe train --resume {run.id}")


def test_a_look_turns_no_writer_away(tmp_path: Path) -> None:
    """A check of a run's lock holds the lock for an instant, and other checks and writers are not misled."""
    run = make(tmp_path)
    with lock(run.path):
        pass
    with open(run.path / ".lock") as look:
        fcntl.flock(look, fcntl.LOCK_SH)
        assert not is_locked(run.path)
        timer = threading.Timer(0.2, fcntl.flock, (look, fcntl.LOCK_UN))
        timer.start()
        with lock(run.path):
            assert is_locked(run.path)
        timer.join()
