"""Weights & Biases and Trackio by stand-ins that have their signatures and write down what they are asked."""

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from moe_cli.loggers.logger import RunContext
from moe_cli.runs.folder import INTERRUPTED, Run
from tests.loggers.runs import begin, go_on, logged_config, tell

Call = tuple[str, Any]


class StandIn:
    """A run of either library."""

    def __init__(self, calls: list[Call]) -> None:
        self.calls = calls
        self.summary = types.SimpleNamespace(update=lambda values: calls.append(("summary", values)))

    def log(self, data: dict[str, Any], step: int | None = None) -> None:
        self.calls.append(("log", {"step": step, **data}))

    def log_artifact(self, artifact: Any) -> None:
        self.calls.append(("artifact", vars(artifact)))

    def finish(self, exit_code: int | None = None) -> None:
        self.calls.append(("finish", exit_code))


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Installs a stand-in for wandb 0.31 and returns its calls."""
    calls: list[Call] = []

    def init(
        entity=None,
        project=None,
        dir=None,
        id=None,
        name=None,
        notes=None,
        tags=None,
        config=None,
        config_exclude_keys=None,
        config_include_keys=None,
        allow_val_change=None,
        group=None,
        job_type=None,
        mode=None,
        force=None,
        reinit=None,
        resume=None,
        resume_from=None,
        fork_from=None,
        save_code=None,
        tensorboard=None,
        sync_tensorboard=None,
        monitor_gym=None,
        settings=None,
    ):
        calls.append(("init", dict(locals())))
        return StandIn(calls)

    return _installed(monkeypatch, "wandb", calls, init=init)


@pytest.fixture
def trackio(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Installs a stand-in for trackio 0.43 and returns its calls."""
    calls: list[Call] = []

    def init(
        project,
        name=None,
        group=None,
        space_id=None,
        server_url=None,
        dataset_id=None,
        bucket_id=None,
        config=None,
        resume="never",
        settings=None,
        private=None,
        embed=True,
        auto_log_gpu=None,
        gpu_log_interval=10.0,
        auto_log_cpu=None,
        cpu_log_interval=10.0,
        webhook_url=None,
        webhook_min_level=None,
    ):
        calls.append(("init", dict(locals())))
        print("* Trackio project initialized")
        return StandIn(calls)

    return _installed(monkeypatch, "trackio", calls, init=init, finish=lambda: calls.append(("finish", None)))


def _installed(monkeypatch: pytest.MonkeyPatch, name: str, calls: list[Call], **functions: Any) -> list[Call]:
    module = types.ModuleType(name)
    vars(module).update(functions)
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, f"moe_cli.loggers.{name}", raising=False)
    for variable in ("WANDB_MODE", "WANDB_PROJECT", "WANDB_DIR"):
        monkeypatch.delenv(variable, raising=False)
    return calls


def logged(calls: list[Call]) -> list[Any]:
    return [value for what, value in calls if what == "log"]


EXPECTED = [
    {"step": 1, "tokens": 64, "train/loss": 1.0}, {"step": 2, "tokens": 128, "train/loss": 0.5},
    {"step": 2, "val/loss": 1.0}, {"step": 3, "tokens": 192, "train/loss": 1 / 3},
    {"step": 4, "tokens": 256, "train/loss": 0.25}, {"step": 4, "val/loss": 0.5},
]  # fmt: skip


def broken_off_and_resumed(text_file: Path, outputs: Path, log: str, **changes: Any) -> Run:
    """Steps 1 to 3, back to the checkpoint at 2, steps 3 and 4, and a result."""
    run, recorder = begin(logged_config(text_file, log, **changes), outputs)
    tell(recorder, 1, 2, 3)
    recorder.status(INTERRUPTED)
    recorder = go_on(run, outputs, 2)
    tell(recorder, 3, 4)
    recorder.complete({"val_loss": 0.5, "router": "topk"})
    return run


def test_wandb_gets_each_point_once(text_file: Path, tmp_path: Path, wandb: list[Call]) -> None:
    """As in metrics.jsonl, in both parts of the run under one id; the results are its summary."""
    broken_off_and_resumed(text_file, tmp_path, "wandb")
    assert EXPECTED == logged(wandb)
    assert [("finish", 1), ("summary", {"summary/val_loss": 0.5}), ("finish", 0)] == [
        call for call in wandb if (call[0] in ("finish", "summary") and call[1]) or call[0] == "finish"
    ]
    first, second = (value for what, value in wandb if what == "init")
    assert first["id"] == second["id"]


def test_wandb_is_offline_and_in_the_run_folder(text_file: Path, tmp_path: Path, wandb: list[Call]) -> None:
    """wandb gets the offline mode, the run's folder, settings, name, group, and project."""
    run, _ = begin(logged_config(text_file, "wandb"), tmp_path)
    asked = wandb[0][1]
    expected = {
        "mode": "offline",
        "dir": run.path,
        "project": "moe",
        "name": run.id,
        "group": "runs",
        "resume": None,
        "config": RunContext(run, run.config(), tmp_path).settings(),
    }
    assert expected == {key: asked[key] for key in expected}


def test_wandb_goes_online_when_the_user_says_so(
    text_file: Path, tmp_path: Path, wandb: list[Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    """WANDB_MODE, WANDB_PROJECT and WANDB_DIR hold; a run that goes on is the same one there."""
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    monkeypatch.setenv("WANDB_DIR", "/elsewhere")
    begin(logged_config(text_file, "wandb"), tmp_path)
    asked = wandb[0][1]
    assert ("online", "allow", "theirs", "/elsewhere") == tuple(
        asked[key] for key in ("mode", "resume", "project", "dir")
    )


def test_trackio_gets_each_point_once(
    text_file: Path, tmp_path: Path, trackio: list[Call], capsys: pytest.CaptureFixture[str]
) -> None:
    """As in metrics.jsonl; begun as a new run, gone on with as the same; what it prints is not shown."""
    run = broken_off_and_resumed(text_file, tmp_path, "trackio", log_project="mine")
    assert [*EXPECTED, {"step": 4, "summary/val_loss": 0.5}] == logged(trackio)
    asked = [tuple(value[key] for key in ("project", "name", "resume")) for what, value in trackio if what == "init"]
    assert [("mine", run.id, "never"), ("mine", run.id, "allow")] == asked
    assert ["finish", "finish"] == [what for what, _ in trackio if what == "finish"]
    assert ("", "") == tuple(capsys.readouterr())


def test_one_that_joins_late_gets_what_there_is(text_file: Path, tmp_path: Path, trackio: list[Call]) -> None:
    """Asked for at --resume: also the steps before."""
    run, recorder = begin(logged_config(text_file, None), tmp_path)
    tell(recorder, 1, 2)
    tell(go_on(run, tmp_path, 2, "trackio"), 3, 4)
    assert EXPECTED == logged(trackio)


class Artifact:
    """An artifact of wandb 0.31."""

    def __init__(self, name: str, type: str) -> None:
        self.name, self.type, self.files = name, type, []

    def add_file(self, local_path: str) -> None:
        self.files.append(Path(local_path).name)


def test_a_report_is_an_artifact_of_wandb(wandb: list[Call], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is written offline, below the outputs folder, unless WANDB_MODE says otherwise."""
    from moe_cli.loggers.report_artifact import send_report

    monkeypatch.setattr(sys.modules["wandb"], "Artifact", Artifact, raising=False)
    text = send_report("wandb", [tmp_path / "report.csv"], "all runs", tmp_path)
    kinds = dict(wandb)
    assert ("offline", tmp_path / ".wandb", "report") == tuple(
        kinds["init"][key] for key in ("mode", "dir", "job_type")
    )
    assert {"name": "report-all-runs", "type": "report", "files": ["report.csv"]} == kinds["artifact"]
    assert 0 == kinds["finish"]
    assert "project moe, artifact report-all-runs" in text
