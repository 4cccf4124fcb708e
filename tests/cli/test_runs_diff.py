"""moe runs diff: what differs, by how much, which is better, and whether that may be said at all."""

import json
from pathlib import Path
from typing import Any

import pytest

from moe_cli.files.checksums import write_sealed
from moe_cli.report.run_comparison import compare_runs
from moe_cli.runs.folder import FAILED, Run
from tests.cli.conftest import Moe
from tests.report.folders import complete, stopped


def verdicts(a: Run, b: Run) -> dict[str, str]:
    return {each.name: each.verdict for each in compare_runs(a, b).measures if each.verdict}


def evaluated(run: Run, *bits: float) -> Run:
    """With an evaluation every ten steps, and one layer's load."""
    lines = [json.dumps({"step": 10 * (place + 1), "val/bpb": value}) for place, value in enumerate(bits)]
    (run.path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (run.path / "routing.jsonl").write_text(json.dumps({"step": 10, "layer": 0, "tokens_per_expert": [3, 1]}) + "\n")
    return run


def test_better_and_worse_follow_the_measure(tmp_path: Path) -> None:
    """Fewer bits are better, more tokens a second too; of sizes nothing is said."""
    a = complete(tmp_path, 1.80, expert=8, k=2)
    b = complete(tmp_path, 1.71, expert=16, k=2, results={"tokens_per_second": 12_000.0, "max_violation": 0.5})
    found = verdicts(a, b)
    assert (found["val_bpb"], found["tokens_per_second"], found["max_violation"]) == ("better", "worse", "worse")
    assert "params" not in found
    assert {each.name: each.relative for each in compare_runs(a, b).measures}["val_bpb"] == pytest.approx(-0.05)


def test_settings_that_differ(tmp_path: Path) -> None:
    """Those and no others, with both values; None where one has no such setting."""
    a, b = complete(tmp_path, 1.8, expert=1), complete(tmp_path, 1.7, expert=8, k=2)
    settings = compare_runs(a, b).settings
    assert (settings["expert"], settings["router.name"]) == ((1, 8), (None, "topk"))
    assert "optim.lr" not in settings


@pytest.mark.parametrize(
    ("results", "settings", "caveat", "silent", "spoken"),
    [
        ({"corpus_sha256": "cd" * 32}, {}, "different texts", ["val_bpb", "val_loss"], "tokens_per_second"),
        ({}, {"data__tokenizer": "chars"}, "their tokens differ", ["val_loss", "val_perplexity"], "val_bpb"),
        ({}, {"eval__stride": 64}, "unlike contexts", ["val_bpb", "val_loss"], "tokens_per_second"),
        ({}, {"train__steps": 900}, "different budgets", ["val_bpb", "val_loss"], "tokens_per_second"),
        ({}, {"data__val_fraction": 0.2}, "different texts", ["val_bpb"], "tokens_per_second"),
    ],
)
def test_what_cannot_be_compared_is_not(
    tmp_path: Path, results: dict[str, Any], settings: dict[str, Any], caveat: str, silent: list[str], spoken: str
) -> None:
    """Other text, other tokens, another budget: it is said, and no loss that it touches is called better."""
    a = complete(tmp_path, 1.8, expert=8)
    b = complete(tmp_path, 1.7, expert=8, results={"tokens_per_second": 1.0, **results}, **settings)
    comparison = compare_runs(a, b)
    assert any(caveat in each for each in comparison.caveats)
    found = verdicts(a, b)
    assert not set(silent) & set(found)
    assert spoken in found
    assert compare_runs(a, complete(tmp_path, 1.7, expert=8, seed=1)).caveats == []


def test_equal_flops_are_one_budget(tmp_path: Path) -> None:
    """At equal FLOPs, a cheaper model learns from more tokens, and the losses are comparable as in the report."""
    a, b = (complete(tmp_path, 1.8, expert=8, k=k, train__flops=10**15, results={"tokens": 10**6 // k}) for k in (1, 2))
    assert [] == compare_runs(a, b).caveats


def test_an_unfinished_run_is_compared_with_a_caveat(tmp_path: Path, moe: Moe) -> None:
    """Its newest estimates stand for results, and nothing is called better by them."""
    outputs = tmp_path / "outputs"
    a, b = complete(outputs, 1.8, expert=8), evaluated(stopped(outputs, FAILED, expert=4), 3.0, 2.0)
    assert any("B is not complete" in caveat for caveat in compare_runs(a, b).caveats)
    assert "val_bpb" not in verdicts(a, b)
    assert "not comparable: B is not complete" in moe("runs", "diff", a.id, b.id).stdout


def test_curves_are_over_tokens(tmp_path: Path) -> None:
    """Curves of runs with different batch sizes are over tokens, not over steps."""
    a = evaluated(complete(tmp_path, 1.8, expert=8, train__batch_size=8), 3.0, 2.0)
    b = evaluated(complete(tmp_path, 1.8, expert=8, train__batch_size=16), 3.0, 2.0)
    curves = compare_runs(a, b).record()["curves"]
    length = a.config().model.context_length
    assert [point["tokens"] for point in curves["a"]] == [80 * length, 160 * length]
    assert [point["tokens"] for point in curves["b"]] == [160 * length, 320 * length]


def test_everything_is_printed_side_by_side(tmp_path: Path, moe: Moe) -> None:
    """Settings, results with both differences and a word for better, both curves by letter, the load of each layer."""
    outputs = tmp_path / "outputs"
    a, b = (
        evaluated(complete(outputs, bits, expert=8, k=k), *curve)
        for bits, k, curve in ((1.80, 1, (3.0, 2.0)), (1.71, 2, (3.0, 1.0)))
    )
    text = moe("runs", "diff", a.id, b.id).stdout
    lines = [line.split() for line in text.splitlines()]
    assert ["k", "1", "2"] in lines
    assert ["val_bpb", "1.8000", "1.7100", "-0.0900", "-5.0", "%", "B", "better"] in lines
    assert ["tokens_per_second", "24.0k", "24.0k", "0", "0", "%"] in lines
    assert ["L1", "▇▃", "+50", "%", "▇▃", "+50", "%"] in lines
    assert "3.00 ┤=" in text
    assert "o A   x B" in text
    assert "not comparable" not in text


def test_damaged_runs_are_compared_as_far_as_they_go(tmp_path: Path, moe: Moe) -> None:
    """Results of the wrong type are as if they were not there."""
    outputs = tmp_path / "outputs"
    a, b = complete(outputs, 1.8, expert=8), complete(outputs, 1.7, expert=4)
    write_sealed(b.path / "summary.json", {"val_bpb": "low", "tokens": [1]})
    (b.path / "routing.jsonl").write_text('{"layer": 0, "tokens_per_expert": ["x"]}\n{"layer": "1"}\n[]\n')
    assert moe("runs", "diff", a.id, b.id).exit_code == 0
    assert {each.name: each.b for each in compare_runs(a, b).measures}["val_bpb"] is None


def test_piped_lines_have_the_width_of_columns(moe: Moe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`runs show` wraps the settings at COLUMNS where the output is piped, as `recommend` does."""
    run = complete(tmp_path / "outputs", 1.8, expert=8)
    for columns in ("60", "90"):
        monkeypatch.setenv("COLUMNS", columns)
        settings = moe("runs", "show", run.id).stdout.partition("settings")[2].partition("model ")[0]
        assert int(columns) - 40 < max(map(len, settings.splitlines())) <= int(columns)
