"""The tokens of a split: one or more files, memory-mapped, read and written as one sequence.

A slice may begin in one file and end in another, so that no tokens are lost at the end of a file. Positions are 64-bit.
"""

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import IO, Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import DTypeLike, NDArray

from moe_cli.data.cached import BlockChecksums
from moe_cli.data.file_list import open_file
from moe_cli.errors import DataError

# At most this many files of a split are open at a time: a process may open a thousand, and corpora have more shards.
MAX_OPEN = 128
# Tokens per step of a pass over a whole split.
BLOCK_TOKENS = 2**20
# Splits of at least this many tokens are read in single windows, because they may not fit into memory.
LARGE_SPLIT_TOKENS = 2**28
# Tokens per file of a built corpus.
SHARD_TOKENS = 2**28


@dataclass(frozen=True)
class Shard:
    """A sequence of tokens in a file: little-endian integers from `first_byte` on."""

    path: Path
    first_byte: int
    num_tokens: int


@dataclass(frozen=True, eq=False)
class _Mapped:
    file: mmap.mmap
    tokens: NDArray[Any]
    num_bytes: int


class Tokens:
    """Tokens of several shards as one read-only sequence of slices. A slice within one shard is not a copy.

    With `random_access`, the system reads only the requested pages, without readahead.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        dtype: DTypeLike,
        random_access: bool = False,
        checksums: BlockChecksums | None = None,
    ) -> None:
        self.shards = [shard for shard in shards if shard.num_tokens]
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.random_access = random_access
        self.checksums = checksums
        self._open: WeakValueDictionary[int, _Mapped] = WeakValueDictionary()
        self._ends = np.cumsum([shard.num_tokens for shard in self.shards], dtype=np.int64)
        self._mapped = lru_cache(maxsize=MAX_OPEN)(self._map)

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.shards else 0

    def __getitem__(self, key: slice) -> NDArray[Any]:
        """Returns a slice with step 1. Raises DataError if a file is shorter than before, missing or damaged."""
        start, stop, step = key.indices(len(self))
        assert step == 1
        pieces = [self._piece(*piece) for piece in self._slices_in(start, max(start, stop))]
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else np.empty(0, self.dtype)

    def _piece(self, number: int, first: int, last: int) -> NDArray[Any]:
        mapped = self._checked_map(number)
        if self.checksums is not None:
            shard, width = self.shards[number], self.dtype.itemsize
            start = shard.first_byte + first * width
            self.checksums.check(shard.path.name, mapped.file, start, start + (last - first) * width)
        return mapped.tokens[first:last]

    def __iter__(self) -> Iterator[int]:
        for block in blocks(self):
            yield from block.tolist()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:], dtype=dtype)

    def tolist(self) -> list[int]:
        return list(self)

    def locate(self, position: int) -> tuple[Path, int]:
        """Returns the file that holds the token at `position`, and the byte where it begins there."""
        ((number, first, _),) = self._slices_in(position, position + 1)
        shard = self.shards[number]
        return shard.path, shard.first_byte + first * self.dtype.itemsize

    def prefetch(self, start: int, stop: int) -> None:
        """Asks the system to read these tokens from the disk in the background."""
        for number, first, last in self._slices_in(start, stop):
            mapped, first_byte = self._checked_map(number), self.shards[number].first_byte
            begin = (first_byte + first * self.dtype.itemsize) // mmap.PAGESIZE * mmap.PAGESIZE
            mapped.file.madvise(mmap.MADV_WILLNEED, begin, first_byte + last * self.dtype.itemsize - begin)

    def release(self) -> None:
        """Releases the memory of the mapped files. They stay open and can be read again."""
        for mapped in self._open.values():
            mapped.file.madvise(mmap.MADV_DONTNEED)

    def _slices_in(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yields the index of each shard that has some of these tokens, with their range in it."""
        number = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            end, size = int(self._ends[number]), self.shards[number].num_tokens
            last = min(stop, end)
            yield number, start - end + size, last - end + size
            start, number = last, number + 1

    def _checked_map(self, number: int) -> _Mapped:
        """Returns a mapped shard. Checks its size, because a read beyond the end of a file kills the process."""
        mapped = self._mapped(number)
        if mapped.file.size() < mapped.num_bytes:
            raise _truncated_error(self.shards[number].path, mapped.file.size(), mapped.num_bytes)
        return mapped

    def _map(self, number: int) -> _Mapped:
        shard = self.shards[number]
        wanted = shard.first_byte + shard.num_tokens * self.dtype.itemsize
        try:
            with open_file(shard.path) as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: the file is empty
            raise DataError(f"{shard.path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
        if len(mapped) < wanted:
            raise _truncated_error(shard.path, len(mapped), wanted)
        if self.random_access:
            mapped.madvise(mmap.MADV_RANDOM)
        tokens = np.frombuffer(mapped, self.dtype, shard.num_tokens, shard.first_byte)
        self._open[number] = result = _Mapped(mapped, tokens, wanted)
        return result


def blocks(tokens: Tokens | NDArray[Any], overlap: int = 0) -> Iterator[NDArray[Any]]:
    """Yields all tokens in arrays of BLOCK_TOKENS, each with `overlap` tokens of the next."""
    for first in range(0, len(tokens), BLOCK_TOKENS):
        yield tokens[first : first + BLOCK_TOKENS + overlap]


def _truncated_error(path: Path, num_bytes: int, wanted: int) -> DataError:
    return DataError(f"{path} has become shorter: it has {num_bytes:,} bytes, and had {wanted:,}.")


def slice_shards(shards: Sequence[Shard], start: int, stop: int, itemsize: int) -> list[Shard]:
    """Returns shards of the tokens from `start` to `stop` of a sequence of shards."""
    parts, passed = [], 0
    for shard in shards:
        first, last = max(start - passed, 0), min(stop - passed, shard.num_tokens)
        if first < last:
            parts.append(Shard(shard.path, shard.first_byte + first * itemsize, last - first))
        passed += shard.num_tokens
    return parts


class ShardWriter:
    """Writes a split to files train_0000.bin, train_0001.bin ... of SHARD_TOKENS each."""

    def __init__(self, folder: Path, split: str, dtype: DTypeLike) -> None:
        self.folder = folder
        self.split = split
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.shards: list[Shard] = []
        self._file: IO[bytes] | None = None

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, tokens: NDArray[Any]) -> None:
        while len(tokens):
            if self._file is None or self.shards[-1].num_tokens == SHARD_TOKENS:
                self._next_file()
            assert self._file is not None
            last = self.shards[-1]
            piece, tokens = np.split(tokens, [SHARD_TOKENS - last.num_tokens])
            self._file.write(piece.astype(self.dtype, copy=False).tobytes())
            self.shards[-1] = Shard(last.path, 0, last.num_tokens + len(piece))

    def _next_file(self) -> None:
        if self._file is not None:
            self._file.close()
        path = self.folder / f"{self.split}_{len(self.shards):04}.bin"
        self._file = open(path, "wb")  # noqa: SIM115 - closed on leaving
        self.shards.append(Shard(path, 0, 0))
