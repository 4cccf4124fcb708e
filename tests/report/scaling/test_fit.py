"""Planted constants come back, intervals cover them, and constants that runs cannot identify are refused."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moe_cli.errors import ConfigError
from moe_cli.report.scaling.fit import NotIdentifiable, count_distinct, fit, fit_law, quantiles
from moe_cli.report.scaling.observations import Points
from tests.report.scaling.planted import ABNAR, CLARK, JOINT, KRAJEWSKI, abnar, clark, grid, joint, krajewski


def planted(name: str, noise: float, draw: int = 0) -> tuple[Points, dict[str, float]]:
    """Returns points that identify the law, with the planted constants."""
    if name == "clark":
        return grid(lambda at: clark(at, **CLARK), tokens=(4e6,), noise=noise, draw=draw, seeds=2), CLARK
    if name == "krajewski":
        points = grid(lambda at: krajewski(at, **KRAJEWSKI), experts=(8,), fine=(1, 2, 4, 8), noise=noise, draw=draw)
        return points, KRAJEWSKI
    if name == "abnar":
        more = {"sizes": (3e4, *np.geomspace(1e5, 3e7, 6)), "experts": (1, 2, 4, 16, 64)}
        return grid(lambda at: abnar(at, **ABNAR), noise=noise, draw=draw, **more), ABNAR
    return grid(lambda at: joint(at, **JOINT), noise=noise, draw=draw), JOINT


@pytest.mark.parametrize("name", ["clark", "krajewski", "abnar", "ludziejewski"])
def test_planted_constants_are_recovered(name: str) -> None:
    """Without noise to three digits."""
    points, truth = planted(name, 0.0)
    found = {each.name: each.value for each in fit_law(points, name, 0).constants}
    assert truth == pytest.approx(found, rel=2e-3)


@pytest.mark.parametrize(
    ("name", "noise"), [("clark", 0.003), ("krajewski", 0.002), ("abnar", 0.0002), ("ludziejewski", 0.003)]
)
def test_intervals_hold_the_planted_constants(name: str, noise: float) -> None:
    """With noise, in the bootstrap intervals: all of the constants but one at most."""
    points, truth = planted(name, noise, 3)
    found = fit_law(points, name, 100)
    inside = [each.low <= truth[each.name] <= each.high for each in found.constants]
    assert len(truth) == len(found.constants)
    assert sum(inside) >= len(truth) - 1
    assert noise == pytest.approx(found.scale, rel=0.4)
    assert noise == pytest.approx(found.held_out, rel=0.5)


def test_saturation_is_recovered_from_many_expansions() -> None:
    """E_start and E_max of Clark's form, which fewer than six expansions leave at 1 and infinity."""
    truth = {**CLARK, "E_start": 1.5, "E_max": 40.0}
    points = grid(lambda at: clark(at, **truth), tokens=(4e6,), experts=(1, 2, 4, 8, 16, 32, 64, 128))
    assert truth == pytest.approx({each.name: each.value for each in fit_law(points, "clark", 0).constants}, rel=2e-3)
    few = points.take(points.expansion < 16)
    assert ["a", "b", "c", "d"] == [each.name for each in fit_law(few, "clark", 0).constants]


def test_seeds_of_a_configuration_stay_together() -> None:
    """Errors that all seeds of a configuration share widen intervals: three copies of a run are no three runs."""
    single, _ = planted("clark", 0.003)
    single = single.take(np.arange(0, len(single), 2))
    copies = single.take(np.repeat(np.arange(len(single)), 9))
    wide = {each.name: each.high - each.low for each in fit_law(single, "clark", 200).constants}
    copied = {each.name: each.high - each.low for each in fit_law(copies, "clark", 200).constants}
    assert copied["a"] > 0.6 * wide["a"]


def test_outliers_hardly_move_the_law() -> None:
    """Two of 48 runs that went wrong by half move its predictions by less than the noise."""
    points, _ = planted("ludziejewski", 0.004)
    wrong = replace(points, loss=points.loss * np.where(np.isin(np.arange(len(points)), (5, 30)), 1.5, 1.0))
    clean, robust = fit_law(points, "ludziejewski", 0), fit_law(wrong, "ludziejewski", 0)
    assert np.abs(clean.log_loss(points) - robust.log_loss(points)).max() < 0.004


def test_auto_takes_the_least_error_held_out() -> None:
    """`fit` takes the supported law with the least held-out error and keeps the reasons against the others."""
    points, _ = planted("abnar", 0.001)
    found = fit(points, samples=20)
    others = {each.law: each.held_out for each in found.rejected if each.held_out is not None}
    assert {"ludziejewski"} == set(others)
    assert "abnar" == found.law.name
    assert found.held_out < min(others.values())
    reasons = {each.law: each.reason for each in found.rejected if each.reason}
    assert {"clark", "krajewski"} == set(reasons)
    assert 20 == len(found.samples)


@pytest.mark.parametrize(
    ("name", "design", "message"),
    [
        (
            "ludziejewski",
            {"sizes": (1e6, 1.05e6, 2e6)},
            "at least 3 sizes of model; these runs have 2.\nMake more: moe sweep scaling",
        ),
        (
            "ludziejewski",
            {"experts": (1, 8)},
            "at least 3 ratios expert/k; these runs have 2.\nMake more: moe sweep scaling expert=",
        ),
        ("ludziejewski", {"tokens": (1e6, 2e6)}, "at least 3 numbers of training tokens; these runs have 2."),
        ("clark", {"sizes": (1e5,)}, "at least 3 sizes of model; these runs have 1."),
        ("clark", {"tokens": (1e6, 2e6)}, "no term for tokens, and these runs have 2 values of it"),
        ("krajewski", {}, "no term for expert/k, and these runs have 3 values of it (2 to 8)"),
        (
            "krajewski",
            {"experts": (1, 8), "fine": (1, 2)},
            "at least 3 granularities d_ff/d_expert; these runs have 2.",
        ),
        ("abnar", {"experts": (1, 2, 4)}, "at least 4 ratios expert/k; these runs have 3."),
    ],
)
def test_too_little_is_refused_with_what_to_run(name: str, design: dict[str, Any], message: str) -> None:
    """Too few sizes, experts, tokens or granularities: what is missing, and the command that makes it."""
    points = grid(
        lambda at: joint(at, **JOINT), **{"tokens": (1e6,) if name == "clark" else (1e6, 4e6, 1.6e7), **design}
    )
    with pytest.raises(NotIdentifiable) as caught:
        fit_law(points, name)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


def test_too_few_configurations_are_refused() -> None:
    """Fewer than the constants and two, however many their seeds."""
    points = grid(lambda at: joint(at, **JOINT), seeds=5, sizes=SQUARE, tokens=SQUARE, experts=(1, 2, 4))
    diagonal = points.take(np.isin(points.cluster, (0, 1, 2, 12, 13, 14, 24, 25, 26)))
    with pytest.raises(
        NotIdentifiable, match="ludziejewski has 9 constants and needs at least 11 configurations; there are 9"
    ):
        fit_law(diagonal, "ludziejewski")


SQUARE = (1e5, 1e6, 1e7)


def test_constants_that_change_nothing_are_refused() -> None:
    """Losses without any part that falls with tokens leave the constants of that part free."""
    points = grid(lambda at: joint(at, **{**JOINT, "b": 0.0}), noise=0.004)
    with pytest.raises(NotIdentifiable, match=r"do not determine the constant .* of ludziejewski"):
        fit_law(points, "ludziejewski")


def test_no_law_says_why() -> None:
    """Four runs support no law, and the error says why; an unknown law is an error that lists the laws."""
    with pytest.raises(
        NotIdentifiable, match=r"support none of the laws clark, krajewski, abnar, ludziejewski.\nludziejewski needs"
    ):
        fit(grid(lambda at: joint(at, **JOINT), sizes=(1e5,), tokens=(1e6,)))
    with pytest.raises(ConfigError, match=r"no scaling law 'chinchilla'. There are: clark,"):
        fit(grid(lambda at: joint(at, **JOINT)), "chinchilla")


def test_levels_count_what_differs() -> None:
    """Values within 10 % count as one."""
    assert 3 == count_distinct(np.array([100.0, 105.0, 200.0, 1000.0, 1001.0]))
    assert 0 == count_distinct(np.array([]))


def test_quantiles_leave_a_fortieth_on_each_side() -> None:
    """Quantiles of 0 to 40 are 1 and 39, and an unknown value makes its side infinite."""
    assert (1.0, 39.0) == quantiles(np.arange(41.0))
    assert np.inf == quantiles(np.array([1.0, np.nan]))[1]
