"""moe bench sweep: closed forms on made-up times, and what a sweep without training is."""

import io
import json
import time
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from moe_cli.bench.spread import Spread
from moe_cli.bench.sweep import DEFAULT_OVERRIDES, SweepBenchmark, SweepRound, run_sweep_benchmark
from moe_cli.bench.tables import sweep_heading, sweep_table
from moe_cli.cli.app import app
from moe_cli.config.schema import RunConfig
from moe_cli.errors import ConfigError, MoeError
from moe_cli.runs.folder import RUNNING, Run
from moe_cli.runs.recorder import Recorder
from moe_cli.sweeps import run_sweep
from tests.cli.conftest import TINY
from tests.runner import CliRunner
from tests.sweeps.fake import FakeJob, FakePool, Results

# Four runs by two workers: 20 s of a worker per run in the first round, 30 s in the second.
MADE_UP = SweepBenchmark(["expert=8"], 4, 2, [SweepRound(40.0, 20.0, 60.0), SweepRound(60.0, 40.0, 100.0)])


class StartedPool(FakePool):
    """Its runs have worked for 5 s."""

    def start(self, run: Run) -> FakeJob:
        Recorder(run).status(RUNNING, started=time.time() - 5)
        return super().start(run)


def benchmark(monkeypatch: pytest.MonkeyPatch, results: Results, words: list[str], **options: Any) -> SweepBenchmark:
    """The benchmark of a sweep that trains nothing; its clock goes on by 10 s whenever it is asked."""
    monkeypatch.setattr(run_sweep, "make_pool", lambda *arguments: StartedPool(results))
    clock = count(0.0, 10.0)
    return run_sweep_benchmark(words, clock=lambda: next(clock), **options)


def test_times_of_made_up_rounds() -> None:
    """Runs per hour are 3600 N / wall; a worker's time is training, evaluation and the sweep's."""
    assert Spread(300.0, 240.0, 360.0) == MADE_UP.runs_per_hour
    assert Spread(25.0, 20.0, 30.0) == MADE_UP.worker_seconds
    assert Spread(7.5, 5.0, 10.0) == MADE_UP.training_seconds
    assert Spread(12.5, 10.0, 15.0) == MADE_UP.evaluation_seconds
    assert Spread(5.0, 5.0, 5.0) == MADE_UP.sweep_seconds
    assert Spread(17.5, 15.0, 20.0) == MADE_UP.overhead_seconds


def test_the_table_is_narrow() -> None:
    """Heading and table within 80 columns, with the rate first."""
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(sweep_table(MADE_UP))
    lines = console.export_text().splitlines()
    assert ["4 runs   2 at a time   2 rounds", "  expert=8"] == sweep_heading(MADE_UP)
    assert 3 == len(sweep_heading(replace(MADE_UP, settings=DEFAULT_OVERRIDES)))
    assert ["runs", "per", "hour", "300", "240", "-", "360"] == lines[1].split()
    assert max(map(len, lines)) <= 80


def test_every_round_is_a_sweep_of_its_own(monkeypatch: pytest.MonkeyPatch, text_file: Path) -> None:
    """All runs of a round train again; their times are those of their files, and the wall time is the clock's."""
    trained: list[int] = []

    def results(config: RunConfig) -> dict[str, Any]:
        trained.append(config.seed)
        return {"val_bpb": 1.0, "seconds": 3.0}

    words = ["data=text", f"data.path={text_file}", *TINY]
    found = benchmark(monkeypatch, results, words, seeds=2, jobs=1, rounds=2)
    assert [0, 0, 1, 1] == sorted(trained)
    assert (2, 1, 2) == (found.runs, found.jobs, len(found.rounds))
    assert [(10.0, 6.0)] * 2 == [(each.wall, each.training) for each in found.rounds]
    assert [10.0] * 2 == pytest.approx([each.runs for each in found.rounds], abs=1.0)


def test_a_benchmark_of_failed_runs_is_an_error(monkeypatch: pytest.MonkeyPatch, text_file: Path) -> None:
    """The run and its reason are named; other machines and searches are refused."""
    words = ["data=text", f"data.path={text_file}", *TINY]
    with pytest.raises(MoeError, match="seed=0 is failed: it could not be"):
        benchmark(monkeypatch, lambda config: None, words, seeds=2, jobs=1)
    with pytest.raises(ConfigError, match="executor=ray: the benchmark measures this machine"):
        benchmark(monkeypatch, lambda config: None, [*words, "executor=ray"])


@pytest.mark.slow
def test_command_line(text_file: Path) -> None:
    """A real sweep of two tiny runs: training takes a part of the time, and everything is positive."""
    words = ["data=text", f"data.path={text_file}", *TINY, "--seeds", "2", "-j", "1", "--rounds", "1"]
    result = CliRunner().invoke(app, ["bench", "sweep", *words, "--json"])
    assert 0 == result.exit_code, result.output
    found = json.loads(result.stdout)
    assert (2, 1, 1) == (found["runs"], found["jobs"], found["rounds"])
    parts = ("training_seconds", "evaluation_seconds", "sweep_seconds")
    assert all(found[name] > 0 for name in parts)
    assert found["worker_seconds"] == pytest.approx(sum(found[name] for name in parts))
    assert found["runs_per_hour"] == pytest.approx(3600 / found["worker_seconds"])
