"""2n steps == n steps + stop + resume, to the last bit."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_cli.config.balances import (
    CombinedBalance,
    LossFreeBalance,
    NoBalance,
    QuantileBalance,
    SwitchBalance,
    WeightedBalance,
)
from moe_cli.config.data import TokenFilesConfig
from moe_cli.config.optim import AdamWConfig, MuonConfig, SGDConfig
from moe_cli.config.routers import NoisyTopKConfig, SigmoidConfig, SwitchConfig, TopKConfig
from moe_cli.config.schema import RunConfig
from moe_cli.data import shuffle
from moe_cli.execution.machine import machine_name
from moe_cli.execution.run import run_one
from moe_cli.moe.routers.registry import ROUTER_CONFIGS
from moe_cli.runs.folder import Run, create_run
from moe_cli.sweeps.executors.fork_server import ForkedRun
from moe_cli.training.state import StepReport
from moe_cli.training.trainer import Trainer
from tests.data.made_token_files import raw, with_header
from tests.tiny import TINY, finish, tiny_config

pytestmark = pytest.mark.usefixtures("unchecked_shapes")
TIMES = ("seconds", "tokens_per_second", "peak_memory_bytes", "run")
QUANTILE_AND_GLOBAL = CombinedBalance(
    "switch+quantile", switch=SwitchBalance(scope="global"), quantile=QuantileBalance()
)
TRAIN = {"steps": 8, "grad_accumulation": 2, "log_every": 3, "eval_every": 3, "checkpoint_every": 2}

# More experts than a step has tokens, so that some are idle in every step.
FEW_CHOSEN = {"expert": 144, "k": 1, "capacity": 4.0, "router": SwitchConfig()}


def without_times(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key not in TIMES} for record in records]


def assert_equal_runs(one: Run, other: Run) -> None:
    """Weights, optimizer and random state byte for byte; records and results alike, but for times."""
    assert ["completed"] * 2 == [run.status()["status"] for run in (one, other)]
    first, second = (run.checkpoints()[0] for run in (one, other))
    assert first.name == second.name
    names = [sorted(file.name for file in folder.glob("*.safetensors")) for folder in (first, second)]
    assert names[0] == names[1]
    assert {"model.safetensors", "optimizer.safetensors"} <= set(names[0])
    for name in names[0]:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    assert without_times(one.metrics()) == without_times(other.metrics())
    assert one.routing() == other.routing()
    assert without_times([one.summary() or {}]) == without_times([other.summary() or {}])


def stop_at(step: int) -> Any:
    """An observer that asks for a stop, as Ctrl-C does."""

    def observe(view: StepReport) -> None:
        if view.state.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    return observe


@pytest.fixture(scope="module")
def undisturbed(text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of TRAIN that nothing happened to."""
    return finish(tiny_config(text_file, train=TRAIN), tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.parametrize(
    ("changes", "stop"),
    [
        pytest.param(
            {"router": TopKConfig(), "balance": LossFreeBalance(), "optim": AdamWConfig(lr=0.01)},
            5,
            marks=pytest.mark.slow,
        ),
        ({"router": SwitchConfig(jitter=0.1), "k": 1, "balance": LossFreeBalance()}, 1),
        ({"router": TopKConfig(), "balance": QUANTILE_AND_GLOBAL}, 3),
        *(
            pytest.param({**TINY[name], "model": replace(TINY[name]["model"], dropout=0.1)}, stop, marks=marks, id=name)
            for name, stop, marks in (
                ("bert", 5, pytest.mark.slow),
                ("vit", 5, pytest.mark.slow),
                ("mmoe", 5, ()),
                ("lstm", 3, pytest.mark.slow),
                ("t5", 4, pytest.mark.slow),
            )
        ),
        pytest.param({"expert": 1, "k": 1, "optim": AdamWConfig(lr=0.01)}, 4, marks=pytest.mark.slow, id="dense"),
        ({**FEW_CHOSEN, "optim": AdamWConfig(lr=0.01, weight_decay=0.1, skip_idle_experts=True)}, 4),
        ({**FEW_CHOSEN, "optim": MuonConfig(lr=0.03, weight_decay=0.1, skip_idle_experts=True)}, 5),
    ],
)
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(
    text_file: Path, tmp_path: Path, changes: dict[str, Any], stop: int
) -> None:
    """Stopped and resumed, a run equals the undisturbed one bit for bit: every router, balance and optimizer."""
    config = tiny_config(text_file, **{"model": {"dropout": 0.1}, **changes}, train=TRAIN)
    whole = finish(config, tmp_path)
    stopped = finish(config, tmp_path, stop_at(stop))
    assert ("interrupted", stop) == (stopped.status()["status"], stopped.status()["step"])
    assert_equal_runs(whole, run_one(stopped, tmp_path))


def test_a_run_may_be_stopped_at_every_step(text_file: Path, tmp_path: Path) -> None:
    """Eight stops leave no trace."""
    config = tiny_config(text_file, model={"dropout": 0.1}, train=TRAIN)
    run = create_run(tmp_path, "runs", config)
    for step in range(1, 8):
        run_one(run, tmp_path, stop_at(step))
        assert step == run.status()["step"]
    assert_equal_runs(finish(config, tmp_path), run_one(run, tmp_path))


@pytest.mark.parametrize(("most_listed", "stops"), [(2**22, (4,)), (0, (2, 4, 15))])
def test_ready_made_tokens_go_on_in_the_middle_of_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_listed: int, stops: tuple[int, ...]
) -> None:
    """Token files of several shards, their windows listed or computed: stopped within an epoch, across one and at one's
    end (30 windows, 8 a step), training ends as if nothing had happened."""
    monkeypatch.setattr(shuffle, "MAX_IN_MEMORY", most_listed)
    for number in range(3):
        with_header(tmp_path / "tokens" / f"train_{number}.bin", [(7 * i * i + number) % 50 for i in range(167)])
    raw(tmp_path / "tokens" / "val.bin", [i % 50 for i in range(100)])
    data = TokenFilesConfig(path=str(tmp_path / "tokens"), vocab_size=50)
    config = tiny_config(tmp_path, data=data, train={**TRAIN, "steps": 16})
    whole = finish(config, tmp_path / "whole")
    run = create_run(tmp_path, "runs", config)
    for stop in stops:
        run_one(run, tmp_path, stop_at(stop))
        assert ("interrupted", stop) == (run.status()["status"], run.status()["step"])
    assert_equal_runs(whole, run_one(run, tmp_path))


def settings_of_every_kind() -> dict[str, dict[str, Any]]:
    """Each router, each balance and each optimizer that a causal model can have, by its name."""
    routers = {name: each for name, each in ROUTER_CONFIGS.items() if name not in ("expert_choice", "soft")}
    one = {"switch", "hash"}
    return {
        **{
            name: {"router": each(), "k": 1 if name in one else 2, "balance": NoBalance()}
            for name, each in routers.items()
        },
        "null experts": {"router": TopKConfig(null_experts=2)},
        "cosine": {"router": TopKConfig(score="cosine")},
        "grouped": {"expert": 8, "router": SigmoidConfig(groups=4, top_groups=2), "balance": LossFreeBalance()},
        **{each.__name__: {"balance": each()} for each in (SwitchBalance, LossFreeBalance, QuantileBalance)},
        **{
            name: {"balance": WeightedBalance(name=name)}
            for name in ("importance", "z", "entropy", "mutual_information")
        },
        "load": {"router": NoisyTopKConfig(), "balance": WeightedBalance(name="load")},
        **{
            f"{each.__name__} ema": {"optim": each(lr=0.01, ema_decay=0.9)}
            for each in (MuonConfig, AdamWConfig, SGDConfig)
        },
        "experts in turn": {"optim": {"expert_period": 2}},
        "latent": {"model": {"kv_lora_rank": 6}},
        "gpt-2": {"model": {"norm": "layer", "position_encoding": "learned", "qk_norm": False, "init_std": 0.02}},
        "random drops": {"capacity": 0.7, "drop": "random", "renormalise_after_drop": True},
        "expert dropout": {"model": {"expert_dropout": 0.2, "shared_experts": 1, "shared_gate": True}},
    }


KINDS = settings_of_every_kind()
# One that draws, one with a state of the router, one with an average of the weights.
QUICK_KINDS = ("random drops", "relu", "MuonConfig ema", "experts in turn")


@pytest.mark.parametrize(
    "kind", [kind if kind in QUICK_KINDS else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_every_kind_goes_on_exactly(text_file: Path, tmp_path: Path, kind: str) -> None:
    """Stopped after three steps and resumed, a run of each kind equals the undisturbed one bit for bit."""
    changes = KINDS[kind]
    model = {"dropout": 0.1, **changes.get("model", {})}
    config = tiny_config(text_file, **{**changes, "model": model, "train": {**TRAIN, "steps": 5}})
    whole = finish(config, tmp_path)
    assert_equal_runs(whole, run_one(finish(config, tmp_path, stop_at(3)), tmp_path))


@pytest.mark.parametrize("moment", ["step", "end"])
def test_what_was_recorded_after_the_checkpoint_is_forgotten(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Run, moment: str
) -> None:
    """A run that died with records newer than its checkpoint, or just before its summary, has none of them twice."""
    config = tiny_config(text_file, train={**TRAIN, "checkpoint_every": 4})
    run = create_run(tmp_path, "runs", config)

    def die(*arguments: Any, **keywords: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if moment == "end":
            patch.setattr("moe_cli.runs.recorder.Recorder.complete", die)
        with pytest.raises(KeyboardInterrupt):
            run_one(run, tmp_path, lambda view: die() if moment == "step" and view.state.step == 7 else None)
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 7, "train/lo')
    assert_equal_runs(undisturbed, run_one(run, tmp_path))


def test_a_run_that_died_before_its_first_checkpoint_begins_again(text_file: Path, tmp_path: Path) -> None:
    """Its records are forgotten."""
    config = tiny_config(text_file, train={**TRAIN, "checkpoint_every": 99, "log_every": 1})
    run = create_run(tmp_path, "runs", config)

    def die(view: StepReport) -> None:
        if view.state.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_one(run, tmp_path, die)
    assert 2 == len(run.metrics())
    assert_equal_runs(finish(config, tmp_path), run_one(run, tmp_path))


def test_a_moved_run_goes_on(text_file: Path, tmp_path: Path, undisturbed: Run) -> None:
    """An interrupted folder carried to another outputs folder is resumed there, from its checkpoint."""
    config = tiny_config(text_file, train=TRAIN)
    stopped = finish(config, tmp_path / "here", stop_at(4))
    moved = Run(Path(shutil.move(stopped.path, tmp_path / "there")))
    steps: list[int] = []
    run_one(moved, tmp_path / "elsewhere", lambda view: steps.append(view.state.step))
    assert [5, 6, 7, 8] == steps
    assert_equal_runs(undisturbed, moved)


def test_a_run_of_two_machines_has_no_machine(text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine stands in the summary, but not where training went on on another one."""
    config = tiny_config(text_file, train=TRAIN)
    stopped = finish(config, tmp_path, stop_at(4))
    assert machine_name("cpu") == (finish(config, tmp_path / "whole").summary() or {})["machine"]
    monkeypatch.setattr("moe_cli.execution.run.machine_name", lambda device: "another")
    assert (run_one(stopped, tmp_path).summary() or {})["machine"] is None


def test_a_run_keeps_its_number_of_threads(text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resumed where other cores are idle, a run goes on with the threads it began with."""
    before, asked = torch.get_num_threads(), []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: asked[-1])
    monkeypatch.setattr("moe_cli.execution.run.pick_threads", lambda config, vocab_size: before)
    stopped = finish(tiny_config(text_file, train={**TRAIN, "threads": None}), tmp_path, stop_at(5))
    monkeypatch.setattr("moe_cli.execution.run.pick_threads", lambda config, vocab_size: before + 1)
    run_one(stopped, tmp_path)
    assert [before, before + 1, before] == asked


def test_a_stop_does_not_repeat_steps(text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run takes only the steps that were left."""
    stopped = finish(tiny_config(text_file, train=TRAIN), tmp_path, stop_at(5))
    taken = []
    step = Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda self: taken.append(self.state.step) or step(self))
    run_one(stopped, tmp_path)
    assert [5, 6, 7] == taken


def worker(run: Run, outputs: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "moe_cli.execution.worker", str(run.path), str(outputs)])


def slow_config(text_file: Path) -> RunConfig:
    train = {"steps": 100, "checkpoint_every": 5, "eval_every": 20, "log_every": 1}
    return tiny_config(text_file, model={"dropout": 0.1}, train=train)


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_nothing_had_happened(text_file: Path, tmp_path: Path) -> None:
    """kill -9 in the middle of a worker: the run is interrupted, and resumed it equals an undisturbed one."""
    config = slow_config(text_file)
    run = create_run(tmp_path, "runs", config)
    process = worker(run, tmp_path)
    deadline = time.monotonic() + 600
    while max((record["step"] for record in run.latest_metrics()), default=0) < 12:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    assert "running" == run.status()["status"]
    process.send_signal(signal.SIGKILL)
    assert -signal.SIGKILL == process.wait()
    assert ("interrupted", None) == (run.status()["status"], run.summary())
    # The process was killed wherever it happened to be, behind its last checkpoint: the last line may be torn.
    assert 12 <= len([line for line in run.metrics() if "train/loss" in line]) < 100
    assert run.status()["pid"] == process.pid != os.getpid()
    assert_equal_runs(finish(config, tmp_path), run_one(run, tmp_path))


@pytest.mark.slow
def test_killed_again_and_again_a_run_ends_as_if_undisturbed(
    text_file: Path, tmp_path: Path, fork_servers: Any
) -> None:
    """kill -9 after a random time, six times in a row: weights, records and results are those of a run left alone.

    A worker lives until its run has gone on for a random part of a second: kills hit steps, evaluations and saves. The
    workers are forked from one process, because each new one would import torch.
    """
    draw, kills = random.Random(0), 0
    train = {"steps": 900, "checkpoint_every": 3, "eval_every": 5, "log_every": 1, "keep_best": True}
    config = tiny_config(
        text_file, model={"dropout": 0.1}, optim=MuonConfig(lr=0.03, adam_lr=0.01, ema_decay=0.9), train=train
    )
    run = create_run(tmp_path, "runs", config)
    status, server = run.path / "status.json", fork_servers(tmp_path, {})
    while kills < 6:
        fork, begun = server.start(run, tmp_path), time.monotonic()
        while fork.pid is None or json.loads(status.read_text()).get("pid") != fork.pid or is_pending(run):
            assert fork.poll() is None
            assert time.monotonic() - begun < 600
            time.sleep(0.002)
        time.sleep(draw.random() * 0.4)
        assert fork.poll() is None, "the run is too short for six kills"
        os.kill(fork.pid, signal.SIGKILL)
        assert 0 != wait_for(fork)
        kills += 1
        deadline = time.monotonic() + 600  # a program that it was just starting may hold its folder for a moment
        while "interrupted" != run.status()["status"]:
            assert time.monotonic() < deadline
            time.sleep(0.002)
    assert 0 == wait_for(server.start(run, tmp_path))
    assert_equal_runs(finish(config, tmp_path), run)


def wait_for(fork: ForkedRun) -> int:
    """Returns the exit code of a forked run, when it has ended."""
    deadline = time.monotonic() + 600
    while (code := fork.poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return code


def is_pending(run: Run) -> bool:
    return run.status()["status"] == "pending"
