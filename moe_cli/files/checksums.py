"""Checksums of what a run records: taken where it is written, held against the files where they are used.

A checkpoint marks how far the records had come; the summary holds its own checksum.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from moe_cli.files.reading import Name, Unreadable, note_unreadable, open_regular, read_json, read_lines

CHECKSUM = "checksum"
_CHUNK_BYTES = 2**20


class Mark(NamedTuple):
    """The beginning of a file: bytes, lines and CRC-32."""

    num_bytes: int = 0
    num_lines: int = 0
    crc: int = 0


def mark(path: Path, before: Mark) -> Mark:
    """All that the file holds by now, once it is on the disk; `before` marks what it held at first."""
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
    place, lines, crc = before
    file.seek(place)
    while chunk := file.read(_CHUNK_BYTES if stop is None else min(_CHUNK_BYTES, stop - place)):
        place, lines, crc = place + len(chunk), lines + chunk.count(b"\n"), zlib.crc32(chunk, crc)
    return Mark(place, lines, crc)


def damage(path: Path, marked: Any, step: int) -> str | None:
    """How a file differs from what was marked of it at a step, None if it begins as it did; what is no mark says nothing."""
    if not isinstance(marked, list | tuple) or len(marked) != 3 or any(type(each) is not int for each in marked):
        return None
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
    rest = f"{left:,} are left" if left < number else "some are not as they were"
    return f"{path.name} was damaged: of {number:,} records up to step {step:,} {rest}"


def _belongs(record: Mapping[str, Any], step: int) -> bool:
    """Whether it was written before the checkpoint of a step."""
    found = record.get("step")
    return isinstance(found, int) and found <= step and not record.get("whole_split")


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content, which is plain JSON, with its checksum."""
    return {**content, CHECKSUM: _sha256(content)}


def read_sealed(path: Name) -> dict[str, Any] | None:
    """The object in a file, without its checksum; None when it is absent or, which is noted, not as it was written.

    A file without a checksum, which another program may have written, is taken as it is.
    """
    content = read_json(path)
    if content is None or (checksum := content.pop(CHECKSUM, None)) is None:
        return content
    if checksum == _sha256(content):
        return content
    note_unreadable(path, "is not as the run wrote it: its checksum is another")
    return None


def _sha256(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
