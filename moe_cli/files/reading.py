"""Reads files of run, sweep, outputs and cache folders: regular files only, with bounds and checks.

Such folders may be copied, edited, damaged or untrusted. An unusable file raises `Unreadable` with the reason, or is
noted with it. The command then continues with the other files and reports this one at its end.
"""

import errno
import hashlib
import json
import logging
import math
import os
import stat
import sys
from collections.abc import Callable, Iterator
from io import BufferedReader
from typing import IO, Any, TypeGuard, TypeVar

# The largest JSON file and the longest line of a .jsonl file that are read.
MAX_BYTES = 2**24
# Limits of valid JSON: the depth of nesting, and finite floats.
MAX_DEPTH, MAX_NUMBER = 64, sys.float_info.max
# The year 10000, in seconds since 1970.
MAX_TIME = 253_402_300_800
# At most this many files with problems are recorded.
MAX_NOTES = 10_000
_KINDS = {
    stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}
Name = str | os.PathLike[str]
T = TypeVar("T")
# By path: the reason why a file or folder is unusable, and a one-word label.
_notes: dict[str, tuple[str, str]] = {}


class Unreadable(Exception):
    """An existing file cannot be used. The message is the reason, to be printed after the file's name."""


def kind_of(mode: int) -> str | None:
    """Returns the kind of a special file; None means a regular file or a folder."""
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return None
    return _KINDS.get(stat.S_IFMT(mode), "special file")


def hash_file(path: Name) -> str:
    """Returns the SHA-256 of a file. Raises OSError or Unreadable if it cannot be read."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_regular(path: Name, max_bytes: int | None = None) -> BufferedReader:
    """Opens a regular file for reading. The call never blocks, even if the file was replaced by a pipe or device.

    Raises:
        FileNotFoundError: the file does not exist.
        Unreadable: it is of another kind, has more than `max_bytes`, or cannot be opened.
    """
    return os.fdopen(_open_descriptor(path, max_bytes)[0], "rb")


def _open_descriptor(path: Name, max_bytes: int | None) -> tuple[int, int]:
    """Returns the descriptor of the file that `open_regular` opens, and the size of the file in bytes."""
    try:
        _check_kind(os.stat(path))  # first, because opening a device may have effects
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except FileNotFoundError:
        if os.path.islink(path):
            raise Unreadable("is a broken link") from None
        raise
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) in (errno.ENOTDIR, errno.ENAMETOOLONG):  # the file cannot exist
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path)) from None
        raise Unreadable(f"cannot be opened: {getattr(error, 'strerror', None) or error}") from None
    try:
        status = os.fstat(descriptor)
        _check_kind(status)
        if max_bytes is not None and status.st_size > max_bytes:
            raise Unreadable(f"has {status.st_size:,} bytes, at most {max_bytes:,} are read")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, status.st_size


def _check_kind(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise Unreadable(f"is a {kind_of(status.st_mode) or 'folder'}, not a file")


def read_bytes(path: Name, max_bytes: int = MAX_BYTES) -> bytes:
    """Returns the content of a regular file. Raises FileNotFoundError, Unreadable."""
    # Without a file object, which would take as long as everything else here: a report reads thousands of small files.
    descriptor, size = _open_descriptor(path, max_bytes)
    try:
        content = os.read(descriptor, size + 1)
        if len(content) != size:  # it has grown or shrunk, or is on a file system that does not give sizes
            while len(content) <= max_bytes and (more := os.read(descriptor, max_bytes + 1 - len(content))):
                content += more
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror}") from None
    finally:
        os.close(descriptor)
    if len(content) > max_bytes:
        raise Unreadable(f"has more than {max_bytes:,} bytes")
    return content


def parse_object(content: bytes) -> dict[str, Any]:
    """Returns the JSON object in `content`, with finite numbers and bounded depth. Raises Unreadable."""
    found = parse_json(content)
    if not isinstance(found, dict):
        raise Unreadable(f"is JSON, but no object: {type(found).__name__}")
    return found


def parse_json(content: bytes) -> Any:
    """Returns the JSON in `content`, with finite numbers and bounded depth. Raises Unreadable."""
    try:
        found = _DECODER.decode(content.decode())
    except RecursionError:
        raise Unreadable(f"is nested more than {MAX_DEPTH} deep") from None
    except UnicodeDecodeError:
        raise Unreadable("is not UTF-8 text") from None
    except ValueError as error:
        raise Unreadable(f"is not valid JSON: {str(error)[:80]}" if content else "is empty") from None
    _check_value(found)
    return found


def _refuse(text: str) -> Any:
    raise Unreadable(f"holds the number {text}")


_DECODER = json.JSONDecoder(parse_constant=_refuse)


def _check_value(value: Any) -> None:
    """Raises Unreadable for a number that is not a finite float, or for deep nesting.

    It is called for every file, so it is one loop without recursion.
    """
    level: list[Any] = [[value]]
    for _ in range(MAX_DEPTH + 2):
        below: list[Any] = []
        for holder in level:
            for item in holder.values() if type(holder) is dict else holder:
                kind = type(item)
                if kind is float or kind is int:
                    if not -MAX_NUMBER <= item <= MAX_NUMBER:
                        digits = f"a number out of range, of {math.log10(abs(item)):.0f} digits"
                        raise Unreadable(f"holds {digits if kind is int else f'the number {item}'}")
                elif kind is dict or kind is list:
                    below.append(item)
        if not below:
            return
        level = below
    raise Unreadable(f"is nested more than {MAX_DEPTH} deep")


def read_json(path: Name, max_bytes: int = MAX_BYTES) -> dict[str, Any] | None:
    """Returns the object in a file; None when it is absent or, which is noted, cannot be used."""
    return read_parsed(path, parse_object, max_bytes)


def read_parsed(path: Name, parse: Callable[[bytes], T], max_bytes: int = MAX_BYTES) -> T | None:
    """Returns the parsed content of a file; None when it is absent or, which is noted, cannot be used.

    Args:
        parse: raises Unreadable.
    """
    try:
        content = parse(read_bytes(path, max_bytes))
    except FileNotFoundError:
        content = None
    except Unreadable as problem:
        note_unreadable(path, str(problem))
        return None
    if _notes:
        _notes.pop(os.fspath(path), None)
    return content


def read_lines(path: Name, last_bytes: int | None = None) -> Iterator[dict[str, Any]]:
    """Yields the records of a .jsonl file, or of its last bytes. Unusable records are skipped.

    They are noted, except one that is cut off at either end, for example because its writer was killed.
    """
    try:
        file = open_regular(path)
    except FileNotFoundError:
        return
    except Unreadable as problem:
        note_unreadable(path, str(problem))
        return
    with file:
        yield from _records(path, file, last_bytes)


def _records(path: Name, file: IO[bytes], last_bytes: int | None) -> Iterator[dict[str, Any]]:
    left_out, first = 0, ""
    if last_bytes is not None and (begin := file.seek(0, os.SEEK_END) - last_bytes) > 0:
        file.seek(begin)
        file.readline(MAX_BYTES)
    else:
        file.seek(0)
    number = 0
    try:
        while line := file.readline(MAX_BYTES):
            number += 1
            if len(line) == MAX_BYTES:  # the rest cannot be records of this program
                left_out, first = left_out + 1, first or f"line {number} is longer than {MAX_BYTES:,} bytes"
                break
            try:
                record = parse_object(line)
            except Unreadable as problem:
                if line.endswith(b"\n") and line.strip():
                    left_out += 1
                    first = first or f"line {number}{' of its end' if last_bytes else ''} {problem}"
                continue
            yield record
    except OSError as error:
        left_out, first = left_out + 1, f"it cannot be read: {error.strerror}"
    if left_out:
        note_unreadable(path, f"{left_out:,} of {number:,} lines left out; {first}")


def number_in(value: Any) -> float | None:
    """Returns the value if it is a finite number; else None, because files may be damaged."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -MAX_NUMBER <= value <= MAX_NUMBER:
        return None
    return float(value)


def whole_number_in(value: Any) -> int | None:
    """Returns the value if it is an integer of at least 0 and below 2^63; else None."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63 else None


def time_in(value: Any) -> float | None:
    """Returns the value if it is a possible time, in seconds since 1970; else None."""
    number = number_in(value)
    return number if number is not None and 0 <= number < MAX_TIME else None


def is_path(value: Any) -> TypeGuard[str]:
    """Returns whether the operating system accepts the value as a path."""
    try:
        return isinstance(value, str) and b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False


def note_unreadable(path: Name, why: str, label: str = "unreadable") -> None:
    """Records an unusable file or folder, to be reported at the end of the command."""
    if len(_notes) < MAX_NOTES and _notes.get(os.fspath(path)) != (label, why):
        _notes[os.fspath(path)] = label, why
        logging.getLogger("moe_cli").info("%s: %s %s", label, path, why)


def noted() -> list[str]:
    """Returns a line for each note since the last `forget_notes`, such as `unreadable: FILE is empty`."""
    return [f"{label}: {path} {why}" for path, (label, why) in _notes.items()]


def forget_notes() -> None:
    _notes.clear()
