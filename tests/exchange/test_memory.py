"""The memory that the exchange of models needs: a model larger than half of it can still come in and leave."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from moe_cli.config.compose import load_config
from moe_cli.exchange.export_run import export_run
from moe_cli.exchange.import_folder import evaluate_imported, import_folder
from moe_cli.files.tensor_file import NewTensor, Values, write_tensors
from moe_cli.models.registry import MODELS
from moe_cli.runs.folder import Run, create_run
from moe_cli.training.checkpoint_writer import save_imported
from tests.exchange.random_models import VOCAB
from tests.tiny import words

SMALL = ("model.num_layers=2", "model.d_model=32", "model.d_expert=16")
LARGE = ("model.num_layers=6", "model.d_model=384", "model.d_expert=192")
SETTINGS = ("model.num_heads=2", "model.context_length=32", "expert=64", "k=1", "match=none", "balance=none")


def run_on_disk(outputs: Path, sizes: tuple[str, ...], data: list[str]) -> tuple[Run, int]:
    """A run with random weights that were never in memory together, and their bytes."""
    config = load_config([*data, *SETTINGS, "router.renormalise=false", *sizes]).config
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in MODELS["gpt"](config, VOCAB).state_dict().items()}
    drawn = 0.02 * np.random.default_rng(0).standard_normal(2**16, np.float32)

    def values(name: str) -> Values:
        return np.resize(np.zeros(1, np.float32) if name.endswith("expert_bias") else drawn, shapes[name])

    tensors = [NewTensor(name, shape, lambda name=name: [values(name)]) for name, shape in shapes.items()]

    def write(path: Path) -> None:
        with path.open("wb") as file:
            write_tensors(file, tensors)

    run = create_run(outputs, "runs", config)
    save_imported(run, write, {})
    return run, sum(tensor.num_bytes for tensor in tensors)


def memory(key: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM the most so far."""
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return 1024 * int(found[1])


def exchange(run: Run, folder: Path, data: list[str]) -> dict[str, int]:
    """The bytes by which the process grew at most during an export, an import and an evaluation."""
    outputs, grown, imported = folder.with_suffix(".in"), {}, []
    steps = {
        "export": lambda: export_run(run, folder, folder),
        "import": lambda: imported.append(import_folder(folder, outputs, data)[0]),
        "evaluate": lambda: evaluate_imported(imported[0], outputs),
    }
    for name, step in steps.items():
        before = memory("VmRSS")
        step()
        grown[name] = memory("VmHWM") - before
    return grown


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_an_exchange_does_not_need_a_model_twice(tmp_path: Path) -> None:
    """An export and an import hold a fraction of the weights, and an evaluation holds them once."""
    text = tmp_path / "text.txt"
    text.write_text(words(600))
    data = ["data=text", f"data.path={text}", "train.device=cpu"]
    small, _ = run_on_disk(tmp_path / "small", SMALL, data)
    large, size = run_on_disk(tmp_path / "large", LARGE, data)
    assert size > 3e8
    measured = subprocess.run(
        [sys.executable, "-m", __name__, str(small.path), str(large.path), str(tmp_path), *data],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert measured.returncode == 0, measured.stderr
    grown = json.loads(measured.stdout.splitlines()[-1])
    assert grown["export"] < 0.2 * size, grown
    assert grown["import"] < 0.2 * size, grown
    assert size < grown["evaluate"] < 1.4 * size, grown


if __name__ == "__main__":
    first, second, space, *settings = sys.argv[1:]
    exchange(Run(Path(first)), Path(space) / "first", settings)  # so that libraries are in memory
    print(json.dumps(exchange(Run(Path(second)), Path(space) / "second", settings)))
