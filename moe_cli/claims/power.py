"""The power of a claim before its runs: the smallest effect that its seeds decide, and the seeds its effect needs."""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from moe_cli.claims.predicates import Predicate
from moe_cli.claims.records import Demand, Measured
from moe_cli.report.significance import ERROR_RATE, MAX_SEEDS, POWER, power_of_test

# Fewer seeds say too little about the noise: the claim's own figure is used.
MIN_SEEDS_FOR_NOISE = 3
BISECTIONS = 30


@dataclass(frozen=True)
class Power:
    """The power of one predicate.

    Attributes:
        detectable: the distance from the limit of the region that is found in four of five cases.
        distance: that of the claimed effect; None without one.
        seeds: the number of seeds.
        needed: the number of seeds that would find the claimed effect; None if more than a thousand, or without one.
        noise: the standard deviation of the statistic over seeds.
        is_measured: whether the noise is that of runs, and not the figure of the claim's file.
    """

    label: str
    unit: str
    detectable: float
    distance: float | None
    seeds: int
    needed: int | None
    noise: float
    is_measured: bool

    @property
    def is_enough(self) -> bool | None:
        """Returns whether the claimed effect can be decided; None if no effect is claimed."""
        return None if self.distance is None else self.distance >= self.detectable


def analyse(
    predicates: Sequence[Predicate], measured: Measured, seeds: int, error_rate: float = ERROR_RATE
) -> list[Power]:
    """Returns the power of each predicate with a number of seeds, at least two.

    Args:
        measured: the planned runs; the results of those that are complete say how large the noise is.
    """
    assert seeds >= 2, "one seed has no interval"
    found = []
    for predicate in predicates:
        finding = predicate.find(measured)
        spread = finding.deviation if finding.num_seeds >= MIN_SEEDS_FOR_NOISE else None
        noise = spread if spread else predicate.noise
        found.append(
            power(predicate, predicate.demand(measured), noise, seeds, error_rate / len(predicates), bool(spread))
        )
    return found


def power(
    predicate: Predicate, demand: Demand, noise: float, seeds: int, error_rate: float, is_measured: bool = False
) -> Power:
    """Returns the power of a test of one predicate at an error rate of two-sided intervals."""
    # All tests of a conjunction must succeed, so that each has its share of the failures.
    success = 1 - (1 - POWER) / demand.conjunctions
    rate = error_rate / demand.comparisons
    needed = None if demand.distance is None else needed_seeds(demand.distance / noise, rate, success)
    detectable = detectable_distance(seeds, rate, success) * noise
    return Power(predicate.label, predicate.unit, detectable, demand.distance, seeds, needed, noise, is_measured)


def detectable_distance(seeds: int, error_rate: float, success: float) -> float:
    """Returns the distance, in standard deviations over seeds, that is found with this probability."""
    low, high = 0.0, 1.0
    while power_of_test(high * math.sqrt(seeds), seeds, error_rate) < success:
        low, high = high, 2 * high
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        is_found = power_of_test(middle * math.sqrt(seeds), seeds, error_rate) >= success
        low, high = (low, middle) if is_found else (middle, high)
    return high


def needed_seeds(distance: float, error_rate: float, success: float) -> int | None:
    """Returns the least number of seeds that find a distance, in standard deviations; None if more than MAX_SEEDS."""

    def is_enough(seeds: int) -> bool:
        return power_of_test(distance * math.sqrt(seeds), seeds, error_rate) >= success

    if distance <= 0 or not is_enough(MAX_SEEDS):
        return None
    high = 2
    while not is_enough(high):
        high = min(2 * high, MAX_SEEDS)
    return bisect_left(range(high + 1), True, 2, high, key=is_enough)
