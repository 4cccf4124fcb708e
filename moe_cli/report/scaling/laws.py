"""The forms of four scaling laws, each with its source, its requirements for a fit, and its constants.

A law is a function of free numbers theta. All of them are of order one: N and D are divided by their geometric means,
and theta has the logarithms of constants that must be positive. `to_paper_constants` converts theta to the constants of
the paper. B is the number of sets of constants that are evaluated together, P the number of free numbers, M of runs.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from moe_cli.report.scaling.observations import Array, Points

Constants = dict[str, float]


@dataclass(frozen=True)
class Normalisation:
    """The geometric means over the fitted points of all parameters, of active parameters, and of tokens."""

    params: float
    active: float
    tokens: float


def make_normalisation(points: Points) -> Normalisation:
    means = [math.exp(np.log(values).mean()) for values in (points.params, points.active, points.tokens)]
    return Normalisation(*means)


LogLoss = Callable[[Array, Points, Normalisation], Array]


@dataclass(frozen=True)
class Law:
    """One form of a law.

    Attributes:
        equation, source: as in the paper.
        names: the names of the free numbers, in order.
        low, high: the box from which starting points are drawn.
        log_loss: (theta [B, P], points [M], normalisation) -> log L [B, M], complex-analytic in theta.
        to_paper_constants: (theta [P], normalisation) -> the paper's constants.
        distinct: the number of distinct values of each column of Points that determines the constants.
        constant: columns that must not vary, since the form has no term for them.
        shift_names: the free numbers that shift log L: adding x to all of them adds x to log L.
    """

    name: str
    equation: str
    source: str
    names: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    log_loss: LogLoss
    to_paper_constants: Callable[[Array, Normalisation], Constants]
    distinct: Mapping[str, int]
    shift_names: tuple[str, ...]
    constant: tuple[str, ...] = ()

    def on(self, points: Points, normalisation: Normalisation) -> Callable[[Array], Array]:
        """Returns the function theta [B, P] -> log L [B, M] of these points."""
        return lambda theta: self.log_loss(theta, points, normalisation)


def saturated(expansion: Any, start: Any, most: Any) -> Any:
    """Computes Clark's saturation, eq. 20 of arXiv:2202.01169: 1/E^ = 1/(E - 1 + 1/(1/E_start - 1/E_max)) + 1/E_max.

    E^(1) = E_start, E^ tends to E_max, and the result is E itself if E_start = 1 and E_max = infinity.
    """
    return 1 / (1 / (expansion - 1 + 1 / (1 / start - 1 / most)) + 1 / most)


def _columns(theta: Array) -> list[Array]:
    return [theta[:, index : index + 1] for index in range(theta.shape[1])]


def _log_expansion(points: Points, saturation: Sequence[Array]) -> Array:
    """Computes log E^, where E^ = E without a saturation.

    A saturation (start, span) has E_start = exp(start) and E_max = E_start + exp(span), so that E_max is the larger.
    """
    expansion = points.expansion[None, :]
    if saturation:
        start, span = saturation
        first = np.exp(start)
        expansion = saturated(expansion, first, first + np.exp(span))
    result: Array = np.log(expansion)
    return result


def _saturation(start: float, span: float) -> Constants:
    first = math.exp(start)
    return {"E_start": first, "E_max": first + math.exp(min(span, 700.0))}


def _clark(theta: Array, points: Points, normalisation: Normalisation) -> Array:
    """Computes log L from the paper's a and b, its c divided by ln 10, and its d multiplied by ln 10."""
    a, b, c, d, *saturation = _columns(theta)
    size, log_e = np.log(points.active[None, :] / normalisation.active), _log_expansion(points, saturation)
    result: Array = a * size + b * log_e + c * size * log_e + d
    return result


def _clark_constants(theta: Array, normalisation: Normalisation) -> Constants:
    """Converts theta, for ln and N / N0, to log10 L = a log10 N + b log10 E^ + c log10 N log10 E^ + d."""
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


def _ludziejewski(theta: Array, points: Points, normalisation: Normalisation) -> Array:
    a, delta, alpha, gamma, b, omega, beta, zeta, c, *saturation = _columns(theta)
    log_e = _log_expansion(points, saturation)
    size = np.log(points.active[None, :] / normalisation.active)
    tokens = np.log(points.tokens[None, :] / normalisation.tokens)
    of_size = np.exp(a + delta * log_e + (alpha + gamma * log_e) * size)
    of_tokens = np.exp(b + omega * log_e + (beta + zeta * log_e) * tokens)
    return np.log(of_size + of_tokens + np.exp(c))  # type: ignore[no-any-return]


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


CLARK = "log10 L = a log10 N + b log10 E^ + c log10 N log10 E^ + d,  N active parameters, "
JOINT = "L = a E^^delta N^(alpha + gamma ln E^) + b E^^omega D^(beta + zeta ln E^) + c,  N active parameters"
# Fewer expansions than this do not determine the saturation. The form is then fitted with E^ = E, which is the
# saturation with E_start = 1 and E_max = infinity.
MIN_EXPANSIONS_TO_SATURATE = 6

_SATURATION_NAMES, _SATURATION_LOW, _SATURATION_HIGH = ("E_start", "E_max"), (0.0, 2.0), (1.0, 6.0)

_CLARK = Law(
    name="clark",
    equation=CLARK + "E^ = E/k",
    source="Clark et al. 2022, arXiv:2202.01169",
    names=("a", "b", "c", "d"),
    low=(-0.4, -0.3, -0.05, -1.0),
    high=(0.0, 0.1, 0.05, 2.0),
    log_loss=_clark,
    to_paper_constants=_clark_constants,
    distinct={"active": 3, "expansion": 3},
    shift_names=("d",),
    constant=("tokens",),
)
_JOINT = Law(
    name="ludziejewski",
    equation=JOINT + ", E^ = E/k",
    source="Ludziejewski et al. 2025, arXiv:2502.05172",
    names=("a", "delta", "alpha", "gamma", "b", "omega", "beta", "zeta", "c"),
    low=(-4.0, -0.6, -0.8, -0.1, -4.0, -0.4, -0.8, -0.1, -3.0),
    high=(1.0, 0.2, -0.05, 0.1, 1.0, 0.4, -0.05, 0.1, 1.0),
    log_loss=_ludziejewski,
    to_paper_constants=_ludziejewski_constants,
    distinct={"active": 3, "expansion": 3, "tokens": 3},
    shift_names=("a", "b", "c"),
)


def _with_saturation(law: Law, equation: str) -> Law:
    """Returns the form of a law in which E^ saturates, with the two constants of the saturation."""
    return replace(
        law,
        equation=equation,
        names=(*law.names, *_SATURATION_NAMES),
        low=(*law.low, *_SATURATION_LOW),
        high=(*law.high, *_SATURATION_HIGH),
        distinct={**law.distinct, "expansion": MIN_EXPANSIONS_TO_SATURATE},
    )


# The forms of each law, the fullest first.
LAWS: dict[str, tuple[Law, ...]] = {
    "clark": (_with_saturation(_CLARK, CLARK + "E^ saturating in E/k"), _CLARK),
    "krajewski": (
        Law(
            name="krajewski",
            equation="L = c + (g / G^gamma + a) / N^alpha + b / D^beta,  N all parameters, G = d_ff / d_expert",
            source="Krajewski et al. 2024, arXiv:2402.07871",
            names=("c", "g", "gamma", "a", "alpha", "b", "beta"),
            low=(-3.0, -4.0, 0.2, -4.0, 0.05, -4.0, 0.05),
            high=(1.0, 1.0, 1.5, 1.0, 0.8, 1.0, 0.8),
            log_loss=_krajewski,
            to_paper_constants=_krajewski_constants,
            distinct={"params": 3, "granularity": 3, "tokens": 3},
            shift_names=("c", "g", "a", "b"),
            constant=("expansion",),
        ),
    ),
    "abnar": (
        Law(
            name="abnar",
            equation="L = a/N^alpha + b/D^beta + c/(1-S)^lambda + d/((1-S)^delta N^gamma) + e,  N all parameters, "
            "S = (E-k)/E",
            source="Abnar et al. 2025, arXiv:2501.12370",
            names=("a", "alpha", "b", "beta", "c", "lambda", "d", "delta", "gamma", "e"),
            low=(-4.0, 0.05, -4.0, 0.05, -4.0, -0.6, -4.0, -0.3, 0.05, -3.0),
            high=(1.0, 0.8, 1.0, 0.8, 0.0, 0.2, 1.0, 0.6, 0.8, 1.0),
            log_loss=_abnar,
            to_paper_constants=_abnar_constants,
            distinct={"params": 4, "expansion": 4, "tokens": 3},
            shift_names=("a", "b", "c", "d", "e"),
        ),
    ),
    "ludziejewski": (_with_saturation(_JOINT, JOINT), _JOINT),
}
