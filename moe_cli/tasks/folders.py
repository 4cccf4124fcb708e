"""Folders of the cache: built once beside their place, whole or absent, whoever else builds them at the same time."""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from moe_cli.errors import DataError
from moe_cli.tasks.built import BUILDING, META, write_checksums

# Seconds in which a new folder may not be held yet.
JUST_MADE = 5


@contextmanager
def building(folder: Path, what: str) -> Iterator[Path]:
    """A folder to write in, META last, which is then renamed to `folder`; gone if something goes wrong.

    Raises:
        DataError: `what` cannot be written there.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder.parent)
        with _own_folder(folder.parent) as temporary:
            yield temporary
            write_checksums(temporary)
            os.chmod(temporary, 0o755)
            temporary.rename(folder)
    except OSError as error:
        if not (folder / META).is_file():  # not that another job was first
            raise DataError(f"cannot write the {what} to {folder}: {error.strerror}.") from None


@contextmanager
def _own_folder(parent: Path) -> Iterator[Path]:
    """A folder to build in, held as long as this process lives; gone afterwards, unless it was renamed."""
    path = Path(tempfile.mkdtemp(prefix=BUILDING, dir=parent))
    handle = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems know no locks
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(handle)


def _remove_abandoned(parent: Path) -> None:
    """Frees the disk of what killed processes have left half built."""
    for path in parent.glob(BUILDING + "*"):
        with suppress(OSError):  # gone, or held: by a living process, or nobody can tell
            if time.time() - path.stat().st_mtime < JUST_MADE:
                continue
            handle = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(handle)
