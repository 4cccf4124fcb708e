"""Folders of the cache as they are used: held against the checksums that were taken when they were built.

The first use reads every file; later ones compare sizes and times with those of that use, and some blocks by chance. What is
damaged is set aside, to be built again.
"""

import json
import os
import random
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import UnionType
from typing import Any

from moe_cli.errors import DataError, UnsafePath
from moe_cli.files.checksums import read_sealed, write_sealed
from moe_cli.files.reading import Unreadable, open_regular, parse_object, read_bytes
from moe_cli.files.writing import new_folder, rename, write_text
from moe_cli.formatting import print_line

META = "meta.json"
Types = type | UnionType
OF_ALL_DATA: Mapping[str, Types] = {
    "name": str, "source": str, "sha256": str, "num_documents": int, "vocab_size": int, "domains": list,
}  # fmt: skip
CHECKSUMS, CHECKED = "checksums.json", ".checked.json"
# How the names of folders begin that are being built, or taken apart.
BUILDING = ".building-"
# A file is checked in blocks of so many bytes, larger ones where that would be more than MAX_BLOCKS; later in so many.
MIN_BLOCK_BYTES, MAX_BLOCKS, SAMPLED_BLOCKS = 2**18, 2**12, 4
# meta.json holds the tokenizer, which may be large.
MAX_META_BYTES = 2**29


def write_checksums(folder: Path) -> None:
    """Takes the checksums of all files of a folder that has just been built."""
    files = {}
    for path in sorted(folder.iterdir()):
        size = path.stat().st_size
        block_bytes = MIN_BLOCK_BYTES
        while size > block_bytes * MAX_BLOCKS:
            block_bytes *= 2
        files[path.name] = {"bytes": size, "block_bytes": block_bytes, "crc32": list(_checksums(path, block_bytes))}
    write_sealed(folder / CHECKSUMS, {"files": files})


def _checksums(path: Path, block_bytes: int) -> Iterator[int]:
    with open_regular(path) as file:
        while block := file.read(block_bytes):
            yield zlib.crc32(block)


def built(folder: Path, what: str, types: Mapping[str, Types]) -> dict[str, Any] | None:
    """What meta.json says of data that are whole; None where they are not there, or are damaged, which is said.

    Args:
        types: what meta.json has to hold.

    Raises:
        DataError: `what` is damaged, and cannot be set aside.
    """
    if not os.path.lexists(folder):
        return None
    try:
        before = os.stat(folder, follow_symlinks=False)
        _check(folder)
        meta = parse_object(read_bytes(folder / META, MAX_META_BYTES))
        for name, kind in types.items():
            if name not in meta or not isinstance(meta[name], kind):
                raise Unreadable(f"{META} does not say {name}")
        return meta
    except (OSError, Unreadable) as problem:
        reason = (
            f"{os.path.basename(problem.filename)} is missing"
            if isinstance(problem, FileNotFoundError)
            else str(problem)
        )
        _set_aside(folder, what, reason, before)
    return None


def just_built(folder: Path, what: str, types: Mapping[str, Types]) -> dict[str, Any]:
    """The same of data that were built a moment ago. Raises DataError: they are damaged already."""
    meta = built(folder, what, types)
    if meta is None:
        raise DataError(f"the {what} in {folder} cannot be read as they were written. Is that disk in order?")
    return meta


def _check(folder: Path) -> None:
    """Raises OSError, Unreadable: a file is not as it was built."""
    content = read_sealed(folder / CHECKSUMS)
    files = content.get("files") if content else None
    if not isinstance(files, dict) or META not in files:
        raise Unreadable(f"{CHECKSUMS} is missing or damaged")
    stamps = {}
    for name, known in files.items():
        if os.path.basename(name) != name or not isinstance(known, dict):
            raise Unreadable(f"{CHECKSUMS} is damaged")
        status = os.stat(folder / name)
        stamps[name] = [status.st_size, status.st_mtime_ns, status.st_ino]
        if status.st_size != known.get("bytes"):
            raise Unreadable(f"{name} has another size")
    try:
        seen = parse_object(read_bytes(folder / CHECKED)) == stamps
    except (FileNotFoundError, Unreadable):
        seen = False
    for name, known in files.items():
        _check_file(folder / name, known, sample=seen)
    if not seen:
        with suppress(OSError, UnsafePath):  # the next use then reads everything again
            write_text(folder / CHECKED, json.dumps(stamps))


def _check_file(path: Path, known: dict[str, Any], sample: bool) -> None:
    """Raises FileNotFoundError, Unreadable: a block that is looked at is not as it was built."""
    block_bytes, checksums = known.get("block_bytes"), known.get("crc32")
    if type(block_bytes) is not int or not 0 < block_bytes < 2**32 or not isinstance(checksums, list):
        raise Unreadable(f"{CHECKSUMS} is damaged")
    places: Any = range(len(checksums))
    if sample and len(checksums) > SAMPLED_BLOCKS:
        places = sorted(random.SystemRandom().sample(places, SAMPLED_BLOCKS))
    try:
        with open_regular(path) as file:
            for place in places:
                file.seek(place * block_bytes)
                if zlib.crc32(file.read(block_bytes)) != checksums[place]:
                    raise Unreadable("has changed")
    except Unreadable as problem:
        raise Unreadable(f"{path.name} {problem}") from None


def _set_aside(folder: Path, what: str, reason: str, before: os.stat_result) -> None:
    """Frees the folder's place, unless another process has put another one there meanwhile."""
    try:
        if os.stat(folder, follow_symlinks=False).st_ino != before.st_ino:
            return
        print_line(f"note: the {what} in {folder} are damaged ({reason}): they are made again.")
        with new_folder(folder.parent, BUILDING) as aside:
            rename(folder, aside / folder.name)
    except FileNotFoundError:
        return
    except OSError as error:
        raise DataError(
            f"the {what} in {folder} are damaged ({reason}), and cannot be made again there: {error.strerror}."
        ) from None
