"""Writes the model of a run as a GGUF file for llama.cpp, from its checkpoint, a part of a tensor at a time."""

from collections.abc import Callable
from pathlib import Path

from moe_cli.errors import ConfigError
from moe_cli.exchange.export_run import tokenizer_of
from moe_cli.exchange.gguf import choose_architecture, gguf_tensors, halved_names, metadata_of, tokenizer_metadata
from moe_cli.exchange.model_file import ModelFile, check_target
from moe_cli.files.gguf_file import NotFinite, write_gguf
from moe_cli.files.tensor_file import open_tensors, running_total
from moe_cli.files.writing import replaced
from moe_cli.runs.folder import Run

DTYPES = ("float32", "float16")


def export_gguf(
    run: Run,
    outputs: Path,
    path: Path,
    which: str = "latest",
    *,
    force: bool = False,
    dtype: str = "float32",
    on_bytes: Callable[[int], object] = lambda done: None,
) -> ModelFile:
    """Writes the model of a run as a GGUF file.

    Args:
        which: the checkpoint: `latest`, `best` or a step.
        force: whether an existing file is replaced.
        dtype: the type of matrices; all else is float32.
        on_bytes: called with the bytes of weights written so far.

    Raises:
        ConfigError: the model has no counterpart, or the file cannot be written.
        CheckpointError: there is no such checkpoint, or it is damaged.
    """
    from moe_cli.training.checkpoint import find_checkpoint

    config = run.config()
    architecture = choose_architecture(config)
    check_target(path, force)
    checkpoint = find_checkpoint(run, which)
    tokenizer = tokenizer_of(run, config, checkpoint, outputs)
    with open_tensors(checkpoint.evaluated_files()) as (shapes, read):
        vocab_size = shapes["embedding.weight"][0]
        tensors = list(gguf_tensors(config, shapes, read))
        described = tokenizer_metadata(tokenizer, vocab_size)
        metadata = metadata_of(config, run.id, vocab_size, dtype == "float16") | described
        halved = halved_names(tensors) if dtype == "float16" else ()
        try:
            with replaced(path) as file:
                write_gguf(file, metadata, tensors, halved, running_total(on_bytes))
        except NotFinite as error:
            raise ConfigError(f"{error} has values that {dtype} cannot hold. Exportable: --dtype float32") from None
    lacks_tokenizer = described["tokenizer.ggml.model"] == "none"
    kind = f"GGUF {architecture} {dtype}"
    return ModelFile(run.id, checkpoint.state["step"], path, kind, path.stat().st_size, (path,), lacks_tokenizer)
