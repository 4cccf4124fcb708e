"""Points whose losses follow a law with known constants, and noise."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from moe_cli.report.scaling.observations import Points

SIZES, TOKENS, EXPERTS = (1e5, 3e5, 1e6, 3e6), (1e6, 4e6, 1.6e7), (1, 2, 4, 8)
CLARK = {"a": -0.08, "b": -0.11, "c": 0.008, "d": 0.9}
KRAJEWSKI = {"c": 1.1, "g": 6.0, "gamma": 0.6, "a": 25.0, "alpha": 0.25, "b": 60.0, "beta": 0.3}
ABNAR = {
    "a": 900.0,
    "alpha": 0.6,
    "b": 300.0,
    "beta": 0.4,
    "c": 0.46,
    "lambda": -0.3,
    "d": 12.0,
    "delta": 0.12,
    "gamma": 0.2,
    "e": 0.8,
}
JOINT = {
    "a": 30.0,
    "delta": 0.2,
    "alpha": -0.25,
    "gamma": -0.016,
    "b": 60.0,
    "omega": -0.05,
    "beta": -0.3,
    "zeta": 0.003,
    "c": 1.1,
}


def clark(at: Points, *, a: float, b: float, c: float, d: float, E_start: float = 1, E_max: float = np.inf) -> Any:
    """log10 L = a log10 N + b log10 E^ + c log10 N log10 E^ + d."""
    size, experts = np.log10(at.active), np.log10(_saturated(at, E_start, E_max))
    return 10 ** (a * size + b * experts + c * size * experts + d)


def krajewski(at: Points, *, c: float, g: float, gamma: float, a: float, alpha: float, b: float, beta: float) -> Any:
    """L = c + (g / G^gamma + a) / N^alpha + b / D^beta."""
    return c + (g / at.granularity**gamma + a) / at.params**alpha + b / at.tokens**beta


def abnar(at: Points, **x: float) -> Any:
    """L = a/N^alpha + b/D^beta + c/(1-S)^lambda + d/((1-S)^delta N^gamma) + e."""
    dense = at.density
    return (
        x["a"] / at.params ** x["alpha"]
        + x["b"] / at.tokens ** x["beta"]
        + x["c"] / dense ** x["lambda"]
        + x["d"] / (dense ** x["delta"] * at.params ** x["gamma"])
        + x["e"]
    )


def joint(at: Points, **x: float) -> Any:
    """L = a E^^delta N^(alpha + gamma ln E^) + b E^^omega D^(beta + zeta ln E^) + c."""
    experts = _saturated(at, x.get("E_start", 1), x.get("E_max", np.inf))
    of_size = x["a"] * experts ** x["delta"] * at.active ** (x["alpha"] + x["gamma"] * np.log(experts))
    return of_size + x["b"] * experts ** x["omega"] * at.tokens ** (x["beta"] + x["zeta"] * np.log(experts)) + x["c"]


def _saturated(at: Points, start: float, most: float) -> Any:
    return 1 / (1 / (at.expansion - 1 + 1 / (1 / start - 1 / most)) + 1 / most)


FORMS = {"clark": clark, "krajewski": krajewski, "abnar": abnar, "ludziejewski": joint}


def grid(
    loss: Callable[[Points], Any],
    *,
    sizes: Sequence[float] = SIZES,
    tokens: Sequence[float] = TOKENS,
    experts: Sequence[float] = EXPERTS,
    fine: Sequence[float] = (1,),
    seeds: int = 1,
    noise: float = 0.0,
    seed_effect: float = 0.0,
    draw: int = 0,
) -> Points:
    """Every combination; dense models have four tenths of their parameters outside the experts.

    `noise` and `seed_effect` are standard deviations of log loss: of each run, and of the shift that all runs of a seed share.
    """
    n, e, d, g, seed = (axis.ravel() for axis in np.meshgrid(sizes, experts, tokens, fine, range(seeds), indexing="ij"))
    size = len(n)
    clusters, ones = np.repeat(np.arange(size // seeds), seeds), np.ones(size)
    points = Points(
        n * (0.4 + 0.6 * e),
        n * ones,
        e * ones,
        1 / e,
        g * ones,
        d * ones,
        6 * n * d,
        ones,
        clusters,
        1e4 / e**0.1,
        seed,
    )
    rng = np.random.default_rng(draw)
    own, shared = rng.normal(0, noise, size), rng.normal(0, seed_effect, seeds)
    return replace(points, loss=loss(points) * np.exp(own + shared[seed]))
