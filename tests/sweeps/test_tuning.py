"""Learning rates tuned for each configuration of a sweep: equal trials, then a comparison at the best of each."""

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_cli import sweep
from moe_cli.cli.app import app
from moe_cli.config.schema import RunConfig
from moe_cli.report.learning_rate import MULTIPLIERS, best_multiplier, next_multiplier, steps_to_edge
from moe_cli.report.load import rows_below
from moe_cli.report.sweep_record import read_record
from moe_cli.sweeps import run_sweep
from tests.runner import CliRunner
from tests.sweeps.fake import FakePool
from tests.sweeps.test_run_sweep import TINY

WORDS = ["data=text", "data.path=words.txt", *TINY]
Started = list[tuple[str, int, float, int]]


def loss(config: RunConfig, best: dict[int, float]) -> float:
    """Returns a loss with its optimum over the rate where `best` says, in powers of two from 0.02."""
    return 2.0 + 0.1 * (math.log2(config.optim.lr / 0.02) - best[config.expert]) ** 2 + 0.001 * config.seed


@pytest.fixture
def simulate(tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Started]:
    """Runs a tuned sweep of a dense and a sparse configuration; returns what was started: folder, expert, lr, seed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.txt").write_bytes(text_file.read_bytes())

    def run(
        best: dict[int, float], fails: Callable[[RunConfig], bool] = lambda config: False, **options: Any
    ) -> Started:
        def results(config: RunConfig) -> dict[str, Any] | None:
            return None if fails(config) else {"val_bpb": loss(config, best)}

        pools = []

        def make(*arguments: object) -> FakePool:
            pools.append(FakePool(results))
            return pools[-1]

        monkeypatch.setattr(run_sweep, "make_pool", make)
        sweep(WORDS, outputs=tmp_path / "o", name="s", **{"seeds": 2, "tune": "optim.lr", **options})
        started = [run for pool in pools for run in pool.started]
        configs = [(run.path.parent.name, run.config()) for run in started]
        return [(folder, config.expert, config.optim.lr, config.seed) for folder, config in configs]

    return run


def test_each_configuration_has_equal_trials_and_is_compared_at_its_best_rate(
    simulate: Callable[..., Started], tmp_path: Path
) -> None:
    """Trials go on from the edge for all together; the comparison has other seeds; nothing is run twice."""
    started = simulate({1: 2.0, 4: -1.2})
    trials = [(expert, lr) for folder, expert, lr, _ in started if folder == "s-tune"]
    assert Counter({1: 5, 4: 5}) == Counter(expert for expert, _ in trials)
    assert {0.01, 0.02, 0.04, 0.08, 0.16} == {lr for expert, lr in trials if expert == 1}
    assert [(1, 0.08, 0), (4, 0.01, 0), (1, 0.08, 1), (4, 0.01, 1)] == [
        values for folder, *values in started if folder == "s" for values in [tuple(values)]
    ]
    assert {1000} == {seed for folder, _, _, seed in started if folder == "s-tune"}
    rates = read_record(tmp_path / "o" / "s")["tuning"]["rates"]
    assert [("expert=1", 0.08, 1), ("expert=4", 0.01, 2)] == [
        (rate["label"], rate["value"], rate["steps_to_edge"]) for rate in rates
    ]
    assert [] == simulate({1: 2.0, 4: -1.2})
    assert 2 == len(simulate({1: 2.0, 4: -1.2}, seeds=3))
    assert 1 == len(read_record(tmp_path / "o" / "s-tune")["commands"])


def test_a_rate_that_fails_is_no_best_rate_and_an_endless_slope_ends(simulate: Callable[..., Started]) -> None:
    """Failed trials count as trials. After the last extension the best rate may be at the edge, and the record says so."""
    started = simulate({1: -99.0, 4: 99.0}, fails=lambda config: config.optim.lr > 0.03)
    assert Counter({1: 6, 4: 6}) == Counter(expert for folder, expert, _, _ in started if folder == "s-tune")
    assert {(1, 0.00125), (4, 0.02)} == {(expert, lr) for folder, expert, lr, _ in started if folder == "s"}


def test_a_configuration_without_any_result_stops_the_sweep(simulate: Callable[..., Started], tmp_path: Path) -> None:
    """If every rate of a configuration fails, the error says which, and the comparison does not start."""
    with pytest.raises(Exception, match=r"no learning rate of expert=4 gave a result \(tried: 0.01, 0.02, 0.04\)"):
        simulate({1: 0.0, 4: 0.0}, fails=lambda config: config.expert == 4)
    assert not (tmp_path / "o" / "s").exists()


def test_the_report_compares_tuned_configurations_and_names_the_edge(
    simulate: Callable[..., Started], tmp_path: Path
) -> None:
    """The dense model is the baseline although its rate differs, and trials are not in the report of the sweep."""
    simulate({1: 1.0, 4: 99.0})
    assert 4 == len(rows_below(tmp_path / "o" / "s"))
    shown = moe(tmp_path, "report", "s")
    assert shown.partition("\n")[2] == moe(tmp_path, "report").partition("\n")[2]
    command = moe(tmp_path, "recommend", "s").splitlines()[-1]
    assert "optim.lr=0.02 " in command
    assert command.endswith("--name s --tune optim.lr")
    assert "baseline   expert=1 (dense)\n" in shown
    assert "optim.lr was tuned for each of 2 configurations: 6 trials each" in shown
    assert "at the edge of what was tried, so that a better rate may lie beyond: expert=4 (0.32)" in shown
    assert "not tuned" not in shown


def test_the_report_says_that_a_rate_was_not_tuned(simulate: Callable[..., Started], tmp_path: Path) -> None:
    """Without tuning, the one rate of all configurations is marked."""
    simulate({1: 0.0, 4: 0.0}, tune=None)
    assert "lr 0.02 (not tuned)" in moe(tmp_path, "report", "s")


def moe(folder: Path, *words: str) -> str:
    return CliRunner().invoke(app, [*words, "--outputs", str(folder / "o")], env={"COLUMNS": "300"}).stdout


@given(st.floats(-4, 4), st.integers(0, 8))
def test_the_rule_brackets_an_optimum_within_reach(optimum: float, extensions: int) -> None:
    """Over a valley, each new trial is new, and after enough of them the best lies inside, within a factor of two."""
    losses: dict[float, float | None] = {each: (math.log2(each) - optimum) ** 2 for each in MULTIPLIERS}
    for _ in range(extensions):
        new = next_multiplier(losses)
        assert new not in losses
        losses[new] = (math.log2(new) - optimum) ** 2
    best = best_multiplier(losses)
    assert best is not None
    if extensions > abs(optimum):
        assert steps_to_edge(losses) > 0
        assert abs(math.log2(best) - optimum) <= 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["expert=1,8", "--tune", "k"], "--tune can be optim.lr, not: k."),
        (["expert=1,8", "optim.lr=0.01,0.02", "--tune", "optim.lr"], "optim.lr has several values (0.01, 0.02)"),
        (["learning_rate", "--tune", "optim.lr"], "--tune optim.lr is for sweeps"),
    ],
)
def test_wrong_tuning_is_refused(words: list[str], message: str, tmp_path: Path) -> None:
    """Other settings, a rate that varies, and searches are errors before anything runs."""
    result = CliRunner().invoke(app, ["sweep", *words, "--outputs", str(tmp_path)])
    assert (2, True, []) == (result.exit_code, message in result.stderr, list(tmp_path.iterdir()))


def test_a_sweep_file_can_ask_for_tuning_and_the_plan_prices_it(text_file: Path, tmp_path: Path) -> None:
    """`tune: optim.lr` in a file; the dry run lists the trials and the comparison, with the sum and the most."""
    file = tmp_path / "mine.yaml"
    words = ["sweep", str(file), "data=text", f"data.path={text_file}", "--dry-run", "--outputs", str(tmp_path)]
    file.write_text("# Which?\ngrid: {expert: [1, 8]}\nbudget: {steps: 10}\nseeds: 2\ntune: optim.lr\n")
    shown = CliRunner().invoke(app, words).stdout
    assert "mine-tune: Which optim.lr for each of 2 configurations of mine? 3 trials each" in shown
    assert "trials and comparison: 10 runs" in shown
    assert "at most 16 runs" in shown
    file.write_text("# Which?\ngrid: {expert: [1, 8]}\ntune: k\n")
    result = CliRunner().invoke(app, words)
    assert "tune can be optim.lr, not: k." in result.stderr
