"""Runs to configurations: what is folded, what varies, and what is compared with what."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from moe_cli.config.probes import ModularConfig, PhonebookConfig
from moe_cli.config.schema import RunConfig
from moe_cli.config.training import EXECUTION_KEYS
from moe_cli.report.aggregate import aggregate_seeds
from moe_cli.report.configuration import Configuration, best_rows
from moe_cli.report.intervals import mean_and_interval, paired_difference
from moe_cli.report.load import rows_below
from moe_cli.report.run_row import column_names, setting_applies, settings_of, varying_settings
from moe_cli.runs.folder import COMPLETED, FAILED, INTERRUPTED, Run
from tests.report.folders import complete, configure, edit_summary, set_status, stopped, sweep_of_three_seeds


def folded(outputs: Path, **options: Any) -> list[Configuration]:
    return aggregate_seeds(rows_below(outputs), **options).configurations


def only(rows: list[Configuration], **wanted: Any) -> Configuration:
    found = [row for row in rows if all(row[name.replace("__", ".")] == value for name, value in wanted.items())]
    assert len(found) == 1, found
    return found[0]


def vary(outputs: Path) -> list[str]:
    return varying_of(folded(outputs))


def varying_of(rows: list[Configuration]) -> list[str]:
    settings = [row.settings for row in rows]
    return varying_settings(settings, settings_of(dict.fromkeys(name for each in settings for name in each)))


def created(run: Run, seconds: float) -> Run:
    set_status(run, COMPLETED, created=seconds)
    return run


@pytest.mark.parametrize(
    ("heads", "names"), [((1, 2), ["model.d_model"]), ((1, 4), ["model.d_model", "model.num_heads"])]
)
def test_a_setting_that_follows_from_another_tells_nothing_apart(heads: tuple[int, int], names: list[str]) -> None:
    """The number of heads that follows from the width is no column; one that does not follow is."""
    rows = [
        {
            "expert": 8,
            "model.d_model": width,
            "model.num_heads": heads,
            "model.num_kv_heads": heads,
            "model.d_head": width // heads,
        }
        for width, heads in zip((32, 64), heads, strict=True)
    ]
    assert names == varying_settings(rows, settings_of(rows[0]))


@pytest.mark.parametrize(
    ("lengths", "names"), [((13, 5), ["data.name"]), ((13, 7), ["data.name", "model.context_length"])]
)
def test_the_context_of_questions_tells_nothing_apart(lengths: tuple[int, int], names: list[str]) -> None:
    """The length of a probe's questions follows from its settings; another one does not."""
    probes = (PhonebookConfig(), ModularConfig())
    rows = [
        {**{f"data.{name}": value for name, value in vars(data).items()}, "model.context_length": length}
        for data, length in zip(probes, lengths, strict=True)
    ]
    assert names == varying_settings(rows, ["data.name", "model.context_length"])


def test_seeds_fold_to_mean_and_interval(tmp_path: Path) -> None:
    """One row per configuration with the means, the t-intervals and the ids of its runs in order of seed."""
    sweep_of_three_seeds(tmp_path)
    rows = folded(tmp_path)
    assert len(rows) == 4
    row = only(rows, expert=16)
    values = [1.71, 1.718, 1.726]
    assert row["val_bpb"] == pytest.approx(mean_and_interval(values).mean)
    assert row["val_bpb_interval"] == pytest.approx(mean_and_interval(values).half_width)
    assert row["val_loss_interval"] == pytest.approx(0.7 * row["val_bpb_interval"])
    assert (row["seeds"], row["seed"], row["run"]) == ([0, 1, 2], None, row["runs"][0])
    assert [run.split("-s")[1][0] for run in row["runs"]] == ["0", "1", "2"]
    assert row["params"] == 16_000_000
    assert isinstance(row["params"], int)


def test_difference_to_dense_is_paired_by_seed(tmp_path: Path) -> None:
    """Each seed against the dense run of that seed; the dense row is 0 without an interval."""
    sweep_of_three_seeds(tmp_path)
    rows = folded(tmp_path)
    expected = paired_difference({0: 1.71, 1: 1.718, 2: 1.726}, {0: 1.83, 1: 1.84, 2: 1.85})
    assert expected is not None
    row = only(rows, expert=16)
    assert (row["vs_baseline"], row["vs_baseline_interval"]) == pytest.approx((expected.mean, expected.half_width))
    dense = only(rows, expert=1)
    assert (dense["vs_baseline"], dense["vs_baseline_interval"]) == (0, None)
    assert row["baseline"] == dense["baseline"] == dense["run"]


def test_only_shared_seeds_are_paired(tmp_path: Path) -> None:
    """A seed that one side lacks is left out of the difference, not of the mean."""
    complete(tmp_path, 2.0, expert=1, seed=0)
    complete(tmp_path, 1.8, expert=8, seed=0)
    complete(tmp_path, 1.0, expert=8, seed=1)
    row = only(folded(tmp_path), expert=8)
    assert row["vs_baseline"] == pytest.approx(-0.1)
    assert row["vs_baseline_interval"] is None
    assert row["val_bpb"] == pytest.approx(1.4)


def test_without_a_shared_seed_there_is_no_difference(tmp_path: Path) -> None:
    """Runs of different seeds are not compared."""
    complete(tmp_path, 2.0, expert=1, seed=0)
    complete(tmp_path, 1.8, expert=8, seed=1)
    assert only(folded(tmp_path), expert=8)["vs_baseline"] is None


@pytest.mark.parametrize(
    "difference",
    [
        {"train__steps": 1000},
        {"optim__lr": 0.0123},
        {"model__num_layers": 3},
        {"optim": "adamw"},
        {"data__val_fraction": 0.123},
    ],
)
def test_a_dense_run_of_other_settings_is_no_baseline(tmp_path: Path, difference: dict[str, Any]) -> None:
    """Budget, optimizer, data and shape must be equal."""
    complete(tmp_path, 2.0, expert=1, **difference)
    complete(tmp_path, 1.8, expert=8)
    assert only(folded(tmp_path), expert=8)["vs_baseline"] is None


def test_a_dense_run_on_other_data_is_no_baseline(tmp_path: Path) -> None:
    """The corpus's content counts, not its name."""
    complete(tmp_path, 2.0, expert=1, results={"corpus_sha256": "cd" * 32})
    complete(tmp_path, 1.8, expert=8)
    assert only(folded(tmp_path), expert=8)["vs_baseline"] is None


@pytest.mark.parametrize(
    "setting",
    [
        {"k": 1},
        {"capacity": 1.25},
        {"router": "switch", "k": 1},
        {"balance": "none"},
        {"balance__weight": 0.1},
        {"model__shared_experts": 1},
        {"model__moe_layer_freq": 2},
        {"match": "none", "model__d_expert": 64},
        {"eval__k": 1},
        {"train__threads": 1},
        {"train__device": "cpu"},
    ],
)
def test_settings_of_experts_and_of_execution_do_not_part_a_row_from_its_baseline(
    tmp_path: Path, setting: dict[str, Any]
) -> None:
    """Settings that a dense model does not have or that change no result may differ from the baseline."""
    complete(tmp_path, 2.0, expert=1)
    complete(tmp_path, 1.8, expert=8, **setting)
    assert only(folded(tmp_path), expert=8)["vs_baseline"] == pytest.approx(-0.1)


def test_a_baseline_elsewhere_is_used_and_not_shown(tmp_path: Path) -> None:
    """A dense run outside the selection is a baseline; one inside is preferred when it is newer."""
    complete(tmp_path / "there", 2.0, expert=1)
    complete(tmp_path / "here", 1.8, expert=8)
    row = only(folded(tmp_path / "here", extra_baselines=rows_below(tmp_path / "there")))
    assert row["vs_baseline"] == pytest.approx(-0.1)


def test_the_newest_of_two_runs_with_one_seed_counts(tmp_path: Path) -> None:
    """A repeated run does not pose as a second seed, and the order in which runs were named does not matter."""
    created(complete(tmp_path, 1.7, expert=8, seed=0), 2000.0)
    created(complete(tmp_path, 1.9, expert=8, seed=0), 1000.0)
    row = only(folded(tmp_path))
    assert (row["val_bpb"], row["seeds"], row["val_bpb_interval"]) == (1.7, [0], None)
    assert aggregate_seeds(rows_below(tmp_path)[::-1]).configurations[0].results.val_bpb == 1.7
    assert len(folded(tmp_path, by_run=True)) == 2


def test_runs_without_results_are_rows_of_their_own(tmp_path: Path) -> None:
    """A failed seed neither joins its configuration nor changes its mean."""
    complete(tmp_path, 1.7, expert=8, seed=0)
    stopped(tmp_path, FAILED, "out of memory", expert=8, seed=1)
    stopped(tmp_path, INTERRUPTED, expert=8, seed=2)
    rows = folded(tmp_path)
    assert [row["status"] for row in rows] == [COMPLETED, FAILED, INTERRUPTED]
    assert only(rows, status=COMPLETED)["seeds"] == [0]
    failed = only(rows, status=FAILED)
    assert (failed["seed"], failed["val_bpb"], failed["vs_baseline"], failed["params"]) == (1, None, None, None)


def test_execution_settings_do_not_part_configurations(tmp_path: Path) -> None:
    """Threads, devices and logging are no part of what was learned."""
    complete(tmp_path, 1.7, expert=8, seed=0, train__threads=1, train__log_every=5)
    complete(tmp_path, 1.7, expert=8, seed=1, train__threads=2)
    assert len(folded(tmp_path)) == 1


def test_other_data_is_another_configuration(tmp_path: Path) -> None:
    """Runs on a file that changed between them are not averaged."""
    complete(tmp_path, 1.7, expert=8, seed=0)
    complete(tmp_path, 1.9, expert=8, seed=1, results={"corpus_sha256": "cd" * 32})
    assert len(folded(tmp_path)) == 2


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        ([{"expert": 8}, {"expert": 16}], ["expert"]),
        ([{"expert": 8, "k": 1}, {"expert": 8, "k": 2}], ["k"]),
        ([{"expert": 1}, {"expert": 8}], ["expert"]),
        ([{"capacity": 1.25}, {"capacity": None}], ["capacity"]),
        ([{"capacity": 1.25}, {"capacity": 1.25, "drop": "probability"}], ["drop"]),
        ([{"balance": "switch"}, {"balance": "z"}], ["balance"]),
        ([{"balance__weight": 0.1}, {"balance__weight": 0.2}], ["balance.weight"]),
        ([{"router": "switch", "k": 1}, {"router": "topk", "k": 1}], ["router"]),
        ([{"optim": "muon"}, {"optim": "adamw"}], ["optim.name"]),
        ([{"optim": "muon", "optim__lr": 0.1}, {"optim": "adamw"}, {"optim": "muon"}], ["optim.lr", "optim.name"]),
        ([{"optim__schedule": "wsd"}, {"optim__schedule": "cosine"}], ["optim.schedule"]),
        ([{"expert": 4, "optim__lr": 0.01}, {"expert": 8, "optim__lr": 0.02}], ["expert", "optim.lr"]),
        ([{"match": "none", "model__d_expert": 64}, {"match": "none", "model__d_expert": 128}], ["model.d_expert"]),
        ([{"train__steps": 100}, {"train__steps": 200}], ["train.steps"]),
        ([{"train__threads": 1}, {"train__threads": 2}], []),
        ([{"seed": 1}, {"seed": 2}], []),
    ],
)
def test_what_varies(tmp_path: Path, grid: list[dict[str, Any]], expected: list[str]) -> None:
    """Settings that were chosen differently vary; derived settings and those without effect do not."""
    for settings in grid:
        complete(tmp_path, 1.7, **settings)
    assert vary(tmp_path) == expected


def test_every_setting_applies_to_a_sparse_model_and_resolution_says_which_to_a_dense_one() -> None:
    """A setting that resolving a dense model sets aside is one that does not apply to it."""
    sparse = {
        "k": 1,
        "capacity": 1.5,
        "match": "active",
        "eval.k": 1,
        "model.shared_experts": 1,
        "model.moe_layer_freq": 2,
        "model.dispatch": "reference",
    }
    changed = configure(expert=1, **{key.replace(".", "__"): value for key, value in sparse.items() if key != "k"})
    assert changed == configure(expert=1)
    assert {name for name in sparse if setting_applies(name, {"expert": 1})} == set()
    assert {name for name in sparse if not setting_applies(name, {"expert": 8})} == set()


def test_all_settings_but_seed_and_execution_tell_runs_apart(tmp_path: Path) -> None:
    """The settings that part configurations are those of a run's identity."""
    complete(tmp_path, 1.7)
    names = set(settings_of(column_names(rows_below(tmp_path))))
    top = {field.name for field in dataclasses.fields(RunConfig)} - {
        "seed",
        "model",
        "task",
        "data",
        "optim",
        "train",
        "eval",
        "launch",
        "log",
        "log_project",
    }
    assert {name for name in names if "." not in name} == top
    assert {f"train.{key}" for key in EXECUTION_KEYS} & names == set()
    assert not any(name.startswith("launch") for name in names)
    assert {"train.batch_size", "model.d_model", "data.tokenizer", "optim.beta1", "eval.capacity"} <= names


def test_best_is_the_lowest_among_comparable_rows(tmp_path: Path) -> None:
    """One best per budget and corpus, none where there is nothing to compare with."""
    complete(tmp_path, 1.8, expert=4)
    complete(tmp_path, 1.7, expert=8)
    complete(tmp_path, 1.6, expert=4, train__steps=900)
    complete(tmp_path, 1.5, expert=8, train__steps=900)
    complete(tmp_path, 0.9, expert=8, results={"corpus_sha256": "cd" * 32})
    assert sorted(row["val_bpb"] for row in best_rows(folded(tmp_path))) == [1.5, 1.7]


def test_the_same_tokens_by_another_budget_are_comparable(tmp_path: Path) -> None:
    """Steps and tokens are two words for one budget; FLOPs and minutes are budgets of their own."""
    complete(tmp_path, 1.8, expert=4, train__steps=100)
    complete(tmp_path, 1.7, expert=4, train__tokens=204_800, results={"tokens": 204_800})
    complete(tmp_path, 1.6, expert=4, train__minutes=1, results={"tokens": 204_800})
    complete(tmp_path, 1.5, expert=8, train__minutes=1, results={"tokens": 100_000})
    assert sorted(row["val_bpb"] for row in best_rows(folded(tmp_path))) == [1.5, 1.7]


def test_bits_and_nats_are_ranked_apart(tmp_path: Path) -> None:
    """A loss in nats per token is comparable only with losses of the same tokenizer."""
    complete(tmp_path, 1.8, expert=4)
    complete(tmp_path, 1.7, expert=8)
    for expert, tokenizer in ((4, "chars"), (8, "chars"), (16, "bpe")):
        run = complete(tmp_path, 1.0 + expert / 100, expert=expert, data__tokenizer=tokenizer)
        edit_summary(run.path, val_bpb=None)
    rows = folded(tmp_path)
    assert [(4, None), (8, 1.7)] == [(row["expert"], row["val_bpb"]) for row in best_rows(rows)]
    assert 3 == len({row.comparison_key for row in rows})


def test_a_row_per_run_is_compared_at_its_seed(tmp_path: Path) -> None:
    """With a row per run, nothing is averaged and each has the difference of its seed."""
    sweep_of_three_seeds(tmp_path)
    rows = folded(tmp_path, by_run=True)
    assert len(rows) == 12
    row = only(rows, expert=16, seed=1)
    assert (row["val_bpb"], row["val_bpb_interval"]) == (1.718, None)
    assert row["vs_baseline"] == pytest.approx(1.718 / 1.84 - 1)


def test_a_loss_that_was_not_finite_is_left_out(tmp_path: Path) -> None:
    """A completed run whose loss is null neither breaks the mean nor becomes the best."""
    complete(tmp_path, float("nan"), expert=8, seed=0)
    complete(tmp_path, 1.7, expert=8, seed=1)
    complete(tmp_path, float("nan"), expert=16, seed=0)
    rows = folded(tmp_path)
    assert (only(rows, expert=8)["val_bpb"], only(rows, expert=16)["val_bpb"]) == (1.7, None)
    assert best_rows(rows) == []


def test_tasks_are_no_rivals(tmp_path: Path) -> None:
    """Runs of one corpus at one budget are ranked within their task, and settings of another model tell nothing apart."""
    complete(tmp_path, 1.7, results={"tokens": 10**6})
    complete(tmp_path, 1.6, results={"tokens": 10**6, "val_accuracy": 0.5}, model="bert")
    rows = aggregate_seeds(rows_below(tmp_path)).configurations
    assert 2 == len({row.comparison_key for row in rows})
    assert {"model.name", "task.name"} == {name for name in varying_of(rows) if "." in name}
