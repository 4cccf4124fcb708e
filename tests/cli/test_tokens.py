"""Ready-made token files on the command line: unknown facts are shown as -, and all other results are there."""

import json
from pathlib import Path

import numpy as np
import pytest

from moe_cli.runs.lookup import find_run
from tests.cli.conftest import ONCE, TINY, Moe
from tests.data.made_token_files import raw, with_header


@pytest.fixture
def tokens(tmp_path: Path) -> list[str]:
    """Settings for a folder of three shards with a header and one without."""
    steps = np.random.default_rng(0).integers(1, 3, 3000).cumsum() % 50
    for number in range(3):
        with_header(tmp_path / "tokens" / f"train_{number}.bin", steps[number * 900 : number * 900 + 900].tolist())
    raw(tmp_path / "tokens" / "val.bin", steps[2700:].tolist())
    return ["data=tokens", f"data.path={tmp_path / 'tokens'}", "data.vocab_size=50", *TINY, ONCE]


def test_train_and_eval(moe: Moe, tokens: list[str], tmp_path: Path) -> None:
    """Bits per byte are null in summary and metrics and - on the screen; no reference line; nats per token are there."""
    result = moe("train", "expert=4", *tokens[:-1], "train.eval_every=3")
    assert result.exit_code == 0, result.output
    for piece in (
        "tokens corpus, 3.00k uint16, 50 different",
        "2.70k in 3 files, validation 300 in 1",
        "llm.c header in 3",
        "(- bits/byte)",
        "nats/token   - bits/byte",
        "(whole split, 299 tokens)",
    ):
        assert piece in result.stdout
    for piece in ("bigram", "moe sample", "None"):
        assert piece not in result.stdout
    run = find_run(tmp_path / "outputs", "latest")
    summary = run.summary() or {}
    unknown = ("val_bpb", "val_bytes", "bigram_bpb", "gzip_bpb")
    assert [None] * 4 == [summary[key] for key in unknown]
    assert 0 < summary["val_loss"] < np.log(50) + 1
    estimates = [record["val/bpb"] for record in run.metrics() if "val/bpb" in record]
    assert {None} == set(estimates)
    header, *lines = moe("eval", "latest").stdout.splitlines()[1:]
    end = header.index("bits/byte") + len("bits/byte")
    assert ["-", "-"] == [line[end - 9 : end].strip() for line in lines]
    rows = json.loads(moe("eval", "latest", "--json").stdout)["evaluations"]
    assert [None, None] == [row["val_bpb"] for row in rows]
    assert rows[0]["val_loss"] == pytest.approx(summary["val_loss"])


def test_report_ranks_by_nats(moe: Moe, tokens: list[str]) -> None:
    """Where no bytes are known, rows are ranked by nats per token: the best is marked, the difference to dense is that
    of the losses, and a narrow table keeps the losses."""
    result = moe("sweep", "expert=1,4", *tokens, "--seeds", 2, "-j", 1)
    assert result.exit_code == 0, result.output
    assert "nats/token" in result.stdout
    rows = json.loads(moe("report", "sweep", "--format", "json").stdout)
    assert sorted(rows, key=lambda row: row["val_loss"]) == rows
    assert [None, None] == [row["val_bpb"] for row in rows]
    runs = json.loads(moe("report", "sweep", "--runs", "--format", "json").stdout)
    loss = {(run["expert"], run["seed"]): run["val_loss"] for run in runs}
    expected = np.mean([loss[4, seed] / loss[1, seed] - 1 for seed in (0, 1)])
    assert expected == pytest.approx(next(row["vs_baseline"] for row in rows if row["expert"] == 4))
    text = moe("report", "sweep").stdout
    assert "best" in text
    assert "intervals: 95 % over seeds" in text


def test_report_in_a_narrow_terminal(moe: Moe, tokens: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The column that stays is that of nats per token, not an empty one; the missing baseline is named with its data."""
    assert moe("train", "expert=4", *tokens).exit_code == 0
    monkeypatch.setenv("COLUMNS", "30")
    text = moe("report").stdout
    assert "val loss" in text.split("hidden columns")[0]
    assert "data.vocab_size=50" in text


def test_sample_and_plan(moe: Moe, tokens: list[str]) -> None:
    """Without a tokenizer there is nothing to sample; a plan needs the vocabulary, not the files."""
    assert moe("train", "expert=4", *tokens).exit_code == 0
    result = moe("sample", "latest")
    assert result.exit_code == 2
    assert "learned from ready-made tokens (data=tokens), whose text is unknown." in result.stderr
    result = moe("plan", "data=tokens", "data.path=nowhere", "data.vocab_size=12345")
    assert "vocabulary 12,345" in result.stdout


def test_other_tokens_are_other_data(moe: Moe, tokens: list[str], tmp_path: Path) -> None:
    """A run does not go on with files that have changed, and a model does not start from a run of other tokens."""
    assert moe("train", "expert=1", *tokens).exit_code == 0
    run = find_run(tmp_path / "outputs", "latest")
    other = [word.replace("vocab_size=50", "vocab_size=51") for word in tokens]
    result = moe("train", "expert=4", *other, f"train.upcycle_from={run.id}", "match=none", "model.d_expert=32")
    assert "reads other tokens: its data are tokens, ids." in result.stderr
    raw(tmp_path / "tokens" / "val.bin", [1] * 300)
    assert f"{run.id} was trained on other data" in moe("eval", run.id).stderr


def test_a_pattern_on_the_command_line(moe: Moe, tmp_path: Path) -> None:
    """data.path='logs/*.txt' needs no more quotes than the shell's."""
    for name in ("a.txt", "b.txt", "c.log"):
        (tmp_path / name).write_text(f"{name} " * 300)
    result = moe("train", "data=text", f"data.path={tmp_path}/*.txt", *TINY, ONCE, "--json")
    assert result.exit_code == 0, result.output
    meta = find_run(tmp_path / "outputs", "latest").meta()
    assert 2 == meta["corpus"]["num_documents"]
