"""Reads token files: little-endian integers without a header (nanoGPT), or with that of llm.c or numpy.save."""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from moe_cli.config.data import TokenFilesConfig
from moe_cli.data.dataset import source
from moe_cli.data.file_list import find_files, open_file
from moe_cli.data.shards import Shard, Tokens, slice_shards
from moe_cli.data.splits import (
    SPLITS,
    TEST,
    TRAIN,
    VAL,
    cut_with_gap,
    ignored_split_names,
    refuse_unused_fraction,
    split_from_name,
)
from moe_cli.errors import DataError

# The header of llm.c has 256 int32: a magic number, the version, the number of tokens. GPT-2's tokens are uint16, those
# of Llama 3 uint32.
HEADER_INTS = 256
HEADER_BYTES = 4 * HEADER_INTS
MAGIC = {20240520: "uint16", 20240801: "uint32"}
VERSION = 1
NPY_MAGIC = b"\x93NUMPY"
# Names of headers in the description of a corpus.
LLM_C, NPY = "llm.c header", "numpy header"
# The endings of token files in a folder; and those of compressed files, which cannot be mapped.
ENDINGS = (".bin", ".npy")
PACKED = (".gz", ".xz", ".bz2", ".zst", ".zip", ".npz")
# At most this many blocks of a split are hashed.
MAX_HASH_BLOCKS, BLOCK_BYTES = 1024, 2**16


def describe_token_files(data: TokenFilesConfig, outputs: Path | None = None) -> dict[str, Any]:
    """Returns the metadata of token files without reading all of them, in the format of the meta.json of built corpora.

    The hash covers the length of each split and blocks spread evenly over it. It does not depend on where one file ends
    and the next begins. It detects other tokens and another length, but not a change between two blocks.

    Raises:
        DataError: there are no token files; a file is not a token file; a token in these blocks is outside the
            vocabulary.
    """
    listed = find_files(data.path or "", data.exclude, outputs, ENDINGS, hint="For text: data=text")
    files = listed.paths
    names = [path.relative_to(listed.root) if path != listed.root else Path(path.name) for path in files]
    found = _split_files(files, names)
    contents = {path: _content(data, path) for part in found for path in part}
    parts = ([contents[path][0] for path in part] for part in found)
    splits = dict(zip(SPLITS, _split(data, *parts), strict=True))
    used = {shard.path for part in splits.values() for shard in part}
    headers = Counter(header for path, (_, header) in contents.items() if path in used)
    digest = hashlib.sha256(data.dtype.encode())
    for part in filter(None, splits.values()):
        _hash_sample(data, part, digest)
    return {
        "name": data.name,
        "source": source(data),
        "sha256": digest.hexdigest(),
        "num_documents": None,
        "ignored_split_names": None if any(found[VAL:]) else ignored_split_names([Path(name.name) for name in names]),
        "notes": listed.notes,
        "num_skipped": len(files) - sum(map(len, found)),
        "num_bytes": None,
        "tokenizer": None,
        "vocab_size": data.vocab_size,
        "dtype": data.dtype,
        **{f"{name}_tokens": sum(shard.num_tokens for shard in part) for name, part in splits.items()},
        **{
            f"{name}_shards": [[str(shard.path), shard.first_byte, shard.num_tokens] for shard in part]
            for name, part in splits.items()
        },
        "headers": {name: headers[name] for name in (LLM_C, NPY) if headers[name]},
        "domains": ["."],
        "bigram_bpb": None,
        "gzip_bpb": None,
    }


def _split_files(files: Sequence[Path], names: Sequence[Path]) -> tuple[list[Path], list[Path], list[Path]]:
    """Returns the files for training, validation and test, by their names, else by the names of their folders.

    If no file is held out, or none is left for training, all are for training.
    """
    named: dict[int | None, list[Path]] = {}
    for path, name in zip(files, names, strict=True):
        named.setdefault(split_from_name(*name.parts), []).append(path)
    train, val, test = named.get(TRAIN) or named.get(None, []), named.get(VAL, []), named.get(TEST, [])
    return (train, val, test) if train and (val or test) else (list(files), [], [])


def _content(data: TokenFilesConfig, path: Path) -> tuple[Shard, str | None]:
    """Returns the tokens of a file, by its header if it has one, and LLM_C, NPY or None. Raises DataError."""
    if path.suffix.lower() in PACKED:
        raise DataError(f"{path} is compressed, and token files are memory-mapped. Unpack it.")
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        header = np.frombuffer(file.read(HEADER_BYTES).ljust(HEADER_BYTES, b"\0"), "<i4")
        if header.tobytes().startswith(NPY_MAGIC):
            return _npy_content(data, path, file, size)
    if path.suffix.lower() == ".npy":
        raise DataError(f"{path} does not begin like a .npy file. Copy it again.")
    if int(header[0]) not in MAGIC or size < HEADER_BYTES:
        return _shard(data, path, 0, size, None), None
    magic, version, num_tokens = map(int, header[:3])
    if version != VERSION:
        raise DataError(f"{path} has a header of version {version}; only version {VERSION} can be read.")
    _check_dtype(data, path, MAGIC[magic], str(magic))
    return _shard(data, path, HEADER_BYTES, size, num_tokens), LLM_C


def _npy_content(data: TokenFilesConfig, path: Path, file: IO[bytes], size: int) -> tuple[Shard, str]:
    """Returns the tokens of a file that numpy.save wrote."""
    file.seek(0)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    except ValueError as error:
        raise DataError(f"{path} cannot be read as .npy: {str(error).splitlines()[0][:200]}") from None
    if len(shape) != 1:
        raise DataError(f"{path} is an array of shape {shape}. Save one row of tokens: array.reshape(-1)")
    # A negative number is read as one far beyond every vocabulary, and refused for that.
    name = {"i4": "uint32", "u4": "uint32", "i8": "uint64", "u8": "uint64", "u2": "uint16", "u1": "uint8"}.get(
        dtype.str[1:]
    )
    if name is None or dtype.str[0] == ">":
        fitting = "uint16 or uint32, little-endian"
        raise DataError(f"{path} holds {dtype.str[0].strip('<|')}{dtype.name}, not {fitting}: array.astype('<u4')")
    _check_dtype(data, path, name, dtype.name)
    return _shard(data, path, file.tell(), size, shape[0]), NPY


def _check_dtype(data: TokenFilesConfig, path: Path, dtype: str, header: str) -> None:
    """Raises DataError if a header gives another type than data.dtype."""
    if data.dtype != dtype:
        raise DataError(f"{path} holds {dtype}, by its header ({header}). Use data.dtype={dtype}")


def _shard(data: TokenFilesConfig, path: Path, first_byte: int, size: int, num_tokens: int | None) -> Shard:
    """Returns the tokens after a header, which gives `num_tokens`; None means no header."""
    width = np.dtype(data.dtype).itemsize
    if num_tokens is None and size % width:
        raise DataError(f"{path} is {size:,} bytes long, not a multiple of the {width} of data.dtype={data.dtype}.")
    if num_tokens is not None and size != first_byte + num_tokens * width:
        raise DataError(
            f"{path} is {size:,} bytes long, and the {num_tokens:,} tokens of its header take "
            f"{first_byte + num_tokens * width:,}. Copy it again."
        )
    if size == first_byte:
        raise DataError(f"{path} has no tokens. Leave it out: data.exclude")
    return Shard(path, first_byte, (size - first_byte) // width)


def _split(data: TokenFilesConfig, train: list[Shard], val: list[Shard], test: list[Shard]) -> tuple[list[Shard], ...]:
    """Returns the splits: held-out files, at most data.val_tokens of each; else the end of the training tokens.

    Raises:
        DataError: a fraction to hold out has no effect.
    """
    refuse_unused_fraction(data, {part for part, files in ((VAL, val), (TEST, test)) if files}, source(data))
    width = np.dtype(data.dtype).itemsize
    held_out = {"test": test, "val": val}
    for name, fraction in (("test", data.test_fraction), ("val", data.val_fraction / (1 - data.test_fraction))):
        if files := held_out[name]:
            total = sum(shard.num_tokens for shard in files)
            held_out[name] = slice_shards(files, 0, min(total, data.val_tokens or total), width)
        elif fraction:
            total = sum(shard.num_tokens for shard in train)
            end, begin = cut_with_gap(total, fraction, data.val_tokens)
            held_out[name], train = slice_shards(train, begin, total, width), slice_shards(train, 0, end, width)
    return train, held_out["val"], held_out["test"]


def _hash_sample(data: TokenFilesConfig, shards: Sequence[Shard], digest: Any) -> None:
    """Hashes blocks of a split. Raises DataError for a token outside the vocabulary."""
    tokens = Tokens(shards, data.dtype)
    length = BLOCK_BYTES // tokens.dtype.itemsize
    digest.update(f"|{len(tokens)}".encode())
    number = min(MAX_HASH_BLOCKS, -(-len(tokens) // length))
    for first in np.linspace(0, max(0, len(tokens) - length), number).astype(np.int64).tolist():
        block = tokens[first : first + length]
        digest.update(block.tobytes())
        check_tokens(tokens, block, first, data.vocab_size or 0)
    tokens.release()


def check_tokens(tokens: Tokens, block: Any, first: int, vocab_size: int) -> None:
    """Raises DataError if the block, which begins at `first`, has a token outside the vocabulary."""
    if block.max(initial=0) >= vocab_size:
        index = int(np.argmax(block >= vocab_size))
        path, byte = tokens.locate(first + index)
        raise DataError(
            f"{path}, byte {byte:,}: token {int(block[index])} is beyond data.vocab_size={vocab_size}. "
            "Check data.dtype and data.vocab_size."
        )
