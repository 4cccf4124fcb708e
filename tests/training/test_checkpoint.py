"""Checkpoints: whole, checked, and nothing that executes on load."""

import errno
import io
import json
import os
import pickle
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from moe_cli.config.launch import LaunchConfig
from moe_cli.errors import CheckpointError, TrainingError
from moe_cli.execution.run import run_one
from moe_cli.execution.trained_model import load_trained
from moe_cli.files.checksums import unsealed, write_sealed
from moe_cli.files.reading import hash_file
from moe_cli.models.registry import make_model
from moe_cli.runs.folder import Run
from moe_cli.training import checkpoint_writer
from moe_cli.training.checkpoint import find_checkpoint, latest_checkpoint
from moe_cli.training.checkpoint_writer import AsyncCheckpointWriter, save_checkpoint
from moe_cli.training.distributed_model import DistributedModel
from moe_cli.training.optimizers import Optimizers, make_optimizers
from moe_cli.training.saved_training import TrainingParts, load_training, take_snapshot
from tests.tiny import finish, tiny_config

FILES = ["model.safetensors", "optimizer.safetensors", "state.json"]
STATE = {"step": 6, "tokens": 384, "seconds": 0.1 + 0.2, "metric_sums": {"train/loss": 1 / 3}}


@pytest.fixture
def run(finished: Run, tmp_path: Path) -> Run:
    """A copy of the finished run, to be damaged."""
    return Run(Path(shutil.copytree(finished.path, tmp_path / finished.id)))


@pytest.fixture
def parts(text_file: Path) -> tuple[nn.Module, Optimizers]:
    """A tiny model and its optimizers after one step, so that there is state to save."""
    config = tiny_config(text_file)
    model = make_model(config, 256)
    optimizers = make_optimizers(config.optim, model)
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    optimizers.step(0, 0.5)
    return model, optimizers


def learner(parts: tuple[nn.Module, Optimizers]) -> TrainingParts:
    return TrainingParts(DistributedModel(LaunchConfig(), parts[0]), parts[1])


def newest(run: Run) -> Path:
    return run.checkpoints()[0]


def test_a_checkpoint_gives_back_what_was_saved(tmp_path: Path, parts: Any) -> None:
    """Weights, optimizer state, random state and the loop's state come back bit for bit."""
    model, optimizers = parts
    torch.manual_seed(11)
    save_checkpoint(Run(tmp_path), take_snapshot(learner(parts), STATE))
    expected = torch.rand(5)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    moments = {name: value.clone() for name, value in optimizers.state_tensors().items()}
    for tensor in (*model.parameters(), *optimizers.state_tensors().values()):
        tensor.data.zero_()
    checkpoint = latest_checkpoint(Run(tmp_path))
    load_training(checkpoint, learner(parts))
    assert STATE == checkpoint.state
    assert torch.equal(expected, torch.rand(5))
    for before, after in ((weights, model.state_dict()), (moments, optimizers.state_tensors())):
        assert before.keys() == after.keys()
        assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_the_newest_two_are_kept(run: Run) -> None:
    """The newest two checkpoints are kept, the newest first."""
    assert ["step_00000006", "step_00000004"] == [path.name for path in run.checkpoints()]
    assert 6 == latest_checkpoint(run).state["step"]


def test_only_tensors_and_json_are_written(run: Run) -> None:
    """No file of a checkpoint is of a kind that can execute."""
    for folder in run.checkpoints():
        assert FILES == sorted(path.name for path in folder.iterdir())
        for path in folder.glob("*.safetensors"):
            header = path.read_bytes()
            json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["cut", "flip", "gone", "empty", "pipe"])
def test_a_damaged_file_is_named(run: Run, name: str, damage: str) -> None:
    """A file that is cut, empty, missing, or has one bit changed is a CheckpointError that says which."""
    path = newest(run) / name
    raw = bytearray(path.read_bytes())
    if damage in ("gone", "pipe"):
        path.unlink()
        if damage == "pipe":
            os.mkfifo(path)
    else:
        place = raw.index(b'"tokens": ') + 10 if name == "state.json" else len(raw) // 2
        raw[place] ^= 1
        path.write_bytes({"cut": bytes(raw[:-9]), "flip": bytes(raw), "empty": b""}[damage])
    with pytest.raises(
        CheckpointError,
        match=rf"is damaged: {name} (is missing|is empty|is a pipe|is not valid JSON|is not as it was written|does not have its checksum)",
    ) as caught:
        latest_checkpoint(run)
    assert "Use another: --checkpoint 4; moe train --resume goes on" in str(caught.value)


def test_no_flipped_bit_of_the_state_passes(run: Run) -> None:
    """Whatever bit of state.json is changed, the checkpoint is refused or the state it gives is the one saved."""
    path = newest(run) / "state.json"
    expected, raw = latest_checkpoint(run).state, path.read_bytes()
    refused = 0
    for place in range(0, len(raw), 3):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
        try:
            assert expected == latest_checkpoint(run).state
        except CheckpointError:
            refused += 1
    assert refused > len(raw) / 6


@pytest.mark.parametrize("name", ["checksum", "checksums"])
def test_a_state_without_checksums_is_damaged(run: Run, name: str) -> None:
    """An edit is not hidden by deleting what would show it."""
    path = newest(run) / "state.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in content.items() if key != name}))
    with pytest.raises(CheckpointError, match=r"is damaged: state\.json"):
        latest_checkpoint(run)


def test_after_deleting_the_damaged_one_the_one_before_is_used(run: Run) -> None:
    """A checkpoint that is gone hides none."""
    shutil.rmtree(newest(run))
    assert 4 == latest_checkpoint(run).state["step"]


def test_the_only_checkpoint_damaged_sends_to_no_other(run: Run) -> None:
    """A resume has nothing to go on from then, so that the way on is a training from the start."""
    only = newest(run)
    for other in run.checkpoints():
        if other != only:
            shutil.rmtree(other)
    (only / "state.json").write_text("{")
    with pytest.raises(CheckpointError) as caught:
        latest_checkpoint(run)
    assert (
        "There is no other. To train it again from the start, repeat its command with --force."
        == str(caught.value).splitlines()[-1]
    )


def test_another_format_is_refused(run: Run) -> None:
    """A checkpoint of another version says so."""
    path = newest(run) / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    with pytest.raises(CheckpointError, match="has format 99; this version of moe reads 1"):
        latest_checkpoint(run)


def test_a_run_without_a_checkpoint_is_refused(run: Run, tmp_path: Path) -> None:
    """A complete run says that its checkpoints are gone, any other that there was none yet; both how to go on."""
    shutil.rmtree(run.path / "checkpoints")
    with pytest.raises(CheckpointError) as gone:
        load_trained(run, tmp_path)
    what, then = str(gone.value).split("\n")
    assert f"{run.id} is complete, but its checkpoints are gone: put {run.path / 'checkpoints'} back." == what
    assert then.endswith(f"delete its summary.json, then: moe train --resume {run.id}")
    (run.path / "summary.json").unlink()
    with pytest.raises(CheckpointError, match=f"stopped before its first one.*moe train --resume {run.id}"):
        load_trained(run, tmp_path)
    again = run_one(run, tmp_path)
    assert (6, 6) == (latest_checkpoint(again).state["step"], (again.summary() or {})["steps"])


@pytest.mark.parametrize("model", [{"d_model": 32}, {"num_layers": 3}, {"tie_embeddings": True}])
def test_a_model_of_another_shape_is_refused(run: Run, text_file: Path, model: dict[str, Any]) -> None:
    """Tensors that do not fit the model are a CheckpointError, also when only some are too many or missing."""
    other = make_model(tiny_config(text_file, model=model), 256)
    with pytest.raises(CheckpointError, match="a model of another shape"):
        latest_checkpoint(run).load_model(other)


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("dump", [torch.save, pickle.dump])
def test_a_pickle_is_refused_unopened(run: Run, tmp_path: Path, text_file: Path, dump: Any) -> None:
    """A pickle in the place of the tensors, checksum and all, is a CheckpointError, and its code does not run."""
    content = io.BytesIO()
    dump(Bomb(tmp_path / "executed"), content)
    folder = newest(run)
    (folder / "model.safetensors").write_bytes(content.getvalue())
    state = unsealed(json.loads((folder / "state.json").read_text()))
    state["checksums"]["model.safetensors"] = hash_file(folder / "model.safetensors")
    write_sealed(folder / "state.json", state)
    (folder / "model.pt").write_bytes(content.getvalue())
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        latest_checkpoint(run).load_model(make_model(tiny_config(text_file), 256))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"digest": 3}, "digest=3"),
        ({"metric_sums": {"train/loss": "low"}}, "metric_sums that are not numbers by name"),
        ({"seconds": -1}, "seconds=-1"),
    ],
)
def test_a_state_with_a_wrong_value_is_damaged(run: Run, value: dict[str, Any], problem: str) -> None:
    """The error names the value, even if the checksum of state.json is valid."""
    path = newest(run) / "state.json"
    content = unsealed(json.loads(path.read_text()))
    content["state"].update(value)
    write_sealed(path, content)
    with pytest.raises(CheckpointError, match=f"is damaged: state.json has {problem}"):
        latest_checkpoint(run)


@pytest.mark.parametrize("where", ["tensors", "state", "rename"])
def test_a_save_that_fails_keeps_the_old(run: Run, parts: Any, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """On a full disk the error says so, the older checkpoints stay whole, and no scrap is left."""

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    places = {
        "tensors": (checkpoint_writer, "save_file"),
        "state": (checkpoint_writer, "write_sealed"),
        "rename": (checkpoint_writer, "rename"),
    }
    monkeypatch.setattr(*places[where], full)
    before = sorted(os.listdir(run.path / "checkpoints"))
    with pytest.raises(TrainingError, match="No space left on device"):
        save_checkpoint(run, take_snapshot(learner(parts), {**STATE, "step": 7}))
    assert before == sorted(os.listdir(run.path / "checkpoints"))
    assert 6 == latest_checkpoint(run).state["step"]


def test_weights_that_are_not_finite_are_not_saved(run: Run, parts: Any) -> None:
    """One NaN among the weights is refused, and the older checkpoints stay."""
    model = parts[0]
    next(model.parameters()).data[0, 0] = float("nan")
    with pytest.raises(TrainingError, match="the weights are not finite at step 7"):
        take_snapshot(learner(parts), {**STATE, "step": 7})
    assert ["step_00000006", "step_00000004"] == [path.name for path in run.checkpoints()]


def test_what_a_killed_save_left_is_cleared(run: Run, parts: Any) -> None:
    """A half-made folder is no checkpoint, and the next save removes it."""
    scrap = run.path / "checkpoints" / ".saving-x"
    scrap.mkdir()
    assert 2 == len(run.checkpoints())
    save_checkpoint(run, take_snapshot(learner(parts), {**STATE, "step": 7}))
    assert not scrap.exists()
    assert 7 == latest_checkpoint(run).state["step"]


def test_a_checkpoint_may_be_written_again(run: Run, parts: Any) -> None:
    """Saving a step that is there already replaces it."""
    save_checkpoint(run, take_snapshot(learner(parts), {**STATE, "tokens": 1}))
    assert 1 == latest_checkpoint(run).state["tokens"]
    assert 2 == len(run.checkpoints())


def test_a_copy_of_a_checkpoint_is_left_alone(run: Run, parts: Any) -> None:
    """A folder that the user made among the checkpoints is not a checkpoint and is never deleted."""
    copy = Path(shutil.copytree(newest(run), run.path / "checkpoints" / "step_00000006.bak"))
    assert "step_00000006" == latest_checkpoint(run).folder.name
    for step in (7, 8):
        save_checkpoint(run, take_snapshot(learner(parts), {**STATE, "step": step}))
    assert ["step_00000008", "step_00000007"] == [path.name for path in run.checkpoints()]
    assert FILES == sorted(path.name for path in copy.iterdir())


def test_as_many_stay_as_are_asked_for_and_the_best(run: Run, parts: Any) -> None:
    """keep=1 leaves the newest and the one that the state calls best; both can be opened by name."""
    for step in (7, 8, 9):
        save_checkpoint(run, take_snapshot(learner(parts), {**STATE, "step": step, "best_step": 7}), keep=1)
    assert ["step_00000009", "step_00000007"] == [path.name for path in run.checkpoints()]
    assert [9, 7, 9] == [find_checkpoint(run, which).state["step"] for which in ("latest", "best", "9")]


@pytest.mark.parametrize("which", ["best", "5", "newest", "\u00b2"])
def test_a_checkpoint_that_is_not_there(run: Run, which: str) -> None:
    """The message names those that are."""
    with pytest.raises(CheckpointError, match=f"has no checkpoint '{which}'. There are: latest, 6, 4."):
        find_checkpoint(run, which)


def test_training_goes_on_while_a_checkpoint_is_written(run: Run, parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """save returns before the file is there, what changes meanwhile is not in it, and wait ends when it is."""
    gate, model = threading.Event(), parts[0]
    write = checkpoint_writer._write
    monkeypatch.setattr(checkpoint_writer, "_write", lambda *given: (gate.wait(10), write(*given)))
    saver = AsyncCheckpointWriter(run, keep=2)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    state = {**STATE, "step": 7, "metric_sums": {"a": 1.0}}
    saver.save(take_snapshot(learner(parts), state))
    assert 6 == latest_checkpoint(run).state["step"]
    for param in model.parameters():
        param.data.add_(1)
    state["metric_sums"]["a"] = 2.0
    gate.set()
    saver.wait()
    saver.close()
    saved = latest_checkpoint(run)
    assert (7, {"a": 1.0}) == (saved.state["step"], saved.state["metric_sums"])
    assert all(torch.equal(value, expected[name]) for name, value in saved.model_tensors().items())


def test_a_save_that_failed_is_raised_at_the_next(run: Run, parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error on the writing thread reaches the training thread, once."""

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    saver = AsyncCheckpointWriter(run, keep=2)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_writer, "_write", full)
        saver.save(take_snapshot(learner(parts), {**STATE, "step": 7}))
        with pytest.raises(TrainingError, match="No space left on device"):
            saver.wait()
    saver.save(take_snapshot(learner(parts), {**STATE, "step": 8}))
    saver.wait()
    saver.close()
    assert 8 == latest_checkpoint(run).state["step"]


def test_a_checkpoint_below_any_name_loads(tmp_path: Path, text_file: Path) -> None:
    """Bytes in the name of a folder that are no UTF-8 are no matter."""
    run = finish(tiny_config(text_file, train={"steps": 1}), tmp_path / os.fsdecode(b"w\xff"))
    latest_checkpoint(run).load_model(make_model(run.config(), 256))
