"""A decision before its first run: what a budget leaves out, what it can decide, and the least budget.

The controller itself is rehearsed with drawn losses, so that the findings follow its rules.
"""

import math
import random
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from moe_cli.decisions.controller import Race, RunGroup, next_step
from moe_cli.decisions.terms import CONFIRMATION, Candidate, Decision, DecisionLimit, Outcome, Rules, RunRequest
from moe_cli.report.intervals import t_quantile
from moe_cli.report.significance import POWER

# The standard deviation of paired relative differences over seeds, as in docs/results/sparsity.md, of a rehearsal.
TYPICAL_DEVIATION = 0.005
MAX_LIMIT_RUNS = 2**20


@dataclass(frozen=True)
class Power:
    """Differences that the confirmation can decide, if they vary by TYPICAL_DEVIATION over seeds.

    Attributes:
        difference: the smallest relative difference that is found in four of five cases.
        equality: the smallest margin within which two equal candidates are shown to be equal in four of five cases.
    """

    seeds: int
    difference: float
    equality: float


@dataclass(frozen=True)
class Rehearsal:
    """The runs that the controller wants if losses are drawn, and its decision."""

    results: Mapping[RunRequest, Outcome]
    decision: Decision


def rehearse(candidates: Sequence[Candidate], rules: Rules, limit: DecisionLimit) -> Rehearsal:
    """Returns a rehearsal in which all candidates have equal true losses, which takes the most runs."""
    results: dict[RunRequest, Outcome] = {}
    race = Race(candidates, rules, limit)

    def outcomes(group: RunGroup) -> Mapping[RunRequest, Outcome]:
        for request in group.requests:
            if request not in results:
                seconds = race.books.candidates[request.candidate].seconds_at(request.fraction)
                results[request] = Outcome(_draw(request), seconds)
        return {request: results[request] for request in group.requests}

    race.play(outcomes)
    return Rehearsal(results, race.decision())


def _draw(request: RunRequest) -> float:
    """Returns a loss that depends on the request alone."""
    source = random.Random(f"{request.candidate} {request.seed} {request.fraction} {request.lr_multiplier}")
    tuned = 1 + 0.02 * math.log2(request.lr_multiplier) ** 2
    return 2 * tuned * math.exp(source.gauss(0, TYPICAL_DEVIATION / math.sqrt(2)))


def power(rehearsal: Rehearsal, rules: Rules) -> Power | None:
    """Returns what the confirmation can decide where candidates hardly differ; None if the budget allows none."""
    by_name: dict[str, int] = {}
    for request in rehearsal.results:
        if request.stage == CONFIRMATION:
            by_name[request.candidate] = by_name.get(request.candidate, 0) + 1
    seeds = max(by_name.values(), default=0)
    if seeds < 2:
        return None
    looks = [look for look in rules.looks if look <= seeds] or [seeds]
    alpha = rules.alpha / len(looks) / max(1, len(by_name) - 1)
    error = TYPICAL_DEVIATION / math.sqrt(seeds)
    found = t_quantile(POWER, seeds - 1)
    # Two equal candidates: both one-sided tests must reject, so that each has half of the failures.
    both = t_quantile(1 - (1 - POWER) / 2, seeds - 1)
    return Power(
        seeds,
        (t_quantile(1 - alpha / 2, seeds - 1) + found) * error,
        (t_quantile(1 - alpha, seeds - 1) + both) * error,
    )


def unused(decision: Decision) -> tuple[str, ...]:
    """Returns what the budget leaves out in a rehearsed decision, as sentences."""
    untried = [dropped.name for dropped in decision.dropped if dropped.reason.startswith("not tried")]
    more = [f"These candidates would not be tried: {', '.join(untried)}."] if untried else []
    return (*more, *decision.unused)


def can_start(candidates: Sequence[Candidate], rules: Rules, limit: DecisionLimit) -> bool:
    """Returns whether the limit allows a first run and the first look of a confirmation."""
    return next_step(candidates, rules, {}, limit).decision is None


def least_limits(candidates: Sequence[Candidate], rules: Rules, parallel: int) -> tuple[int, float]:
    """Returns the least runs, and the least minutes, with which a decision can start."""
    runs = _least(lambda size: can_start(candidates, rules, DecisionLimit(None, size, parallel)))
    tenths = _least(lambda size: can_start(candidates, rules, DecisionLimit(6.0 * size, None, parallel)))
    return runs, tenths / 10


def _least(is_enough: Callable[[int], bool]) -> int:
    """Returns the least size that is enough."""
    high = 1
    while not is_enough(high) and high < MAX_LIMIT_RUNS:
        high *= 2
    return bisect_left(range(high + 1), True, high // 2 + 1, high, key=is_enough)
