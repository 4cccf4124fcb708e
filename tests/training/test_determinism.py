"""The same configuration and seed give the same digits on a CPU, whatever else the machine does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from moe_cli.config.schema import RunConfig
from moe_cli.execution.machine import count_cores, pick_threads
from moe_cli.runs.folder import Run, create_run
from tests.tiny import tiny_config
from tests.training.test_resume import assert_equal_runs

BUSY = [sys.executable, "-c", "while True: pass"]


def start(config: RunConfig, outputs: Path) -> tuple[Run, subprocess.Popen[bytes]]:
    run = create_run(outputs, "runs", config)
    free = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    return run, subprocess.Popen(
        [sys.executable, "-m", "moe_cli.execution.worker", str(run.path), str(outputs)], env=free
    )


@pytest.mark.slow
def test_other_work_changes_no_digit(text_file: Path, tmp_path: Path) -> None:
    """A run on all cores is equal to the last bit alone, with another run, and with another run and a busy process."""
    shape = {"d_model": 48, "d_ff": 96, "d_expert": 41, "context_length": 64, "dropout": 0.1}
    train = {"steps": 2, "batch_size": 48, "threads": None}
    config = tiny_config(text_file, model=shape, train=train)
    assert min(2, count_cores()) <= pick_threads(config)
    alone, process = start(config, tmp_path / "alone")
    assert 0 == process.wait()
    together = [start(config, tmp_path / name) for name in ("one", "two")]
    busy = subprocess.Popen(BUSY)
    assert [0, 0] == [process.wait() for _, process in together]
    busy.kill()
    busy.wait()
    for run, _ in together:
        assert_equal_runs(alone, run)
