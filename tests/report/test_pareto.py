"""The Pareto front against the sentence that defines it, whatever the order of the rows."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_cli.report.aggregate import aggregate_seeds
from moe_cli.report.load import rows_below
from moe_cli.report.pareto import as_cost, on_front, tolerance
from tests.report.folders import complete

# Loss, FLOPs, seconds per token, memory.
FACTORS = (1.0, 1.02, 1.10, 1.10)
# Steps below and above the tolerances, so that chains of nearly equal values are frequent.
steps = st.integers(0, 6).map(lambda step: 1.06**step)
points_of_rows = st.lists(
    st.tuples(st.integers(1, 3).map(float), steps.map(lambda x: x ** (1 / 4)), st.none() | steps, st.none() | steps),
    min_size=1,
    max_size=7,
)
Point = tuple[float | None, ...]


def beats(one: Point, other: Point, factors: tuple[float, ...] = FACTORS) -> bool:
    """The sentence of the README, respect by respect."""
    places = range(len(factors))
    known = [place for place in places if one[place] is not None and other[place] is not None]
    exact = [place for place in places if factors[place] == 1]

    def ratio(place: int) -> float:
        return (one[place] or math.nan) / (other[place] or math.nan)

    if any(ratio(place) < 1 for place in exact):
        return all(ratio(place) <= factors[place] for place in known)
    same_known = all((one[place] is None) == (other[place] is None) for place in places)
    no_worse = all(ratio(place) <= 1 for place in known)
    return same_known and no_worse and any(ratio(place) * factors[place] < 1 for place in known if place not in exact)


@settings(max_examples=500)
@given(points_of_rows, st.randoms(use_true_random=False))
def test_front_equals_its_sentence_in_any_order(points: list[Point], random: Any) -> None:
    """A point is on the front if and only if no other point beats it; some point is, and order has no effect."""
    front = on_front(points, FACTORS)
    expected = [not any(beats(other, point) for other in points) for point in points]
    assert expected == front
    assert any(front)
    order = list(range(len(points)))
    random.shuffle(order)
    assert [front[place] for place in order] == on_front([points[place] for place in order], FACTORS)


@given(st.lists(st.tuples(steps, steps, steps), min_size=1, max_size=8))
def test_front_without_an_exact_respect_is_never_empty(points: list[Point]) -> None:
    """Three respects with tolerances, where each value is a little worse than the next in a ring, keep a front."""
    factors = (1.10, 1.10, 1.10)
    front = on_front(points, factors)
    assert any(front)
    assert [not any(beats(other, point, factors) for other in points) for point in points] == front


def test_ring_of_tolerances_is_not_empty() -> None:
    """Points that each give 5 % in two respects for 11 % in the third would beat each other in a ring if pairs decided."""
    low, high = 1.0, 1.11
    ring = [(1.0, low, 1.05, high), (1.0, high, low, 1.05), (1.0, 1.05, high, low)]
    assert [True] * 3 == on_front(ring, (1.0, 1.10, 1.10, 1.10))


def test_noise_does_not_keep_a_row_on_the_front() -> None:
    """A lower loss at 5 % less speed and 4 % more memory dominates; at 15 % less speed, 20 % more memory or FLOPs it does not."""
    base = (1.8, 6e6, 1 / 20_000, 5e8)
    for one, expected in (
        ((1.7, 6e6, 1 / 19_000, 5.2e8), False),
        ((1.7, 6e6, 1 / 17_000, 5e8), True),
        ((1.7, 6e6, 1 / 20_000, 6e8), True),
        ((1.7, 7e6, 1 / 20_000, 5e8), True),
        ((1.8, 6e6, 1 / 30_000, 5e8), False),
        ((1.8, 6e6, 1 / 21_000, 5e8), True),
        ((1.7, None, None, None), False),
    ):
        assert expected == on_front([base, one], FACTORS)[0], one
    assert [True, True] == on_front([base, base], FACTORS)
    assert [] == on_front([], FACTORS)


def test_values_to_maximise_are_inverted() -> None:
    """Tokens per second become seconds per token; a speed of 0 takes for ever."""
    assert (0.5, math.inf, None, 3.0) == (as_cost(2.0, 1), as_cost(0.0, 1), as_cost(None, 1), as_cost(3.0, -1))
    assert (1.10, 1.0) == (tolerance("tokens_per_second"), tolerance("val_bpb"))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_marks_of_the_table_are_tested_against_all_rows(tmp_path: Path, order: tuple[int, ...]) -> None:
    """A row that only a row off the front beats is off the front too: speeds of 9 % steps, and the lowest loss the slowest."""
    rows = [(1.70, 10_000.0), (1.75, 10_900.0), (1.80, 11_800.0)]
    for place in order:
        val_bpb, speed = rows[place]
        complete(tmp_path, val_bpb, "sweep", {"tokens_per_second": speed, "params": 1}, expert=2 + place, k=1)
    marks = {row["val_bpb"]: row["pareto"] for row in aggregate_seeds(rows_below(tmp_path)).configurations}
    assert {1.70: True, 1.75: False, 1.80: False} == marks
