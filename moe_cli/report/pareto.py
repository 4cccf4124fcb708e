"""Pareto front: the configurations that no other one beats. The table, the figures, the page and searches use this one.

In every respect a smaller value is better.
"""

import math
from collections.abc import Mapping, Sequence
from typing import cast

from moe_cli.metrics import MATCH_TOLERANCE_FACTOR
from moe_cli.report.run_row import Record

# Times and peak memory differ by 10 % between equal runs, and matched FLOPs by MATCH_TOLERANCE_FACTOR. Values within
# these factors count as equal. Everything else is compared exactly.
TOLERANCES = {
    "flops_per_token": MATCH_TOLERANCE_FACTOR,
    "forward_flops_per_token": MATCH_TOLERANCE_FACTOR,
    "model_flops_per_token": MATCH_TOLERANCE_FACTOR,
    "train_flops": MATCH_TOLERANCE_FACTOR,
    "model_flops": MATCH_TOLERANCE_FACTOR,
    "tokens_per_second": 1.10,
    "seconds": 1.10,
    "peak_memory_bytes": 1.10,
}


def tolerance(name: str) -> float:
    """Returns the factor within which two values of a column count as equal; 1: only equal values do."""
    return TOLERANCES.get(name, 1.0)


def as_cost(value: float | None, better: int) -> float | None:
    """Returns the value if smaller is better (-1), its inverse if larger is better (1): seconds per token for speed."""
    if value is None or better < 0:
        return value
    return 1 / value if value > 0 else math.inf


def on_front(points: Sequence[Sequence[float | None]], tolerances: Sequence[float]) -> list[bool]:
    """Returns, for each point, whether it is on the Pareto front: no other point dominates it. Order does not matter.

    A point dominates another by one of two rules. First: it is at least as good in every exact respect (tolerance 1),
    better in one of them, and as good within the tolerance in every other respect that is known of both points. Second:
    the points are equal in the exact respects and have the same other respects known, and it is at least as good in all
    of these and better beyond the tolerance in one.

    Chains of values within the tolerance cannot close a cycle: the first rule lowers an exact respect, the second
    compares exactly. So the front is never empty, and every point is tested against all others.

    Args:
        points: the values of each point in every respect; None means unknown, and is allowed only in a respect with a
            tolerance.
        tolerances: the factor of each respect, at least 1; above 1 for positive values only.
    """
    exact = [place for place, factor in enumerate(tolerances) if factor == 1]
    others = [(place, factor) for place, factor in enumerate(tolerances) if factor != 1]
    assert all(point[place] is not None for point in points for place in exact), "an exact respect has no value"
    parts = [
        (tuple(cast("float", point[place]) for place in exact), tuple(point[place] for place, _ in others))
        for point in points
    ]
    # A point that is good in the exact respects dominates many others, so such points are tried first.
    order = sorted(parts, key=lambda part: part[0])
    factors = [factor for _, factor in others]
    return [not any(_dominates(other, part, factors) for other in order) for part in parts]


# A point in its exact respects, and in the others.
_Point = tuple[tuple[float, ...], tuple[float | None, ...]]


def _dominates(one: _Point, other: _Point, factors: Sequence[float]) -> bool:
    """Returns whether one point dominates the other, see `on_front`."""
    for a, b in zip(one[0], other[0], strict=True):
        if a > b:
            return False
    if one[0] != other[0]:
        for c, d, factor in zip(one[1], other[1], factors, strict=True):
            if c is not None and d is not None and c > d * factor:
                return False
        return True
    pairs = list(zip(one[1], other[1], factors, strict=True))
    known = [(c, d, factor) for c, d, factor in pairs if c is not None and d is not None]
    return (
        all((c is None) == (d is None) for c, d, _ in pairs)
        and all(c <= d for c, d, _ in known)
        and any(c * factor < d for c, d, factor in known)
    )


def pareto_front(rows: Sequence[Record], costs: Mapping[str, int]) -> list[bool]:
    """Returns, for each row, whether it is on the Pareto front of its comparable rows in loss and costs.

    All rows have a loss.

    Args:
        costs: the columns, with 1 if larger values are better and -1 if smaller values are better.
    """
    points = [(row.primary_loss, *(as_cost(row.number(name), costs[name]) for name in costs)) for row in rows]
    return fronts_of(rows, points, [1.0, *map(tolerance, costs)])


def fronts_of(
    rows: Sequence[Record], points: Sequence[Sequence[float | None]], tolerances: Sequence[float]
) -> list[bool]:
    """Returns, for each row, whether its point is on the Pareto front of the points of its comparable rows.

    A row without another comparable row is on no front.
    """
    marks = [False] * len(rows)
    groups: dict[tuple[object, ...], list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault(row.comparison_key, []).append(place)
    for places in groups.values():
        if len(places) == 1:
            continue
        for place, mark in zip(places, on_front([points[place] for place in places], tolerances), strict=True):
            marks[place] = mark
    return marks
