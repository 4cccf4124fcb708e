"""Predicates and verdicts: identities with the statistics of the report, and with fits of numpy."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_cli.claims.power import detectable_distance, needed_seeds
from moe_cli.claims.predicates import Crossing, Equal, Order, SameArgmin, Scale, Trend, r_squared, slope
from moe_cli.claims.records import CANNOT_TELL, CONTRADICTED, HOLDS, Region
from moe_cli.claims.verdict import combine, decide, judge, more_seeds
from moe_cli.config.expressions import parse_expression
from moe_cli.decisions.sequential import equality_p_value
from moe_cli.report.significance import BETTER, INCONCLUSIVE, WORSE, paired, sample_of, verdicts
from tests.claims.planted import Planted

A, B, ALL = map(parse_expression, ("expert == 8", "expert == 1", "true"))
LOSSES = st.lists(st.floats(1.0, 4.0), min_size=2, max_size=6)


@given(LOSSES, LOSSES)
def test_an_order_without_a_margin_is_the_verdict_of_the_report(values: list[float], others: list[float]) -> None:
    """Better, worse and inconclusive of one comparison are holds, contradicted and cannot tell."""
    first, second = dict(enumerate(values)), dict(enumerate(others))
    sample = paired(first, second)
    if sample is None or sample.p_value is None:
        return
    order = Order("order", Scale("val_loss", True, 0.0, 0.01), A, B, False)
    found = judge([order], [order.find(Planted({A.text: first, B.text: second}))])
    expected = {BETTER: HOLDS, WORSE: CONTRADICTED, INCONCLUSIVE: CANNOT_TELL}[verdicts([sample])[0]]
    assert expected == found.verdict


@given(LOSSES, st.floats(0.01, 1.0))
def test_equality_is_that_of_the_two_one_sided_tests(values: list[float], margin: float) -> None:
    """The p-value of a region with two limits is that of the decision's test of equality."""
    sample = sample_of([value - 2 for value in values])
    assert equality_p_value(sample, margin) == pytest.approx(Region(-margin, margin).p_inside(sample), abs=1e-12)


@given(LOSSES, st.floats(-1.0, 1.0))
def test_a_verdict_is_the_side_of_the_interval(values: list[float], limit: float) -> None:
    """A part holds exactly if its 95 % interval is wholly inside, and is contradicted exactly if wholly outside."""
    sample = sample_of([value - 2 for value in values])
    region, half = Region(low=limit), sample.half_width()
    assert half is not None
    if sample.deviation == 0 or abs(abs(sample.mean - limit) - half) < 1e-9:
        return
    expected = HOLDS if sample.mean - half > limit else CONTRADICTED if sample.mean + half < limit else CANNOT_TELL
    assert [expected] == decide([(region.p_inside(sample), region.p_outside(sample))])


@given(st.lists(st.floats(-5, 5), min_size=3, max_size=8, unique=True), st.integers(0, 1000))
def test_fits_are_those_of_numpy(x: list[float], seed: int) -> None:
    """Slope and R^2 of a linear fit."""
    if np.std(x) < 1e-3:
        return
    y = np.random.default_rng(seed).normal(size=len(x))
    assert np.polyfit(x, y, 1)[0] == pytest.approx(slope(x, list(y)), abs=1e-6)
    assert np.corrcoef(x, y)[0, 1] ** 2 == pytest.approx(r_squared(x, list(y)), abs=1e-6)


def test_r_squared_without_variation_is_zero() -> None:
    """Neither equal sizes nor equal losses explain anything."""
    assert 0 == r_squared([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) == r_squared([1.0, 2.0, 3.0], [2.0, 2.0, 2.0])


def test_a_trend_is_the_change_for_each_doubling() -> None:
    """A loss that falls by 2 % with each doubling has this slope, whichever seeds are missing elsewhere."""
    series = {4.0 * 2**n: {0: 3 * 0.98**n, 1: 2 * 0.98**n, 2 + n: 9.0} for n in range(4)}
    trend = Trend("trend", Scale("val_loss", True, 0.0, 0.01), "expert", ALL, False)
    (test,) = trend.find(Planted(series={ALL.text: series})).tests
    assert test.sample is not None
    assert (2, pytest.approx(math.log(0.98))) == (test.sample.seeds, test.sample.mean)


def test_the_better_direction_is_that_of_the_metric() -> None:
    """Of an accuracy, the claimed side is above; of a loss, below; a negative margin moves the limit beyond 0."""
    assert Region(low=0.01) == Scale("val_accuracy", False, 0.01, 0.1).beyond(True)
    assert Region(high=0.005) == Scale("val_loss", True, -0.005, 0.1).beyond(False)
    crossing = Crossing("crossing", Scale("val_accuracy", False, 0.0, 0.1), "train.steps", A, B)
    series = {
        A.text: {1.0: {0: 0.9, 1: 0.8}, 2.0: {0: 0.1, 1: 0.15}},
        B.text: {1.0: {0: 0.5, 1: 0.5}, 2.0: {0: 0.5, 1: 0.5}},
    }
    first, last = crossing.find(Planted(series=series)).tests
    assert (Region(low=0.0), Region(high=0.0)) == (first.region, last.region)
    means = [test.sample.mean if test.sample else None for test in (first, last)]
    assert means == [pytest.approx(0.35), pytest.approx(-0.375)]


def test_the_value_that_is_shown_is_the_best_common_one() -> None:
    """Of three values, the middle one is within the margin everywhere; its worst comparison is shown."""
    losses = {A.text: {1.0: 2.2, 2.0: 2.0, 4.0: 2.1}, B.text: {1.0: 2.3, 2.0: 2.0, 4.0: 1.998}}
    noise = {2.0: (0.0, 0.0002, 0.0001)}
    series = {
        text: {
            place: {seed: loss + noise.get(place, (0,) * 3)[seed] for seed in range(3)} for place, loss in row.items()
        }
        for text, row in losses.items()
    }
    predicate = SameArgmin("same", Scale("val_loss", True, 0.01, 0.01), "k", (A, B))
    found = judge([predicate], [predicate.find(Planted(series=series))])
    assert HOLDS == found.verdict
    assert "same: k=2 against 4, expert == 1" == found.parts[0].finding.tests[0].label


def test_a_claim_holds_only_with_all_its_parts() -> None:
    """One contradicted part contradicts it; one undecided part leaves it undecided."""
    assert HOLDS == combine([HOLDS, HOLDS])
    assert CANNOT_TELL == combine([HOLDS, CANNOT_TELL])
    assert CONTRADICTED == combine([HOLDS, CANNOT_TELL, CONTRADICTED])


def test_more_parts_need_smaller_p_values() -> None:
    """A p-value that decides one part alone does not decide two such parts."""
    assert [HOLDS] == decide([(0.02, 0.98)])
    assert [CANNOT_TELL, CANNOT_TELL] == decide([(0.02, 0.98)] * 2)
    assert [HOLDS, HOLDS] == decide([(0.02, 0.98), (0.001, 0.999)])


@pytest.mark.parametrize(("distance", "success"), [(0.2, 0.8), (1.0, 0.95), (3.0, 0.9), (20.0, 0.8)])
def test_needed_seeds_are_the_least_that_detect_a_distance(distance: float, success: float) -> None:
    """With them the distance is detectable, and with one fewer it is not."""
    seeds = needed_seeds(distance, 0.05, success)
    assert seeds is not None
    assert detectable_distance(seeds, 0.05, success) <= distance * (1 + 1e-6)
    assert seeds == 2 or detectable_distance(seeds - 1, 0.05, success) >= distance * (1 - 1e-6)


def test_an_undecided_part_says_how_many_seeds_would_decide() -> None:
    """The number falls with the distance of the mean from the limit; equality asks for the nearer limit."""
    equal = Equal("equal", Scale("val_loss", False, 0.1, 0.05), A, B)

    def more(mean: float) -> int | None:
        values = {0: 2 + mean - 0.05, 1: 2 + mean + 0.05, 2: 2 + mean}
        return (
            judge([equal], [equal.find(Planted({A.text: values, B.text: dict.fromkeys(range(3), 2.0)}))])
            .parts[0]
            .more_seeds
        )

    near, middle = more(0.09) or 0, more(0.05) or 0
    assert near > middle > 0


def test_further_seeds_are_those_of_the_next_look() -> None:
    """A stricter next look needs more of them, and so does a value that is chosen among several."""
    values = {seed: 2 + 0.02 + (-0.1, 0.1, 0.0, 0.05)[seed] for seed in range(4)}
    order = Order("order", Scale("val_loss", False, 0.0, 0.05), A, B, True)
    finding = order.find(Planted({A.text: values, B.text: dict.fromkeys(range(4), 2.0)}))
    same, later = (judge([order], [finding], 0.05, rate).parts[0].more_seeds for rate in (None, 0.01))
    assert same is not None
    assert later is not None
    assert later > same
    chosen = more_seeds(replace(finding, comparisons=5), 1, 0.05)
    assert chosen is not None
    assert chosen == more_seeds(finding, 1, 0.01) == later
    flat = {place: dict.fromkeys(range(2), 2.0) for place in (1.0, 2.0, 4.0)}
    same_argmin = SameArgmin("same", Scale("val_loss", True, 0.01, 0.01), "k", (A, B))
    assert 3 == same_argmin.find(Planted(series={A.text: flat, B.text: flat})).comparisons
