"""Writes the model of a run as one ONNX file, with its settings inside, and its tokenizer as another file."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from moe_cli import __version__
from moe_cli.config.data import ImageData
from moe_cli.config.schema import RunConfig
from moe_cli.config.tasks import ImageTask, MaskedLM, RatingTask, SpanCorruption
from moe_cli.data.images import Images, mean_and_std
from moe_cli.data.ratings import Ratings
from moe_cli.errors import ConfigError
from moe_cli.exchange.export_run import tokenizer_of
from moe_cli.exchange.model_file import ModelFile, check_target
from moe_cli.exchange.onnx_graph import OUTPUT, Input, check_exportable, inputs_of, trace
from moe_cli.exchange.tokenizer import tokenizer_json
from moe_cli.execution.data import check_same_data, load_data_read_only
from moe_cli.files.writing import write_bytes, write_text
from moe_cli.models.registry import make_model
from moe_cli.moe.routing import RoutingPolicy
from moe_cli.plugins import is_installed
from moe_cli.runs.folder import Run
from moe_cli.training.checkpoint import Checkpoint, find_checkpoint

# The settings that are written into the file: those of the model. Paths of data are not among them.
SETTINGS = ("expert", "k", "model", "router", "task")


def export_onnx(run: Run, outputs: Path, path: Path, which: str = "latest", *, force: bool = False) -> ModelFile:
    """Writes the model of a run as an ONNX file.

    Args:
        which: the checkpoint: `latest`, `best` or a step.
        force: whether an existing file is replaced.

    Raises:
        ConfigError: the libraries are missing, the model has no such form, or the file cannot be written.
        CheckpointError: there is no such checkpoint, or it is damaged.
    """
    _check_libraries()
    config = run.config()
    check_target(path, force)
    checkpoint = find_checkpoint(run, which)
    shapes = checkpoint.shapes()
    check_exportable(config, 4 * sum(int(np.prod(shape)) for shape in shapes.values()))
    vocab_size = shapes["head.weight" if isinstance(config.data, ImageData) else "embedding.weight"][0]
    inputs = inputs_of(config, vocab_size)
    has_text = inputs[0].name == "tokens"
    tokenizer = tokenizer_of(run, config, checkpoint, outputs) if has_text else None
    model = make_model(config, vocab_size)
    checkpoint.load_model(model)
    expected = _logits(model.eval(), config, inputs)
    step = checkpoint.state["step"]
    metadata = {
        "moe.version": __version__,
        "moe.run": run.id,
        "moe.step": step,
        "moe.settings": {name: value for name, value in config.to_dict().items() if name in SETTINGS},
        **_extra_metadata(run, config, checkpoint, outputs),
    }
    content = trace(model, config, inputs, metadata)
    difference = _difference(content, inputs, expected)
    write_bytes(path, content)
    files = [path]
    if tokenizer is not None:
        files.append(path.with_name(f"{path.stem}.tokenizer.json"))
        write_text(files[1], tokenizer_json(tokenizer))
    return ModelFile(run.id, step, path, "ONNX", len(content), tuple(files), has_text and tokenizer is None, difference)


def _check_libraries() -> None:
    if not all(map(is_installed, ("onnx", "onnxscript"))):
        raise ConfigError(
            "a file .onnx needs onnx and onnxscript, which are not installed: pip install 'moe-cli[onnx]'"
        )


def _extra_metadata(run: Run, config: RunConfig, checkpoint: Checkpoint, outputs: Path) -> dict[str, Any]:
    """Returns what an input or an output of this task needs: token ids, or the scale of pixels or of ratings."""
    task = config.task
    if isinstance(task, MaskedLM):
        return {"moe.mask_token": _num_data_tokens(run)}
    if isinstance(task, SpanCorruption):
        first = _num_data_tokens(run)
        return {"moe.first_sentinel": first, "moe.decoder_start_token": first + task.special_tokens - 1}
    if not isinstance(task, ImageTask | RatingTask):
        return {}
    data = load_data_read_only(config.data, config.model.context_length, outputs)
    check_same_data(run, checkpoint.state, data)
    if isinstance(data, Ratings):
        return {"moe.ratings": {key: data.meta[key] for key in ("mean", "std")}, "moe.users": data.meta["users"]}
    assert isinstance(data, Images)
    mean, std = mean_and_std(data.train.pixels)
    return {"moe.pixels": {"mean": mean, "std": std}, "moe.classes": list(data.meta["domains"])}


def _num_data_tokens(run: Run) -> int:
    """Returns the number of tokens of the data, which those of the task follow."""
    return int((run.meta().get("corpus") or {})["vocab_size"])


@torch.no_grad()
def _logits(model: nn.Module, config: RunConfig, inputs: list[Input]) -> np.ndarray:
    examples = {source.name: source.example for source in inputs}
    mask = examples.pop("mask", None)
    options = {} if mask is None else {"mask": mask}
    logits = model(*examples.values(), **options, policy=RoutingPolicy(config.eval.k))[0]
    return logits.numpy() if mask is None else logits[mask].numpy()  # type: ignore[no-any-return]


def _difference(content: bytes, inputs: list[Input], expected: np.ndarray) -> float | None:
    """Returns the largest difference of onnxruntime's logits; None without onnxruntime."""
    try:
        import onnxruntime
    except ImportError:
        return None
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    logits = session.run([OUTPUT], {source.name: source.example.numpy() for source in inputs})[0]
    mask = next((source.example.numpy() for source in inputs if source.name == "mask"), None)
    return float(np.abs((logits if mask is None else logits[mask]) - expected).max())
