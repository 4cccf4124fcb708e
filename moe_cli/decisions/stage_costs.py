"""The least and the most that each stage of a decision costs, before its first run."""

import math
from collections.abc import Sequence

from moe_cli.decisions.terms import (
    CONFIRMATION,
    FULL_BUDGET_CHOICE,
    LEARNING_RATE,
    PRICE,
    SCREENING,
    Candidate,
    Rules,
    StageCost,
)


def bound_stage_costs(candidates: Sequence[Candidate], rules: Rules) -> tuple[StageCost, ...]:
    """Bounds the costs of the stages of a decision whose runs all succeed and whose budget has no limit.

    The least: the screening leaves two candidates and the baseline, the cheapest, and the first look decides. The most:
    it leaves all finalists, the dearest, every learning rate ends at the edge, and the last look is needed.
    """
    baseline = [candidate for candidate in candidates if candidate.is_baseline]
    others = sorted(
        (candidate for candidate in candidates if not candidate.is_baseline), key=lambda candidate: candidate.seconds
    )
    finalists, contenders = min(rules.finalists, len(others)), min(rules.contenders, len(others))
    fewest = min(2, finalists)
    fraction, leaders = rules.screening_fraction, 2 * rules.finalists
    everyone = [*others, *baseline]

    first = [*others[:leaders], *baseline] * (rules.screening_seeds - 1)
    screening = _bound(SCREENING, [*everyone, *first], everyone * rules.screening_seeds, fraction)

    # Trials of the multiplier 1 with seeds of the screening are runs of the screening.
    done = min(rules.lr_seeds, rules.screening_seeds) if 1.0 in rules.lr_multipliers else 0
    is_tuned = len(rules.lr_multipliers) > 1
    least = is_tuned * (len(rules.lr_multipliers) * rules.lr_seeds - done)
    most = is_tuned * (least + rules.lr_extensions * rules.lr_seeds)
    rates = _bound(
        LEARNING_RATE,
        [*others[:fewest], *baseline] * least,
        [*_dearest(others, finalists), *baseline] * most,
        fraction,
    )
    is_choice_needed = finalists > contenders
    choice = _bound(
        FULL_BUDGET_CHOICE, [], _dearest(others, finalists) * (rules.choice_seeds if is_choice_needed else 0)
    )
    confirmation = _bound(
        CONFIRMATION,
        [*others[: min(fewest, contenders)], *baseline] * rules.looks[0],
        [*_dearest(others, contenders), *baseline] * rules.looks[-1],
    )
    return screening, rates, choice, confirmation, *_bound_price_tag(baseline, rules)


def _bound_price_tag(baseline: list[Candidate], rules: Rules) -> tuple[StageCost, ...]:
    """Bounds the cost of the baseline with larger budgets, which is not trained if it wins; empty without any."""
    if not rules.baseline_budgets:
        return ()
    runs = baseline * rules.looks[0]
    found = [_bound(PRICE, [], runs, multiple) for multiple in rules.baseline_budgets]
    seconds = math.fsum(cost.max_seconds for cost in found)
    return (StageCost(PRICE, 0, sum(cost.max_runs for cost in found), 0.0, seconds),)


def _dearest(ascending: Sequence[Candidate], count: int) -> list[Candidate]:
    return list(ascending[len(ascending) - count :])


def _bound(stage: str, least: Sequence[Candidate], most: Sequence[Candidate], fraction: float = 1.0) -> StageCost:
    """Sums the runs and their seconds with a fraction of the budget."""
    low, high = (math.fsum(candidate.seconds_at(fraction) for candidate in runs) for runs in (least, most))
    return StageCost(stage, len(least), len(most), low, high)
