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

# The most files of a split that are open at a time: a process may have a thousand, and published corpora have more shards.
MAX_OPEN = 128
# Tokens that a pass over a whole split looks at together.
BLOCK_TOKENS = 2**20
# Splits of this many tokens may not stay in memory: single windows of them are read.
LARGE_SPLIT_TOKENS = 2**28
# Tokens per file of a built corpus.
SHARD_TOKENS = 2**28


@dataclass(frozen=True)
class Shard:
    """Tokens side by side in a file: little-endian integers from `first_byte` on."""

    path: Path
    first_byte: int
    num_tokens: int


@dataclass(frozen=True, eq=False)
class _Mapped:
    file: mmap.mmap
    tokens: NDArray[Any]
    num_bytes: int


class Tokens:
    """Tokens of several shards as one read-only sequence, taken in slices; those within a shard are no copies.

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

    def __getitem__(self, place: slice) -> NDArray[Any]:
        """Raises DataError when a file has become shorter, is gone or is damaged."""
        start, stop, step = place.indices(len(self))
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

    def locate(self, place: int) -> tuple[Path, int]:
        """Returns the file that holds the token at `place`, and the byte where it begins there."""
        ((number, first, _),) = self._slices_in(place, place + 1)
        shard = self.shards[number]
        return shard.path, shard.first_byte + first * self.dtype.itemsize

    def prefetch(self, start: int, stop: int) -> None:
        """Makes the system read these tokens from disk in the background."""
        for number, first, last in self._slices_in(start, stop):
            mapped, first_byte = self._checked_map(number), self.shards[number].first_byte
            begin = (first_byte + first * self.dtype.itemsize) // mmap.PAGESIZE * mmap.PAGESIZE
            mapped.file.madvise(mmap.MADV_WILLNEED, begin, first_byte + last * self.dtype.itemsize - begin)

    def release(self) -> None:
        """Lets go of the memory through which the files were read. They stay open, and may be read again."""
        for mapped in self._open.values():
            mapped.file.madvise(mmap.MADV_DONTNEED)

    def _slices_in(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yields the shards that tokens lie in, each with the part of it."""
        number = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            end, size = int(self._ends[number]), self.shards[number].num_tokens
            last = min(stop, end)
            yield number, start - end + size, last - end + size
            start, number = last, number + 1

    def _checked_map(self, number: int) -> _Mapped:
        """Returns a mapped shard. Its size is looked at each time: to read behind the end of a file kills a process."""
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
    return DataError(f"{path} has become shorter: {num_bytes:,} bytes, where there were {wanted:,}.")


def slice_shards(shards: Sequence[Shard], start: int, stop: int, itemsize: int) -> list[Shard]:
    """Returns the tokens from `start` to `stop` of shards that follow each other."""
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
