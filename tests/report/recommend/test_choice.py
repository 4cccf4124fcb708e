"""Ties, health, and cost decide the recommendation, and the table, the memo, and the page agree."""

import json
import random
import shlex
from pathlib import Path
from typing import Any

import pytest

from moe_cli import load_runs, recommend
from moe_cli.cli.app import app
from moe_cli.config.overrides import parse_override
from moe_cli.files.writing import write_json
from moe_cli.report.aggregate import aggregate_seeds
from moe_cli.report.html.page_data import Source, page_content
from moe_cli.report.load import rows_below
from moe_cli.report.recommend.choice import Known, choose, compare, is_collapsed
from moe_cli.report.recommend.text import format_recommendation
from moe_cli.report.render.tables import mark_of, markdown_text, report_lines
from moe_cli.report.run_row import Results, RunRow
from moe_cli.report.table import ReportQuery, build_table
from moe_cli.runs.folder import COMPLETED
from tests.report.folders import complete
from tests.runner import CliRunner

COLLAPSED = {"dead_experts": 0.25, "max_violation": 2.93}
# Of three seeds, with a spread that cannot tell 0.1 % from nothing.
NOISE = {"none": (0.0, 0.05, -0.05), "switch": (0.05, -0.05, 0.0), "z": (-0.05, 0.0, 0.05)}


def make(
    outputs: Path, balance: str, mean: float, results: dict[str, Any] | None = None, seeds: int = 3, **settings: Any
) -> None:
    for seed in range(seeds):
        complete(
            outputs, mean + NOISE[balance][seed], "mine", results, expert=8, k=2, balance=balance, seed=seed, **settings
        )


def marks(outputs: Path, **question: Any) -> dict[str, str]:
    view = build_table(rows_below(outputs), ReportQuery(**question))
    return {str(row["balance"]): mark_of(row, view) for row in view.rows}


def test_health_decides_between_ties(tmp_path: Path) -> None:
    """The lowest loss with collapsed routing is passed over for one that ties with it, in the memo, table and page alike."""
    make(tmp_path, "none", 1.700, COLLAPSED)
    make(tmp_path, "switch", 1.702)
    make(tmp_path, "z", 1.703)
    frame = load_runs(tmp_path)
    answer = recommend(frame)
    text = " ".join(format_recommendation(answer))
    assert ("switch", "health") == (answer.settings["balance"], answer.because)
    assert "use expert=8 k=2 balance=switch" in text
    assert "because its routing has collapsed (25 % dead experts, MaxVio 2.93 of at most 3)." in text
    assert ("expert=8 k=2 balance=none", "expert=8 k=2 balance=z") == answer.ties
    assert {"none": "lowest", "switch": "recommended", "z": "pareto"} == marks(tmp_path) | {"z": "pareto"}
    runs = rows_below(tmp_path)
    view = build_table(runs, ReportQuery())
    bold = [line for line in markdown_text(view).splitlines() if "**" in line]
    assert ["switch"] == [balance for line in bold for balance in ("none", "switch", "z") if f"**{balance}**" in line]
    rows = page_content(view, Source(runs, (), "mine", "moe"), ())["rows"]
    assert {"none": "lowest", "switch": "recommended"} == {
        str(row["balance"]): shown["mark"] for row, shown in zip(view.rows, rows, strict=True) if shown["mark"]
    }


def test_a_collapsed_configuration_that_is_beyond_doubt_better_is_named(tmp_path: Path) -> None:
    """Health decides between ties only; what has collapsed is said."""
    for balance, mean, results in (("none", 1.5, COLLAPSED), ("switch", 1.7, None)):
        for seed in range(3):
            complete(
                tmp_path,
                mean + 0.01 * seed + 0.001 * len(balance) * seed**2,
                "mine",
                results,
                balance=balance,
                seed=seed,
            )
    answer = recommend(load_runs(tmp_path))
    assert ("none", "") == (answer.settings["balance"], answer.because)
    assert "Its routing has collapsed (25 % dead experts" in " ".join(format_recommendation(answer))


def test_a_collapsed_baseline_gives_way_to_what_ties_with_it(tmp_path: Path) -> None:
    """A declared baseline with dead experts is not recommended over a healthy tie."""
    write_json_folder(tmp_path, {"balance": "none"})
    make(tmp_path, "none", 1.700, COLLAPSED)
    make(tmp_path, "switch", 1.702)
    answer = recommend(load_runs(tmp_path))
    assert ("tie", "switch") == (answer.reason, answer.settings["balance"])
    assert "it is not distinguishable from balance=none" in format_recommendation(answer)[0]


def test_cost_decides_between_close_ties(tmp_path: Path) -> None:
    """Within half a percent, the configuration with fewer FLOPs is recommended."""
    make(tmp_path, "none", 1.700)
    make(tmp_path, "switch", 1.702, {"flops_per_token": 3e6})
    answer = recommend(load_runs(tmp_path))
    assert ("switch", "cost") == (answer.settings["balance"], answer.because)
    assert "It is not recommended, because it costs more." in " ".join(format_recommendation(answer))
    make(tmp_path, "z", 1.750, {"flops_per_token": 1e6})
    assert "switch" == recommend(load_runs(tmp_path)).settings["balance"]


def test_with_one_seed_only_small_differences_are_ties(tmp_path: Path) -> None:
    """A healthy configuration far behind does not replace the lowest; one close to it does."""
    make(tmp_path, "none", 1.700, COLLAPSED, seeds=1)
    make(tmp_path, "z", 2.1, seeds=1)
    assert "none" == recommend(load_runs(tmp_path)).settings["balance"]
    make(tmp_path, "switch", 1.66, seeds=1)
    assert "switch" == recommend(load_runs(tmp_path)).settings["balance"]


@pytest.mark.parametrize(
    ("expert", "k", "dead", "violation", "collapsed"),
    [
        (8, 2, 0.0, 1.5, False),
        (8, 2, 0.06, 0.3, True),
        (8, 2, 0.04, 0.3, False),
        (8, 2, 0.0, 2.5, True),
        (4, 2, 0.0, 0.6, False),
        (16, 1, 0.0, 12.0, True),
        (16, 1, 0.0, 5.0, False),
        (1, 1, None, None, False),
        (2, 2, 0.0, 0.0, False),
    ],
)
def test_collapse(expert: int, k: int, dead: float | None, violation: float | None, collapsed: bool) -> None:
    """More than 5 % dead experts, or three quarters of the way from an even load to all tokens on one expert."""
    run = RunRow(
        "run",
        "runs",
        "/run",
        COMPLETED,
        None,
        None,
        (),
        {"expert": expert, "k": k},
        results=Results(dead_experts=dead, max_violation=violation),
    )
    assert collapsed == is_collapsed(aggregate_seeds([run]).configurations[0])


def test_dense_that_is_recommended_is_marked_as_is_the_lowest(tmp_path: Path) -> None:
    """Where the memo says to use the dense model, no other row is called best."""
    for seed, spread in enumerate((0.0, 0.06, -0.06)):
        complete(tmp_path, 1.83, "mine", expert=1, seed=seed)
        complete(tmp_path, 1.82 + spread, "mine", expert=8, seed=seed)
    frame = load_runs(tmp_path)
    assert "use the dense model" in format_recommendation(recommend(frame))[0]
    lines = [line.plain for line in report_lines(build_table(rows_below(tmp_path), ReportQuery()), "mine", 140)]
    assert [("8", "lowest"), ("1", "recommended")] == [
        (line.split()[0], line.split()[-1]) for line in lines if line.endswith(("lowest", "recommended", "best"))
    ]


def write_json_folder(outputs: Path, baseline: Any) -> None:
    (outputs / "mine").mkdir(parents=True, exist_ok=True)
    write_json(outputs / "mine" / "sweep.json", {"name": "mine", "baseline": baseline})


def test_the_declared_baseline_is_that_of_the_recommendation(tmp_path: Path) -> None:
    """The memo compares with what the table compares with, names it, and its next sweep has both methods and no dense model."""
    write_json_folder(tmp_path, {"balance": "none"})
    for seed in range(3):
        complete(tmp_path, 2.0 + 0.01 * seed, "mine", balance="none", seed=seed)
        complete(tmp_path, 1.8 + 0.011 * seed, "mine", balance="switch", seed=seed)
    answer = recommend(load_runs(tmp_path))
    text = " ".join(format_recommendation(answer))
    assert ("better", {"balance": "none"}, "switch") == (answer.reason, answer.baseline, answer.settings["balance"])
    assert "It beats balance=none by 9." in text
    assert "dense" not in text
    assert "expert=8 k=2 balance=switch,none --seeds" in text
    assert answer.throughput_ratio == pytest.approx(1.0)


@pytest.mark.parametrize(
    "axes",
    [
        pytest.param({"router": ("topk", "sigmoid"), "balance": ("none", "switch")}, marks=pytest.mark.slow),
        {"optim": ("muon", "adamw"), "capacity": (None, 1.25)},
        pytest.param({"optim__lr": (0.01, 0.02), "expert": (1, 4)}, marks=pytest.mark.slow),
        {"k": ("[1,3,1,3]", "[3,1,3,1]")},
        {"k": (1, "[1,3,1,3]"), "match": ("none",), "model__d_expert": ("[16,16,16,16,16,16,16,48]",)},
    ],
)
def test_the_next_sweep_keeps_the_question(text_file: Path, tmp_path: Path, axes: dict[str, tuple[Any, ...]]) -> None:
    """Every setting that varied varies in it too, its line is the command alone, and it counts the runs there are."""
    points: list[dict[str, Any]] = [{"data": "text", "data__path": str(text_file)}]
    for name, values in axes.items():
        points = [{**point, name: value} for point in points for value in values]
    for number, point in enumerate(points):
        for seed in range(2):
            noise = random.Random(f"{number} {seed}").gauss(0, 0.03)
            complete(tmp_path, 1.8 + 0.001 * number + noise, "mine", {"seconds": 60.0}, seed=seed, **point)
    done = sum(len(row["seeds"]) for row in aggregate_seeds(rows_below(tmp_path)).configurations)
    result = CliRunner().invoke(app, ["recommend", "mine", "--outputs", str(tmp_path)])
    command = shlex.split(result.stdout.splitlines()[-1])
    assert "moe sweep" == " ".join(command[:2])
    for name, values in axes.items():
        written = {
            word.partition("=")[0]: parse_override(word).values for word in command if "=" in word and " " not in word
        }
        assert len(values) == 1 or len(written[name.replace("__", ".")]) > 1, (name, command)
    planned = CliRunner().invoke(app, [*command[1:], "--dry-run", "--outputs", str(tmp_path)])
    assert 0 == planned.exit_code, planned.output
    assert f"{done} done before" in planned.output
    assert "give one for each expert" not in planned.output


def test_the_richer_sweep_answers(tmp_path: Path) -> None:
    """The recommendation uses the data with several seeds, although other data have more configurations."""
    for expert in (1, 2, 4, 8, 16):
        complete(tmp_path, 1.0, "austen", {"corpus_sha256": "cd" * 32}, expert=expert, k=1)
    for expert in (1, 4, 8):
        for seed in range(2):
            complete(tmp_path, 2.0 - 0.01 * expert + 0.001 * seed, "mine", expert=expert, k=1, seed=seed)
    answer = recommend(load_runs(tmp_path))
    assert (2, {"data": 5}) == (answer.seeds, dict(answer.left_out))


def test_json_of_a_recommendation_names_baseline_ties_and_look(tmp_path: Path) -> None:
    """A program reads what the memo says."""
    make(tmp_path, "none", 1.700, COLLAPSED)
    make(tmp_path, "switch", 1.702)
    words = ["recommend", "mine", "--json", "--outputs", str(tmp_path)]
    content = json.loads(CliRunner().invoke(app, words).stdout)
    assert ({"expert": 1}, ["expert=8 k=2 balance=none"], "health", 1, 1) == tuple(
        content[name] for name in ("baseline", "ties", "because", "look", "pairs")
    )


def test_dense_models_do_not_lack_a_dense_model(tmp_path: Path) -> None:
    """The memo does not say that no dense model was run where one is recommended."""
    for seed in range(3):
        for lr, loss in ((0.01, 2.0), (0.02, 1.9)):
            complete(tmp_path, loss + 0.01 * seed + lr * seed**2, "mine", expert=1, optim__lr=lr, seed=seed)
    assert "no dense model" not in " ".join(format_recommendation(recommend(load_runs(tmp_path))))


def test_one_seed_is_said_where_nothing_could_be_compared(tmp_path: Path) -> None:
    """Configurations with one seed each, which are different seeds."""
    complete(tmp_path, 1.7, "mine", balance="none", seed=0)
    complete(tmp_path, 1.9, "mine", balance="switch", seed=1)
    answer = recommend(load_runs(tmp_path))
    assert "one seed" == answer.reason
    assert "one seed is not enough" in format_recommendation(answer)[0]


def test_the_baseline_is_recommended_where_the_others_are_worse(tmp_path: Path) -> None:
    """Also when a filter leaves it out."""
    for seed in range(3):
        complete(tmp_path, 1.7 + 0.01 * seed, "mine", expert=1, seed=seed)
        for expert in (4, 8):
            complete(tmp_path, 1.9 + 0.01 * seed + expert * 1e-4 * seed, "mine", expert=expert, k=2, seed=seed)
    outcome = CliRunner().invoke(app, ["recommend", "mine", "--where", "expert >= 4", "--outputs", str(tmp_path)])
    text = " ".join(outcome.stdout.split())
    assert "use the dense model (expert=1). The best of the others is expert=4 k=2" in text
    assert "it is worse by 1" in text
    view = build_table(rows_below(tmp_path), ReportQuery("expert >= 4"))
    assert [] == view.recommended


def test_what_is_passed_over_is_not_named_as_the_nearest_too(tmp_path: Path) -> None:
    """One difference is given once."""
    make(tmp_path, "none", 1.700, COLLAPSED)
    make(tmp_path, "switch", 1.702)
    text = " ".join(format_recommendation(recommend(load_runs(tmp_path))))
    assert "The lowest, expert=8 k=2 balance=none" in text
    assert "The nearest" not in text


def test_page_table_and_memo_agree_under_a_filter(tmp_path: Path) -> None:
    """A baseline that a filter hides serves all three, and what it hides is not recommended."""
    for seed in range(3):
        for expert, mean in ((1, 1.9), (4, 1.8), (8, 1.7), (16, 1.6)):
            complete(
                tmp_path,
                mean + 0.01 * seed + expert * 1e-4 * seed**2,
                "mine",
                expert=expert,
                k=2 if expert > 1 else 1,
                seed=seed,
            )
        complete(tmp_path, 1.85 + 0.01 * seed, "other", expert=1, seed=seed + 3)
    condition = "expert == 4 or expert == 8"
    page = tmp_path / "page.html"
    for words in (("recommend",), ("report", "-o", str(page))):
        outcome = CliRunner().invoke(app, [*words, "mine", "--where", condition, "--outputs", str(tmp_path)])
        text = " ".join((page.read_text() if "-o" in words else outcome.stdout).split())
        assert "use expert=8 k=2" in text
        assert "It beats the dense model" in text
    assert [8] == [
        row["expert"] for row in build_table(rows_below(tmp_path / "mine"), ReportQuery(condition)).recommended
    ]


def test_verdicts_on_a_row_that_is_not_the_lowest_allow_for_all_pairs(tmp_path: Path) -> None:
    """Without a baseline, what is recommended instead of a collapsed lowest is compared as strictly as the table compares."""
    losses = {
        "none": (1.70, 1.72, 1.71),
        "switch": (1.71, 1.71, 1.71),
        "z": (1.74, 1.76, 1.756),
        "loss_free": (1.75, 1.73, 1.76),
    }
    for balance, values in losses.items():
        for seed, loss in enumerate(values):
            complete(tmp_path, loss, "mine", COLLAPSED if balance == "none" else None, balance=balance, seed=seed)
    rows = {row.balance: row for row in aggregate_seeds(rows_below(tmp_path)).configurations}
    chosen = choose(list(rows.values()), pairs=True)
    assert (6, "switch") == (chosen.known.pairs, chosen.row["balance"])
    alone, strict = (compare(chosen.row, rows["z"], known) for known in (Known(), chosen.known))
    assert alone is not None
    assert strict is not None
    assert ("worse", "inconclusive") == (alone.verdict, strict.verdict)
