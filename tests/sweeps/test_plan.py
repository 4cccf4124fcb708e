"""The points of a sweep: which, in which order, and which are left out."""

from pathlib import Path

import pytest

from moe_cli.config.load import Composer, load_config
from moe_cli.config.sweepfile import list_sweeps
from moe_cli.errors import ConfigError
from moe_cli.sweeps.plan import plan_sweep


def test_grid_is_the_product() -> None:
    """Commas and ranges multiply; points carry the settings that vary."""
    plan = plan_sweep(["expert=4,8", "k=range(1,3)", "train.steps=5"])
    assert [point.label for point in plan.points] == [
        "expert=4 k=1 seed=0", "expert=4 k=2 seed=0", "expert=8 k=1 seed=0", "expert=8 k=2 seed=0",
    ]  # fmt: skip
    assert {point.config.train.steps for point in plan.points} == {5}


def test_points_equal_single_configurations() -> None:
    """A point is the configuration that `moe train` would run, so its folder has the same name."""
    plan = plan_sweep(["router=topk,switch", "k=1", "expert=8"])
    for point, router in zip(plan.points, ("topk", "switch"), strict=True):
        assert point.config == load_config([f"router={router}", "k=1", "expert=8"]).config


def test_impossible_points_are_left_out_with_the_reason() -> None:
    """k > expert leaves its point out, once and not once a seed, and says why."""
    plan = plan_sweep(["expert=1,4", "k=1,2"], seeds=3)
    assert [(point.label, point.reason) for point in plan.left_out] == [
        ("expert=1 k=2", "k=2 is more than expert=1: a token cannot choose more experts than there are.")
    ]
    assert (plan.num_configurations, len(plan.points)) == (3, 9)


def test_equal_configurations_run_once() -> None:
    """A dense model has no router: its points with each router come to one run."""
    plan = plan_sweep(["expert=1,8", "router=topk,random"])
    assert (len(plan.points), plan.num_repeats) == (3, 1)


def test_seeds_come_outermost() -> None:
    """Every configuration gets its first seed before any gets its second."""
    plan = plan_sweep(["expert=4,8"], seeds=2)
    assert [point.config.seed for point in plan.points] == [0, 0, 1, 1]


def test_settings_in_vain_are_said_once() -> None:
    """What has no effect in some points is noted, once for all of them."""
    assert plan_sweep(["expert=1,4,8", "k=1", "capacity=1.5"]).notes == ("expert=1 is dense: capacity set aside.",)
    assert plan_sweep(["expert=1,4,8", "k=1"]).notes == ()


@pytest.mark.parametrize("name", list_sweeps(Composer()))
def test_named_sweeps(name: str) -> None:
    """Every sweep of conf/sweep has a question as its first line and points that can be run."""
    plan = plan_sweep([name, "train.steps=2"])
    assert plan.question.endswith("?")
    assert plan.name == name
    assert len(plan.points) > 1
    assert {point.config.train.steps for point in plan.points} == {2}


def test_settings_on_the_line_replace_the_files() -> None:
    """moe sweep sparsity k=1 takes k from the line."""
    assert {point.config.k for point in plan_sweep(["sparsity", "k=1"]).points} == {1}


@pytest.mark.parametrize(
    "content", ["grid: 3", "points: []", "grid: {k: [1]}\nexec: x", "grid: {k: [1,2]}\nseeds: 0", "a: [", ""]
)
def test_damaged_sweep_files(content: str, tmp_path: Path) -> None:
    """A sweep file of another shape is an error that names the file, in at most three lines."""
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "mine.yaml").write_text(content)
    with pytest.raises(ConfigError) as error:
        plan_sweep(["mine"], config_dir=tmp_path)
    assert str(tmp_path) in str(error.value)
    assert len(str(error.value).splitlines()) <= 3


def test_no_point_left() -> None:
    """A sweep of impossible points only is an error with the reason."""
    with pytest.raises(ConfigError, match=r"no point of this sweep can be run.\nexpert=2 k=9: k=9 is more"):
        plan_sweep(["expert=2,4", "k=9,10"])


def test_a_seed_list_replaces_the_files_seeds() -> None:
    """moe sweep sparsity seed=3,4 takes exactly these seeds."""
    assert {point.config.seed for point in plan_sweep(["sparsity", "seed=3,4"]).points} == {3, 4}
