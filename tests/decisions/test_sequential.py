"""Statistics of a decision: the test of equality, claims over looks, pooled noise, and prospects."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_cli.decisions.sequential import claims_at_look, equality_p_value, prospect
from moe_cli.decisions.standings import pooled_noise
from moe_cli.decisions.terms import EQUAL
from moe_cli.report.intervals import half_width
from moe_cli.report.significance import BETTER, WORSE, PairedSample


@given(
    st.integers(2, 20),
    st.floats(-0.02, 0.02),
    st.floats(1e-4, 0.02),
    st.floats(0.001, 0.03),
    st.sampled_from([0.01, 0.05]),
)
def test_equality_is_an_interval_within_the_margin(
    seeds: int, mean: float, deviation: float, margin: float, alpha: float
) -> None:
    """Two one-sided tests at a reject exactly if the interval of confidence 1 - 2 a lies within the margin."""
    p_value = equality_p_value(PairedSample(seeds, mean, deviation), margin)
    assert p_value is not None
    room = margin - abs(mean) - half_width(deviation, seeds, 1 - 2 * alpha)
    if abs(room) > 1e-12:
        assert (p_value < alpha) == (room > 0)


def test_claims_are_better_worse_equal_or_none() -> None:
    """A small certain difference is an equality; a single seed claims nothing."""
    samples = {
        "behind": PairedSample(6, -0.05, 0.001),
        "ahead": PairedSample(6, 0.05, 0.001),
        "close": PairedSample(6, 0.002, 0.001),
        "noisy": PairedSample(6, 0.002, 0.1),
        "single": PairedSample(1, 0.5, None),
    }
    expected = {"behind": BETTER, "ahead": WORSE, "close": EQUAL}
    assert expected == claims_at_look(samples, margin=0.01, alpha=0.05)


def test_given_up_pairs_count() -> None:
    """A pair that is no longer tested still takes its share of the error rate."""
    sample = {"other": PairedSample(5, -0.05, 0.05 * math.sqrt(5) / 3.0)}
    assert 0.025 < (sample["other"].p_value or 0) < 0.05
    assert {"other": BETTER} == claims_at_look(sample, margin=0.01, alpha=0.05)
    assert {} == claims_at_look(sample, margin=0.01, alpha=0.05, given_up=1)


@pytest.mark.parametrize("truth", [0.0, 0.01])
def test_claims_over_looks_keep_their_rate(truth: float) -> None:
    """Six pairs with one leader, looks after 3, 5 and 8 seeds: a wrong claim of each family in at most 5 %."""
    generator, looks, repeats = random.Random(1), (3, 5, 8), 600
    # Equality is likeliest to be claimed at the margin if the noise is small.
    noise = 0.002 if truth else 0.01
    wrong = 0
    for _ in range(repeats):
        leader = [generator.gauss(0, noise) for _ in range(looks[-1])]
        others = {name: [generator.gauss(truth, noise) for _ in leader] for name in "abcdef"}
        claims: dict[str, str] = {}
        for look in looks:
            samples = {}
            for name in others.keys() - claims.keys():
                differences = [one - other for one, other in zip(leader[:look], others[name][:look], strict=True)]
                mean = math.fsum(differences) / look
                variance = math.fsum((difference - mean) ** 2 for difference in differences) / (look - 1)
                samples[name] = PairedSample(look, mean, math.sqrt(variance))
            claims |= claims_at_look(samples, margin=0.01, alpha=0.05 / len(looks))
        wrong += any(claim == EQUAL if truth else claim != EQUAL for claim in claims.values())
    # Three standard deviations above the rate that is promised.
    assert wrong / repeats <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / repeats)


def test_pooled_noise_ignores_candidates_and_seeds() -> None:
    """Effects of candidates and of seeds leave no residual; noise is found with its degrees of freedom."""
    exact = {name: {seed: math.exp(effect + 0.1 * seed) for seed in range(4)} for name, effect in (("a", 0), ("b", 1))}
    noise = pooled_noise([exact])
    assert noise is not None
    assert noise.deviation == pytest.approx(0, abs=1e-9)
    assert noise.df == 3
    generator = random.Random(0)
    noisy = {
        name: {seed: math.exp(0.1 * seed + generator.gauss(0, 0.01)) for seed in range(20)} for name in "abcdefghijkl"
    }
    noise = pooled_noise([noisy, exact])
    assert noise is not None
    assert noise.df == 11 * 19 + 3
    assert noise.deviation == pytest.approx(0.01, rel=0.15)
    assert noise.standard_error(8) == pytest.approx(noise.deviation / 2)
    assert pooled_noise([{"a": {0: 1.0}, "b": {0: 2.0}}]) is None


@pytest.mark.parametrize("difference", [0.0, 0.004, 0.02])
def test_prospect_is_a_frequency(difference: float) -> None:
    """The prospect is the share of drawn means that the tests decide."""
    generator, spread, deviation, seeds, margin, alpha = random.Random(2), 0.004, 0.008, 9, 0.01, 0.05
    decided = 0
    for _ in range(2000):
        mean = generator.gauss(difference, spread)
        decided += bool(claims_at_look({"other": PairedSample(seeds, mean, deviation)}, margin, alpha))
    assert prospect(difference, spread, deviation, seeds, margin, alpha) == pytest.approx(decided / 2000, abs=0.04)
