"""Runs whose files were damaged between two sittings: what is whole is used, what is gone is said."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moe_cli.cli.app import app
from moe_cli.errors import CheckpointError, TrainingError
from moe_cli.execution.run import run_one
from moe_cli.runs.folder import Run
from moe_cli.training.checkpoint import newest_valid_checkpoint
from moe_cli.training.trainer import NotFiniteError, Trainer
from tests.runner import CliRunner
from tests.tiny import finish, tiny_config
from tests.training.test_resume import assert_equal_runs

FILES = ["model.safetensors", "optimizer.safetensors", "state.json"]


@pytest.fixture
def run(finished: Run, tmp_path: Path) -> Run:
    """A copy of the finished run, as it was before its last evaluation."""
    copy = Run(Path(shutil.copytree(finished.path, tmp_path / "runs" / finished.id)))
    (copy.path / "summary.json").unlink()
    return copy


def flip(path: Path) -> None:
    """Changes one bit in the middle."""
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_newest_checkpoint_is_passed_over(
    run: Run, finished: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """The run goes on from the one before, says so in a line, and ends as if undisturbed; the damaged one is set aside."""
    newest, before = run.checkpoints()
    flip(newest / name)
    run_one(run, tmp_path)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"note: checkpoint {newest} is damaged: {name} ")
    assert line.endswith(f"Going on from step {int(before.name.removeprefix('step_'))}.")
    assert newest.with_name(f"damaged-{newest.name}").is_dir()
    assert_equal_runs(finished, run)


def test_without_a_whole_checkpoint_the_way_to_begin_again_is_said(run: Run) -> None:
    """Nothing is trained from the start unasked; nothing is set aside."""
    folders = run.checkpoints()
    for folder in folders:
        flip(folder / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=f"(?s)no checkpoint of {run.id} is whole; the newest: .* move .*/checkpoints away"
    ):
        newest_valid_checkpoint(run)
    assert folders == run.checkpoints()


def test_a_checkpoint_of_another_format_is_not_passed_over(run: Run) -> None:
    """It is whole: another version of moe reads it."""
    path = run.checkpoints()[0] / "state.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(CheckpointError, match="has format 2"):
        newest_valid_checkpoint(run)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def lose_a_line(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:1] + lines[2:]))


def zero_half(path: Path) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2] + bytes(len(raw) - len(raw) // 2))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *(("metrics.jsonl", damage) for damage in (flip, cut, lose_a_line, zero_half, Path.unlink)),
        ("routing.jsonl", cut),
    ],
)
def test_records_that_are_gone_are_said_with_the_results(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, damage: Callable[[Path], None]
) -> None:
    """A run that goes on with part of its history says so at once, and when it is complete."""
    damage(run.path / name)
    run_one(run, tmp_path)
    status = run.status()
    assert "completed" == status["status"]
    assert f"{name} was damaged: of " in status["reason"]
    assert f"note: {run.id} continues, but {status['reason']}." in capsys.readouterr().err.splitlines()


def test_records_of_other_types_end_no_run(run: Run, tmp_path: Path) -> None:
    """Whole lines with steps, layers and choices that no run has written."""
    values = ('"x"', "null", "[1]", "-1", "1e300", "{}", "99", "[[99]]")
    for name, key in (("metrics.jsonl", "train/loss"), ("routing.jsonl", "choices")):
        with open(run.path / name, "a") as file:
            file.writelines(f'{{"step": {value}, "layer": {value}, "{key}": {value}}}\n' for value in values)
            file.writelines(f'{{"step": 3, "layer": {value}, "{key}": {value}}}\n' for value in values)
    run_one(run, tmp_path)
    assert "completed" == run.status()["status"]


def test_whole_records_are_no_damage(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that was stopped or killed says nothing, whatever it had recorded after its checkpoint."""
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 7, "train/loss": 1.0}\n{"step": 8, "tr')
    run_one(run, tmp_path)
    assert (None, "") == (run.status()["reason"], capsys.readouterr().err)


def test_what_is_kept_is_what_is_there(run: Run) -> None:
    """Messages name the newest checkpoint, or say that there is none."""
    step = int(run.checkpoints()[0].name.removeprefix("step_"))
    assert f"the checkpoint of step {step} is kept" == run.kept()
    shutil.rmtree(run.path / "checkpoints")
    assert "no checkpoint was written yet: it will start again" == run.kept()


@pytest.mark.parametrize("failing", [1, 5])
def test_a_loss_that_is_not_finite_ends_with_what_is_there(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """At the first step there is no checkpoint, and none is spoken of as kept."""
    learn = Trainer._forward_backward

    def fail(training: Trainer) -> Any:
        if training.state.step == failing - 1:
            raise NotFiniteError("the loss is nan", "Try a lower optim.lr.")
        return learn(training)

    monkeypatch.setattr(Trainer, "_forward_backward", fail)
    expected = (
        "no checkpoint was written yet: it will start again" if failing == 1 else "the checkpoint of step 4 is kept"
    )
    with pytest.raises(TrainingError, match=f"the loss is nan at step {failing}; {expected}. Try a lower optim.lr."):
        finish(tiny_config(text_file, train={"checkpoint_every": 2, "on_nan": "stop"}), tmp_path)


@pytest.mark.parametrize("begun", [True, False])
def test_an_interrupted_command_says_what_is_there(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    """Where a second signal ended the first step nothing was saved, and nothing is said to be."""
    if not begun:
        shutil.rmtree(run.path / "checkpoints")

    def stop(*words: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("moe_cli.execution.run.run_one", stop)
    result = CliRunner().invoke(app, ["train", "--resume", str(run.path), "--outputs", str(tmp_path)])
    assert 130 == result.exit_code
    assert f"stopped; {run.kept()}. " in result.output
    assert begun == ("is kept" in result.output)
