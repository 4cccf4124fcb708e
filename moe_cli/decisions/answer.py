"""The decision from what the confirmation has found: the winner, equality classes, claims with intervals, guarantee."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from moe_cli.decisions.terms import EQUAL, Candidate, Comparison, FinalLoss, Interval, Rules
from moe_cli.report.intervals import mean_and_interval, t_quantile
from moe_cli.report.significance import BETTER, INCONCLUSIVE, WORSE, PairedSample, Scores


@dataclass(frozen=True)
class Confirmation:
    """Findings of the fresh seeds: losses of all arms, samples (leader against other) and claims by other.

    `leader` was chosen before the first fresh seed. `alpha` is the error rate of each of `looks` looks.
    """

    leader: str
    losses: Mapping[str, Scores]
    samples: Mapping[str, PairedSample]
    claims: Mapping[str, str]
    looks: tuple[int, ...]
    alpha: float

    def interval(self, other: str) -> Interval:
        """Returns the difference of the leader to another arm; the interval of this pair holds over all looks."""
        sample = self.samples[other]
        if sample.deviation is None:
            return Interval(sample.mean, None, None, sample.seeds)
        width = t_quantile(1 - self.alpha / 2, sample.seeds - 1) * sample.deviation / math.sqrt(sample.seeds)
        return Interval(sample.mean, sample.mean - width, sample.mean + width, sample.seeds)

    def comparisons(self) -> tuple[Comparison, ...]:
        """Returns the claims of the leader against each other arm."""
        return tuple(
            Comparison(self.leader, other, self.interval(other), self.claims.get(other, INCONCLUSIVE))
            for other in self.samples
        )

    def final_losses(self) -> tuple[FinalLoss, ...]:
        """Returns the mean loss of every arm, with the 95 % interval of the mean."""
        found = []
        for name, scores in self.losses.items():
            if scores:
                estimate = mean_and_interval(list(scores.values()))
                found.append(FinalLoss(name, estimate.mean, estimate.half_width, len(scores)))
        return tuple(sorted(found, key=lambda loss: loss.mean))


@dataclass(frozen=True)
class Answer:
    """The winner and why: see `terms.Decision`."""

    winner: str | None
    verdict: str
    best: str | None
    runner_up: str | None
    classes: tuple[tuple[str, ...], ...]


NO_ANSWER = Answer(None, INCONCLUSIVE, None, None, ())


def choose_winner(confirmation: Confirmation, candidates: Mapping[str, Candidate]) -> Answer:
    """Names the winner: the best, or the cheapest of those that are equal to it.

    An arm that is better than the leader takes its place. If several are, the one with the lowest loss leads, and their
    order is inconclusive. The others stay behind it if the leader is better than they are.
    """
    claims, samples = confirmation.claims, confirmation.samples
    ahead = [other for other in samples if claims.get(other) == WORSE]
    best = max(ahead, key=lambda other: samples[other].mean) if ahead else confirmation.leader
    others = [name for name in (confirmation.leader, *samples) if name != best]
    if ahead:
        is_ahead = all(name == confirmation.leader or claims.get(name) == BETTER for name in others)
        equals = []
    else:
        equals = [name for name in others if claims.get(name) == EQUAL]
        is_ahead = all(claims.get(name) == BETTER for name in others if name not in equals)
    class_ = (best, *equals)
    winner = min(class_, key=lambda name: (candidates[name].tie_break_cost, class_.index(name)))
    verdict = INCONCLUSIVE if not others or not is_ahead else EQUAL if equals else BETTER
    ranked = sorted(others, key=lambda name: -samples[name].mean if name in samples else -math.inf)
    return Answer(winner, verdict, best, ranked[0] if ranked else None, (class_,) if equals else ())


def guarantee(confirmation: Confirmation, rules: Rules) -> tuple[str, ...]:
    """States what the claims promise, one fact a sentence."""
    looks, rate = ", ".join(str(look) for look in confirmation.looks), f"{100 * rules.alpha:.3g} %"
    return (
        f"All claims come from seeds that took no part in the choice, {rules.confirmation_seed} and up.",
        f"The chance of any wrong better or worse is at most {rate}, over all pairs and looks.",
        f"The chance of any wrong equal within {100 * rules.within:.3g} % is at most {rate}, likewise.",
        f"Looks are fixed: after {looks} seeds, each at {100 * confirmation.alpha:.3g} %.",
        "No claim about the full budget is made for candidates that were dropped or set aside.",
    )
