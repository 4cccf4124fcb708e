"""Verdicts on differences over a few seeds: better, worse or inconclusive; paired t-tests with Holm's correction."""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

from moe_cli.report.intervals import (
    CONFIDENCE,
    Estimate,
    half_width,
    paired_difference,
    paired_differences,
    t_cdf,
    t_quantile,
)

BETTER, WORSE, INCONCLUSIVE = "better", "worse", "inconclusive"
ERROR_RATE = 1 - CONFIDENCE
POWER = 0.8
# All pairs of more configurations are not compared.
MAX_CONFIGURATIONS = 100
# A difference that needs more seeds does not matter.
MAX_SEEDS = 1000
# Of the integral in `power_of_test`.
MAX_SPREAD, SIMPSON_STEPS = 6.0, 200
Scores = Mapping[int, float]


@dataclass(frozen=True)
class PairedSample:
    """Relative differences to a baseline over shared seeds: number of seeds, mean, standard deviation.

    Negative is better.

    The deviation is None for a single seed.
    """

    seeds: int
    mean: float
    deviation: float | None

    @property
    def p_value(self) -> float | None:
        """Returns the p-value of the two-sided paired t-test against a mean of 0; None for one seed."""
        if self.deviation is None:
            return None
        if self.deviation == 0:
            return 1.0 if self.mean == 0 else 0.0
        return 2 * t_cdf(-abs(self.mean) / self.deviation * math.sqrt(self.seeds), self.seeds - 1)

    def half_width(self, error_rate: float = ERROR_RATE) -> float | None:
        """Returns half the width of the interval of the mean with this error rate; None for one seed."""
        return None if self.deviation is None else half_width(self.deviation, self.seeds, 1 - error_rate)


def paired(values: Mapping[int, float], baseline: Mapping[int, float]) -> PairedSample | None:
    """Returns the paired differences of two configurations; None without a shared seed, or if a baseline is 0."""
    differences = paired_differences(values, baseline)
    return sample_of(differences) if differences else None


def sample_of(values: Sequence[float]) -> PairedSample:
    """Returns the sample of at least one value, such as a difference, for each seed."""
    seeds = len(values)
    mean = math.fsum(values) / seeds
    if seeds == 1:
        return PairedSample(1, mean, None)
    # Rounding can leave a nonzero spread of equal values.
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (seeds - 1))
    return PairedSample(seeds, mean, spread if spread > 1e-12 else 0.0)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusts p-values of several comparisons: below 5 %, the chance of any false one among all is below 5 %.

    Holm's step-down procedure (Scand. J. Statist. 6, 1979, 65-70) is valid for any dependence of the comparisons, such
    as with one baseline, and never weaker than Bonferroni's.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def verdicts(differences: Sequence[PairedSample], error_rate: float = ERROR_RATE) -> list[str]:
    """Returns better, worse or inconclusive for each comparison with one baseline, corrected for their number."""
    tested = [index for index, difference in enumerate(differences) if difference.p_value is not None]
    adjusted = dict(zip(tested, holm([differences[index].p_value or 0.0 for index in tested]), strict=True))
    return [
        INCONCLUSIVE if adjusted.get(index, 1.0) >= error_rate else BETTER if difference.mean < 0 else WORSE
        for index, difference in enumerate(differences)
    ]


def additional_seeds_needed(
    difference: PairedSample, comparisons: int = 1, error_rate: float = ERROR_RATE
) -> int | None:
    """Returns the number of further seeds that find the difference in four of five cases, if the estimate is true.

    The total is the least n with n >= ((t(1 - a / 2) + t(0.8)) s / d)^2, t with n - 1 degrees of freedom, a =
    `error_rate` / `comparisons` (the usual power calculation, e.g. Cohen, Statistical Power Analysis, 1988, ch. 2).
    None means that the spread is not known (one seed), or that more than a thousand seeds would be needed. The result
    is at least 1, because the present seeds were not sufficient.
    """
    if difference.deviation is None or difference.mean == 0:
        return None
    ratio = difference.deviation / abs(difference.mean)

    def is_enough(seeds: int) -> bool:
        return _detectable_effect(seeds, error_rate / comparisons) * ratio <= math.sqrt(seeds)

    if not is_enough(MAX_SEEDS):
        return None
    low, high = 2, 2
    while not is_enough(high):  # quantiles of few degrees of freedom are quick
        low, high = high + 1, min(2 * high, MAX_SEEDS)
    total = bisect_left(range(high), True, low, key=is_enough)
    return max(1, total - difference.seeds)


@cache
def _detectable_effect(seeds: int, error_rate: float) -> float:
    """Returns the difference, in standard errors, that a test with this many seeds finds with probability POWER."""
    df = seeds - 1
    return t_quantile(1 - error_rate / 2, df) + t_quantile(POWER, df)


def power_of_test(distance: float, seeds: int, error_rate: float) -> float:
    """Returns the probability that a t-test finds a mean beyond a limit, on the side on which it lies.

    P(T > t) for a noncentral T is the mean of Phi(distance - t V) over V = sqrt(chi^2 / df), here by Simpson's rule.

    Args:
        distance: from the limit, in true standard errors of the mean.
        error_rate: that of a two-sided interval, half of it on each side.
    """
    df = seeds - 1
    limit = t_quantile(1 - error_rate / 2, df)
    low, high = max(0.0, 1 - MAX_SPREAD / math.sqrt(df)), 1 + MAX_SPREAD / math.sqrt(df)
    scale = math.log(2) + df / 2 * math.log(df / 2) - math.lgamma(df / 2)

    def mass(u: float) -> float:
        # v = low + (high - low) u^2: with one degree of freedom the mass is in a narrow range above 0.
        v = low + (high - low) * u * u
        density = math.exp(scale + (df - 1) * math.log(v) - df * v * v / 2) if v > 0 else 0.0
        return 2 * (high - low) * u * density * 0.5 * math.erfc((limit * v - distance) / math.sqrt(2))

    inner = (mass(index / SIMPSON_STEPS) * (4 if index % 2 else 2) for index in range(1, SIMPSON_STEPS))
    return min(1.0, (mass(1.0) + math.fsum(inner)) / 3 / SIMPSON_STEPS)


@dataclass(frozen=True)
class Difference:
    """A comparison of two configurations: the relative difference with its interval, its sample, and its verdict."""

    estimate: Estimate
    sample: PairedSample
    verdict: str
    more_seeds: int | None


def compare_with_first(
    groups: Sequence[Sequence[Scores]], error_rate: float = ERROR_RATE, next_error_rate: float = ERROR_RATE
) -> tuple[list[list[Difference | None]], int]:
    """Compares the members of each group, the lowest first, with the first one, by the scores of their seeds.

    The first was chosen because it is the lowest, so the comparisons with it are not the only ones that were made.
    Therefore Holm's procedure is applied to all pairs within the groups. The probability of one false verdict among all
    pairs is then at most `error_rate`. The same bound holds for the pairs with whichever member is the lowest. Verdicts
    and intervals are at `error_rate`, and the additional seeds are for a look at `next_error_rate`.

    Returns:
        A difference for each member (None for the first, and if no seed is shared), and the number of pairs tested.
    """
    pairs, adjusted = _all_pairs(groups)
    found: list[list[Difference | None]] = [[None] * len(group) for group in groups]
    for (index, one, other), sample in pairs.items():
        estimate = paired_difference(groups[index][other], groups[index][one], 1 - error_rate)
        if one == 0 and estimate is not None:
            decided = adjusted.get((index, one, other), 1.0) < error_rate
            verdict = (BETTER if sample.mean < 0 else WORSE) if decided else INCONCLUSIVE
            more = None if decided else additional_seeds_needed(sample, max(1, len(adjusted)), next_error_rate)
            found[index][other] = Difference(estimate, sample, verdict, more)
    return found, len(adjusted)


def decided_pairs(groups: Sequence[Sequence[Scores]], error_rate: float) -> tuple[set[tuple[int, int, int]], int]:
    """Returns the pairs (group, member, later member) that differ, corrected for all pairs, and the number tested."""
    _, adjusted = _all_pairs(groups)
    return {place for place, p_value in adjusted.items() if p_value < error_rate}, len(adjusted)


def _all_pairs(
    groups: Sequence[Sequence[Scores]],
) -> tuple[dict[tuple[int, int, int], PairedSample], dict[tuple[int, int, int], float]]:
    """Returns the paired differences of all pairs within the groups, with adjusted p-values for several seeds."""
    pairs = {
        (index, one, other): sample
        for index, group in enumerate(groups)
        if len(group) <= MAX_CONFIGURATIONS
        for one, other in combinations(range(len(group)), 2)
        if (sample := paired(group[other], group[one])) is not None
    }
    tested = {place: p for place, sample in pairs.items() if (p := sample.p_value) is not None}
    return pairs, dict(zip(tested, holm(list(tested.values())), strict=True))
