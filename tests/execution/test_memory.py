"""The memory that a run is expected to take, against fresh processes that take it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from moe_cli.config.compose import load_config
from moe_cli.execution.forecast import memory_of

SHAPE = ("train=smoke train.steps=4 train.eval_every=2 model.d_model=32 model.num_heads=2 match=none model.d_expert=16 "
         "model.context_length=64 train.batch_size=8 k=2 train.threads=1")  # fmt: skip


def peak_bytes(words: list[str], outputs: Path) -> int:
    """The most main memory that `moe train` holds."""
    command = [sys.executable, "-m", "moe_cli", "train", *words, "--outputs", str(outputs)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    with process.stderr:
        errors = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = status
    assert 0 == status, errors
    return used.ru_maxrss * 1024


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss counts kilobytes on Linux")
@pytest.mark.parametrize(("vocab_size", "experts", "layers"), [(50257, 512, 4), (50257, 512, 1), (8192, 512, 2), (256, 512, 4),
                                                               (256, 8, 1), (50257, 8, 2)])  # fmt: skip
def test_memory_is_as_expected(vocab_size: int, experts: int, layers: int, tmp_path: Path) -> None:
    """Within 20 % over vocabulary, experts and layers, whole evaluation included, which counts tokens by experts."""
    random = np.random.default_rng(0)
    for name, size in (("train", 100_000), ("val", 20_000)):
        (random.zipf(1.3, size) % vocab_size).astype(np.uint16).tofile(tmp_path / f"{name}.bin")
    words = [*SHAPE.split(), "data=tokens", f"data.path={tmp_path}", f"data.vocab_size={vocab_size}", f"expert={experts}",
             f"model.num_layers={layers}"]  # fmt: skip
    expected = memory_of(load_config(words, "train", None).config, tmp_path / "outputs")
    assert expected == pytest.approx(peak_bytes(words, tmp_path / "outputs"), rel=0.2)
