"""The loop: what a step does, when it ends, what it writes, and how it stops."""

import copy
import itertools
import math
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_cli.config.balances import LossFreeBalance, NoBalance, SwitchBalance, WeightedBalance
from moe_cli.config.launch import LaunchConfig
from moe_cli.config.optim import AdamWConfig, MuonConfig, SGDConfig
from moe_cli.config.routers import TopKConfig
from moe_cli.config.schema import RunConfig
from moe_cli.costs.model import estimate_cost, training_steps
from moe_cli.errors import ConfigError, TrainingError
from moe_cli.execution.run import run_one
from moe_cli.models.registry import make_model
from moe_cli.moe.max_violation import max_violation
from moe_cli.moe.sparse_layer import moe_layers
from moe_cli.runs.folder import Run, create_run
from moe_cli.runs.recorder import Recorder
from moe_cli.tasks.causal_lm import TextTask
from moe_cli.training import trainer as loop_module
from moe_cli.training.checkpoint import latest_checkpoint
from moe_cli.training.distributed_model import DistributedModel
from moe_cli.training.optimizers import Optimizers, make_optimizers
from moe_cli.training.schedule import schedule
from moe_cli.training.signals import STOP_SIGNALS, stop_signals
from moe_cli.training.state import StepReport
from moe_cli.training.trainer import Trainer
from tests.tiny import finish, randomise, tiny_config, tiny_task

PLAIN = MuonConfig(schedule="constant", warmup_fraction=0.0, grad_clip=None)


def make_training(
    config: RunConfig,
    outputs: Path,
    observer: Callable[[StepReport], None] = lambda view: None,
    sgd: float | None = None,
) -> Trainer:
    """A training that has not begun; with `sgd`, plain gradient descent at that rate on random weights."""
    task = tiny_task(config, outputs)
    model = make_model(config, task.vocab_size)
    optimizers = make_optimizers(config.optim, model)
    if sgd is not None:
        randomise(model)
        optimizers = Optimizers(config.optim, [torch.optim.SGD(model.parameters(), lr=sgd)])
    recorder = Recorder(create_run(outputs, "runs", config))
    return Trainer(
        config,
        DistributedModel(config.launch, model),
        task,
        optimizers,
        recorder,
        training_steps(config, task.vocab_size),
        observer,
    )


def weights(model: nn.Module) -> Tensor:
    return torch.cat([param.detach().flatten() for param in model.parameters()])


def test_half_batches_accumulate_to_a_whole_one(text_file: Path, tmp_path: Path) -> None:
    """Two batches of 4 per step see the windows of one of 8 and make the same step, loss and load."""
    ended = []
    for size, accumulation in ((8, 1), (4, 2)):
        views: list[StepReport] = []
        config = tiny_config(
            text_file,
            balance=NoBalance(),
            optim=PLAIN,
            train={"steps": 3, "batch_size": size, "grad_accumulation": accumulation},
        )
        training = make_training(config, tmp_path, views.append, sgd=0.1)
        training.run()
        ended.append((weights(training.model), views))
    (one, whole), (two, halves) = ended
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    for first, second in zip(whole, halves, strict=True):
        assert first.loss == pytest.approx(second.loss, rel=1e-5)
        assert first.state.tokens == second.state.tokens
        assert 8 * 16 * 2 == sum(first.load[0].tolist()) == sum(second.load[0].tolist())


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_bias_moves_once_a_step(text_file: Path, tmp_path: Path, accumulation: int) -> None:
    """Loss-free balancing moves each expert's bias by rate towards even load, from the counts of the whole step."""
    views: list[StepReport] = []
    config = tiny_config(
        text_file, balance=LossFreeBalance(bias_update_rate=0.25), train={"grad_accumulation": accumulation}
    )
    training = make_training(config, tmp_path, views.append)
    for _ in range(3):
        before = [layer.router.expert_bias.clone() for layer in training.layers]
        view = training.step()
        assert 2 == len(view.load)
        for layer, old, load in zip(training.layers, before, view.load, strict=True):
            assert config.tokens_per_step * 2 == load.sum()
            expected = old + 0.25 * torch.sign(load.double().mean() - load).float()
            assert torch.equal(expected, layer.router.expert_bias)


@pytest.mark.parametrize("balance", [SwitchBalance(), NoBalance()])
def test_without_loss_free_balancing_there_is_no_bias(text_file: Path, tmp_path: Path, balance: Any) -> None:
    """Other methods leave the bias at zero."""
    training = make_training(tiny_config(text_file, balance=balance), tmp_path)
    training.step()
    assert not any(layer.router.expert_bias.any() for layer in training.layers)


@pytest.mark.parametrize(
    "balance", [SwitchBalance(weight=3.0), WeightedBalance(name="z", weight=0.5), NoBalance(), LossFreeBalance()]
)
def test_the_balancing_loss_is_added_with_its_weight(text_file: Path, tmp_path: Path, balance: Any) -> None:
    """A step of gradient descent is that on cross-entropy + weight * mean over layers of the loss written out.

    The second step shows that nothing is left of the first one's gradient.
    """
    training = make_training(tiny_config(text_file, balance=balance, optim=PLAIN), tmp_path, sgd=0.5)
    training.step()
    model = copy.deepcopy(training.model)
    view = training.step()
    batch = training.task.train_batch(1, 4)
    logits, routings = model(batch.inputs)
    loss = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())
    assert loss.item() == pytest.approx(view.loss, rel=1e-5)
    aux = []
    for routing in routings:
        if balance.name == "switch":
            share = torch.bincount(routing.expert_ids, minlength=4) / 64
            aux.append(4 / 2 * (share * routing.probs.mean(0)).sum())
        elif balance.name == "z":
            aux.append(routing.logits.exp().sum(1).log().square().mean())
    if aux:
        mean = sum(aux) / len(aux)
        assert {balance.name: pytest.approx(mean.item(), rel=1e-5)} == view.aux_losses
        loss = loss + balance.weight * mean
    else:
        assert {} == view.aux_losses
    loss.backward()
    stepped = torch.cat([(param - 0.5 * param.grad).detach().flatten() for param in model.parameters()])
    torch.testing.assert_close(stepped, weights(training.model), rtol=1e-4, atol=1e-5)


def test_what_a_capacity_drops_in_training_is_recorded(text_file: Path, tmp_path: Path) -> None:
    """moe/dropped_fraction is the mean over layers, batches and steps; without a capacity there is none."""
    config = tiny_config(text_file, capacity=0.5, train={"steps": 4, "log_every": 2, "grad_accumulation": 2})
    training = make_training(config, tmp_path)
    shares: list[float] = []
    loss = training.task.loss

    def watch(model: nn.Module, batch: Any) -> Any:
        result = loss(model, batch)
        shares.extend(1 - routing.kept.double().mean().item() for routing in result[1])
        return result

    training.task.loss = watch  # type: ignore[method-assign]
    training.step()
    training.step()
    record = training.recorder.run.metrics()[0]
    assert 8 == len(shares)
    assert record["moe/dropped_fraction"] == pytest.approx(sum(shares) / 8)
    free = make_training(tiny_config(text_file), tmp_path)
    free.step()
    assert "moe/dropped_fraction" not in free.recorder.run.metrics()[0]


@pytest.mark.parametrize(
    "optim",
    [
        MuonConfig(weight_decay=0.1, skip_idle_experts=True, expert_period=1),
        AdamWConfig(weight_decay=0.1, skip_idle_experts=True),
    ],
)
def test_only_the_chosen_experts_learn(text_file: Path, tmp_path: Path, optim: Any) -> None:
    """Experts asked in none of a step's batches keep every bit; those asked in one of them alone learn."""
    config = tiny_config(
        text_file, expert=64, optim=optim, capacity=2.0, train={"batch_size": 1, "grad_accumulation": 2}
    )
    training = make_training(config, tmp_path)
    randomise(training.model)
    for _ in range(3):
        before = [layer.experts.w_in.detach().clone() for layer in training.layers]
        view = training.step()
        for layer, old, load in zip(training.layers, before, view.load, strict=True):
            assert 0 < (load == 0).sum() < 64
            moved = (layer.experts.w_in != old).flatten(1).any(1)
            assert (load > 0).tolist() == moved.tolist()


def test_gradients_are_clipped_to_the_limit(text_file: Path, tmp_path: Path) -> None:
    """With grad_clip the step of gradient descent has exactly that length, and the norm recorded is the one before."""
    config = tiny_config(text_file, optim=MuonConfig(schedule="constant", warmup_fraction=0.0, grad_clip=0.01))
    training = make_training(config, tmp_path, sgd=1.0)
    before = weights(training.model)
    training.step()
    assert 0.01 == pytest.approx((weights(training.model) - before).norm().item(), rel=1e-3)
    assert training.recorder.run.metrics()[0]["train/grad_norm"] > 0.01


def test_steps_and_tokens_end_on_the_step(text_file: Path, tmp_path: Path) -> None:
    """A budget of steps is met exactly, one of tokens by the step that reaches it, one of FLOPs to half a step."""
    config = tiny_config(text_file)
    per_step = estimate_cost(config, 256).flops_per_step
    for budget, steps in (({"steps": 3}, 3), ({"tokens": 65}, 2), ({"tokens": 64}, 1), ({"flops": 2.4 * per_step}, 2)):
        run = finish(tiny_config(text_file, train={"steps": None, **budget}), tmp_path)
        assert (steps, 64 * steps) == (run.summary()["steps"], run.summary()["tokens"])
        assert ("completed", steps) == (run.status()["status"], run.metrics()[-1]["step"])


def test_minutes_end_on_time(text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget of time ends with the first step that exceeds it; its progress drives the schedule to the end."""
    ticks = itertools.count()  # every look at the clock takes a second
    clock = SimpleNamespace(perf_counter=lambda: float(next(ticks)), monotonic=time.monotonic)
    monkeypatch.setattr(loop_module, "time", clock)
    views: list[StepReport] = []
    minutes = 9.5 / 60
    finish(
        tiny_config(text_file, train={"steps": None, "minutes": minutes}),
        tmp_path,
        lambda view: views.append(
            StepReport(
                copy.copy(view.state), view.total_steps, view.progress, view.loss, view.aux_losses, view.lr_factor, []
            )
        ),
    )
    assert views[-1].state.seconds >= 9.5
    assert all(view.state.seconds < 9.5 for view in views[:-1])
    assert 1.0 == views[-1].progress
    assert len(views) > 1


@pytest.mark.parametrize("budget", [{"steps": 20}, {"tokens": 20 * 64}, {"minutes": 40 / 60}])
def test_warm_up_is_a_share_of_any_budget(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: dict[str, Any]
) -> None:
    """Linear from the first step on, for steps and tokens by the end of a step, for minutes by the time of the update."""
    ticks = itertools.count()  # one a look: a step begins, updates a second later, and ends a second after that
    clock = SimpleNamespace(perf_counter=lambda: float(next(ticks)), monotonic=time.monotonic)
    monkeypatch.setattr(loop_module, "time", clock)
    train = {"steps": None, "eval_every": 99, **budget}
    factors: list[float] = []
    finish(
        tiny_config(text_file, optim={"warmup_fraction": 0.5, "decay_fraction": 0.1}, train=train),
        tmp_path,
        lambda view: factors.append(view.lr_factor),
    )
    shares = [(2 * step + 1) / 40 if "minutes" in budget else (step + 1) / 20 for step in range(20)]
    assert 20 == len(factors)
    assert [share / 0.5 for share in shares[:10]] + 8 * [1.0] == pytest.approx(factors[:18])


def test_records_are_means_since_the_last(text_file: Path, tmp_path: Path) -> None:
    """Every log_every steps and at the end: mean losses, norms and MaxVio of the steps between, tokens, rate, time."""
    views: list[StepReport] = []
    config = tiny_config(text_file, train={"steps": 5, "log_every": 2, "eval_every": 99})
    run = finish(config, tmp_path, views.append)
    records = run.metrics()[:-1]  # without the estimate at the end
    assert [2, 4, 5] == [record["step"] for record in records]
    for record, steps in zip(records, (views[:2], views[2:4], views[4:]), strict=True):
        assert sum(view.loss for view in steps) / len(steps) == pytest.approx(record["train/loss"])
        assert sum(view.aux_losses["switch"] for view in steps) / len(steps) == pytest.approx(record["train/aux_loss"])
        violation = sum((load.max() / load.double().mean() - 1).item() for view in steps for load in view.load)
        assert violation / (2 * len(steps)) == pytest.approx(record["moe/max_violation"])
        assert 64 * record["step"] == record["tokens"]
        factor = schedule(config.optim, (record["step"] - 1) / 5, record["step"] / 5)
        assert config.optim.lr * factor == pytest.approx(record["lr"])
        assert record["tokens_per_second"] > 0 < record["train/grad_norm"]
    assert run.summary()["train_loss"] == records[-1]["train/loss"]


def test_the_curve_is_looked_at_as_often_as_asked(text_file: Path, tmp_path: Path) -> None:
    """eval_every counts steps, null means ten looks a run, and one estimate follows the end; an observer sees the last one."""
    for every, steps, expected in ((2, 6, [2, 4]), (None, 20, list(range(2, 20, 2))), (None, 4, [1, 2, 3])):
        views: list[StepReport] = []
        config = tiny_config(text_file, train={"steps": steps, "eval_every": every, "log_every": 99})
        run = finish(config, tmp_path, views.append)
        assert [*expected, steps] == [record["step"] for record in run.metrics() if "val/loss" in record]
        assert all("moe/layer_01/load_cv" in record for record in run.metrics() if "val/load_cv" in record)
        assert all("co_activation" in record for record in run.routing() if record.get("whole_split"))
        looked = [record for record in run.routing() if not record.get("whole_split")]
        assert [(step, layer) for step in expected for layer in (0, 1)] == [(r["step"], r["layer"]) for r in looked]
        assert [step >= expected[0] for step in range(1, steps + 1)] == [view.val is not None for view in views]
        assert len(expected) == len({id(view.val) for view in views if view.val is not None})


def test_the_model_trains_in_training_mode(text_file: Path, tmp_path: Path) -> None:
    """An evaluation between steps does not leave the model in evaluation mode."""
    training = make_training(tiny_config(text_file, train={"eval_every": 1}), tmp_path)
    training.model.eval()
    training.step()
    assert training.model.training


def test_a_loss_that_is_not_finite_ends_the_run(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the step it happens: an error that says what to try, status failed, and the last checkpoint whole."""
    loss_of, calls = TextTask.loss, []

    def poisoned(self: TextTask, model: nn.Module, batch: Any) -> Any:
        loss, routings = loss_of(self, model, batch)
        calls.append(model.training)
        return (loss * math.nan if sum(calls) == 5 else loss), routings

    monkeypatch.setattr(TextTask, "loss", poisoned)
    run = create_run(tmp_path, "runs", tiny_config(text_file, train={"checkpoint_every": 2}))
    with pytest.raises(TrainingError, match=r"the loss is nan at step 5; .* lower optim\.lr"):
        run_one(run, tmp_path)
    status = run.status()
    assert ("failed", True) == (status["status"], status["reason"].startswith("the loss is nan at step 5"))
    assert run.summary() is None
    assert 4 == latest_checkpoint(run).state["step"]
    assert "TrainingError" in (run.path / "traceback.txt").read_text()
    monkeypatch.setattr(TextTask, "loss", loss_of)
    assert 6 == run_one(run, tmp_path).summary()["steps"]
    assert not (run.path / "traceback.txt").exists()


@pytest.mark.parametrize(
    "optim", [AdamWConfig(lr=1e15), SGDConfig(lr=1e15), MuonConfig(lr=1e15, adam_lr=1e15, grad_clip=None)]
)
def test_a_rate_far_too_high_is_a_clear_error(text_file: Path, tmp_path: Path, optim: Any) -> None:
    """Training that blows up fails with advice, and leaves no checkpoint or a finite one."""
    run = create_run(tmp_path, "runs", tiny_config(text_file, optim=optim, train={"checkpoint_every": 1}))
    with pytest.raises(TrainingError, match=r"lower optim\.lr"):
        run_one(run, tmp_path)
    assert "failed" == run.status()["status"]
    if run.checkpoints():
        model = make_model(run.config(), 256)
        latest_checkpoint(run).load_model(model)
        assert torch.isfinite(weights(model)).all()


def test_a_gradient_that_is_not_finite_changes_nothing(text_file: Path, tmp_path: Path) -> None:
    """It is an error before the optimizers see it."""
    training = make_training(tiny_config(text_file), tmp_path)
    next(training.model.parameters()).register_hook(lambda grad: grad * math.inf)
    before = weights(training.model)
    with pytest.raises(TrainingError, match=r"the gradient is (nan|inf) at step 1"):
        training.step()
    assert torch.equal(before, weights(training.model))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_stops_after_the_step(text_file: Path, tmp_path: Path, number: signal.Signals) -> None:
    """The step is finished and saved, the run is interrupted, and the handlers are as they were."""
    handlers = [signal.getsignal(each) for each in STOP_SIGNALS]

    def stop_at_three(view: StepReport) -> None:
        if view.state.step == 3:
            os.kill(os.getpid(), number)

    run = finish(tiny_config(text_file, train={"checkpoint_every": 99}), tmp_path, stop_at_three)
    assert ("interrupted", None) == (run.status()["status"], run.summary())
    assert 3 == latest_checkpoint(run).state["step"] == run.status()["step"]
    assert handlers == [signal.getsignal(each) for each in STOP_SIGNALS]


def test_a_stop_at_the_last_step_completes(text_file: Path, tmp_path: Path) -> None:
    """There is nothing left to go on with."""
    run = finish(
        tiny_config(text_file, train={"steps": 2}),
        tmp_path,
        lambda view: os.kill(os.getpid(), signal.SIGTERM) if view.state.step == 2 else None,
    )
    assert "completed" == run.status()["status"]


def test_a_second_interrupt_stops_at_once(text_file: Path, tmp_path: Path) -> None:
    """Ctrl-C twice does not wait for the step; the run can go on from its last checkpoint."""

    def twice(view: StepReport) -> None:
        if view.state.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    run = create_run(tmp_path, "runs", tiny_config(text_file, train={"checkpoint_every": 2}))
    with pytest.raises(KeyboardInterrupt):
        run_one(run, tmp_path, twice)
    assert ("interrupted", "stopped at once") == (run.status()["status"], run.status()["reason"])
    assert 2 == latest_checkpoint(run).state["step"]
    assert not (run.path / "traceback.txt").exists()


def test_outside_the_main_thread_no_signal_is_taken() -> None:
    """Python allows handlers in the main thread alone: elsewhere the loop runs without."""
    asked: list[bool] = []

    def use() -> None:
        with stop_signals() as stopped:
            asked.append(stopped())

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert [False] == asked


def test_training_lowers_the_loss(text_file: Path, tmp_path: Path) -> None:
    """Sixty steps on made-up words beat the uniform guess and the frequencies of single bytes by far."""
    config = tiny_config(text_file, train={"steps": 60, "eval_every": 99, "log_every": 99})
    summary: dict[str, Any] = finish(config, tmp_path).summary() or {}
    counts = torch.bincount(torch.tensor(list(text_file.read_bytes()))).double()
    entropy = torch.special.entr(counts / counts.sum()).sum().item()
    assert summary["val_loss"] < entropy - 0.5
    assert 2 == len(moe_layers(make_model(Run(tmp_path / "runs" / summary["run"]).config(), 256)))


def test_a_running_run_shows_that_it_lives(text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between checkpoints too, status.json gets the step and a new heartbeat as often as the interval says."""
    monkeypatch.setattr("moe_cli.training.trainer.HEARTBEAT_SECONDS", -1.0)
    run = create_run(tmp_path, "runs", tiny_config(text_file, train={"eval_every": 99, "checkpoint_every": 99}))
    seen: list[dict[str, Any]] = []
    run_one(run, tmp_path, lambda view: seen.append(run.status()))
    assert [None, 1, 2, 3, 4, 5] == [status.get("step") for status in seen]
    beats = [status["heartbeat"] for status in seen]
    assert beats == sorted(set(beats))


@pytest.mark.parametrize("optim", [MuonConfig(skip_idle_experts=True), AdamWConfig(skip_idle_experts=True)])
def test_null_experts_have_nothing_to_update(text_file: Path, tmp_path: Path, optim: MuonConfig | AdamWConfig) -> None:
    """Sparse updates look at experts that compute, and so does MaxVio; with null experts among the choices training goes on."""
    config = tiny_config(text_file, router=TopKConfig(null_experts=3), optim=optim)
    training = make_training(config, tmp_path)
    view = training.step()
    assert [4, 4] == [len(counts) for counts in view.load]
    for layer, counts in zip(training.layers, view.load, strict=True):
        assert 0 < counts.sum() < 2 * config.tokens_per_step
        assert layer.experts.num_experts == 4
    record = next(record for record in training.recorder.run.metrics() if "moe/max_violation" in record)
    assert record["moe/max_violation"] == pytest.approx(sum(max_violation(counts.tolist()) for counts in view.load) / 2)


def test_compile_is_for_training_alone(text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """train.compile=on sends every training batch through the compiled model, and no evaluation; results are the same."""
    calls: list[bool] = []

    class Compiled(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, tokens: Tensor) -> Any:
            calls.append(self.model.training)
            return self.model(tokens)

    monkeypatch.setattr(torch, "compile", Compiled)
    config = tiny_config(text_file, train={"steps": 3, "grad_accumulation": 2, "compile": "on"})
    compiled = finish(config, tmp_path)
    assert [True] * 6 == calls
    plain = finish(tiny_config(text_file, train={"steps": 3, "grad_accumulation": 2}), tmp_path)
    assert plain.config().digest == compiled.config().digest
    assert (plain.summary() or {})["val_loss"] == (compiled.summary() or {})["val_loss"]


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_compiled_run_is_the_run(text_file: Path, tmp_path: Path) -> None:
    """Through the real compiler, losses are those of a run without, to rounding."""
    losses = []
    for compiled in ("off", "on"):
        run = finish(tiny_config(text_file, train={"steps": 4, "compile": compiled}), tmp_path)
        losses.append([line["train/loss"] for line in run.metrics() if "train/loss" in line])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_compiler_that_fails_is_a_clear_error(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line of what torch said, and the way without."""
    failure = type("BackendCompilerFailed", (RuntimeError,), {"__module__": "torch._dynamo.exc"})

    def fail(model: nn.Module) -> nn.Module:
        raise failure("no C++ compiler found\nand pages more")

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(
        TrainingError, match=r"cannot compile this model: no C\+\+ compiler found\nGo without: train.compile"
    ):
        finish(tiny_config(text_file, train={"compile": "on"}), tmp_path)


def test_compile_is_for_one_process(text_file: Path) -> None:
    """With several the error says which of the two to leave out."""
    with pytest.raises(ConfigError, match=r"train.compile=on is for one process"):
        tiny_config(text_file, train={"compile": "on"}, launch=LaunchConfig(num_processes=2))
