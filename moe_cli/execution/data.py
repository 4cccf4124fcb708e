"""The data of a run: loads them, and checks that they are those that the run or the sweep began with."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from moe_cli.config.data import DataConfig
from moe_cli.config.schema import RunConfig
from moe_cli.data.load import Data, changed_aspect, load_data
from moe_cli.errors import CheckpointError, ConfigError, Unwritable
from moe_cli.files.writing import scratch_folder
from moe_cli.runs.folder import Run


def check_same_data(run: Run, state: dict[str, Any], corpus: Data) -> None:
    if state.get("corpus_sha256") != corpus.meta["sha256"]:
        raise CheckpointError(f"{run.id} was trained on other data: {corpus.meta['source']} has changed since.")
    if (other := changed_aspect(run.meta().get("corpus"), corpus)) == "tokenizer":
        raise CheckpointError(
            f"{run.id} was trained with another tokenizer: data.tokenizer={run.config().data.tokenizer} is not what it was."
        )
    if other:
        raise CheckpointError(
            f"{run.id} was trained on another split of {corpus.meta['source']}: it may have learned from what is held out now."
        )


def load_run_data(config: RunConfig, outputs: Path) -> Data:
    """Returns the data of a configuration, built under outputs/.cache if they are not there. Raises DataError."""
    return load_data(config.data, config.model.context_length, outputs)


def vocab_size_reader(outputs: Path) -> Callable[[RunConfig], int]:
    """Returns a function like `model_vocab_size` that loads the data of many configurations, each data set once."""
    load = cache(lambda data, context_length: load_data(data, context_length, outputs))
    return lambda config: model_vocab_size(config, load(config.data, config.model.context_length))


def load_data_read_only(data: DataConfig, context_length: int, outputs: Path, build: bool = True) -> Data:
    """Loads data for commands that create no run.

    A temporary folder of this process is used if outputs is not writable.
    """
    try:
        return load_data(data, context_length, outputs, build)
    except Unwritable:
        return load_data(data, context_length, scratch_folder(), build)


def model_vocab_size(config: RunConfig, corpus: Data) -> int:
    """Rows of the model's embedding. Raises ConfigError where the data have more tokens."""
    asked, own = config.model.vocab_size, int(corpus.meta["vocab_size"]) + config.task.special_tokens
    if asked is not None and asked < own:
        raise ConfigError(f"model.vocab_size={asked} is less than the {own} tokens of the data. Use at least {own}.")
    return asked or own
