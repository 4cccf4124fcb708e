"""Builds folders of the cache, and checks them against checksums that were computed when they were built.

A folder is complete or absent, even if several processes build one at the same time.
Every use of a file checks all of it. A large token file is the exception: `BlockChecksums` checks each block when it is
first read. That takes about 10 us per training window and causes no further reads, because the system reads whole
pages. A damaged folder is removed, and built again.
"""

import mmap
import os
import re
import zlib
from array import array
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import UnionType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_cli.errors import DataError, UnsafePath, Unwritable
from moe_cli.files.checksums import read_sealed, write_sealed
from moe_cli.files.reading import Unreadable, open_regular, parse_object, read_bytes
from moe_cli.files.writing import (
    delete,
    delete_abandoned,
    ensure_folder,
    new_folder,
    rename,
    write_bytes,
    write_failure_hint,
)
from moe_cli.formatting import print_line

META = "meta.json"
Types = type | UnionType
COMMON_META_TYPES: Mapping[str, Types] = {
    "name": str,
    "source": str,
    "sha256": str,
    "num_documents": int,
    "vocab_size": int,
    "domains": list,
}
CHECKSUMS_FILE, BLOCK_CHECKSUMS_FILE = "checksums.json", "checksums.bin"
# The prefix of the names of folders that are being built or removed.
BUILDING = ".building-"
# The size of a block, which is a page of the operating system. Token files above WHOLE_BYTES are checked by block.
BLOCK_BYTES, WHOLE_BYTES = 2**12, 2**25
_TOKEN_FILE = re.compile(r"(train|val|test)_\d+\.bin")
# The checksums of 4 TB of tokens.
MAX_CHECKSUM_BYTES = 2**32
# meta.json holds the tokenizer, which may be large.
MAX_META_BYTES = 2**29


def write_checksums(folder: Path) -> None:
    """Writes the checksums of all files of a folder that has just been built."""
    files, checksums = {}, array("I")
    for path in sorted(folder.iterdir()):
        files[path.name] = {"bytes": path.stat().st_size, "first_block": len(checksums)}
        checksums.extend(_checksums(path))
    content = np.asarray(checksums, "<u4").tobytes()
    write_bytes(folder / BLOCK_CHECKSUMS_FILE, content)
    write_sealed(folder / CHECKSUMS_FILE, {"files": files, "crc32": zlib.crc32(content)})


def _checksums(path: Path) -> Iterator[int]:
    with open_regular(path) as file:
        while block := file.read(BLOCK_BYTES):
            yield zlib.crc32(block)


def _read_checksums(folder: Path) -> dict[str, tuple[int, NDArray[np.uint32]]]:
    """Returns the size of each file and the checksums of its blocks. Raises OSError or Unreadable after damage."""
    content = read_sealed(folder / CHECKSUMS_FILE)
    files = content.get("files") if content else None
    if content is None or not isinstance(files, dict) or META not in files:
        raise Unreadable(f"{CHECKSUMS_FILE} is missing or damaged")
    try:
        raw = read_bytes(folder / BLOCK_CHECKSUMS_FILE, MAX_CHECKSUM_BYTES)
    except Unreadable as problem:
        raise Unreadable(f"{BLOCK_CHECKSUMS_FILE} {problem}") from None
    if zlib.crc32(raw) != content.get("crc32"):
        raise Unreadable(f"{BLOCK_CHECKSUMS_FILE} has changed")
    checksums, result = np.frombuffer(raw, "<u4"), {}
    for name, known in files.items():
        size, first = (known.get("bytes"), known.get("first_block")) if isinstance(known, dict) else (None, None)
        if os.path.basename(name) != name or type(size) is not int or type(first) is not int or min(size, first) < 0:
            raise Unreadable(f"{CHECKSUMS_FILE} is damaged")
        result[name] = size, checksums[first : first - (-size // BLOCK_BYTES)]
    return result


def _is_checked_by_reader(name: str, size: int) -> bool:
    return size > WHOLE_BYTES and _TOKEN_FILE.fullmatch(name) is not None


class BlockChecksums:
    """Checks each block of large token files once, when it is first read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            files = _read_checksums(folder)
        except (OSError, Unreadable) as problem:  # `find_built` has read them a moment ago
            raise DataError(f"{folder} has changed while it was opened: {problem}. Start again.") from None
        self._blocks = {
            name: (checksums, np.zeros(len(checksums), bool))
            for name, (size, checksums) in files.items()
            if _is_checked_by_reader(name, size)
        }

    def check(self, name: str, content: mmap.mmap, start: int, stop: int) -> None:
        """Checks the blocks that hold the bytes from `start` to `stop` of a file.

        Raises:
            DataError: a block has changed since it was built. The next use of the folder builds it again.
        """
        if name not in self._blocks:
            return
        checksums, is_checked = self._blocks[name]
        first, last = start // BLOCK_BYTES, -(-stop // BLOCK_BYTES)
        if is_checked[first:last].all():
            return
        for number in range(first, last):
            begin = number * BLOCK_BYTES
            if zlib.crc32(content[begin : begin + BLOCK_BYTES]) != checksums[number]:
                with suppress(OSError, UnsafePath):
                    delete(self.folder / CHECKSUMS_FILE)
                raise DataError(
                    f"{self.folder / name} is damaged: its bytes from {begin:,} to {begin + BLOCK_BYTES:,} have "
                    "changed since it was built. The next use builds it again: start again, or use moe train --resume"
                )
            is_checked[number] = True


def find_built(folder: Path, what: str, types: Mapping[str, Types]) -> dict[str, Any] | None:
    """Returns the content of meta.json; None means that the data are missing or damaged. Damage is reported.

    Args:
        what: the name of the data in messages, a plural.
        types: the required keys of meta.json, with the types of their values.

    Raises:
        DataError: the data are damaged, and cannot be removed.
    """
    if not os.path.lexists(folder):
        return None
    try:
        before = os.stat(folder, follow_symlinks=False)
        _check_files(folder)
        meta = parse_object(read_bytes(folder / META, MAX_META_BYTES))
        for name, kind in types.items():
            if name not in meta or not isinstance(meta[name], kind):
                raise Unreadable(f"{META} has no valid {name}")
        return meta
    except (OSError, Unreadable) as problem:
        reason = (
            f"{os.path.basename(problem.filename)} is missing"
            if isinstance(problem, FileNotFoundError)
            else str(problem)
        )
        _remove_damaged(folder, what, reason, before)
    return None


def _check_files(folder: Path) -> None:
    """Raises OSError or Unreadable if a file has changed since it was built."""
    for name, (size, checksums) in _read_checksums(folder).items():
        if os.stat(folder / name).st_size != size:
            raise Unreadable(f"{name} has another size")
        try:
            if not _is_checked_by_reader(name, size) and [*_checksums(folder / name)] != checksums.tolist():
                raise Unreadable("has changed")
        except Unreadable as problem:
            raise Unreadable(f"{name} {problem}") from None


def _remove_damaged(folder: Path, what: str, reason: str, before: os.stat_result) -> None:
    """Removes a damaged folder, unless another process has replaced it."""
    try:
        if os.stat(folder, follow_symlinks=False).st_ino != before.st_ino:
            return
        print_line(f"note: the {what} in {folder} are damaged ({reason}): they are built again.")
        with new_folder(folder.parent, BUILDING) as aside:
            rename(folder, aside / folder.name)
    except FileNotFoundError:
        return
    except OSError as error:
        raise DataError(
            f"the {what} in {folder} are damaged ({reason}), and cannot be built again: {error.strerror}."
        ) from None


@contextmanager
def atomic_folder(folder: Path, what: str) -> Iterator[Path]:
    """Yields a temporary folder, which is renamed to `folder` at the end. META must be written last.

    After an error the folder is deleted.

    Raises:
        Unwritable: `what` cannot be written there.
    """
    try:
        ensure_folder(folder.parent)
        delete_abandoned(folder.parent, f"{BUILDING}*")
        with new_folder(folder.parent, BUILDING) as temporary:
            yield temporary
            write_checksums(temporary)
            rename(temporary, folder)
    except OSError as error:
        if not (folder / META).is_file():  # else another process has built it first
            raise Unwritable(
                f"cannot write the {what} to {folder}: {error.strerror}. {write_failure_hint(error)}"
            ) from None
