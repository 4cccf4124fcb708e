"""sweep.json in the folder of a sweep: its question, its baseline, its commands, and the looks at its verdicts.

    name, created   of the folder
    question        of the named sweep that was run last in this folder
    baseline        the settings of the baseline; null: the dense model
    commands        a record for each command: time, words, seeds, where, version, and its declarations
    tuning          the learning rates tuned before the comparison, see tuning_record.py; absent without tuning
    trials_of       in the folder of trials: the sweep that they tune
    looks           a record for each time that verdicts were shown on more seeds than before, see looks.py

A command without a question and a baseline, such as one typed by hand, does not change the recorded ones.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from moe_cli.files.reading import read_json
from moe_cli.files.writing import hold, rename, write_json

SWEEP_FILE, DAMAGED = "sweep.json", "sweep.json.damaged"


def read_record(folder: Path) -> dict[str, Any]:
    """Returns the contents of sweep.json; empty if it is missing or cannot be read."""
    return read_json(folder / SWEEP_FILE) or {}


def change_record(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Writes the result of `change` on the record, unless it is unchanged. A lock serialises concurrent writers.

    Raises:
        OSError: the folder cannot be written.
    """
    with ExitStack() as stack:
        with suppress(OSError):  # file systems without locks
            stack.enter_context(hold(folder / ".sweep.lock"))
        old = read_record(folder)
        if not old and os.path.lexists(folder / SWEEP_FILE):  # it may be mended by hand
            rename(folder / SWEEP_FILE, folder / DAMAGED)
        new = change(old)
        if new != old:
            write_json(folder / SWEEP_FILE, new)


def entries(record: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Returns the records in the list `name`. Other entries are skipped."""
    found = record.get(name)
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def record_command(
    folder: Path,
    overrides: Sequence[str],
    declared: Mapping[str, Any],
    *,
    seeds: Sequence[int],
    where: Sequence[str],
    version: str | None,
    also: Mapping[str, Any] | None = None,
) -> None:
    """Adds a command to the record of a sweep; one that is equal to the last is not added again.

    Args:
        declared: the question and the baseline, where the command declares them. They replace those of the sweep, which
            stay in the command that declared them.
        also: further entries of the record, such as `tuning`.
    """
    command = {"words": list(overrides), "seeds": list(seeds), "where": list(where), "version": version, **declared}

    def change(old: dict[str, Any]) -> dict[str, Any]:
        commands = entries(old, "commands")
        known = {"name": folder.name, "created": time.time(), "question": "", "baseline": None, **old}
        same = commands and {key: value for key, value in commands[-1].items() if key != "time"} == command
        added = commands if same else [*commands, {"time": time.time(), **command}]
        return {**known, **declared, **(also or {}), "commands": added}

    change_record(folder, change)
