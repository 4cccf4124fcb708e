"""Named corpora, users' own files and ready-made token files -> a Corpus: splits of tokens, with metadata."""

from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from moe_cli.config.data import (
    TOKENIZERS,
    BuiltCorpusConfig,
    CorpusConfig,
    CorpusData,
    HubConfig,
    PluginCorpus,
    TextFilesConfig,
    TokenFilesConfig,
)
from moe_cli.config.probes import ProbeConfig
from moe_cli.config.settings import fields_of
from moe_cli.config.tasks import PROBES
from moe_cli.data.bpe import hash_tokenizer_file, read_tokenizer
from moe_cli.data.cached import COMMON_META_TYPES, BlockChecksums
from moe_cli.data.corpus_builder import build
from moe_cli.data.corpus_files import CorpusSource, list_texts
from moe_cli.data.dataset import Dataset, NotBuilt, cache_key, load_or_build, source
from moe_cli.data.hub import list_hub
from moe_cli.data.packaged_corpora import list_installed
from moe_cli.data.probes import list_questions
from moe_cli.data.shards import LARGE_SPLIT_TOKENS, Shard, Tokens
from moe_cli.data.splits import MAX_DOMAINS, SPLITS
from moe_cli.data.token_files import describe_token_files
from moe_cli.data.tokenizer_check import tokenizers_library
from moe_cli.data.tokenizers import Tokenizer, load_tokenizer
from moe_cli.errors import DataError
from moe_cli.formatting import count, format_bytes, plural
from moe_cli.plugins import origin_of, plugin_of

FORMAT = 11
_META = {
    **COMMON_META_TYPES,
    **dict.fromkeys(("num_bytes", "num_skipped", "num_used"), int),
    **dict.fromkeys(("missing", "not_text", "domain_bytes", "ngrams"), list),
    **dict.fromkeys(("lossless", "by_name"), bool),
    **dict.fromkeys(("tokenizer_sha256", "ignored_split_names"), str | None),
    "tokenizer": dict,
    "dtype": str,
    **{f"{name}_tokens": int for name in SPLITS},
    **{f"{name}_shards": list for name in SPLITS},
}
# The hash of a tokenizer that is not trained yet.
UNTRAINED = "?"


@dataclass(frozen=True)
class Corpus(Dataset[Tokens]):
    """Splits of tokens, with the documents that they belong to.

    Attributes:
        checksums: those of large token files; None for the user's own files.
    """

    unit = "tokens"

    checksums: BlockChecksums | None = None

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """Returns the tokenizer; None if the tokens came without one."""
        return None if self.meta["tokenizer"] is None else load_tokenizer(self.meta["tokenizer"])

    @cached_property
    def bytes_per_token(self) -> NDArray[np.int64] | None:
        """Returns the bytes of text of each token; None where they are unknown or the tokenizer changes the text."""
        return self.tokenizer.bytes_per_token() if self.tokenizer and self.meta.get("lossless", True) else None

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """Returns the start of each document.

        Validation positions continue those of training, test those of validation.
        """
        return np.memmap(self.folder / "starts.bin", np.int64, mode="r")

    @cached_property
    def domain_ids(self) -> NDArray[np.int64]:
        """Returns the domain of each document, as an index into meta["domains"]."""
        return np.memmap(self.folder / "domains.bin", np.int64, mode="r")

    def document_starts(self, split: Tokens) -> NDArray[np.int64]:
        """Returns the starts of the documents of a split, relative to it. The first is 0, even in a cut document."""
        first = self._val_offset if split is self.val else 0
        inside = (self.starts >= first) & (self.starts < first + len(split))
        return np.unique(np.append(self.starts[inside] - first, 0))

    def domain_ids_at(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the domains of tokens of `val`. A separator has that of the document before it."""
        if len(self.meta["domains"]) == 1:
            return np.zeros(len(positions), np.int64)
        return np.asarray(self.domain_ids[self.document_ids_at(positions)])

    def document_ids_at(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the documents of tokens of `val`, as indices into `starts`."""
        return np.searchsorted(self.starts, positions + self._val_offset, side="right") - 1

    @property
    def _val_offset(self) -> int:
        """Returns the number of tokens of the splits before `val`."""
        return len(self.train) + (self.meta["val_tokens"] if self.eval_split == "test" else 0)

    def read_split(self, name: str) -> Tokens:
        shards = [Shard(self.folder / file, first_byte, size) for file, first_byte, size in self.meta[f"{name}_shards"]]
        large = sum(shard.num_tokens for shard in shards) >= LARGE_SPLIT_TOKENS
        return Tokens(shards, self.meta["dtype"], name == "train" and large, self.checksums)

    def describe(self) -> str:
        """Returns one line: python corpus, 12.4 MB, bytes."""
        meta = self.meta
        if meta["tokenizer"] is None:
            tokens = sum(meta[f"{name}_tokens"] for name in SPLITS)
            return f"{meta['name']} corpus, {count(tokens)} {meta['dtype']}, {meta['vocab_size']:,} different"
        name = meta["tokenizer"]["name"]
        if meta["tokenizer_sha256"]:
            name = f"{name if name == 'bpe' else Path(name).name} {meta['vocab_size']:,}"
        return f"{meta['name']} corpus, {format_bytes(meta['num_bytes'])}, {name}"

    def notes(self) -> list[str]:
        if self.meta["name"] == "tokens":
            return [*self.meta.get("notes", ()), *_on_tokens(self.meta)]
        return [*self.meta.get("notes", ()), *_on_texts(self.meta), *self.domains_without_validation()]

    def with_test_split(self) -> Self:
        if self.meta["name"] in PROBES:
            raise DataError(f"{self.meta['source']} has no test split: questions are generated. Use --split validation")
        return super().with_test_split()

    def domains_without_validation(self) -> list[str]:
        """Returns a note on domains without validation text, if there are only a few domains."""
        names = self.meta["domains"]
        held_out = np.unique(self.domain_ids_at(self.document_starts(self.val)))
        without = [index for index in range(len(names)) if index not in held_out]
        if not without or len(names) > MAX_DOMAINS:
            return []
        alone = all(np.count_nonzero(self.domain_ids == index) == 1 for index in without)
        listed = " or ".join(names[index] for index in without)
        hint = "There is only one document of each." if len(without) > 1 else "It has only one document."
        return [
            f"Nothing of {listed} is held out, so {'they have' if len(without) > 1 else 'it has'} no validation loss. "
            + (hint if alone else "Raise data.val_fraction to hold some out.")
        ]


def load_corpus(
    data: CorpusData, context_length: int, cache: Path, build: bool = True, outputs: Path | None = None
) -> Corpus:
    """Loads the corpus of a configuration, from the cache if its files are unchanged.

    Args:
        build: False means that a missing subword corpus is not built; its metadata is estimated, with tokens counted as
            bytes.
        outputs: the folder of this run's outputs, which are not data.

    Raises:
        DataError: a path is missing, empty, not text, or too short for one context.
    """
    if isinstance(data, TokenFilesConfig):
        corpus = Corpus(cache, describe_token_files(data, outputs))
    else:
        corpus = _built(data, cache, outputs, build)
    _check_length(corpus, data, context_length)
    packing = getattr(data, "packing", "concat")
    if packing != "concat" and corpus.meta["num_documents"] == 1:
        raise DataError(
            f"{source(data)} is one document, and data.packing={packing} needs several. Use data.packing=concat"
        )
    return corpus


def texts_of(data: BuiltCorpusConfig, outputs: Path | None = None) -> CorpusSource:
    """Returns the source files of the corpus. Raises DataError if there are none."""
    if isinstance(data, TextFilesConfig):
        return list_texts(data, outputs)
    if isinstance(data, PluginCorpus):
        return _plugin_texts(data)
    if isinstance(data, ProbeConfig):
        return list_questions(data)
    return list_hub(data, outputs) if isinstance(data, HubConfig) else list_installed(data)


def _plugin_texts(data: PluginCorpus) -> CorpusSource:
    """Returns the texts of a plug-in, whose distribution, version and settings are part of their state."""
    plugin = plugin_of(data)
    assert plugin is not None
    texts: CorpusSource = plugin.code()(data)
    if not texts.files:
        raise DataError(f"data={data.name}: the plug-in has no texts.")
    settings = {name: value for name, value in vars(data).items() if name not in fields_of(CorpusConfig)}
    return replace(texts, state=[str(origin_of("data", data.name)), settings, texts.state])


def _built(data: BuiltCorpusConfig, cache: Path, outputs: Path | None, allow_build: bool = True) -> Corpus:
    subwords = data.tokenizer not in ("bytes", "chars")
    if subwords:
        tokenizers_library()  # before anything that takes long
    texts = texts_of(data, outputs)
    folder = cache / f"{data.name}-{_key(data, texts)}"
    try:
        build_folder = partial(build, data, texts, folder) if allow_build or not subwords else None
        meta = load_or_build(folder, "token files", _META, build_folder)
    except NotBuilt:
        return _without_trained_tokenizer(data, cache, outputs)
    # The notes may differ from those at the time of building.
    return Corpus(folder, {**meta, "notes": texts.notes}, checksums=BlockChecksums(folder))


def _without_trained_tokenizer(data: BuiltCorpusConfig, cache: Path, outputs: Path | None) -> Corpus:
    """Returns the corpus in bytes, with its final vocabulary size, because training and encoding are slow."""
    assert not isinstance(data, ProbeConfig)  # their tokens are characters
    plain = _built(replace(data, tokenizer="bytes", bpe_vocab=None), cache, outputs)
    size = data.num_bpe_tokens or read_tokenizer(data.tokenizer).vocab_size
    foreseen = {
        "tokenizer": {"name": data.tokenizer},
        "tokenizer_sha256": UNTRAINED,
        "vocab_size": size,
        "num_used": size,
    }
    return replace(plain, meta=plain.meta | foreseen)


def _key(data: BuiltCorpusConfig, texts: CorpusSource) -> str:
    tokenizer = data.tokenizer if data.tokenizer in TOKENIZERS else hash_tokenizer_file(data.tokenizer)
    fractions = [data.val_fraction, data.test_fraction]
    return cache_key(FORMAT, tokenizer, data.num_bpe_tokens, fractions, getattr(data, "field", None), texts.state)


def _check_length(corpus: Corpus, data: CorpusData, context_length: int) -> None:
    unit = data.tokenizer if data.tokenizer in ("bytes", "chars") else "tokens"
    if corpus.meta["test_tokens"] == 1:
        raise DataError(f"{source(data)} has 1 {unit.removesuffix('s')} for the test split. Give more text.")
    if len(corpus.train) <= context_length or len(corpus.val) < 2:
        raise DataError(
            f"{source(data)} leaves {len(corpus.train)} {unit} for training and {len(corpus.val)} for validation; "
            f"one context takes {context_length + 1}.\nGive more text, or lower model.context_length."
        )


def _on_texts(meta: dict[str, Any]) -> list[str]:
    lines = []
    if meta["by_name"] and meta["name"] not in PROBES:
        sizes = [f"{name} {count(meta[f'{name}_tokens'])}" for name in SPLITS if meta[f"{name}_tokens"]]
        lines.append(f"split by the names of files and folders: {', '.join(sizes)} tokens")
    if meta["ignored_split_names"]:
        lines.append(meta["ignored_split_names"])
    if meta["num_skipped"] and meta["name"] in ("text", "hf"):
        lines.append(f"left out as empty or not UTF-8 text: {plural(meta['num_skipped'], 'document')}")
        lines += [f"skipped: {line.removesuffix(' Give UTF-8 text.')}" for line in meta["not_text"]]
    if meta["name"] == "corpora_mix":
        parts = zip(meta["domains"], meta["domain_bytes"], strict=True)
        lines.append(", ".join(f"{name} {format_bytes(size)}" for name, size in parts))
    if meta["missing"]:
        lines.append(f"without {', '.join(meta['missing'])}: not installed (pip install 'moe-cli[corpora]')")
    if meta["num_used"] < meta["vocab_size"]:
        lines.append(
            f"{meta['num_used']:,} of {meta['vocab_size']:,} tokens are used: the text has no more frequent pairs"
        )
    if not meta["lossless"]:
        lines.append("this tokenizer changes the text: there are no bits per byte, so compare nats per token")
    return lines


def _on_tokens(meta: dict[str, Any]) -> list[str]:
    train, val, test = (len(meta[f"{name}_shards"]) for name in SPLITS)
    header = "".join(f", {name} in {number}" for name, number in meta["headers"].items()) or ", no header"
    lines = [
        f"{count(meta['train_tokens'])} in {train} {'file' if train == 1 else 'files'}, validation "
        f"{count(meta['val_tokens'])} in {val}"
        + (f", test {count(meta['test_tokens'])} in {test}" if test else "")
        + header
    ]
    if meta["ignored_split_names"]:
        lines.append(meta["ignored_split_names"])
    if meta["num_skipped"]:
        lines.append(f"{meta['num_skipped']} files are left out: they are named neither train, val nor test")
    return lines
