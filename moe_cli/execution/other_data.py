"""Loads data that a trained model did not learn from, in the tokens of its own tokenizer."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from moe_cli.config.compose import Composer
from moe_cli.config.data import CorpusConfig, TokenFilesConfig
from moe_cli.config.schema import RunConfig
from moe_cli.data.bpe import SubwordTokenizer
from moe_cli.data.corpora import Corpus
from moe_cli.data.load import Data
from moe_cli.data.tokenizers import ByteTokenizer
from moe_cli.errors import ConfigError
from moe_cli.execution.data import load_data_read_only
from moe_cli.files.writing import scratch_folder, write_text

# Settings that a trained model cannot change.
FIXED = ("data.tokenizer", "data.bpe_vocab")


def load_other_data(
    run: str, config: RunConfig, corpus: Data, values: Mapping[str, Any], outputs: Path
) -> tuple[RunConfig, Data]:
    """Returns the configuration of a run with other data, and these data. Packing is that of the run if it is not set.

    Args:
        run: the name of the run, for messages.
        corpus: the data of the run.
        values: settings of the other data; `data` is among them.

    Raises:
        ConfigError: the run's model reads no text, its tokenizer cannot read other text, or a setting is wrong.
        DataError: the data cannot be read.
    """
    if not isinstance(config.data, CorpusConfig | TokenFilesConfig) or not isinstance(corpus, Corpus):
        raise ConfigError(f"{run} reads no text (data={config.data.name}), and only text can be replaced.")
    if "data" not in values:
        raise ConfigError(
            f"'{next(iter(values))}' would move the split of the data that {run} learned from. "
            "For other data: data=text data.path=FOLDER"
        )
    for key in FIXED:
        if key in values:
            raise ConfigError(f"'{key}' cannot be set: {run} keeps the tokenizer it learned with.")
    settings: dict[str, Any] = dict(values)
    kind = Composer().point(values).config.data
    if not isinstance(kind, CorpusConfig | TokenFilesConfig):
        raise ConfigError(f"data={kind.name} is no text, and {run} reads text.")
    if isinstance(kind, CorpusConfig):
        settings["data.tokenizer"] = _tokenizer_setting(run, corpus, outputs)
        settings.setdefault("data.packing", getattr(config.data, "packing", "concat"))
    data = Composer().point(settings).config.data
    found = load_data_read_only(data, config.model.context_length, outputs)
    assert isinstance(found, Corpus)
    known, needed = int(corpus.meta["vocab_size"]), int(found.meta["vocab_size"])
    if needed > known:
        raise ConfigError(f"data={data.name} has {needed:,} token ids, and {run} knows {known:,}. Give its own tokens.")
    meta = {**found.meta, "vocab_size": known}
    return replace(config, data=data), replace(found, meta=meta)


def _tokenizer_setting(run: str, corpus: Corpus, outputs: Path) -> str:
    """Returns `data.tokenizer` for the run's tokenizer; that of a trained one is a file in the cache.

    Raises ConfigError: the tokenizer is unknown, or knows the characters of its own text only.
    """
    tokenizer = corpus.tokenizer
    if isinstance(tokenizer, ByteTokenizer):
        return tokenizer.name
    if tokenizer is None:
        raise ConfigError(
            f"{run} learned from ready-made tokens, and how text becomes tokens is unknown. "
            "Give other data as tokens: data=tokens data.path=FILE"
        )
    if not isinstance(tokenizer, SubwordTokenizer):
        raise ConfigError(
            f"{run} knows only the characters of its own text (data.tokenizer=chars), and no other text can be read."
        )
    path = scratch_folder() / f"{tokenizer.sha256[:16]}.json"  # the cache of texts knows it by its content
    write_text(path, tokenizer.json)
    return str(path)
