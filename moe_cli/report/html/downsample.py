"""Numbers and curves made small enough for a page: few digits, few points."""

import math
from collections.abc import Sequence
from itertools import pairwise

DIGITS = 5


def rounded(value: float | None, digits: int = DIGITS) -> float | int | None:
    """Returns the value with `digits` significant digits; None where it is not finite, which JSON cannot express."""
    if value is None or not math.isfinite(value):
        return None
    short = float(f"{value:.{digits}g}")
    return int(short) if short == int(short) and abs(short) < 2**53 else short


def downsampled(steps: Sequence[int], values: Sequence[float], most: int) -> tuple[list[int], list[float]]:
    """Reduces to at most `most` points: means of neighbours, each at the step of the last one.

    The last point is kept.
    """
    size = len(steps)
    if size <= most:
        return list(steps), list(values)
    edges = [round(place * size / most) for place in range(most + 1)]
    spans = [(low, high) for low, high in pairwise(edges) if high > low]
    means = [math.fsum(values[low:high]) / (high - low) for low, high in spans]
    means[-1] = values[-1]
    return [steps[high - 1] for _, high in spans], means
