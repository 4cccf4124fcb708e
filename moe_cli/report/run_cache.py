"""What was read of many run folders, kept in outputs/.cache so that a report need not open them again. Only an accelerator.

A run is taken from it while four files of its folder are the ones that were read: by time of change (of the content and of
the file's record), size and inode. Runs at work, and files written within the last two seconds, whose next change a clock
might not tell, are read every time. The index is written whole under another name and renamed; one that is torn, damaged
or of another version is made anew; where it cannot be written there is none. It may be deleted at any time.

N runs, F files of each.
"""

import json
import os
import time
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np

from moe_cli import __version__
from moe_cli.errors import MoeError
from moe_cli.files.reading import Unreadable, read_bytes
from moe_cli.files.writing import guard, make_folder, write_bytes
from moe_cli.runs.folder import Run

NAME = "runs.index"
# Another way to read folders has another number.
MAGIC = f"moe runs 2 {__version__}\n".encode()
FILES = ("config.json", "summary.json", "status.json", "tags.json")
PER_FILE = 4
# With fewer runs to be read anew, writing the index takes longer than it saves.
FEWEST = 100
# The largest index that is read: ten thousand runs take some two million bytes.
MAX_INDEX_BYTES = 2**30
# Files younger than this may change again without a clock telling: some file systems count in seconds.
SETTLED_SECONDS = 2.0
Row = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """Values of N runs: each by its place among the distinct ones; -1: the run has no such entry."""

    values: list[Any]
    codes: np.ndarray

    def take(self, places: np.ndarray) -> "Column":
        """The column of some runs, with the values that occur there."""
        used, codes = np.unique(self.codes[places], return_inverse=True)
        if len(used) and used[0] == -1:
            used, codes = used[1:], codes - 1
        return Column([self.values[place] for place in used], codes.astype(np.int32))


@dataclass(frozen=True)
class Index:
    """What was read: keys (group/run), stamps of the files [N, F * PER_FILE], columns by name."""

    keys: list[str]
    stamps: np.ndarray
    columns: dict[str, Column]


def stamps_of(runs: Sequence[Run]) -> np.ndarray:
    """Which files these are, [N, F * PER_FILE]: nanoseconds of both changes, size and inode; of absent files -1."""
    absent = (-1,) * PER_FILE
    found = []
    for run in runs:
        folder = str(run.path)
        stamp: tuple[int, ...] = ()
        for name in FILES:
            try:
                seen = os.stat(f"{folder}/{name}")
                # An inode may be any unsigned number of 64 bits.
                stamp += (seen.st_mtime_ns, seen.st_ctime_ns, seen.st_size, seen.st_ino - 2**63)
            except OSError:
                stamp += absent
        found.append(stamp)
    return np.array(found, dtype=np.int64).reshape(len(runs), len(FILES) * PER_FILE)


def settled(stamps: np.ndarray) -> np.ndarray:
    """Which of N runs' files have been as they are for a while, and not since the future, [N]."""
    times = stamps.reshape(len(stamps), len(FILES), PER_FILE)[:, :, :2]
    newest: np.ndarray = times.max(axis=(1, 2), initial=-1)
    return newest < (time.time() - SETTLED_SECONDS) * 1e9


def encode(rows: Sequence[Row]) -> dict[str, Column]:
    """Rows by columns. Values of unlike types are told apart, as 1, 1.0 and true are."""
    absent = object()
    # Rows of the same entries in the same order, of which there are few kinds, are turned into columns in one go.
    kinds_of_row: dict[tuple[str, ...], list[int]] = {}
    for place, row in enumerate(rows):
        kinds_of_row.setdefault(tuple(row), []).append(place)
    blocks = [(len(places), dict(zip(names, zip(*(rows[place].values() for place in places), strict=True), strict=True)))
              for names, places in kinds_of_row.items()]  # fmt: skip
    grouped = np.array(list(chain(*kinds_of_row.values())), dtype=np.int64)
    columns = {}
    for name in dict.fromkeys(chain(*kinds_of_row)):
        given = list(chain(*(block.get(name) or repeat(absent, size) for size, block in blocks)))
        keys, kinds = given, set(map(type, given))
        if list in kinds or len(kinds - {str, type(None), object}) > 1:
            keys = [(type(value), json.dumps(value) if isinstance(value, list) else value) for value in given]
        # The first value of each key; without loops of Python, which would take longer than reading the files.
        firsts = dict(zip(reversed(keys), reversed(given), strict=True))
        order = [key for key in dict.fromkeys(keys) if firsts[key] is not absent]
        places = dict(zip(order, range(len(order)), strict=True))
        codes = np.empty(len(rows), dtype=np.int32)
        codes[grouped] = np.fromiter(map(places.get, keys, repeat(-1)), dtype=np.int32, count=len(rows))
        columns[name] = Column([firsts[key] for key in order], codes)
    return columns


def join(one: dict[str, Column], other: dict[str, Column], sizes: tuple[int, int]) -> dict[str, Column]:
    """The columns of both, one below the other."""
    nothing = tuple(Column([], np.full(size, -1, dtype=np.int32)) for size in sizes)
    joined = {}
    for name in {**one, **other}:
        above, below = one.get(name, nothing[0]), other.get(name, nothing[1])
        shifted = np.where(below.codes >= 0, below.codes + len(above.values), -1).astype(np.int32)
        joined[name] = Column(above.values + below.values, np.concatenate([above.codes, shifted]))
    return joined


def read_index(outputs: Path) -> Index | None:
    """The index of an outputs folder; None when there is none, or one that cannot be used."""
    try:
        content = read_bytes(outputs / ".cache" / NAME, MAX_INDEX_BYTES)
        if not content.startswith(MAGIC):
            return None
        head, body = content[len(MAGIC) : len(MAGIC) + 16], content[len(MAGIC) + 16 :]
        checksum, length = int(head[:8], 16), int(head[8:], 16)
        if zlib.crc32(body) != checksum:
            return None
        entry = json.loads(body[:length])
        return _decode(entry["keys"], entry["columns"], np.frombuffer(body[length:], dtype=np.uint8))
    except (
        OSError,
        Unreadable,
        ValueError,
        KeyError,
        TypeError,
        IndexError,
        AttributeError,
        MemoryError,
        RecursionError,
    ):
        return None


def _decode(keys: list[str], columns: dict[str, list[Any]], raw: np.ndarray) -> Index | None:
    size = len(keys)
    stamp_bytes = size * len(FILES) * PER_FILE * 8
    stamps = raw[:stamp_bytes].view(np.int64).reshape(size, len(FILES) * PER_FILE)
    codes = raw[stamp_bytes:].view(np.int32).reshape(len(columns), size)
    decoded = {}
    for number, (name, values) in enumerate(columns.items()):
        if size and not (codes[number].min() >= -1 and codes[number].max() < len(values)):
            return None
        decoded[name] = Column(list(values), codes[number])
    return Index(keys, stamps, decoded)


def write_index(outputs: Path, index: Index) -> None:
    """Keeps it, where the folder can be written; a reader sees the old one or this one."""
    head = json.dumps(
        {"keys": index.keys, "columns": {name: each.values for name, each in index.columns.items()}}
    ).encode()
    codes = [each.codes.astype(np.int32).tobytes() for each in index.columns.values()]
    body = b"".join([head, index.stamps.astype(np.int64).tobytes(), *codes])
    content = MAGIC + f"{zlib.crc32(body):08x}{len(head):08x}".encode() + body
    folder = guard(outputs) / ".cache"
    with suppress(OSError, MoeError):
        write_bytes(make_folder(folder) / NAME, content)
