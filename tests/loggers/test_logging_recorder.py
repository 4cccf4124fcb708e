"""Loggers never stand in the way: what fails is said once, what is missing before anything begins."""

import re
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from moe_cli import plugins, train
from moe_cli.config.loggers import LOGGERS
from moe_cli.errors import ConfigError
from moe_cli.execution.run import run_one
from moe_cli.loggers import logging_recorder as recorders
from moe_cli.loggers.logger import ResumeState
from moe_cli.loggers.logging_recorder import check_loggers, make_recorder
from moe_cli.runs.folder import FAILED, create_run
from moe_cli.runs.recorder import Recorder
from tests.loggers.runs import begin, logged_config, points, tell
from tests.tiny import finish

ABSENT = "log=wandb needs wandb, not installed here. Install: pip install 'moe-cli[wandb]'"


class Failing:
    """A logger that records its calls and fails in one of them."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.asked: list[str] = []

    def _ask(self, what: str) -> None:
        self.asked.append(what)
        if what == self.where:
            raise RuntimeError("no such server\nand a long story")

    def start(self, past: ResumeState) -> None:
        self._ask("start")

    def metrics(self, record: Mapping[str, Any]) -> None:
        self._ask("metrics")

    def finish(self, status: str, step: int, summary: Mapping[str, Any] | None) -> None:
        self._ask("finish")


@pytest.mark.parametrize("where", ["start", "metrics", "finish"])
def test_a_logger_that_fails_is_left_out(
    text_file: Path, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training goes on after a logger fails, with one warning, and the other logger gets every call."""
    made = {"mlflow": Failing(where), "tensorboard": Failing("never")}
    monkeypatch.setattr(recorders, "_make", lambda name, about: made[name])
    run = finish(logged_config(text_file, "mlflow+tensorboard"), tmp_path)
    assert run.summary() is not None
    line = "warning: log=mlflow failed and is switched off for this run; training continues: no such server\n"
    assert line == capsys.readouterr().err
    assert 1 == made["mlflow"].asked.count(where)
    assert where == made["mlflow"].asked[-1]
    assert ["start", *["metrics"] * len(run.metrics()), "finish"] == made["tensorboard"].asked


def test_logging_changes_nothing_of_what_is_learned(text_file: Path, tmp_path: Path) -> None:
    """The same run id and curves with it and without."""
    plain = finish(logged_config(text_file, None), tmp_path / "plain")
    logged = finish(logged_config(text_file, "tensorboard"), tmp_path / "logged")
    assert plain.id == logged.id
    times = ("seconds", "tokens_per_second")
    assert [{key: value for key, value in record.items() if key not in times} for record in plain.metrics()] == [
        {key: value for key, value in record.items() if key not in times} for record in logged.metrics()
    ]


def test_without_log_nothing_is_imported_or_written(text_file: Path, tmp_path: Path) -> None:
    """log=null is the plain recorder."""
    config = logged_config(text_file, None)
    assert type(make_recorder(create_run(tmp_path, "runs", config), config, tmp_path)) is Recorder


def test_a_run_that_fails_tells_its_loggers(text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A logger that has not started gets no end; one that has started gets it."""
    logger = Failing("never")
    monkeypatch.setattr(recorders, "_make", lambda name, about: logger)
    config = logged_config(text_file, "mlflow")
    make_recorder(create_run(tmp_path, "runs", config), config, tmp_path).status(FAILED)
    assert [] == logger.asked
    _, recorder = begin(config, tmp_path)
    tell(recorder, 1)
    recorder.status(FAILED)
    assert ["start", "metrics", "finish"] == logger.asked


@pytest.fixture
def no_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        plugins, "find_spec", lambda name: None if name == "wandb" else types.SimpleNamespace(origin=".")
    )


@pytest.mark.usefixtures("no_wandb")
def test_a_missing_library_is_an_error_before_anything_is_made(text_file: Path, tmp_path: Path) -> None:
    """For `train` of Python no folder is made; a run that is there already fails with the reason."""
    with pytest.raises(ConfigError, match=re.escape(ABSENT)):
        train(["log=wandb", "data=text", f"data.path={text_file}"], outputs=tmp_path)
    assert [] == list(tmp_path.iterdir())
    run = create_run(tmp_path, "runs", logged_config(text_file, "wandb"))
    with pytest.raises(ConfigError, match="log=wandb needs wandb"):
        run_one(run, tmp_path)
    assert ABSENT == run.status()["reason"]


def test_a_folder_of_the_name_is_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """./wandb, which W&B itself leaves behind, can be imported, but holds nothing."""
    for name in LOGGERS:
        if name in sys.modules:
            continue
        (tmp_path / name).mkdir()
        monkeypatch.setattr(sys, "path", [str(tmp_path)])
        with pytest.raises(ConfigError, match=f"log={name} needs {name}"):
            check_loggers(name)


def test_mlflow_needs_a_database_only_for_its_own_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """With MLFLOW_TRACKING_URI the store is somewhere else."""
    found = lambda name: types.SimpleNamespace(origin=".") if name == "mlflow" else None  # noqa: E731
    monkeypatch.setattr(plugins, "find_spec", found)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfigError, match="log=mlflow needs sqlalchemy and alembic"):
        check_loggers("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    check_loggers("mlflow")


@pytest.mark.slow
def test_of_several_processes_the_first_logs(text_file: Path, tmp_path: Path) -> None:
    """Two that train together leave one event file, with all that is recorded."""
    from tests.loggers.test_tensorboard import rounded, scalars

    run = finish(logged_config(text_file, "tensorboard", launch={"num_processes": 2}), tmp_path)
    assert 1 == len(list((run.path / "tensorboard").iterdir()))
    assert rounded(points(run)) == scalars(run)
