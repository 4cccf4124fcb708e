"""Texts -> token files, in memory that does not grow with the texts: built once, whole or absent.

The files are read twice: to learn sizes, characters and the hash, then to write the tokens where they belong. BPE is
trained in between, which reads them once more.
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
from moe_cli.data.baselines import bigram_bits_per_byte, gzip_bits_per_byte, unigram_references
from moe_cli.data.bpe import SEPARATOR, SubwordTokenizer, part_of, read_tokenizer, train_bpe
from moe_cli.data.cache_folders import building
from moe_cli.data.cached import META
from moe_cli.data.corpus_files import File, Texts, source
from moe_cli.data.documents import NotText
from moe_cli.data.shards import Shard, ShardWriter, Tokens
from moe_cli.data.splits import MOST_DOMAINS, PURPOSES, SPLITS, TEST, TRAIN, Split, split_documents
from moe_cli.data.tokenizers import CharTokenizer, Tokenizer, make_tokenizer
from moe_cli.errors import DataError

# Files that are no text are named up to this many.
MAX_NAMED = 3


@dataclass
class Survey:
    """What reading all files once tells.

    Attributes:
        lengths: of each document, without a separator, in the units that a split is made in: bytes; of chars, characters.
        domains: of each document, as a place in the sorted names.
        splits: of each document, where the names of files say so; empty: it is chosen.
        hashes: what the hash of the text was after each file; None for a file that is no text.
        bytes_of: the bytes of each domain.
        num_left_out: files, and records in them, that are empty or not text.
        not_text: the first MAX_NAMED of these files, each with the reason.
    """

    lengths: MutableSequence[int] = field(default_factory=lambda: array("q"))
    domains: MutableSequence[int] = field(default_factory=lambda: array("q"))
    splits: MutableSequence[int] = field(default_factory=lambda: array("q"))
    alphabet: set[str] = field(default_factory=set)
    hashes: list[bytes | None] = field(default_factory=list)
    num_bytes: int = 0
    bytes_of: Counter[str] = field(default_factory=Counter)
    num_left_out: int = 0
    not_text: list[str] = field(default_factory=list)
    sha256: Any = field(default_factory=hashlib.sha256)


@dataclass
class Written:
    """Tokens as they were written.

    Attributes:
        shards: where they lie, of each of SPLITS.
        order: the number of each document, by the split that it begins in.
        starts: where each document begins, in this order, each of SPLITS counted on from the one before.
        lossless: whether the tokens stand for exactly the bytes of the text.
    """

    shards: list[list[Shard]]
    order: NDArray[np.int64]
    starts: NDArray[np.int64]
    lossless: bool


def build(data: BuiltCorpusConfig, texts: Texts, folder: Path) -> None:
    """Makes the folder of a corpus: train_0000.bin ..., val_0000.bin ..., test_0000.bin ... if there is a test split, where
    documents begin, and meta.json.

    It is built beside its place and renamed, so that of ten jobs that start at once all see a whole corpus.

    Raises:
        DataError: files that are no text or change while they are read, too little text, a full disk.
    """
    # A wrong path is said before the texts are read.
    given = None if data.tokenizer in TOKENIZERS else read_tokenizer(data.tokenizer)
    survey = _survey(data, texts.files)
    several = len(survey.lengths) > 1
    few = 1 < len(_domain_names(texts.files, survey)) <= MOST_DOMAINS
    sizes = [length + several for length in survey.lengths]
    split = split_documents(
        sizes, data.val_fraction, survey.domains if few else (), data.test_fraction, survey.splits or None
    )
    tested = bool(data.test_fraction) or TEST in split.parts
    if min(split.lengths if tested else split.lengths[:TEST]) < 2:
        unit = "characters" if data.tokenizer == "chars" else "bytes"
        sizes_of = (f"{size} for {PURPOSES[name]}" for name, size in zip(SPLITS, split.lengths, strict=True) if size)
        raise DataError(f"{source(data)} holds only {', '.join(sizes_of)}, in {unit}. Give more text.")
    tokenizer: Tokenizer
    if data.num_bpe_tokens is not None:
        tokenizer = train_bpe(_training_texts(texts.files, survey, split), data.num_bpe_tokens)
    else:
        tokenizer = given or make_tokenizer(data.tokenizer, [*survey.alphabet, *([SEPARATOR] if several else [])])
    with building(folder, "token files") as temporary:
        written = _write(texts.files, survey, split, tokenizer, temporary)
        written.starts.tofile(temporary / "starts.bin")
        np.asarray(survey.domains, np.int64)[written.order].tofile(temporary / "domains.bin")
        meta = _meta(data, texts, survey, tokenizer, written)
        (temporary / META).write_text(json.dumps(meta), encoding="utf-8")


def _meta(
    data: BuiltCorpusConfig, texts: Texts, survey: Survey, tokenizer: Tokenizer, written: Written
) -> dict[str, Any]:
    dtype = _dtype(tokenizer)
    splits = dict(zip(SPLITS, written.shards, strict=True))
    train, val = Tokens(splits["train"], dtype), Tokens(splits["val"], dtype)
    domains = _domain_names(texts.files, survey)
    return {
        "name": data.name,
        "source": source(data),
        "version": texts.version,
        "missing": texts.missing,
        "sha256": survey.sha256.hexdigest(),
        "num_documents": len(survey.lengths),
        "num_left_out": survey.num_left_out,
        "not_text": survey.not_text,
        "num_bytes": survey.num_bytes,
        "tokenizer": tokenizer.to_dict(),
        "tokenizer_sha256": tokenizer.sha256 if isinstance(tokenizer, SubwordTokenizer) else None,
        "num_used": tokenizer.num_used if isinstance(tokenizer, SubwordTokenizer) else tokenizer.vocab_size,
        "lossless": written.lossless,
        "vocab_size": tokenizer.vocab_size,
        "dtype": dtype.name,
        **{f"{name}_tokens": sum(shard.num_tokens for shard in shards) for name, shards in splits.items()},
        **{f"{name}_shards": [[shard.path.name, shard.first_byte, shard.num_tokens] for shard in shards]
           for name, shards in splits.items()},
        "by_name": bool(survey.splits),
        "unheeded": texts.unheeded,
        "domains": domains,
        "domain_bytes": [survey.bytes_of[name] for name in domains],
        "bigram_bpb": bigram_bits_per_byte(train, val, tokenizer) if written.lossless else None,
        "unigram": unigram_references(train, val, tokenizer.vocab_size),
        "gzip_bpb": gzip_bits_per_byte(val, tokenizer) if written.lossless else None,
    }  # fmt: skip


def _dtype(tokenizer: Tokenizer) -> np.dtype[Any]:
    return np.min_scalar_type(tokenizer.vocab_size - 1)


def _domain_names(files: Sequence[File], survey: Survey) -> list[str]:
    return sorted({file.domain for file, digest in zip(files, survey.hashes, strict=True) if digest is not None})


def _survey(data: BuiltCorpusConfig, files: Sequence[File]) -> Survey:
    """Raises DataError when there is no text."""
    survey, owners = Survey(), array("q")
    for number, file in enumerate(files):
        before = len(survey.lengths), survey.num_bytes, survey.num_left_out, survey.sha256.copy()
        try:
            _survey_file(file, survey, chars=data.tokenizer == "chars")
            survey.hashes.append(survey.sha256.digest())
            survey.bytes_of[file.domain] += survey.num_bytes - before[1]
        except NotText as problem:
            if len(files) == 1 and isinstance(data, TextFilesConfig):
                where = source(data) if file.path == Path(data.path or "") else file.path
                raise DataError(f"{where} {problem}") from None
            if len(survey.not_text) < MAX_NAMED:
                survey.not_text.append(f"{file.path.name} {problem}")
            del survey.lengths[before[0] :]
            survey.num_bytes, survey.num_left_out, survey.sha256 = before[1], before[2] + 1, before[3]
            survey.hashes.append(None)
        owners.extend([number] * (len(survey.lengths) - len(owners)))
    if not survey.lengths:
        readable = any(digest is not None for digest in survey.hashes)
        what = "no record has any" if readable else f"its {len(files)} files are empty or not UTF-8"
        raise DataError(f"{source(data)} holds no text: {what}.")
    names = _domain_names(files, survey)
    survey.domains.extend(names.index(files[owner].domain) for owner in owners)
    survey.splits.extend(split for owner in owners if (split := files[owner].split) is not None)
    return survey


def _survey_file(file: File, survey: Survey, chars: bool) -> None:
    alphabet: set[str] = set()
    for document in file.documents():
        if document is None:
            survey.num_left_out += 1
            continue
        if survey.lengths:
            survey.sha256.update(b"\0")
        length = 0
        for text in document:
            raw = text.encode()
            survey.sha256.update(raw)
            survey.num_bytes += len(raw)
            length += len(text) if chars else len(raw)
            if chars:
                alphabet.update(text)
        survey.lengths.append(length)
    survey.alphabet |= alphabet


def _write(files: Sequence[File], survey: Survey, split: Split, tokenizer: Tokenizer, folder: Path) -> Written:
    """All splits, from another reading of the files."""
    dtype, lossless = _dtype(tokenizer), True
    counts = np.zeros(len(SPLITS), np.int64)
    begins, parts = np.zeros((2, len(survey.lengths)), np.int64)
    last = -1
    with ExitStack() as stack:
        writers = [stack.enter_context(ShardWriter(folder, name, dtype)) for name in SPLITS]
        for piece in _pieces(files, survey, split, chars=isinstance(tokenizer, CharTokenizer)):
            if piece.document != last:
                last, parts[piece.document] = piece.document, piece.split
                begins[piece.document] = counts[piece.split]
            for part, (start, stop) in piece.parts.items():
                tokens = _encoded(tokenizer, piece, start, stop)
                counts[part] += len(tokens)
                writers[part].write(tokens)
                if isinstance(tokenizer, SubwordTokenizer) and piece.text != SEPARATOR:
                    lossless = (
                        lossless and tokenizer.to_bytes(tokens.tolist()) == part_of(piece.text, start, stop).encode()
                    )
    starts = begins + (counts.cumsum() - counts)[parts]
    order = np.argsort(parts, kind="stable")
    return Written([writer.shards for writer in writers], order, starts[order], lossless)


@dataclass(frozen=True)
class Piece:
    """Some text of a document, or the separator after it.

    Attributes:
        split: which it begins in; in a gap, the one after.
        parts: what of it is for each split, from unit to unit.
        changed: what to raise where it is not the text of the first reading.
    """

    document: int
    text: str
    split: int
    parts: dict[int, tuple[int, int | None]]
    changed: DataError


def _pieces(files: Sequence[File], survey: Survey, split: Split, chars: bool) -> Iterator[Piece]:
    """All that has to be written, in order. Raises DataError: a file is not what it was when it was read first."""
    place = 0
    for document, text, changed in _again(files, survey):
        part = int(split.parts[document])
        if split.cut is None or part != TRAIN:
            yield Piece(document, text, part, {part: (0, None)}, changed)
            continue
        size = len(text) if chars else len(text.encode())
        parts = {
            part: (max(0, begin - place), None if place + size <= end else end - place)
            for part, (begin, end) in enumerate(split.cut)
            if place < end and place + size > begin
        }
        yield Piece(document, text, sum(place >= end for _, end in split.cut[:-1]), parts, changed)
        place += size


def _training_texts(files: Sequence[File], survey: Survey, split: Split) -> Iterator[str]:
    """What a tokenizer may learn from."""
    for piece in _pieces(files, survey, split, chars=False):
        if TRAIN in piece.parts and piece.text != SEPARATOR:
            yield part_of(piece.text, *piece.parts[TRAIN])


def _again(files: Sequence[File], survey: Survey) -> Iterator[tuple[int, str, DataError]]:
    """The number of a document with each piece of its text; of several documents the last is a separator.

    Raises:
        DataError: a file is not what it was when it was read first.
    """
    sha256, number = hashlib.sha256(), -1
    for file, digest in zip(files, survey.hashes, strict=True):
        if digest is None:
            continue
        changed = DataError(f"{file.path} has changed while it was read. Start again when nobody writes to it.")
        try:
            for document in file.documents():
                if document is None:
                    continue
                number += 1
                if number == len(survey.lengths):
                    raise changed
                sha256.update(b"\0" if number else b"")
                for text in document:
                    sha256.update(text.encode())
                    yield number, text, changed
                if len(survey.lengths) > 1:
                    yield number, SEPARATOR, changed
        except NotText:
            raise changed from None
        if sha256.digest() != digest:
            raise changed


def _encoded(tokenizer: Tokenizer, piece: Piece, start: int, stop: int | None) -> NDArray[Any]:
    if piece.text == SEPARATOR:
        return np.array([tokenizer.separator], _dtype(tokenizer))
    try:
        return tokenizer.encode(piece.text, start, stop)
    except DataError:
        if isinstance(tokenizer, CharTokenizer):  # a character that was not there at first
            raise piece.changed from None
        raise
