"""Recognises outputs folders, for the code that writes them and the code that reads data."""

import os
from pathlib import Path

# The name of a file in each outputs folder, in `runs` and in the folder of each sweep.
MARKER = ".moe-outputs"
# Files of every run folder. They identify one that was copied without its outputs folder.
RUN_FILES = ("config.json", "config.yaml", "status.json")


def is_run_folder(folder: str | Path) -> bool:
    """Returns whether a folder has the first files of a run."""
    return all(os.path.isfile(os.path.join(folder, name)) for name in RUN_FILES)


def is_outputs(folder: str | Path) -> bool:
    """Returns whether a folder is an outputs folder, the folder of a sweep, or a run folder."""
    return os.path.lexists(os.path.join(folder, MARKER)) or is_run_folder(folder)
