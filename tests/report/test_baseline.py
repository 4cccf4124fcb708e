"""Differences are taken to the dense model, or to the baseline in the sweep's sweep.json."""

import json
import random
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from moe_cli.cli.app import app
from moe_cli.config.baselines import parse_baseline
from moe_cli.config.compose import load_config
from moe_cli.files.writing import write_json
from moe_cli.report.baseline import dense_baseline_command, sweep_baseline
from moe_cli.report.load import rows_below
from moe_cli.report.render.tables import report_lines
from moe_cli.report.run_row import DENSE
from moe_cli.report.significance import INCONCLUSIVE, compare_with_first
from moe_cli.report.table import ReportQuery, ReportTable, build_table
from tests.report.folders import complete
from tests.runner import CliRunner

RANDOM = {"router": "random"}


def view_of(outputs: Path, **question: Any) -> ReportTable:
    return build_table(rows_below(outputs), ReportQuery(**question))


def with_baseline(outputs: Path, baseline: Any, group: str = "mine") -> None:
    (outputs / group).mkdir(parents=True, exist_ok=True)
    write_json(outputs / group / "sweep.json", {"name": group, "baseline": baseline})


def differences(view: ReportTable) -> dict[Any, Any]:
    return {(row["router"], row["k"]): row["vs_baseline"] for row in view.all_rows}


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
        ("random", 1): 0,
        ("random", 2): 0,
        ("topk", 1): pytest.approx(-0.1),
        ("topk", 2): pytest.approx(-0.1),
        (None, 1): None,
    }
    rows = {(row["router"], row["k"]): row for row in view.all_rows}
    assert rows["topk", 2]["baseline"] == rows["random", 2]["runs"][0]
    assert rows["random", 2]["vs_baseline_interval"] is None
    assert rows["topk", 2]["vs_baseline_interval"] == pytest.approx(0, abs=1e-9)


def test_the_table_names_the_baseline(tmp_path: Path) -> None:
    """Above it, over the column, and in the row that is its own baseline."""
    with_baseline(tmp_path, RANDOM)
    complete(tmp_path, 2.0, group="mine", router="random")
    complete(tmp_path, 1.8, group="mine", router="topk")
    text = [line.plain for line in report_lines(view_of(tmp_path), "mine", 120)]
    assert "baseline   router=random" in text
    assert any("vs baseline" in line for line in text)
    view = view_of(tmp_path)
    column = next(column for column in view.columns if column.name == "vs_baseline")
    assert ["-10.0 %", "0"] == [column.write(row) for row in view.rows]


def test_a_baseline_that_is_missing_is_said(tmp_path: Path) -> None:
    """With what was to be compared, and no command for a dense run."""
    with_baseline(tmp_path, RANDOM)
    complete(tmp_path, 2.0, group="mine", router="random", seed=1)
    complete(tmp_path, 1.8, group="mine", router="topk", seed=0)
    text = "\n".join(line.plain for line in report_lines(view_of(tmp_path), "mine", 120))
    assert (
        "baseline   none: router=random was not run with the same settings, seeds, budget and evaluation context"
        in text
    )


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
    assert sorted(row["vs_baseline"] for row in view_of(tmp_path).all_rows) == [pytest.approx(-0.1), 0]


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
    assert sweep_baseline(rows_below(tmp_path)) == DENSE
    with_baseline(tmp_path, RANDOM)
    assert sweep_baseline(rows_below(tmp_path)) == DENSE
    assert sweep_baseline(rows_below(tmp_path / "mine")) == RANDOM
    with_baseline(tmp_path, RANDOM, "other")
    assert sweep_baseline(rows_below(tmp_path)) == RANDOM
    with_baseline(tmp_path, None)
    assert sweep_baseline(rows_below(tmp_path / "mine")) == DENSE
    (tmp_path / "mine" / "sweep.json").write_text("{")
    assert sweep_baseline(rows_below(tmp_path / "mine")) == DENSE


def report(outputs: Path, *words: str) -> Result:
    return CliRunner().invoke(app, ["report", *words, "--outputs", str(outputs)])


def recommendation(outputs: Path, *words: str) -> Result:
    return CliRunner().invoke(app, ["recommend", *words, "--outputs", str(outputs)])


def test_baselines_elsewhere_are_found_by_their_settings(tmp_path: Path) -> None:
    """A dense run whose folder has another name serves as baseline, one that is only named so does not; the same for a
    declared baseline and its weight.
    """
    complete(tmp_path, 2.0, "other", expert=1).path.rename(tmp_path / "other" / "renamed")
    complete(tmp_path, 9.0, "other", expert=4).path.rename(tmp_path / "other" / "gpt-dense-s0")
    complete(tmp_path, 1.8, "mine", expert=8)
    assert "-10.0 %" in report(tmp_path, "mine").stdout
    assert "-10.0 % against dense" in " ".join(recommendation(tmp_path, "mine").stdout.split())
    with_baseline(tmp_path, {"balance": "z"})
    for weight, loss in ((None, 1.6), (0.5, 5.0)):
        complete(
            tmp_path, loss, "third", balance="z", **({} if weight is None else {"k": 1, "balance__weight": weight})
        )
    assert "+12.5 %" in report(tmp_path, "mine").stdout
    assert "against balance=z" in " ".join(recommendation(tmp_path, "mine").stdout.split())


@pytest.mark.parametrize(
    ("text", "baseline"),
    [
        ("balance=none", {"balance": "none"}),
        ("balance=none router=topk", {"balance": "none", "router": "topk"}),
        ('balance == "none" and router == "topk"', {"balance": "none", "router": "topk"}),
        ("expert == 8", {"expert": 8}),
        ("optim.lr=0.01", {"optim.lr": 0.01}),
        ("capacity=null", {"capacity": None}),
        ("capacity == null", {"capacity": None}),
        ("data.path='my notes.txt'", {"data.path": "my notes.txt"}),
        ("optim.lr == -1", {"optim.lr": -1}),
    ],
)
def test_a_baseline_is_given_as_settings_or_as_a_condition(text: str, baseline: dict[str, Any]) -> None:
    """Both grammars of the command line name the same settings."""
    assert baseline == parse_baseline(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("balance=z", "--baseline balance=z: no complete run has these settings. There are: balance=none, switch"),
        ("blance=none", "--baseline blance=none: no setting 'blance'. Did you mean 'balance'?"),
        ("router=a,b", "--baseline 'router=a,b': router has several values, and a baseline has one of each."),
        ("k < 2", "--baseline 'k < 2' must give settings by equality, as in: --baseline balance=none"),
        ('k == 1 or balance == "none"', "must give settings by equality, as in: --baseline balance=none"),
        ("k == expert", "must give settings by equality, as in: --baseline balance=none"),
        ("", "--baseline '' must give settings by equality, as in: --baseline balance=none"),
        ("balance==none", "(balance was read as null, which is no name; for a name write balance=none)"),
        ("seed=1", "--baseline 'seed=1': configurations are compared seed by seed. Leave out the seed."),
        ("balance='none", "--baseline 'balance='none': a quote is not closed."),
        (
            "balance=switch",
            "--baseline balance=switch fits several configurations where one is needed: "
            "balance.weight=0.01; balance.weight=0.5. Add what tells them apart.",
        ),
    ],
)
def test_a_baseline_that_fits_no_or_several_configurations_is_refused(tmp_path: Path, text: str, message: str) -> None:
    """In one line that names what there is; for a table, a recommendation and a file alike."""
    complete(tmp_path, 2.0, "mine", balance="none")
    complete(tmp_path, 1.9, "mine", balance="switch")
    complete(tmp_path, 1.8, "mine", balance="switch", balance__weight=0.5)
    words = ("mine", "--baseline", text)
    file = ("-o", str(tmp_path / "x.csv"))
    for result in (report(tmp_path, *words), recommendation(tmp_path, *words), report(tmp_path, *words, *file)):
        assert (2, 1) == (result.exit_code, len(result.stderr.splitlines())), result.output
        assert message in result.stderr


def test_any_configuration_can_be_the_baseline(tmp_path: Path) -> None:
    """Table, JSON, files, page and recommendation take the differences to it, at equal other settings, also over a declared one."""
    with_baseline(tmp_path, {"balance": "z"})
    for seed in range(3):
        for router, base in (("topk", 2.0), ("sigmoid", 3.0)):
            for balance, factor in (("none", 1.0), ("switch", 0.9), ("z", 0.95)):
                complete(
                    tmp_path, factor * base + 0.01 * seed * factor, "mine", router=router, balance=balance, seed=seed
                )
    words = ("mine", "--baseline", "balance=none")
    assert "baseline   balance=none, compared at equal router" in report(tmp_path, *words).stdout
    rows = json.loads(report(tmp_path, *words, "--format", "json").stdout)
    assert [-0.1, -0.1, -0.05, -0.05, 0, 0] == pytest.approx(sorted(row["vs_baseline"] for row in rows), abs=1e-6)
    assert "It beats balance=none by 10.0 %" in recommendation(tmp_path, *words).stdout
    assert (
        "use expert=8 k=2 router=topk balance=switch"
        in recommendation(tmp_path, *words, "--where", 'balance != "none"').stdout
    )
    page = tmp_path / "page.html"
    assert 0 == report(tmp_path, *words, "-o", str(page)).exit_code
    assert "It beats balance=none by 10.0 %" in page.read_text()


@pytest.mark.parametrize(("baseline", "expected"), [("expert=4 k=2", 0.05), ("expert=8", None)])
def test_a_dense_model_is_compared_with_a_sparse_baseline(
    tmp_path: Path, baseline: str, expected: float | None
) -> None:
    """It shares with it what concerns a dense model; with none of several that differ in the rest."""
    for seed in range(3):
        complete(tmp_path, 2.1 + 0.01 * seed, "mine", expert=1, seed=seed)
        complete(tmp_path, 2.0 + 0.01 * seed, "mine", expert=4, k=2, seed=seed)
        for router in ("topk", "sigmoid"):
            complete(tmp_path, 1.9 + 0.01 * seed, "mine", expert=8, k=2, router=router, seed=seed)
    rows = json.loads(report(tmp_path, "mine", "--baseline", baseline, "--format", "json").stdout)
    (dense,) = (row for row in rows if row["expert"] == 1)
    assert (expected is None) == (dense["vs_baseline"] is None)
    assert expected is None or expected == pytest.approx(dense["vs_baseline"], abs=1e-3)


def test_an_ambiguous_declared_baseline_is_said(tmp_path: Path) -> None:
    """Runs of two configurations are not mixed into one baseline; the report names both and goes on."""
    with_baseline(tmp_path, {"balance": "switch"})
    complete(tmp_path, 2.0, "mine", balance="switch")
    complete(tmp_path, 1.0, "mine", balance="switch", balance__weight=0.5, seed=1)
    for seed in (0, 1):
        complete(tmp_path, 1.8, "mine", balance="none", seed=seed)
    result = report(tmp_path, "mine")
    text = " ".join(result.stdout.split())
    assert "baseline balance=switch fits several configurations where one is needed" in text
    assert 0 == recommendation(tmp_path, "mine").exit_code
    assert "-10.0 %" in report(tmp_path, "mine", "--baseline", "balance=switch balance.weight=0.01").stdout


def test_without_a_baseline_each_is_compared_with_the_lowest(tmp_path: Path) -> None:
    """Verdicts allow for all pairs, as the lowest was chosen by its result, and the table says so."""
    for seed in range(4):
        for balance, mean in (("none", 1.7), ("switch", 1.9), ("z", 1.705)):
            complete(
                tmp_path, mean + 0.01 * random.Random(f"{balance}{seed}").random(), "mine", balance=balance, seed=seed
            )
    result = report(tmp_path, "mine").stdout
    text = " ".join(result.split())
    assert "differences are to the lowest" in text
    assert "vs lowest" in text
    assert (
        "2 configurations compared: 1 worse, 1 inconclusive; verdicts allow for all 3 pairs (Holm), because the lowest was chosen by its result"
        in text
    )
    memo = " ".join(recommendation(tmp_path, "mine").stdout.split())
    assert "The benefit of experts is unknown" in memo
    assert "allow for all 3 pairs" in memo


def test_a_sweep_of_dense_models_is_compared_with_the_lowest(tmp_path: Path) -> None:
    """Each would be its own baseline, which compares nothing; next to experts they stay baselines."""
    for lr, loss in ((0.01, 2.0), (0.02, 1.9)):
        complete(tmp_path, loss, "mine", expert=1, optim__lr=lr)
    assert "vs lowest" in report(tmp_path, "mine").stdout
    complete(tmp_path, 1.8, "mine", expert=8, optim__lr=0.03)
    assert "vs lowest" not in report(tmp_path, "mine").stdout


def test_false_verdicts_on_the_lowest_stay_below_five_percent() -> None:
    """The lowest of five equal configurations is called different from another in fewer than 5 % of sweeps."""
    wrong, repetitions = 0, 1500
    draw = random.Random(4)
    for _ in range(repetitions):
        group = [{seed: 1.0 + draw.gauss(0, 0.01) for seed in range(4)} for _ in range(5)]
        group.sort(key=lambda scores: sum(scores.values()))
        found, pairs = compare_with_first([group])
        assert 10 == pairs
        wrong += any(each is not None and each.verdict != INCONCLUSIVE for each in found[0])
    assert wrong / repetitions < 0.05 + 3 * (0.05 * 0.95 / repetitions) ** 0.5


def test_a_sweep_in_a_folder_is_found_by_its_name(tmp_path: Path) -> None:
    """moe report paper/mine means what moe sweep paper/mine made."""
    from moe_cli.report.load import load_selection

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
    moe, train, *twin = shlex.split(dense_baseline_command(load_config(given).config))
    assert ("moe", "train", dense) == (moe, train, load_config(twin).config)
    back = shlex.split(dense_baseline_command(dense))[2:]
    assert load_config([*shared, "expert=8", "k=2"]).config == load_config(back).config


def test_the_twin_names_no_setting_that_follows_from_others() -> None:
    """The number of heads follows from the width."""
    assert "moe train expert=1 model.d_model=32" == dense_baseline_command(load_config(["model.d_model=32"]).config)


@pytest.mark.parametrize(
    ("baseline", "message"),
    [
        ("model=gpt", "--baseline model=gpt fits every configuration"),
        ("balance=none", "no configuration differs from it in these settings alone"),
        ("train.steps=9", "no configuration differs from it in these settings alone"),
    ],
)
def test_a_baseline_that_compares_nothing_is_refused(tmp_path: Path, baseline: str, message: str) -> None:
    """In one line: every configuration has its settings, none differs in these alone, or the budgets are unequal."""
    complete(tmp_path, 2.0, "mine", balance="none", k=1)
    complete(tmp_path, 1.9, "mine", balance="switch", k=2)
    complete(tmp_path, 1.9, "mine", balance="switch", k=2, train__steps=9)
    words = ("mine", "--baseline", baseline)
    for result in (report(tmp_path, *words), recommendation(tmp_path, *words)):
        assert (2, 1) == (result.exit_code, len(result.stderr.splitlines())), result.output
        assert message in result.stderr


@pytest.mark.parametrize("other", [{"train__steps": 9}, {"eval__context_length": 64}])
def test_no_difference_is_taken_across_what_is_ranked_apart(tmp_path: Path, other: dict[str, Any]) -> None:
    """A declared baseline of another budget or evaluation context is none, and the caption says why."""
    name, value = next(iter(other.items()))
    with_baseline(tmp_path, {"balance": "none", name.replace("__", "."): value})
    for seed in range(3):
        complete(tmp_path, 2.0 + 0.01 * seed, "mine", balance="none", seed=seed, **other)
        complete(tmp_path, 1.8 + 0.02 * seed, "mine", balance="switch", seed=seed)
    view = view_of(tmp_path)
    assert [None] * 2 == [row["verdict"] for row in view.all_rows]
    text = " ".join(" ".join(line.plain for line in report_lines(view, "mine", 120)).split())
    assert "was not run with the same settings, seeds, budget and evaluation context" in text


def test_a_declared_baseline_that_was_not_run_is_named(tmp_path: Path) -> None:
    """Above a table of differences to the lowest."""
    with_baseline(tmp_path, {"balance": "z"})
    for balance, loss in (("none", 1.7), ("switch", 1.9)):
        complete(tmp_path, loss, "mine", balance=balance)
    text = " ".join(report(tmp_path, "mine").stdout.split())
    assert "baseline none: balance=z was not run" in text
    assert "so differences are to the lowest" in text


def test_the_next_sweep_keeps_the_baseline_that_was_typed(tmp_path: Path) -> None:
    """Its command resolves to the same baseline."""
    for seed in range(2):
        for balance, loss in (("none", 2.0), ("switch", 1.9)):
            complete(tmp_path, loss + 0.01 * seed * len(balance), "mine", balance=balance, seed=seed)
    command = recommendation(tmp_path, "mine", "--baseline", 'balance == "none"').stdout.splitlines()[-1]
    words = shlex.split(command)
    assert {"balance": "none"} == parse_baseline(words[words.index("--baseline") + 1])
    assert "--baseline" not in recommendation(tmp_path, "mine").stdout.splitlines()[-1]


def test_the_dense_baseline_of_an_upcycled_configuration_is_trained_from_the_start(tmp_path: Path) -> None:
    """A dense model cannot start from another's weights: its command says nothing of them."""
    for balance, loss in (("none", 1.7), ("switch", 1.9)):
        complete(tmp_path, loss, "mine", balance=balance, train__upcycle_from="some-run")
    (command,) = (line for line in report(tmp_path, "mine").stdout.splitlines() if "expert=1 " in line + " ")
    assert "moe train expert=1" in command
    assert "upcycle" not in command


def test_a_curve_is_no_order(tmp_path: Path) -> None:
    """It is a column, but of several values."""
    complete(tmp_path, 1.7, "mine")
    assert "'curve' cannot be sorted by" in report(tmp_path, "mine", "--sort=-curve").stderr


def test_baseline_of_loss_0_is_there(tmp_path: Path) -> None:
    """A loss of 0 is a result: the baseline is named, the undefined differences are, and none is computed from a part."""
    for seed in range(3):
        complete(tmp_path, 0.0, "mine", expert=1, seed=seed)
        complete(tmp_path, 0.0, "mine", expert=4, seed=seed)
        complete(tmp_path, 0.5 * seed, "mine", expert=8, seed=seed)
    assert {1: 0.0, 4: 0.0, 8: None} == {row["expert"]: row["vs_baseline"] for row in view_of(tmp_path).rows}
    assert {3} == {row["shared_seeds"] for row in view_of(tmp_path).rows}
    table, advice = report(tmp_path, "mine").stdout, recommendation(tmp_path, "mine").stdout
    assert "baseline   expert=1 (dense)" in table
    assert "its loss is 0: differences relative to it are undefined for 1 of 2" in table
    assert "moe sweep expert=1" not in table
    assert "Not compared: 1 configuration. The loss of the baseline, dense, is 0" in " ".join(advice.split())
    assert "no dense model" not in advice


def test_lowest_of_loss_0_is_compared_with_nothing(tmp_path: Path) -> None:
    """Where the baseline is elsewhere with a loss of 0, the rows are not compared with the lowest of themselves."""
    complete(tmp_path, 0.0, "other", expert=1)
    for expert in (4, 8):
        complete(tmp_path, 0.1 * expert, "mine", expert=expert)
    assert "its loss is 0: differences relative to it are undefined" in report(tmp_path, "mine").stdout


def test_own_runs_of_the_baseline_count_before_newer_ones_of_other_folders(tmp_path: Path) -> None:
    """A baseline that was trained again in another sweep leaves the differences of this one as they are."""
    complete(tmp_path, 2.0, "mine", expert=1)
    complete(tmp_path, 1.0, "mine", expert=8)
    complete(tmp_path, 4.0, "other", expert=1)
    view = build_table(rows_below(tmp_path / "mine"), ReportQuery(), extra_baselines=rows_below(tmp_path / "other"))
    assert {1: 0.0, 8: -0.5} == {row["expert"]: row["vs_baseline"] for row in view.rows}
