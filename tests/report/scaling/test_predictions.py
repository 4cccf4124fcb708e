"""Predictions, dense equivalents, iso-FLOP minima and validation against closed forms and planted laws."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from moe_cli.errors import ConfigError
from moe_cli.report.load import rows_below
from moe_cli.report.scaling.analysis import Analysis
from moe_cli.report.scaling.fit import Fit, NotIdentifiable, fit_law
from moe_cli.report.scaling.laws import LAWS, Normalisation
from moe_cli.report.scaling.observations import Points, granularity, make_points
from moe_cli.report.scaling.predictions import dense_equivalents, iso_flop, make_iso_flop, predict, validate
from moe_cli.report.scaling.text import analysis_lines
from moe_cli.runs.folder import FAILED
from tests.report.folders import complete, stopped
from tests.report.scaling.planted import CLARK, JOINT, KRAJEWSKI, clark, grid, joint, krajewski


def law_of_sizes(points: Points, *, a: float, delta: float, alpha: float, c: float) -> Fit:
    """L = c + a E^delta / N^alpha, whatever the tokens, as if it had been fitted."""
    theta = np.array([math.log(a), delta, -alpha, 0.0, -700.0, 0.0, 0.0, 0.0, math.log(c)])
    return Fit(LAWS["ludziejewski"][-1], points, Normalisation(1, 1, 1), theta, theta[None], 0.01, (), 0.0)


def test_dense_equivalent_is_the_closed_form() -> None:
    """((L_base - L_inf) / (L_sparse - L_inf))^(1 / alpha) times the compute, and that times throughput the speed-up."""
    a, delta, alpha, c = 30.0, -0.15, 0.3, 1.2
    points = grid(lambda at: c + a * at.expansion**delta / at.active**alpha)
    found = dense_equivalents(law_of_sizes(points, a=a, delta=delta, alpha=alpha, c=c), {n: str(n) for n in range(99)})
    configurations = points.mean_over_seeds()
    sparse, dense = (
        configurations.take(configurations.expansion > 1),
        configurations.take(configurations.expansion == 1),
    )
    base = {(n, d): loss for n, d, loss in zip(dense.active, dense.tokens, dense.loss, strict=True)}
    expected = [
        ((base[n, d] - c) / (loss - c)) ** (1 / alpha)
        for n, d, loss in zip(sparse.active, sparse.tokens, sparse.loss, strict=True)
    ]
    assert expected == pytest.approx([each.compute_ratio for each in found], rel=1e-6)
    assert expected == pytest.approx([each.low for each in found], rel=1e-6)
    assert [1 / e**0.1 for e in sparse.expansion] == pytest.approx([each.throughput for each in found])
    assert [x / e**0.1 for x, e in zip(expected, sparse.expansion, strict=True)] == pytest.approx(
        [each.speed_up for each in found]
    )


def test_a_loss_no_dense_model_reaches_is_infinite() -> None:
    """Below the dense law's floor there is no equal; and a law without dense models has none to offer."""
    points = grid(lambda at: joint(at, **JOINT))
    found = law_of_sizes(points, a=1e-2, delta=-3.0, alpha=0.05, c=1.0)
    assert math.inf == dense_equivalents(found, dict.fromkeys(range(99), ""))[-1].compute_ratio
    fine = grid(lambda at: krajewski(at, **KRAJEWSKI), experts=(8,), fine=(1, 2, 4))
    assert () == dense_equivalents(fit_law(fine, "krajewski", 0), {})


def test_predictions_are_the_planted_losses() -> None:
    """The planted loss of an eight times larger configuration lies in its interval, which is wider than the noise."""
    found = fit_law(grid(lambda at: joint(at, **JOINT), noise=0.003, draw=1), "ludziejewski", 100)
    new = grid(lambda at: joint(at, **JOINT), sizes=(2.4e7,), tokens=(1.6e7,), experts=(8,))
    [prediction] = predict(found, new, ["new"])
    assert prediction.low < new.loss[0] < prediction.high
    assert new.loss[0] == pytest.approx(prediction.loss, rel=0.02)
    assert prediction.high / prediction.low > math.exp(2 * 1.9 * found.scale)
    assert 8.0 == pytest.approx(prediction.extrapolation_factor)
    assert 1.0 == predict(found, found.points.take(np.array([7])), ["old"])[0].extrapolation_factor


def shifted(shifts: tuple[float, ...], noise: float = 1e-4) -> Points:
    """Returns runs of Clark's law; each seed shifts all log losses by its own amount."""
    points = grid(lambda at: clark(at, **CLARK), tokens=(4e6,), seeds=len(shifts), noise=noise)
    return replace(points, loss=points.loss * np.exp(np.array(shifts)[points.seed]))


def log_width(low: float, high: float) -> float:
    return math.log(high / low) / 2


def test_a_new_seed_is_part_of_a_prediction() -> None:
    """Seeds at -1, 0 and 1 % give a half width of t(2) x 1 % x sqrt(1 + 1/3), since the noise is negligible."""
    new = grid(lambda at: clark(at, **CLARK), tokens=(4e6,), sizes=(6e6,), experts=(4,))
    found = fit_law(shifted((-0.01, 0.0, 0.01)), "clark", 100)
    [prediction] = predict(found, new, ["new"])
    assert 0.01 == pytest.approx(found.seeds.deviation, rel=0.02)
    expected = stats.t.ppf(0.975, 2) * 0.01 * math.sqrt(4 / 3)
    assert expected == pytest.approx(log_width(prediction.low, prediction.high), rel=0.15)
    level = next(each for each in found.constants if each.name == "d")
    expected = stats.t.ppf(0.975, 2) * 0.01 / math.sqrt(3) / math.log(10)
    assert expected == pytest.approx((level.high - level.low) / 2, rel=0.35)


def test_one_seed_tells_nothing_of_others() -> None:
    """The shift of a single seed is in no interval, and the lines say so; of several seeds they give the deviation."""
    one, three = (fit_law(shifted(shifts), "clark", 20) for shifts in ((0.01,), (-0.01, 0.0, 0.01)))
    new = grid(lambda at: clark(at, **CLARK), tokens=(4e6,), sizes=(6e6,), experts=(4,))
    assert log_width(*(getattr(predict(one, new, [""])[0], end) for end in ("low", "high"))) < 0.001
    assert (None, np.zeros(20).tolist()) == (one.seeds.deviation, one.seed_shifts.tolist())
    texts = [
        " ".join(line.plain for line in analysis_lines(Analysis(found, 0, (), (), (), None), "t", 400))
        for found in (one, three)
    ]
    assert "One seed was run, so the intervals do not include the variation between seeds" in texts[0]
    assert "A seed shifts all losses together by 1.0 % (standard deviation over 3 seeds)" in texts[1]


def test_what_compares_configurations_leaves_the_seeds_out() -> None:
    """The seeds held out are those of the fit, and a dense equivalent compares losses of equal seeds: neither widens by their shift."""
    still, moved = shifted((0.0, 0.0, 0.0)), shifted((-0.01, 0.0, 0.01))
    [before, after] = (validate(points, [""] * len(points), "clark").predictions for points in (still, moved))
    for one, other in zip(before, after, strict=True):
        assert log_width(one.low, one.high) == pytest.approx(log_width(other.low, other.high), rel=0.5)
        assert log_width(other.low, other.high) < 0.002
    labels = dict.fromkeys(range(99), "")
    equal = [dense_equivalents(fit_law(points, "clark", 50), labels) for points in (still, moved)]
    for one, other in zip(*equal, strict=True):
        assert one.compute_ratio == pytest.approx(other.compute_ratio, rel=0.01)
        assert other.high / other.low < 1.05


@pytest.mark.results
@pytest.mark.parametrize(("seeds", "effect"), [(1, 0.0), (3, 0.008)])
def test_predictions_hold_fresh_runs_of_new_seeds(seeds: int, effect: float) -> None:
    """Over simulated experiments at least 95 % of fresh runs, each of a new seed, lie in their intervals, less 4 standard errors."""
    draws, inside = 100, 0
    design: dict[str, Any] = {"tokens": (4e6,), "noise": 0.004, "seed_effect": effect}
    for draw in range(draws):
        found = fit_law(grid(lambda at: clark(at, **CLARK), seeds=seeds, draw=draw, **design), "clark", 200)
        new = grid(lambda at: clark(at, **CLARK), sizes=(6e6,), experts=(4,), draw=10_000 + draw, **design)
        [prediction] = predict(found, new, [""])
        inside += prediction.low < new.loss[0] < prediction.high
    assert inside / draws >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / draws)


@pytest.mark.results
def test_intervals_cover_as_often_as_they_say() -> None:
    """Over simulated experiments the 95 % intervals hold the planted constants, and new runs outside the design.

    They do so in 95 % of cases, give or take chance.
    """
    inside, hits = [], []
    for draw in range(40):
        found = fit_law(grid(lambda at: joint(at, **JOINT), noise=0.004, draw=draw), "ludziejewski", 100)
        hits.append([each.low <= JOINT[each.name] <= each.high for each in found.constants])
        new = grid(lambda at: joint(at, **JOINT), sizes=(6e6,), tokens=(3.2e7,), noise=0.004, draw=1000 + draw)
        inside += [
            each.low < loss < each.high for each, loss in zip(predict(found, new, [""] * 4), new.loss, strict=True)
        ]
    assert 0.88 <= np.mean(inside) <= 0.99
    assert np.mean(hits, axis=0).min() >= 0.85


def test_validation_holds_the_largest_out() -> None:
    """A fifth of the configurations, those with the most FLOPs, is predicted by a law that has not seen them."""
    points = grid(lambda at: joint(at, **JOINT), seeds=2)
    labels = [f"c{cluster}" for cluster in points.cluster]
    result = validate(points, labels, "ludziejewski")
    configurations = points.mean_over_seeds()
    largest = {
        f"c{cluster}" for cluster in configurations.cluster[np.argsort(configurations.flops, kind="stable")[-10:]]
    }
    assert (38, 10) == (result.num_fitted, len(result.predictions))
    assert largest == {each.label for each in result.predictions}
    assert result.error < 1e-4
    # What was held out does not enter: losses that no law explains are missed.
    wrong = replace(points, loss=points.loss * np.where(np.isin(labels, list(largest)), 1.2, 1.0))
    result = validate(wrong, labels, "ludziejewski")
    assert math.log(1.2) == pytest.approx(result.error, rel=0.01)
    assert 0 == result.inside


def test_validation_refuses_what_remains_too_little() -> None:
    """Where the largest fifth are all the runs of the third size, the rest supports no law."""
    points = grid(lambda at: joint(at, **JOINT), sizes=(1e5, 1.0001e5, 1.0002e5, 2e5, 1e8))
    with pytest.raises(
        NotIdentifiable, match="without its largest configurations: ludziejewski needs at least 3 sizes"
    ):
        validate(points, [""] * len(points), "ludziejewski")


def test_iso_flop_minimum_is_that_of_the_parabola() -> None:
    """The minimum is the vertex of the parabola; without a minimum inside, the reason says which sizes to try."""
    sizes = np.array([1e5, 4e5, 2e5, 8e5])
    found = make_iso_flop(1e12, 4.0, sizes, 2.0 * np.exp(0.05 * (np.log(sizes) - math.log(3e5)) ** 2))
    assert (3e5, 2.0, None) == (pytest.approx(found.best), pytest.approx(found.best_loss), found.why)
    assert (1e5, 2e5, 4e5, 8e5) == pytest.approx(found.sizes)
    falling = make_iso_flop(1e12, 4.0, sizes, 3 - 0.1 * np.log(sizes))
    assert (None, "no minimum within these sizes: try larger ones") == (falling.best, falling.why)
    rising = make_iso_flop(1e12, 4.0, sizes, 1 + 0.1 * np.log(sizes))
    assert "no minimum within these sizes: try smaller ones" == rising.why
    assert "2 sizes; a parabola needs at least 3" == make_iso_flop(1e12, 4.0, [1e5, 2e5], [1.0, 2.0]).why


def sized(outputs: Path, active: int, val_bpb: float, **settings: Any) -> None:
    complete(
        outputs,
        val_bpb,
        results={"active_params": active, "params": active * settings["expert"], "tokens": 10**6},
        **settings,
    )


def test_iso_flop_curves_are_by_budget_and_expansion(tmp_path: Path) -> None:
    """A curve for each budget and ratio expert/k; runs of another kind of budget are no part of any."""
    for budget in (1e12, 3e12):
        for expert in (1, 4):
            for size, width in ((100_000, 32), (200_000, 64), (400_000, 96)):
                loss = 2 + 0.1 * math.log(size / 200_000) ** 2
                sized(
                    tmp_path,
                    size,
                    loss,
                    expert=expert,
                    k=1,
                    train__flops=budget,
                    model__d_model=width,
                    model__num_heads=2,
                )
    sized(tmp_path, 100_000, 2.0, expert=4, k=1, train__steps=100)
    found = iso_flop(rows_below(tmp_path))
    assert [(1e12, 1.0, 3), (1e12, 4.0, 3), (3e12, 1.0, 3), (3e12, 4.0, 3)] == [
        (x.flops, x.expansion, len(x.sizes)) for x in found
    ]
    assert all(each.best is not None and 150_000 < each.best < 250_000 for each in found)
    assert () == iso_flop([])


def test_points_are_what_runs_say(tmp_path: Path) -> None:
    """Sizes, ratio, granularity, tokens and FLOPs of each run; seeds share a configuration; unfinished ones are counted."""
    for seed in (0, 1):
        complete(tmp_path, 2.0 + seed, expert=8, k=2, seed=seed, model__d_ff=64, model__d_expert=32, match="none")
    complete(tmp_path, 2.0, expert=1, model__d_ff=64)
    stopped(tmp_path, FAILED, expert=4)
    named = make_points(rows_below(tmp_path))
    points = named.points
    assert (1, [4.0, 4.0, 1.0], [0.25, 0.25, 1.0]) == (
        named.left_out,
        points.expansion.tolist(),
        points.density.tolist(),
    )
    assert [2.0, 2.0, 1.0] == points.granularity.tolist()
    assert [8e6, 8e6, 1e6] == points.params.tolist()
    assert (points.tokens * 6e6).tolist() == points.flops.tolist()
    assert [0, 0, 1] == points.cluster.tolist()
    assert math.sqrt(1.4 * 2.1) == pytest.approx(points.mean_over_seeds().loss[0])
    assert "expert=8 k=2, 1.00M active, 1.02M tokens" == named.labels[0]
    assert 1.0 == granularity({"expert": 8, "model.d_ff": "many", "model.d_expert": None})


def test_unlike_data_are_refused(tmp_path: Path) -> None:
    """Losses on different corpora are no one law's; and no complete runs are no points."""
    complete(tmp_path, 2.0, expert=4)
    complete(tmp_path, 2.0, expert=8, results={"corpus_sha256": "cd" * 32})
    with pytest.raises(ConfigError, match="the runs learned from different data"):
        make_points(rows_below(tmp_path))
    with pytest.raises(ConfigError, match="no complete run among 0 to fit a law to"):
        make_points([])
    complete(tmp_path, 2.0, expert=4, eval__stride=8)
    with pytest.raises(ConfigError, match="differ in tokenizer, validation split or evaluation context"):
        make_points([run for run in rows_below(tmp_path) if run.expert == 4])


@pytest.mark.parametrize("wrong", [{"val_loss": "low"}, {"val_loss": -1.0}, {"tokens": 0}, {"params": None}])
def test_strange_results_are_left_out(tmp_path: Path, wrong: dict[str, Any]) -> None:
    """A summary with something else in a number's place costs that run alone."""
    complete(tmp_path, 2.0, expert=4)
    complete(tmp_path, 2.0, expert=8, results=wrong)
    assert (1, 1) == (len(make_points(rows_below(tmp_path)).points), make_points(rows_below(tmp_path)).left_out)
