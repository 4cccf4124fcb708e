"""Configurations at equal training time: closed forms on curves written by hand."""

from pathlib import Path
from typing import Any

import pytest

from moe_cli.report import aggregate
from moe_cli.report.aggregate import aggregate_seeds
from moe_cli.report.configuration import Configuration
from moe_cli.report.equal_time import (
    FLOPS,
    TOKENS,
    TimedCurves,
    compare_at_equal_time,
    estimates_over_time,
    interpolate,
    shortest_times,
)
from moe_cli.report.html.page_data import Source, page_content
from moe_cli.report.intervals import mean_and_interval
from moe_cli.report.load import rows_below
from moe_cli.report.render.tables import csv_text, json_text, markdown_text, report_lines
from moe_cli.report.table import ReportQuery, build_table
from moe_cli.runs.folder import Run
from tests.report.folders import complete
from tests.report.test_long_format import write_lines

MACHINE = "host, processor, 2 cores"
# Seconds of training -> bits per byte of a run that trains for 100 s.
DENSE = {50: 2.4, 100: 2.0}
# Half as fast: after 100 s its estimate is 1.9, half-way between 2.1 and 1.7.
SLOW = {60: 2.1, 140: 1.7, 200: 1.6}
FAST = {25: 2.4, 50: 2.1}


def train(outputs: Path, curve: dict[int, float], machine: str | None = MACHINE, **settings: Any) -> Run:
    """Writes a complete run with an estimate after each number of seconds."""
    results = {"seconds": float(max(curve)), "machine": machine}
    run = complete(outputs, min(curve.values()), results=results, **settings)
    records = [
        {"step": place, "seconds": seconds, "val/loss": 0.7 * value, "val/bpb": value}
        for place, (seconds, value) in enumerate(curve.items(), 1)
    ]
    write_lines(run, "metrics.jsonl", {"step": 1, "train/loss": 3.0, "seconds": 1.0}, *records)
    return run


def row(outputs: Path, expert: int, **options: Any) -> Configuration:
    rows = aggregate_seeds(rows_below(outputs), **options).configurations
    return next(each for each in rows if each.expert == expert)


def footer(outputs: Path) -> list[str]:
    lines = [line.plain for line in report_lines(build_table(rows_below(outputs), ReportQuery()), "runs", 200)]
    return [line for line in lines if line.startswith("equal time")]


def test_the_loss_at_the_end_of_the_baseline(tmp_path: Path) -> None:
    """A slower run is read on its own curve where the dense run of its seed ended, with the interval of the pairs."""
    for seed, (dense, slow) in enumerate([(2.0, 1.7), (2.1, 1.7), (1.9, 1.65)]):
        train(tmp_path, {**DENSE, 100: dense}, expert=1, seed=seed)
        train(tmp_path, {**SLOW, 140: slow}, expert=8, seed=seed)
    expected = mean_and_interval([1.9 / 2.0 - 1, 1.9 / 2.1 - 1, 1.875 / 1.9 - 1])
    found = row(tmp_path, 8)
    assert expected.mean == pytest.approx(found["equal_time"])
    assert expected.half_width == pytest.approx(found["equal_time_interval"])
    assert 3 == found["equal_time_seeds"]
    assert (0.0, None) == (row(tmp_path, 1)["equal_time"], row(tmp_path, 1)["equal_time_interval"])
    assert ["equal time (training time of the dense model, 1m 40s): 1 undecided, paired by seed"] == footer(tmp_path)


def test_equal_curves_tie(tmp_path: Path) -> None:
    """A run with the curve of its baseline differs by nothing."""
    for seed in range(2):
        train(tmp_path, DENSE, expert=1, seed=seed)
        train(tmp_path, DENSE, expert=8, seed=seed)
    assert (0.0, 0.0) == (row(tmp_path, 8)["equal_time"], row(tmp_path, 8)["equal_time_interval"])
    assert footer(tmp_path)[0].endswith("1 undecided, paired by seed")


@pytest.mark.parametrize(
    ("curve", "machine", "reason"),
    [
        (FAST, MACHINE, "ended earlier"),
        ({120: 1.9, 200: 1.6}, MACHINE, "not evaluated by then"),
        (SLOW, "other, processor, 2 cores", "another machine"),
        (SLOW, None, "another machine"),
    ],
)
def test_a_run_without_a_value(tmp_path: Path, curve: dict[int, float], machine: str | None, reason: str) -> None:
    """It is left out, the line says why, and the other seed counts alone."""
    train(tmp_path, DENSE, expert=1, seed=0)
    train(tmp_path, curve, machine, expert=8, seed=0)
    assert row(tmp_path, 8)["equal_time"] is None
    assert [f"equal time: no value for 1 run (1 {reason})"] == footer(tmp_path)
    train(tmp_path, DENSE, expert=1, seed=1)
    train(tmp_path, SLOW, expert=8, seed=1)
    assert 1.9 / 2.0 - 1 == pytest.approx(row(tmp_path, 8)["equal_time"])
    assert row(tmp_path, 8)["equal_time_interval"] is None
    assert footer(tmp_path)[0].endswith(f"1 ahead, one seed; no value for 1 run (1 {reason})")


def test_unknown_machines_are_not_one(tmp_path: Path) -> None:
    """Runs that were continued on another machine have no machine, and so no common time."""
    train(tmp_path, DENSE, None, expert=1)
    train(tmp_path, SLOW, None, expert=8)
    assert ["equal time: no value for 1 run (1 another machine)"] == footer(tmp_path)


def test_runs_without_curves_have_no_line(tmp_path: Path) -> None:
    """Runs without evaluations have neither value nor line nor column."""
    complete(tmp_path, 2.0, expert=1)
    complete(tmp_path, 1.8, expert=8)
    assert row(tmp_path, 8)["equal_time"] is None
    assert [] == footer(tmp_path)
    assert "equal time" not in markdown_text(build_table(rows_below(tmp_path), ReportQuery()))


def test_without_a_baseline_the_shortest_run_decides(tmp_path: Path) -> None:
    """Differences are to the lowest, at the end of the shortest run of the seed on the lowest's machine."""
    for seed in range(2):
        train(tmp_path, SLOW, expert=8, seed=seed)
        train(tmp_path, DENSE, expert=4, seed=seed)
        train(tmp_path, {10: 2.9}, "other", expert=2, seed=seed)
    assert (2.0 / 1.9 - 1, 0.0) == pytest.approx((row(tmp_path, 4)["equal_time"], row(tmp_path, 8)["equal_time"]))
    assert row(tmp_path, 2)["equal_time"] is None
    expected = "equal time (training time of the shortest run, 1m 40s): 1 behind, paired by seed"
    assert [f"{expected}; no value for 2 runs (2 another machine)"] == footer(tmp_path)


def test_a_time_budget_is_equal_time(tmp_path: Path) -> None:
    """With train.minutes the final results are compared, whatever the last step took; there is no second column."""
    train(tmp_path, DENSE, expert=1, train__minutes=1.5)
    train(tmp_path, {50: 2.2, 99: 1.9}, expert=8, train__minutes=1.5)
    assert row(tmp_path, 8)["vs_baseline"] == row(tmp_path, 8)["equal_time"] == pytest.approx(1.9 / 2.0 - 1)
    assert ["equal time: all runs trained for the same time (train.minutes)"] == footer(tmp_path)
    assert "equal time" not in markdown_text(build_table(rows_below(tmp_path), ReportQuery()))


def test_a_resumed_run_repeats_no_time(tmp_path: Path) -> None:
    """Of two records of one step the later counts, because a resumed run repeats the steps after its checkpoint."""
    run = train(tmp_path, SLOW, expert=8)
    records = [
        {"step": step, "seconds": seconds, "val/bpb": 2.0 - step} for step, seconds in ((2, 30), (1, 10), (2, 25))
    ]
    write_lines(run, "metrics.jsonl", *records, {"step": 3, "val/bpb": 1.0}, {"step": 4, "seconds": 50})
    assert [(10.0, 1.0), (25.0, 0.0)] == estimates_over_time(str(run.path), "val/bpb")


def test_curves_over_tokens_and_flops(tmp_path: Path) -> None:
    """At equal FLOPs a model of twice the cost per token is read at half its tokens; at equal tokens both at the end."""
    halves = {"tokens": 1000, "steps": 100, "machine": None}
    for expert, curve, flops in ((1, {50: 2.2, 100: 2.0}, 5.0), (8, {50: 2.1, 100: 1.9}, 10.0)):
        run = complete(tmp_path, 1.0, "s", {**halves, "flops_per_token": flops}, expert=expert)
        write_lines(run, "metrics.jsonl", *({"step": s, "seconds": s, "val/bpb": v} for s, v in curve.items()))
    dense, sparse = sorted(rows_below(tmp_path), key=lambda row: row.expert or 0)
    found = {}
    for axis in (TOKENS, FLOPS):
        curves = TimedCurves(axis)
        ends = shortest_times([dense, sparse], {0: dense}, curves)
        found[axis] = compare_at_equal_time([sparse], {0: dense}, curves, ends)
    assert [1000.0, 5000.0] == [result.seconds for result in found.values() if result]
    differences = [result.difference for result in found.values() if result]
    assert [pytest.approx(1.9 / 2.0 - 1), pytest.approx(2.1 / 2.0 - 1)] == differences


def test_interpolation_is_within_the_curve_only() -> None:
    """Evaluations are met exactly; between them the line holds; before the first and after the last is nothing."""
    points = [(1.0, 4.0), (3.0, 2.0), (3.0, 2.5), (4.0, 1.5)]
    assert [None, 4.0, 3.0, 2.5, 2.0, 1.5, None] == [interpolate(points, x) for x in (0.9, 1, 2, 3, 3.5, 4, 4.1)]
    assert interpolate([], 1.0) is None


def test_every_form_of_a_report_has_the_column(tmp_path: Path) -> None:
    """Terminal, Markdown, csv, json and page; at 80 columns the column stays, because others are dropped before it."""
    for seed in range(2):
        train(tmp_path, DENSE, expert=1, seed=seed)
        train(tmp_path, SLOW, expert=8, seed=seed)
    table = build_table(rows_below(tmp_path), ReportQuery())
    lines = [line.plain for line in report_lines(table, "runs", 80)]
    heading = next(line for line in lines if "bits/byte" in line)
    assert "equal time" in heading
    assert max(map(len, lines)) <= 80
    assert "-5.0 % +- <0.1" in markdown_text(table).replace("0.0", "<0.1")
    for text in (csv_text(table), json_text(table)):
        assert "equal_time_interval" in text
    assert "-5.0 %" in markdown_text(build_table(rows_below(tmp_path), ReportQuery(by_run=True)))
    page = page_content(table, Source(rows_below(tmp_path), [], "runs", "moe"), [])
    place = [column["name"] for column in page["columns"]].index("equal_time")
    assert {"0", "-5.0 % +- <0.1"} == {entry["cells"][place].replace("0.0", "<0.1") for entry in page["rows"]}
    assert any(line.startswith("equal time (training time of the dense model") for line in page["below"])
    assert [-0.05] * 2 == pytest.approx([one.equal_time for one in table.aggregate.single_runs(row(tmp_path, 8))])


def test_many_runs_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit no curve is read, and the line says so."""
    train(tmp_path, DENSE, expert=1)
    train(tmp_path, SLOW, expert=8)
    monkeypatch.setattr(aggregate, "MAX_RUNS", 1)
    assert row(tmp_path, 8)["equal_time"] is None
    assert ["equal time: not computed for more than 1000 runs"] == footer(tmp_path)
