"""`moe train` prints its plan before it starts, and a dry run gives refusals and warnings."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from moe_cli.cli.train_preview import print_estimate
from moe_cli.config.routers import SinkhornConfig
from moe_cli.execution.estimate import estimate_runs
from tests.cli.conftest import Moe
from tests.tiny import tiny_config


@pytest.mark.parametrize(
    "words", [["train"], ["sweep", "k=1,2"], ["sweep", "k=1,2", "--sampler", "random", "--trials", "2"]]
)
def test_a_dry_run_refuses_a_device_that_is_not_there(moe: Moe, settings: list[str], words: list[str]) -> None:
    """With the error of the run itself."""
    result = moe(*words, *settings, "train.device=cuda", "--dry-run")
    assert result.stderr.startswith("error: train.device=cuda: ")
    assert (2, "") == (result.exit_code, result.stdout)


def test_a_dry_run_prints_no_json(moe: Moe) -> None:
    """The two options together are an error that names the command for programs."""
    result = moe("train", "expert=8", "--dry-run", "--json")
    message = "error: --dry-run prints the plan for people. For programs: moe plan SETTINGS --json\n"
    assert (2, "", message) == (result.exit_code, result.stdout, result.stderr)


@pytest.mark.parametrize("words", [["train"], ["train", "--dry-run"], ["sweep", "k=1,2", "--dry-run"]])
def test_a_tokenizer_without_its_library_is_refused_at_once(
    moe: Moe, settings: list[str], words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By a dry run too, and before any text is read."""
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    result = moe(*words, *settings, "data.tokenizer=bpe")
    assert "which is not installed. pip install 'moe-cli[bpe]'" in result.stderr
    assert (2, "") == (result.exit_code, result.stdout)
    assert not (tmp_path / "outputs").exists()


def test_a_run_beyond_the_memory_is_warned_of(moe: Moe, settings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A note gives the needed memory, the free memory, and the remedy, unless the run fits or may use a GPU."""
    words = ("train", *settings, "--dry-run")
    free, gpus = [10**8], [()]
    monkeypatch.setattr("moe_cli.execution.memory.available_memory_bytes", lambda: free[0])
    monkeypatch.setattr("moe_cli.execution.memory.visible_gpus", lambda: gpus[0])
    expected = "note: about 421 MB of memory are needed, 100 MB are free. Lower train.batch_size, "
    assert moe(*words).stderr.startswith(expected)
    assert moe("train", *settings).stderr.startswith(expected)
    gpus[0] = ("0",)
    assert ["", 1] == [moe(*words).stderr, moe(*words, "train.device=cpu").stderr.count(expected)]
    free[0], gpus[0] = 10**9, ()
    assert "" == moe(*words).stderr


def test_no_word_of_the_plan_is_cut_at_80_columns(text_file: Path, tmp_path: Path) -> None:
    """A cell too wide for 80 columns goes on under its label; in a pipe each row is one line with the same words."""
    (plan,) = estimate_runs([tiny_config(text_file)], tmp_path, 1e9)
    screen, pipe = io.StringIO(), io.StringIO()
    print_estimate(Console(file=screen, force_terminal=True, color_system=None, width=80), plan, None)
    print_estimate(Console(file=pipe), plan, None)
    assert max(map(len, screen.getvalue().splitlines())) <= 80 < max(map(len, pipe.getvalue().splitlines()))
    assert screen.getvalue().split() == pipe.getvalue().split()
    memory = next(line for line in pipe.getvalue().splitlines() if line.startswith("  memory"))
    assert memory.startswith("  memory       about 42")
    assert memory.endswith("B activations   420 MB torch")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"capacity": 1.0},
            "capacity 1 = 32 of 64 tokens per expert, drop by position (training sees later tokens, evaluation does not)",
        ),
        ({"capacity": 1.0, "drop": "causal"}, "capacity 1 = 8 of 16 tokens per expert, drop by causal"),
        ({"router": SinkhornConfig()}, "dropless (training sees later tokens, evaluation does not)"),
        ({}, "dropless"),
    ],
)
def test_what_training_sees_is_said(text_file: Path, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    """The plan's routing line says where a causal model's routing depends on later tokens, and the room of an expert."""
    pipe = io.StringIO()
    print_estimate(Console(file=pipe), estimate_runs([tiny_config(text_file, **changes)], tmp_path, 1e9)[0], None)
    line = next(line for line in pipe.getvalue().splitlines() if line.startswith("  routing"))
    assert f"balance switch, {said}, d_expert 12" in line


def test_a_dry_run_imports_no_torch(settings: list[str], tmp_path: Path) -> None:
    """It is there at once."""
    code = (
        "import sys; sys.argv = sys.argv[1:]\ntry:\n import moe_cli.cli.app as a; a.main()\nexcept SystemExit as end:\n"
        " assert not end.code\nassert 'torch' not in sys.modules"
    )
    words = ["moe", "train", *settings, "--dry-run", "--outputs", str(tmp_path)]
    subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("decided", "expected"), [(None, "on 1 thread in float32"), ("bfloat16", "on 1 thread in bfloat16")]
)
def test_the_plan_names_the_precision(text_file: Path, tmp_path: Path, decided: str | None, expected: str) -> None:
    """The decision of auto on this machine, or that of a run that continues, at its start."""
    pipe = io.StringIO()
    (plan,) = estimate_runs([tiny_config(text_file, train={"device": "cpu"})], tmp_path, 1e9)
    print_estimate(Console(file=pipe), plan, None, precision=decided)
    assert expected in next(line for line in pipe.getvalue().splitlines() if line.startswith("  training"))
