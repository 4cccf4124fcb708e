"""The result of an export to one file, and the check of its path."""

import os
from dataclasses import dataclass
from pathlib import Path

from moe_cli.errors import ConfigError
from moe_cli.files.writing import is_inside_outputs
from moe_cli.formatting import sanitise


@dataclass(frozen=True)
class ModelFile:
    """A model that was exported to one file.

    Attributes:
        kind: what the file holds, for people.
        files: the file, and its tokenizer.
        lacks_tokenizer: whether the model reads text, and its tokenizer was not written.
        difference: the largest difference of logits to those of the run; None if it was not measured.
    """

    run: str
    step: int
    path: Path
    kind: str
    num_bytes: int
    files: tuple[Path, ...]
    lacks_tokenizer: bool
    difference: float | None = None


def check_target(path: Path, force: bool) -> None:
    """Raises ConfigError where the file cannot be written."""
    shown = sanitise(str(path))
    if path.is_dir():
        raise ConfigError(f"{shown} is a folder. Name a file that does not exist.")
    if is_inside_outputs(path):
        raise ConfigError(f"{shown} is in a folder of runs. Name another place.")
    if os.path.lexists(path) and not force:
        raise ConfigError(f"{shown} exists. Name another file, or replace it with --force.")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"there is no folder {sanitise(str(path.absolute().parent))}. Make it, or name another file.")
