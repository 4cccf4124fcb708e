"""Student's t against closed forms and scipy; intervals and paired differences against scipy and by hand."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from moe_cli.report.intervals import mean_and_interval, paired_difference, t_cdf, t_quantile

reals = st.floats(-100, 100)


@pytest.mark.parametrize("p", [0.6, 0.75, 0.9, 0.975, 0.995])
def test_quantile_has_closed_forms_at_one_and_two_degrees(p: float) -> None:
    """One degree of freedom is Cauchy, two an algebraic function."""
    assert t_quantile(p, 1) == pytest.approx(math.tan(math.pi * (p - 0.5)), rel=1e-12)
    assert t_quantile(p, 2) == pytest.approx((2 * p - 1) / math.sqrt(2 * p * (1 - p)), rel=1e-12)


@given(st.floats(-50, 50))
@example(1e-8)
def test_distribution_has_closed_forms_at_one_and_two_degrees(t: float) -> None:
    """One degree of freedom is Cauchy, two an algebraic function."""
    assert t_cdf(t, 1) == pytest.approx(0.5 + math.atan(t) / math.pi, abs=1e-15)
    assert t_cdf(t, 2) == pytest.approx(0.5 + t / (2 * math.sqrt(2 + t * t)), abs=1e-15)


@given(st.floats(0.001, 0.999), st.integers(1, 200))
def test_quantile_equals_scipy(p: float, df: int) -> None:
    """The quantile is scipy's for any whole number of degrees of freedom."""
    assert t_quantile(p, df) == pytest.approx(stats.t.ppf(p, df), rel=1e-9, abs=1e-9)


@given(st.floats(-50, 50), st.integers(1, 200))
def test_distribution_equals_scipy(t: float, df: int) -> None:
    """The distribution is scipy's, which is itself 2e-9 off near 0 at one degree of freedom."""
    assert t_cdf(t, df) == pytest.approx(stats.t.cdf(t, df), abs=1e-8)


@given(st.floats(0.001, 0.999), st.integers(1, 50))
def test_quantile_undoes_the_distribution(p: float, df: int) -> None:
    """The distribution at the quantile of p is p."""
    assert t_cdf(t_quantile(p, df), df) == pytest.approx(p, abs=1e-12)


@given(st.lists(reals, min_size=2, max_size=20), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_interval_equals_scipy(values: list[float], confidence: float) -> None:
    """Mean and half-width are those of scipy's t-interval."""
    estimate = mean_and_interval(values, confidence)
    spread = float(stats.sem(values)) if len(set(values)) > 1 else 0.0
    assert estimate.mean == pytest.approx(sum(values) / len(values), abs=1e-9)
    expected = spread * stats.t.ppf((1 + confidence) / 2, len(values) - 1)
    assert estimate.half_width == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_interval_of_two_values_by_hand() -> None:
    """For 1 and 3 the mean is 2, the standard error 1, and t of one degree at 0.975 is tan(0.475 pi)."""
    assert mean_and_interval([1.0, 3.0]).half_width == pytest.approx(math.tan(0.475 * math.pi), rel=1e-12)


def test_one_value_has_no_interval() -> None:
    """Nothing is known about the spread of a single seed."""
    assert mean_and_interval([1.5]).half_width is None
    assert mean_and_interval([1.5]).mean == 1.5


def test_paired_difference_by_hand() -> None:
    """Only shared seeds count, each against the baseline of its own seed."""
    estimate = paired_difference({0: 0.9, 1: 1.6, 7: 100.0}, {0: 1.0, 1: 2.0, 2: 5.0})
    assert estimate is not None
    assert estimate.mean == pytest.approx((-0.1 - 0.2) / 2)
    assert estimate.half_width == pytest.approx(0.05 * math.tan(0.475 * math.pi))


@given(st.dictionaries(st.integers(0, 9), st.floats(0.1, 10), min_size=2), st.floats(-0.5, 0.5))
def test_pairing_takes_out_what_seeds_do_to_both(baseline: dict[int, float], change: float) -> None:
    """A model better by one factor at every seed has that difference, without spread."""
    estimate = paired_difference({seed: (1 + change) * value for seed, value in baseline.items()}, baseline)
    assert estimate is not None
    assert estimate.mean == pytest.approx(change, abs=1e-12)
    assert estimate.half_width == pytest.approx(0, abs=1e-12)


def test_no_shared_seed_means_no_difference() -> None:
    """Different seeds are not compared."""
    assert paired_difference({0: 1.0}, {1: 1.0}) is None
