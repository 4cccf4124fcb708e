"""Loads the data of a run, and checks that they are the data that the run started with."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from moe_cli.config.data import DataConfig
from moe_cli.config.probes import ProbeConfig
from moe_cli.config.schema import RunConfig
from moe_cli.data.corpora import Corpus
from moe_cli.data.load import Data, changed_aspect, load_data
from moe_cli.errors import CheckpointError, ConfigError, Unwritable
from moe_cli.files.writing import scratch_folder
from moe_cli.runs.folder import Run


def check_same_data(run: Run, state: dict[str, Any], corpus: Data) -> None:
    if state.get("corpus_sha256") != corpus.meta["sha256"]:
        raise CheckpointError(f"{run.id} was trained on other data: {corpus.meta['source']} has changed since.")
    if (other := changed_aspect(run.meta().get("corpus"), corpus)) == "tokenizer":
        raise CheckpointError(
            f"{run.id} was trained with another tokenizer: "
            f"data.tokenizer={run.config().data.tokenizer} has changed since."
        )
    if other:
        raise CheckpointError(
            f"{run.id} was trained on another split of {corpus.meta['source']}: "
            "it may have learned from the documents that are held out now."
        )


def load_run_data(config: RunConfig, outputs: Path) -> Data:
    """Loads the data of a configuration, and builds them under outputs/.cache if necessary. Raises DataError."""
    return load_data(config.data, config.model.context_length, outputs)


def vocab_size_reader(outputs: Path) -> Callable[[RunConfig], int]:
    """Returns a function like `model_vocab_size` that loads the data of many configurations, each data set once."""
    load = cache(lambda data, context_length: load_data(data, context_length, outputs))
    return lambda config: model_vocab_size(config, load(config.data, config.model.context_length))


def load_data_read_only(data: DataConfig, context_length: int, outputs: Path, build: bool = True) -> Data:
    """Loads data for commands that create no run. The cache is a temporary folder if outputs is not writable."""
    try:
        return load_data(data, context_length, outputs, build)
    except Unwritable:
        return load_data(data, context_length, scratch_folder(), build)


def model_vocab_size(config: RunConfig, corpus: Data) -> int:
    """Returns the number of rows of the embedding. Raises ConfigError if the data have more tokens."""
    vocab_size, needed = config.model.vocab_size, int(corpus.meta["vocab_size"]) + config.task.special_tokens
    if vocab_size is not None and vocab_size < needed:
        raise ConfigError(
            f"model.vocab_size={vocab_size} is less than the {needed} tokens of the data. Use at least {needed}."
        )
    return vocab_size or needed


def training_split_tokens(config: RunConfig, corpus: Data) -> int:
    """Returns the tokens of the training split; of images and ratings, the positions that a model reads of them."""
    if isinstance(config.data, ProbeConfig):
        return config.data.num_train * config.data.context_length
    number = int(corpus.meta[f"train_{corpus.unit}"])
    return number if isinstance(corpus, Corpus) else number * config.model.context_length
