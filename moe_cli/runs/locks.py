"""Locks of run folders, for one writing process, and of sweeps, for all their processes.

`claim_run` is the last of the four steps by which a sweep executes each run exactly once (see sweeps/scheduler.py).
"""

import fcntl
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from moe_cli.errors import RunBusy
from moe_cli.files.writing import TEMPORARY, delete_abandoned, hold, hold_where_supported, is_held, write_text

if TYPE_CHECKING:
    from moe_cli.runs.folder import Run


@contextmanager
def claim_run(run: "Run") -> Iterator[None]:
    """Locks a run that is not complete, so that this process alone executes it.

    Raises:
        RunBusy: another process executes the run, or has just completed it.
    """
    with lock(run.path):
        if run.summary() is not None:
            raise RunBusy(f"another process has just completed {run.id}: nothing is left to do.")
        yield


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Locks a run folder for writing.

    Raises:
        RunBusy: another process holds it.
    """
    with ExitStack() as stack:
        for attempt in range(20):
            try:
                stack.enter_context(hold(path / ".lock", fcntl.LOCK_EX | fcntl.LOCK_NB))
                break
            except BlockingIOError:
                if attempt == 19:
                    raise RunBusy(f"{path.name} is being written by another process: wait for it or stop it.") from None
                time.sleep(0.05)  # `is_locked` of another process holds it for an instant
        delete_abandoned(path, f".*{TEMPORARY}")
        yield


def is_locked(path: Path) -> bool:
    """Returns whether a living process holds the folder for writing."""
    return is_held(path / ".lock", fcntl.LOCK_SH)


def break_lock(path: Path) -> None:
    """Replaces the lock file of a folder, which a dead machine may still hold on a network file system."""
    write_text(path / ".lock", "")


@contextmanager
def sweep_lock(folder: Path) -> Iterator[None]:
    """Marks a sweep's folder as in use; several processes may do so. Has no effect where locks are not supported."""
    delete_abandoned(folder, f".*{TEMPORARY}")
    with hold_where_supported(folder / ".at-work", fcntl.LOCK_SH):
        yield


def is_sweep_running(folder: Path) -> bool:
    """Returns whether a living process has marked the folder by `sweep_lock`."""
    return is_held(folder / ".at-work", fcntl.LOCK_EX)
