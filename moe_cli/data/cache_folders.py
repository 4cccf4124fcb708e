"""Folders of the cache: complete or absent, even if several processes build one at the same time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moe_cli.data.cached import BUILDING, META, write_checksums
from moe_cli.errors import Unwritable
from moe_cli.files.writing import delete_abandoned, ensure_folder, new_folder, rename, write_failure_hint


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
