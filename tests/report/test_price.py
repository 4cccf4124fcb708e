"""Price tags: closed forms, the published table of a project, coverage of the interval, other machines, bad input."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import Result

from moe_cli.cli.app import app
from moe_cli.report.aggregate import aggregate_seeds
from moe_cli.report.bench_file import SETTINGS as FILE_SETTINGS
from moe_cli.report.bench_file import read_bench_files
from moe_cli.report.configuration import SPEEDUP_KEYS, Configuration
from moe_cli.report.html.page_data import Source, page_content
from moe_cli.report.load import rows_below
from moe_cli.report.price import Pricing, Ratio, compute_multiplier, geometric_mean, multiply
from moe_cli.report.recommend.recommendation import make_recommendation
from moe_cli.report.recommend.text import format_recommendation
from moe_cli.report.render.tables import csv_text, json_text, markdown_text, report_lines
from moe_cli.report.table import ReportQuery, build_table
from tests.report.folders import complete
from tests.runner import CliRunner

MACHINE = "host, processor, 2 cores"
# Models of four widths, and their published speedups over the model with 64 experts. Law: 1.6 + a / C^0.0941. Source:
# https://github.com/marin-community/marin/issues/5387
PUBLISHED = """\
expert,k,model.d_model,val_loss,tokens_per_second
64,4,512,3.8104,407378
128,4,512,3.7910,380640
256,4,512,3.7801,349528
64,4,768,3.4339,274431
128,4,768,3.4059,264680
256,4,768,3.3851,241107
64,4,1024,3.1605,176935
128,4,1024,3.1359,170963
256,4,1024,3.1138,160459
64,4,1280,3.0065,128435
128,4,1280,2.9784,124474
"""
SPEEDUPS = (1.000, 1.026, 0.994, 1.000, 1.136, 1.170, 1.000, 1.144, 1.252, 1.000, 1.201)


def report(*words: object) -> Result:
    return CliRunner().invoke(app, ["report", *map(str, words)], env={"COLUMNS": "300"})


def train(outputs: Path, loss: float, speed: float = 1000.0, machine: str | None = MACHINE, **settings: Any) -> None:
    complete(outputs, loss, results={"tokens_per_second": speed, "machine": machine}, **settings)


def dense_at_three_budgets(outputs: Path, sparse: tuple[float, ...] = (1.85, 1.86, 1.87)) -> None:
    """Writes dense runs at 1, 1.5 and 2 times the tokens, and sparse runs with 0.8 times their speed."""
    for seed, loss in enumerate(sparse):
        for steps, dense in ((500, 2.0), (750, 1.9), (1000, 1.8)):
            train(outputs, dense + 0.01 * seed, expert=1, seed=seed, train__steps=steps)
        train(outputs, loss, speed=800.0, expert=8, seed=seed)


def row(outputs: Path, expert: int, **options: Any) -> Configuration:
    rows = aggregate_seeds(rows_below(outputs), **options).configurations
    return next(each for each in rows if each.expert == expert and each.settings["train.steps"] == 500)


def test_the_multiplier_is_interpolated_between_the_budgets_of_the_dense_model(tmp_path: Path) -> None:
    """Log loss is linear in log tokens between two budgets; equal shifts of all seeds leave no interval but a point."""
    dense_at_three_budgets(tmp_path, (1.85, 1.86, 1.87))
    place = [math.log((1.9 + s) / (1.85 + s)) / math.log((1.9 + s) / (1.8 + s)) for s in (0.0, 0.01, 0.02)]
    expected = [1.5 * (2 / 1.5) ** part for part in place]
    found = row(tmp_path, 8)
    assert found.price is not None
    assert (1.0, 1.5, 2.0) == found.price.budgets
    assert min(expected) <= float(str(found["compute_multiplier"])) <= max(expected)
    low, high = found.price.multiplier.low, found.price.multiplier.high
    assert low is not None
    assert high is not None
    assert 1.5 < low < high < 2.0
    assert 0.8 == pytest.approx(found["relative_speed"])
    assert 0.8 * float(str(found["compute_multiplier"])) == pytest.approx(found["effective_speedup"])
    assert 0.8 * low == pytest.approx(found["effective_speedup_low"])


def test_a_model_with_the_loss_of_a_budget_has_its_multiple(tmp_path: Path) -> None:
    """The multiplier of the dense loss at 1.5 times the tokens is 1.5, and that of the baseline itself is 1."""
    dense_at_three_budgets(tmp_path, (1.9, 1.91, 1.92))
    assert 1.5 == pytest.approx(row(tmp_path, 8)["compute_multiplier"])
    assert (1.0, 1.0) == (row(tmp_path, 1)["compute_multiplier"], row(tmp_path, 1)["effective_speedup"])


@pytest.mark.parametrize(
    ("sparse", "expected"), [((1.7, 1.71, 1.72), (None, 2.0, None)), ((2.1, 2.11, 2.12), (None, None, 1.0))]
)
def test_outside_of_the_budgets_there_is_a_bound(
    tmp_path: Path, sparse: tuple[float, ...], expected: tuple[float | None, ...]
) -> None:
    """A lower loss than at twice the tokens is worth more than 2; a higher one than at equal tokens less than 1."""
    dense_at_three_budgets(tmp_path, sparse)
    found = row(tmp_path, 8)
    assert expected == tuple(found[name] for name in SPEEDUP_KEYS[:3])
    speedup = tuple(found[name] for name in SPEEDUP_KEYS[6:])
    assert speedup == tuple(None if limit is None else pytest.approx(0.8 * limit) for limit in expected)


def test_one_budget_gives_only_a_bound_and_one_seed_nothing(tmp_path: Path) -> None:
    """The curve of a run is not a run of another budget, whose learning rate would have fallen."""
    train(tmp_path, 2.0, expert=1, seed=0)
    train(tmp_path, 1.9, expert=8, seed=0)
    assert [None] * 3 == [row(tmp_path, 8)[name] for name in SPEEDUP_KEYS[:3]]
    assert "compute x" not in markdown_text(build_table(rows_below(tmp_path), ReportQuery()))
    train(tmp_path, 2.01, expert=1, seed=1)
    train(tmp_path, 1.91, expert=8, seed=1)
    assert [None, 1.0, None] == [row(tmp_path, 8)[name] for name in SPEEDUP_KEYS[:3]]
    lines = [line.plain for line in report_lines(build_table(rows_below(tmp_path), ReportQuery()), "runs", 500)]
    assert any("a bound, because it has runs at one budget only" in line for line in lines)


def test_budgets_of_other_data_or_settings_do_not_count(tmp_path: Path) -> None:
    """Dense runs of another width or text at twice the tokens are no points of the curve."""
    for seed in range(2):
        train(tmp_path, 2.0, expert=1, seed=seed)
        train(tmp_path, 1.9 + 0.01 * seed, expert=8, seed=seed)
        train(tmp_path, 1.5, expert=1, seed=seed, train__steps=1000, model__d_model=48)
        complete(tmp_path, 1.5, results={"corpus_sha256": "cd" * 32}, expert=1, seed=seed, train__steps=1000)
    price = row(tmp_path, 8).price
    assert price is not None
    assert (1.0,) == price.budgets


def test_speeds_of_two_machines_have_no_ratio(tmp_path: Path) -> None:
    """The multiplier stays; relative speed and speedup are unknown, and the caption says why."""
    for seed in range(2):
        train(tmp_path, 2.0 + 0.01 * seed, expert=1, seed=seed)
        train(tmp_path, 1.9 + 0.01 * seed, machine="other", expert=8, seed=seed)
    assert [1.0, None, None] == [
        row(tmp_path, 8)[f"{name}_low"] for name in ("compute_multiplier", "relative_speed", "effective_speedup")
    ]
    lines = [line.plain for line in report_lines(build_table(rows_below(tmp_path), ReportQuery()), "runs", 500)]
    assert any("no relative speed for 1 row (another machine)" in line for line in lines)


def test_the_published_speedups_follow_from_the_published_losses(tmp_path: Path) -> None:
    """A table of runs, the law and the ratio of speeds give all seven published speedups to three digits."""
    table = tmp_path / "published.csv"
    table.write_text(PUBLISHED)
    words = (table, "--baseline", "expert=64", "--loss-law", "1.6,0.0941", "--format", "json", "--outputs", tmp_path)
    result = report(*words)
    assert 0 == result.exit_code, result.output
    found = {(row["model.d_model"], row["expert"]): row for row in json.loads(result.stdout)}
    expected = {
        (int(width), int(expert)): speedup
        for (expert, _, width, *_), speedup in zip(
            (line.split(",") for line in PUBLISHED.splitlines()[1:]), SPEEDUPS, strict=True
        )
    }
    assert expected == {key: round(row["effective_speedup"], 3) for key, row in found.items()}
    assert {None} == {row["effective_speedup_low"] for row in found.values()}


def test_a_law_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    """The irreducible loss must be below every measured one."""
    dense_at_three_budgets(tmp_path)
    result = report("--outputs", tmp_path, "--loss-law", "1.9,0.1")
    assert 2 == result.exit_code
    assert "the irreducible loss must be below every measured loss" in result.stderr


@pytest.mark.parametrize("text", ["1.6", "1.6,0.1,2", "a,b", "-1,0.1", "1.6,0", "nan,1", "1.6,inf"])
def test_a_law_is_two_numbers(text: str) -> None:
    """Other texts are errors of the user."""
    result = report(f"--loss-law={text}")
    assert 2 == result.exit_code
    assert f"--loss-law '{text}' must be two numbers" in result.stderr


def test_the_interval_covers_the_multiplier() -> None:
    """Of 400 simulated sweeps with three seeds, 95 % of the intervals contain the true multiplier."""
    found = coverage(400, seeds=3, multiplier=1.3, noise=0.004)
    assert 0.92 <= found.multiplier <= 0.98
    assert 0.92 <= found.speedup <= 0.99


@pytest.mark.results
@pytest.mark.parametrize("multiplier", [0.8, 1.1, 1.3, 1.5, 1.8, 2.5])
@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_measured_coverage(multiplier: float, seeds: int) -> None:
    """At least 94 % of 4,000 intervals contain the true multiplier and speedup, whatever the noise of a seed."""
    for noise in (0.001, 0.004, 0.016):
        found = coverage(4000, seeds, multiplier, noise)
        print(f"multiplier {multiplier} seeds {seeds} noise {noise}: {found}")
        assert found.multiplier >= 0.94
        assert found.speedup >= 0.94


@dataclass(frozen=True)
class Coverage:
    """Shares of simulated sweeps whose interval contains the true value, and which have two limits."""

    multiplier: float
    speedup: float
    two_limits: float


def coverage(trials: int, seeds: int, multiplier: float, noise: float, exponent: float = 0.1) -> Coverage:
    """Simulates sweeps with dense runs at 1, 1.5 and 2 times the tokens, and a relative speed of 0.8.

    The dense loss is L_inf + a / T^exponent with L_inf at 30 % of the loss. A seed shifts all its runs alike, and each
    run has noise of its own; `noise` is relative, and that of speeds is five times as large.
    """
    rng = np.random.default_rng(seeds)
    inside = np.zeros(3)

    def losses(tokens: float, shift: Any) -> dict[int, float]:
        values = (0.6 + 1.4 * tokens**-exponent) * np.exp(shift + rng.normal(0, noise, seeds))
        return dict(enumerate(map(float, values)))

    for _ in range(trials):
        shift = rng.normal(0, noise, seeds)
        curve = {place: losses(place, shift) for place in (1.0, 1.5, 2.0)}
        found, _ = compute_multiplier(losses(multiplier, shift), curve)
        speedup = multiply(found, geometric_mean(list(0.8 * np.exp(rng.normal(0, 5 * noise, seeds)))))
        for place, (ratio, true) in enumerate(((found, multiplier), (speedup, 0.8 * multiplier))):
            inside[place] += (ratio.low or 0) <= true <= (ratio.high or math.inf)
        inside[2] += found.low is not None and found.high is not None
    return Coverage(*(inside / trials))


def test_products_of_ratios() -> None:
    """An exact factor scales; two equal intervals widen by the root of two in logarithms; unknown stays unknown."""
    interval = Ratio(2.0, 1.0, 4.0)
    assert Ratio(1.0, 0.5, 2.0) == multiply(interval, Ratio(0.5))
    wide = multiply(interval, interval)
    assert (4.0, 4 * 2 ** -math.sqrt(2), 4 * 2 ** math.sqrt(2)) == pytest.approx((wide.value, wide.low, wide.high))
    assert Ratio(None, 2.0, None) == multiply(Ratio(None, 2.0, None), Ratio(2.0, 1.0, 4.0))
    assert Ratio() == multiply(Ratio(), interval) == multiply(interval, Ratio())


def test_every_form_of_a_report_has_the_columns(tmp_path: Path) -> None:
    """Terminal, Markdown, csv, json and page, and runs one by one."""
    dense_at_three_budgets(tmp_path)
    table = build_table(rows_below(tmp_path), ReportQuery())
    lines = [line.plain for line in report_lines(table, "runs", 250)]
    heading = next(line for line in lines if "bits/byte" in line)
    assert all(name in heading for name in ("compute x", "speed x", "speedup"))
    assert any("from its runs at 1, 1.5, 2 times the tokens" in line for line in lines)
    assert max(map(len, [line.plain for line in report_lines(table, "runs", 80)])) <= 80
    assert "(1." in markdown_text(table)
    assert "effective_speedup_low" in csv_text(table)
    assert 0.8 == pytest.approx(
        next(each for each in json.loads(json_text(table)) if each["expert"] == 8)["relative_speed"]
    )
    page = page_content(table, Source(rows_below(tmp_path), [], "runs", "moe"), [])
    place = [column["name"] for column in page["columns"]].index("relative_speed")
    assert {"0.80", "1.00"} <= {entry["cells"][place] for entry in page["rows"]}
    by_run = build_table(rows_below(tmp_path), ReportQuery(by_run=True, columns=("expert", "effective_speedup")))
    assert "| 8 | 1.38 |" in markdown_text(by_run)


def test_the_recommendation_says_the_price_and_ranks_one_budget(tmp_path: Path) -> None:
    """Dense runs of other budgets are in the price tag, and are not counted as left out."""
    dense_at_three_budgets(tmp_path)
    found = make_recommendation(rows_below(tmp_path))
    assert {"expert": 8} == {"expert": found.settings["expert"]}
    assert {} == found.left_out
    text = " ".join(format_recommendation(found))
    assert "Price: for this loss the dense model needs 1.7" in text
    assert "at 0.80 times its speed, the effective speedup is 1.3" in text
    assert ": this loss is reached sooner." in text


BENCH = {
    "optimizer": "muon",
    "router": "topk",
    "d_model": 96,
    "d_ff": 288,
    "num_layers": 4,
    "context_length": 128,
    "batch_size": 16,
}


def bench_file(folder: Path, **changes: Any) -> Path:
    """Writes the output of `moe bench optimizer --json`, as far as prices need it."""
    dense = {"experts": 1, "k": None, "expert_period": 1, "pass_seconds": 3.0, "update_seconds": 1.0}
    sparse = {"experts": 8, "k": 2, "expert_period": 1, "pass_seconds": 5.0, "update_seconds": 3.0}
    path = folder / "there.json"
    path.write_text(json.dumps([{**BENCH, **dense, **changes}, {**BENCH, **sparse, **changes}]))
    return path


def test_runs_are_priced_for_another_machine(tmp_path: Path) -> None:
    """The multiplier stays; the relative speed is the ratio of the steps there, also with accumulated batches."""
    dense_at_three_budgets(tmp_path)
    settings = row(tmp_path, 8).settings
    same = {name: settings[key] for name, key in FILE_SETTINGS.items() if name not in ("experts", "k", "expert_period")}
    steps = read_bench_files([bench_file(tmp_path, **same)])
    here, there = row(tmp_path, 8), row(tmp_path, 8, pricing=Pricing(steps=steps))
    assert here["compute_multiplier"] == there["compute_multiplier"]
    assert [0.5, None] == [there["relative_speed"], there["relative_speed_low"]]
    assert 0.5 * float(str(there["compute_multiplier"])) == pytest.approx(there["effective_speedup"])
    text = " ".join(format_recommendation(make_recommendation(rows_below(tmp_path), pricing=Pricing(steps=steps))))
    assert "at 0.50 times its speed, by there.json, the effective speedup is 0.8" in text
    other = read_bench_files([bench_file(tmp_path, **{**same, "d_model": 7})])
    assert row(tmp_path, 8, pricing=Pricing(steps=other))["relative_speed"] is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file"),
        ("{", "is not valid JSON"),
        ("[]", "is not the output of moe bench optimizer"),
        ('[{"experts": 8}]', "is not the output of moe bench optimizer"),
        (
            json.dumps([{**BENCH, "experts": 8, "k": 2, "expert_period": 1, "pass_seconds": 1, "update_seconds": 1}]),
            "no time of a dense model",
        ),
    ],
)
def test_a_file_of_another_machine_that_cannot_be_used(tmp_path: Path, content: str | None, message: str) -> None:
    """The message says what to run there."""
    path = tmp_path / "there.json"
    if content is not None:
        path.write_text(content)
    for command in ("report", "recommend"):
        result = CliRunner().invoke(app, [command, "--machine", str(path)], env={"COLUMNS": "300"})
        assert 2 == result.exit_code
        assert message in result.stderr
        assert "moe bench optimizer --experts 1,8 --json" in result.stderr
