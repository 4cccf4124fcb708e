"""What is thrown away and can be brought back.

outputs/.trash/<time>-<group>-<id>/    a run folder that was removed; trashed.json says from where and when
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from moe_cli.errors import MoeError, RunBusy
from moe_cli.store import RUNNING, Run, is_locked, lock, make_folder, write_json

TRASH = ".trash"


@dataclass(frozen=True)
class Removed:
    """A run in the trash.

    Attributes:
        origin: where it lay, below the outputs folder.
        removed: seconds since 1970.
    """

    path: Path
    origin: str
    removed: float


def remove(run: Run, outputs: Path) -> Removed:
    """Moves a run to the trash.

    Raises:
        RunBusy: it is at work.
        MoeError: it does not lie in the outputs folder, or on another disk.
    """
    source = Path(os.path.abspath(run.path))
    if not source.is_relative_to(outputs) or source == outputs:
        raise MoeError(f"{source} does not lie in {outputs}. Choose its outputs folder: --outputs DIR")
    origin = source.relative_to(outputs)
    check_idle(run)
    with lock(source):
        moment = time.time()
        write_json(source / "trashed.json", {"from": origin.as_posix(), "time": moment})
        target = _free_name(make_folder(outputs / TRASH), f"{time.strftime('%Y%m%d-%H%M%S')}-{'-'.join(origin.parts)}")
        try:
            os.rename(source, target)
        except OSError as error:
            (source / "trashed.json").unlink(missing_ok=True)
            raise MoeError(
                f"cannot move {source} to {target.parent}: {error.strerror}. Remove it by hand, for good: rm -r"
            ) from None
    return Removed(target, origin.as_posix(), moment)


def check_idle(run: Run) -> None:
    """Raises RunBusy when a process is at work on the run."""
    if run.status()["status"] == RUNNING or is_locked(run.path):
        raise RunBusy(f"{run.id} is running: wait for it or stop it.")


def _free_name(folder: Path, name: str) -> Path:
    target, counter = folder / name, 2
    while target.exists():
        target, counter = folder / f"{name}-{counter}", counter + 1
    return target
