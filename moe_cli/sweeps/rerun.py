"""Finds the runs of a sweep that start again: all, or those of another version of the code."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from moe_cli.errors import MoeError
from moe_cli.execution.machine import code_version
from moe_cli.runs.folder import PENDING, Run
from moe_cli.runs.trash import TrashedRun, check_idle, remove, restore


def outdated(runs: Sequence[Run], *, force: bool, code: bool) -> list[Run]:
    """Returns the started runs, with `force`; with `code`, those of another code version.

    The code version is in meta.json: version of the package, commit, uncommitted changes in the package.
    """
    begun = [run for run in runs if run.path.is_dir() and run.status()["status"] != PENDING]
    if force:
        return begun
    now = code_version() if code else None
    return [run for run in begun if code and run.meta() and code_version(run.meta()) != now]


def discard(runs: Sequence[Run], outputs: Path) -> list[TrashedRun]:
    """Moves runs to the trash.

    Raises:
        RunBusy: one of them is at work; all are where they were.
        MoeError: one cannot be moved; all are where they were.
    """
    removed: list[TrashedRun] = []
    for run in runs:
        check_idle(run)
    try:
        for run in runs:
            removed.append(remove(run, outputs))  # noqa: PERF401  (the moved runs must be known when one fails)
    except BaseException:
        put_back(removed, outputs)
        raise
    return removed


def put_back(removed: Sequence[TrashedRun], outputs: Path) -> None:
    """Undoes `discard`. Runs that cannot be restored stay in the trash."""
    for each in removed:
        with suppress(MoeError):
            restore(each, outputs)
