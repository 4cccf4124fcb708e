"""Reads and writes safetensors files a few rows at a time, so that a large model needs little memory.

A file is: the length of the header in 8 bytes, the header as JSON, the values. Everything in a header is checked, since
the file may be damaged or untrusted. Values are read as float32.
"""

import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from moe_cli.files.reading import Unreadable, open_regular, parse_object
from moe_cli.formatting import foreign_name

# The longest header that is read. That of a model of 100,000 tensors is half as long.
MAX_HEADER_BYTES = 2**25
# The values of one read.
CHUNK_VALUES = 2**22
# The types that are read, and the bytes of a value.
DTYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
Values = NDArray[np.float32]


@dataclass(frozen=True)
class Entry:
    """The place of one tensor in a file, in bytes behind the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class TensorFile:
    """A safetensors file that is open for reading; closed by `with`.

    Raises:
        FileNotFoundError: the file does not exist.
        Unreadable: it is no valid safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self._file = open_regular(path)
        try:
            size = os.fstat(self._file.fileno()).st_size
            self._start, self.entries = _read_header(self._file, size)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "TensorFile":
        return self

    def __exit__(self, *reason: object) -> None:
        self._file.close()

    def read(self, name: str, first: int, count: int) -> Values:
        """Returns `count` values of a tensor from index `first` of its flat values. Raises Unreadable."""
        entry = self.entries[name]
        width = DTYPES[entry.dtype]
        self._file.seek(self._start + entry.begin + first * width)
        content = self._file.read(count * width)
        if len(content) != count * width:
            raise Unreadable(f"ends inside the tensor {name}")
        return _as_float32(content, entry.dtype)


@contextmanager
def open_tensors(
    paths: Iterable[Path],
) -> Iterator[tuple[dict[str, tuple[int, ...]], Callable[[str, int, int], Values]]]:
    """Opens the files of one model. A tensor that several files have is read from the first of them.

    Yields the shapes by name, and a function that reads `number` rows of a tensor from row `first` on.
    """
    with ExitStack() as stack:
        parts = [stack.enter_context(TensorFile(path)) for path in paths]

        def read(name: str, first: int, number: int) -> Values:
            return next(part for part in parts if name in part.entries).read(name, first, number)

        yield {name: entry.shape for part in reversed(parts) for name, entry in part.entries.items()}, read


def _as_float32(content: bytes, dtype: str) -> Values:
    if dtype == "BF16":  # the upper half of a float32
        return (np.frombuffer(content, "<u2").astype(np.uint32) << 16).view(np.float32)
    kind = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype]
    return np.frombuffer(content, kind).astype(np.float32, copy=False)


def _read_header(file: BufferedReader, size: int) -> tuple[int, dict[str, Entry]]:
    """Returns the position of the first value, and the tensors by name."""
    prefix = file.read(8)
    if len(prefix) < 8:
        raise Unreadable("is too short for a safetensors file")
    (length,) = struct.unpack("<Q", prefix)
    if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
        raise Unreadable(f"is no safetensors file: its header would have {length:,} bytes")
    header = parse_object(file.read(length))
    header.pop("__metadata__", None)
    entries = {name: _entry(name, described) for name, described in header.items()}
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != end:
            raise Unreadable(f"has tensors that overlap or leave gaps, at {foreign_name(name)}")
        end = entry.end
    if 8 + length + end != size:
        raise Unreadable(f"has {size - 8 - length:,} bytes of values, its header says {end:,}")
    return 8 + length, entries


def _entry(name: str, described: Any) -> Entry:
    """Returns the checked description of a tensor. Raises Unreadable."""
    values: dict[str, Any] = described if isinstance(described, dict) else {}
    dtype, shape, offsets = (values.get(key) for key in ("dtype", "shape", "data_offsets"))
    shape, offsets = shape or [], offsets or []
    lists = isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2 and len(shape) <= 8
    if not lists or any(type(number) is not int or not 0 <= number < 2**48 for number in [*shape, *offsets]):
        raise Unreadable(f"describes the tensor {foreign_name(name)} in a way that cannot be")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise Unreadable(
            f"has the tensor {foreign_name(name)} of type {foreign_name(str(dtype))}; read are {', '.join(DTYPES)}"
        )
    if offsets[1] - offsets[0] != math.prod(shape) * DTYPES[dtype]:
        raise Unreadable(f"has the tensor {foreign_name(name)} of shape {shape} in {offsets[1] - offsets[0]:,} bytes")
    return Entry(dtype, tuple(shape), offsets[0], offsets[1])


@dataclass(frozen=True)
class NewTensor:
    """A float32 tensor to write: `chunks` yields its flat values in order, a part at a time."""

    name: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[Values]]

    @property
    def num_bytes(self) -> int:
        return 4 * math.prod(self.shape)


def write_tensors(
    file: BinaryIO, tensors: Sequence[NewTensor], on_bytes: Callable[[int], object] = lambda n: n
) -> None:
    """Writes a safetensors file.

    Args:
        on_bytes: called with the number of bytes after each part.
    """
    header: dict[str, Mapping[str, Any]] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        begin, end = end, end + tensor.num_bytes
        header[tensor.name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for tensor in tensors:
        written = 0
        for values in tensor.chunks():
            content = np.ascontiguousarray(values, "<f4").data
            file.write(content)
            written += content.nbytes
            on_bytes(content.nbytes)
        assert written == tensor.num_bytes, tensor.name


def running_total(on_total: Callable[[int], object]) -> Callable[[int], None]:
    """Returns a function that adds numbers up, and calls `on_total` with each sum."""
    total = 0

    def add(number: int) -> None:
        nonlocal total
        total += number
        on_total(total)

    return add


def chunk_ranges(first: int, count: int) -> Iterator[tuple[int, int]]:
    """Yields (start, number) of parts of at most CHUNK_VALUES values."""
    for start in range(first, first + count, CHUNK_VALUES):
        yield start, min(CHUNK_VALUES, first + count - start)
