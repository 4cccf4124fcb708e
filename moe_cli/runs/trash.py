"""Removed runs, which can be restored.

outputs/.trash/<time>-<sweep>-<id>/    a removed run folder; its trashed.json has the origin and the time
"""

import os
import time
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from moe_cli.errors import MoeError, RunBusy, RunNotFound
from moe_cli.files.reading import is_path, read_json, time_in
from moe_cli.files.writing import delete, is_full, make_folder, rename, write_failure_hint, write_json
from moe_cli.runs.folder import PENDING, RUNNING, Run
from moe_cli.runs.locks import is_locked, is_sweep_running, lock
from moe_cli.runs.lookup import spellings

TRASH = ".trash"
# The files of a run folder before the run starts.
INITIAL_FILES = {"config.json", "config.yaml", "status.json", "log.txt", ".lock"}
LONGEST_NAME = 255


@dataclass(frozen=True)
class TrashedRun:
    """A run in the trash.

    Attributes:
        origin: its former path in the outputs folder; "" if unknown.
        removed: seconds since 1970.
    """

    path: Path
    origin: str
    removed: float

    @property
    def id(self) -> str:
        return Path(self.origin).name or self.path.name

    @property
    def sweep(self) -> str:
        """Returns the sweep it belonged to, or `runs`."""
        return Path(self.origin).parent.name


def remove(run: Run, outputs: Path) -> TrashedRun:
    """Moves a run to the trash.

    Raises:
        RunBusy: the run is being executed or is about to start.
        MoeError: the run is outside the outputs folder or on another disk.
    """
    source = Path(os.path.abspath(run.path))
    if not source.is_relative_to(outputs) or source == outputs:
        raise MoeError(f"{source} does not lie in {outputs}. Choose its outputs folder: --outputs DIR")
    origin = source.relative_to(outputs)
    if origin.parts[0] == TRASH:
        raise MoeError(f"{run.id} is already in the trash. Delete it: moe runs clean --older-than 0d --yes")
    check_idle(run)
    folder, moment = make_folder(outputs / TRASH), time.time()
    try:
        with lock(source):
            write_json(source / "trashed.json", {"from": origin.as_posix(), "time": moment})
            target = _free_name(folder, f"{time.strftime('%Y%m%d-%H%M%S')}-{'-'.join(origin.parts)}")
            rename(source, target)
    except OSError as error:
        with suppress(OSError):
            delete(source / "trashed.json")
        way = write_failure_hint(error) if is_full(error) else "Delete it by hand: rm -r"
        raise MoeError(f"cannot move {source} to {folder}: {error.strerror}. {way}") from None
    return TrashedRun(target, origin.as_posix(), moment)


def check_idle(run: Run) -> None:
    """Raises RunBusy if a process executes the run or its sweep, which counts its runs at the end."""
    if run.status()["status"] == RUNNING or is_locked(run.path):
        raise RunBusy(f"{run.id} is running: wait for it or stop it.")
    if is_sweep_running(run.path.parent):
        raise RunBusy(f"{run.id} belongs to the sweep '{run.sweep}', which is running: wait for it or stop it.")


def _free_name(folder: Path, name: str) -> Path:
    target, counter = folder / name, 2
    while target.exists():
        target, counter = folder / f"{name}-{counter}", counter + 1
    return target


def trashed_runs(outputs: Path) -> list[TrashedRun]:
    """Returns the runs in the trash, in the order of their removal."""
    try:
        folders = [Path(entry) for entry in os.scandir(outputs / TRASH) if entry.is_dir() or entry.is_symlink()]
    except OSError:
        return []
    return sorted(map(_read_trashed, folders), key=lambda run: (run.removed, run.path.name))


def _read_trashed(path: Path) -> TrashedRun:
    note = read_json(path / "trashed.json") or {}
    origin, moment = note.get("from"), time_in(note.get("time"))
    return TrashedRun(path, origin if is_path(origin) else "", path.lstat().st_mtime if moment is None else moment)


def restore(removed: TrashedRun, outputs: Path) -> Run:
    """Moves a run from the trash back to its origin. A run there that never started is deleted.

    Raises:
        RunBusy: the sweep that it belonged to is running.
        MoeError: another run has its path, its origin is unknown, or it cannot be moved.
    """
    target = Path(os.path.normpath(outputs / _sanitise_name(removed.origin)))
    parts = target.relative_to(outputs).parts if target.is_relative_to(outputs) else ()
    if not 1 <= len(parts) <= 2 or not all(map(_is_name, parts)):
        raise MoeError(f"{removed.path / 'trashed.json'} has no valid origin of the run in {outputs}. Move it by hand.")
    if target.exists() or target.is_symlink():
        if not _never_started(Run(target)):
            raise MoeError(f"{removed.origin} is taken by another run. Remove that first: moe runs rm {removed.origin}")
        check_idle(Run(target))
    make_folder(target.parent)
    try:
        if target.exists():
            delete(target)
        rename(removed.path, target)
    except OSError as error:
        raise MoeError(f"cannot move {removed.path} to {target}: {error.strerror}. Move it by hand.") from None
    with suppress(OSError):  # the file is not needed any more
        delete(target / "trashed.json")
    return Run(target)


def _is_name(part: str) -> bool:
    """Returns whether a folder of this name is visible to commands."""
    return not part.startswith(".") and len(os.fsencode(part)) <= LONGEST_NAME


def _sanitise_name(name: str) -> str:
    """Replaces characters that move the cursor or reverse the writing direction by underscores."""
    return "".join("_" if unicodedata.category(char) in ("Cc", "Cf", "Zl", "Zp") else char for char in name)


def _never_started(run: Run) -> bool:
    """Returns whether a run folder has only its initial files, as after a sweep that was stopped at once."""
    names = {path.name for path in run.path.iterdir()} if run.path.is_dir() else set()
    return "config.json" in names and names <= INITIAL_FILES and run.status()["status"] == PENDING


def find_trashed(name: str, trash: Sequence[TrashedRun]) -> list[TrashedRun]:
    """Returns the runs in the trash that a name denotes: an id or its beginning, a folder name, `latest` or a sweep.

    Raises:
        RunNotFound: the name denotes no run, or several.
    """
    if not trash:
        raise RunNotFound(f"no run '{name}' in the trash: it is empty.")
    if name == "latest":
        return [trash[-1]]
    known = spellings(name)
    found = [run for run in trash if {run.path.name, run.id, run.origin}.intersection(known)]
    if not found and (of_sweep := [run for run in trash if run.sweep in known]):
        # A run that was removed several times counts once, with its newest folder.
        return list({run.origin: run for run in of_sweep}.values())
    found = found or [run for run in trash if run.id.startswith(name) or run.path.name.startswith(name)]
    if len(found) > 1:
        listed = ", ".join(run.path.name for run in found[:4]) + (", ..." if len(found) > 4 else "")
        raise RunNotFound(f"'{name}' could be {len(found)} runs in the trash: {listed}. Give more of the name.")
    if not found:
        newest = trash[-1].path.name
        raise RunNotFound(f"no run '{name}' in the trash. The last removed run is {newest}, also called 'latest'.")
    return found
