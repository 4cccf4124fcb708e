"""moe bench optimizer: shares and ratios of made-up times, and real updates of tiny models."""

import io
import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from rich.console import Console

from moe_cli.bench import optimizer
from moe_cli.bench.optimizer import OptimizerBenchmark, every_step_too, run_optimizer_benchmark
from moe_cli.bench.spread import Spread
from moe_cli.bench.step import random_tokens
from moe_cli.bench.tables import optimizer_heading, optimizer_table
from moe_cli.cli.app import app
from moe_cli.config.compose import load_config
from moe_cli.config.schema import RunConfig
from moe_cli.moe.sparse_layer import moe_layers
from tests.cli.conftest import TINY
from tests.runner import CliRunner


def config(*words: str) -> RunConfig:
    return load_config([*TINY, *words]).config


def measured(monkeypatch: pytest.MonkeyPatch, times: dict[str, list[float]], *configs: RunConfig) -> OptimizerBenchmark:
    """The benchmark with made-up times in place of a clock."""
    monkeypatch.setattr(optimizer, "interleave", lambda calls, make_input, seconds: times)
    return run_optimizer_benchmark(configs, 0.0, 1)


def test_shares_of_made_up_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """The update is the mean over a period; the share is of the step, the ratio is to the first step, round by round."""
    times = {"pass 0": [3.0, 3.0], "update 0": [1.0, 1.0], "pass 1": [6.0, 6.0], "update 1": [4.0, 8.0]}
    found = measured(monkeypatch, times, config("expert=1"), config("expert=16", "k=2")).results
    assert [(1, 1, 1), (16, 2, 2)] == [(each.experts, each.top_k, each.period) for each in found]
    assert [Spread(1.0, 1.0, 1.0), Spread(3.0, 2.0, 4.0)] == [each.update_seconds for each in found]
    assert [Spread(0.25, 0.25, 0.25), Spread(0.325, 0.25, 0.4)] == [each.share for each in found]
    assert [Spread(1.0, 1.0, 1.0), Spread(0.45, 0.4, 0.5)] == [each.ratio for each in found]


def test_a_pass_has_the_routers_own_losses() -> None:
    """A loss of the router is part of the pass, as in training: one that is NaN makes the gradient of the gate NaN."""
    one = config("router=relu", "balance=none")
    candidate = optimizer._Candidate(one, "cpu")
    for layer in moe_layers(candidate.model):
        layer.router.get_buffer("l1").fill_(torch.nan)
    candidate.run_pass(random_tokens(one, 0, "cpu"))
    for layer in moe_layers(candidate.model):
        assert all(param.grad is not None and param.grad.isnan().any() for param in layer.router.parameters())


def test_the_table_is_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heading and table within 80 columns, also for a thousand experts."""
    times = {"pass 0": [0.3, 0.4], "update 0": [0.1, 10.0]}
    benchmark = measured(monkeypatch, times, config("expert=1"))
    wide = replace(benchmark.results[0], experts=1024, top_k=16, period=4)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(optimizer_table(replace(benchmark, results=[wide])))
    lines = [*optimizer_heading(benchmark), *console.export_text().splitlines()]
    assert max(map(len, lines)) <= 80
    assert ["1024", "16", "4"] == lines[-1].split()[:3]


@pytest.mark.parametrize(
    ("words", "periods"), [(["expert=4"], [1]), (["expert=16", "k=2"], [2, 1]), (["expert=1"], [1])]
)
def test_updates_in_every_step_are_timed_too(words: list[str], periods: list[int]) -> None:
    """Where the experts have a longer period; the configurations are equal in all else."""
    found = every_step_too(config(*words))
    assert periods == [optimizer.expert_period(each) for each in found]
    assert 1 == len({replace(each, optim=config().optim) for each in found})


@pytest.mark.parametrize("optim", ["muon", "adamw"])
def test_command_line(optim: str) -> None:
    """A real measurement: positive times, shares below 1, and 1 for the ratio of the first to itself."""
    words: list[Any] = ["bench", "optimizer", *TINY, f"optim={optim}", "--experts", "1,8", "--seconds", "0", "--json"]
    result = CliRunner().invoke(app, words)
    assert 0 == result.exit_code, result.output
    found = json.loads(result.stdout)
    assert [(optim, 1), (optim, 8)] == [(each["optimizer"], each["experts"]) for each in found]
    assert all(each["pass_seconds"] > 0 and 0 < each["share"] < 1 for each in found)
    assert 1.0 == found[0]["ratio"]


def test_other_models_are_refused() -> None:
    """One line names the model."""
    result = CliRunner().invoke(app, ["bench", "optimizer", "model=lstm"])
    assert (2, "error: model=lstm: moe bench optimizer times the GPT. Leave it out.") == (
        result.exit_code,
        result.stderr.strip().splitlines()[-1],
    )
