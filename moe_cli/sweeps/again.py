"""Which runs of a sweep are done once more from the start: all of them, or those that other code has made."""

from collections.abc import Sequence
from pathlib import Path

from moe_cli.machine import code_version
from moe_cli.store import PENDING, Run
from moe_cli.trash import check_idle, remove


def outdated(runs: Sequence[Run], *, force: bool, code: bool) -> list[Run]:
    """Those of `runs` in which there is something, with `force`; with `code`, in which there is something of other code.

    Which code it was stands in meta.json: version of the package, commit, uncommitted changes in the package.
    """
    begun = [run for run in runs if run.path.is_dir() and run.status()["status"] != PENDING]
    if force:
        return begun
    now = code_version() if code else None
    return [run for run in begun if code and run.meta() and code_version(run.meta()) != now]


def discard(runs: Sequence[Run], outputs: Path) -> None:
    """Moves runs to the trash. Raises RunBusy, with all where they were, when one of them is at work."""
    for run in runs:
        check_idle(run)
    for run in runs:
        remove(run, outputs)
