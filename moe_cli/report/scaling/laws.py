"""The forms of four scaling laws, each with its source, its requirements for a fit, and its constants.

A law is a function of free numbers theta that are all of order one: N and D are taken relative to their geometric
means, and constants that must be positive are logarithms. `to_paper_constants` converts theta to the constants of the
paper. B sets of constants at once, P free numbers, M runs.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from moe_cli.report.scaling.observations import Array, Points

Constants = dict[str, float]


@dataclass(frozen=True)
class Normalisation:
    """Geometric means over the fitted points: of all and of active parameters, and of tokens."""

    params: float
    active: float
    tokens: float


def make_normalisation(points: Points) -> Normalisation:
    means = [math.exp(np.log(values).mean()) for values in (points.params, points.active, points.tokens)]
    return Normalisation(*means)


@dataclass(frozen=True)
class Law:
    """One form of a law.

    Attributes:
        equation, source: as in the paper.
        names: the names of the free numbers, in order.
        low, high: the box from which starting points are drawn.
        log_loss: (theta [B, P], points [M], normalisation) -> log L [B, M], complex-analytic in theta.
        to_paper_constants: (theta [P], normalisation) -> the paper's constants.
        distinct: the number of distinct values of each of Points' columns that is needed to determine the constants.
        constant: columns that must not vary, since the form has no term for them.
        level: the direction of the free numbers that is additive in log loss: log L(theta + x level) = log L(theta) +
            x.
    """

    name: str
    equation: str
    source: str
    names: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    log_loss: Callable[[Array, Points, Normalisation], Array]
    to_paper_constants: Callable[[Array, Normalisation], Constants]
    distinct: Mapping[str, int]
    level: tuple[str, ...]
    constant: tuple[str, ...] = ()


def saturated(expansion: Any, start: Any, most: Any) -> Any:
    """Computes Clark's saturation, eq. 20 of arXiv:2202.01169: 1/E^ = 1/(E - 1 + 1/(1/E_start - 1/E_max)) + 1/E_max.

    E^(1) = E_start, E^ tends to E_max, and E_start = 1, E_max = infinity gives E itself.
    """
    return 1 / (1 / (expansion - 1 + 1 / (1 / start - 1 / most)) + 1 / most)


def _columns(theta: Array) -> list[Array]:
    return [theta[:, index : index + 1] for index in range(theta.shape[1])]


def _log_expansion(start: Array, span: Array, points: Points) -> Array:
    """Computes log E^ with E_start = exp(start) and E_max = E_start + exp(span), so that E_max is always the larger."""
    first = np.exp(start)
    result: Array = np.log(saturated(points.expansion[None, :], first, first + np.exp(span)))
    return result


def _saturation(start: float, span: float) -> Constants:
    first = math.exp(start)
    return {"E_start": first, "E_max": first + math.exp(min(span, 700.0))}


def _clark_shape(
    a: Array, b: Array, c: Array, d: Array, log_e: Array, points: Points, normalisation: Normalisation
) -> Array:
    """Computes log L in natural logarithms: a and b are the paper's, c is divided by ln 10, d multiplied by it."""
    size = np.log(points.active[None, :] / normalisation.active)
    result: Array = a * size + b * log_e + c * size * log_e + d
    return result


def _clark(theta: Array, points: Points, normalisation: Normalisation) -> Array:
    a, b, c, d = _columns(theta)
    return _clark_shape(a, b, c, d, np.log(points.expansion[None, :]), points, normalisation)


def _clark_saturating(theta: Array, points: Points, normalisation: Normalisation) -> Array:
    a, b, c, d, start, span = _columns(theta)
    return _clark_shape(a, b, c, d, _log_expansion(start, span, points), points, normalisation)


def _clark_constants(theta: Array, normalisation: Normalisation) -> Constants:
    """Converts from ln, centred at N0, to log10 L = a log10 N + b log10 E^ + c log10 N log10 E^ + d."""
    a, b, c, d = theta[:4]
    size = math.log(normalisation.active)
    found = {"a": a, "b": b - c * size, "c": c * math.log(10), "d": (d - a * size) / math.log(10)}
    return found if len(theta) == 4 else {**found, **_saturation(theta[4], theta[5])}


def _krajewski(theta: Array, points: Points, normalisation: Normalisation) -> Array:
    c, g, gamma, a, alpha, b, beta = _columns(theta)
    size = np.log(points.params[None, :] / normalisation.params)
    tokens = np.log(points.tokens[None, :] / normalisation.tokens)
    fine = np.exp(g - gamma * np.log(points.granularity[None, :])) + np.exp(a)
    return np.log(np.exp(c) + fine * np.exp(-alpha * size) + np.exp(b - beta * tokens))  # type: ignore[no-any-return]


def _krajewski_constants(theta: Array, normalisation: Normalisation) -> Constants:
    c, g, gamma, a, alpha, b, beta = theta
    size, tokens = normalisation.params**alpha, normalisation.tokens**beta
    return {
        "c": math.exp(c),
        "g": math.exp(g) * size,
        "gamma": gamma,
        "a": math.exp(a) * size,
        "alpha": alpha,
        "b": math.exp(b) * tokens,
        "beta": beta,
    }


def _abnar(theta: Array, points: Points, normalisation: Normalisation) -> Array:
    a, alpha, b, beta, c, lam, d, delta, gamma, e = _columns(theta)
    size = np.log(points.params[None, :] / normalisation.params)
    tokens = np.log(points.tokens[None, :] / normalisation.tokens)
    dense = np.log(points.density[None, :])
    terms = np.exp(a - alpha * size) + np.exp(b - beta * tokens) + np.exp(c - lam * dense)
    return np.log(terms + np.exp(d - delta * dense - gamma * size) + np.exp(e))  # type: ignore[no-any-return]


def _abnar_constants(theta: Array, normalisation: Normalisation) -> Constants:
    a, alpha, b, beta, c, lam, d, delta, gamma, e = theta
    return {
        "a": math.exp(a) * normalisation.params**alpha,
        "alpha": alpha,
        "b": math.exp(b) * normalisation.tokens**beta,
        "beta": beta,
        "c": math.exp(c),
        "lambda": lam,
        "d": math.exp(d) * normalisation.params**gamma,
        "delta": delta,
        "gamma": gamma,
        "e": math.exp(e),
    }


def _ludziejewski_shape(parts: list[Array], log_e: Array, points: Points, normalisation: Normalisation) -> Array:
    a, delta, alpha, gamma, b, omega, beta, zeta, c = parts
    size = np.log(points.active[None, :] / normalisation.active)
    tokens = np.log(points.tokens[None, :] / normalisation.tokens)
    of_size = np.exp(a + delta * log_e + (alpha + gamma * log_e) * size)
    of_tokens = np.exp(b + omega * log_e + (beta + zeta * log_e) * tokens)
    return np.log(of_size + of_tokens + np.exp(c))  # type: ignore[no-any-return]


def _ludziejewski(theta: Array, points: Points, normalisation: Normalisation) -> Array:
    return _ludziejewski_shape(_columns(theta), np.log(points.expansion[None, :]), points, normalisation)


def _ludziejewski_saturating(theta: Array, points: Points, normalisation: Normalisation) -> Array:
    *parts, start, span = _columns(theta)
    return _ludziejewski_shape(parts, _log_expansion(start, span, points), points, normalisation)


def _ludziejewski_constants(theta: Array, normalisation: Normalisation) -> Constants:
    a, delta, alpha, gamma, b, omega, beta, zeta, c = theta[:9]
    size, tokens = math.log(normalisation.active), math.log(normalisation.tokens)
    found = {
        "a": math.exp(a - alpha * size),
        "delta": delta - gamma * size,
        "alpha": alpha,
        "gamma": gamma,
        "b": math.exp(b - beta * tokens),
        "omega": omega - zeta * tokens,
        "beta": beta,
        "zeta": zeta,
        "c": math.exp(c),
    }
    return found if len(theta) == 9 else {**found, **_saturation(theta[9], theta[10])}


CLARK = "log10 L = a log10 N + b log10 E^ + c log10 N log10 E^ + d,  N active parameters, E^ saturating in E/k"
JOINT = "L = a E^^delta N^(alpha + gamma ln E^) + b E^^omega D^(beta + zeta ln E^) + c,  N active parameters"
CLARK_SOURCE = "Clark et al. 2022, arXiv:2202.01169"
JOINT_SOURCE = "Ludziejewski et al. 2025, arXiv:2502.05172"
# Fewer expansions than this do not determine how experts saturate. Then E^ = E, the same form at E_start = 1 and
# E_max = infinity.
TO_SATURATE = 6

_CLARK_NAMES, _CLARK_LOW, _CLARK_HIGH = ("a", "b", "c", "d"), (-0.4, -0.3, -0.05, -1.0), (0.0, 0.1, 0.05, 2.0)
_JOINT_NAMES = ("a", "delta", "alpha", "gamma", "b", "omega", "beta", "zeta", "c")
_JOINT_LOW, _JOINT_HIGH = (
    (-4.0, -0.6, -0.8, -0.1, -4.0, -0.4, -0.8, -0.1, -3.0),
    (1.0, 0.2, -0.05, 0.1, 1.0, 0.4, -0.05, 0.1, 1.0),
)
_LEVELS = {"active": 3, "expansion": 3}

LAWS: dict[str, tuple[Law, ...]] = {
    "clark": (
        Law("clark", CLARK, CLARK_SOURCE, (*_CLARK_NAMES, "E_start", "E_max"), (*_CLARK_LOW, 0.0, 2.0), (*_CLARK_HIGH, 1.0, 6.0),
            _clark_saturating, _clark_constants, {"active": 3, "expansion": TO_SATURATE}, ("d",), ("tokens",)),
        Law("clark", CLARK.replace(", E^ saturating in E/k", ", E^ = E/k"), CLARK_SOURCE, _CLARK_NAMES, _CLARK_LOW, _CLARK_HIGH,
            _clark, _clark_constants, _LEVELS, ("d",), ("tokens",)),
    ),
    "krajewski": (
        Law("krajewski", "L = c + (g / G^gamma + a) / N^alpha + b / D^beta,  N all parameters, G = d_ff / d_expert",
            "Krajewski et al. 2024, arXiv:2402.07871", ("c", "g", "gamma", "a", "alpha", "b", "beta"),
            (-3.0, -4.0, 0.2, -4.0, 0.05, -4.0, 0.05), (1.0, 1.0, 1.5, 1.0, 0.8, 1.0, 0.8), _krajewski, _krajewski_constants,
            {"params": 3, "granularity": 3, "tokens": 3}, ("c", "g", "a", "b"), ("expansion",)),
    ),
    "abnar": (
        Law("abnar", "L = a/N^alpha + b/D^beta + c/(1-S)^lambda + d/((1-S)^delta N^gamma) + e,  N all parameters, S = (E-k)/E",
            "Abnar et al. 2025, arXiv:2501.12370", ("a", "alpha", "b", "beta", "c", "lambda", "d", "delta", "gamma", "e"),
            (-4.0, 0.05, -4.0, 0.05, -4.0, -0.6, -4.0, -0.3, 0.05, -3.0), (1.0, 0.8, 1.0, 0.8, 0.0, 0.2, 1.0, 0.6, 0.8, 1.0), _abnar,
            _abnar_constants, {"params": 4, "expansion": 4, "tokens": 3}, ("a", "b", "c", "d", "e")),
    ),
    "ludziejewski": (
        Law("ludziejewski", JOINT, JOINT_SOURCE, (*_JOINT_NAMES, "E_start", "E_max"), (*_JOINT_LOW, 0.0, 2.0),
            (*_JOINT_HIGH, 1.0, 6.0), _ludziejewski_saturating, _ludziejewski_constants, {"active": 3, "expansion": TO_SATURATE, "tokens": 3},
            ("a", "b", "c")),
        Law("ludziejewski", JOINT + ", E^ = E/k", JOINT_SOURCE, _JOINT_NAMES, _JOINT_LOW, _JOINT_HIGH, _ludziejewski, _ludziejewski_constants,
            {**_LEVELS, "tokens": 3}, ("a", "b", "c")),
    ),
}  # fmt: skip
