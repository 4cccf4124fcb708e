"""`moe train` typed once more: complete runs are named, stopped ones go on, and --force trains from the start."""

import json
from pathlib import Path

import pytest

from moe_cli import train
from moe_cli.config.compose import load_config
from moe_cli.execution.run import run_one
from moe_cli.runs.folder import Run, create_run
from moe_cli.runs.lookup import list_runs_by_age
from tests.cli.conftest import Moe
from tests.training.test_resume import stop_at


def only_run(outputs: Path) -> Run:
    runs = list_runs_by_age(outputs)
    assert 1 == len(runs)
    return runs[0]


def test_a_complete_run_is_not_trained_again(moe: Moe, settings: list[str], tmp_path: Path) -> None:
    """The same command says that the run is complete, shows its results, and names --force; in JSON too."""
    assert 0 == moe("train", *settings).exit_code
    run = only_run(tmp_path / "outputs")
    before = (run.path / "summary.json").stat().st_mtime_ns
    again = moe("train", *settings)
    assert (0, f"note: {run.id} is already complete. To train it again: --force. Another seed: seed=1") == (
        again.exit_code,
        again.stderr.splitlines()[0],
    )
    assert "validation" in again.stdout
    assert run.summary() == json.loads(moe("train", *settings, "--json").stdout)
    assert run == train(settings, outputs=tmp_path / "outputs")
    assert before == (only_run(tmp_path / "outputs").path / "summary.json").stat().st_mtime_ns


def test_force_trains_again_and_keeps_the_old_run_in_the_trash(moe: Moe, settings: list[str], tmp_path: Path) -> None:
    """There is one run of the configuration, a new one; the plan alone throws nothing away."""
    moe("train", *settings)
    run = only_run(tmp_path / "outputs")
    created = run.status()["created"]
    assert 0 == moe("train", *settings, "--force", "--dry-run").exit_code
    assert created == only_run(tmp_path / "outputs").status()["created"]
    assert 0 == moe("train", *settings, "--force").exit_code
    assert created < only_run(tmp_path / "outputs").status()["created"]
    assert 1 == len(list((tmp_path / "outputs" / ".trash").iterdir()))


@pytest.mark.parametrize("words", [["train.device=cuda:99"], ["log=nothing"]])
def test_force_throws_nothing_away_where_it_cannot_train(
    words: list[str], moe: Moe, settings: list[str], tmp_path: Path
) -> None:
    """`--force` with wrong words fails before it moves the old run."""
    moe("train", *settings)
    created = only_run(tmp_path / "outputs").status()["created"]
    assert 2 == moe("train", *settings, "--force", *words).exit_code
    assert created == only_run(tmp_path / "outputs").status()["created"]


@pytest.mark.parametrize("command", ["command", pytest.param("python", marks=pytest.mark.slow)])
def test_a_stopped_run_goes_on(command: str, moe: Moe, settings: list[str], tmp_path: Path) -> None:
    """The same command completes it from its checkpoint, with a note; Python does as well."""
    outputs = tmp_path / "outputs"
    run = create_run(outputs, "runs", load_config(settings).config)
    run_one(run, outputs, stop_at(3))
    if command == "python":
        train(settings, outputs=outputs)
    else:
        result = moe("train", *settings)
        assert f"note: {run.id} continues after step 3." in result.stderr
    assert (2, "completed") == (run.status()["starts"], only_run(outputs).status()["status"])


def test_force_and_resume_exclude_each_other(moe: Moe) -> None:
    """One goes on, the other begins."""
    result = moe("train", "--resume", "latest", "--force")
    assert 2 == result.exit_code
    assert "give one" in result.stderr
