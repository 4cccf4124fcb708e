"""Every command finds a run by the same names: ids, beginnings, sweeps, folders and `latest`."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from moe_cli.errors import ConfigError
from moe_cli.runs.folder import Run
from tests.cli.conftest import Moe
from tests.report.folders import complete, set_status, stopped

# What a command is given a name by, and a word of what it then prints or says of the run, ID being its id.
COMMANDS = {
    "report NAME --format json": "ID",
    "runs ls NAME": "ID",
    "runs show NAME": "ID",
    "runs experts NAME": "ID",
    "runs watch NAME": "1 of 1 run complete|ID",
    "runs tag NAME good": "ID",
    "runs diff NAME gpt-4x2": "ID",
    "eval NAME": "found ID",
    "sample NAME": "found ID",
    "explain NAME text": "ID is a dense model",
    "train --resume NAME": "ID is complete",
    "train expert=4 train.upcycle_from=NAME": "moe train --resume ID",
    "runs rm NAME": "removed paper-x/ID",  # the last: after it there is no such run
}
NAMES: dict[str, Callable[[Run], str]] = {
    "sweep": lambda run: "paper/x",
    "folder of the sweep": lambda run: "paper-x",
    "run of the sweep": lambda run: f"paper/x/{run.id}",
    "id": lambda run: run.id,
    "beginning": lambda run: "gpt-dense",
    "beginning in a sweep": lambda run: "paper/x/gpt-d",
    "path": lambda run: str(run.path),
    "relative path": lambda run: os.path.relpath(run.path),
    "latest": lambda run: "latest",
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The newest of two runs, in a sweep of its own; commands that load its model say which run they load."""
    outputs = tmp_path / "outputs"
    other = stopped(outputs, "failed", "a reason", expert=4, k=2)
    set_status(other, "failed", created=1.0)
    found = complete(outputs, 1.7, "paper-x", expert=1)
    set_status(found, "completed", created=2.0)

    def load(run: Run, *arguments: object, **options: object) -> None:
        raise ConfigError(f"found {run.id}")

    monkeypatch.setattr("moe_cli.execution.trained_model.load_trained", load)
    monkeypatch.chdir(tmp_path)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_command_takes_every_name(moe: Moe, run: Run, name: str) -> None:
    """The run is found, whatever names it; train.upcycle_from alone refuses `latest`, which means another run tomorrow."""
    for command, printed in COMMANDS.items():
        words = [word.replace("NAME", NAMES[name](run)) for word in command.split()]
        expected = "=latest changes with every run" if "upcycle_from=latest" in words[-1] else printed
        result = moe(*words)
        assert any(text.replace("ID", run.id) in result.output for text in expected.split("|")), (words, result.output)


def test_one_id_is_found_without_a_look_into_other_runs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """No status.json is opened: a folder of ten thousand runs is listed, and not read."""
    from moe_cli.runs.lookup import find_run

    monkeypatch.setattr("moe_cli.runs.lookup.read_json", lambda *arguments: pytest.fail("a file was read"))
    assert run == find_run(run.path.parents[1], run.id)
    assert run == find_run(run.path.parents[1], "gpt-dense")
