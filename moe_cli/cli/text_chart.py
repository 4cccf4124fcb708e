"""Curves over one another, drawn with characters: each with the letter it goes by."""

import math
from collections.abc import Sequence
from itertools import pairwise

Points = Sequence[tuple[float, float]]


def plot(curves: dict[str, Points], width: int, height: int, tick: str = "┤") -> list[str]:
    """Curves of (x, y) over one another, each drawn with the letter it goes by, `*` where they meet; axes with numbers.

    Between points lines are straight. At the top stands the largest y, the smallest at the bottom.
    """
    points = [point for curve in curves.values() for point in curve]
    if not points:
        return []
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    low, high = min(y for _, y in points), max(y for _, y in points)
    labels = {0: _label(high, high - low), height - 1: _label(low, high - low)}
    if labels[0] == labels[height - 1]:  # all lie at the bottom
        del labels[0]
    margin = max(map(len, labels.values()))
    room = max(8, width - margin - 2)
    rows = [[" "] * room for _ in range(height)]
    for letter, curve in curves.items():
        for column in range(room):
            x = left + (right - left) * column / (room - 1)
            y = _at(sorted(curve), x)
            if y is not None:
                row = round((high - y) / (high - low) * (height - 1)) if high > low else height - 1
                rows[row][column] = letter if rows[row][column] in (" ", letter) else "*"
    return [f"{labels.get(number, ''):>{margin}} {tick}{''.join(row).rstrip()}" for number, row in enumerate(rows)]


def _label(value: float, span: float) -> str:
    """The number of a tick: three digits after the point, or as many as tell the ends apart, six at the most."""
    digits = 3 if span <= 0 else min(6, max(3, 1 - math.floor(math.log10(span))))
    return f"{value:z.{digits}f}"


def _at(curve: Points, x: float) -> float | None:
    """The curve at x, straight between its points; None outside them."""
    slack = 1e-9 * max(1.0, abs(x))
    for (x0, y0), (x1, y1) in pairwise(curve):
        if x0 - slack <= x <= x1 + slack:
            return y0 if x1 == x0 else y0 + (y1 - y0) * min(1.0, max(0.0, (x - x0) / (x1 - x0)))
    return curve[0][1] if len(curve) == 1 and abs(curve[0][0] - x) <= slack else None
