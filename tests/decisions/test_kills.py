"""Decisions of real runs that are killed at random moments: the same decision in the end, each run once."""

import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from moe_cli.decisions.page import load_certificate
from moe_cli.decisions.terms import Decision
from moe_cli.runs.lookup import list_runs_by_age
from tests.sweeps.test_kills import assert_nothing_runs, starts

RULES = """# Which is best?
defaults: [_rules, _self_]
grid: {expert: [2, 4]}
set: {k: 1}
rules: {looks: [2, 3], lr_multipliers: [1, 2], lr_extensions: 0, lr_seeds: 1, screening_fraction: 0.5}
"""
SETTINGS = (
    "model.d_model=16",
    "model.d_ff=32",
    "model.num_layers=2",
    "model.num_heads=2",
    "model.context_length=16",
    "train.batch_size=4",
    "train.checkpoint_every=10",
    "train.steps=60",
)


def command(folder: Path, text_file: Path, outputs: Path) -> list[str]:
    (folder / "conf" / "decide").mkdir(parents=True, exist_ok=True)
    (folder / "conf" / "decide" / "tiny.yaml").write_text(RULES, encoding="utf-8")
    words = ["decide", "tiny", "data=text", f"data.path={text_file}", *SETTINGS, "--runs", "40", "-j", "2"]
    options = ["--config-dir", str(folder / "conf"), "--outputs", str(outputs)]
    return [sys.executable, "-m", "moe_cli", *words, *options]


def finish(words: list[str]) -> None:
    done = subprocess.run(words, capture_output=True, text=True, timeout=500, check=False)
    assert 0 == done.returncode, done.stdout + done.stderr


def result(outputs: Path) -> dict[str, Any]:
    """Returns a decision without the durations of its runs."""
    certificate = load_certificate(outputs / "decide-tiny")
    assert certificate is not None
    decision: Decision = certificate.decision
    return {name: value for name, value in vars(decision).items() if name != "seconds"}


@pytest.mark.slow
def test_a_decision_killed_at_random_is_as_one_undisturbed(tmp_path: Path, text_file: Path) -> None:
    """Killed with SIGKILL four times and then run in two terminals, it is bit for bit the decision without a kill."""
    calm, outputs, draw = tmp_path / "calm", tmp_path / "kills", random.Random(0)
    finish(command(tmp_path, text_file, calm))
    words = command(tmp_path, text_file, outputs)
    for _ in range(4):
        before = starts(outputs) if outputs.is_dir() else 0
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        while process.poll() is None and (not outputs.is_dir() or starts(outputs) < before + draw.randint(1, 4)):
            time.sleep(0.02)
        process.kill()
        process.wait()
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [process.communicate(timeout=500)[0] for process in both]
    assert [0, 0] == [process.returncode for process in both], printed
    assert result(calm) == result(outputs)
    assert {run.id for run in list_runs_by_age(calm)} == {run.id for run in list_runs_by_age(outputs)}
    assert_nothing_runs(outputs, 10)
