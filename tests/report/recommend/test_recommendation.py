"""The recommendation follows from the runs, says what they do not show, and names a next sweep that can be run."""

import json
import random
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from moe_cli import load_runs, recommend
from moe_cli.cli.app import app
from moe_cli.errors import ConfigError, MoeError
from moe_cli.files.writing import write_json
from moe_cli.report.aggregate import aggregate_seeds
from moe_cli.report.load import rows_below
from moe_cli.report.recommend.recommendation import Recommendation
from moe_cli.report.recommend.text import format_recommendation
from moe_cli.runs.folder import FAILED, Run
from tests.report.folders import complete, edit_summary, stopped
from tests.report.test_long_format import write_lines
from tests.runner import CliRunner

ON = "On python (ababab), 1.02M tokens, gpt of 4 layers x 96: "
DENSE: dict[str, Any] = {"expert": 1}
EIGHT: dict[str, Any] = {"expert": 8, "k": 2}
SIXTEEN: dict[str, Any] = {"expert": 16, "k": 2}


def make(
    outputs: Path, mean: float, settings: dict[str, Any], seeds: int = 3, noise: float = 0.004, **results: Any
) -> list[Run]:
    """Runs of one configuration; what a seed does is shared by all configurations."""
    own = random.Random(str(settings))
    shared = [random.Random(seed).gauss(0, 0.02) for seed in range(seeds)]
    return [
        complete(outputs, mean + shared[seed] + own.gauss(0, noise), "sparsity", results, seed=seed, **settings)
        for seed in range(seeds)
    ]


def found(outputs: Path, *across: str) -> tuple[Recommendation, str]:
    answer = recommend(load_runs(outputs), across)
    return answer, "\n".join(format_recommendation(answer))


def report(outputs: Path, *words: str) -> Result:
    return CliRunner().invoke(app, ["report", *words, "--outputs", str(outputs)])


def recommendation(outputs: Path, *words: str) -> Result:
    return CliRunner().invoke(app, ["recommend", *words, "--outputs", str(outputs)])


def test_the_best_with_a_verdict_better_than_dense(tmp_path: Path) -> None:
    """Settings, gain over dense, runner-up, and costs as ratios of what was measured."""
    make(tmp_path, 1.83, DENSE, tokens_per_second=20_000.0, peak_memory_bytes=10**9)
    make(tmp_path, 1.76, EIGHT)
    make(tmp_path, 1.70, SIXTEEN, tokens_per_second=10_000.0, peak_memory_bytes=3 * 10**9)
    answer, text = found(tmp_path)
    assert answer.settings == {"expert": 16, "k": 2, "capacity": None, "router": "topk", "balance": "switch"}
    assert (answer.reason, answer.comparisons, answer.seeds) == ("better", 2, 3)
    assert answer.vs_baseline is not None
    assert answer.vs_baseline.difference == pytest.approx(1.70 / 1.83 - 1, abs=0.01)
    assert answer.runner_up is not None
    assert (answer.runner_up.name, answer.runner_up.verdict) == ("expert=8 k=2", "worse")
    assert (answer.params_ratio, answer.throughput_ratio, answer.memory_ratio) == pytest.approx((16, 0.5, 3))
    assert text.startswith(
        f"{ON}use expert=16 k=2 (topk, switch, dropless).\nIt beats the dense model of equal active parameters by "
    )
    assert "2 configurations were compared with dense" in text


def test_dense_where_nothing_is_better(tmp_path: Path) -> None:
    """A lower mean that three seeds cannot tell from dense is no reason for experts; how many seeds would is said."""
    make(tmp_path, 1.83, DENSE)
    make(tmp_path, 1.825, EIGHT, noise=0.04)
    answer, text = found(tmp_path)
    assert (answer.settings["expert"], answer.reason, answer.vs_baseline, answer.params_ratio) == (
        1,
        "baseline",
        None,
        None,
    )
    assert text.startswith(f"{ON}use the dense model (expert=1; ")
    assert ", 3 seeds). No other configuration is significantly better. The nearest, " in text
    assert "inconclusive with 3 seeds; about " in text


def test_seeds_that_would_decide_are_those_of_the_table(tmp_path: Path) -> None:
    """Against dense, memo, next sweep and table say one number, which allows for all comparisons."""
    make(tmp_path, 1.83, DENSE)
    make(tmp_path, 1.82, EIGHT, noise=0.01)
    for k in (1, 4):
        make(tmp_path, 1.9, {"expert": 8, "k": k}, noise=0.1)
    more = next(row["more_seeds"] for row in aggregate_seeds(rows_below(tmp_path)).configurations if row["k"] == 2)
    answer, text = found(tmp_path)
    assert ("baseline", 3) == (answer.reason, answer.comparisons)
    assert f"inconclusive with 3 seeds; about {more} more would decide." in text
    assert f"--seeds {3 + more}" in answer.next


@pytest.mark.parametrize(("match", "named"), [("active", False), ("none", True)])
def test_what_follows_from_other_settings_is_nothing_to_try(tmp_path: Path, match: str, named: bool) -> None:
    """The width of experts is named only where it is free, with match=none."""
    make(tmp_path, 1.7, {**DENSE, "match": match})
    for k in (1, 2):
        make(tmp_path, 1.83, {"expert": 8, "k": k, "match": match})
    assert named == any("d_expert" in each for each in found(tmp_path)[0].not_tried)


def test_a_single_configuration_and_a_dense_model_of_another_sweep(tmp_path: Path) -> None:
    """It was compared, and the answer says what came of it."""
    for seed in range(3):
        complete(tmp_path, 2.0 + 0.001 * seed, "other", seed=seed, **DENSE)
        complete(tmp_path, 2.2 + 0.002 * seed, "mine", seed=seed, **EIGHT)
    said = " ".join(recommendation(tmp_path, "mine").stdout.split())
    assert said.startswith(f"{ON}use the dense model")
    assert "expert=8 k=2" in said
    assert "it is worse by 10.0 %" in said


def test_a_filter_chooses_the_runs_recommended_from(tmp_path: Path) -> None:
    """Excluded runs are not recommended, and dense models stay the baseline, also outside the outputs folder."""
    make(tmp_path / "o", 1.83, DENSE)
    make(tmp_path / "o", 1.76, EIGHT)
    make(tmp_path / "o", 1.70, SIXTEEN)
    for words, outputs in (((), tmp_path / "o"), ((str(tmp_path / "o"),), tmp_path / "elsewhere")):
        result = recommendation(outputs, *words, "--where", "expert == 8")
        assert "use expert=8 k=2" in result.stdout, result.output
        assert "It beats the dense model" in " ".join(result.stdout.split())
        assert "expert=16" not in result.stdout.partition("To be surer")[0]
    for condition, message in (
        ("expert == 99", "no run matches"),
        ("vs_baseline < 0", "vs_baseline is of a row of several"),
    ):
        result = recommendation(tmp_path / "o", "--where", condition)
        assert (2, True) == (result.exit_code, message in result.stderr), result.output


def test_a_printed_recommendation_is_the_terminals_text(tmp_path: Path) -> None:
    """`print` shows in Python what `moe recommend` prints, and the command stays on one line."""
    make(tmp_path, 1.83, DENSE)
    make(tmp_path, 1.76, EIGHT)
    printed = str(found(tmp_path)[0])
    said = recommendation(tmp_path).stdout
    assert said.split() == printed.split()
    assert printed.splitlines()[-1].startswith("  moe sweep ")


def test_the_next_sweep_is_the_same_in_the_page(tmp_path: Path) -> None:
    """The page and the terminal give one command, and a typed baseline that is that of the sweep adds nothing to it."""
    make(tmp_path / "o", 1.83, DENSE)
    make(tmp_path / "o", 1.76, EIGHT)
    command = found(tmp_path / "o")[0].next
    assert command is not None
    assert "--baseline" not in command
    assert report(tmp_path / "o", "-o", str(tmp_path / "page.html")).exit_code == 0
    assert json.dumps(command)[1:-1] in (tmp_path / "page.html").read_text()
    assert command in recommendation(tmp_path / "o", "--baseline", "expert=1").stdout


def test_one_seed_tells_nothing(tmp_path: Path) -> None:
    """The lowest is named, not recommended, and the next sweep has three seeds."""
    make(tmp_path, 1.83, DENSE, seeds=1)
    make(tmp_path, 1.60, EIGHT, seeds=1)
    answer, text = found(tmp_path)
    assert (answer.reason, answer.settings["expert"]) == ("one seed", 8)
    assert text.startswith(f"{ON}one seed is not enough for a verdict.")
    assert "--seeds 3" in answer.next


def test_without_a_dense_model(tmp_path: Path) -> None:
    """Nothing is said of a gain, and the next sweep has the dense model."""
    make(tmp_path, 1.70, EIGHT)
    make(tmp_path, 1.76, SIXTEEN)
    answer, text = found(tmp_path)
    assert (answer.reason, answer.vs_baseline, answer.equal_time) == ("untested", None, None)
    assert "The benefit of experts is unknown" in text
    assert "expert=1,8" in answer.next


def test_a_single_configuration(tmp_path: Path) -> None:
    """There is nothing to choose between."""
    make(tmp_path, 1.70, EIGHT)
    assert found(tmp_path)[1].startswith(f"{ON}nothing to recommend yet: only expert=8 k=2")


def test_nothing_complete_is_an_error(tmp_path: Path) -> None:
    """Failed runs alone recommend nothing."""
    stopped(tmp_path, FAILED, "boom", **EIGHT)
    with pytest.raises(MoeError, match="no run of 1 is complete: nothing"):
        recommend(load_runs(tmp_path))


def test_failures_are_named(tmp_path: Path) -> None:
    """A configuration that failed was not compared, and says why."""
    make(tmp_path, 1.83, DENSE)
    make(tmp_path, 1.70, EIGHT)
    stopped(tmp_path, FAILED, "out of memory\nmore", "sparsity", expert=64, k=8)
    assert found(tmp_path)[0].failed == ("expert=64 k=8: out of memory",)


def test_reasons_are_joined_as_one_sentence(tmp_path: Path) -> None:
    """Each is a sentence of its own in its run; a model of one layer has one layer."""
    one = {"model__num_layers": 1}
    make(tmp_path, 1.83, DENSE | one, seeds=1)
    make(tmp_path, 1.70, EIGHT | one, seeds=1)
    for expert in (32, 64):
        stopped(tmp_path, FAILED, "the loss is nan. Try a lower optim.lr.", "sparsity", expert=expert, k=8, **one)
    text = found(tmp_path)[1]
    assert "gpt of 1 layer x 96: " in text
    reason = "the loss is nan. Try a lower optim.lr"
    assert f"Failed: expert=32 k=8: {reason}; expert=64 k=8: {reason}.\n" in f"{text}\n"


@pytest.mark.parametrize("aspect", ["data", "validation", "eval_context", "budget", "code"])
def test_unlike_runs_are_left_out_and_named(tmp_path: Path, aspect: str) -> None:
    """Runs of another text, split, context, budget or code are left out and named; --allow-different ranks them."""
    make(tmp_path, 1.83, DENSE)
    make(tmp_path, 1.70, EIGHT)
    settings = {
        "validation": {"data__val_fraction": 0.2},
        "budget": {"train__steps": 900},
        "eval_context": {"eval__stride": 64},
    }.get(aspect, {})
    results = {"corpus_sha256": "cd" * 32} if aspect == "data" else {}
    for run in make(tmp_path, 1.5, {**SIXTEEN, **settings}, **results):
        if aspect == "code":
            write_json(run.path / "meta.json", {"git": {"commit": "b" * 40, "diff": ""}})
    answer, text = found(tmp_path)
    assert (answer.settings["expert"], dict(answer.left_out)) == (8, {aspect: 3})
    alike = " (evaluate all alike: eval.context_length, eval.stride)" if aspect == "eval_context" else ""
    assert f"Left out: 3 runs of other {aspect}{alike}; to rank them too: --allow-different {aspect}" in text
    assert (aspect == "code") == ("--rerun-stale" in (answer.next or ""))  # else the runs asked for may be there
    across, _ = found(tmp_path, aspect)
    assert across.left_out == {}
    assert across.runner_up is not None or across.settings["expert"] == 16


def test_tokenizers_are_compared_in_bits_per_byte_only(tmp_path: Path) -> None:
    """Bits per byte of the same text are comparable whatever the tokens; nats per token are not."""
    make(tmp_path, 1.83, DENSE)
    make(tmp_path, 1.70, {**EIGHT, "data__tokenizer": "chars"})
    assert found(tmp_path)[0].left_out == {}
    for run in load_runs(tmp_path)["path"]:
        edit_summary(Path(run), val_bpb=None)
    assert found(tmp_path)[0].left_out == {"tokenizer": 3}


def test_gain_at_equal_time(tmp_path: Path) -> None:
    """The sparse curve, half as fast, is read where the dense one ended, as the report does, and written as text."""
    curves = ((1.83, DENSE, {10: 2.2, 20: 2.0}), (1.60, EIGHT, {10: 2.1, 30: 1.7, 40: 1.6}))
    for val_bpb, settings, curve in curves:
        for run in make(tmp_path, val_bpb, settings, seeds=2, noise=0.0001):
            edit_summary(run.path, machine="host")
            points = enumerate(curve.items())
            write_lines(run, "metrics.jsonl", *({"step": n, "seconds": s, "val/bpb": v} for n, (s, v) in points))
    answer, text = found(tmp_path)
    assert answer.equal_time is not None
    assert answer.equal_time.difference == pytest.approx(1.9 / 2.0 - 1)
    assert answer.to_dict()["equal_time"]["seconds"] == 20.0
    assert "After the training time of the dense model (20s), this model was 5.0 % +- 0.0 ahead (2 seeds" in text


@pytest.mark.parametrize(
    "settings",
    [
        {"expert": 8, "k": 1, "router": "switch", "balance": "z", "capacity": 1.25},
        pytest.param({**EIGHT, "capacity": 1.25, "renormalise_after_drop": True}, marks=pytest.mark.slow),
        pytest.param({**EIGHT, "model__d_model": 64, "optim": "adamw", "match": "total"}, marks=pytest.mark.slow),
    ],
)
def test_the_next_sweep_can_be_run_and_counts_what_is_done(
    text_file: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """Its plan holds the runs that are there, among them the dense ones, as completed, and more."""
    size = {key: value for key, value in settings.items() if key in ("model__d_model", "optim")}
    data = {"data": "text", "data__path": str(text_file)}
    make(tmp_path, 1.83, {**DENSE, **size, **data})
    make(tmp_path, 1.70, {**settings, **data})
    command = found(tmp_path)[0].next
    result = CliRunner().invoke(app, [*shlex.split(command)[1:], "--dry-run", "--outputs", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "6 done before" in result.output


def test_the_next_sweep_leaves_to_each_machine_how_it_runs(tmp_path: Path) -> None:
    """Threads, evaluations and checkpoints of the runs there are, which change no result, are not asked for again."""
    how = {"train__threads": 1, "train__eval_every": 7, "launch__num_processes": 2}
    make(tmp_path, 1.83, {**DENSE, **how})
    make(tmp_path, 1.70, {**EIGHT, **how})
    command = found(tmp_path)[0].next
    assert "train.steps=500" in command
    assert [] == [name for name in ("threads", "eval_every", "procs") if name in command]


def test_command_line(tmp_path: Path) -> None:
    """Text within the width, a command on one line; JSON with the same; options without effect are refused."""
    make(tmp_path, 1.83, DENSE)
    make(tmp_path, 1.70, EIGHT)
    lines = (
        CliRunner().invoke(app, ["recommend", "--outputs", str(tmp_path)], env={"COLUMNS": "70"}).stdout.splitlines()
    )
    assert " ".join(" ".join(lines).split()).startswith(f"{ON}use expert=8 k=2 (topk, switch, dropless).")
    assert max(len(line) for line in lines if "moe sweep" not in line) <= 70
    content = json.loads(recommendation(tmp_path, "--json").stdout)
    assert (content["settings"]["expert"], content["vs_baseline"]["verdict"]) == (8, "better")
    result = recommendation(tmp_path, "--allow-different", "cod")
    assert (2, True) == (result.exit_code, "Did you mean 'code'" in result.stderr), result.output
    with pytest.raises(ConfigError, match="no aspect"):
        recommend(load_runs(tmp_path), ["x"])


def test_hostile_names_do_not_reach_the_terminal(tmp_path: Path) -> None:
    """Escapes in settings and reasons are made harmless."""
    make(tmp_path, 1.83, DENSE)
    for run in make(tmp_path, 1.70, EIGHT):
        path = run.path / "config.json"
        path.write_text(path.read_text().replace('"topk"', '"t\\u001b[2Jk"'))
    stopped(tmp_path, FAILED, "\x1b[2J", "sparsity", expert=64, k=8)
    result = recommendation(tmp_path)
    assert (result.exit_code, "\x1b" in result.stdout) == (0, False)


def test_dense_that_was_not_compared_is_no_answer(tmp_path: Path) -> None:
    """A dense model at another learning rate says nothing of experts: the lowest is named, and that dense is missing."""
    make(tmp_path, 2.5, {**DENSE, "optim__lr": 0.01})
    make(tmp_path, 1.8, {**EIGHT, "optim__lr": 0.02})
    answer, text = found(tmp_path)
    assert ("untested", 8) == (answer.reason, answer.settings["expert"])
    assert "The benefit of experts is unknown" in text


def test_seeds_of_unequal_difficulty_rank_nothing(tmp_path: Path) -> None:
    """A configuration run on the easy seeds alone has the lower mean, and loses seed by seed."""
    hard = [0.0, 0.0, 0.0, 0.9, 0.9, 0.9]
    for settings, base, seeds in ((DENSE, 2.4, 6), (EIGHT, 1.8, 6), ({"expert": 4, "k": 2}, 1.9, 3)):
        for seed in range(seeds):
            complete(tmp_path, base + hard[seed] + 0.001 * (seed % 2), "sparsity", {}, seed=seed, **settings)
    answer, text = found(tmp_path)
    assert answer.settings["expert"] == 8
    assert answer.runner_up is not None
    assert answer.runner_up.difference == pytest.approx(1.9 / 1.8 - 1, abs=0.002)
    assert "behind on the seeds both have" in text


def test_one_id_in_two_folders_is_two_runs(tmp_path: Path) -> None:
    """The same configurations on other data, left out, lend their numbers to nothing that is said."""
    for corpus, shift in (("ab", 0.0), ("cd", 0.8)):
        results = {"corpus_sha256": corpus * 32}
        for settings, base in (
            (DENSE, 2.0),
            (EIGHT, 1.8),
            *(((SIXTEEN, 1.95),) if corpus == "ab" else ()),
            ({"expert": 4, "k": 2}, 1.9 + shift),
        ):
            for seed in range(3):
                complete(tmp_path, base + 0.001 * seed, f"of-{corpus}", results, seed=seed, **settings)
    answer, _ = found(tmp_path)
    assert answer.runner_up is not None
    assert answer.runner_up.difference == pytest.approx(1.9 / 1.8 - 1, abs=0.002)
    assert answer.left_out == {"data": 9}


def test_costs_are_known_whichever_seeds_the_best_has(tmp_path: Path) -> None:
    """Against a dense model with more seeds, or one that was run under another name."""
    for seed in range(6):
        complete(tmp_path, 2.0 + 0.001 * seed, "sparsity", {"tokens_per_second": 20_000.0}, seed=seed, **DENSE)
    for seed in (3, 4, 5):
        complete(tmp_path, 1.7 + 0.001 * seed, "mine", {"tokens_per_second": 10_000.0}, seed=seed, **EIGHT)
    assert found(tmp_path)[0].throughput_ratio == pytest.approx(0.5)
    result = recommendation(tmp_path, "mine", "--json")
    assert json.loads(result.stdout)["throughput_ratio"] == pytest.approx(0.5)


def test_baselines_from_elsewhere_are_of_one_kind(tmp_path: Path) -> None:
    """A dense model of another budget, in another folder, is not held against these runs."""
    for seed in range(3):
        complete(tmp_path, 2.0, "other", {"tokens": 5}, seed=seed, **DENSE)
        complete(tmp_path, 1.7, "mine", seed=seed, **EIGHT)
        complete(tmp_path, 1.8, "mine", seed=seed, **SIXTEEN)
    result = recommendation(tmp_path, "mine")
    assert "The benefit of experts is unknown" in " ".join(result.stdout.split())


def test_odd_runs_are_left_alone(tmp_path: Path) -> None:
    """A run whose number of experts is no number is ignored."""
    make(tmp_path, 2.0, DENSE)
    make(tmp_path, 1.7, EIGHT)
    odd = complete(tmp_path, 1.0, "sparsity", expert=64, k=2)
    for value in (None, "many", [3]):
        content = json.loads((odd.path / "config.json").read_text())
        (odd.path / "config.json").write_text(json.dumps({**content, "expert": value}))
        edit_summary(odd.path, expert=value)
        assert found(tmp_path)[0].settings["expert"] == 8
        assert 0 == recommendation(tmp_path).exit_code
        for words in (("-o", tmp_path / "page.html"), ("--plot", "val_bpb:sparsity")):
            assert report(tmp_path, *map(str, words)).exit_code == 0, words
