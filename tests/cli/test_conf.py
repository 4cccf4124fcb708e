"""Every experiment and every named sweep of conf/ runs."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from moe_cli.config.compose import Composer, load_config
from moe_cli.config.sweep_file import list_sweeps, load_sweep_file
from moe_cli.config.training import TrainConfig
from moe_cli.sweeps.plan import plan_sweep
from tests.cli.conftest import Moe
from tests.tiny import finish

CONF = Path(__file__).resolve().parents[2] / "conf"
GRIDS = [name for name in list_sweeps(Composer()) if load_sweep_file(Composer(), name).search is None]
TWO_STEPS = ("train.steps=2", "train.tokens=null")


def without_steps(settings: list[str]) -> list[str]:
    return [word for word in settings if not word.startswith("train.steps")]


# One of each model, and one published one.
QUICK_EXPERIMENTS = ("makemoe", "published/olmoe_1b_7b")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK_EXPERIMENTS else pytest.mark.slow)
        for name in Composer().choices("experiment")
    ],
)
def test_experiment_trains(name: str, moe: Moe, settings: list[str]) -> None:
    """Two steps of the experiment on a tiny model, the published ones with fewer experts."""
    shape = ["model.num_kv_heads=2", "model.first_k_dense=0", "model.vocab_size=300"] if "/" in name else []
    if name.startswith("published/"):
        shape += ["expert=16", "model.d_expert=32", "match=none"]
    if "switch_base" in name:
        shape = ["model.num_layers=4", "model.vocab_size=400"]
    result = moe("train", f"experiment={name}", *without_steps(settings), *TWO_STEPS, *shape)
    assert result.exit_code == 0, result.output


@pytest.mark.slow
@pytest.mark.parametrize("name", ["router", "paper/shazeer_table6"])
def test_sweep_runs(name: str, moe: Moe, settings: list[str]) -> None:
    """Two steps of every point of the sweep on a tiny model."""
    words = [word for word in without_steps(settings) if not word.startswith("model.num_heads")]  # an LSTM has none
    result = moe("sweep", name, *words, *TWO_STEPS, "-j", 2)
    assert result.exit_code == 0, result.output


@pytest.mark.slow
@pytest.mark.parametrize("name", GRIDS)
def test_first_and_last_point_run(name: str, settings: list[str], tmp_path: Path) -> None:
    """Two steps of them on a tiny model, which is all that presets decide; probes bring data and lengths of their own."""
    own = ("model.num_heads", *(("data", "model.context_length") if name == "probes" else ()))
    words = [word for word in without_steps(settings) if not word.startswith(own)]
    points = plan_sweep([name, *words, *TWO_STEPS, "model.d_ff=256"]).points
    for point in {points[0], points[-1]}:
        assert finish(point.config, tmp_path).summary() is not None, point.label


def test_config_names_the_run_it_would_be(moe: Moe, settings: list[str], tmp_path: Path) -> None:
    """The first line is a comment with the folder that moe train makes of the same words."""
    named = moe("config", *settings, "--outputs", tmp_path / "mine").stdout.splitlines()[0].split()[-1]
    assert moe("train", *settings, "--outputs", tmp_path / "mine").exit_code == 0
    assert (Path(named) / "summary.json").is_file()
    assert Path(named).parent == tmp_path / "mine" / "runs"


@pytest.mark.parametrize("name", Composer().choices("train"))
def test_every_budget_file_offers_every_setting(name: str, moe: Moe) -> None:
    """`moe config train=NAME` shows every setting of TrainConfig for every file of conf/train."""
    shown = yaml.safe_load(moe("config", f"train={name}").stdout)
    assert set(shown["train"]) == {field.name for field in dataclasses.fields(TrainConfig)}


def test_like_starts_from_the_configuration_of_a_run(moe: Moe, settings: list[str], tmp_path: Path) -> None:
    """`--like RUN` and changes are the configuration of the run's own words with these changes."""
    outputs = ("--outputs", tmp_path / "mine")
    assert moe("train", *settings, *outputs).exit_code == 0
    config = load_config([*settings, "model.context_length=16"]).config
    result = moe("train", "--like", "latest", "model.context_length=16", *outputs)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "mine" / "runs" / config.run_id / "summary.json").is_file()


def test_like_and_resume_are_two_commands(moe: Moe) -> None:
    """Both options at once are an error of one line."""
    result = moe("train", "--like", "latest", "--resume", "latest")
    assert (2, "error: --resume continues a run, and --like starts a new one: give one.\n") == (
        result.exit_code,
        result.stderr,
    )
