"""Writes the model of a run as a Hugging Face folder, from its checkpoint, a part of a tensor at a time."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_cli.config.schema import RunConfig
from moe_cli.data.tokenizers import ByteTokenizer, Tokenizer
from moe_cli.errors import ConfigError, MoeError
from moe_cli.exchange import folder as files
from moe_cli.exchange.model_card import model_card
from moe_cli.exchange.settings import choose_family, to_their_config
from moe_cli.exchange.tensors import their_tensors
from moe_cli.exchange.tokenizer import generation_config, tokenizer_config, tokenizer_json
from moe_cli.execution.data import check_same_data, load_data_read_only
from moe_cli.files.tensor_file import open_tensors, running_total
from moe_cli.files.writing import ensure_folder, write_text
from moe_cli.formatting import sanitise
from moe_cli.runs.folder import Run

if TYPE_CHECKING:
    from moe_cli.training.checkpoint import Checkpoint


@dataclass(frozen=True)
class Export:
    """An exported model.

    Attributes:
        architecture: the class of transformers that loads it.
        num_bytes: those of the weights.
    """

    run: str
    step: int
    folder: Path
    architecture: str
    num_bytes: int
    files: tuple[Path, ...]
    has_tokenizer: bool


def export_run(
    run: Run,
    outputs: Path,
    folder: Path,
    which: str = "latest",
    *,
    force: bool = False,
    shard_bytes: int = files.SHARD_BYTES,
    on_bytes: Callable[[int, int], object] = lambda done, total: None,
) -> Export:
    """Writes the model of a run into a folder.

    Args:
        which: the checkpoint: `latest`, `best` or a step.
        force: whether the folder may have files; those of an earlier export are replaced.
        shard_bytes: the largest part of the weights in one file.
        on_bytes: called with the bytes of weights written so far, and all of them.

    Raises:
        ConfigError: the model has no counterpart, or the folder cannot be used.
        CheckpointError: there is no such checkpoint, or it is damaged.
    """
    from moe_cli.training.checkpoint import find_checkpoint

    config = run.config()
    family = choose_family(config)
    files.check_target(folder, force)
    checkpoint = find_checkpoint(run, which)
    tokenizer = tokenizer_of(run, config, checkpoint, outputs)
    with open_tensors(checkpoint.evaluated_files()) as (shapes, read):
        tensors = list(their_tensors(config, family, shapes, read))
        total = sum(tensor.num_bytes for tensor in tensors)
        _make_folder(folder)
        written = files.write_weights(folder, tensors, shard_bytes, running_total(lambda done: on_bytes(done, total)))
    vocab_size = shapes["embedding.weight"][0]
    described = to_their_config(config, family, vocab_size)
    contents: dict[str, Any] = {files.CONFIG: described, "generation_config.json": generation_config(tokenizer)}
    texts: dict[str, str] = {}
    if tokenizer is not None:
        contents["tokenizer_config.json"] = tokenizer_config(config.model.context_length)
        texts[files.TOKENIZER] = tokenizer_json(tokenizer)
    step = checkpoint.state["step"]
    texts["README.md"] = model_card(run, config, step, family.title, tokenizer is not None)
    written += [files.write_object(folder / name, content) for name, content in contents.items()]
    for name, text in texts.items():
        write_text(folder / name, text)
        written.append(folder / name)
    return Export(run.id, step, folder, family.architecture, total, tuple(written), tokenizer is not None)


def _make_folder(folder: Path) -> None:
    try:
        ensure_folder(folder)
    except OSError as error:
        raise MoeError(
            f"cannot create the folder {sanitise(str(folder))}: {error.strerror}. Name another folder."
        ) from None


def tokenizer_of(run: Run, config: RunConfig, checkpoint: "Checkpoint", outputs: Path) -> Tokenizer | None:
    """Returns the tokenizer; None for ready-made tokens. Only that of bytes is known without the data."""
    if config.data.tokenizer == "bytes":
        return ByteTokenizer()
    if config.data.tokenizer == "ids":
        return None
    corpus = load_data_read_only(config.data, config.model.context_length, outputs)
    check_same_data(run, checkpoint.state, corpus)
    tokenizer: Tokenizer | None = getattr(corpus, "tokenizer", None)
    if tokenizer is None:
        raise ConfigError(f"{run.id} has data without a tokenizer.")
    return tokenizer
