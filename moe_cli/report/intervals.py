"""Seeds -> mean and interval, and differences paired by seed. Intervals are Student's t, 95 % by default."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean, and the half-width of its interval; None for a single value."""

    mean: float
    half_width: float | None


def t_cdf(t: float, df: int) -> float:
    """Computes P(T <= t) for Student's t: the series for integer degrees of freedom, Abramowitz and Stegun 26.7.3-4."""
    return _cdf_of_angle(math.atan2(t, math.sqrt(df)), df)


def _cdf_of_angle(angle: float, df: int) -> float:
    """Returns the distribution at t = sqrt(df) tan(angle)."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = df % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for index in range(odd, df, 2):
        total += term
        term *= cosine * cosine * (index + 1) / (index + 2)
    area = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return 0.5 + area / 2


@cache
def t_quantile(probability: float, df: int) -> float:
    """Computes the t with P(T <= t) = probability, for integer degrees of freedom.

    Newton's method in the angle atan(t / sqrt(df)), whose density is proportional to cos^(df - 1). The distribution is
    concave above 0, so the iterates rise to the solution from any start below it, such as the normal quantile.
    """
    assert 0 < probability < 1, probability
    assert df >= 1, df
    if probability < 0.5:
        return -t_quantile(1 - probability, df)
    density = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(math.pi)
    angle, step = math.atan(_below_normal_quantile(probability) / math.sqrt(df)), math.inf
    while step > 4e-16 * angle:
        step = (probability - _cdf_of_angle(angle, df)) / (density * math.cos(angle) ** (df - 1))
        angle += step
    return math.sqrt(df) * math.tan(angle)


def _below_normal_quantile(probability: float) -> float:
    """Returns a number from 0 to 0.001 below the normal quantile: Abramowitz and Stegun 26.2.23.

    The error of their formula is below 4.5e-4.
    """
    t = math.sqrt(-2 * math.log(1 - probability))
    numerator, denominator = (
        (2.515517 + t * (0.802853 + t * 0.010328)),
        (1 + t * (1.432788 + t * (0.189269 + t * 0.001308))),
    )
    return max(0.0, t - numerator / denominator - 5e-4)


def mean_and_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """Returns the mean of at least one value, with the t-interval of the mean."""
    count = len(values)
    mean = math.fsum(values) / count
    if count < 2:
        return Estimate(mean, None)
    variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return Estimate(mean, half_width(math.sqrt(variance), count, confidence))


def half_width(deviation: float, count: int, confidence: float = CONFIDENCE) -> float:
    """Returns half the width of the t-interval of a mean of at least two values with this standard deviation."""
    return t_quantile((1 + confidence) / 2, count - 1) * deviation / math.sqrt(count)


def proportion_interval(successes: int, trials: int) -> tuple[float, float]:
    """Returns the 95 % score interval of a probability (Wilson, J. Am. Stat. Assoc. 22, 1927); trials is at least 1."""
    z = 1.959963984540054
    share, scale = successes / trials, 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_difference(
    values: Mapping[int, float], baseline: Mapping[int, float], confidence: float = CONFIDENCE
) -> Estimate | None:
    """Computes the mean over shared seeds of (value - baseline) / baseline, with its interval.

    None means that no seed is shared, or that a baseline of 0 leaves a difference undefined.

    Pairing removes the effects of a seed that both runs share, such as the order of the data.
    """
    differences = paired_differences(values, baseline)
    return mean_and_interval(differences, confidence) if differences else None


def paired_differences(values: Mapping[int, float], baseline: Mapping[int, float]) -> list[float]:
    """Computes (value - baseline) / baseline of every shared seed, in order of seeds; equal values differ by 0.

    The result is empty if a baseline of 0 makes one of them undefined, because the other seeds alone would be a
    selection.
    """
    pairs = [(values[seed], baseline[seed]) for seed in sorted(values.keys() & baseline.keys())]
    if any(base == 0 and value != 0 for value, base in pairs):
        return []
    return [0.0 if value == base else (value - base) / base for value, base in pairs]
