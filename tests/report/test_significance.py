"""Verdicts against scipy, by hand and by simulation: how often intervals hold the truth, and verdicts are false."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from moe_cli.report.intervals import mean_and_interval, paired_difference
from moe_cli.report.significance import (
    BETTER,
    INCONCLUSIVE,
    WORSE,
    PairedSample,
    additional_seeds_needed,
    holm,
    paired,
    power_of_test,
    verdicts,
)

scores = st.lists(st.tuples(st.floats(1, 2), st.floats(1, 2)), min_size=2, max_size=9)


@given(scores)
def test_p_value_equals_scipys(pairs: list[tuple[float, float]]) -> None:
    """The paired t-test of relative differences is scipy's one-sample test of them."""
    values, base = (dict(enumerate(column)) for column in zip(*pairs, strict=True))
    sample = paired(values, base)
    assert sample is not None
    relative = [(value - other) / other for value, other in pairs]
    if sample.deviation and sample.deviation > 1e-6:
        assert sample.p_value == pytest.approx(stats.ttest_1samp(relative, 0).pvalue, rel=1e-6, abs=1e-12)


def test_pairs_without_spread() -> None:
    """One seed has no p-value; equal differences are certain; two equal configurations differ in nothing."""
    one = paired({0: 1.1}, {0: 1.0, 1: 2.0})
    assert one is not None
    assert (one.seeds, one.deviation, one.p_value) == (1, None, None)
    same = paired({0: 1.1, 1: 2.2}, {0: 1.0, 1: 2.0})
    assert same is not None
    assert same.p_value == 0.0
    assert PairedSample(3, 0.0, 0.0).p_value == 1.0
    assert paired({0: 1.0}, {1: 1.0}) is None


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_by_its_definition(p_values: list[float]) -> None:
    """The k-th smallest of m is multiplied by m - k + 1; none is below one before it, nor above 1."""
    adjusted = holm(p_values)
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    for rank, index in enumerate(order):
        expected = max((len(p_values) - k) * p_values[other] for k, other in enumerate(order[: rank + 1]))
        assert adjusted[index] == pytest.approx(min(1.0, expected))


def test_verdicts_allow_for_their_number() -> None:
    """An effect that is certain alone at p = 0.02 is inconclusive among five; samples of one seed do not count."""
    sure = PairedSample(3, -0.03, 0.03 * 3**0.5 / stats.t.ppf(1 - 0.01, 2))
    assert sure.p_value == pytest.approx(0.02)
    assert verdicts([sure]) == [BETTER]
    assert verdicts([PairedSample(3, 0.03, sure.deviation)]) == [WORSE]
    unsure = PairedSample(3, 0.0, 0.1)
    assert verdicts([sure, *[unsure] * 4]) == [INCONCLUSIVE] * 5
    assert verdicts([sure, *[PairedSample(1, -0.5, None)] * 4]) == [BETTER, *[INCONCLUSIVE] * 4]


@pytest.mark.parametrize("ratio", [0.3, 0.7, 1.0, 2.0, 3.3])
def test_seeds_that_would_decide_have_the_power(ratio: float) -> None:
    """The seeds asked for find the difference in four of five cases, by scipy's noncentral t; one fewer does not."""

    def power(seeds: int) -> float:
        limit = stats.t.ppf(0.975, seeds - 1)
        return float(stats.nct.sf(limit, seeds - 1, seeds**0.5 / ratio))

    more = additional_seeds_needed(PairedSample(2, -0.01, 0.01 * ratio))
    assert more is not None
    seeds = 2 + more
    assert power(seeds) == pytest.approx(0.8, abs=0.08) or (seeds == 3 and power(3) > 0.8)
    if seeds > 3:
        assert power(seeds - 2) < 0.8


def test_seeds_that_would_decide_are_not_said_without_reason() -> None:
    """Not for one seed, no difference, or one that a thousand seeds would not show; more comparisons need more."""
    assert additional_seeds_needed(PairedSample(1, -0.1, None)) is None
    assert additional_seeds_needed(PairedSample(3, 0.0, 0.1)) is None
    assert additional_seeds_needed(PairedSample(3, 1e-6, 0.1)) is None
    few, many = (
        additional_seeds_needed(PairedSample(3, 0.1, 0.2)),
        additional_seeds_needed(PairedSample(3, 0.1, 0.2), 10),
    )
    assert few is not None
    assert many is not None
    assert few < many


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_intervals_hold_the_truth_in_95_of_100_cases(seeds: int) -> None:
    """Intervals of means and of paired differences with a shared seed effect cover 95 %, within 4 standard errors."""
    draw = random.Random(seeds)
    trials, held_mean, held_difference = 3000, 0, 0
    for _ in range(trials):
        shared = [draw.gauss(0, 0.05) for _ in range(seeds)]
        base = {seed: 2.0 + shift for seed, shift in enumerate(shared)}
        values = {seed: each * (0.97 + draw.gauss(0, 0.01)) for seed, each in base.items()}
        mean, difference = mean_and_interval(list(base.values())), paired_difference(values, base)
        assert mean.half_width is not None
        assert difference is not None
        assert difference.half_width is not None
        held_mean += abs(mean.mean - 2.0) <= mean.half_width
        held_difference += abs(difference.mean + 0.03) <= difference.half_width
    error = 4 * (0.95 * 0.05 / trials) ** 0.5
    assert held_mean / trials == pytest.approx(0.95, abs=error)
    assert held_difference / trials == pytest.approx(0.95, abs=error)


def test_false_verdicts_are_rare_however_many_are_compared() -> None:
    """Eight configurations like the baseline: at most 5 % of reports call one better or worse, and half of these better."""
    draw = random.Random(0)
    reports, false, better = 1500, 0, 0
    for _ in range(reports):
        base = {seed: 2.0 + draw.gauss(0, 0.02) for seed in range(3)}
        samples = [paired({seed: 2.0 + draw.gauss(0, 0.02) for seed in base}, base) for _ in range(8)]
        found = verdicts([each for each in samples if each])
        false += {BETTER, WORSE} & {*found} != set()
        better += BETTER in found
    assert better / reports <= 0.025 + 4 * (0.025 * 0.975 / reports) ** 0.5
    assert false / reports <= 0.05 + 4 * (0.05 * 0.95 / reports) ** 0.5


@pytest.mark.parametrize("seeds", [2, 3, 5, 30, 1000])
def test_the_power_of_a_test_is_that_of_the_noncentral_t(seeds: int) -> None:
    """The probability agrees with scipy's distribution, from no distance to a large one."""
    for distance in (0.0, 1.0, 3.0, 8.0):
        for error_rate in (0.05, 0.01):
            limit = stats.t.ppf(1 - error_rate / 2, seeds - 1)
            expected = stats.nct.sf(limit, seeds - 1, distance) if distance else error_rate / 2
            assert expected == pytest.approx(power_of_test(distance, seeds, error_rate), abs=2e-4)
