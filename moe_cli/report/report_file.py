"""A file of a report, written whole or not at all."""

import os
from pathlib import Path

from moe_cli.errors import ConfigError, MoeError
from moe_cli.files.writing import is_inside_outputs, write_bytes
from moe_cli.formatting import sanitise

# The name of the generating program is within these bytes of a page.
HEAD_BYTES = 4096


def check_overwrite(path: Path, command: str) -> None:
    """Raises ConfigError if the file exists and is not a page of this command, which must not be overwritten."""
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"cannot read {sanitise(str(path))}: {error.strerror}. Name another file.") from None
    if head and f'<meta name="generator" content="{command}'.encode() not in head:
        raise ConfigError(
            f"{sanitise(str(path))} is there and was not made by {command}: it is left as it is. Name another "
            "file, or remove it."
        )


def write_file(path: Path, content: str | bytes) -> None:
    """Writes the whole file or leaves the old one. A link is followed, but not out of an outputs folder.

    Raises:
        MoeError: it cannot be written.
    """
    path = path if is_inside_outputs(path) else Path(os.path.realpath(path))
    try:
        write_bytes(path, content if isinstance(content, bytes) else content.encode("utf-8", "replace"))
    except OSError as error:
        raise MoeError(f"cannot write {sanitise(str(path))}: {error.strerror}. Name another place.") from None
