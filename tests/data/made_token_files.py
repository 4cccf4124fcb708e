"""Token files as others write them, and corpora made of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_cli.data.corpora import Corpus
from moe_cli.data.shards import Shard, Tokens


class Held(Tokens):
    """Tokens in memory, as if they were in a file."""

    def __init__(self, tokens: NDArray[Any]) -> None:
        super().__init__([], tokens.dtype)
        self.tokens = tokens

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, place: slice) -> NDArray[Any]:
        return self.tokens[place]


def raw(path: Path, tokens: Sequence[int] | NDArray[Any], dtype: str = "uint16") -> Path:
    """As nanoGPT writes them: nothing but integers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.asarray(tokens, np.dtype(dtype).newbyteorder("<")).tofile(path)
    return path


def with_header(
    path: Path,
    tokens: Sequence[int],
    magic: int = 20240520,
    version: int = 1,
    claimed: int | None = None,
    dtype: str = "uint16",
) -> Path:
    """Writes a token file as llm.c does: 256 integers that begin with magic, version, and length, then the tokens."""
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(tokens) if claimed is None else claimed
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header.tobytes() + np.asarray(tokens, np.dtype(dtype).newbyteorder("<")).tobytes())
    return path


def sparse(path: Path, num_bytes: int, planted: dict[int, Sequence[int]], dtype: str = "uint16") -> Path:
    """A file of zeros that takes no room on the disk, but for tokens planted at some positions."""
    width = np.dtype(dtype).itemsize
    with open(path, "wb") as file:
        file.truncate(num_bytes)
        for place, tokens in planted.items():
            file.seek(place * width)
            file.write(np.asarray(tokens, np.dtype(dtype).newbyteorder("<")).tobytes())
    return path


def corpus_of(train: Sequence[Shard], val: Sequence[Shard], vocab_size: int, dtype: str = "uint16") -> Corpus:
    """A corpus of these shards, without a tokenizer."""
    parts = {
        key: [[str(shard.path), shard.first_byte, shard.num_tokens] for shard in shards]
        for key, shards in (("train_shards", train), ("val_shards", val))
    }
    meta = {"vocab_size": vocab_size, "tokenizer": None, "dtype": dtype, "domains": ["."], "sha256": "0"}
    return Corpus(Path(), {**meta, **parts})
