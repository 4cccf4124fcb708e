"""Finds and deletes unneeded files: old trash, unfinished folders, older checkpoints, unused cached data."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_cli.data.cached import MAX_META_BYTES
from moe_cli.errors import MoeError
from moe_cli.files.reading import read_json
from moe_cli.files.writing import TEMPORARY, abandoned, delete, is_safe
from moe_cli.runs.folder import COMPLETED, DAMAGED, MAKING, RUNNING, SAVING, Run
from moe_cli.runs.locks import is_locked
from moe_cli.runs.lookup import list_runs
from moe_cli.runs.trash import TRASH, trashed_runs

DAY = 86_400.0
# The folder of the cache for models that `moe import` has fetched.
HUB = "hub"
# A temporary folder of the cache, or a fetched model, without writes for this long belongs to a dead process.
STALE_SECONDS = DAY


@dataclass(frozen=True)
class Reclaimable:
    """Files that may be deleted.

    Attributes:
        kind: `trash`, `unfinished` (folders of a killed process), `checkpoints` or `cache`.
        idle: returns whether the files are still unneeded; called before deletion.
    """

    kind: str
    path: Path
    num_bytes: int
    why: str
    idle: Callable[[], bool] = lambda: True


def find_reclaimable(outputs: Path, older_than: float) -> Iterator[Reclaimable]:
    """Yields the files that may be deleted: trash older than `older_than` seconds, and files that no run needs."""
    now = time.time()
    for removed in trashed_runs(outputs) if is_safe(outputs / TRASH) else ():
        if now - removed.removed >= older_than:
            yield Reclaimable(
                "trash", removed.path, size_of(removed.path), f"removed from {removed.origin or 'an unknown folder'}"
            )
    runs = list_runs(outputs)
    for folder in (outputs, *sorted(path for path in outputs.glob("[!.]*") if path.is_dir()), outputs / ".cache"):
        for path in _abandoned_in(folder, f".*{TEMPORARY}", f"{MAKING}*"):
            yield Reclaimable("unfinished", path, size_of(path), "left by a process that was killed")
    for run in runs:
        yield from _reclaimable_of_run(run)
    yield from _reclaimable_in_cache(outputs / ".cache", runs)


def _reclaimable_of_run(run: Run) -> Iterator[Reclaimable]:
    if is_locked(run.path) or not is_safe(run.path):
        return

    def idle() -> bool:
        return not is_locked(run.path) and run.status()["status"] != RUNNING

    for path, what in _leftovers_of_run(run):
        if idle():
            yield Reclaimable("unfinished", path, size_of(path), f"{what} of {run.id}", idle)
    checkpoints = run.checkpoints() if is_safe(run.path / "checkpoints") else []
    if len(checkpoints) < 2 or run.status()["status"] != COMPLETED:
        return
    best = _best_checkpoint(run, checkpoints[0])
    for folder in checkpoints[1:]:
        if folder != best:
            yield Reclaimable("checkpoints", folder, size_of(folder), f"{run.id} is complete", idle)


def _leftovers_of_run(run: Run) -> Iterator[tuple[Path, str]]:
    for path in _abandoned_in(run.path, f".*{TEMPORARY}"):
        yield path, "left by a killed process"
    if is_safe(run.path / "checkpoints"):
        for pattern, what in ((f"{SAVING}*", "half a checkpoint"), (f"{DAMAGED}*", "a damaged checkpoint")):
            for folder in (run.path / "checkpoints").glob(pattern):
                yield folder, what


def _abandoned_in(folder: Path, *patterns: str) -> list[Path]:
    """Returns the files that killed processes left in a folder; empty if a link leads to the folder."""
    return [path for pattern in patterns for path in abandoned(folder, pattern)] if is_safe(folder) else []


def _best_checkpoint(run: Run, newest: Path) -> Path | None:
    """Returns the folder of the best checkpoint, if train.keep_best has recorded one."""
    state = (read_json(newest / "state.json") or {}).get("state")
    step = state.get("best_step") if isinstance(state, dict) else None
    return run.checkpoint(step) if isinstance(step, int) else None


def _reclaimable_in_cache(cache: Path, runs: Sequence[Run]) -> Iterator[Reclaimable]:
    """Yields the reclaimable files of all kinds of data, and fetched models.

    Each kind of data has a folder in the cache, which has a folder with meta.json for each data set.
    """
    now = time.time()
    for folder in sorted((cache / HUB).glob("[!.]*")):
        if is_safe(folder.parent) and now - _last_written(folder) > STALE_SECONDS:
            yield Reclaimable("cache", folder, size_of(folder), "a model of the hub; moe import fetches it again")
    for folder in sorted(cache.glob("*/.building-*")):
        if is_safe(folder.parent) and now - _last_written(folder) > STALE_SECONDS:
            yield Reclaimable("unfinished", folder, size_of(folder), "half-made data")
    found = {folder: read_json(folder / "meta.json", MAX_META_BYTES) for folder in sorted(cache.glob("[!.]*/[!.]*"))}
    corpora = {folder: corpus for folder, corpus in found.items() if corpus is not None and is_safe(folder.parent)}
    used = _corpora_in_use(runs) if corpora else None
    for folder, corpus in corpora.items():
        if used is not None and corpus.get("sha256") not in used:
            yield Reclaimable("cache", folder, size_of(folder), f"data that no run uses: {corpus.get('source')}")


def _corpora_in_use(runs: Sequence[Run]) -> set[Any] | None:
    """Returns the hashes of the data of all runs; None while a running run has not recorded its data."""
    used: set[Any] = set()
    for run in runs:
        corpus = run.meta().get("corpus")
        if isinstance(corpus, dict):
            used.add(corpus.get("sha256"))
        elif run.status()["status"] == RUNNING:
            return None
    return used


def delete_reclaimable(waste: Reclaimable) -> int:
    """Deletes files permanently and returns the freed bytes; 0 if the files are in use now.

    Raises:
        MoeError: the files cannot be deleted.
    """
    if not waste.idle():
        return 0
    try:
        delete(waste.path)
    except OSError as error:
        raise MoeError(f"cannot delete {waste.path}: {error.strerror}.") from None
    return waste.num_bytes


def size_of(path: Path) -> int:
    """Returns the size of a file or folder in bytes, without following links."""
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
