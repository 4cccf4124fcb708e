"""The least and the most that each stage of a decision costs, before its first run."""

import math
from collections.abc import Sequence

from moe_cli.decide.records import (
    CHOICE,
    CONFIRMATION,
    LEARNING_RATE,
    SCREENING,
    Candidate,
    Rules,
    StagePrice,
)


def price_stages(candidates: Sequence[Candidate], rules: Rules) -> tuple[StagePrice, ...]:
    """Prices the stages of a decision whose runs all succeed and whose budget has no limit.

    The least: the screening leaves two candidates and the baseline, the cheapest, and the first look decides. The most:
    it leaves all finalists, the dearest, every learning rate ends at the edge, and the last look is needed.
    """
    baseline = [candidate.seconds for candidate in candidates if candidate.is_baseline]
    others = sorted(candidate.seconds for candidate in candidates if not candidate.is_baseline)
    finalists, contenders = min(rules.finalists, len(others)), min(rules.contenders, len(others))
    fewest = min(2, finalists)
    fraction, leaders = rules.screening_fraction, 2 * rules.finalists
    everyone = [*others, *baseline]

    first = [*others[:leaders], *baseline] * (rules.screening_seeds - 1)
    screening = _price(SCREENING, [*everyone, *first], everyone * rules.screening_seeds, fraction)

    # Trials of the multiplier 1 with seeds of the screening are runs of the screening.
    done = min(rules.lr_seeds, rules.screening_seeds) if 1.0 in rules.lr_multipliers else 0
    is_tuned = len(rules.lr_multipliers) > 1
    least = is_tuned * (len(rules.lr_multipliers) * rules.lr_seeds - done)
    most = is_tuned * (least + rules.lr_extensions * rules.lr_seeds)
    rates = _price(
        LEARNING_RATE,
        [*others[:fewest], *baseline] * least,
        [*_dearest(others, finalists), *baseline] * most,
        fraction,
    )
    is_choice_needed = finalists > contenders
    choice = _price(CHOICE, [], _dearest(others, finalists) * (rules.choice_seeds if is_choice_needed else 0))
    confirmation = _price(
        CONFIRMATION,
        [*others[: min(fewest, contenders)], *baseline] * rules.looks[0],
        [*_dearest(others, contenders), *baseline] * rules.looks[-1],
    )
    return screening, rates, choice, confirmation


def _dearest(ascending: Sequence[float], count: int) -> list[float]:
    return list(ascending[len(ascending) - count :])


def _price(stage: str, least: Sequence[float], most: Sequence[float], fraction: float = 1.0) -> StagePrice:
    """Sums the runs and their seconds with the full budget, times the fraction."""
    return StagePrice(stage, len(least), len(most), fraction * math.fsum(least), fraction * math.fsum(most))
