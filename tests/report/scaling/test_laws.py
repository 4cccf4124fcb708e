"""The laws are those of the papers."""

from typing import Any

import numpy as np
import pytest
from scipy.optimize import approx_fprime

from moe_cli.report.scaling.laws import LAWS, Law, make_normalisation, saturated
from moe_cli.report.scaling.least_squares import jacobian
from tests.report.scaling.planted import FORMS, grid

VARIANTS = [law for variants in LAWS.values() for law in variants]


def drawn(law: Law, seed: int) -> Any:
    """Free numbers from the middle of the box, where none is extreme."""
    low, high = np.array(law.low), np.array(law.high)
    return low + (high - low) * np.random.default_rng(seed).uniform(0.2, 0.8, len(low))


@pytest.mark.parametrize("law", VARIANTS, ids=lambda law: f"{law.name}-{len(law.names)}")
def test_constants_are_those_of_the_paper(law: Law) -> None:
    """The paper's equation, written directly, with the public constants gives what the free numbers give."""
    points = grid(lambda at: np.ones(len(at)), fine=(1, 2, 8))
    for seed in range(3):
        theta, normalisation = drawn(law, seed), make_normalisation(points)
        expected = FORMS[law.name](points, **law.to_paper_constants(theta, normalisation))
        assert expected == pytest.approx(np.exp(law.log_loss(theta[None], points, normalisation)[0]), rel=1e-9)


@pytest.mark.parametrize("law", VARIANTS, ids=lambda law: f"{law.name}-{len(law.names)}")
def test_derivatives_equal_scipys(law: Law) -> None:
    """The complex step gives the derivatives that finite differences approach."""
    points = grid(lambda at: np.ones(len(at)), fine=(1, 2))
    theta, normalisation = drawn(law, 1), make_normalisation(points)
    expected = approx_fprime(theta, lambda free: law.log_loss(free[None], points, normalisation)[0], 1e-7)
    assert expected == pytest.approx(
        jacobian(lambda free: law.log_loss(free, points, normalisation), theta[None])[0], abs=2e-5
    )


def test_saturation_has_its_limits() -> None:
    """E^ of one expert is E_start, of ever more E_max, and without bounds E itself."""
    assert 2.0 == pytest.approx(saturated(1.0, 2.0, 50.0))
    assert 50.0 == pytest.approx(saturated(1e12, 2.0, 50.0))
    assert [1.0, 7.0, 64.0] == pytest.approx(saturated(np.array([1.0, 7.0, 64.0]), 1.0, np.inf))


@pytest.mark.parametrize("law", VARIANTS, ids=lambda law: f"{law.name}-{len(law.names)}")
def test_level_moves_log_loss_alone(law: Law) -> None:
    """A shift of log loss that all configurations share is the same shift of the numbers in `shift_names`."""
    points = grid(lambda at: at.active**-0.1)
    theta = np.random.default_rng(0).uniform(law.low, law.high)
    normalisation, shifted = make_normalisation(points), np.isin(law.names, law.shift_names)
    before, after = (law.log_loss((theta + x * shifted)[None], points, normalisation) for x in (0.0, 0.3))
    assert before + 0.3 == pytest.approx(after, abs=1e-9)
