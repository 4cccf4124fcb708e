"""The report of a search shows how much each setting mattered, and nothing without a search."""

import json
import math
from pathlib import Path

import pytest

from moe_cli.cli.app import app
from moe_cli.errors import ConfigError
from moe_cli.report import importance as module
from moe_cli.report.importance import (
    MIN_TRIALS,
    STUDY,
    import_optuna,
    importances,
    load_importances,
    load_study,
    open_journal,
)
from tests.report.folders import complete, stopped
from tests.runner import CliRunner


def make_search(folder: Path, trials: int, directions: tuple[str, ...] = ("minimize",)) -> None:
    """A journal of trials in which the learning rate decides, and k hardly does."""
    optuna = import_optuna()
    folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name=STUDY,
        storage=open_journal(folder),
        directions=list(directions),
        sampler=optuna.samplers.RandomSampler(seed=0),
    )
    names = ["val_bpb", "tokens_per_second"][: len(directions)]
    study.set_user_attr("identity", {"objectives": names})
    for _ in range(trials):
        trial = study.ask()
        lr, k = trial.suggest_float("optim.lr", 0.001, 0.1, log=True), trial.suggest_categorical("k", [1, 2])
        study.tell(trial, [math.log10(lr / 0.02) ** 2 + 0.001 * k, 1000.0 if k == 1 else lr][: len(directions)])


def test_what_decides_is_important(tmp_path: Path) -> None:
    """Shares add up to 1, the largest first, and the setting that decides has nearly all."""
    make_search(tmp_path, 40)
    study = load_study(tmp_path)
    assert study
    (shares,) = importances(study).values()
    assert ["optim.lr", "k"] == list(shares)
    assert shares["optim.lr"] > 0.8
    assert abs(sum(shares.values()) - 1) < 1e-9


def test_each_objective_has_its_own_importances(tmp_path: Path) -> None:
    """k decides the speed, which is maximised, and the learning rate decides the loss."""
    make_search(tmp_path, 40, ("minimize", "maximize"))
    study = load_study(tmp_path)
    assert study
    found = importances(study)
    assert ["optim.lr", "k"] == [next(iter(found[name])) for name in ("val_bpb", "tokens_per_second")]


def test_few_trials_say_nothing(tmp_path: Path) -> None:
    """Below MIN_TRIALS completed trials there are no importances, nor where all came to the same."""
    make_search(tmp_path / "few", MIN_TRIALS - 1)
    make_search(tmp_path / "enough", MIN_TRIALS)
    few, enough = load_study(tmp_path / "few"), load_study(tmp_path / "enough")
    assert few
    assert enough
    assert ({}, ["val_bpb"]) == (importances(few), list(importances(enough)))


def test_the_report_of_a_search(tmp_path: Path) -> None:
    """A line below the table, and in JSON with every row of that sweep, not with others; pruned runs are counted."""
    complete(tmp_path, 1.5, "tune", expert=8)
    complete(tmp_path, 1.6, "other", expert=4)
    stopped(tmp_path, "pruned", "pruned by asha", "tune", expert=8, k=1)
    make_search(tmp_path / "tune", 40)
    text = CliRunner().invoke(app, ["report", "tune", "--outputs", str(tmp_path)]).output
    assert "importance: optim.lr " in text
    assert "1 run pruned: stopped by the search" in text
    assert "1.500" in text
    rows = json.loads(CliRunner().invoke(app, ["report", "--format", "json", "--outputs", str(tmp_path)]).output)
    by_group = {row["val_bpb"]: row.get("importance") for row in rows if row["val_bpb"]}
    assert by_group[1.6] is None
    assert ["optim.lr", "k"] == list(by_group[1.5]["val_bpb"])


def test_a_report_without_a_search_asks_for_no_optuna(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a journal makes the report import Optuna; where it is missing, the report goes on and says so."""

    def missing() -> None:
        raise ConfigError("a search needs Optuna")

    monkeypatch.setattr(module, "import_optuna", missing)
    run = complete(tmp_path, 1.5, "tune", expert=8)
    assert ({}, ()) == load_importances([str(run.path)])
    (tmp_path / "tune" / module.JOURNAL).write_text("")
    result = CliRunner().invoke(app, ["report", "tune", "--outputs", str(tmp_path)])
    assert 0 == result.exit_code
    assert "1.500" in result.output
    assert "note: importances of tune: a search needs Optuna" in result.stderr
