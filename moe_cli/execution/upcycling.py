"""Finds the dense run of train.upcycle_from, and checks that its weights fit the new model."""

from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from moe_cli.config.data import HELD_OUT, TOKENIZERS, CorpusConfig, DataConfig
from moe_cli.config.ignored_settings import SPARSE_ONLY
from moe_cli.config.ranges import format_setting
from moe_cli.config.routers import TopKConfig, sums_to_one
from moe_cli.config.schema import RunConfig
from moe_cli.config.tasks import SpanCorruption
from moe_cli.data.bpe import hash_tokenizer_file
from moe_cli.errors import ConfigError
from moe_cli.runs.folder import Run
from moe_cli.runs.lookup import find_run

# Settings that may differ from those of the dense run, besides those of experts: they do not change the function of the
# model.
NOT_UPCYCLED = ("model.dropout", "model.attention_dropout")


def check_upcycle(config: RunConfig, outputs: Path) -> Run | None:
    """Returns the dense run that a model starts from; None if it starts from scratch.

    Raises:
        RunNotFound: no such run exists.
        ConfigError: its weights do not fit.
    """
    if config.train.upcycle_from is None:
        return None
    option, source = f"train.upcycle_from={config.train.upcycle_from}", find_run(outputs, config.train.upcycle_from)
    dense = source.config()
    if getattr(config.router, "score", None) == "activation":
        raise ConfigError(
            f"{option} makes all experts equal, and router.score=activation cannot tell equal experts apart. "
            "Use router.score=linear"
        )
    if not dense.dense:
        raise ConfigError(f"{option} is itself sparse ({dense.shape}). Make a dense run: moe train expert=1")
    if not source.checkpoints():
        raise ConfigError(f"{option} has no checkpoint. Finish it: moe train --resume {source.id}")
    ours, theirs = _held_out(config), _held_out(dense)
    learned_here = "imported" not in source.meta()
    if learned_here and all(ours[name] == theirs[name] for name in ("data.name", "data.path")) and ours != theirs:
        add = " ".join(f"{name}={format_setting(value)}" for name, value in theirs.items() if ours[name] != value)
        raise ConfigError(f"{option} may have learned from data that this run holds out. Add: {add}")
    recorded = source.meta().get("corpus") or {}
    if _token_identity(config.data) != _token_identity(dense.data, recorded.get("tokenizer_sha256")):
        raise ConfigError(f"{option} reads other tokens: its data are {dense.data.name}, {dense.data.tokenizer}.")
    for key, ours, theirs in _differing_settings(config, dense):
        raise ConfigError(
            f"{option} has {key}={format_setting(theirs)}, and this model {format_setting(ours)}. Add: "
            f"{key}={format_setting(theirs)}"
        )
    if not config.dense:
        _check_width(config, option)
    return source


def _check_width(config: RunConfig, option: str) -> None:
    """Raises ConfigError unless the experts are copies of the dense network, or equal parts that can act as copies."""
    model = config.model
    assert model.d_expert is not None
    parts, rest = (0, 0) if isinstance(model.d_expert, tuple) else divmod(model.d_ff, model.d_expert)
    if rest or not parts:
        raise ConfigError(
            f"{option}: experts of width {format_setting(model.d_expert)} cannot be copies of a network of width "
            f"{model.d_ff}, or equal parts of one. Add: match=none model.d_expert={model.d_ff}"
        )
    router, counts = config.router, (config.expert, *config.k_values, *([config.eval.k] if config.eval.k else []))
    chooses_copies = (
        isinstance(router, TopKConfig)
        and router.score == "linear"
        and all(sums_to_one(router, k) for k in config.k_values)
    )
    if parts > 1 and not (chooses_copies and all(count % parts == 0 for count in counts)):
        raise ConfigError(
            f"{option}: experts of width {model.d_expert} are 1/{parts} of a network, and need an expert and a k that "
            f"are multiples of {parts}, and router=topk router.score=linear router.renormalise=true. For copies: "
            f"match=none model.d_expert={model.d_ff}"
        )


def resolve_upcycle_source(config: RunConfig, outputs: Path) -> RunConfig:
    """Returns the configuration with the full name SWEEP/RUN of its source run, which a prefix may not denote later.

    Raises:
        MoeError: see `check_upcycle`.
    """
    source = check_upcycle(config, outputs)
    if source is None:
        return config
    path, root = source.path.resolve(), outputs.resolve()
    name = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
    return replace(config, train=replace(config.train, upcycle_from=name))


def _token_identity(data: DataConfig, tokenizer_sha256: str | None = None) -> object:
    """Returns a value that is equal for data whose token ids have the same meaning.

    Bytes have the same meaning everywhere, and so have the tokens of one tokenizer.json. The ids of characters and
    `bpe` depend on the text, the ids of classes, users and items on the data. The meaning of token files is unknown.

    Args:
        tokenizer_sha256: the recorded hash of the tokenizer.json; None means its current hash.
    """
    if not isinstance(data, CorpusConfig):
        return data
    if data.tokenizer not in TOKENIZERS:
        return tokenizer_sha256 or hash_tokenizer_file(data.tokenizer)
    return "bytes" if data.tokenizer == "bytes" else replace(data, packing="concat")


def _differing_settings(config: RunConfig, dense: RunConfig) -> Iterator[tuple[str, Any, Any]]:
    """Yields the differing settings that determine the dense function, each with both values.

    All settings of a model count except listed ones, so that a new setting counts.
    """
    if config.model.name != dense.model.name:
        yield "model", config.model.name, dense.model.name
        return
    names = [field.name for field in fields(dense.model) if f"model.{field.name}" not in (*SPARSE_ONLY, *NOT_UPCYCLED)]
    names.sort(key=lambda name: name == "context_length")  # last, because other settings determine it
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
