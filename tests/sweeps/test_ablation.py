"""`moe sweep ablate --from SOURCE`: a configuration, and the same without each of its settings."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from moe_cli.cli.app import app
from moe_cli.config.compose import load_config
from moe_cli.report.load import flat_settings
from moe_cli.runs.folder import create_run
from moe_cli.sweeps import run_sweep
from moe_cli.sweeps.ablation import plan_ablation
from moe_cli.sweeps.plan import SweepPlan
from tests.runner import CliRunner
from tests.sweeps.fake import FakePool

SETTINGS = ["k=1", "optim=adamw", "optim.lr=0.001", "model.rope_base=500", "train.steps=2", "data.val_fraction=0.2"]


@pytest.fixture
def outputs(text_file: Path, tmp_path: Path) -> Path:
    create_run(tmp_path, "runs", load_config([*SETTINGS, "data=text", f"data.path={text_file}"]).config)
    return tmp_path


def plan(outputs: Path, *words: str, **options: Any) -> SweepPlan:
    return plan_ablation(["ablate", *words], "latest", outputs, **options)


def moe(outputs: Path, *words: str) -> Result:
    return CliRunner().invoke(app, [*words, "--outputs", str(outputs)], env={"COLUMNS": "300"})


def test_each_row_has_the_default_of_one_setting(outputs: Path) -> None:
    """Every other setting is that of the run; a choice goes with its group; data and budget stay; none is repeated."""
    found = {point.label.removesuffix(" seed=0"): point.config for point in plan(outputs).points}
    expected = {"all", "all - k=1", "all - optim=adamw", "all - optim.lr=0.001", "all - model.rope_base=500.0"}
    assert expected == set(found)
    default, everything = (flat_settings(config.to_dict()) for config in (load_config([]).config, found["all"]))
    for label, config in found.items():
        changed = {key for key, value in flat_settings(config.to_dict()).items() if everything.get(key) != value}
        name = label.removeprefix("all - ").partition("=")[0]
        if name == "optim":  # expert_period follows from k
            assert config.optim == load_config(["k=1"]).config.optim
        elif name == "optim.lr":
            assert load_config(["optim=adamw"]).config.optim.lr == config.optim.lr
            assert {name} == changed
        elif label != "all":
            assert name in changed
            assert default[name] == flat_settings(config.to_dict())[name]
    assert {2} == {config.train.steps for config in found.values()}


def test_given_settings_stay_and_seeds_repeat_all_rows(outputs: Path) -> None:
    """A setting on the command line is in every row and has no row of its own."""
    found = plan(outputs, "k=2", "train.steps=3", seeds=2)
    assert (4, 2, 8) == (found.num_configurations, found.num_seeds, len(found.points))
    assert {(2, 3)} == {(point.config.k, point.config.train.steps) for point in found.points}


def test_differences_are_taken_to_the_whole_configuration(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report of an ablation compares every row with the one that has all settings."""
    monkeypatch.setattr(run_sweep, "make_pool", lambda *_: FakePool(lambda config: {"val_bpb": 2.0 + config.optim.lr}))
    done = moe(outputs, "sweep", "ablate", "--from", "latest", "--name", "a", "--seeds", "2")
    assert 0 == done.exit_code, done.output
    shown = moe(outputs, "report", "a", "--format", "json")
    assert 5 == shown.stdout.count('"vs_baseline"')
    assert 0 == shown.stdout.count('"vs_baseline": null')
    assert 4 == shown.stdout.count('"verdict": "')


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ablate"], "moe sweep ablate needs a configuration: --from RUN"),
        (["expert=1,8", "--from", "latest"], "Write: moe sweep ablate --from latest"),
        (["ablate", "--from", "nosuch"], "no sweep, run or folder 'nosuch'"),
        (["ablate", "--from", "latest", "k=1,2"], "'k=1,2' has several values"),
        (["ablate", "--from", "latest", "--where", "k > 1"], "--where has no effect on an ablation"),
        (["ablate", "--from", "latest", "--sampler", "tpe"], "--sampler has no effect on an ablation"),
        (["ablate", "--from", "latest", "k=1", "optim=muon", "model.rope_base=10000"], "nothing can be left out"),
    ],
)
def test_wrong_ablations_are_refused(outputs: Path, words: list[str], message: str) -> None:
    """Errors of a user: exit code 2, the reason, and nothing is run."""
    result = moe(outputs, "sweep", *words)
    assert (2, True) == (result.exit_code, message in result.stderr), result.stderr
    assert not (outputs / "ablate").exists()
