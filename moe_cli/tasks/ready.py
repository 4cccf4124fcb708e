"""Ready-made token files: little-endian integers, as nanoGPT writes them, or with the header of llm.c and modded-nanogpt."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moe_cli.config.data import TokenData
from moe_cli.errors import DataError
from moe_cli.tasks.files import find_files, source
from moe_cli.tasks.shards import Shard, Tokens, cut
from moe_cli.tasks.splits import SPLITS, TEST, TRAIN, VAL, cut_with_gap, split_of, unheeded

# 256 int32: a number that says which tokens follow, the version, how many tokens. Of GPT-2's, uint16; of Llama 3's, uint32.
HEADER_INTS = 256
HEADER_BYTES = 4 * HEADER_INTS
MAGIC = {20240520: "uint16", 20240801: "uint32"}
VERSION = 1
# The hash is of at most so many blocks of each split.
BLOCKS, BLOCK_BYTES = 1024, 2**16


def describe_ready(data: TokenData) -> dict[str, Any]:
    """What is known of token files without reading them all; as the meta.json of corpora that are built.

    The hash is of the length of each split and of blocks spread evenly over it, wherever one file ends and the next
    begins: other tokens and another length are noticed, a change between two blocks is not.

    Raises:
        DataError: there are none; one is no such file; a token in those blocks is beyond the vocabulary.
    """
    root, files = find_files(data.path or "")
    if root.is_dir() and root == Path(data.path or ""):
        files = [path for path in files if path.suffix == ".bin"]
        if not files:
            raise DataError(f"{source(data)} has no .bin files. For text: data=text")
    names = [path.relative_to(root) if path != root else Path(path.name) for path in sorted(files)]
    found = _parts(sorted(files), names)
    splits = dict(zip(SPLITS, _split(data, *([_shard(data, path) for path in part] for part in found)), strict=True))
    num_with_header = sum(shard.first_byte == HEADER_BYTES for part in splits.values() for shard in part)
    digest = hashlib.sha256(data.dtype.encode())
    for part in filter(None, splits.values()):
        _sample(data, part, digest)
    return {
        "name": data.name,
        "source": source(data),
        "sha256": digest.hexdigest(),
        "num_documents": None,
        "unheeded": None if any(found[VAL:]) else unheeded([Path(name.name) for name in names]),
        "num_left_out": len(files) - sum(map(len, found)),
        "num_bytes": None,
        "tokenizer": None,
        "vocab_size": data.vocab_size,
        "dtype": data.dtype,
        **{f"{name}_tokens": sum(shard.num_tokens for shard in part) for name, part in splits.items()},
        **{f"{name}_shards": [[str(shard.path), shard.first_byte, shard.num_tokens] for shard in part]
           for name, part in splits.items()},
        "num_with_header": num_with_header,
        "domains": ["."],
        "bigram_bpb": None,
        "gzip_bpb": None,
    }  # fmt: skip


def _parts(files: Sequence[Path], names: Sequence[Path]) -> tuple[list[Path], list[Path], list[Path]]:
    """Files for training, validation and a test, by their names, else by those of the folders they lie in.

    If none is held out so, or none is left to learn from, all are for training.
    """
    named: dict[int | None, list[Path]] = {}
    for path, name in zip(files, names, strict=True):
        named.setdefault(split_of(*name.parts), []).append(path)
    train, val, test = named.get(TRAIN) or named.get(None, []), named.get(VAL, []), named.get(TEST, [])
    return (train, val, test) if train and (val or test) else (list(files), [], [])


def _shard(data: TokenData, path: Path) -> Shard:
    """The tokens of a file, by its header if it has one."""
    size, width = path.stat().st_size, np.dtype(data.dtype).itemsize
    try:
        with open(path, "rb") as file:
            header = np.frombuffer(file.read(HEADER_BYTES).ljust(HEADER_BYTES, b"\0"), "<i4")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    first_byte = 0
    if int(header[0]) in MAGIC and size >= HEADER_BYTES:
        magic, version, num_tokens = map(int, header[:3])
        if version != VERSION:
            raise DataError(f"{path} has a header of version {version}; known is version {VERSION}.")
        if MAGIC[magic] != data.dtype:
            raise DataError(f"{path} holds {MAGIC[magic]}, by its header ({magic}). Use data.dtype={MAGIC[magic]}")
        first_byte = HEADER_BYTES
        if size != HEADER_BYTES + num_tokens * width:
            raise DataError(
                f"{path} is {size:,} bytes long; {num_tokens:,} tokens, as its header says, would make it "
                f"{HEADER_BYTES + num_tokens * width:,}. Was it copied whole?"
            )
    elif size % width:
        raise DataError(
            f"{path} is {size:,} bytes long, which is no multiple of the {width} of data.dtype={data.dtype}."
        )
    if size == first_byte:
        raise DataError(f"{path} holds no tokens.")
    return Shard(path, first_byte, (size - first_byte) // width)


def _split(data: TokenData, train: list[Shard], val: list[Shard], test: list[Shard]) -> tuple[list[Shard], ...]:
    """The splits: what files hold out, at most data.val_tokens of each, else the share at the end of what is for training.

    Raises:
        DataError: data.test_fraction has no effect.
    """
    if test and data.test_fraction:
        raise DataError(f"data.test_fraction={data.test_fraction} has no effect: {source(data)} has files for a test.")
    width = np.dtype(data.dtype).itemsize
    held_out = {"test": test, "val": val}
    for name, fraction in (("test", data.test_fraction), ("val", data.val_fraction / (1 - data.test_fraction))):
        if files := held_out[name]:
            total = sum(shard.num_tokens for shard in files)
            held_out[name] = cut(files, 0, min(total, data.val_tokens or total), width)
        elif fraction:
            total = sum(shard.num_tokens for shard in train)
            end, begin = cut_with_gap(total, fraction, data.val_tokens)
            held_out[name], train = cut(train, begin, total, width), cut(train, 0, end, width)
    return train, held_out["val"], held_out["test"]


def _sample(data: TokenData, shards: Sequence[Shard], digest: Any) -> None:
    """Hashes blocks of a split, and looks whether the vocabulary has their tokens."""
    tokens = Tokens(shards, data.dtype)
    length = BLOCK_BYTES // tokens.dtype.itemsize
    digest.update(f"|{len(tokens)}".encode())
    number = min(BLOCKS, -(-len(tokens) // length))
    for first in np.linspace(0, max(0, len(tokens) - length), number).astype(np.int64).tolist():
        block = tokens[first : first + length]
        digest.update(block.tobytes())
        check_tokens(tokens, block, first, data.vocab_size or 0)
    tokens.release()


def check_tokens(tokens: Tokens, block: Any, first: int, vocab_size: int) -> None:
    """Raises DataError when the block, which begins at `first`, has a token beyond the vocabulary."""
    if block.max(initial=0) >= vocab_size:
        place = int(np.argmax(block >= vocab_size))
        path, byte = tokens.locate(first + place)
        raise DataError(
            f"{path}, byte {byte:,}: token {int(block[place])} is beyond data.vocab_size={vocab_size}. "
            "Is data.dtype what the file holds?"
        )
