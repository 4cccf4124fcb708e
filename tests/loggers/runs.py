"""Runs that log: a tiny run to train, and a recorder that tests drive by hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from moe_cli.config.schema import RunConfig
from moe_cli.loggers.logger import numbers
from moe_cli.loggers.logging_recorder import make_recorder
from moe_cli.runs.folder import Run, create_run, rewrite_config
from moe_cli.runs.recorder import Recorder
from tests.tiny import tiny_config

Points = dict[str, list[tuple[int, float]]]


def logged_config(text_file: Path, log: str | None, **changes: Any) -> RunConfig:
    return tiny_config(text_file, log=log, **changes)


def begin(config: RunConfig, outputs: Path) -> tuple[Run, Recorder]:
    """A new run whose recorder stands at its beginning."""
    run = create_run(outputs, "runs", config)
    recorder = make_recorder(run, config, outputs)
    recorder.rewind(-1)
    return run, recorder


def go_on(run: Run, outputs: Path, step: int, log: str | None = None) -> Recorder:
    """The recorder of a new process that goes on after `step`; with another `log`, if one is given."""
    if log is not None:
        rewrite_config(run, replace(run.config(), log=None if log == "null" else log))
    recorder = make_recorder(run, run.config(), outputs)
    recorder.rewind(step)
    return recorder


def tell(recorder: Recorder, *steps: int, value: float = 0.0) -> None:
    """A record of training for each step, and one of an evaluation at the even ones."""
    for step in steps:
        recorder.metrics({"step": step, "tokens": 64 * step, "train/loss": value + 1 / step, "lr": None})
        if step % 2 == 0:
            recorder.metrics({"step": step, "val/loss": value + 2 / step})


def points(run: Run) -> Points:
    """Returns the steps and values of every name in metrics.jsonl, in order."""
    found: Points = {}
    for record in run.metrics():
        for key, value in numbers(record).items():
            found.setdefault(key, []).append((record["step"], value))
    return found
