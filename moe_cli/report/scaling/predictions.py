"""Results of a fitted law: predictions, their errors on held-out runs, dense models of equal loss, iso-FLOP minima.

There are M points and B bootstrap samples.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from moe_cli.errors import ConfigError
from moe_cli.formatting import plural
from moe_cli.report.run_row import RunRow
from moe_cli.report.scaling.fit import SEED, Fit, Noise, NotIdentifiable, fit, quantiles
from moe_cli.report.scaling.observations import Array, Points, make_points
from moe_cli.runs.folder import COMPLETED

# The search for a dense model of equal loss ends at this many times the compute.
MAX_COMPUTE_RATIO = 1e4
# The number of draws of noise for each bootstrap sample of a prediction.
DRAWS = 20
# --validate predicts this fraction of the configurations, those with the most training FLOPs, from the others.
HELD_OUT = 0.2


@dataclass(frozen=True)
class Prediction:
    """The loss of one configuration.

    Attributes:
        loss: nats per token.
        low, high: the 95 % interval of one run with a new seed. If `measured` is known, that of the mean over its
            seeds. The interval includes the uncertainty of the constants, the noise of the run, and the shift that the
            seed has in common with all configurations. The shift is not included if only one seed was run.
        extrapolation_factor: the largest factor by which sizes, tokens or expansion lie outside the fitted runs; 1
            means that all lie inside.
        measured: the measured loss, the mean over seeds; None means that it was not run.
    """

    label: str
    loss: float
    low: float
    high: float
    extrapolation_factor: float
    measured: float | None = None


@dataclass(frozen=True)
class Validation:
    """Predictions of the largest configurations from the smaller ones.

    Attributes:
        error: the root mean square of log(predicted / measured), about the relative error.
        inside: the number of configurations whose measured loss lies in the interval.
    """

    law: str
    num_fitted: int
    predictions: tuple[Prediction, ...]
    error: float
    inside: int


@dataclass(frozen=True)
class DenseEquivalent:
    """A sparse configuration and the dense model that reaches its loss on the same tokens.

    Attributes:
        compute_ratio: the ratio of training FLOPs of that dense model to a dense model with the active parameters of
            the sparse one, with its 95 % interval; infinite if no dense model of up to 10,000 times the size has this
            loss.
        throughput: tokens per second relative to the dense run of equal active parameters and tokens; None without
            such a run.
    """

    label: str
    compute_ratio: float
    low: float
    high: float
    throughput: float | None

    @property
    def speed_up(self) -> float | None:
        """Returns the speed-up to equal loss on this machine: compute_ratio x throughput."""
        return None if self.throughput is None else self.compute_ratio * self.throughput


@dataclass(frozen=True)
class IsoFlop:
    """Loss against size at one training budget and one expansion.

    Attributes:
        sizes, losses: active parameters and nats per token, by size; the mean over seeds.
        best: the size at the minimum of the parabola of log loss over log size, and its loss; None without a minimum
            inside.
        why: the reason if there is no minimum.
    """

    flops: float
    expansion: float
    sizes: tuple[float, ...]
    losses: tuple[float, ...]
    best: float | None
    best_loss: float | None
    why: str | None


def predict(found: Fit, points: Points, labels: Sequence[str]) -> tuple[Prediction, ...]:
    """Returns the loss of each point, with the interval of one run with a new seed."""
    new = np.array([np.inf])
    return tuple(
        _prediction(found, points.take(np.array([index])), label, found.run_noise, found.seeds.distance(new))
        for index, label in enumerate(labels)
    )


def _prediction(found: Fit, point: Points, label: str, noise: Noise, distance: float) -> Prediction:
    drawn = draw_log_loss(found, point, noise, distance, np.random.default_rng(SEED))
    low, high = np.exp(quantiles(drawn))
    loss, extrapolation_factor = math.exp(found.log_loss(point)[0]), _extrapolation_factors(found.points, point)[0]
    return Prediction(label, loss, float(low), float(high), float(extrapolation_factor))


def draw_log_loss(found: Fit, point: Points, noise: Noise, distance: float, rng: np.random.Generator) -> Array:
    """Draws the log loss of a point: several draws of the noise and of the seeds' shift for each bootstrap sample.

    Args:
        noise: of one run, or of the mean over the seeds of a configuration.
        distance: of the seeds from those of the fit, see `SeedEffect.distance`.
    """
    drawn = np.repeat(found.sampled(point)[:, 0] - found.seed_shifts, DRAWS)
    return drawn + noise.draw(rng, len(drawn)) + found.seeds.draw(rng, len(drawn), distance)


def _extrapolation_factors(known: Points, points: Points) -> Array:
    factors = [np.ones(len(points))]
    for name in ("params", "active", "tokens", "expansion", "granularity"):
        there, values = getattr(known, name), getattr(points, name)
        factors += [values / there.max(), there.min() / values]
    result: Array = np.max(factors, axis=0)
    return result


def validate(points: Points, labels: Sequence[str], law: str) -> Validation:
    """Fits the smaller configurations and predicts the fifth with the most training FLOPs.

    With `auto`, only the smaller configurations choose the law.

    Raises:
        NotIdentifiable: the smaller configurations do not support the law.
    """
    configurations = points.mean_over_seeds()
    order = configurations.cluster[np.argsort(configurations.flops, kind="stable")]
    out = np.isin(points.cluster, order[-max(2, round(HELD_OUT * len(order))) :])
    try:
        found = fit(points.take(~out), law)
    except NotIdentifiable as error:
        raise NotIdentifiable(f"without its largest configurations: {error}") from None
    named = dict(zip(points.cluster, labels, strict=True))
    held_out = points.take(out).mean_over_seeds()
    if "expansion" in found.law.constant:
        held_out = held_out.take(held_out.expansion > 1)
    pairs = []
    for index, cluster in enumerate(held_out.cluster):
        distance = found.seeds.distance(points.seed[points.cluster == cluster])
        predicted = _prediction(found, held_out.take(np.array([index])), named[cluster], found.mean_noise, distance)
        pairs.append(replace(predicted, measured=float(held_out.loss[index])))
    errors = found.log_loss(held_out) - np.log(held_out.loss)
    inside = sum(prediction.low <= (prediction.measured or 0.0) <= prediction.high for prediction in pairs)
    return Validation(
        found.law.name, found.points.num_configurations, tuple(pairs), float(np.sqrt((errors**2).mean())), inside
    )


def dense_equivalents(found: Fit, labels: Mapping[int, str]) -> tuple[DenseEquivalent, ...]:
    """Returns the dense model of equal loss for each sparse configuration; empty for a law without dense models.

    At equal tokens, model FLOPs are proportional to active parameters, so the ratio of FLOPs is the ratio of sizes. For
    L = L_inf + a / N^alpha it is ((L_base - L_inf) / (L_sparse - L_inf))^(1 / alpha).
    """
    if "expansion" in found.law.constant:
        return ()
    configurations = found.points.mean_over_seeds()
    sparse = configurations.take(configurations.expansion > 1)
    values = _compute_ratio(found, found.theta[None], sparse)[0]
    low, high = quantiles(_compute_ratio(found, found.samples, sparse))
    speeds = _throughput(configurations, sparse)
    return tuple(
        DenseEquivalent(
            labels[int(cluster)], float(values[index]), float(low[index]), float(high[index]), speeds[index]
        )
        for index, cluster in enumerate(sparse.cluster)
    )


def _compute_ratio(found: Fit, theta: Array, sparse: Points) -> Array:
    """Computes the ratio of every sample and point by bisection of its logarithm."""
    with np.errstate(all="ignore"):
        wanted = found.law.log_loss(theta, sparse, found.normalisation)
        high = np.full(wanted.shape, math.log(MAX_COMPUTE_RATIO))
        low = -high
        reached = _dense(found, theta, sparse, high) <= wanted
        for _ in range(50):
            middle = (low + high) / 2
            above = _dense(found, theta, sparse, middle) > wanted
            low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.where(reached, np.exp(low), np.inf)


def _dense(found: Fit, theta: Array, sparse: Points, log_factor: Array) -> Array:
    """Computes the log loss of dense models with these multiples of the active parameters, for each row of theta."""
    ones = np.ones(len(sparse))
    rows = []
    for free, factor in zip(theta, np.exp(log_factor), strict=True):
        size = sparse.active * factor
        dense = replace(sparse, params=size, active=size, expansion=ones, density=ones, granularity=ones)
        rows.append(found.law.log_loss(free[None], dense, found.normalisation)[0])
    return np.array(rows)


def _throughput(configurations: Points, sparse: Points) -> list[float | None]:
    dense = configurations.take(configurations.expansion == 1)
    result: list[float | None] = []
    for active, tokens, speed in zip(sparse.active, sparse.tokens, sparse.speed, strict=True):
        near = (np.abs(np.log(dense.active / active)) < 0.1) & (np.abs(np.log(dense.tokens / tokens)) < 0.05)
        known = dense.speed[near & np.isfinite(dense.speed)]
        result.append(float(speed / known.mean()) if len(known) and math.isfinite(speed) else None)
    return result


def iso_flop(runs: Sequence[RunRow]) -> tuple[IsoFlop, ...]:
    """Returns a curve for each budget of FLOPs and expansion of the complete runs; empty for runs with other budgets.

    With runs of both kinds of FLOPs, those of train.flops are taken, because the two do not compare.
    """
    by_budget: dict[float, list[RunRow]] = {}
    for name in ("train.flops", "train.model_flops"):
        for run in runs:
            budget = run.settings.get(name)
            if run.status == COMPLETED and isinstance(budget, int | float):
                by_budget.setdefault(float(budget), []).append(run)
        if by_budget:
            break
    curves = []
    for budget in sorted(by_budget):
        try:
            points = make_points(by_budget[budget]).points.mean_over_seeds()
        except ConfigError:
            continue
        for expansion in np.unique(points.expansion):
            at = points.take(points.expansion == expansion)
            curves.append(make_iso_flop(budget, float(expansion), at.active, at.loss))
    return tuple(curves)


def make_iso_flop(flops: float, expansion: float, sizes: Any, losses: Any) -> IsoFlop:
    """Fits a parabola of log loss over log size by least squares (Hoffmann et al. 2022, approach 2)."""
    order = np.argsort(sizes)
    x, y = np.log(np.asarray(sizes, float)[order]), np.log(np.asarray(losses, float)[order])
    curve = (flops, expansion, tuple(map(float, np.exp(x))), tuple(map(float, np.exp(y))))
    if len(np.unique(x)) < 3:
        return IsoFlop(*curve, None, None, f"{plural(len(np.unique(x)), 'size')}; a parabola needs at least 3")
    middle = x.mean()
    a, b, c = np.polyfit(x - middle, y, 2)
    place = -b / (2 * a) + middle if a > 0 else math.nan
    if not x[0] <= place <= x[-1]:
        way = "smaller" if y[0] < y[-1] else "larger"
        return IsoFlop(*curve, None, None, f"no minimum within these sizes: try {way} ones")
    return IsoFlop(*curve, math.exp(place), math.exp(c - b * b / (4 * a)), None)
