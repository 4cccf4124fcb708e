"""Verdicts without a baseline: every configuration against the one of the lowest loss."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from moe_cli.report.intervals import Estimate, paired_difference
from moe_cli.report.significance import BETTER, INCONCLUSIVE, ERROR_RATE, WORSE, Paired, holm, more_seeds, paired

# All pairs of more configurations are not compared.
MAX_CONFIGURATIONS = 100

Scores = Mapping[int, float]


@dataclass(frozen=True)
class Difference:
    """One configuration against another: relative difference with its interval, what it is based on, and what it shows."""

    estimate: Estimate
    sample: Paired
    verdict: str
    more_seeds: int | None


def compare_with_first(groups: Sequence[Sequence[Scores]]) -> tuple[list[list[Difference | None]], int]:
    """Compares the members of each group, the lowest first, with the first one, by the scores of their seeds.

    The first was chosen because it is the lowest, so the comparisons with it are not the only ones that were made: Holm's
    procedure is applied to all pairs within the groups. The probability of one false verdict among all pairs is then at
    most 5 %, and so is that among the pairs with whichever member is the lowest.

    Returns:
        A difference for each member (None for the first, and where no seed is shared), and the number of pairs tested.
    """
    pairs, adjusted = _all_pairs(groups)
    found: list[list[Difference | None]] = [[None] * len(group) for group in groups]
    for (index, one, other), sample in pairs.items():
        estimate = paired_difference(groups[index][other], groups[index][one])
        if one == 0 and estimate is not None:
            decided = adjusted.get((index, one, other), 1.0) < ERROR_RATE
            verdict = (BETTER if sample.mean < 0 else WORSE) if decided else INCONCLUSIVE
            more = None if decided else more_seeds(sample, max(1, len(adjusted)))
            found[index][other] = Difference(estimate, sample, verdict, more)
    return found, len(adjusted)


def decided_pairs(groups: Sequence[Sequence[Scores]]) -> tuple[set[tuple[int, int, int]], int]:
    """The pairs (group, one member, a later one) that differ, allowing for all pairs, and how many pairs were tested."""
    _, adjusted = _all_pairs(groups)
    return {place for place, p_value in adjusted.items() if p_value < ERROR_RATE}, len(adjusted)


def _all_pairs(
    groups: Sequence[Sequence[Scores]],
) -> tuple[dict[tuple[int, int, int], Paired], dict[tuple[int, int, int], float]]:
    """The paired differences of all pairs within the groups, and their adjusted p-values where there are several seeds."""
    pairs = {
        (index, one, other): sample
        for index, group in enumerate(groups) if len(group) <= MAX_CONFIGURATIONS
        for one, other in combinations(range(len(group)), 2)
        if (sample := paired(group[other], group[one])) is not None
    }  # fmt: skip
    tested = {place: p for place, sample in pairs.items() if (p := sample.p_value) is not None}
    return pairs, dict(zip(tested, holm(list(tested.values())), strict=True))
