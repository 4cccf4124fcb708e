"""Curves of loss over training tokens: closed forms, calibration on planted curves, refusals."""

import math
from dataclasses import dataclass

import numpy as np
import pytest

from moe_cli.report.scaling.bets import BET_CONFIDENCE
from moe_cli.report.scaling.budget_curves import Curve, Losses, predict_losses, seed_means
from moe_cli.report.scaling.fit import NotIdentifiable, fit_law
from moe_cli.report.scaling.observations import Array
from moe_cli.report.scaling.predictions import draw_log_loss
from tests.report.scaling.planted import JOINT, grid, joint

TOKENS = np.array([131072.0, 262144.0, 524288.0])
LATER = 4 * TOKENS[-1]


@dataclass(frozen=True)
class Planted:
    """Curves f + A (D / D0)^-b of several configurations with these values [F]."""

    floor: Array
    scale: Array
    exponent: Array

    def loss(self, tokens: Array) -> Array:
        """Returns the losses [F, B]."""
        falling = (tokens[None] / TOKENS[1]) ** -self.exponent[:, None]
        return self.floor[:, None] + self.scale[:, None] * falling


def draw_planted(rng: np.random.Generator, number: int) -> Planted:
    """Configurations whose exponents differ as little as those of a law."""
    exponent = rng.normal(rng.uniform(0.15, 0.5), 0.03, number)
    return Planted(rng.uniform(1.0, 1.3, number), rng.uniform(0.9, 1.1, number), exponent)


def observe(truth: Array, shifts: Array, noise: float, rng: np.random.Generator) -> Losses:
    """One run for each cell of `truth` [F, B] and each seed; a seed shifts all log losses."""
    cells, seeds = (axis.ravel() for axis in np.meshgrid(np.arange(truth.size), np.arange(len(shifts)), indexing="ij"))
    return Losses(cells, seeds, truth.ravel()[cells] * np.exp(shifts[seeds] + rng.normal(0, noise, len(cells))))


def predicted(losses: Losses, number: int, draws: int) -> Array:
    """Draws of the loss of each configuration at LATER tokens [F, N]."""
    noise = seed_means(losses)
    means, counts = noise.means.reshape(number, -1), noise.counts.reshape(number, -1)
    curves = [Curve(TOKENS, means[index], counts[index]) for index in range(number)]
    seeds = len(np.unique(losses.seed))
    return predict_losses(curves, range(number), [LATER] * number, seeds, noise, draws)


def coverage(simulations: int, seeds: int, draws: int) -> float:
    """The fraction of new means over the same seeds that lie in their interval, at 0.4 % of noise and of shift."""
    rng, number, inside = np.random.default_rng(5), 4, []
    for _ in range(simulations):
        planted, shifts = draw_planted(rng, number), rng.normal(0, 0.004, seeds)
        drawn = predicted(observe(planted.loss(TOKENS), shifts, 0.004, rng), number, draws)
        low, high = np.quantile(drawn, [(1 - BET_CONFIDENCE) / 2, (1 + BET_CONFIDENCE) / 2], axis=1)
        new = np.exp(shifts + rng.normal(0, 0.004, (number, seeds))).mean(1) * planted.loss(np.array([LATER]))[:, 0]
        inside += list((low <= new) & (new <= high))
    return float(np.mean(inside))


def test_intervals_hold_as_often_as_they_say() -> None:
    """80 % intervals hold in 72 to 88 % of planted curves at the noise of real sweeps."""
    assert 0.72 <= coverage(60, 2, 200) <= 0.88


@pytest.mark.results
@pytest.mark.parametrize("seeds", [2, 3])
def test_intervals_of_many_curves(seeds: int) -> None:
    """As above, with many more draws."""
    assert 0.72 <= coverage(300, seeds, 1000) <= 0.88


@pytest.mark.results
def test_intervals_of_a_scaling_law() -> None:
    """80 % intervals of a fitted law at four times the tokens hold in 72 to 88 % of planted laws."""
    rng, inside = np.random.default_rng(6), []
    for draw in range(60):
        points = grid(lambda at: joint(at, **JOINT), seeds=2, noise=0.004, seed_effect=0.003, draw=draw)
        law = fit_law(points, "ludziejewski", 100)
        new = grid(lambda at: joint(at, **JOINT), sizes=(1e6,), tokens=(6.4e7,), experts=(4,))
        shifts = np.random.default_rng(draw)
        shifts.normal(0, 0.004, len(points))  # the noise that `grid` draws before the shifts of the seeds
        own = new.loss[0] * np.exp(shifts.normal(0, 0.003, 2) + rng.normal(0, 0.004, 2)).mean()
        drawn = np.exp(draw_log_loss(law, new, law.mean_noise, law.seeds.distance(np.array([0, 1])), rng))
        low, high = np.quantile(drawn, [(1 - BET_CONFIDENCE) / 2, (1 + BET_CONFIDENCE) / 2])
        inside.append(low <= own <= high)
    assert 0.72 <= np.mean(inside) <= 0.88


def test_a_curve_without_noise_is_continued() -> None:
    """At 0.02 % of noise the prediction is the planted power law with its floor, within 0.5 %."""
    rng = np.random.default_rng(0)
    planted = draw_planted(rng, 3)
    drawn = predicted(observe(planted.loss(TOKENS), np.zeros(2), 2e-4, rng), 3, 500)
    assert planted.loss(np.array([LATER]))[:, 0] == pytest.approx(np.median(drawn, axis=1), rel=5e-3)


def test_a_shift_of_a_seed_is_no_noise() -> None:
    """A shift of all runs of a seed changes neither the residuals nor, relative to its mean, the prediction."""
    planted = draw_planted(np.random.default_rng(1), 2)
    still, moved = (
        observe(planted.loss(TOKENS), np.array(shifts), 0.003, np.random.default_rng(2))
        for shifts in ((0.0, 0.0, 0.0), (-0.1, 0.1, 0.0))
    )
    assert seed_means(still).squares == pytest.approx(seed_means(moved).squares)
    assert (3 - 1) * (6 - 1) == seed_means(still).degrees
    assert predicted(still, 2, 50) == pytest.approx(predicted(moved, 2, 50))


def test_more_tokens_are_less_certain() -> None:
    """The interval widens with the distance from the budgets, and narrows with less noise."""

    def width(noise: float, later: float) -> float:
        planted = draw_planted(np.random.default_rng(1), 2)
        means = seed_means(observe(planted.loss(TOKENS), np.zeros(3), noise, np.random.default_rng(3)))
        curve = Curve(TOKENS, means.means[:3], means.counts[:3])
        low, high = np.quantile(predict_losses([curve], [0], [later], 3, means, 2000), [0.1, 0.9])
        return math.log(high / low)

    assert width(0.003, 2 * TOKENS[-1]) < width(0.003, 4 * TOKENS[-1]) < width(0.003, 16 * TOKENS[-1])
    assert width(0.001, 4 * TOKENS[-1]) < width(0.01, 4 * TOKENS[-1])


def test_runs_that_show_too_little() -> None:
    """One seed shows no noise, and two budgets no curve."""
    truth = draw_planted(np.random.default_rng(1), 2).loss(TOKENS)
    rng = np.random.default_rng(2)
    with pytest.raises(NotIdentifiable, match="do not show the noise of a run"):
        seed_means(observe(truth, np.zeros(1), 0.003, rng))
    noise = seed_means(observe(truth, np.zeros(2), 0.003, rng))
    with pytest.raises(NotIdentifiable, match="needs at least 3 budgets of a configuration; there are 2"):
        predict_losses([Curve(TOKENS[:2], noise.means[:2], noise.counts[:2])], [0], [LATER], 2, noise)
