"""The seed effect: how far a seed shifts the log losses of all configurations together.

M runs, S seeds.
"""

import math
from dataclasses import dataclass

import numpy as np

from moe_cli.report.scaling.observations import Array


@dataclass(frozen=True)
class SeedEffect:
    """Common shifts u_s of log loss, one per seed, independent and normal.

    Attributes:
        seeds: [S], in order.
        shares: [S], fractions of all runs of the fit. The fit includes the sum of shares x u in its constants.
        shifts: [S], estimates of u around the fit: the mean residual of each seed.
    """

    seeds: Array
    shares: Array
    shifts: Array

    @property
    def deviation(self) -> float | None:
        """Returns the standard deviation of u, estimated with S - 1 degrees of freedom; None with one seed."""
        return float(np.std(self.shifts, ddof=1)) if len(self.seeds) > 1 else None

    def without(self, residuals: Array, seed: Array) -> Array:
        """Returns the residuals [M] of runs with these seeds [M], minus the seeds' shifts; unchanged with one seed."""
        return residuals - self.shifts[np.searchsorted(self.seeds, seed)] if len(self.seeds) > 1 else residuals

    def distance(self, seed: Array) -> float:
        """Computes the standard deviation, in that of u, of the mean shift of runs with these seeds minus the fit's.

        It is sqrt(sum of (h_s - w_s)^2) over all seeds, with h and w a seed's fractions of the runs and of the fit:
        0 for runs with the seeds of a balanced fit, sqrt(1 + 1 / S) for a run of another seed.
        """
        every = np.union1d(self.seeds, seed)
        own = np.array([np.mean(seed == value) for value in every])
        fitted = np.zeros(len(every))
        fitted[np.searchsorted(every, self.seeds)] = self.shares
        return math.sqrt(float(((own - fitted) ** 2).sum()))

    def draw(self, rng: np.random.Generator, size: int, distance: float) -> Array:
        """Draws shifts [size] of log loss at this distance from the fit: Student's t with S - 1 degrees of freedom.

        A bootstrap over two or three seeds has too few samples for an interval. The t distribution is exact for a
        normal shift, and includes the uncertainty of a deviation estimated from few seeds. The result is 0 for one
        seed.
        """
        if self.deviation is None:
            return np.zeros(size)
        return self.deviation * distance * rng.standard_t(len(self.seeds) - 1, size)


def seed_effect(residuals: Array, seed: Array) -> SeedEffect:
    """Estimates the shifts from the residuals of log loss (measured minus predicted) [M], and the runs' seeds [M]."""
    seeds, places, counts = np.unique(seed, return_inverse=True, return_counts=True)
    shifts = np.bincount(places, residuals) / counts
    return SeedEffect(seeds, counts / len(seed), shifts)
