"""Builds the token files of a corpus from texts, in memory that does not grow with the texts.

The files are read twice: the first pass collects sizes, characters and the hash, the second writes the tokens. Training
of BPE reads them once more in between.
"""

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Iterator, MutableSequence, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_cli.config.data import TOKENIZERS, BuiltCorpusConfig, TextFilesConfig
from moe_cli.config.probes import ProbeConfig
from moe_cli.data.baselines import bigram_bits_per_byte, gzip_bits_per_byte, unigram_baselines
from moe_cli.data.bpe import SEPARATOR, SubwordTokenizer, read_tokenizer, slice_utf8, train_bpe
from moe_cli.data.cached import META, atomic_folder
from moe_cli.data.corpus_files import CorpusFile, CorpusSource
from moe_cli.data.dataset import source
from moe_cli.data.documents import NotText
from moe_cli.data.ngrams import ngram_statistics
from moe_cli.data.shards import Shard, ShardWriter, Tokens
from moe_cli.data.splits import MAX_DOMAINS, SPLIT_LABELS, SPLITS, TEST, TRAIN, Split, split_documents
from moe_cli.data.tokenizers import CharTokenizer, Tokenizer, make_tokenizer
from moe_cli.errors import DataError

# At most this many files are named as not text.
MAX_NAMED = 3


@dataclass
class CorpusScan:
    """Statistics of a corpus, collected in one pass over all files.

    Attributes:
        lengths: the length of each document, without a separator. The unit is the byte; with tokenizer chars, the
            character.
        domains: the domain of each document, as an index into the sorted names.
        splits: the split of each document, where file names give it; empty means that splits are chosen.
        hashes: the hash of the text after each file; None for a file that is not text.
        bytes_of: the number of bytes of each domain.
        num_skipped: the number of files, and of records in files, that are empty or not text.
        not_text: the first MAX_NAMED of these files, each with the reason.
    """

    lengths: MutableSequence[int] = field(default_factory=lambda: array("q"))
    domains: MutableSequence[int] = field(default_factory=lambda: array("q"))
    splits: MutableSequence[int] = field(default_factory=lambda: array("q"))
    alphabet: set[str] = field(default_factory=set)
    hashes: list[bytes | None] = field(default_factory=list)
    num_bytes: int = 0
    bytes_of: Counter[str] = field(default_factory=Counter)
    num_skipped: int = 0
    not_text: list[str] = field(default_factory=list)
    sha256: Any = field(default_factory=hashlib.sha256)


@dataclass
class EncodedCorpus:
    """The token files that were written.

    Attributes:
        shards: the token files of each of SPLITS.
        order: the index of each document, sorted by the split that it begins in.
        starts: the start of each document in this order; positions of each of SPLITS continue those of the one before.
        lossless: whether the tokens represent exactly the bytes of the text.
    """

    shards: list[list[Shard]]
    order: NDArray[np.int64]
    starts: NDArray[np.int64]
    lossless: bool


def build(data: BuiltCorpusConfig, texts: CorpusSource, folder: Path) -> None:
    """Builds the folder of a corpus: token files, the starts of documents, and meta.json.

    The token files are train_0000.bin ..., val_0000.bin ..., and test_0000.bin ... if a test split exists. The folder
    is built next to its final path and renamed, so that parallel jobs all see a complete corpus.

    Raises:
        DataError: a file is not text or changes while it is read; too little text; a full disk.
    """
    # A wrong path is reported before the texts are read.
    loaded_tokenizer = None if data.tokenizer in TOKENIZERS else read_tokenizer(data.tokenizer)
    scan = _scan(data, texts.files)
    has_many_documents = len(scan.lengths) > 1
    has_few_domains = 1 < len(_domain_names(texts.files, scan)) <= MAX_DOMAINS
    sizes = [length + has_many_documents for length in scan.lengths]
    split = split_documents(
        sizes, data.val_fraction, scan.domains if has_few_domains else (), data.test_fraction, scan.splits or None
    )
    has_test = bool(data.test_fraction) or TEST in split.parts
    if min(split.lengths if has_test else split.lengths[:TEST]) < 2:
        unit = "characters" if data.tokenizer == "chars" else "bytes"
        sizes_of = (
            f"{size} for {SPLIT_LABELS[name]}" for name, size in zip(SPLITS, split.lengths, strict=True) if size
        )
        raise DataError(f"{source(data)} holds only {', '.join(sizes_of)}, in {unit}. Give more text.")
    tokenizer: Tokenizer
    if data.num_bpe_tokens is not None:
        tokenizer = train_bpe(_training_texts(texts.files, scan, split), data.num_bpe_tokens)
    else:
        tokenizer = loaded_tokenizer or make_tokenizer(
            data.tokenizer, [*(texts.alphabet or scan.alphabet), *([SEPARATOR] if has_many_documents else [])]
        )
    with atomic_folder(folder, "token files") as temporary:
        encoded = _write(texts.files, scan, split, tokenizer, temporary)
        encoded.starts.tofile(temporary / "starts.bin")
        np.asarray(scan.domains, np.int64)[encoded.order].tofile(temporary / "domains.bin")
        meta = _meta(data, texts, scan, tokenizer, encoded)
        (temporary / META).write_text(json.dumps(meta), encoding="utf-8")


def _meta(
    data: BuiltCorpusConfig, texts: CorpusSource, scan: CorpusScan, tokenizer: Tokenizer, encoded: EncodedCorpus
) -> dict[str, Any]:
    dtype = _dtype(tokenizer)
    splits = dict(zip(SPLITS, encoded.shards, strict=True))
    train, val = Tokens(splits["train"], dtype), Tokens(splits["val"], dtype)
    domains = _domain_names(texts.files, scan)
    # Results of trivial models on the whole text say nothing about answers.
    has_references = encoded.lossless and not isinstance(data, ProbeConfig)
    return {
        "name": data.name,
        "source": source(data),
        "version": texts.version,
        "missing": texts.missing,
        "sha256": scan.sha256.hexdigest(),
        "num_documents": len(scan.lengths),
        "num_skipped": scan.num_skipped,
        "not_text": scan.not_text,
        "num_bytes": scan.num_bytes,
        "tokenizer": tokenizer.to_dict(),
        "tokenizer_sha256": tokenizer.sha256 if isinstance(tokenizer, SubwordTokenizer) else None,
        "num_used": tokenizer.num_used if isinstance(tokenizer, SubwordTokenizer) else tokenizer.vocab_size,
        "lossless": encoded.lossless,
        "vocab_size": tokenizer.vocab_size,
        "dtype": dtype.name,
        **{f"{name}_tokens": sum(shard.num_tokens for shard in shards) for name, shards in splits.items()},
        **{
            f"{name}_shards": [[shard.path.name, shard.first_byte, shard.num_tokens] for shard in shards]
            for name, shards in splits.items()
        },
        "by_name": bool(scan.splits),
        "ignored_split_names": texts.ignored_split_names,
        "domains": domains,
        "domain_bytes": [scan.bytes_of[name] for name in domains],
        "bigram_bpb": bigram_bits_per_byte(train, val, tokenizer) if has_references else None,
        "unigram": unigram_baselines(train, val, tokenizer.vocab_size),
        "gzip_bpb": gzip_bits_per_byte(val, tokenizer) if has_references else None,
        "ngrams": [] if isinstance(data, ProbeConfig) else ngram_statistics(train, val),
    }


def _dtype(tokenizer: Tokenizer) -> np.dtype[Any]:
    return np.min_scalar_type(tokenizer.vocab_size - 1)


def _domain_names(files: Sequence[CorpusFile], scan: CorpusScan) -> list[str]:
    return sorted({file.domain for file, digest in zip(files, scan.hashes, strict=True) if digest is not None})


def _scan(data: BuiltCorpusConfig, files: Sequence[CorpusFile]) -> CorpusScan:
    """Reads all files once and collects their statistics. Raises DataError if they have no text."""
    scan, owners = CorpusScan(), array("q")
    for number, file in enumerate(files):
        before = len(scan.lengths), scan.num_bytes, scan.num_skipped, scan.sha256.copy()
        try:
            _scan_file(file, scan, chars=data.tokenizer == "chars")
            scan.hashes.append(scan.sha256.digest())
            scan.bytes_of[file.domain] += scan.num_bytes - before[1]
        except NotText as problem:
            if len(files) == 1 and isinstance(data, TextFilesConfig):
                where = source(data) if file.path == Path(data.path or "") else file.path
                raise DataError(f"{where} {problem}") from None
            if len(scan.not_text) < MAX_NAMED:
                scan.not_text.append(f"{file.path.name} {problem}")
            del scan.lengths[before[0] :]
            scan.num_bytes, scan.num_skipped, scan.sha256 = before[1], before[2] + 1, before[3]
            scan.hashes.append(None)
        owners.extend([number] * (len(scan.lengths) - len(owners)))
    if not scan.lengths:
        readable = any(digest is not None for digest in scan.hashes)
        what = "no record has any" if readable else f"its {len(files)} files are empty or not UTF-8"
        raise DataError(f"{source(data)} has no text: {what}.")
    names = _domain_names(files, scan)
    scan.domains.extend(names.index(files[owner].domain) for owner in owners)
    scan.splits.extend(split for owner in owners if (split := files[owner].split) is not None)
    return scan


def _scan_file(file: CorpusFile, scan: CorpusScan, chars: bool) -> None:
    alphabet: set[str] = set()
    for document in file.documents():
        if document is None:
            scan.num_skipped += 1
            continue
        if scan.lengths:
            scan.sha256.update(b"\0")
        length = 0
        for text in document:
            raw = text.encode()
            scan.sha256.update(raw)
            scan.num_bytes += len(raw)
            length += len(text) if chars else len(raw)
            if chars:
                alphabet.update(text)
        scan.lengths.append(length)
    scan.alphabet |= alphabet


def _write(
    files: Sequence[CorpusFile], scan: CorpusScan, split: Split, tokenizer: Tokenizer, folder: Path
) -> EncodedCorpus:
    """Writes all splits, in a second pass over the files."""
    dtype, lossless = _dtype(tokenizer), True
    counts = np.zeros(len(SPLITS), np.int64)
    begins, parts = np.zeros((2, len(scan.lengths)), np.int64)
    last = -1
    with ExitStack() as stack:
        writers = [stack.enter_context(ShardWriter(folder, name, dtype)) for name in SPLITS]
        for piece in _pieces(files, scan, split, chars=isinstance(tokenizer, CharTokenizer)):
            if piece.document != last:
                last, parts[piece.document] = piece.document, piece.split
                begins[piece.document] = counts[piece.split]
            for part, (start, stop) in piece.parts.items():
                tokens = _encoded(tokenizer, piece, start, stop)
                counts[part] += len(tokens)
                writers[part].write(tokens)
                if isinstance(tokenizer, SubwordTokenizer) and piece.text != SEPARATOR:
                    lossless = (
                        lossless and tokenizer.to_bytes(tokens.tolist()) == slice_utf8(piece.text, start, stop).encode()
                    )
    starts = begins + (counts.cumsum() - counts)[parts]
    order = np.argsort(parts, kind="stable")
    return EncodedCorpus([writer.shards for writer in writers], order, starts[order], lossless)


@dataclass(frozen=True)
class Piece:
    """A part of the text of a document, or the separator after it.

    Attributes:
        split: the split in which it begins; the next split if it begins in the gap between two.
        parts: the range for each split, in units of `CorpusScan.lengths`.
        changed_error: the error to raise if the text differs from the first pass.
    """

    document: int
    text: str
    split: int
    parts: dict[int, tuple[int, int | None]]
    changed_error: DataError


def _pieces(files: Sequence[CorpusFile], scan: CorpusScan, split: Split, chars: bool) -> Iterator[Piece]:
    """Yields all pieces to write, in order. Raises DataError if a file has changed since it was first read."""
    position = 0
    for document, text, changed_error in _reread(files, scan):
        part = int(split.parts[document])
        if split.cut is None or part != TRAIN:
            yield Piece(document, text, part, {part: (0, None)}, changed_error)
            continue
        size = len(text) if chars else len(text.encode())
        parts = {
            part: (max(0, begin - position), None if position + size <= end else end - position)
            for part, (begin, end) in enumerate(split.cut)
            if position < end and position + size > begin
        }
        yield Piece(document, text, sum(position >= end for _, end in split.cut[:-1]), parts, changed_error)
        position += size


def _training_texts(files: Sequence[CorpusFile], scan: CorpusScan, split: Split) -> Iterator[str]:
    """Yields the training text, without separators, for training a tokenizer."""
    for piece in _pieces(files, scan, split, chars=False):
        if TRAIN in piece.parts and piece.text != SEPARATOR:
            yield slice_utf8(piece.text, *piece.parts[TRAIN])


def _reread(files: Sequence[CorpusFile], scan: CorpusScan) -> Iterator[tuple[int, str, DataError]]:
    """Yields each piece of text with the index of its document. If there are several, a separator ends each.

    Raises:
        DataError: a file has changed since it was first read.
    """
    sha256, number = hashlib.sha256(), -1
    for file, digest in zip(files, scan.hashes, strict=True):
        if digest is None:
            continue
        changed_error = DataError(f"{file.path} changed while it was read. Start again when no program writes to it.")
        try:
            for document in file.documents():
                if document is None:
                    continue
                number += 1
                if number == len(scan.lengths):
                    raise changed_error
                sha256.update(b"\0" if number else b"")
                for text in document:
                    sha256.update(text.encode())
                    yield number, text, changed_error
                if len(scan.lengths) > 1:
                    yield number, SEPARATOR, changed_error
        except NotText:
            raise changed_error from None
        if sha256.digest() != digest:
            raise changed_error


def _encoded(tokenizer: Tokenizer, piece: Piece, start: int, stop: int | None) -> NDArray[Any]:
    if piece.text == SEPARATOR:
        return np.array([tokenizer.separator], _dtype(tokenizer))
    try:
        return tokenizer.encode(piece.text, start, stop)
    except DataError:
        if isinstance(tokenizer, CharTokenizer):  # a character that the first pass did not find
            raise piece.changed_error from None
        raise
