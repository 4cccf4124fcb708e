"""Runs of very many records: read one after the other, thinned as they are read."""

import json
import math
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_cli.metrics import ESTIMATES
from moe_cli.report.curves import thinned_curves
from moe_cli.report.expert_usage import expert_load, read_expert_usage
from moe_cli.report.long_format import load_curves
from moe_cli.runs.curves import ThinnedCurve, validation_curve
from moe_cli.runs.folder import Run
from tests.report.folders import complete

NUM_RECORDS = 10_000
MANY_BYTES = 4_000_000


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose every step was recorded and evaluated."""
    run = complete(tmp_path_factory.mktemp("outputs"), 1.7, expert=8)
    with open(run.path / "metrics.jsonl", "w") as file:
        for step in range(NUM_RECORDS):
            record = {
                "step": step,
                "tokens": 8 * step,
                "lr": 0.1,
                **dict.fromkeys(ESTIMATES.values(), 2 + math.sin(step)),
            }
            file.write(json.dumps(record) + "\n")
    with open(run.path / "routing.jsonl", "w") as file:
        for step in range(NUM_RECORDS):
            file.write(
                json.dumps({"step": step, "layer": 0, "tokens_per_expert": [step, 1, 2, 3], "choices": [[0, 1]] * 8})
                + "\n"
            )
    return run


@given(values=st.lists(st.floats(-100, 100), min_size=1, max_size=300), most=st.integers(8, 40))
def test_a_thinned_curve_keeps_its_ends_and_its_extremes(values: list[float], most: int) -> None:
    """Never more points than allowed, every one as it was recorded, in the order of the steps."""
    curve = ThinnedCurve(most)
    for step, value in enumerate(values):
        curve.add(step, value)
    steps = [int(step) for step in curve.points]
    assert len(steps) <= most
    assert sorted(steps) == steps
    assert [values[step] for step in steps] == [value for value, _ in curve.points.values()]
    assert (0, len(values) - 1) == (steps[0], steps[-1])
    kept = [values[step] for step in steps]
    assert (min(values), max(values)) == (min(kept), max(kept))


def test_few_points_are_all_kept() -> None:
    """The later of two values of one step counts, and values that are not finite stay."""
    curve = ThinnedCurve()
    for step, value in ((1, 2.0), (2, math.nan), (1, 3.0)):
        curve.add(step, value, "x")
    assert ["(3.0, 'x')", "(nan, 'x')"] == list(map(str, curve.points.values()))


@pytest.mark.parametrize(
    "look", [validation_curve, lambda run: thinned_curves(run, ["lr"]), read_expert_usage, expert_load]
)
def test_displays_of_many_records_take_little_memory(run: Run, look: Callable[[Run], Any]) -> None:
    """The curve of `runs show`, those of the page, and the load of the experts: a fraction of what all records take."""
    tracemalloc.start()
    try:
        look(run)
        assert MANY_BYTES > tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_displays_reach_to_the_last_record(run: Run) -> None:
    """Displays reach to the last record, and the validation curve begins at the first."""
    points = validation_curve(run).points
    assert (0, NUM_RECORDS - 1) == (points[0][0], points[-1][0])
    assert NUM_RECORDS - 1 == thinned_curves(run, ["lr"])["lr"][-1].step == read_expert_usage(run).layers[0].step


def test_few_records_are_drawn_as_they_are(tmp_path: Path) -> None:
    """`thinned_curves` of a short run equal `load_curves`."""
    run = complete(tmp_path, 1.7)
    (run.path / "metrics.jsonl").write_text(
        "".join(f'{{"step": {step}, "tokens": {step}, "lr": {step / 7}}}\n' for step in range(50))
    )
    drawn = [(point.step, point.tokens, point.value) for point in thinned_curves(run, ["lr"])["lr"]]
    assert drawn == list(load_curves(run)[["step", "tokens", "value"]].itertuples(index=False, name=None))


def test_no_more_points_are_held_than_asked_for() -> None:
    """However long a curve is, it holds at most `most` points after each one that is added, and its ends and extremes."""
    curve, held = ThinnedCurve(64), 0
    for step in range(5000):
        curve.add(step, {1234: -9.0, 2345: 9.0}.get(step, step % 7))
        held = max(held, len(curve.points))
    assert held <= 64
    assert {0, 4999, 1234, 2345} <= set(curve.points)
