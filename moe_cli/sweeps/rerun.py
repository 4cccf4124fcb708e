"""Runs of a sweep that start again: all of them, or those of another code version."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from moe_cli.errors import MoeError
from moe_cli.execution.machine import code_version
from moe_cli.runs.folder import PENDING, Run
from moe_cli.runs.trash import TrashedRun, check_idle, remove, restore


def outdated(runs: Sequence[Run], *, force: bool, code: bool) -> list[Run]:
    """Returns all started runs with `force`, those of another code version with `code`, else none.

    The code version in meta.json is the package's version, its commit and its uncommitted changes.
    """
    started = [run for run in runs if run.path.is_dir() and run.status()["status"] != PENDING]
    if force:
        return started
    now = code_version() if code else None
    return [run for run in started if code and run.meta() and code_version(run.meta()) != now]


def discard(runs: Sequence[Run], outputs: Path) -> list[TrashedRun]:
    """Moves runs to the trash.

    Raises:
        RunBusy: a process executes one of them; no run was moved.
        MoeError: one cannot be moved; the others were moved back.
    """
    removed: list[TrashedRun] = []
    for run in runs:
        check_idle(run)
    try:
        for run in runs:
            removed.append(remove(run, outputs))  # noqa: PERF401  (put_back needs the moved runs when one fails)
    except BaseException:
        put_back(removed, outputs)
        raise
    return removed


def put_back(removed: Sequence[TrashedRun], outputs: Path) -> None:
    """Undoes `discard`. Runs that cannot be restored stay in the trash."""
    for run in removed:
        with suppress(MoeError):
            restore(run, outputs)
