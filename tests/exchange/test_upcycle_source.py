"""train.upcycle_from=hf:FOLDER: a sparse run that starts from a dense model of transformers. No transformers is needed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from moe_cli.api.sweep import sweep
from moe_cli.api.train import train
from moe_cli.cli.app import app
from moe_cli.config.compose import load_config
from moe_cli.config.schema import RunConfig
from moe_cli.errors import ConfigError
from moe_cli.exchange.export_run import export_run
from moe_cli.exchange.import_folder import evaluate_imported
from moe_cli.exchange.upcycle_source import import_upcycle_source
from moe_cli.execution.run import run_one
from moe_cli.execution.upcycling import check_upcycle, resolve_upcycle_source
from moe_cli.models.registry import make_model
from moe_cli.moe.sparse_layer import moe_layers
from moe_cli.runs.folder import Run, create_run
from moe_cli.training.upcycle import upcycle
from tests.exchange.random_models import VOCAB, our_settings, random_run, tokens
from tests.runner import CliRunner

pytestmark = pytest.mark.usefixtures("unchecked_shapes")
SOURCE = "train.upcycle_from=hf:{}"


@pytest.fixture
def data(text_file: Path) -> list[str]:
    return ["data=text", f"data.path={text_file}", "train.device=cpu"]


def dense_model(family: str, tmp_path: Path) -> tuple[Path, torch.nn.Module]:
    """The folder of a random model, and the model."""
    run, model = random_run(tmp_path / "other", our_settings(family, 0), 0)
    export_run(run, tmp_path / "other", tmp_path / "model")
    return tmp_path / "model", model


def sparse_config(folder: Path, outputs: Path, words: list[str]) -> RunConfig:
    found = load_config(import_upcycle_source([SOURCE.format(folder), *words], outputs)).config
    return resolve_upcycle_source(found, outputs)


@pytest.mark.parametrize(
    ("family", "share"),
    [("qwen2", 2), *(pytest.param(*case, marks=pytest.mark.slow)
     for case in (("llama", 1), ("llama", 4), ("qwen2", 1), ("qwen3", 1), ("qwen3", 2)))],
)  # fmt: skip
def test_each_family_starts_as_its_dense_model(family: str, share: int, tmp_path: Path, data: list[str]) -> None:
    """With experts as wide as the dense network, and as wide as a part of it, the logits are those of the model."""
    folder, model = dense_model(family, tmp_path)
    width = json.loads((folder / "config.json").read_text())["intermediate_size"]
    words = [*data, f"expert={2 * share}", f"k={max(2, share)}"]
    words += [] if share == 1 else [f"model.d_expert={width // share}"]
    config = sparse_config(folder, tmp_path / "out", words)
    assert (width // share, width) == (config.model.d_expert, config.model.d_ff)
    sparse = make_model(config, VOCAB).eval()
    source = check_upcycle(config, tmp_path / "out")
    assert source is not None
    upcycle(sparse, source)
    assert moe_layers(sparse)
    expected = model(tokens(0))[0]
    assert torch.allclose(expected, sparse(tokens(0))[0], atol=1e-4 * float(expected.detach().abs().max()))


def test_the_first_loss_of_the_command_is_that_of_the_dense_model(tmp_path: Path, data: list[str]) -> None:
    """`moe train` needs no setting of the model; a shorter context than that of the folder can be given."""
    folder, _ = dense_model("qwen3", tmp_path)
    outputs = tmp_path / "out"
    tiny = ["train.steps=1", "train.batch_size=2", "optim.lr=1e-12", "optim.adam_lr=1e-12", "expert=4", "k=2"]
    arguments = ["train", SOURCE.format(folder), *data, *tiny, "model.context_length=12", "--outputs", str(outputs)]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    (source,) = (outputs / "imported").glob("gpt-*")
    assert 12 == Run(source).config().model.context_length
    expected = evaluate_imported(Run(source), outputs)["val_loss"]
    assert expected == pytest.approx(json.loads(result.stdout)["val_loss"], abs=1e-4)


@pytest.mark.parametrize("function", [train, sweep])
def test_python_reads_the_folder_too(function: Callable[..., object], tmp_path: Path) -> None:
    """The functions take the words of the commands."""
    with pytest.raises(ConfigError, match="there is no folder"):
        function([SOURCE.format(tmp_path / "nowhere")], outputs=tmp_path / "out")


def test_the_folder_may_be_gone_after_the_start(tmp_path: Path, data: list[str]) -> None:
    """A run starts and resumes from the copy in outputs, which has the tokenizer and the hash of the weights."""
    folder, _ = dense_model("llama", tmp_path)
    outputs = tmp_path / "out"
    tiny = ["train.batch_size=2", "train.steps=2", "train.checkpoint_every=1", "train.upcycle_drop=0.5"]
    config = sparse_config(folder, outputs, [*data, *tiny, "expert=4"])
    shutil.rmtree(folder)
    whole = run_one(create_run(outputs, "runs", config), outputs)
    (source,) = (outputs / "imported").glob("gpt-*")
    assert f"imported/{source.name}" == config.train.upcycle_from
    assert str(source / "tokenizer.json") == config.to_dict()["data"]["tokenizer"]
    assert 64 == len(Run(source).meta()["imported"]["sha256"])
    shutil.rmtree(outputs / "imported" / source.name / "checkpoints")
    other = create_run(outputs, "again", config)
    (other.path / "checkpoints").mkdir()
    halfway = sorted(whole.checkpoints())[0]
    halfway.rename(other.path / "checkpoints" / halfway.name)
    assert whole.summary()["val_loss"] == run_one(other, outputs).summary()["val_loss"]


def test_the_same_id_means_the_same_weights(tmp_path: Path, data: list[str]) -> None:
    """Equal weights are imported once, also for other data; one changed value makes another run."""
    folder, _ = dense_model("llama", tmp_path)
    outputs = tmp_path / "out"
    first = sparse_config(folder, outputs, [*data, "expert=4"])
    shutil.copytree(folder, tmp_path / "copy")
    assert first == sparse_config(tmp_path / "copy", outputs, [*data, "expert=4"])
    other = sparse_config(folder, outputs, [*data, "expert=4", "data.val_fraction=0.3"])
    assert first.train.upcycle_from == other.train.upcycle_from
    assert first.run_id != other.run_id
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, folder / "model.safetensors")
    changed = sparse_config(folder, outputs, [*data, "expert=4"])
    assert changed.run_id != first.run_id
    assert 2 == len(list((outputs / "imported").glob("gpt-*")))


def refusal(*words: object) -> str:
    """The message of a command that ends with exit code 2, in at most three lines."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 2, result.output
    assert 1 <= len(result.stderr.strip().splitlines()) <= 3
    return str(result.stderr)


def test_what_cannot_be_a_source_is_refused_and_nothing_is_kept(tmp_path: Path, data: list[str]) -> None:
    """A sparse model, weights that could execute code, a dry run, two models, another command."""
    folder, _ = dense_model("llama", tmp_path)
    words: list[Any] = [SOURCE.format(folder), *data, "--outputs", tmp_path / "out"]
    assert "a dry run imports no model" in refusal("train", *words, "--dry-run")
    assert "names several models" in refusal("sweep", f"{SOURCE.format(folder)},hf:b", *words[1:])
    assert "both give the model" in refusal("train", "--like", "latest", *words)
    assert "name a run: moe import" in refusal("plan", SOURCE.format(folder))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "can execute code" in refusal("train", *words)
    assert not list((tmp_path / "out").rglob("*"))


def test_a_sparse_model_is_no_source(tmp_path: Path, data: list[str]) -> None:
    """Before its weights are copied."""
    folder, _ = dense_model("mixtral", tmp_path)
    with pytest.raises(ConfigError, match=r"is itself sparse \(\d+x\d\)\. Give a Llama, Qwen2 or Qwen3"):
        import_upcycle_source([SOURCE.format(folder), *data], tmp_path / "out")
    assert not (tmp_path / "out").exists()
