"""Robust least squares for many problems at once: Levenberg-Marquardt on a Huber loss. numpy alone.

B problems that differ in their start or in their data, P free numbers, M residuals each.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from moe_cli.report.scaling.observations import Array

Model = Callable[[Array], Array]
# The derivative along the imaginary axis has no cancellation, so the step may be as small as numbers go.
STEP = 1e-30


@dataclass(frozen=True)
class Solution:
    """The result for each problem: theta [B, P], Huber cost [B]."""

    theta: Array
    cost: Array


def huber(residuals: Array, delta: Any) -> Array:
    """Computes Huber's loss: r^2 / 2 within delta, delta (|r| - delta / 2) beyond (Huber 1964)."""
    size = np.abs(residuals)
    return np.where(size <= delta, size**2 / 2, delta * (size - delta / 2))


def jacobian(model: Model, theta: Array) -> Array:
    """Derivatives [B, M, P] by a complex step, exact to rounding (Squire and Trapp 1998)."""
    columns = []
    for index in range(theta.shape[1]):
        moved = theta.astype(complex)
        moved[:, index] += 1j * STEP
        columns.append(model(moved).imag / STEP)
    return np.stack(columns, axis=-1)


def minimise(model: Model, target: Array, start: Array, delta: float, rounds: int = 60) -> Solution:
    """Lowers the sum of Huber losses of model(theta) - target from each start.

    Each round solves the damped normal equations with Huber's weights min(1, delta / |r|), the step of iteratively
    reweighted least squares, and takes it where the cost falls (Levenberg 1944, Marquardt 1963).

    Args:
        target: [B, M], or [1, M] where all problems have the same data.
        start: [B, P].
    """
    theta = start.copy()
    damping = np.full(len(theta), 1e-2)
    with np.errstate(all="ignore"):
        residuals = model(theta) - target
        cost = _total(residuals, delta)
        for _ in range(rounds):
            step = _step(jacobian(model, theta), residuals, damping, delta)
            proposed = theta + step
            new = model(proposed) - target
            new_cost = _total(new, delta)
            better = new_cost < cost
            gained = np.where(better, cost - new_cost, 0.0)
            theta = np.where(better[:, None], proposed, theta)
            residuals = np.where(better[:, None], new, residuals)
            damping = np.clip(np.where(better, damping / 5, damping * 4), 1e-12, 1e12)
            settled = ~better & (damping > 1e8) | better & (gained <= 1e-12 * cost)
            cost = np.where(better, new_cost, cost)
            if settled.all():
                break
    return Solution(theta, cost)


def _total(residuals: Array, delta: float) -> Array:
    cost = huber(residuals, delta).sum(1)
    return np.where(np.isfinite(cost), cost, np.inf)


def _step(slopes: Array, residuals: Array, damping: Array, delta: float) -> Array:
    weights = delta / np.maximum(np.abs(residuals), delta)
    weighted = slopes * weights[:, :, None]
    curvature = np.einsum("bmp,bmq->bpq", weighted, slopes)
    gradient = np.einsum("bmp,bm->bp", weighted, residuals)
    size = np.einsum("bpp->bp", curvature)
    floor = 1e-12 * np.maximum(size.max(1, keepdims=True), 1e-12)
    places = np.arange(curvature.shape[1])
    curvature[:, places, places] += damping[:, None] * np.maximum(size, floor) + floor
    bad = ~(np.isfinite(curvature).all((1, 2)) & np.isfinite(gradient).all(1))
    curvature[bad], gradient[bad] = np.eye(len(places)), 0.0
    # No step may leave the region in which exponentials are finite.
    return np.clip(-np.linalg.solve(curvature, gradient[:, :, None])[:, :, 0], -2.0, 2.0)
