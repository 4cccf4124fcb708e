"""Checksums of files: computed when the files are written, checked when they are read.

A sealed file (summary.json and state.json of a run, checksums.json of a cache) has a checksum of its own content. The
latter two also have checksums of the other files of their folder. A checkpoint marks the length of the records. A
missing checksum means damage, like a wrong one.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from moe_cli.files.reading import Name, Unreadable, note_unreadable, open_regular, read_json, read_lines
from moe_cli.files.writing import json_safe, write_json

CHECKSUM = "checksum"
_CHUNK_BYTES = 2**20


class Mark(NamedTuple):
    """The beginning of a file: bytes, lines and CRC-32."""

    num_bytes: int = 0
    num_lines: int = 0
    crc: int = 0


def mark(path: Path, before: Mark) -> Mark:
    """Returns the mark of the file's current content, after it is synced to disk; `before` is its earlier mark."""
    try:
        with open_regular(path) as file:
            found = _extended(file, before, None)
            os.fsync(file.fileno())
    except FileNotFoundError:
        return Mark()
    except Unreadable as problem:
        note_unreadable(path, str(problem))
        return before
    return found


def _extended(file: Any, before: Mark, stop: int | None) -> Mark:
    position, lines, crc = before
    file.seek(position)
    while chunk := file.read(_CHUNK_BYTES if stop is None else min(_CHUNK_BYTES, stop - position)):
        position, lines, crc = position + len(chunk), lines + chunk.count(b"\n"), zlib.crc32(chunk, crc)
    return Mark(position, lines, crc)


def damage(path: Path, marked: Any, step: int) -> str | None:
    """Returns how a file differs from its mark at a step; None means that it begins with the marked content."""
    if not isinstance(marked, list | tuple) or len(marked) != 3 or any(type(number) is not int for number in marked):
        return f"{path.name} may be damaged: the checkpoint does not mark its length"
    known = Mark(*marked)
    try:
        with open_regular(path) as file:
            if _extended(file, Mark(), known.num_bytes) == known:
                return None
    except (FileNotFoundError, Unreadable) as problem:
        if isinstance(problem, FileNotFoundError) and not known.num_bytes:
            return None
    left = sum(1 for record in read_lines(path) if _belongs(record, step))
    number = known.num_lines
    rest = f"{left:,} are left" if left < number else "some have changed"
    return f"{path.name} was damaged: of {number:,} records up to step {step:,} {rest}"


def _belongs(record: Mapping[str, Any], step: int) -> bool:
    """Returns whether a record was written before the checkpoint of a step."""
    found = record.get("step")
    return isinstance(found, int) and found <= step and not record.get("whole_split")


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Writes the content with its checksum: the whole file, or the old one stays."""
    safe = json_safe(content)
    write_json(path, {**safe, CHECKSUM: _sha256(safe)})


def unsealed(content: dict[str, Any]) -> dict[str, Any]:
    """Returns the sealed content. Raises Unreadable if its checksum is wrong or missing."""
    inner = {key: value for key, value in content.items() if key != CHECKSUM}
    if content.get(CHECKSUM) != _sha256(inner):
        raise Unreadable(
            "is not as it was written: " + ("it has another checksum" if CHECKSUM in content else "it has no checksum")
        )
    return inner


def read_sealed(path: Name) -> dict[str, Any] | None:
    """Returns the sealed content of a file; None if it is absent or, with a note, has a wrong or missing checksum."""
    content = read_json(path)
    if content is None:
        return None
    try:
        return unsealed(content)
    except Unreadable as problem:
        note_unreadable(path, str(problem))
    return None


_CANONICAL = json.JSONEncoder(sort_keys=True)


def _sha256(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(_CANONICAL.encode(content).encode()).hexdigest()
