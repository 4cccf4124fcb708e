"""Fits a law to points, with intervals. Where the points support none, the error gives the reason and a command.

There are M runs, P free numbers and B bootstrap samples.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from moe_cli.errors import ConfigError
from moe_cli.report.intervals import CONFIDENCE
from moe_cli.report.scaling.laws import LAWS, Law, Normalisation, make_normalisation
from moe_cli.report.scaling.least_squares import jacobian, minimise
from moe_cli.report.scaling.observations import Array, Points
from moe_cli.report.scaling.seeds import SeedEffect, seed_effect

AUTO = "auto"
STARTS, FINALISTS, SAMPLES, FOLDS, ROUNDS = 96, 8, 200, 5, 100
FIRST_DELTA = 1e-2
# Huber's constant. The fit has 95 % of the efficiency of least squares if the noise is normal.
HUBER = 1.345
# The efficiency of the median absolute deviation if the noise is normal.
MEDIAN = 0.37
# Values within this factor count as one, because models of equal active parameters differ by the size of a gate.
SAME_VALUE_RATIO = 1.1
# With a standard error of 5, a logarithm or an exponent is not determined.
UNKNOWN, DEGENERATE = 5.0, 1e-9
SEED = 20240212
REMEDY_COMMAND = {
    "params": "moe sweep scaling",
    "active": "moe sweep scaling",
    "expansion": "moe sweep scaling expert=1,2,4,8,16,32",
    "tokens": "moe sweep scaling train.tokens=262144,524288,1048576,2097152",
    "granularity": "moe sweep granularity",
}
COLUMN_DESCRIPTION = {
    "params": "sizes of model",
    "active": "sizes of model",
    "expansion": "ratios expert/k",
    "tokens": "numbers of training tokens",
    "granularity": "granularities d_ff/d_expert",
}


class NotIdentifiable(ConfigError):
    """The points do not determine the constants of this law."""


@dataclass(frozen=True)
class Coefficient:
    """One constant of a law, with its 95 % bootstrap interval."""

    name: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class RejectedLaw:
    """A law that was not chosen: its held-out error, or why it could not be fitted at all."""

    law: str
    held_out: float | None
    reason: str | None


@dataclass(frozen=True)
class Noise:
    """The noise of log loss: a robust standard deviation, and its degrees of freedom."""

    deviation: float
    degrees: float

    def draw(self, rng: np.random.Generator, size: int) -> Array:
        """Draws values [size] from Student's t distribution, which includes the error of the deviation."""
        return self.deviation * rng.standard_t(self.degrees, size)


@dataclass(frozen=True)
class Fit:
    """A law fitted to points.

    Attributes:
        theta: the free numbers [P].
        samples: the free numbers of the bootstrap samples [B, P].
        scale: the robust standard deviation of log loss around the law, about the relative error of one run.
        held_out: the root mean square error of log loss on configurations that were left out of the fit.
        rejected: the other laws that were tried.
        seed_shifts: the shift of log loss that the seeds have in common, drawn for each bootstrap sample [B].
    """

    law: Law
    points: Points
    normalisation: Normalisation
    theta: Array
    samples: Array
    scale: float
    constants: tuple[Coefficient, ...]
    held_out: float
    rejected: tuple[RejectedLaw, ...] = ()
    seed_shifts: Array = field(default_factory=lambda: np.zeros(1))

    @property
    def residuals(self) -> Array:
        """Returns the measured log loss minus the predicted one, for each run [M]."""
        result: Array = np.log(self.points.loss) - self.log_loss(self.points)
        return result

    @property
    def seeds(self) -> SeedEffect:
        """Returns the shifts of all log losses that runs of one seed share."""
        return seed_effect(self.residuals, self.points.seed)

    @property
    def run_noise(self) -> Noise:
        """Returns the noise of one run around the law, without the common shift of its seed."""
        return make_noise(self.seeds.without(self.residuals, self.points.seed), len(self.theta))

    @property
    def mean_noise(self) -> Noise:
        """Returns the noise of the mean over the seeds of a configuration."""
        _, places = np.unique(self.points.cluster, return_inverse=True)
        return make_noise(np.bincount(places, self.residuals) / np.bincount(places), len(self.theta))

    def log_loss(self, points: Points) -> Array:
        """Returns the log loss that the law predicts for other points [M]."""
        result: Array = self.law.log_loss(self.theta[None, :], points, self.normalisation)[0]
        return result

    def sampled(self, points: Points) -> Array:
        """Returns the predicted log loss of every bootstrap sample [B, M]."""
        with np.errstate(all="ignore"):
            return self.law.log_loss(self.samples, points, self.normalisation)


def fit(points: Points, law: str = AUTO, samples: int = SAMPLES) -> Fit:
    """Fits the law to the runs. `auto` chooses the law with the least error on held-out configurations.

    Raises:
        ConfigError: no such law exists.
        NotIdentifiable: the points cannot support the law, or any law.
    """
    if law != AUTO:
        if law not in LAWS:
            raise ConfigError(f"no scaling law '{law}'. There are: {', '.join(LAWS)}, and auto.")
        return fit_law(points, law, samples)
    found: list[Fit] = []
    rejected: list[RejectedLaw] = []
    for name in LAWS:
        try:
            candidate = fit_law(points, name, 0)
        except NotIdentifiable as error:
            rejected.append(RejectedLaw(name, None, str(error)))
            continue
        if len(candidate.points) < len(points):
            rejected.append(RejectedLaw(name, None, f"{name} has no term for dense runs. Fit the others: --law {name}"))
        else:
            found.append(candidate)
    if not found:
        raise NotIdentifiable(_why_no_law(rejected))
    best = min(found, key=lambda candidate: candidate.held_out)
    rejected += [
        RejectedLaw(candidate.law.name, candidate.held_out, None) for candidate in found if candidate is not best
    ]
    order = list(LAWS)
    return replace(
        _with_samples(best, samples), rejected=tuple(sorted(rejected, key=lambda entry: order.index(entry.law)))
    )


def _why_no_law(rejected: list[RejectedLaw]) -> str:
    """Returns the reason why the law with the fewest requirements cannot be fitted, in at most three lines."""
    wanted = next((entry for entry in rejected if entry.law == "ludziejewski"), rejected[0])
    return f"these runs support none of the laws {', '.join(entry.law for entry in rejected)}.\n{wanted.reason}"


def fit_law(points: Points, name: str, samples: int = SAMPLES) -> Fit:
    """Fits one law by name, in the fullest form that the points support. Few expansions support no saturation.

    Raises:
        NotIdentifiable: the points support no form. The message says which runs are missing, and their command.
    """
    reasons = []
    for law in LAWS[name]:
        supporting = points.take(points.expansion > 1) if "expansion" in law.constant else points
        try:
            check_support(law, supporting)
            return _with_samples(_fitted(law, supporting), samples)
        except NotIdentifiable as error:
            reasons.append(error)
    raise reasons[-1]


def count_distinct(values: Array) -> int:
    """Returns the number of distinct values. Values within 10 % count as one."""
    if not len(values):
        return 0
    count, last = 1, min(values)
    for value in sorted(values):
        if value > last * SAME_VALUE_RATIO:
            count, last = count + 1, value
    return count


def check_support(law: Law, points: Points) -> None:
    """Raises NotIdentifiable if the points are too few to determine the constants."""
    for column in law.constant:
        values = getattr(points, column)
        if count_distinct(values) > 1:
            span = f"{min(values):.3g} to {max(values):.3g}"
            raise NotIdentifiable(
                f"{law.name} has no term for {COLUMN_DESCRIPTION[column].split()[-1]}, and these runs have "
                f"{count_distinct(values)} values of it ({span}).\n"
                f"Select runs with one value by --where, or fit another law: --law ludziejewski"
            )
    for column, least in law.distinct.items():
        there = count_distinct(getattr(points, column))
        if there < least:
            raise NotIdentifiable(
                f"{law.name} needs at least {least} {COLUMN_DESCRIPTION[column]}; these runs have {there}.\n"
                f"Make more: {REMEDY_COMMAND[column]}"
            )
    size = points.num_configurations
    if size < len(law.names) + 2:
        raise NotIdentifiable(
            f"{law.name} has {len(law.names)} constants and needs at least {len(law.names) + 2} configurations; "
            f"there are {size}.\nMake more: moe sweep scaling"
        )


def _fitted(law: Law, points: Points) -> Fit:
    normalisation = make_normalisation(points)
    model, target = law.on(points, normalisation), np.log(points.loss)[None, :]
    starts = np.random.default_rng(SEED).uniform(law.low, law.high, (STARTS, len(law.low)))
    first = minimise(model, target, starts, FIRST_DELTA, 20)
    best = first.theta[np.argsort(first.cost)[:FINALISTS]]
    second = minimise(model, target, best, FIRST_DELTA, 100)
    theta = second.theta[np.argmin(second.cost)]
    scale = robust_scale(model(theta[None])[0] - target[0], len(theta))
    last = minimise(model, target, np.vstack([theta[None], second.theta]), HUBER * scale, 200)
    theta = last.theta[np.argmin(last.cost)]
    if not np.isfinite(theta).all() or not math.isfinite(last.cost.min()):
        raise NotIdentifiable(f"no constants of {law.name} describe these runs.\nTry another law: --law ludziejewski")
    residuals = model(theta[None])[0] - target[0]
    scale = robust_scale(residuals, len(theta))
    _check_identified(law, jacobian(model, theta[None])[0], scale)
    constants = tuple(
        Coefficient(name, value, value, value) for name, value in law.to_paper_constants(theta, normalisation).items()
    )
    found = Fit(law, points, normalisation, theta, theta[None], scale, constants, math.nan)
    return replace(found, held_out=_held_out(found))


def robust_scale(residuals: Array, num_free: int) -> float:
    """Computes a standard deviation from the median absolute residual, corrected for degrees of freedom."""
    spread = 1.4826 * float(np.median(np.abs(residuals)))
    return max(1e-9, spread * math.sqrt(len(residuals) / max(1, len(residuals) - num_free)))


def make_noise(residuals: Array, num_free: int) -> Noise:
    """Returns the noise that residuals of a fit with this many free numbers show."""
    return Noise(robust_scale(residuals, num_free), max(1.0, MEDIAN * (len(residuals) - num_free)))


def _check_identified(law: Law, slopes: Array, scale: float) -> None:
    """Raises NotIdentifiable if the predictions do not depend on some direction of the constants, or on one of them."""
    sizes = np.linalg.norm(slopes, axis=0)
    worst = law.names[int(np.argmin(sizes))]
    if sizes.min() > DEGENERATE * sizes.max():
        _, singular, directions = np.linalg.svd(slopes / sizes, full_matrices=False)
        worst = law.names[int(np.argmax(np.abs(directions[-1])))]
        if singular[-1] > DEGENERATE * singular[0]:
            errors = scale * np.sqrt(((directions.T / singular) ** 2).sum(1)) / sizes
            worst = law.names[int(np.argmax(errors))]
            if errors.max() < UNKNOWN:
                return
    raise NotIdentifiable(
        f"these runs do not determine the constant {worst} of {law.name}: any value fits as well.\n"
        f"They span too little, or scatter too much. Make more: moe sweep scaling --seeds 3"
    )


def _with_samples(found: Fit, samples: int) -> Fit:
    """Adds intervals by the wild cluster bootstrap (Cameron, Gelbach and Miller 2008).

    The residuals of all seeds of a configuration change sign together. They are enlarged, because a fit lies closer to
    its own points than the true law does. Every sample has all configurations, so none lacks the largest size. The
    residuals do not show the shift that all configurations of a seed share. It is drawn for each sample, and added to
    the constants that shift log loss.
    """
    if not samples:
        return found
    points, theta = found.points, found.theta
    model = found.law.on(points, found.normalisation)
    fitted = model(theta[None])
    slopes = jacobian(model, theta[None])[0]
    residuals = _cr3_residuals(np.log(points.loss) - fitted[0], slopes, points.cluster)
    rng = np.random.default_rng(SEED)
    clusters, places = np.unique(points.cluster, return_inverse=True)
    signs = rng.choice([-1.0, 1.0], (samples, len(clusters)))[:, places]
    start = np.repeat(theta[None], samples, 0)
    drawn = minimise(model, fitted + residuals * signs, start, HUBER * found.scale, ROUNDS).theta
    seeds = found.seeds
    shifts = seeds.draw(rng, samples, math.sqrt(float((seeds.shares**2).sum())))
    drawn = drawn + shifts[:, None] * np.isin(found.law.names, found.law.shift_names)
    finite = np.isfinite(drawn).all(1)
    drawn, shifts = drawn[finite], shifts[finite]
    values = [found.law.to_paper_constants(sample, found.normalisation) for sample in drawn]
    constants = tuple(_interval(constant, [value[constant.name] for value in values]) for constant in found.constants)
    return replace(found, samples=drawn, constants=constants, seed_shifts=shifts)


def _cr3_residuals(residuals: Array, slopes: Array, clusters: Array) -> Array:
    """Computes (I - H_cc)^-1 r_c, the errors of a configuration c if left out (CR3, Cameron and Miller 2015)."""
    pull = slopes @ np.linalg.pinv(slopes)
    result = residuals.copy()
    for cluster in np.unique(clusters):
        own = np.flatnonzero(clusters == cluster)
        # The bound is for a configuration that alone determines a direction: its eigenvalue is 0.
        values, vectors = np.linalg.eigh(np.eye(len(own)) - pull[np.ix_(own, own)])
        result[own] = vectors @ (vectors.T @ residuals[own] / np.maximum(values, 0.1))
    return result


def _interval(constant: Coefficient, values: list[float]) -> Coefficient:
    low, high = quantiles(np.array(values))
    return replace(constant, low=float(low), high=float(high))


def quantiles(values: Array) -> Any:
    """Returns the ends of the 95 % percentile interval along the first axis. NaN counts as infinite."""
    tail = (1 - CONFIDENCE) / 2
    ordered = np.sort(np.where(np.isnan(values), np.inf, values), axis=0)
    last = len(ordered) - 1
    return ordered[round(tail * last)], ordered[round((1 - tail) * last)]


def _held_out(found: Fit) -> float:
    """Computes the root mean square error of log loss when each fifth of the configurations is held out."""
    points, law = found.points, found.law
    order = np.random.default_rng(SEED).permutation(np.unique(points.cluster))
    errors = []
    for fold in range(min(FOLDS, len(order))):
        out = np.isin(points.cluster, order[fold::FOLDS])
        theta = _refit(found, points.take(~out))
        errors.append(law.log_loss(theta[None], points.take(out), found.normalisation)[0] - np.log(points.loss[out]))
    return float(np.sqrt((np.concatenate(errors) ** 2).mean()))


def _refit(found: Fit, points: Points) -> Array:
    """Returns theta fitted to a part of the points. The search starts at theta of all points."""
    model, target = found.law.on(points, found.normalisation), np.log(points.loss)[None]
    theta: Array = minimise(model, target, found.theta[None], HUBER * found.scale, 60).theta[0]
    return theta
