"""Verdicts on differences measured on a few seeds: better, worse or cannot tell, by paired t-tests with Holm's correction."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from moe_cli.report.intervals import CONFIDENCE, paired_differences, t_cdf, t_quantile

BETTER, WORSE, INCONCLUSIVE = "better", "worse", "inconclusive"
ERROR_RATE = 1 - CONFIDENCE
POWER = 0.8
# So many seeds nobody runs: the difference is nothing that matters.
MOST_SEEDS = 1000


@dataclass(frozen=True)
class Paired:
    """Relative differences to a baseline over shared seeds, negative is better: how many, mean, standard deviation.

    The deviation is None for a single seed.
    """

    seeds: int
    mean: float
    deviation: float | None

    @property
    def p_value(self) -> float | None:
        """P of a mean at least so far from 0 when there is no difference: the two-sided paired t-test. None for one seed."""
        if self.deviation is None:
            return None
        if self.deviation == 0:
            return 1.0 if self.mean == 0 else 0.0
        return 2 * t_cdf(-abs(self.mean) / self.deviation * math.sqrt(self.seeds), self.seeds - 1)


def paired(values: Mapping[int, float], baseline: Mapping[int, float]) -> Paired | None:
    """The paired differences of two configurations; None without a shared seed, or where a baseline of 0 leaves one undefined."""
    differences = paired_differences(values, baseline)
    if not differences:
        return None
    seeds = len(differences)
    mean = math.fsum(differences) / seeds
    if seeds == 1:
        return Paired(1, mean, None)
    # Of equal differences rounding leaves a spread that is none.
    spread = math.sqrt(math.fsum((each - mean) ** 2 for each in differences) / (seeds - 1))
    return Paired(seeds, mean, spread if spread > 1e-12 else 0.0)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values of several comparisons, so that below 5 % the chance of any false one among all is below 5 %.

    Holm's step-down procedure (Scand. J. Statist. 6, 1979, 65-70): valid however the comparisons depend on each other,
    as those with one baseline do, and never weaker than Bonferroni's.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def verdicts(differences: Sequence[Paired]) -> list[str]:
    """Better, worse or cannot tell for each of several comparisons with one baseline, allowing for their number."""
    tested = [index for index, each in enumerate(differences) if each.p_value is not None]
    adjusted = dict(zip(tested, holm([differences[index].p_value or 0.0 for index in tested]), strict=True))
    return [
        INCONCLUSIVE if adjusted.get(index, 1.0) >= ERROR_RATE else BETTER if each.mean < 0 else WORSE
        for index, each in enumerate(differences)
    ]


def more_seeds(difference: Paired, comparisons: int = 1) -> int | None:
    """How many seeds more would tell the difference from 0 in four of five cases, if it and its spread are as measured.

    The least n with n >= ((t(1 - a / 2) + t(0.8)) s / d)^2, t with n - 1 degrees of freedom, a = 5 % / comparisons (the
    usual power calculation, e.g. Cohen, Statistical Power Analysis, 1988, ch. 2). None when the spread is not known (one
    seed), or when more than a thousand seeds would be needed. At least 1: it is asked where these seeds did not do.
    """
    if difference.deviation is None or difference.mean == 0:
        return None
    ratio = difference.deviation / abs(difference.mean)
    low, high = 2, MOST_SEEDS
    if _least(high, comparisons) * ratio > math.sqrt(high):
        return None
    while low < high:
        middle = (low + high) // 2
        if _least(middle, comparisons) * ratio <= math.sqrt(middle):
            high = middle
        else:
            low = middle + 1
    return max(1, low - difference.seeds)


@cache
def _least(seeds: int, comparisons: int) -> float:
    """How many standard errors a difference must be for a test of that many seeds to find it with probability POWER."""
    df = seeds - 1
    return t_quantile(1 - ERROR_RATE / comparisons / 2, df) + t_quantile(POWER, df)
