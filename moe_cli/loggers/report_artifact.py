"""Keeps a report in the tracker of the runs, as files of a run of its own. MLflow and Weights & Biases keep files."""

import importlib
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from moe_cli.errors import ConfigError, MoeError
from moe_cli.formatting import sanitise
from moe_cli.loggers.logging_recorder import check_loggers

TRACKERS = ("mlflow", "wandb")


def check_tracker(name: str) -> None:
    """Raises ConfigError where a tracker keeps no files, or its library is not installed."""
    if name not in TRACKERS:
        raise ConfigError(
            f"--to {sanitise(name)}: a report is kept by a tracker that keeps files: {', '.join(TRACKERS)}."
        )
    check_loggers(name, "--to ")


def send_report(tracker: str, files: Sequence[Path], title: str, outputs: Path) -> str:
    """Sends the files of a report; returns where they are. Raises MoeError where the tracker does not take them."""
    send: Callable[[Sequence[Path], str, Path], str] = importlib.import_module(f"moe_cli.loggers.{tracker}").send_report
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return send(files, title, outputs)
    except MoeError:
        raise
    except Exception as error:  # the library, its server and the network all raise their own errors
        reason = sanitise(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:200])
        raise MoeError(f"{tracker} does not take the report: {reason}") from None
