"""Several processes train as one does: losses, gradients and weights, whatever each of them holds."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from moe_cli.config.balances import (
    LossFreeBalance,
    QuantileBalance,
    SwitchBalance,
    WeightedBalance,
)
from moe_cli.config.launch import LaunchConfig
from moe_cli.config.optim import AdamWConfig, MuonConfig, SGDConfig
from moe_cli.config.routers import (
    ExpertChoiceConfig,
    HashConfig,
    NoisyTopKConfig,
    RandomConfig,
    ReluConfig,
    SigmoidConfig,
    SinkhornConfig,
    SoftConfig,
    SwitchConfig,
    TopKConfig,
)
from moe_cli.config.schema import RunConfig
from moe_cli.execution.run import run_one
from moe_cli.runs.folder import Run, create_run, rewrite_config
from tests.tiny import TINY, tiny_config
from tests.training.together import spoiled

pytestmark = pytest.mark.usefixtures("unchecked_shapes")
FSDP, EXPERTS, BOTH = (
    {"data_parallel": "fsdp"},
    {"expert_parallel_size": 2},
    {"data_parallel": "fsdp", "expert_parallel_size": 2},
)
ADAMW = AdamWConfig(lr=0.01)
EMA = {"optim": MuonConfig(lr=0.03, adam_lr=0.01, ema_decay=0.9)}
SAVED = {"checkpoint_every": 2}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dp": ({}, {}),
    "fsdp": (FSDP, {}),
    "experts": (EXPERTS, {}),
    "both": (BOTH, {}),
    "adamw": ({}, {"optim": ADAMW}),
    "adamw-fsdp": (FSDP, {"optim": ADAMW}),
    "adamw-experts": (EXPERTS, {"optim": ADAMW}),
    "sgd-both": (BOTH, {"optim": SGDConfig(lr=0.3)}),
    "ema-both": (BOTH, EMA),
    "accumulation": ({}, {"train": {"grad_accumulation": 2}}),
    "accumulation-both": (BOTH, {"train": {"grad_accumulation": 2}}),
    "sparse-updates": (EXPERTS, {"optim": AdamWConfig(lr=0.01, skip_idle_experts=True), "k": 1, "expert": 8}),
    "in-turn-fsdp": (FSDP, {"optim": {"expert_period": 2}}),
    "in-turn-both": (BOTH, {"optim": {"expert_period": 2}}),
    "capacity": ({}, {"capacity": 0.6, "optim": ADAMW}),
    "capacity-probability": (EXPERTS, {"capacity": 0.6, "drop": "probability", "renormalise_after_drop": True}),
    "capacity-causal": ({}, {"capacity": 0.6, "drop": "causal", "eval": {"stride": 5}}),
    "global": (BOTH, {"balance": SwitchBalance(weight=0.5, scope="global"), "train": {"grad_accumulation": 2}}),
    "importance": ({}, {"balance": WeightedBalance(name="importance", weight=0.5)}),
    "entropy": (FSDP, {"balance": WeightedBalance(name="entropy", weight=0.5)}),
    "information": ({}, {"balance": WeightedBalance(name="mutual_information", weight=0.5)}),
    "loss-free": (EXPERTS, {"balance": LossFreeBalance(bias_update_rate=0.05)}),
    "quantile": ({}, {"balance": QuantileBalance()}),
    "sinkhorn": ({}, {"router": SinkhornConfig()}),
    "expert-choice": ({}, {**TINY["bert"], "router": ExpertChoiceConfig(), "balance": None}),
    "expert-choice-capacity": (
        BOTH,
        {
            **TINY["bert"],
            "router": ExpertChoiceConfig(),
            "capacity": 0.6,
            "balance": WeightedBalance(name="importance", weight=0.5),
        },
    ),
    "soft": (EXPERTS, {**TINY["bert"], "router": SoftConfig(slots=2), "balance": None}),
    "relu": (EXPERTS, {"router": ReluConfig(), "balance": None}),
    "shared": (BOTH, {"model": {"shared_experts": 1, "shared_gate": True}}),
    "dense-fsdp": (FSDP, {"expert": 1, "k": 1}),
    "hash": ({}, {"router": HashConfig(), "balance": None, "k": 1}),
    "hash-fixed-both": (BOTH, {"router": HashConfig(weights="constant"), "balance": None, "k": 1}),
    "sigmoid": (BOTH, {"router": SigmoidConfig(groups=2, top_groups=1), "balance": LossFreeBalance()}),
    "null-experts": (EXPERTS, {"router": TopKConfig(null_experts=2)}),
    "latent-fsdp": (FSDP, {"model": {"kv_lora_rank": 6, "q_lora_rank": 8}}),
    "nan-skip": (EXPERTS, {"train": {"on_nan": "skip"}, "balance": LossFreeBalance()}),
    "nan-rewind": (FSDP, {"train": {**SAVED, "on_nan": "rewind"}}),
    "bert": (FSDP, TINY["bert"]),
    "t5": (BOTH, TINY["t5"]),
    "vit": (EXPERTS, TINY["vit"]),
    "mmoe": ({}, TINY["mmoe"]),
    "gpt-2": (
        FSDP,
        {"model": {"position_encoding": "learned", "norm": "layer", "tie_embeddings": True, "init_std": 0.02}},
    ),
}
# Stopped after two steps by a signal to one of the processes; begun by one process.
STOPPED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "stopped-dp": ({}, {"train": SAVED}),
    "stopped-both": (BOTH, {**EMA, "train": SAVED}),
}
RESUMED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "resumed-both": (BOTH, {**EMA, "train": SAVED}),
    "resumed-experts": (EXPERTS, {"optim": ADAMW, "train": SAVED}),
}
CASES |= STOPPED | RESUMED
# One of each kind of thing that processes share; the others are of the slow tests, by four processes.
QUICK = {
    name: CASES[name]
    for name in (
        "dp",
        "fsdp",
        "sparse-updates",
        "capacity",
        "global",
        "expert-choice-capacity",
        "nan-skip",
        "stopped-both",
    )
}
# Each process draws its own random numbers: such runs differ, and must end as well.
NOISY: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "random": ({}, {"router": RandomConfig(), "balance": None}),
    "noisy": (BOTH, {"router": NoisyTopKConfig(), "balance": WeightedBalance(name="load", weight=0.1)}),
    "jitter": (FSDP, {"router": SwitchConfig(jitter=0.1), "k": 1}),
    "dropout": (EXPERTS, {"model": {"dropout": 0.1, "expert_dropout": 0.2}}),
    "random-drops": ({}, {"capacity": 0.6, "drop": "random"}),
}


def make_config(path: Path, launch: dict[str, Any], changes: dict[str, Any], procs: int = 1) -> RunConfig:
    train = {"steps": 4, "batch_size": 8, **changes.get("train", {})}
    config = tiny_config(path, **{**changes, "train": train})
    if procs == 1:
        return config
    return tiny_config(path, **{**changes, "train": train}, launch=LaunchConfig(num_processes=procs, **launch))


def make_runs(folder: Path, text_file: Path, cases: dict[str, Any], procs: int) -> dict[str, Run]:
    return {name: create_run(folder, "runs", make_config(text_file, *case, procs)) for name, case in cases.items()}


def finish_together(folder: Path, runs: list[tuple[Run, int | None]], procs: int) -> None:
    """Carries out the runs by as many processes, up to the steps at which they are to stop."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    file = folder / "runs.json"
    file.write_text(json.dumps([[str(run.path), stop] for run, stop in runs]))
    shared = {
        "WORLD_SIZE": procs,
        "LOCAL_WORLD_SIZE": procs,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": 1,
        "OPENBLAS_NUM_THREADS": 1,  # a process must have one thread when it forks
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.training.together", str(folder), str(file)],
        env={**os.environ, **{key: str(value) for key, value in shared.items()}},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        errors = process.communicate(timeout=300)[1]
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, errors


@pytest.fixture(scope="module")
def double() -> Iterator[None]:
    """Numbers of 64 bits, so that what is left of a difference is not hidden by rounding."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def two(text_file: Path, tmp_path_factory: pytest.TempPathFactory, double: None) -> dict[str, Run]:
    """Every quick case, carried out by two processes."""
    folder = tmp_path_factory.mktemp("two")
    runs = make_runs(folder, text_file, QUICK | {"noisy": NOISY["noisy"]}, 2)
    finish_together(folder, [(run, 2 if name in STOPPED else None) for name, run in runs.items()], 2)
    return runs


def begin_alone(run: Run, outputs: Path) -> None:
    """The first two steps, by one process."""
    config = run.config()
    rewrite_config(run, replace(config, launch=LaunchConfig()))
    run_one(run, outputs, lambda view: signal.raise_signal(signal.SIGTERM) if view.state.step == 2 else None)
    assert ("interrupted", 2) == (run.status()["status"], run.status()["step"])
    rewrite_config(run, config)


def assert_equal_training(one: Run, several: Run) -> None:
    """Every loss, gradient norm and measure, the weights at the end, and the evaluation of the whole split.

    But for how many guesses are right after the first step: Adam's is of one size for all, so that many logits are equal, and
    rounding says which is the largest.
    """
    for first, second in zip(one.metrics(), several.metrics(), strict=True):
        assert first.keys() == second.keys()
        for key, value in first.items():
            if not (
                any(word in key for word in ("seconds", "per_second")) or ("accuracy" in key and first["step"] < 2)
            ):
                assert second[key] == (value if value is None else pytest.approx(value, rel=1e-6, abs=1e-9)), key
    for name in ("model", "optimizer", "ema"):
        files = [run.checkpoints()[0] / f"{name}.safetensors" for run in (one, several)]
        assert files[0].exists() == files[1].exists()
        if files[0].exists():
            assert_equal_tensors(*map(load_file, files))
    first, second = one.summary() or {}, several.summary() or {}
    for key in (
        "val_loss",
        "val_bpb",
        "max_violation",
        "dead_experts",
        "token_specialisation",
        "steps",
        "tokens",
        "routing_entropy",
        "dropped_fraction",
        "params",
        "val_tokens",
        "skipped_steps",
        "rewinds",
    ):
        assert second[key] == (first[key] if first[key] is None else pytest.approx(first[key], rel=1e-6)), key


def assert_equal_tensors(one: dict[str, torch.Tensor], several: dict[str, torch.Tensor]) -> None:
    names = [name for name in one if not name.startswith("random.")]
    assert names == [name for name in several if not name.startswith("random.")]
    for name in names:
        torch.testing.assert_close(
            several[name], one[name], rtol=1e-5, atol=1e-7, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.fixture(scope="module")
def four(text_file: Path, tmp_path_factory: pytest.TempPathFactory, double: None) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("four")
    runs = make_runs(folder, text_file, CASES | NOISY, 4)
    for run in (runs[name] for name in RESUMED):
        begin_alone(run, folder)
    finish_together(folder, [(run, 2 if name in STOPPED else None) for name, run in runs.items()], 4)
    return runs


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_four_processes_train_as_one(text_file: Path, tmp_path: Path, four: dict[str, Run], case: str) -> None:
    """Four processes train as one; with expert parallelism they are two groups of experts."""
    test_two_processes_train_as_one(text_file, tmp_path, four, case)


@pytest.mark.parametrize("case", QUICK)
def test_two_processes_train_as_one(text_file: Path, tmp_path: Path, two: dict[str, Run], case: str) -> None:
    """Losses, gradient norms, measures, weights and optimizer state are those of one process on the same batches.

    Also where the two took over from one process in the middle, or one from the two.
    """
    launch, changes = CASES[case]
    if case in STOPPED:
        assert ("interrupted", 2) == (two[case].status()["status"], two[case].status()["step"])
        rewrite_config(two[case], replace(two[case].config(), launch=LaunchConfig()))
        run_one(two[case], tmp_path)
    alone = create_run(tmp_path, "runs", make_config(text_file, launch, changes))
    assert alone.config().digest == two[case].config().digest
    with spoiled(alone):
        run_one(alone, tmp_path)
    assert_equal_training(alone, two[case])
    on_nan = alone.config().train.on_nan
    assert [int(on_nan == "skip"), int(on_nan == "rewind")] == [
        (alone.summary() or {})[key] for key in ("skipped_steps", "rewinds")
    ]


@pytest.mark.slow
@pytest.mark.parametrize("case", NOISY)
def test_four_processes_with_noise_agree(four: dict[str, Run], case: str) -> None:
    """With noise and dropout too a run completes, and learns from its batches."""
    assert_learned(four[case])


def test_two_processes_with_noise_agree(two: dict[str, Run]) -> None:
    """With noise too a run completes, and learns from its batches."""
    assert_learned(two["noisy"])


def assert_learned(run: Run) -> None:
    losses = [line["train/loss"] for line in run.metrics() if "train/loss" in line]
    assert "completed" == run.status()["status"]
    assert losses[-1] < losses[0]
