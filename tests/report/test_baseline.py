"""What differences are taken to: the dense model, or what the runs' sweep says in its sweep.json."""

import shlex
from pathlib import Path
from typing import Any

import pytest

from moe_cli.config.load import load_config
from moe_cli.report.baseline import sweep_baseline, twin_command
from moe_cli.report.fold import DENSE, rows_of
from moe_cli.report.frame import load_runs
from moe_cli.report.tables import table_lines
from moe_cli.report.view import Question, View, make_view
from moe_cli.store import write_json
from tests.report.folders import complete

RANDOM = {"router": "random"}


def view_of(outputs: Path, **question: Any) -> View:
    return make_view(load_runs(outputs), Question(**question))


def with_baseline(outputs: Path, baseline: Any, group: str = "mine") -> None:
    (outputs / group).mkdir(parents=True, exist_ok=True)
    write_json(outputs / group / "sweep.json", {"name": group, "baseline": baseline})


def differences(view: View) -> dict[Any, Any]:
    return {(row["router"], row["k"]): row["vs_dense"] for row in rows_of(view.frame)}


def test_differences_are_taken_to_the_sweeps_baseline(tmp_path: Path) -> None:
    """At equal other settings, by seed, whatever the baseline brings along: no balance, another width of experts."""
    with_baseline(tmp_path, RANDOM)
    for k, worse in ((1, 3.0), (2, 2.0)):
        for seed in (0, 1):
            complete(tmp_path, worse + seed, group="mine", router="random", k=k, seed=seed)
            complete(tmp_path, 0.9 * (worse + seed), group="mine", router="topk", k=k, seed=seed)
    complete(tmp_path, 1.0, group="mine", expert=1)
    view = view_of(tmp_path)
    assert differences(view) == {
        ("random", 1): 0, ("random", 2): 0, ("topk", 1): pytest.approx(-0.1), ("topk", 2): pytest.approx(-0.1),
        (None, 1): None,
    }  # fmt: skip
    rows = {(row["router"], row["k"]): row for row in rows_of(view.frame)}
    assert rows["topk", 2]["baseline"] == rows["random", 2]["runs"][0]
    assert rows["random", 2]["vs_dense_interval"] is None
    assert rows["topk", 2]["vs_dense_interval"] == pytest.approx(0, abs=1e-9)


def test_the_table_names_the_baseline(tmp_path: Path) -> None:
    """Above it, over the column, and in the row that is its own baseline."""
    with_baseline(tmp_path, RANDOM)
    complete(tmp_path, 2.0, group="mine", router="random")
    complete(tmp_path, 1.8, group="mine", router="topk")
    text = [line.plain for line in table_lines(view_of(tmp_path), "mine", 120)]
    assert "baseline   router=random" in text
    assert any("vs baseline" in line for line in text)
    view = view_of(tmp_path)
    column = next(column for column in view.columns if column.name == "vs_dense")
    assert ["-10.0 %", "0"] == [column.write(row) for row in view.rows]


def test_a_baseline_that_is_missing_is_said(tmp_path: Path) -> None:
    """With what was to be compared, and no command for a dense run."""
    with_baseline(tmp_path, RANDOM)
    complete(tmp_path, 2.0, group="mine", router="random", seed=1)
    complete(tmp_path, 1.8, group="mine", router="topk", seed=0)
    text = "\n".join(line.plain for line in table_lines(view_of(tmp_path), "mine", 120))
    assert "baseline   none: router=random was not run with the same settings and seeds" in text


@pytest.mark.parametrize(
    ("baseline", "other"),
    [
        ({"capacity": None}, {"capacity": 1.0, "drop": "probability"}),
        ({"balance": "none"}, {"balance": "switch", "balance__weight": 0.3}),
        ({"balance": "switch", "balance.weight": 0.01}, {"balance": "loss_free"}),
        ({"expert": 4, "k": 1}, {"expert": 16, "k": 2}),
        ({"optim": "muon"}, {"optim": "adamw"}),
        ({"match": "none", "model.d_expert": 24}, {"match": "total"}),
    ],
)
def test_what_a_baseline_brings_along_need_not_be_equal(
    tmp_path: Path, baseline: dict[str, Any], other: dict[str, Any]
) -> None:
    """The settings that follow from those it names."""
    with_baseline(tmp_path, baseline)
    complete(tmp_path, 2.0, group="mine", **{key.replace(".", "__"): value for key, value in baseline.items()})
    complete(tmp_path, 1.8, group="mine", **other)
    assert sorted(row["vs_dense"] for row in rows_of(view_of(tmp_path).frame)) == [pytest.approx(-0.1), 0]


def test_what_a_baseline_does_not_bring_along_must_be_equal(tmp_path: Path) -> None:
    """A run of another budget is not compared."""
    with_baseline(tmp_path, RANDOM)
    complete(tmp_path, 2.0, group="mine", router="random", train__steps=9)
    complete(tmp_path, 1.8, group="mine", router="topk")
    assert differences(view_of(tmp_path))["topk", 2] is None


def test_several_sweeps_have_no_baseline_but_the_dense_model(tmp_path: Path) -> None:
    """One sweep, or several of one mind, say it; else, and where a file cannot be read, it is the dense model."""
    complete(tmp_path, 2.0, group="mine", router="random")
    complete(tmp_path, 2.0, group="other", router="random")
    assert sweep_baseline(load_runs(tmp_path)) == DENSE
    with_baseline(tmp_path, RANDOM)
    assert sweep_baseline(load_runs(tmp_path)) == DENSE
    assert sweep_baseline(load_runs(tmp_path / "mine")) == RANDOM
    with_baseline(tmp_path, RANDOM, "other")
    assert sweep_baseline(load_runs(tmp_path)) == RANDOM
    with_baseline(tmp_path, None)
    assert sweep_baseline(load_runs(tmp_path / "mine")) == DENSE
    (tmp_path / "mine" / "sweep.json").write_text("{")
    assert sweep_baseline(load_runs(tmp_path / "mine")) == DENSE


def test_a_sweep_in_a_folder_is_found_by_its_name(tmp_path: Path) -> None:
    """moe report paper/mine means what moe sweep paper/mine made."""
    from moe_cli.report.frame import load_selection

    complete(tmp_path, 2.0, group="paper-mine")
    assert len(load_selection(tmp_path, ["paper/mine"])) == 1


@pytest.mark.parametrize(
    "words",
    [
        "",
        "model.d_model=32 train.steps=60 seed=3",
        "train=smoke capacity=1.25 router=switch k=1",
        "model=vit data=digits",
        "model=mmoe expert=16 k=4",
        "experiment=speedrun data.path='my notes.txt'",
    ],
)
def test_the_twin_of_a_run_is_that_of_its_own_settings(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command resolves to what the run's own words and expert=1 resolve to; from there back with the default experts."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    given = shlex.split(words)
    shared = [word for word in given if word.partition("=")[0] not in ("expert", "k", "capacity", "router")]
    dense = load_config([*shared, "expert=1", "k=1"]).config
    moe, train, *twin = shlex.split(twin_command(load_config(given).config))
    assert ("moe", "train", dense) == (moe, train, load_config(twin).config)
    back = shlex.split(twin_command(dense))[2:]
    assert load_config([*shared, "expert=8", "k=2"]).config == load_config(back).config
