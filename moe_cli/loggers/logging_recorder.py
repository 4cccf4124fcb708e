"""A recorder that forwards its records to loggers. metrics.jsonl is written first and is authoritative."""

import importlib
import os
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from moe_cli.config.loggers import loggers_of
from moe_cli.config.schema import RunConfig
from moe_cli.errors import ConfigError
from moe_cli.formatting import print_line
from moe_cli.loggers.logger import Logger, ResumeState, RunContext, last_steps, step_of
from moe_cli.plugins import Plugin, find, is_installed
from moe_cli.runs.folder import COMPLETED, FAILED, INTERRUPTED, Run
from moe_cli.runs.recorder import Recorder

# The class of each logger. Its module has the name of the logger and imports the library of that name.
CLASSES = {
    "tensorboard": "TensorBoardLogger",
    "mlflow": "MLflowLogger",
    "wandb": "WandbLogger",
    "trackio": "TrackioLogger",
}
REASON_LENGTH = 200  # errors of some libraries are long
LOCAL_MLFLOW = ("sqlalchemy", "alembic")  # packages for MLflow's local database


def check_loggers(log: str | None, option: str = "log=") -> None:
    """Raises ConfigError when a library that the loggers of an option need is not installed, or a plug-in is broken."""
    for name in loggers_of(log):
        if name not in CLASSES:
            _plugin(name).code()
            continue
        local = LOCAL_MLFLOW if name == "mlflow" and not os.environ.get("MLFLOW_TRACKING_URI") else ()
        missing = [needed for needed in (name, *local) if not is_installed(needed)]
        if missing:
            raise ConfigError(
                f"{option}{name} needs {' and '.join(missing)}, not installed here. "
                f"Install: pip install 'moe-cli[{name}]'"
            )


def make_recorder(run: Run, config: RunConfig, outputs: Path) -> Recorder:
    """Returns the recorder of a run, with the loggers of its configuration."""
    return LoggedRecorder(RunContext(run, config, outputs)) if config.log else Recorder(run)


def _plugin(name: str) -> Plugin:
    plugin = find("log", name)
    assert plugin is not None, name
    return plugin


def _make(name: str, about: RunContext) -> Logger:
    if name not in CLASSES:
        made: Logger = _plugin(name).code()(about)
        return made
    logger: Logger = getattr(importlib.import_module(f"moe_cli.loggers.{name}"), CLASSES[name])(about)
    return logger


class LoggedRecorder(Recorder):
    """Writes as `Recorder` does, then calls the loggers. A logger that fails is removed; training continues."""

    def __init__(self, about: RunContext) -> None:
        super().__init__(about.run)
        self.context = about
        self.loggers: dict[str, Logger] = {}
        self.begun = False
        self.step = 0

    def rewind(self, step: int) -> None:
        """Starts the loggers at the beginning of a run, or rewinds them with the records."""
        last_logged_steps = last_steps(self.run.read_metrics())
        super().rewind(step)
        past = ResumeState(step, tuple(self.run.read_metrics()), last_logged_steps)
        self.step = max(0, step)
        if not self.begun:
            self.begun = True
            for name in loggers_of(self.context.config.log):
                self._try(name, partial(self._add, name))
        self._call_all(lambda logger: logger.start(past))

    def metrics(self, record: Mapping[str, Any]) -> None:
        super().metrics(record)
        self.step = step_of(record)
        self._call_all(lambda logger: logger.metrics(record))

    def status(self, status: str, **fields: Any) -> None:
        super().status(status, **fields)
        if status in (FAILED, INTERRUPTED):
            self._finish(status, None)

    def complete(self, summary: Mapping[str, Any]) -> None:
        super().complete(summary)
        self._finish(COMPLETED, summary)

    def _finish(self, status: str, summary: Mapping[str, Any] | None) -> None:
        self._call_all(lambda logger: logger.finish(status, self.step, summary))
        self.loggers.clear()

    def _add(self, name: str) -> None:
        self.loggers[name] = _make(name, self.context)

    def _call_all(self, call: Callable[[Logger], None]) -> None:
        for name, logger in list(self.loggers.items()):
            self._try(name, partial(call, logger))

    def _try(self, name: str, call: Callable[[], None]) -> None:
        """Calls the function.

        If it fails, reports that once and removes the logger. Warnings of its library are suppressed.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                call()
        except Exception as error:
            self.loggers.pop(name, None)
            reason = (str(error).strip() or type(error).__name__).split("\n")[0][:REASON_LENGTH]
            text = f"warning: log={name} failed and is switched off for this run; training continues: {reason}"
            print_line(text)
