"""Loss against training tokens, one curve for each configuration, for runs that support no scaling law.

    L(D) = f + A ((D / D0)^-b - 1) / b,   and f - A ln(D / D0) for b = 0

D are training tokens, D0 their geometric mean. For b > 0 this is the power law with a floor of Hoffmann et al. 2022
(arXiv:2203.15556, eq. 2) at a fixed model. For b <= 0 the loss falls faster than that, as it may early in training.
f and A of each configuration have flat priors. Its exponent b is normal around an exponent of all configurations, with
deviation 0.05, and that one is normal with mean 0.3 and deviation 0.3. The noise of a run is relative to its loss, and
is the same for all configurations: it is estimated from seeds, with a flat prior of its logarithm. A shift that all
runs of a seed share is not noise, because the prediction is for the same seeds.

The posterior of the exponents and of the noise is computed on a grid, and f and A are integrated exactly (Bayesian
linear regression). So the intervals contain the noise, and the extrapolation with all exponents that the runs allow.

B budgets, G exponents, S values of the noise, N draws.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moe_cli.formatting import plural
from moe_cli.report.scaling.fit import SEED, NotIdentifiable
from moe_cli.report.scaling.observations import Array

MIN_BUDGETS = 3
# With fewer degrees of freedom the runs do not show how far two runs of one configuration differ.
MIN_DEGREES = 3
PRIOR_EXPONENT, PRIOR_DEVIATION, OWN_DEVIATION = 0.3, 0.3, 0.05
DRAWS = 5000
_EXPONENTS = np.linspace(-0.9, 1.5, 97)
_NOISES = np.geomspace(1e-5, 0.5, 80)


@dataclass(frozen=True)
class Losses:
    """The losses of runs, each of shape [M].

    Attributes:
        cell: the configuration with its budget, 0 to C - 1.
        seed: of the run.
        loss: in any unit, above 0.
    """

    cell: Array
    seed: Array
    loss: Array


@dataclass(frozen=True)
class SeedMeans:
    """The means over the seeds of each cell, and the differences between seeds that no shift of a seed explains.

    Attributes:
        means, counts: [C], the geometric mean of the losses, and its number of runs.
        squares, degrees: the sum of squares of the residual log losses, and its degrees of freedom.
    """

    means: Array
    counts: Array
    squares: float
    degrees: int


@dataclass(frozen=True)
class Curve:
    """The cells of one configuration.

    Attributes:
        tokens, means, counts: [B], the training tokens, the mean losses and the numbers of runs.
    """

    tokens: Array
    means: Array
    counts: Array


def seed_means(losses: Losses) -> SeedMeans:
    """Separates the log losses into cells and shifts of seeds, by least squares; the shifts have mean 0.

    Raises:
        NotIdentifiable: too few runs of a configuration differ in the seed alone.
    """
    cells, cell = np.unique(losses.cell, return_inverse=True)
    seeds, seed = np.unique(losses.seed, return_inverse=True)
    shifts = (np.arange(len(seeds)) == seed[:, None]).astype(float)
    shifts = shifts[:, 1:] - shifts[:, :1]  # the last S - 1 shifts; the first is minus their sum
    design = np.hstack([(np.arange(len(cells)) == cell[:, None]).astype(float), shifts])
    target = np.log(losses.loss)
    found, _, rank, _ = np.linalg.lstsq(design, target, rcond=None)
    degrees = len(target) - int(rank)
    if degrees < MIN_DEGREES:
        raise NotIdentifiable(
            f"{plural(len(target), 'run')} of {plural(len(cells), 'configuration')} with {plural(len(seeds), 'seed')} "
            "do not show the noise of a run.\nMake more with other seeds: --seeds 3"
        )
    squares = float(((target - design @ found) ** 2).sum())
    return SeedMeans(np.exp(found[: len(cells)]), np.bincount(cell), squares, degrees)


def predict_losses(
    curves: Sequence[Curve],
    wanted: Sequence[int],
    tokens: Sequence[float],
    seeds: int,
    noise: SeedMeans,
    draws: int = DRAWS,
) -> Array:
    """Draws the mean loss over new runs of some configurations, with the seeds that their curves have [W, N].

    Args:
        curves: all configurations that determine the common exponent; those with fewer than three budgets do not count.
        wanted: the indices [W] of the predicted ones.
        tokens: the training tokens [W] of the new runs.
        seeds: the number of new runs of each.
        noise: of all runs that show it.

    Raises:
        NotIdentifiable: a predicted curve has fewer than three budgets.
    """
    for index in wanted:
        if (size := len(curves[index].tokens)) < MIN_BUDGETS:
            raise NotIdentifiable(
                f"a curve over training tokens needs at least {MIN_BUDGETS} budgets of a configuration; there "
                f"{'is' if size == 1 else 'are'} {size}.\nMake more: moe sweep with three values of train.tokens"
            )
    fitted = {index: _Posterior(curve) for index, curve in enumerate(curves) if len(curve.tokens) >= MIN_BUDGETS}
    near = _log_normal(_EXPONENTS[:, None] - _EXPONENTS[None], OWN_DEVIATION)
    joint = (-noise.degrees * np.log(_NOISES) - noise.squares / (2 * _NOISES**2))[:, None]
    joint = joint + _log_normal(_EXPONENTS - PRIOR_EXPONENT, PRIOR_DEVIATION)[None]
    for posterior in fitted.values():
        joint = joint + _log_product(posterior.log_weights, near)
    rng = np.random.default_rng(SEED)
    weights = np.exp(joint - joint.max()).ravel()
    drawn = rng.choice(weights.size, draws, p=weights / weights.sum())
    noises, common = np.unravel_index(drawn, joint.shape)
    found = []
    for index, at in zip(wanted, tokens, strict=True):
        exponents = _draw(rng, fitted[index].log_weights[noises] + near[common])
        found.append(fitted[index].draw(rng, at, exponents, _NOISES[noises], seeds))
    return np.stack(found)


class _Posterior:
    """The exact posterior of a curve's f and A, given the noise and the exponent.

    Attributes:
        log_weights: [S, G], the log likelihood of each noise and exponent.
    """

    def __init__(self, curve: Curve) -> None:
        self._centre = float(np.log(curve.tokens).mean())
        basis = _basis(np.log(curve.tokens) - self._centre)
        weights = curve.counts / curve.means**2
        self._inner = np.einsum("gbp,b,gbq->gpq", basis, weights, basis)
        moments = np.einsum("gbp,b->gp", basis, weights * curve.means)
        self._theta = np.linalg.solve(self._inner, moments[:, :, None])[:, :, 0]
        squares = (weights * (curve.means - np.einsum("gbp,gp->gb", basis, self._theta)) ** 2).sum(1)
        self.log_weights = (
            -np.log(np.linalg.det(self._inner))[None] / 2
            - squares[None] / (2 * _NOISES[:, None] ** 2)
            - (len(curve.tokens) - 2) * np.log(_NOISES[:, None])
        )

    def draw(self, rng: np.random.Generator, tokens: float, exponents: Array, noises: Array, seeds: int) -> Array:
        """Draws the mean loss over `seeds` runs, for each index of an exponent and each noise [N]."""
        new = _basis(np.array([math.log(tokens) - self._centre]))[:, 0]
        mean = np.einsum("gp,gp->g", new, self._theta)[exponents]
        variance = np.einsum("gp,gp->g", new, np.linalg.solve(self._inner, new[:, :, None])[:, :, 0])[exponents]
        deviation = noises * np.sqrt(variance + mean**2 / seeds)
        result: Array = mean + deviation * rng.standard_normal(len(noises))
        return result


def _log_normal(values: Array, deviation: float) -> Array:
    """Returns the log density of a normal distribution with mean 0, normalised over the grid."""
    result = -(values**2) / (2 * deviation**2)
    normalised: Array = result - np.log(np.exp(result).sum(-1, keepdims=True))
    return normalised


def _log_product(log_weights: Array, log_kernel: Array) -> Array:
    """Returns log of exp(log_weights) [S, G] times exp(log_kernel) [G0, G], summed over G [S, G0]."""
    top = log_weights.max(1, keepdims=True)
    with np.errstate(divide="ignore"):
        result: Array = top + np.log(np.exp(log_weights - top) @ np.exp(log_kernel).T)
    return result


def _basis(log_tokens: Array) -> Array:
    """Returns the columns 1 and (exp(-b x) - 1) / b for each exponent b and each x = ln(D / D0) [G, B, 2]."""
    flat = np.abs(_EXPONENTS) < 1e-9
    safe = np.where(flat, 1.0, _EXPONENTS)[:, None]
    falling = np.where(flat[:, None], -log_tokens[None], np.expm1(-safe * log_tokens[None]) / safe)
    return np.stack([np.ones_like(falling), falling], axis=-1)


def _draw(rng: np.random.Generator, log_weights: Array) -> Array:
    """Draws an index for each row of unnormalised log weights [N, S]."""
    weights = np.exp(log_weights - log_weights.max(1, keepdims=True))
    cumulative = np.cumsum(weights, axis=1)
    points = rng.random(len(weights)) * cumulative[:, -1]
    result: Array = (cumulative < points[:, None]).sum(1)
    return result
