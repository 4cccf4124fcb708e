"""What is thrown away and can be brought back, and what may be freed for good.

outputs/.trash/<time>-<group>-<id>/    a run folder that was removed; trashed.json says from where and when
"""

import os
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_cli.data.cached import MAX_META_BYTES
from moe_cli.errors import MoeError, RunBusy, RunNotFound
from moe_cli.files.reading import is_path, time_in
from moe_cli.files.writing import TEMPORARY, abandoned, delete, is_full, is_safe, make_folder, rename, way_on
from moe_cli.runs.folder import (
    COMPLETED,
    MAKING,
    PENDING,
    RUNNING,
    Run,
    is_locked,
    lock,
    read_json,
    run_folders,
    spellings,
    write_json,
)
from moe_cli.runs.tags import is_at_work

TRASH = ".trash"
# What a run folder holds before its run begins.
MADE = {"config.json", "config.yaml", "status.json", "log.txt", ".lock"}
DAY = 86_400.0
LONGEST_NAME = 255
# A temporary folder of the cache in which nothing was written for so long has no maker any more.
STALE_SECONDS = DAY


@dataclass(frozen=True)
class Removed:
    """A run in the trash.

    Attributes:
        origin: where it lay, below the outputs folder; "" when nobody knows.
        removed: seconds since 1970.
    """

    path: Path
    origin: str
    removed: float

    @property
    def id(self) -> str:
        return Path(self.origin).name or self.path.name

    @property
    def group(self) -> str:
        """The sweep it belonged to, or `runs`."""
        return Path(self.origin).parent.name


def remove(run: Run, outputs: Path) -> Removed:
    """Moves a run to the trash.

    Raises:
        RunBusy: it is at work, or about to be.
        MoeError: it does not lie in the outputs folder, or on another disk.
    """
    source = Path(os.path.abspath(run.path))
    if not source.is_relative_to(outputs) or source == outputs:
        raise MoeError(f"{source} does not lie in {outputs}. Choose its outputs folder: --outputs DIR")
    origin = source.relative_to(outputs)
    if origin.parts[0] == TRASH:
        raise MoeError(f"{run.id} is in the trash already. Free it: moe runs gc --older-than 0d --yes")
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
        way = way_on(error) if is_full(error) else "Remove it by hand, for good: rm -r"
        raise MoeError(f"cannot move {source} to {folder}: {error.strerror}. {way}") from None
    return Removed(target, origin.as_posix(), moment)


def check_idle(run: Run) -> None:
    """Raises RunBusy when a process is at work on the run or on its sweep, which counts its runs at the end."""
    if run.status()["status"] == RUNNING or is_locked(run.path):
        raise RunBusy(f"{run.id} is running: wait for it or stop it.")
    if is_at_work(run.path.parent):
        raise RunBusy(f"{run.id} belongs to the sweep '{run.group}', which is running: wait for it or stop it.")


def _free_name(folder: Path, name: str) -> Path:
    target, counter = folder / name, 2
    while target.exists():
        target, counter = folder / f"{name}-{counter}", counter + 1
    return target


def removed_runs(outputs: Path) -> list[Removed]:
    """What the trash holds, the last one removed last."""
    try:
        folders = [Path(entry) for entry in os.scandir(outputs / TRASH) if entry.is_dir() or entry.is_symlink()]
    except OSError:
        return []
    return sorted(map(_read_removed, folders), key=lambda each: (each.removed, each.path.name))


def _read_removed(path: Path) -> Removed:
    note = read_json(path / "trashed.json") or {}
    origin, moment = note.get("from"), time_in(note.get("time"))
    return Removed(path, origin if is_path(origin) else "", path.lstat().st_mtime if moment is None else moment)


def restore(removed: Removed, outputs: Path) -> Run:
    """Puts a run of the trash back to where it lay; a run there that was never begun is deleted.

    Raises:
        RunBusy: the sweep that it belonged to is running.
        MoeError: another run has taken its place, its place is not known, or it cannot be moved.
    """
    target = Path(os.path.normpath(outputs / _harmless(removed.origin)))
    parts = target.relative_to(outputs).parts if target.is_relative_to(outputs) else ()
    if not 1 <= len(parts) <= 2 or not all(map(_is_name, parts)):
        raise MoeError(f"{removed.path / 'trashed.json'} does not say where in {outputs} the run lay. Move it by hand.")
    if target.exists() or target.is_symlink():
        if not _never_begun(Run(target)):
            raise MoeError(f"{removed.origin} is taken by another run. Remove that first: moe runs rm {removed.origin}")
        check_idle(Run(target))
    make_folder(target.parent)
    try:
        if target.exists():
            delete(target)
        rename(removed.path, target)
    except OSError as error:
        raise MoeError(f"cannot move {removed.path} to {target}: {error.strerror}. Move it by hand.") from None
    with suppress(OSError):  # says only where the run lay
        delete(target / "trashed.json")
    return Run(target)


def _is_name(part: str) -> bool:
    """Whether commands see a folder of this name."""
    return not part.startswith(".") and len(os.fsencode(part)) <= LONGEST_NAME


def _harmless(name: str) -> str:
    """The name with an underscore for every character that moves a cursor or turns writing around."""
    return "".join("_" if unicodedata.category(each) in ("Cc", "Cf", "Zl", "Zp") else each for each in name)


def _never_begun(run: Run) -> bool:
    """Whether it is a run with nothing but its settings, such as a sweep leaves that was stopped at once."""
    names = {path.name for path in run.path.iterdir()} if run.path.is_dir() else set()
    return "config.json" in names and names <= MADE and run.status()["status"] == PENDING


def find_removed(name: str, trash: Sequence[Removed]) -> list[Removed]:
    """What a user means: a run's id or its beginning, its name in the trash, `latest`, or a sweep with all its runs.

    Raises:
        RunNotFound: none, or more than one, answers to the name.
    """
    if not trash:
        raise RunNotFound(f"no run '{name}' in the trash: it is empty.")
    if name == "latest":
        return [trash[-1]]
    known = spellings(name)
    found = [each for each in trash if {each.path.name, each.id, each.origin}.intersection(known)]
    if not found and (group := [each for each in trash if each.group in known]):
        # Of a run that was removed, made again and removed again, the newer one.
        return list({each.origin: each for each in group}.values())
    found = found or [each for each in trash if each.id.startswith(name) or each.path.name.startswith(name)]
    if len(found) > 1:
        listed = ", ".join(each.path.name for each in found[:4]) + (", ..." if len(found) > 4 else "")
        raise RunNotFound(f"'{name}' could be {len(found)} runs of the trash: {listed}. Give more of the name.")
    if not found:
        newest = trash[-1].path.name
        raise RunNotFound(f"no run '{name}' in the trash. The last one removed is {newest}; 'latest' means it.")
    return found


@dataclass(frozen=True)
class Waste:
    """Something that may be freed.

    Attributes:
        kind: `trash`, `unfinished` (half-made folders whose maker is dead), `checkpoints` or `cache`.
        idle: whether it is still waste, asked again before it is freed.
    """

    kind: str
    path: Path
    num_bytes: int
    why: str
    idle: Callable[[], bool] = lambda: True


def find_waste(outputs: Path, older_than: float) -> Iterator[Waste]:
    """Everything that may be freed: removed runs older than so many seconds, and what no run needs."""
    now = time.time()
    for removed in removed_runs(outputs) if is_safe(outputs / TRASH) else ():
        if now - removed.removed >= older_than:
            yield Waste(
                "trash", removed.path, size_of(removed.path), f"removed from {removed.origin or 'nobody knows'}"
            )
    runs = run_folders(outputs)
    for folder in (outputs, *sorted(path for path in outputs.glob("[!.]*") if path.is_dir()), outputs / ".cache"):
        for path in _half_made(folder, f".*{TEMPORARY}", f"{MAKING}*"):
            yield Waste("unfinished", path, size_of(path), "left by a process that was killed")
    for run in runs:
        yield from _waste_of_run(run)
    yield from _waste_of_cache(outputs / ".cache", runs)


def _waste_of_run(run: Run) -> Iterator[Waste]:
    if is_locked(run.path) or not is_safe(run.path):
        return

    def idle() -> bool:
        return not is_locked(run.path) and run.status()["status"] != RUNNING

    for path, what in _scrap_of(run):
        if idle():
            yield Waste("unfinished", path, size_of(path), f"{what} of {run.id}", idle)
    checkpoints = run.checkpoints() if is_safe(run.path / "checkpoints") else []
    if len(checkpoints) < 2 or run.status()["status"] != COMPLETED:
        return
    best = _best(checkpoints[0])
    for folder in checkpoints[1:]:
        if folder.name != best:
            yield Waste("checkpoints", folder, size_of(folder), f"{run.id} is complete", idle)


def _scrap_of(run: Run) -> Iterator[tuple[Path, str]]:
    for path in _half_made(run.path, f".*{TEMPORARY}"):
        yield path, "left by a killed process"
    if is_safe(run.path / "checkpoints"):
        for pattern, what in ((".saving-*", "half a checkpoint"), ("damaged-*", "a damaged checkpoint")):
            for folder in (run.path / "checkpoints").glob(pattern):
                yield folder, what


def _half_made(folder: Path, *patterns: str) -> list[Path]:
    """What a killed process has left in a folder; nothing where a link leads to it."""
    return [path for pattern in patterns for path in abandoned(folder, pattern)] if is_safe(folder) else []


def _best(newest: Path) -> str | None:
    """The name of the best checkpoint, where train.keep_best has asked for one."""
    state = (read_json(newest / "state.json") or {}).get("state")
    step = state.get("best_step") if isinstance(state, dict) else None
    return f"step_{step:08d}" if isinstance(step, int) else None


def _waste_of_cache(cache: Path, runs: Sequence[Run]) -> Iterator[Waste]:
    """Of every kind of data: each has a folder in the cache, and each set of data a folder with meta.json in that."""
    now = time.time()
    for folder in sorted(cache.glob("*/.building-*")):
        if is_safe(folder.parent) and now - _last_written(folder) > STALE_SECONDS:
            yield Waste("unfinished", folder, size_of(folder), "half-made data")
    found = {folder: read_json(folder / "meta.json", MAX_META_BYTES) for folder in sorted(cache.glob("[!.]*/[!.]*"))}
    corpora = {folder: corpus for folder, corpus in found.items() if corpus is not None and is_safe(folder.parent)}
    used = _corpora_in_use(runs) if corpora else None
    for folder, corpus in corpora.items():
        if used is not None and corpus.get("sha256") not in used:
            yield Waste("cache", folder, size_of(folder), f"data that no run uses: {corpus.get('source')}")


def _corpora_in_use(runs: Sequence[Run]) -> set[Any] | None:
    """The hashes of the data that runs have read; None, all, while a run at work has not yet said which."""
    used: set[Any] = set()
    for run in runs:
        corpus = run.meta().get("corpus")
        if isinstance(corpus, dict):
            used.add(corpus.get("sha256"))
        elif run.status()["status"] == RUNNING:
            return None
    return used


def free(waste: Waste) -> int:
    """Deletes it for good and gives the bytes freed: 0 when it is in use by now.

    Raises:
        MoeError: it cannot be deleted.
    """
    if not waste.idle():
        return 0
    try:
        delete(waste.path)
    except OSError as error:
        raise MoeError(f"cannot delete {waste.path}: {error.strerror}.") from None
    return waste.num_bytes


def size_of(path: Path) -> int:
    """Bytes of all files at or below a path; links count as themselves."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size if path.is_symlink() or path.exists() else 0
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except OSError:
                continue
    return total


def _last_written(folder: Path) -> float:
    try:
        return max(path.lstat().st_mtime for path in (folder, *folder.iterdir()))
    except OSError:
        return time.time()
