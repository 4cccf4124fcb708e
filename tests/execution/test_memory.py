"""The memory that a run is expected to take, against fresh processes that take it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from moe_cli.config.compose import load_config
from moe_cli.costs.model import estimate_cost
from moe_cli.execution.data import vocab_size_reader
from moe_cli.execution.memory import memory_bytes

SHAPE = (
    "train=smoke train.steps=4 train.eval_every=2 model.d_model=32 model.num_heads=2 match=none model.d_expert=16 "
    "model.context_length=64 train.batch_size=8 k=2 train.threads=1"
)


# `moe`, which says at its end what it held: the system counts for a new process what its parent held when it was forked.
MEASURED = """
import re, sys
from pathlib import Path
from moe_cli.cli.app import main
try:
    main()
finally:
    print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1], file=sys.stderr)
"""


def peak_bytes(words: list[str], outputs: Path) -> int:
    """The most main memory that `moe train` holds."""
    command = [sys.executable, "-c", MEASURED, "train", *words, "--outputs", str(outputs)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert 0 == done.returncode, done.stderr
    return int(done.stderr.splitlines()[-1]) * 1024


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc/self/status")
@pytest.mark.parametrize(
    ("vocab_size", "experts", "layers"),
    [(50257, 512, 4), (8192, 512, 2), (256, 8, 1), (50257, 8, 2)],
)
def test_memory_is_as_expected(vocab_size: int, experts: int, layers: int, tmp_path: Path) -> None:
    """Within 20 % over vocabulary, experts and layers, whole evaluation included, which counts tokens by experts."""
    random = np.random.default_rng(0)
    for name, size in (("train", 100_000), ("val", 20_000)):
        (random.zipf(1.3, size) % vocab_size).astype(np.uint16).tofile(tmp_path / f"{name}.bin")
    words = [
        *SHAPE.split(),
        "data=tokens",
        f"data.path={tmp_path}",
        f"data.vocab_size={vocab_size}",
        f"expert={experts}",
        f"model.num_layers={layers}",
    ]
    config = load_config(words, "train", None).config
    expected = memory_bytes(estimate_cost(config, vocab_size_reader(tmp_path / "outputs")(config)))
    assert expected == pytest.approx(peak_bytes(words, tmp_path / "outputs"), rel=0.2)
