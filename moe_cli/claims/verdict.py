"""The verdict on a claim: holds, contradicted, or cannot tell here.

A part of a claim holds if the 95 % interval of its statistic lies wholly in the region of the claim, and is
contradicted if it lies wholly outside. With several parts, Holm's procedure corrects both p-values for their number.
The claim holds if all parts hold, and is contradicted if one of them is.
"""

from collections.abc import Sequence

from moe_cli.claims.predicates import Predicate
from moe_cli.claims.records import CANNOT_TELL, CONTRADICTED, HOLDS, Finding, Judgement, Part, Statistic
from moe_cli.report.significance import ERROR_RATE, PairedSample, additional_seeds_needed, holm


def judge(
    predicates: Sequence[Predicate],
    findings: Sequence[Finding],
    error_rate: float = ERROR_RATE,
    next_error_rate: float | None = None,
) -> Judgement:
    """Returns the verdict on a claim with these predicates.

    Args:
        error_rate: that of two-sided intervals, over all parts.
        next_error_rate: that of a look with further seeds; None means the same.
    """
    next_rate = error_rate if next_error_rate is None else next_error_rate
    verdicts = decide([(finding.p_holds, finding.p_contradicted) for finding in findings], error_rate)
    parts = tuple(
        Part(
            predicate,
            finding,
            verdict,
            more_seeds(finding, len(findings), next_rate) if verdict == CANNOT_TELL else None,
        )
        for predicate, finding, verdict in zip(predicates, findings, verdicts, strict=True)
    )
    return Judgement(combine(verdicts), parts)


def decide(p_values: Sequence[tuple[float, float]], error_rate: float = ERROR_RATE) -> list[str]:
    """Returns the verdict on each part from its one-sided p-values: that it holds, and that it is contradicted."""
    # An interval with a two-sided error rate has half of it on each side.
    holds, contradicted = (holm([min(1.0, 2 * pair[side]) for pair in p_values]) for side in (0, 1))
    return [
        HOLDS if p_holds < error_rate else CONTRADICTED if p_contradicted < error_rate else CANNOT_TELL
        for p_holds, p_contradicted in zip(holds, contradicted, strict=True)
    ]


def combine(verdicts: Sequence[str]) -> str:
    """Returns the verdict on a claim from those on its parts."""
    if CONTRADICTED in verdicts:
        return CONTRADICTED
    return HOLDS if all(verdict == HOLDS for verdict in verdicts) else CANNOT_TELL


def more_seeds(finding: Finding, num_parts: int, error_rate: float = ERROR_RATE) -> int | None:
    """Returns the further seeds that decide a part in four of five cases, if its means are true; None if none do."""
    needed = [_needed(test, num_parts * finding.comparisons, error_rate) for test in finding.tests]
    known = [number for number in needed if number is not None]
    return max(known) if known and len(known) == len(needed) else None


def _needed(test: Statistic, comparisons: int, error_rate: float) -> int | None:
    if test.sample is None:
        return None
    distance = abs(test.region.distance(test.sample.mean))
    return additional_seeds_needed(
        PairedSample(test.sample.seeds, distance, test.sample.deviation), comparisons, error_rate
    )
