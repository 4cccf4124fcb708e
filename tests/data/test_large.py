"""Training on more tokens than memory holds."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.made_token_files import sparse

CODE = """
import re, sys
from pathlib import Path
from moe_cli.config.data import TokenFilesConfig
from moe_cli.execution.run import run_one
from moe_cli.runs.folder import create_run
from tests.tiny import tiny_config

def held():
    text = Path("/proc/self/status").read_text()
    return [int(re.search(key + r":\\s*(\\d+)", text)[1]) // 1024 for key in ("RssAnon", "RssFile")]

def look(view):
    if view.state.step in (1, 97, 497):
        print(*held())

outputs = Path(sys.argv[2])
data = TokenFilesConfig(path=sys.argv[1], vocab_size=256, val_tokens=5000)
config = tiny_config(outputs, data=data, train={"steps": 497, "batch_size": 64, "log_every": 100})
import torch, moe_cli.training.trainer
print(*held())
run_one(create_run(outputs, "runs", config), outputs, look)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_training(tmp_path: Path) -> None:
    """497 steps on 2.7 thousand million tokens, 168 million windows: less than 250 MB are taken to begin with (a list of
    the windows would take 1.3 GB), and from then on neither anonymous nor file memory grows by 25 MB; the windows alone
    touch 131 MB of pages."""
    path = sparse(tmp_path / "zeros.bin", 5 * 2**30, {2**31 + 7: [200]})
    command = [sys.executable, "-c", CODE, str(path), str(tmp_path / "outputs")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert 0 == result.returncode, result.stderr
    before, first, early, late = (tuple(map(int, line.split())) for line in result.stdout.splitlines()[:4])
    assert first[0] - before[0] < 250
    assert late[0] - early[0] < 25
    assert late[1] - early[1] < 25
