"""Writes, appends, locks and deletes below an outputs folder, without following a link out of it.

Every path is split at its outputs folder. Links above and at that folder are the user's own and are followed. The
folders below it are opened one after the other without following links. The file itself is written, renamed or deleted
by the handle of its folder. So link targets of an untrusted run folder are never changed.

New files and folders have the permissions of the umask.
"""

import atexit
import errno
import fcntl
import json
import math
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from moe_cli.errors import MoeError, UnsafePath
from moe_cli.files.marker import MARKER

# The deepest folder that is written in, counted from the outputs folder: SWEEP/RUN/checkpoints/step_00000001.
DEPTH = 4
# The deepest folder of files, counted from the run folder.
RUN_DEPTH = 2
TEMPORARY = ".tmp"
# Seconds after its creation in which a file or folder may not be locked yet.
GRACE_SECONDS = 5
_GUARDED: set[str] = set()
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def guard(outputs: Path) -> Path:
    """Follows no link below this folder from now on, even if it has no marker of an outputs folder."""
    _GUARDED.add(str(outputs.absolute()))
    return outputs


def mark_outputs(folder: Path) -> None:
    """Marks an existing folder as an outputs folder, if it is writable."""
    text = b"Made by moe, which keeps runs here and never reads anything below this folder as data.\n"
    with suppress(OSError), open(folder / MARKER, "xb") as file:
        file.write(text)


def write_text(path: Path, text: str) -> None:
    """Replaces the file atomically. Bytes of a name that are not UTF-8 are written as they are."""
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def write_json(path: Path, content: Any) -> None:
    """Replaces the file atomically."""
    write_text(path, json.dumps(json_safe(content), indent=1) + "\n")


def json_safe(value: Any) -> Any:
    """Returns the value with None for every NaN and infinity, which JSON lacks."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    return value


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces the file, or a link, atomically: writes a temporary file, flushes it to disk and renames it."""
    with replaced(path) as file:
        file.write(content)


@contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """Opens a temporary file that replaces the file, or a link, at the end; it is deleted after an error."""
    name = f".{path.name[:100]}.{os.urandom(4).hex()}{TEMPORARY}"
    with _at(path) as folder:
        try:
            with os.fdopen(
                os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FILE, 0o666, dir_fd=folder), "wb"
            ) as file:
                with suppress(OSError):  # the lock shows that its writer is alive
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield file
                file.flush()
                os.fsync(file.fileno())
                os.replace(name, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with suppress(OSError):
                os.unlink(name, dir_fd=folder)
            raise


def append(path: Path) -> BinaryIO:
    """Opens a file to write at its end; creates it if it does not exist.

    Raises:
        UnsafePath: it is a link or not a regular file.
    """
    with _at(path) as folder:
        _check_regular(path, folder)
        _unshare(path, folder)
        return os.fdopen(_open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, folder), "ab")


def edit(path: Path) -> BinaryIO:
    """Opens an existing file to change it in place. Raises UnsafePath, as `append` does."""
    with _at(path) as folder:
        _check_regular(path, folder)
        _unshare(path, folder)
        return os.fdopen(_open(path, os.O_RDWR, folder), "rb+")


def check_file(path: Path) -> None:
    """Raises UnsafePath if a library that opens the file by name would follow a link."""
    with _at(path) as folder:
        _check_regular(path, folder)


@contextmanager
def hold(path: Path, operation: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Holds a lock file, waiting for it. The operating system releases it when the process ends for any reason.

    Raises:
        UnsafePath: it is a link or not a regular file.
        BlockingIOError: another process holds it, and `operation` is non-blocking.
        OSError: the file system does not support locks.
    """
    with _at(path) as folder:
        _check_regular(path, folder)
        file = os.fdopen(_open(path, os.O_RDWR | os.O_CREAT, folder), "rb+")
    with file:
        fcntl.flock(file, operation)
        yield


@contextmanager
def hold_where_supported(path: Path, operation: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Holds a lock file as `hold` does; has no effect on a file system without locks."""
    with ExitStack() as stack:
        with suppress(OSError):
            stack.enter_context(hold(path, operation))
        yield


def is_held(path: Path, operation: int) -> bool:
    """Returns whether a living process holds a lock file against `operation`. The file is not created."""
    try:
        handle = os.open(path, (os.O_RDONLY if operation == fcntl.LOCK_SH else os.O_RDWR) | _FILE)
    except OSError:
        return False
    try:
        fcntl.flock(handle, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False


def make_folder(path: Path) -> Path:
    """Creates the folder and its parents if they do not exist. Raises MoeError if it cannot."""
    try:
        ensure_folder(path)
    except OSError as error:
        raise MoeError(f"cannot create the folder {path}: {error.strerror}. {write_failure_hint(error)}") from None
    return path


def ensure_folder(path: Path) -> None:
    """Creates the folder, for callers with their own message for an OSError."""
    os.close(_open_folder(path, make=True))


def is_full(error: BaseException) -> bool:
    """Returns whether a write has failed because of a full disk, a quota or the maximum size of a file."""
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if isinstance(error, OSError):
        return error.errno in numbers
    ends = tuple(f"(os error {number})" for number in numbers)
    return type(error).__name__ == "SafetensorError" and str(error).endswith(ends)


def write_failure_hint(error: BaseException) -> str:
    """Returns a hint on what to do after a write below an outputs folder has failed."""
    if is_full(error):
        return "Free space, for example what the trash holds: moe runs clean --older-than 0d --yes"
    return "Choose another outputs folder: --outputs DIR"


@contextmanager
def new_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Creates a folder with a unique name and locks it. At the end it is deleted, unless it was renamed."""
    path = parent / f"{prefix}{os.urandom(4).hex()}"
    try:
        with _at(path) as folder:
            os.mkdir(path.name, dir_fd=folder)
            handle = os.open(path.name, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
    except OSError as error:
        error.filename = str(parent)  # the generated name would not help
        raise
    try:
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield path
    finally:
        with suppress(OSError):
            delete(path)
        os.close(handle)


@cache
def scratch_folder() -> Path:
    """Returns a temporary folder, the same at every call, which is deleted when this process ends."""
    import tempfile

    folder, owner = Path(tempfile.mkdtemp(prefix="moe-")), os.getpid()

    def remove() -> None:
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


def adopt(path: Path) -> None:
    """Flushes a file that a library has written to disk, and sets the permissions of the umask."""
    with _at(path) as folder:
        handle = os.open(path.name, os.O_RDONLY | _FILE, dir_fd=folder)
        try:
            os.fchmod(handle, os.fstat(folder).st_mode & 0o666)
            os.fsync(handle)
        finally:
            os.close(handle)


def flush_folder(path: Path) -> None:
    """Flushes the names in a folder to disk."""
    handle = _open_folder(path)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def rename(source: Path, target: Path) -> None:
    """Moves a file or folder; an empty folder at the target is replaced. Raises UnsafePath, OSError."""
    with _at(target) as target_folder, _at(source) as source_folder:
        os.rename(source.name, target.name, src_dir_fd=source_folder, dst_dir_fd=target_folder)


def delete(path: Path, missing_ok: bool = False) -> None:
    """Deletes a file, a link itself, or a folder with its content. Raises UnsafePath, OSError."""
    with _at(path) as folder, suppress(*[FileNotFoundError] if missing_ok else []):
        if stat.S_ISDIR(os.lstat(path.name, dir_fd=folder).st_mode):
            shutil.rmtree(path.name, dir_fd=folder)
        else:
            os.unlink(path.name, dir_fd=folder)


def delete_empty(path: Path) -> None:
    """Deletes an empty folder. Raises UnsafePath, OSError."""
    with _at(path) as folder:
        os.rmdir(path.name, dir_fd=folder)


def delete_abandoned(parent: Path, pattern: str, is_free: Callable[[Path], bool] = lambda path: True) -> None:
    """Deletes incomplete files and folders of killed processes. `is_free` returns whether no process uses a path."""
    for path in filter(is_free, abandoned(parent, pattern)):
        with suppress(OSError, UnsafePath):
            delete(path)


def abandoned(parent: Path, pattern: str = f".*{TEMPORARY}") -> list[Path]:
    """Returns the temporary files and folders in a folder that no living process has locked."""
    return [path for path in sorted(parent.glob(pattern)) if _is_abandoned(path)]


def is_safe(folder: Path) -> bool:
    """Returns whether a folder exists and no link on its path leads out of the outputs folder."""
    try:
        os.close(_open_folder(folder))
    except (OSError, UnsafePath):
        return False
    return True


def is_inside_outputs(path: Path) -> bool:
    """Returns whether a file is in an outputs folder, by its path."""
    return _is_marked(_root(os.path.normpath(path.absolute().parent)))


def _is_abandoned(path: Path) -> bool:
    try:
        found = path.lstat()
        if time.time() - found.st_mtime < GRACE_SECONDS or not (
            stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)
        ):
            return False
        handle = os.open(path, os.O_RDONLY | _FILE)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(handle)
    except OSError:  # deleted, locked by a living process, or on a file system without locks
        return False
    return True


@contextmanager
def _at(path: Path) -> Iterator[int]:
    """Opens the folder of `path`. Errors name the whole path, not only its last part."""
    try:
        folder = _open_folder(path.parent)
        try:
            yield folder
        finally:
            os.close(folder)
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def _open_folder(folder: Path, make: bool = False) -> int:
    absolute = str(folder.absolute())  # strings: paths would take most of the time of a record
    path = _root(absolute)
    if make:
        os.makedirs(path, exist_ok=True)
    handle = os.open(path, _FOLDER)
    for part in filter(None, absolute[len(path) :].split("/")):
        path = os.path.join(path, part)
        try:
            if make:
                with suppress(FileExistsError):
                    os.mkdir(part, dir_fd=handle)
            inner = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=handle)
        except OSError:
            if _is_link(part, handle):
                raise _unsafe(path, "a link") from None
            raise
        finally:
            os.close(handle)
        handle = inner
    return handle


def _root(folder: str) -> str:
    """Returns the outputs folder around a folder; for a copied run folder, the run folder; else the folder itself."""
    near = [folder]
    while len(near) <= DEPTH:
        near.append(os.path.dirname(near[-1]))
    marked = [path for path in near if _is_marked(path)]
    runs = [] if marked else [path for path in near[: RUN_DEPTH + 1] if os.path.lexists(f"{path}/config.json")]
    return [folder, *runs, *marked][-1]


def _is_marked(folder: str) -> bool:
    return folder in _GUARDED or os.path.lexists(f"{folder}/{MARKER}")


def _is_link(name: str, folder: int) -> bool:
    try:
        return stat.S_ISLNK(os.lstat(name, dir_fd=folder).st_mode)
    except OSError:
        return False


def _check_regular(path: Path, folder: int) -> None:
    try:
        mode = os.lstat(path.name, dir_fd=folder).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise _unsafe(path, "a link" if stat.S_ISLNK(mode) else "no regular file")


def _open(path: Path, flags: int, folder: int) -> int:
    handle = os.open(path.name, flags | _FILE, 0o666, dir_fd=folder)
    os.set_blocking(handle, True)
    return handle


def _unshare(path: Path, folder: int) -> None:
    """Copies the content of a file that has other hard links, such as those of `cp -al`."""
    with suppress(FileNotFoundError):
        if os.lstat(path.name, dir_fd=folder).st_nlink > 1:
            with os.fdopen(os.open(path.name, os.O_RDONLY | _FILE, dir_fd=folder), "rb") as file:
                write_bytes(path, file.read())


def _unsafe(path: Path | str, what: str) -> UnsafePath:
    return UnsafePath(
        f"{path} is {what}, and nothing is written or deleted through it. Remove it, or choose another folder: "
        "--outputs DIR"
    )
