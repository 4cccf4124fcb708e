"""Texts -> token files, in memory that does not grow with the texts: built once, whole or absent.

The files are read twice: to learn sizes, characters and the hash, then to write the tokens where they belong.
"""

import hashlib
import json
from array import array
from collections.abc import Iterator, MutableSequence, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_cli.config.data import PythonData, TextData
from moe_cli.errors import DataError
from moe_cli.tasks.documents import NotText, read_documents
from moe_cli.tasks.files import File, source
from moe_cli.tasks.folders import META, building
from moe_cli.tasks.references import bigram_bits_per_byte, gzip_bits_per_byte
from moe_cli.tasks.shards import Shard, ShardWriter, Tokens
from moe_cli.tasks.splits import Split, split_documents
from moe_cli.tasks.tokenizers import SEPARATOR, Tokenizer, make_tokenizer


@dataclass
class Survey:
    """What reading all files once tells.

    Attributes:
        lengths: tokens of each document, without a separator.
        domains: of each document, as a place in the sorted names.
        hashes: what the hash of the text was after each file; None for a file that is no text.
        num_left_out: files, and records in them, that are empty or not text.
    """

    lengths: MutableSequence[int] = field(default_factory=lambda: array("q"))
    domains: MutableSequence[int] = field(default_factory=lambda: array("q"))
    alphabet: set[str] = field(default_factory=set)
    hashes: list[bytes | None] = field(default_factory=list)
    num_bytes: int = 0
    num_left_out: int = 0
    sha256: Any = field(default_factory=hashlib.sha256)


def build(data: PythonData | TextData, files: Sequence[File], folder: Path) -> None:
    """Makes the folder of a corpus: train_0000.bin ..., val_0000.bin ..., where documents begin, and meta.json.

    It is built beside its place and renamed, so that of ten jobs that start at once all see a whole corpus.

    Raises:
        DataError: files that are no text or change while they are read, too little text, a full disk.
    """
    survey = _survey(data, files)
    several = len(survey.lengths) > 1
    tokenizer = make_tokenizer(data.tokenizer, [*survey.alphabet, *([SEPARATOR] if several else [])])
    split = split_documents([length + several for length in survey.lengths], data.val_fraction)
    if split.train_end < 2 or split.num_tokens - split.cut < 2:
        held = split.train_end + split.num_tokens - split.cut
        raise DataError(f"{source(data)} holds only {held} {data.tokenizer}. Give more text.")
    with building(folder, "token files") as temporary:
        train, val = _write(data, files, survey, split, tokenizer, temporary)
        split.starts.tofile(temporary / "starts.bin")
        np.asarray(survey.domains, np.int64)[split.order].tofile(temporary / "domains.bin")
        meta = _meta(data, files, survey, split, tokenizer, train, val)
        (temporary / META).write_text(json.dumps(meta), encoding="utf-8")


def _meta(
    data: PythonData | TextData, files: Sequence[File], survey: Survey, split: Split, tokenizer: Tokenizer,
    train: list[Shard], val: list[Shard],
) -> dict[str, Any]:  # fmt: skip
    dtype = _dtype(tokenizer)
    seen = Tokens(train, dtype), Tokens(val, dtype)
    return {
        "name": data.name,
        "source": source(data),
        "sha256": survey.sha256.hexdigest(),
        "num_documents": len(survey.lengths),
        "num_left_out": survey.num_left_out,
        "num_bytes": survey.num_bytes,
        "tokenizer": tokenizer.to_dict(),
        "vocab_size": tokenizer.vocab_size,
        "dtype": dtype.name,
        "train_tokens": len(seen[0]),
        "val_tokens": len(seen[1]),
        "train_shards": [[shard.path.name, shard.first_byte, shard.num_tokens] for shard in train],
        "val_shards": [[shard.path.name, shard.first_byte, shard.num_tokens] for shard in val],
        "domains": _domain_names(files, survey),
        "cut": split.cut,
        "bigram_bpb": bigram_bits_per_byte(*seen, tokenizer),
        "gzip_bpb": gzip_bits_per_byte(seen[1], tokenizer),
    }


def _dtype(tokenizer: Tokenizer) -> np.dtype[Any]:
    return np.min_scalar_type(tokenizer.vocab_size - 1)


def _domain_names(files: Sequence[File], survey: Survey) -> list[str]:
    return sorted({file.domain for file, digest in zip(files, survey.hashes, strict=True) if digest is not None})


def _survey(data: PythonData | TextData, files: Sequence[File]) -> Survey:
    """Raises DataError when there is no text."""
    survey, owners = Survey(), array("q")
    field_name = data.field if isinstance(data, TextData) else None
    for number, file in enumerate(files):
        before = len(survey.lengths), survey.num_bytes, survey.num_left_out, survey.sha256.copy()
        try:
            _survey_file(data, file.path, field_name, survey)
            survey.hashes.append(survey.sha256.digest())
        except NotText as problem:
            if len(files) == 1 and isinstance(data, TextData):
                raise DataError(f"data.path={data.path} {problem}") from None
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
    return survey


def _survey_file(data: PythonData | TextData, path: Path, field_name: str | None, survey: Survey) -> None:
    alphabet: set[str] = set()
    for document in read_documents(path, field_name):
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
            length += len(text) if data.tokenizer == "chars" else len(raw)
            if data.tokenizer == "chars":
                alphabet.update(text)
        survey.lengths.append(length)
    survey.alphabet |= alphabet


def _write(
    data: PythonData | TextData, files: Sequence[File], survey: Survey, split: Split, tokenizer: Tokenizer, folder: Path
) -> tuple[list[Shard], list[Shard]]:
    """The shards of both parts, from a second reading of the files."""
    place = 0
    with ShardWriter(folder, "train", _dtype(tokenizer)) as train, ShardWriter(folder, "val", _dtype(tokenizer)) as val:
        for number, tokens in _tokens(data, files, survey, tokenizer):
            if split.chosen:
                (val if number in split.chosen else train).write(tokens)
            else:
                train.write(tokens[: max(0, split.train_end - place)])
                val.write(tokens[max(0, split.cut - place) :])
                place += len(tokens)
    return train.shards, val.shards


def _tokens(
    data: PythonData | TextData, files: Sequence[File], survey: Survey, tokenizer: Tokenizer
) -> Iterator[tuple[int, NDArray[Any]]]:
    """The number of a document with each piece of its tokens; of several documents the last is a separator.

    Raises:
        DataError: a file is not what it was when it was read first.
    """
    sha256, number = hashlib.sha256(), -1
    for file, digest in zip(files, survey.hashes, strict=True):
        if digest is None:
            continue
        changed = DataError(f"{file.path} has changed while it was read. Start again when nobody writes to it.")
        try:
            for document in read_documents(file.path, data.field if isinstance(data, TextData) else None):
                if document is None:
                    continue
                number += 1
                sha256.update(b"\0" if number else b"")
                for text in document:
                    sha256.update(text.encode())
                    yield number, _encoded(tokenizer, text, changed)
                if len(survey.lengths) > 1:
                    yield number, tokenizer.encode(SEPARATOR)
        except NotText:
            raise changed from None
        if sha256.digest() != digest:
            raise changed


def _encoded(tokenizer: Tokenizer, text: str, changed: DataError) -> NDArray[Any]:
    try:
        return tokenizer.encode(text)
    except DataError:  # a character that was not there at first
        raise changed from None
