"""Recognition of an outputs folder, for the code that writes it and for the code that reads data."""

import os
from pathlib import Path

# Lies in an outputs folder, in `runs` and in the folder of each sweep.
MARKER = ".moe-outputs"
# Lie in every run folder, also where it was copied to without the folder around it.
RUN_FILES = ("config.json", "config.yaml", "status.json")


def is_run_folder(folder: str | Path) -> bool:
    """Returns whether a folder has the files that every run begins with."""
    return all(os.path.isfile(os.path.join(folder, name)) for name in RUN_FILES)


def is_outputs(folder: str | Path) -> bool:
    """Returns whether a folder is an outputs folder, the folder of a sweep, or a run folder."""
    return os.path.lexists(os.path.join(folder, MARKER)) or is_run_folder(folder)
