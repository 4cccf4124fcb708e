"""The commands as a user types them, from training to the report, on a tiny model."""

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from moe_cli.cli.app import app
from moe_cli.execution.trained_model import load_trained
from moe_cli.runs.lookup import find_run, list_runs_by_age
from tests.cli.conftest import ONCE, TINY, Moe
from tests.runner import CliRunner

SUMMARY_KEYS = {
    "run",
    "status",
    "expert",
    "k",
    "capacity",
    "router",
    "balance",
    "seed",
    "params",
    "active_params",
    "flops_per_token",
    "val_loss",
    "val_bpb",
    "tokens_per_second",
    "max_violation",
    "dropped_fraction",
    "dead_experts",
}


@pytest.fixture(scope="module")
def trained(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An outputs folder with one finished run of expert=4, for commands that only read it."""
    outputs = tmp_path_factory.mktemp("trained")
    words = ["train", "data=text", f"data.path={text}", *TINY, ONCE, "expert=4", "--outputs", str(outputs)]
    assert 0 == CliRunner().invoke(app, words).exit_code
    return outputs


@pytest.fixture
def moe_trained(moe: Moe, trained: Path, monkeypatch: pytest.MonkeyPatch) -> Moe:
    """Runs a command on the finished run."""
    monkeypatch.setenv("MOE_OUTPUTS", str(trained))
    return moe


def test_train_prints_a_plan_lines_and_a_summary(moe: Moe, settings: list[str], tmp_path: Path) -> None:
    """Piped, training is plain lines: the plan with the run's folder, evaluations, the results and what to try next."""
    result = moe("train", "expert=4", "k=2", *settings[:-1], "train.eval_every=3")
    assert result.exit_code == 0, result.output
    run = find_run(tmp_path / "outputs", "latest")
    for piece in (
        "gpt 4x2",
        "parameters",
        "sparsity 50 %",
        str(run.path),
        "step 3/6",
        "bits/byte",
        "bigram",
        "gzip -9",
        "MaxVio",
        "next         moe sample latest\n",
        "  moe report\n",
        f"  moe train expert=1 {settings[0]} {settings[1]} model.num_layers=2 ",
    ):
        assert piece in result.stdout
    assert "\x1b" not in result.stdout


def test_train_json_is_the_summary(moe: Moe, settings: list[str], tmp_path: Path) -> None:
    """--json prints summary.json and nothing else on standard output, with every promised key."""
    result = moe("train", *settings, "--json")
    printed = json.loads(result.stdout)
    assert printed == find_run(tmp_path / "outputs", "latest").summary()
    assert set(printed) >= SUMMARY_KEYS


def test_dense_has_no_routing(moe: Moe, settings: list[str]) -> None:
    """expert=1 is the dense baseline: no router, no routing metrics, and as many active parameters as the sparse model."""
    dense = json.loads(moe("train", "expert=1", *settings, "--json").stdout)
    assert [dense[key] for key in ("router", "balance", "max_violation", "dropped_fraction", "dead_experts")] == [
        None
    ] * 5
    assert dense["params"] == dense["active_params"]


def test_dry_run_leaves_nothing(moe: Moe, settings: list[str], tmp_path: Path) -> None:
    """--dry-run prints the plan and makes no run."""
    result = moe("train", *settings, "--dry-run")
    assert "B weights, gradients and optimizer   " in result.stdout
    assert "parameters" in result.stdout
    assert list_runs_by_age(tmp_path / "outputs") == []


def test_settings_without_effect_are_said(moe: Moe, settings: list[str]) -> None:
    """A router for a dense model is ignored, and a note on standard error says so."""
    result = moe("train", "expert=1", "router=switch", *settings, "--dry-run")
    assert result.stderr.strip() == "note: expert=1 is dense: router ignored."


def test_eval_shows_both_policies(moe_trained: Moe, trained: Path) -> None:
    """eval gives the whole split dropless and capacity-limited; only the second drops; dropless equals the summary."""
    moe, summary = moe_trained, find_run(trained, "latest").summary() or {}
    result = json.loads(moe("eval", "latest", "eval.capacity=0.5", "--json").stdout)
    dropless, limited = result["evaluations"]
    assert dropless["val_loss"] == pytest.approx(summary["val_loss"], rel=1e-6)
    assert (dropless["dropped_fraction"], dropless["capacity"], limited["capacity"]) == (0, None, 0.5)
    assert limited["dropped_fraction"] >= 0.5
    assert "limited" in moe("eval", "latest").stdout
    assert "limited" not in moe("eval", "latest", "eval.k=1").stdout


def test_eval_of_several_policies(moe_trained: Moe) -> None:
    """A row for each k and capacity, each k dropless too; alone each gives the same; every domain has its loss."""
    moe = moe_trained
    words = ("eval.k=1,2", "eval.capacity=0.5,null")
    rows = json.loads(moe("eval", "latest", *words, "--domains", "--json").stdout)["evaluations"]
    assert [(1, None), (1, 0.5), (2, None), (2, 0.5)] == [(row["k"], row["capacity"]) for row in rows]
    alone = json.loads(moe("eval", "latest", "eval.k=1", "eval.capacity=0.5", "--json").stdout)["evaluations"]
    assert [row["val_loss"] for row in rows[:2]] == [row["val_loss"] for row in alone]
    assert rows[0]["val_loss"] == pytest.approx(sum(rows[0]["domains"].values()))  # of one text, one domain
    assert "k=2 C=0.5" in moe("eval", "latest", *words, "--domains").stdout


def test_eval_by_the_test_split(moe: Moe, settings: list[str], tmp_path: Path) -> None:
    """`--split test` gives the loss over exactly the tokens of the test split, and names the split."""
    moe("train", *settings, "data.test_fraction=0.2")
    result = json.loads(moe("eval", "latest", "--split", "test", "--domains", "--json").stdout)
    dropless = result["evaluations"][0]
    assert "test" == result["split"]
    assert not [key for key in dropless if key.startswith("val_")]
    trained = load_trained(find_run(tmp_path / "outputs", "latest"), tmp_path / "outputs", split="test")
    corpus = trained.task.dataset
    tokens = torch.from_numpy(np.array(corpus.val[:], np.int64))
    plain = json.loads(moe("eval", "latest", "--json").stdout)["evaluations"][0]
    assert [corpus.meta["test_tokens"] - 1, corpus.meta["val_tokens"] - 1] == [
        dropless["test_tokens"],
        plain["val_tokens"],
    ]
    length = trained.config.model.context_length
    losses = []
    with torch.no_grad():
        for first in range(0, len(tokens) - 1, length):
            window = tokens[first : first + length + 1]
            losses += F.cross_entropy(trained.model(window[None, :-1])[0][0], window[1:], reduction="none").tolist()
    assert sum(losses) / len(losses) == pytest.approx(dropless["test_loss"], rel=1e-5)
    assert "test tokens, the whole split" in moe("eval", "latest", "--split", "test").stdout


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("train", "error: --split train is not "),
        ("test", "data.test_fraction=0.1"),
    ],
)
def test_eval_refuses_a_split(moe_trained: Moe, split: str, message: str) -> None:
    """Splits that there are not are refused in one line."""
    result = moe_trained("eval", "latest", "--split", split)
    assert 2 == result.exit_code
    assert message in result.stderr


def test_eval_of_several_ways_to_drop(moe_trained: Moe) -> None:
    """Each limited row says who stays (V-MoE, arXiv:2106.05974, section 4), as many are dropped, dropless stands once, and
    of a causal model it is said which rules see later tokens.
    """
    moe = moe_trained
    words = ("eval", "latest", "eval.capacity=0.5", "eval.drop=position,probability")
    rows = json.loads(moe(*words, "--json").stdout)["evaluations"]
    assert [None, "position", "probability"] == [row["drop"] for row in rows]
    assert (
        0
        == rows[0]["dropped_fraction"]
        < rows[1]["dropped_fraction"]
        == pytest.approx(rows[2]["dropped_fraction"], rel=0.05)
    )
    assert rows[1]["val_loss"] != rows[2]["val_loss"]
    lines = moe(*words).stdout.splitlines()[2:]
    assert ["-", "position", "probability"] == [line.split()[3] for line in lines[:3]]
    assert ["drop=position sees later tokens", "drop=probability sees later tokens"] == [
        line.partition(":")[0] for line in lines[3:]
    ]
    assert [False, True, True] == [row["sees_later_tokens"] for row in rows]
    default = json.loads(moe("eval", "latest", "eval.capacity=0.5", "--json").stdout)["evaluations"]
    assert [(None, False), ("causal", False)] == [(row["drop"], row["sees_later_tokens"]) for row in default]
    assert default[1]["val_loss"] not in (rows[1]["val_loss"], rows[2]["val_loss"])


def test_eval_by_other_windows(moe: Moe, settings: list[str]) -> None:
    """Each stride and window scores every token; a stride of 1 gives each the whole window; a dense model takes both."""
    moe("train", "expert=1", *settings, "model.context_length=16")
    words = ("eval", "latest", "eval.context_length=16,8", "eval.stride=8,4")
    rows = json.loads(moe(*words, "--json").stdout)["evaluations"]
    assert [(16, 8), (16, 4), (8, 8), (8, 4)] == [(row["context_length"], row["stride"]) for row in rows]
    assert 1 == len({row["val_tokens"] for row in rows})
    tokens = rows[0]["val_tokens"]
    # The first window has 1 to L tokens of context, every further one L - stride + 1 to L.
    for row in rows:
        length, stride = row["context_length"], row["stride"]
        expected = [
            place + 1 if place < length else length - stride + 1 + (place - length) % stride for place in range(tokens)
        ]
        assert sum(expected) / tokens == pytest.approx(row["eval_context"])
    screen = moe(*words).stdout
    assert [f"{row['eval_context']:.1f}" for row in rows] == [line.split()[3] for line in screen.splitlines()[2:]]
    result = moe("eval", "latest", "eval.stride=17")
    assert (2, True) == (result.exit_code, result.stderr.startswith("error: eval.stride=17 "))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["k=1"],
            "error: 'k' is fixed once a model is trained. Did you mean 'eval.k'? This command takes eval.k, eval.capacity, eval.drop, eval.context_length and eval.stride.",
        ),
        (
            ["top_k=2"],
            "error: 'top_k' is fixed once a model is trained. Did you mean 'eval.k'? This command takes eval.k, eval.capacity, eval.drop, eval.context_length and eval.stride.",
        ),
        (
            ["eval.capacity=interval(1,2)"],
            "error: 'eval.capacity=interval(1,2)' is an interval, and eval takes values: eval.capacity=1,2",
        ),
    ],
)
def test_eval_refuses(moe_trained: Moe, words: list[str], message: str) -> None:
    """eval takes its own two settings, in range."""
    result = moe_trained("eval", "latest", *words)
    assert (result.stderr.strip(), result.exit_code) == (message, 2)


def test_sample_goes_on_from_the_prompt(moe_trained: Moe) -> None:
    """The text begins with the prompt, is the same for the same seed, and holds as many bytes as asked for."""
    moe = moe_trained
    first, again, other = (
        moe("sample", "latest", "--prompt", "the ", "--tokens", 30, "--seed", seed).stdout for seed in (0, 0, 1)
    )
    assert first.startswith("the ")
    assert first == again != other
    result = moe("sample", "latest", "--prompt", "x", "--tokens", 5, "--temperature", 0)
    assert len(result.stdout.rstrip("\n")) <= 6
    assert re.fullmatch(r"5 tokens, [\d,]+ tokens/s\n", result.stderr)
    assert result.stdout == moe("sample", "latest", "--prompt", "x", "--tokens", 5, "--top-k", 1).stdout


def test_sample_needs_a_model_that_writes(moe: Moe, settings: list[str]) -> None:
    """One that learned another task is refused."""
    trained = moe("train", "model=t5", *settings, "train.steps=1", "model.num_layers=4")
    assert trained.exit_code == 0, trained.output
    assert "moe sample" not in trained.stdout
    result = moe("sample", "latest")
    assert (2, "") == (result.exit_code, result.stdout)
    assert "its model does not write text. Name a run with task=causal_lm (model=gpt or lstm)." in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--top-p", "0"], "--top-p 0 must be above 0 and at most 1."),
        (["--top-p", "nan"], "--top-p nan must be above 0 and at most 1."),
        (
            ["--temperature", "0", "--top-k", "5"],
            "--temperature 0 takes the likeliest token: --top-k would change nothing. Leave out one or the other.",
        ),
    ],
)
def test_sample_refuses(moe: Moe, words: list[str], message: str) -> None:
    """Shares that are none, and settings without effect."""
    result = moe("sample", "latest", *words)
    assert (2, f"error: {message}") == (result.exit_code, result.stderr.strip())


def test_sweep_reports_and_resumes(moe: Moe, settings: list[str], tmp_path: Path) -> None:
    """A grid leaves out the impossible, runs the rest once, and the same command again has nothing to do."""
    words = ["sweep", "expert=1,2", "k=2,3", *settings, "--seeds", 2, "-j", 2]
    result = moe(*words)
    assert result.exit_code == 0, result.output
    assert "left out  expert=2 k=3: k=3 " in result.stdout
    assert "4 of 4 runs complete" in result.stdout
    before = {run.id: (run.path / "summary.json").stat().st_mtime_ns for run in list_runs_by_age(tmp_path / "outputs")}
    again = moe(*words)
    assert "4 done before, 0 to go" in again.stdout
    assert before == {
        run.id: (run.path / "summary.json").stat().st_mtime_ns for run in list_runs_by_age(tmp_path / "outputs")
    }
    rows = json.loads(moe("report", "--format", "json").stdout)
    assert sorted((row["expert"], row["k"], len(row["seeds"])) for row in rows) == [(1, 1, 2), (2, 2, 2)]


def test_sweep_survives_a_failure(moe: Moe, settings: list[str], tmp_path: Path) -> None:
    """A run that fails costs only itself: exit code 3, its reason shown, and only --retry-failed runs it again."""
    words = ["sweep", "optim.lr=0.01,1e15", "optim=sgd", *settings, "-j", 1]
    result = moe(*words)
    assert result.exit_code == 3
    assert re.search(r"failed  optim.lr=10{15}.0 seed=0   \w+", result.stdout)
    assert "done    optim.lr=0.01" in result.stdout
    assert "1 failed before" in moe(*words).stdout
    retried = moe(*words, "--retry-failed")
    assert "1 done before, 1 to go" in retried.stdout
    statuses = sorted(run.status()["status"] for run in list_runs_by_age(tmp_path / "outputs"))
    assert statuses == ["completed", "failed"]


def test_sweep_dry_run_leaves_nothing(moe: Moe, settings: list[str], tmp_path: Path) -> None:
    """--dry-run shows each point with its cost and makes no folder."""
    result = moe("sweep", "expert=4,8", *settings, "--dry-run")
    assert "expert=8 seed=0" in result.stdout
    assert list_runs_by_age(tmp_path / "outputs") == []


def test_config_is_resolved(moe: Moe) -> None:
    """config shows derived values; --diff only what differs; --groups every choice with a line on what it is for."""
    resolved = json.loads(moe("config", "expert=8", "--json").stdout)
    assert (resolved["k"], resolved["router"]["renormalise"]) == (2, True)
    assert json.loads(moe("config", "seed=3", "--diff", "--json").stdout) == {"seed": 3}
    lines = moe("config", "--groups").stdout.splitlines()
    assert any(line.startswith("  router=switch ") for line in lines)
    assert all(len(line.split(maxsplit=1)) == 2 for line in lines if line.startswith("  "))


@pytest.mark.slow
def test_ctrl_c_on_a_terminal_saves_and_says_how_to_go_on(moe: Moe, settings: list[str], tmp_path: Path) -> None:
    """On a terminal of 80 columns progress is redrawn, with a bar of the experts' load, and no line is longer than 80.

    Ctrl-C ends with exit code 130 and the command that goes on; that command completes the run.
    """
    main, secondary = pty.openpty()
    outputs = tmp_path / "outputs"
    environment = {
        **os.environ,
        "MOE_OUTPUTS": str(outputs),
        "COLUMNS": "80",
        "TERM": "xterm",
        "OMP_NUM_THREADS": "1",
    }
    words = [word for word in settings if not word.startswith(("train.steps", "train.eval_every"))]
    words += ["train.steps=200", "train.eval_every=100"]
    process = subprocess.Popen(
        [sys.executable, "-m", "moe_cli", "train", *words], env=environment, stdout=secondary, stderr=secondary
    )
    os.close(secondary)
    output, run = b"", None
    while True:
        try:
            chunk = os.read(main, 65536)
        except OSError:
            break
        output += chunk
        if run is None and b"  load  L1" in output:
            (run,) = list_runs_by_age(outputs)
            process.send_signal(signal.SIGINT)
    os.close(main)
    assert 130 == process.wait(), output.decode(errors="replace")[-2000:]
    assert run is not None
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.decode())
    assert re.search(r"load  L1 [▁▂▃▄▅▆▇█]{8}", text)
    panel = [line for line in re.split(r"[\r\n]+", text) if line.startswith(("step", "  train", "  load"))]
    assert panel
    assert max(map(len, panel)) <= 80
    ending = f"stopped; {run.kept()}. Continue it: moe train --resume {run.id}"
    assert " ".join(text.split()).endswith(ending)
    assert run.status()["status"] == "interrupted"
    result = moe("train", "--resume", run.id)
    assert result.exit_code == 0, result.output
    assert run.status()["status"] == "completed"
    again = moe("train", "--resume", run.id).stderr
    assert again.startswith(f"error: {run.id} is complete")
    assert "A longer training is a new run: moe train train.steps=..." in again


def test_a_dense_run_becomes_experts(moe: Moe, settings: list[str], tmp_path: Path) -> None:
    """train and sweep start from it; what does not fit is refused before a folder is made; the source may go later."""
    assert moe("train", "expert=1", *settings).exit_code == 0
    (dense,) = list_runs_by_age(tmp_path / "outputs")
    grown = ["train.upcycle_from=gpt-dense", *settings]  # which will soon fit the sweep's own dense run too
    result = moe("train", "expert=4", *grown)
    assert result.exit_code == 2
    assert "Add: match=none model.d_expert=32" in " ".join(result.stderr.split())
    refused = moe("sweep", "expert=2,4", *grown)
    assert (2, [dense.id]) == (refused.exit_code, [run.id for run in list_runs_by_age(tmp_path / "outputs")])
    result = moe("sweep", "expert=1,4", "match=none", "model.d_expert=32", *grown, "-j", 1)
    assert result.exit_code == 0, result.output
    for run in list_runs_by_age(tmp_path / "outputs" / "sweep"):
        assert run.config().train.upcycle_from == f"runs/{dense.id}"
    shutil.rmtree(dense.path)
    grown_run = next(run for run in list_runs_by_age(tmp_path / "outputs") if run.config().expert == 4)
    assert moe("eval", grown_run.id).exit_code == 0
