"""The Python API: wrong arguments, why a run is not complete, and the same results as the commands."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from moe_cli.api.inspect_runs import explain, report_table
from moe_cli.api.sweep import sweep
from moe_cli.api.train import _failure, train
from moe_cli.cli.app import app
from moe_cli.errors import ConfigError, MoeError, RunBusy, TrainingError
from moe_cli.execution.worker import EXIT_BUSY
from moe_cli.runs.folder import FAILED, INTERRUPTED, Run, create_run
from moe_cli.runs.locks import lock
from moe_cli.runs.recorder import Recorder
from tests.runner import CliRunner
from tests.tiny import tiny_config


@pytest.fixture
def run(tmp_path: Path, text_file: Path) -> Run:
    """A run folder in which nothing has happened yet."""
    return create_run(tmp_path / "outputs", "runs", tiny_config(text_file))


@pytest.mark.parametrize("code", [EXIT_BUSY, 2])
def test_a_run_of_another_process_is_busy(run: Run, code: int) -> None:
    """Also where the output is shown: `moe train` has another exit code for that than a worker."""
    with lock(run.path):
        error = _failure(run, code)
    assert (RunBusy, f"{run.id} is being written by another process: wait for it or stop it.") == (
        type(error),
        str(error),
    )


def test_a_run_that_can_go_on_is_not_made_a_failed_one(run: Run) -> None:
    """`_failure` keeps the status and the reason that the process has already written, such as a full disk."""
    Recorder(run).status(INTERRUPTED, reason="cannot write to /x: no space.")
    error = _failure(run, 1)
    assert INTERRUPTED == run.status()["status"]
    assert f"{run.id}: cannot write to /x: no space.\nSee: moe runs show {run.id}" == str(error)


@pytest.mark.parametrize("logged", [True, False])
def test_a_killed_process_is_explained_with_the_log_that_there_is(run: Run, logged: bool) -> None:
    """Where the output was shown there is no log to name."""
    if logged:
        (run.path / "log.txt").write_text("")
    error: MoeError = _failure(run, -signal.SIGTERM)
    assert (TrainingError, FAILED) == (type(error), run.status()["status"])
    end = f" (log: {run.path / 'log.txt'})" if logged else ""
    assert f"{run.id}: killed by signal 15 (SIGTERM){end}\nSee: moe runs show {run.id}" == str(error)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"overrides": "expert=1,2 k=1"},
            "overrides='expert=1,2 k=1' is a string. Give a list: overrides=['expert=1,2', 'k=1']",
        ),
        ({"overrides": ["expert=1,2"], "where": "k == 1"}, "where='k == 1' is a string. Give a list: "),
        ({"overrides": ["expert=1,2"], "jobs": 0}, "jobs=0 must be between 1 and "),
        ({"overrides": ["expert=1,2"], "retries": -1}, "retries=-1 must be between 0 and "),
        ({"overrides": ["expert=1,2"], "timeout": 0}, "timeout=0 must be "),
        ({"overrides": ["expert=1,2"], "timeout": float("nan")}, "timeout=nan is not a number."),
    ],
)
def test_wrong_arguments_of_a_sweep_are_named(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    """With the ranges of the command's options; nothing is made."""
    with pytest.raises(ConfigError) as error:
        sweep(**given, outputs=tmp_path / "outputs")
    assert str(error.value).startswith(message)
    assert not (tmp_path / "outputs").exists()


def test_a_text_is_no_list_of_settings(tmp_path: Path) -> None:
    """One word without its list is read as what it is, not letter by letter."""
    with pytest.raises(ConfigError) as error:
        train("expert=2", outputs=tmp_path)
    assert "overrides='expert=2' is a string. Give a list: overrides=['expert=2']" == str(error.value)


def test_explain_is_that_of_the_command(finished: Run) -> None:
    """`explain` returns the choices that `moe explain --json` prints, for one layer too."""
    words = ["explain", finished.id, "the gate", "eval.k=1", "--layer", "2", "--outputs", str(finished.path.parents[1])]
    printed = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    found = explain(finished, "the gate", ["eval.k=1"], layer=2)
    assert printed["layers"][0]["choices"] == [
        [{"expert": each.expert, "weight": each.weight, "kept": each.kept} for each in token]
        for token in found.layers[0].choices
    ]


def test_report_table_is_that_of_the_command(finished: Run) -> None:
    """`report_table` returns the rows of `moe report --format json`."""
    outputs = finished.path.parents[1]
    printed = json.loads(CliRunner().invoke(app, ["report", "--format", "json", "--outputs", str(outputs)]).stdout)
    rows = report_table(outputs=outputs).rows
    assert [(row["expert"], row["val_loss"]) for row in printed] == [
        (row.get("expert"), row.get("val_loss")) for row in rows
    ]
    with pytest.raises(ConfigError, match="Give a list"):
        report_table("sparsity", outputs=outputs)
