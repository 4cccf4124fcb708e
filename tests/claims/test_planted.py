"""Planted claims, true and false, are decided rightly: wrong verdicts in at most 5 %, right ones at the stated power."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from moe_cli.claims.power import power
from moe_cli.claims.predicates import Bound, Crossing, Equal, Explains, Order, Predicate, SameArgmin, Scale, Trend
from moe_cli.claims.records import CANNOT_TELL, CONTRADICTED, HOLDS, Demand, Region
from moe_cli.claims.verdict import combine, decide, judge
from moe_cli.config.expressions import parse_expression
from moe_cli.report.significance import ERROR_RATE, POWER
from tests.claims.planted import Planted

SEEDS, DRAWS = 4, 300
# Three standard errors of a share of DRAWS draws.
ERROR_SLACK, POWER_SLACK = (3 * math.sqrt(p * (1 - p) / DRAWS) for p in (ERROR_RATE, POWER))
A, B, ALL = map(parse_expression, ("expert == 8", "expert == 1", "true"))
SCALE = Scale("val_loss", True, 0.005, 0.004)
LEVELS = (parse_expression("expert == 4 * k"), parse_expression("expert == 16 * k"))
PLACES = (1.0, 2.0, 4.0)
SIZES = (1e6, 2e6, 4e6, 8e6)

ORDER = Order("order", SCALE, A, B, False)
EQUAL = Equal("equal", SCALE, A, B)
BOUND = Bound("bound", Scale("router_saturation", False, 0.0, 0.004), A, Region(low=0.6))
TREND = Trend("trend", Scale("val_loss", True, 0.0, 0.004), "expert", ALL, False)
CROSSING = Crossing("crossing", SCALE, "train.steps", A, B)
ARGMIN = SameArgmin("same", SCALE, "k", LEVELS)
EXPLAINS = Explains("explains", Scale("val_loss", False, 0.0, 0.02), "params", "active_params", ALL)
Draw = Callable[[np.random.Generator, float], Planted]


def by_seed(values: Any) -> dict[int, float]:
    return dict(enumerate(map(float, values)))


def noise(random: np.random.Generator, deviation: float) -> Any:
    return deviation * random.standard_normal(SEEDS)


def two(random: np.random.Generator, effect: float, deviation: float = SCALE.noise) -> Planted:
    """Two configurations whose relative difference has this mean; their seeds share an effect of ten times the noise."""
    base = 2 * (1 + noise(random, 10 * deviation))
    return Planted({A.text: by_seed(base * (1 + effect + noise(random, deviation))), B.text: by_seed(base)})


def one(random: np.random.Generator, effect: float) -> Planted:
    return Planted({A.text: by_seed(0.6 + effect + noise(random, BOUND.noise))})


def line(random: np.random.Generator, effect: float) -> Planted:
    """A loss that changes by this share for each doubling; the noise of its slope is that of the claim."""
    slopes = effect + noise(random, TREND.noise)
    return Planted(series={ALL.text: {place: by_seed(2 * np.exp(slopes * math.log2(place))) for place in PLACES}})


def crossed(random: np.random.Generator, effect: float, at_largest: float | None = None) -> Planted:
    """The first configuration is ahead by the effect at the smallest value, and the last one at the largest."""
    first, last = two(random, -effect), two(random, effect if at_largest is None else at_largest)
    texts = (A.text, B.text)
    return Planted(series={text: {1.0: first._scores[text], 8.0: last._scores[text]} for text in texts})


def valleys(random: np.random.Generator, effect: float, moved: bool = False) -> Planted:
    """Losses at three values under two conditions: the best value is ahead of the others by the effect.

    Differences of two values have the noise of the claim.
    """
    series = {}
    for number, level in enumerate(LEVELS):
        best = PLACES[number if moved else 1]
        series[level.text] = {
            place: by_seed(2 * (1 + effect * (place != best) + noise(random, ARGMIN.noise / math.sqrt(2))))
            for place in PLACES
        }
    return Planted(series=series)


def sizes(random: np.random.Generator, share: float) -> Planted:
    """A loss that follows total parameters by this share, and active ones by the rest; both vary independently."""
    rows = []
    for total in SIZES:
        for active in SIZES:
            loss = 3 - 0.1 * share * math.log2(total) - 0.1 * (1 - share) * math.log2(active)
            values = [by_seed(loss + noise(random, 0.03))]
            rows.append([*values, *(by_seed(np.full(SEEDS, size)) for size in (total, active))])
    return Planted(tables={ALL.text: rows})


def share_of(predicate: Predicate, draw: Draw, effect: float, verdict: str, draws: int = DRAWS) -> float:
    """Returns the share of simulated sweeps with a planted effect that get a verdict."""
    random = np.random.default_rng(0)
    found = [judge([predicate], [predicate.find(draw(random, effect))]).verdict for _ in range(draws)]
    return found.count(verdict) / draws


def demand_of(predicate: Predicate, distance: float) -> Demand:
    """Returns the demand of a predicate with a claimed effect at this distance."""
    random = np.random.default_rng(0)
    measured = Planted(series={level.text: valleys(random, 0.0)._series[level.text] for level in LEVELS})
    found = predicate.demand(measured)
    return Demand(distance, found.comparisons, found.conjunctions)


# Of each predicate: how sweeps are drawn, an effect just on the true side of the limit, one just on the false side, and
# the signs with which a distance is added to go further into the region, and out of it.
CASES = [
    (ORDER, two, -0.005, -1),
    (BOUND, one, 0.0, 1),
    (TREND, line, 0.0, -1),
    (CROSSING, crossed, 0.005, 1),
]


@pytest.mark.parametrize(("predicate", "draw", "limit", "inward"), CASES, ids=lambda value: getattr(value, "label", ""))
def test_one_sided_claims_are_told_apart(predicate: Predicate, draw: Draw, limit: float, inward: int) -> None:
    """At the limit of a region either verdict is wrong in at most 5 %; at the stated distance four of five are right."""
    detectable = power(predicate, demand_of(predicate, 0.1), predicate.noise, SEEDS, ERROR_RATE).detectable
    for verdict in (HOLDS, CONTRADICTED):
        assert share_of(predicate, draw, limit, verdict) <= ERROR_RATE + ERROR_SLACK
    for sign, right, wrong in ((inward, HOLDS, CONTRADICTED), (-inward, CONTRADICTED, HOLDS)):
        effect = limit + sign * detectable
        assert share_of(predicate, draw, effect, right) >= POWER - POWER_SLACK, (right, effect)
        assert share_of(predicate, draw, effect, wrong, DRAWS // 4) <= 0.01


def test_a_lead_at_one_end_is_no_crossing() -> None:
    """A clear lead at the smallest value and none beyond the margin at the largest is no crossing, either way."""
    limit = SCALE.margin
    assert share_of(CROSSING, partial(crossed, at_largest=limit), 0.1, HOLDS) <= ERROR_RATE / 2 + ERROR_SLACK
    assert share_of(CROSSING, partial(crossed, at_largest=-0.1), 0.1, CONTRADICTED, DRAWS // 4) == 1
    assert share_of(CROSSING, partial(crossed, at_largest=0.1), -0.1, CONTRADICTED, DRAWS // 4) == 1


def test_equal_and_unequal_are_told_apart() -> None:
    """Equal losses are shown to be equal at the stated power; losses at the margin hardly ever are, in either way."""
    detectable = power(EQUAL, demand_of(EQUAL, 0.1), EQUAL.noise, SEEDS, ERROR_RATE).detectable
    quiet = SCALE.margin / detectable * SCALE.noise
    assert share_of(EQUAL, partial(two, deviation=quiet), 0.0, HOLDS) >= POWER - POWER_SLACK
    for margin in (-SCALE.margin, SCALE.margin):
        for verdict in (HOLDS, CONTRADICTED):
            assert share_of(EQUAL, two, margin, verdict) <= ERROR_RATE + ERROR_SLACK
        assert share_of(EQUAL, two, 6 * margin, CONTRADICTED) >= POWER


def test_an_argmin_that_moves_is_told_from_one_that_stays() -> None:
    """Flat losses, sharp valleys at one value, and valleys that move, each with wrong verdicts in at most 5 %."""
    distance = power(ARGMIN, demand_of(ARGMIN, 0.1), ARGMIN.noise, SEEDS, ERROR_RATE).detectable - SCALE.margin
    draws = DRAWS // 2
    assert share_of(ARGMIN, valleys, distance, HOLDS, draws) >= POWER - POWER_SLACK * math.sqrt(2)
    assert share_of(ARGMIN, valleys, distance, CONTRADICTED, draws) <= ERROR_RATE
    assert share_of(ARGMIN, valleys, 0.0, CONTRADICTED, draws) <= ERROR_RATE
    moved = partial(valleys, moved=True)
    # Just beyond the margin no value is good enough under both conditions.
    assert share_of(ARGMIN, moved, SCALE.margin, HOLDS, draws) <= ERROR_RATE + ERROR_SLACK
    assert share_of(ARGMIN, moved, 10 * SCALE.margin, CONTRADICTED, draws) >= POWER
    assert share_of(ARGMIN, moved, 10 * SCALE.margin, HOLDS, draws) == 0


def test_total_and_active_parameters_are_told_apart() -> None:
    """A loss that follows one of both is explained by it; one that follows both equally is not decided."""
    draws = DRAWS // 2
    assert share_of(EXPLAINS, sizes, 1.0, HOLDS, draws) >= POWER
    assert share_of(EXPLAINS, sizes, 0.0, CONTRADICTED, draws) >= POWER
    for verdict in (HOLDS, CONTRADICTED):
        assert share_of(EXPLAINS, sizes, 0.5, verdict, draws) <= ERROR_RATE + ERROR_SLACK


def test_many_parts_are_no_more_often_wrong_than_one() -> None:
    """A claim with six parts at their limits is contradicted wrongly in at most 5 %, by Holm's correction."""
    random = np.random.default_rng(1)
    found = []
    for _ in range(DRAWS // 2):
        parts = [ORDER.find(two(random, -SCALE.margin)) for _ in range(6)]
        found.append(combine(decide([(part.p_holds, part.p_contradicted) for part in parts])))
    assert found.count(CONTRADICTED) / len(found) <= ERROR_RATE + ERROR_SLACK * math.sqrt(2)
    assert HOLDS not in found


def test_without_a_spread_nothing_is_claimed() -> None:
    """One seed, or none, decides nothing."""
    for seeds in (0, 1):
        values = dict.fromkeys(range(seeds), 1.0)
        finding = ORDER.find(Planted({A.text: values, B.text: values}))
        assert (1.0, 1.0, CANNOT_TELL) == (
            finding.p_holds,
            finding.p_contradicted,
            judge([ORDER], [finding]).verdict,
        )
