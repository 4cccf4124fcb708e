"""The solver against scipy's, and Huber's loss against its definition."""

import numpy as np
import pytest
from scipy.optimize import least_squares

from moe_cli.report.scaling.laws import LAWS, make_normalisation
from moe_cli.report.scaling.least_squares import huber, minimise
from tests.report.scaling.planted import JOINT, grid, joint


def test_huber_is_square_then_straight() -> None:
    """r^2 / 2 within delta; beyond, the line that continues it with the same slope."""
    assert [0.5, 0.0, 2.0, 6.0] == huber(np.array([-1.0, 0.0, 2.0, 4.0]), 2.0).tolist()


@pytest.mark.parametrize("outliers", [0, 3])
def test_minimum_is_scipys(outliers: int) -> None:
    """From the same start, scipy's least squares with its Huber loss find no lower cost, nor another place."""
    law = LAWS["ludziejewski"][-1]
    points = grid(lambda at: joint(at, **JOINT), noise=0.004)
    target = np.log(points.loss)
    target[:outliers] += 0.3
    normalisation, start, delta = make_normalisation(points), (np.array(law.low) + np.array(law.high)) / 2, 0.005
    mine = minimise(lambda free: law.log_loss(free, points, normalisation), target[None], start[None], delta, 300)
    theirs = least_squares(
        lambda free: law.log_loss(free[None], points, normalisation)[0] - target,
        mine.theta[0] + 0.01,
        loss="huber",
        f_scale=delta,
        xtol=1e-12,
        ftol=1e-12,
        gtol=1e-12,
    )
    assert theirs.cost == pytest.approx(mine.cost[0], rel=1e-6)
    predicted = law.log_loss(theirs.x[None], points, normalisation)
    assert predicted == pytest.approx(law.log_loss(mine.theta, points, normalisation), abs=1e-4)


def test_problems_do_not_mix() -> None:
    """Two problems solved at once come to rest where each does alone, with data of its own."""
    x = np.linspace(0, 1, 8)[None]
    targets = np.vstack([2 + 3 * x[0], 5 - x[0]])
    found = minimise(lambda free: free[:, :1] + free[:, 1:] * x, targets, np.zeros((2, 2)), 100.0)
    assert [[2.0, 3.0], [5.0, -1.0]] == [pytest.approx(row, abs=1e-6) for row in found.theta]
