"""What a difference measured on a few seeds allows to be said: better, worse, cannot tell; and what is best in no respect."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from moe_cli.report.stats import CONFIDENCE, paired_differences, t_cdf, t_quantile

BETTER, WORSE, CANNOT_TELL = "better", "worse", "cannot tell"
ERROR_RATE = 1 - CONFIDENCE
POWER = 0.8
# So many seeds nobody runs: the difference is nothing that matters.
MOST_SEEDS = 1000
# What is measured with a clock or depends on the allocator differs by so much between equal runs; FLOPs are matched to 2 %.
SAME_SPEED, SAME_MEMORY, SAME_FLOPS = 1.10, 1.10, 1.02


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
    """The paired differences of two configurations; None without a shared seed."""
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
        CANNOT_TELL if adjusted.get(index, 1.0) >= ERROR_RATE else BETTER if each.mean < 0 else WORSE
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


@dataclass(frozen=True)
class Offer:
    """What a configuration gives and takes: loss, FLOPs per token, tokens per second, bytes of memory; None: not known."""

    score: float
    flops: float | None
    speed: float | None
    memory: float | None


def dominates(one: Offer, other: Offer) -> bool:
    """Whether nothing speaks for the other: `one` is as good in all that is known of both, and better in something.

    Speed and memory within 10 % and FLOPs within 2 % count as equal.
    """
    pairs = (
        (one.flops, other.flops, SAME_FLOPS),
        (_slowness(one), _slowness(other), SAME_SPEED),
        (one.memory, other.memory, SAME_MEMORY),
    )
    known = [(a, b, same) for a, b, same in pairs if a is not None and b is not None]
    if one.score > other.score or any(a > b * same for a, b, same in known):
        return False
    return one.score < other.score or any(a * same < b for a, b, same in known)


def _slowness(offer: Offer) -> float | None:
    return 1 / offer.speed if offer.speed else None


def pareto(offers: Sequence[Offer]) -> list[int]:
    """The offers that no other one dominates, by their places, the lowest loss first."""
    order = sorted(range(len(offers)), key=lambda index: offers[index].score)
    front: list[int] = []
    for index in order:
        if not any(dominates(offers[other], offers[index]) for other in front):
            front.append(index)
    return sorted(
        (index for index in front if not any(dominates(offers[other], offers[index]) for other in front)),
        key=lambda index: offers[index].score,
    )
