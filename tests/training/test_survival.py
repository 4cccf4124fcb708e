"""train.on_nan, train.keep_best, and optim.ema_decay do what they promise, and loss spikes are recorded."""

import errno
import itertools
import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_cli.config.balances import LossFreeBalance
from moe_cli.config.optim import SGDConfig
from moe_cli.errors import TrainingError
from moe_cli.execution.run import run_one
from moe_cli.execution.trained_model import load_trained
from moe_cli.runs.folder import Run, create_run
from moe_cli.tasks.causal_lm import TextTask
from moe_cli.training import checkpoint_writer
from moe_cli.training import trainer as loop_module
from moe_cli.training.checkpoint import find_checkpoint, latest_checkpoint
from moe_cli.training.state import SPIKE_WARMUP, StepReport, TrainState
from moe_cli.training.trainer import MAX_CONSECUTIVE_SKIPS, MAX_REWINDS, Trainer
from moe_cli.training.weight_average import WeightAverage
from tests.tiny import finish, tiny_config
from tests.training.test_resume import assert_equal_runs, stop_at

pytestmark = pytest.mark.usefixtures("unchecked_shapes")
TRAIN = {"steps": 8, "eval_every": 2, "checkpoint_every": 2}


@pytest.fixture(scope="module")
def undisturbed(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of TRAIN that nothing happened to."""
    return finish(tiny_config(text_file, train=TRAIN), tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture
def bad_batches(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Put the index of a training batch into it, and the loss on that batch is NaN, whenever it is met."""
    bad: set[int] = set()
    here = {"index": -1}
    batch, loss = TextTask.train_batch, TextTask.loss

    def train_batch(self: TextTask, index: int, size: int, *part: int) -> Any:
        here["index"] = index
        return batch(self, index, size)

    def nan_loss(self: TextTask, model: Any, given: Any) -> Any:
        value, routings = loss(self, model, given)
        return value * (math.nan if model.training and here["index"] in bad else 1.0), routings

    monkeypatch.setattr(TextTask, "train_batch", train_batch)
    monkeypatch.setattr(TextTask, "loss", nan_loss)
    return bad


def test_a_bad_step_is_skipped_and_counted(text_file: Path, tmp_path: Path, bad_batches: set[int]) -> None:
    """It leaves weights, optimizer, biases and the means of the log alone; the records say which steps it was."""
    bad_batches.update({3, 5})
    weights: dict[int, list[torch.Tensor]] = {}
    config = tiny_config(text_file, balance=LossFreeBalance(), train={**TRAIN, "on_nan": "skip", "log_every": 4})
    training: list[Trainer] = []
    original = Trainer.step

    def step(self: Trainer) -> StepReport:
        view = original(self)
        training.append(self)
        weights[view.state.step] = [value.clone() for value in self.model.state_dict().values()]
        weights[view.state.step] += [value.clone() for value in self.optimizers.state_tensors().values()]
        return view

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", step)
        run = finish(config, tmp_path)
    same = [all(map(torch.equal, weights[number - 1], weights[number])) for number in range(2, 9)]
    assert [False, False, True, False, True, False, False] == same
    assert (2, 8) == ((run.summary() or {})["skipped_steps"], (run.summary() or {})["steps"])
    assert [4, 6] == [record["step"] for record in run.metrics() if "train/skipped" in record]
    assert all(math.isfinite(record["train/loss"]) for record in run.metrics() if "train/loss" in record)


def test_too_many_bad_steps_in_a_row_end_the_run(text_file: Path, tmp_path: Path, bad_batches: set[int]) -> None:
    bad_batches.update(range(2, 200))
    config = tiny_config(text_file, train={"steps": 100, "on_nan": "skip"})
    with pytest.raises(
        TrainingError, match=f"at step {2 + MAX_CONSECUTIVE_SKIPS + 1}, and {MAX_CONSECUTIVE_SKIPS} steps before it"
    ):
        finish(config, tmp_path)


def test_bad_steps_apart_do_not_end_the_run(text_file: Path, tmp_path: Path, bad_batches: set[int]) -> None:
    """Every second step fails, more often in all than may fail in a row; the logged means are over the good ones."""
    bad_batches.update(range(0, 60, 2))
    config = tiny_config(text_file, train={"steps": 60, "on_nan": "skip", "log_every": 20})
    seen: list[float] = []
    run = finish(config, tmp_path, lambda view: seen.append(view.loss))
    assert 30 == (run.summary() or {})["skipped_steps"] > MAX_CONSECUTIVE_SKIPS
    logged = [record["train/loss"] for record in run.metrics() if "train/loss" in record]
    assert logged == pytest.approx([sum(seen[at + 1 : at + 20 : 2]) / 10 for at in (0, 20, 40)])


@pytest.mark.parametrize(
    ("filled", "kept"),
    [(5, "The checkpoint of step 4 is kept"), (2, "No checkpoint was written yet: it will start again")],
)
def test_a_full_disk_is_reported(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Run, filled: int, kept: str
) -> None:
    """A run that could not save says what it still has and how it goes on; it is interrupted, and goes on from there."""
    config = tiny_config(text_file, train=TRAIN)
    run, write = create_run(tmp_path, "runs", config), checkpoint_writer._write

    def full(folder: Path, snapshot: Any) -> None:
        if snapshot.state["step"] == filled:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(folder, snapshot)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_writer, "_write", full)
        with pytest.raises(TrainingError) as caught:
            run_one(run, tmp_path, stop_at(5))
    what, then = str(caught.value).split("\n")
    assert what.endswith(f"step_0000000{filled}: No space left on device. {kept}.")
    assert then.endswith(f" moe train --resume {run.id}")
    assert ("interrupted", what) == (run.status()["status"], run.status()["reason"])
    assert [4] * (filled == 5) == [latest_checkpoint(run).state["step"] for _ in run.checkpoints()[:1]]
    assert_equal_runs(undisturbed, run_one(run, tmp_path))


def test_a_rewind_goes_around_the_data(text_file: Path, tmp_path: Path, bad_batches: set[int]) -> None:
    """The run equals one that never met the batches from its last checkpoint to the bad one."""
    config = tiny_config(text_file, model={"dropout": 0.1}, train={**TRAIN, "on_nan": "rewind"})
    bad_batches.add(5)
    seen: list[int] = []
    batch = TextTask.train_batch

    def train_batch(self: TextTask, index: int, size: int, *part: int) -> Any:
        seen.append(index)
        return batch(self, index, size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextTask, "train_batch", train_batch)
        run = finish(config, tmp_path)
    assert [0, 1, 2, 3, 4, 5, 6, 7, 8, 9] == seen
    assert 1 == (run.summary() or {})["rewinds"]
    assert [1, 2, 3, 4, 5, 6, 7, 8] == [record["step"] for record in run.metrics() if "train/loss" in record]
    bad_batches.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextTask, "train_batch", lambda self, index, *size: batch(self, index + 2 * (index > 3), *size))
        plain = finish(config, tmp_path)
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (plain.checkpoints()[0] / name).read_bytes() == (run.checkpoints()[0] / name).read_bytes()


@pytest.mark.parametrize(("checkpoint_every", "bad"), [(14, 16), (None, 17)])
def test_a_rewind_repeats_what_it_undid_and_nothing_else(
    text_file: Path,
    tmp_path: Path,
    bad_batches: set[int],
    monkeypatch: pytest.MonkeyPatch,
    checkpoint_every: int | None,
    bad: int,
) -> None:
    """Evaluations and checkpoints, ten a run, happen at each due step, and again where a rewind went back before it."""
    bad_batches.add(bad)
    calls: dict[str, list[int]] = {"_evaluate": [], "save": []}
    for name, steps in calls.items():
        original = getattr(Trainer, name)

        def noted(self: Trainer, original: Any = original, steps: list[int] = steps) -> Any:
            steps.append(self.state.step)
            return original(self)

        monkeypatch.setattr(Trainer, name, noted)
    train = {"steps": 30, "on_nan": "rewind", "eval_every": None, "checkpoint_every": checkpoint_every}
    run = finish(tiny_config(text_file, train=train), tmp_path)
    due = list(range(3, 30, 3))
    assert [*due, 30] == [record["step"] for record in run.metrics() if "val/loss" in record]
    saves = due if checkpoint_every is None else list(range(checkpoint_every, 30, checkpoint_every))
    kept = max(step for step in saves if step < bad)
    repeated = [[step for step in steps if kept < step < bad] for steps in (due, saves)]
    assert sorted(due + repeated[0]) == sorted(calls["_evaluate"])
    assert sorted([*saves, 30, *repeated[1]]) == sorted(calls["save"])


def test_a_rewind_survives_a_stop(text_file: Path, tmp_path: Path, bad_batches: set[int]) -> None:
    """Stopped after a rewind and resumed, the run equals the undisturbed one."""
    bad_batches.update({5, 6, 9})
    config = tiny_config(text_file, train={**TRAIN, "steps": 10, "on_nan": "rewind"})
    stopped = finish(config, tmp_path, stop_at(7))
    assert_equal_runs(finish(config, tmp_path), run_one(stopped, tmp_path))


@pytest.mark.parametrize(("bad", "message"), [(1, "before the first checkpoint"), (3, f"after {MAX_REWINDS} rewinds")])
def test_a_rewind_that_cannot_help(
    text_file: Path, tmp_path: Path, bad_batches: set[int], bad: int, message: str
) -> None:
    bad_batches.update(range(bad, 999))
    with pytest.raises(TrainingError, match=message):
        finish(tiny_config(text_file, train={**TRAIN, "on_nan": "rewind"}), tmp_path)


def test_a_loss_that_stands_out_is_a_spike() -> None:
    """Noise and a falling loss are none; a jump is, and only once its time has come."""
    state = TrainState()
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 400):
        state.step = step
        loss = 4 - step / 200 + 0.05 * float(torch.randn((), generator=generator))
        expected = step > SPIKE_WARMUP and step in (20, 300)
        assert expected == (state.detect_spike(loss + 3 * (step in (20, 300))) is not None), step
    assert 1 == state.spikes


def test_a_spike_is_recorded(text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainState, "detect_spike", lambda self, loss: 1.5 if self.step == 3 else None)
    records = [record for record in finish(tiny_config(text_file), tmp_path).metrics() if "train/loss_spike" in record]
    assert [(3, 1.5)] == [(record["step"], record["train/loss_before"]) for record in records]


def test_the_average_of_weights_is_its_closed_form() -> None:
    """With decay d and warm-up: a_n = d_n a_(n-1) + (1 - d_n) w_n, d_n = min(d, (1+n)/(10+n) of the steps before)."""
    model = torch.nn.Linear(2, 1, bias=False)
    average = WeightAverage(model, 0.5)
    expected = model.weight.detach().clone()
    for step in range(1, 12):
        torch.nn.init.constant_(model.weight, float(step))
        average.update(step)
        decay = min(0.5, step / (9 + step))
        expected = decay * expected + (1 - decay) * step
    torch.testing.assert_close(average.tensors["weight"], expected)
    with average.swapped_in():
        torch.testing.assert_close(model.weight.detach(), expected)
    assert 11.0 == model.weight[0, 0]


def test_the_average_is_what_is_judged(text_file: Path, tmp_path: Path) -> None:
    """Evaluations and restored models use the average; training goes on from the weights themselves."""
    plain = finish(tiny_config(text_file, train={"eval_every": 2}), tmp_path)
    run = finish(tiny_config(text_file, optim={"ema_decay": 0.9}, train={"eval_every": 2}), tmp_path)
    first, second = (each.checkpoints()[0] / "model.safetensors" for each in (plain, run))
    assert first.read_bytes() == second.read_bytes()
    losses = [[record["train/loss"] for record in each.metrics() if "train/loss" in record] for each in (plain, run)]
    assert losses[0] == losses[1]
    estimates = [[record.get("val/loss") for record in each.metrics()] for each in (plain, run)]
    assert estimates[0] != estimates[1]
    assert (plain.summary() or {})["val_loss"] != (run.summary() or {})["val_loss"]
    model = load_trained(run, tmp_path).model
    saved = latest_checkpoint(run).model_tensors()
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
    assert not torch.equal(
        model.state_dict()["head.weight"], load_trained(plain, tmp_path).model.state_dict()["head.weight"]
    )


def test_resume_is_exact_with_idle_experts_and_an_average(text_file: Path, tmp_path: Path) -> None:
    """SGD with all that it can do: momentum, decay, idle experts that are skipped, and the average of the weights."""
    optim = SGDConfig(skip_idle_experts=True, momentum=0.5, weight_decay=0.1, ema_decay=0.9)
    config = tiny_config(text_file, expert=16, k=1, optim=optim, train=TRAIN)
    stopped = finish(config, tmp_path, stop_at(3))
    assert_equal_runs(finish(config, tmp_path), run_one(stopped, tmp_path))


def test_the_best_is_kept(text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint of the lowest evaluation is kept although checkpoints are rare, and through a stop."""
    curve = {2: 3.0, 4: 2.0, 6: 2.5, 8: 2.6, 10: 2.7}
    original = Trainer._evaluate

    def evaluate(self: Trainer) -> Any:
        result = original(self)
        result.loss = curve[self.state.step]
        return result

    monkeypatch.setattr(Trainer, "_evaluate", evaluate)
    train = {"steps": 12, "eval_every": 2, "checkpoint_every": 5, "keep_checkpoints": 1, "keep_best": True}
    run = create_run(tmp_path, "runs", tiny_config(text_file, train=train))
    run_one(run_one(run, tmp_path, stop_at(7)), tmp_path)
    assert ["step_00000012", "step_00000004"] == [path.name for path in run.checkpoints()]
    assert 4 == find_checkpoint(run, "best").state["step"] == load_trained(run, tmp_path, "best").step


def test_a_clock_that_jumps_changes_nothing(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Run
) -> None:
    """The time of day going back and forth by days in the middle of a run, and of its resumption, leaves it as it is."""
    config = tiny_config(text_file, train=TRAIN)
    jumps = itertools.cycle((0.0, -3e5, 2e6, -1e9))
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + next(jumps))
    monkeypatch.setattr(loop_module, "HEARTBEAT_SECONDS", 0.0)
    stopped = finish(config, tmp_path, stop_at(3))
    assert "interrupted" == stopped.status()["status"]
    jumping = run_one(stopped, tmp_path)
    monkeypatch.undo()
    assert 0 < (jumping.summary() or {})["seconds"] < 600
    assert_equal_runs(undisturbed, jumping)
