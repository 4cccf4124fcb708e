"""The dense run that train.upcycle_from names: found, and checked to fit the model that starts from it."""

from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from moe_cli.config.data import HELD_OUT, TOKENIZERS, CorpusConfig, DataConfig
from moe_cli.config.ranges import show
from moe_cli.config.resolve import SPARSE_ONLY
from moe_cli.config.schema import RunConfig
from moe_cli.config.tasks import SpanCorruption
from moe_cli.data.bpe import hash_tokenizer_file
from moe_cli.errors import ConfigError
from moe_cli.runs.folder import Run
from moe_cli.runs.lookup import find_run

# Settings of a model that may differ from those of the dense run whose weights it starts from, besides those that only
# models with experts have: none is part of the function.
NOT_UPCYCLED = ("model.dropout", "model.attention_dropout")


def check_upcycle(config: RunConfig, outputs: Path) -> Run | None:
    """Returns the dense run that a model starts from; None means that it starts from scratch.

    Raises:
        RunNotFound: no such run exists.
        ConfigError: its weights do not fit.
    """
    if config.train.upcycle_from is None:
        return None
    given, source = f"train.upcycle_from={config.train.upcycle_from}", find_run(outputs, config.train.upcycle_from)
    dense, model = source.config(), config.model
    if getattr(config.router, "score", None) == "activation":
        raise ConfigError(
            f"{given} makes all experts equal, and router.score=activation tells them apart by their own activations. "
            "Use router.score=linear"
        )
    if not dense.dense:
        raise ConfigError(f"{given} is itself sparse ({dense.expert}x{dense.k}). Make a dense run: moe train expert=1")
    if not source.checkpoints():
        raise ConfigError(f"{given} has no checkpoint. Finish it: moe train --resume {source.id}")
    ours, theirs = _held_out(config), _held_out(dense)
    if all(ours[name] == theirs[name] for name in ("data.name", "data.path")) and ours != theirs:
        add = " ".join(f"{name}={show(value)}" for name, value in theirs.items() if ours[name] != value)
        raise ConfigError(f"{given} may have learned from what this run holds out of the same data. Add: {add}")
    recorded = source.meta().get("corpus") or {}
    if _token_identity(config.data) != _token_identity(dense.data, recorded.get("tokenizer_sha256")):
        raise ConfigError(f"{given} reads other tokens: its data are {dense.data.name}, {dense.data.tokenizer}.")
    for key, ours, theirs in _differing_settings(config, dense):
        raise ConfigError(f"{given} has {key}={show(theirs)}, and this model {show(ours)}. Add: {key}={show(theirs)}")
    if not config.dense and model.d_expert != model.d_ff:
        raise ConfigError(
            f"{given}: experts of width {model.d_expert} cannot be copies of a network of width {model.d_ff}. "
            f"Add: match=none model.d_expert={model.d_ff}"
        )
    return source


def resolve_upcycle_source(config: RunConfig, outputs: Path) -> RunConfig:
    """Returns the configuration with the full name of its source run, group/run. A prefix may match other runs later.

    Raises:
        MoeError: see `check_upcycle`.
    """
    source = check_upcycle(config, outputs)
    if source is None:
        return config
    path, root = source.path.resolve(), outputs.resolve()
    place = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
    return replace(config, train=replace(config.train, upcycle_from=place))


def _token_identity(data: DataConfig, tokenizer_sha256: str | None = None) -> object:
    """Returns a value that is equal for data whose token ids have the same meaning.

    Bytes are the same everywhere, and so are the tokens of one tokenizer.json. The ids of characters and `bpe` depend
    on their text, those of classes, users and items on their data. The meaning of ready-made tokens is unknown.

    Args:
        tokenizer_sha256: the recorded hash of the tokenizer.json; None means its current hash.
    """
    if not isinstance(data, CorpusConfig):
        return data
    if data.tokenizer not in TOKENIZERS:
        return tokenizer_sha256 or hash_tokenizer_file(data.tokenizer)
    return "bytes" if data.tokenizer == "bytes" else replace(data, packing="concat")


def _differing_settings(config: RunConfig, dense: RunConfig) -> Iterator[tuple[str, Any, Any]]:
    """Settings that decide the dense function and differ: each with its value here and there.

    All settings of a model count unless they are known not to, so that a new one does.
    """
    if config.model.name != dense.model.name:
        yield "model", config.model.name, dense.model.name
        return
    names = [each.name for each in fields(dense.model) if f"model.{each.name}" not in (*SPARSE_ONLY, *NOT_UPCYCLED)]
    names.sort(key=lambda name: name == "context_length")  # last: others decide it
    for name in names:
        ours, theirs = getattr(config.model, name), getattr(dense.model, name)
        if ours != theirs:
            yield f"model.{name}", ours, theirs
    if isinstance(config.task, SpanCorruption) and isinstance(dense.task, SpanCorruption):
        ours, theirs = config.task.num_sentinels, dense.task.num_sentinels
        if ours != theirs:  # each is a row of the embedding
            yield "task.num_sentinels", ours, theirs


def _held_out(config: RunConfig) -> dict[str, Any]:
    """Returns the settings of the data's source and of its held-out part."""
    names = ("data.name", "data.path", "data.exclude", *HELD_OUT)
    return {name: getattr(config.data, name.removeprefix("data."), None) for name in names}
