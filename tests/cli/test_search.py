"""moe sweep --sampler as a user meets it: the plan, the end, real pruning, and every mistake."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moe_cli.report.importance import JOURNAL, load_study
from moe_cli.runs.lookup import list_runs_by_age
from tests.cli.conftest import TINY, Moe

LR = "optim.lr=tag(log,interval(0.001,0.1))"


@pytest.fixture
def settings(text: Path) -> list[str]:
    """Settings of a run that is evaluated as often as by default, so that it can be pruned."""
    return ["data=text", f"data.path={text}", *TINY]


def test_a_dry_run_says_what_would_be_searched(moe: Moe, settings: list[str], tmp_path: Path) -> None:
    """Space, size, objectives, pruning and the time of all trials are printed, and nothing is made."""
    words = ["sweep", *settings, "expert=4,8", "k=1,2", "--sampler", "tpe", "--trials", "30", "--dry-run"]
    text = moe(*words, "--prune", "asha").output
    for part in (
        "tpe search: 30 trials: 0 done before, 30 to go",
        "expert=4,8",
        "k=1,2",
        "size       4 configurations",
        "val_bpb (lower is better)",
        "asha, with 5 evaluations per run",
        "at most about",
        "without --sampler, each runs once",
        "train.steps=6",
    ):
        assert part in text
    assert not (tmp_path / "outputs" / "search").exists()
    several = moe(*words, "--objective", "val_loss,tokens_per_second", LR).output
    assert "val_loss (lower is better), tokens_per_second (higher is better)" in several
    assert "size       infinite" in several


def test_the_end_says_what_was_found(moe: Moe, settings: list[str], tmp_path: Path) -> None:
    """How many trials ended how, the best as words for moe train, which name its run; a second call does nothing."""
    words = ["sweep", *settings, LR, "expert=4", "--sampler", "random", "--trials", "2", "--name", "mine", "-j", "2"]
    result = moe(*words)
    assert 0 == result.exit_code, result.output
    assert "2 of 2 trials: 2 completed, 0 pruned, 0 failed" in result.output
    command = next(line for line in result.output.splitlines() if line.strip().startswith("moe train"))
    shown = moe("config", *command.split()[2:]).output
    best = min(list_runs_by_age(tmp_path / "outputs"), key=lambda run: (run.summary() or {})["val_bpb"])
    assert best.id in shown
    again = moe(*words).output
    assert "2 done before, 0 to go" in again
    assert 2 == len(list_runs_by_age(tmp_path / "outputs"))
    front = moe(*words[:-4], "--name", "two", "-j", "2", "--objective", "val_bpb,flops_per_token").output
    assert "Pareto front: " in front
    assert "flops_per_token  settings" in front


WRONG = [
    ([LR], "draws. Add --sampler random, or write: optim.lr=0.001,0.1"),
    (["k=1,2", "--trials", "3"], "--trials 3 is for a search. Add: --sampler tpe"),
    (["k=1,2", "--prune", "asha"], "--prune asha is for a search."),
    (["k=1,2", "--objective", "val_bpb"], "--objective val_bpb is for a search."),
    (["k=1,2", "--search-seed", "1"], "--search-seed 1 is for a search."),
    ([LR, "--sampler", "grid"], "--sampler grid is not "),
    ([LR, "--sampler", "tpe", "--trials", "0"], "--trials 0 is not "),
    (
        [LR, "--sampler", "tpe", "--search-seed", "-1"],
        "--search-seed -1 is not ",
    ),
    (
        [LR, "--sampler", "tpe", "--prune", "ashha"],
        "--prune ashha is not ",
    ),
    ([LR, "--sampler", "tpe", "--prune", "asha", "--objective", "val_bpb,params"], "not by val_bpb and params"),
    ([LR, "--sampler", "tpe", "--prune", "asha", "--objective", "params"], "params is known only at the end of a run"),
    (
        [LR, "--sampler", "tpe", "--prune", "asha", "train.eval_every=6"],
        "with train.eval_every=6 of 6 steps there are none.",
    ),
    (
        [LR, "--sampler", "tpe", "--objective", "val_bpp"],
        "--objective val_bpp: no such result. Did you mean 'val_bpb'?",
    ),
    ([LR, "--sampler", "tpe", "--objective", "val_bpb,val_bpb"], "names a result twice"),
    (["k=2", "--sampler", "tpe"], "nothing to search: every setting has one value."),
    (["exprt=2", "--sampler", "tpe"], "no setting 'exprt'. Did you mean 'expert'?"),
    (["optim.lrr=interval(0.1,1)", "--sampler", "tpe"], "no setting 'optim.lrr'. Did you mean 'optim.lr'?"),
    (["optim.lrr=0.1,1", "--sampler", "tpe"], "no setting 'optim.lrr'. Did you mean 'optim.lr'?"),
    (["router=interval(1,2)", "--sampler", "tpe"], "router is no number. Write: router=A,B"),
    (["data.tokenizer=interval(1,2)", "--sampler", "tpe"], "data.tokenizer is no number"),
    (["expert=interval(1.5,8)", "--sampler", "tpe"], "expert is a whole number"),
    (["seed=interval(1,8)", "--sampler", "tpe"], "Give: --seeds 3"),
    (["optim.lr=interval(0.1,0.01)", "--sampler", "tpe"], "low below high"),
    (["optim.lr=tag(log,interval(0,1))", "--sampler", "tpe"], "low must be above 0"),
    (["expert=2,4", "k=8,9", "--sampler", "tpe"], "none of 100 draws can be run."),
    (["k=1,2", "--sampler", "tpe", "--where", "kk > 1"], "no setting 'kk'"),
    (["k=1,2", "--sampler", "tpe", "--where", "seed > 1"], "every configuration has all seeds"),
    (["isoflop", "--sampler", "tpe"], "lists whole configurations"),
    ([LR, "--sampler", "tpe", "--name", "../x"], "must be a plain folder name"),
    (["k=1,2", "preset=laptop", "--sampler", "tpe"], "Name one first"),
]


@pytest.mark.parametrize(("words", "message"), WRONG, ids=[" ".join(words) for words, _ in WRONG])
def test_mistakes(moe: Moe, settings: list[str], tmp_path: Path, words: list[str], message: str) -> None:
    """Each is said in at most three lines, with exit code 2, before anything is made."""
    named = [words[0]] if "=" not in words[0] else []
    result = moe("sweep", *named, *settings, *words[len(named) :])
    assert 2 == result.exit_code, result.output
    assert message in result.output
    assert len(result.output.splitlines()) <= 3
    assert not list((tmp_path / "outputs").glob("*/*/config.json"))


BLOCKS = [
    ("search: 3", "search must hold "),
    ("search: {spaces: {}}", "no part 'spaces' in search. Did you mean 'space'?"),
    ("search: {space: [k]}", "search.space must hold settings."),
    ("search: {space: {k: 3}}", "search.space.k must be a list of values, or {low: 1, high: 8}."),
    ("search: {space: {k: {low: 1}}}", "search.space.k: high null is not a number."),
    ("search: {space: {k: {low: 1, hi: 2}}}", "no part 'hi' in search.space.k."),
    ("search: {space: {k: {low: 2, high: 1}}}", "search.space.k: low 2 is not below high 1."),
    ("search: {space: {k: {low: 0, high: 1, log: true}}}", "a logarithmic scale begins above 0"),
    ("search: {space: {k: {low: 0, high: 1, log: 3}}}", "log 3 is not "),
    ("search: {space: {k: {low: 1, high: 4, step: 9}}}", "step must be above 0 and at most high - low"),
    ("search: {space: {k: [1, 2]}, sampler: tpee}", "search.sampler=tpee is not "),
    ("search: {space: {k: [1, 2]}, trials: none}", "search.trials=none is not a whole number"),
    ("search: {space: {k: [1, 2]}, prune: x}", "search.prune=x is not one of"),
    ("search: {space: {k: [1, 2]}, objective: x}", "--objective x: no such result."),
]


@pytest.mark.parametrize(("content", "message"), BLOCKS)
def test_mistakes_in_a_search_block(moe: Moe, tmp_path: Path, content: str, message: str) -> None:
    """Each names what is wrong, with exit code 2 and no traceback."""
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "mine.yaml").write_text(content)
    result = moe("sweep", "mine", "--config-dir", tmp_path)
    assert 2 == result.exit_code, result.output
    assert message in result.output.replace("\n", " ")


def test_without_optuna(moe: Moe, settings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A search says what to install."""
    monkeypatch.setitem(sys.modules, "optuna", None)
    result = moe("sweep", *settings, LR, "--sampler", "tpe", "--trials", "1")
    assert 2 == result.exit_code
    assert "a search needs Optuna, which is not installed: pip install 'moe-cli[search]'" in result.output


@pytest.mark.slow
def test_pruning_stops_real_training(moe: Moe, text: Path, tmp_path: Path) -> None:
    """Learning rates that learn nothing are stopped before their end and keep a checkpoint; the best one is complete."""
    tiny = [word for word in TINY if not word.startswith("train.steps")]
    words = ["data=text", f"data.path={text}", *tiny, "train.steps=400", LR.replace("0.001", "0.00001")]
    result = moe("sweep", *words, "--sampler", "random", "--trials", "8", "--prune", "asha", "-j", "1")
    assert 0 == result.exit_code, result.output
    runs = list_runs_by_age(tmp_path / "outputs")
    pruned = [run for run in runs if run.status()["status"] == "pruned"]
    assert pruned
    assert 8 == len(runs)
    for run in pruned:
        assert run.checkpoints()
        assert run.metrics()[-1]["step"] < 400
    assert f"{8 - len(pruned)} completed, {len(pruned)} pruned, 0 failed" in result.output
    report = moe("report", "search").output
    assert f"{len(pruned)} run{'s' if len(pruned) > 1 else ''} pruned" in report
    assert not any(run.id in report for run in pruned)


@pytest.mark.slow
def test_a_killed_search_loses_nothing(text: Path, tmp_path: Path) -> None:
    """Killed with SIGKILL again and again, the same command ends with the trials of an undisturbed search."""
    words = ["data=text", f"data.path={text}", *TINY, "train.steps=60", LR, "k=1,2"]
    command = [sys.executable, "-m", "moe_cli", "sweep", *words, "--sampler", "random", "--trials", "4", "-j", "1"]
    undisturbed, disturbed = tmp_path / "a", tmp_path / "b"
    subprocess.run([*command, "--outputs", str(undisturbed)], check=True, capture_output=True)
    for seconds in (6, 9, 12):
        process = subprocess.Popen([*command, "--outputs", str(disturbed)], stdout=subprocess.DEVNULL)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for run in list_runs_by_age(disturbed):  # a worker that has outlived the search
            if run.status()["status"] == "running":
                os.kill(run.status()["pid"], signal.SIGTERM)
    subprocess.run([*command, "--outputs", str(disturbed)], check=True, capture_output=True)
    found = [load_study(outputs / "search") for outputs in (undisturbed, disturbed)]
    assert all(found)
    trials = [[(trial.params, trial.values) for trial in study.trials] for study in found if study]
    assert trials[0] == trials[1]
    assert {"COMPLETE"} == {trial.state.name for trial in found[1].trials}  # type: ignore[union-attr]
    assert (disturbed / "search" / JOURNAL).is_file()
