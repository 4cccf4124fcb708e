"""Checksums of what a run writes: taken where it is written, compared where it is read.

A sealed file (summary.json and state.json of a run, checksums.json of a cache) holds the checksum of its own content; the
latter two hold those of the other files of their folder too. A checkpoint marks how far the records had come. One rule for all: a
checksum that is missing means damage, like a wrong one.
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
    """Returns how a file differs from what was marked of it at a step, None if it begins as it did then."""
    if not isinstance(marked, list | tuple) or len(marked) != 3 or any(type(each) is not int for each in marked):
        return f"{path.name} may be damaged: the checkpoint does not say how far it had come"
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


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Writes the content with its checksum: the whole file, or the old one stays."""
    safe = json_safe(content)
    write_json(path, {**safe, CHECKSUM: _sha256(safe)})


def unsealed(content: dict[str, Any]) -> dict[str, Any]:
    """Returns what was sealed. Raises Unreadable: it has another checksum, or none."""
    inner = {key: value for key, value in content.items() if key != CHECKSUM}
    if content.get(CHECKSUM) != _sha256(inner):
        raise Unreadable(
            "is not as it was written: " + ("it has another checksum" if CHECKSUM in content else "it has no checksum")
        )
    return inner


def read_sealed(path: Name) -> dict[str, Any] | None:
    """Returns what was sealed in a file; None when it is absent or, which is noted, not as it was written."""
    content = read_json(path)
    if content is None:
        return None
    try:
        return unsealed(content)
    except Unreadable as problem:
        note_unreadable(path, str(problem))
    return None


def _sha256(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
