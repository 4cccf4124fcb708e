"""How is a checkpoint written? As safetensors and JSON with checksums, in a folder that is renamed at the end."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from moe_cli.errors import DiskFull, TrainingError
from moe_cli.files.checksums import write_sealed
from moe_cli.files.reading import hash_file
from moe_cli.files.writing import adopt, delete, ensure_folder, flush_folder, is_full, new_folder, rename
from moe_cli.runs.folder import SAVING, Run
from moe_cli.training.checkpoint import FORMAT, MODEL, OPTIMIZER


@dataclass(frozen=True)
class Snapshot:
    """A copy of the contents of a checkpoint, so that training can continue while it is written.

    Attributes:
        files: the tensors of each file.
        state: the content of state.json, without checksums.
    """

    files: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def save_checkpoint(run: Run, snapshot: Snapshot, keep: int = 2) -> Path:
    """Writes a checkpoint; then deletes the older ones except the newest `keep` and the best of the state.

    Raises:
        DiskFull: the disk is full; the older checkpoints stay.
        TrainingError: the checkpoint cannot be written for another reason; the older ones stay.
    """
    state = snapshot.state
    root = run.path / "checkpoints"
    final = run.checkpoint(state["step"])
    try:
        ensure_folder(root)
        with new_folder(root, SAVING) as temporary:
            _write(temporary, snapshot)
            if final.exists():
                delete(final)
            rename(temporary, final)
        flush_folder(root)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        kind = DiskFull if is_full(error) else TrainingError
        raise kind(f"cannot write the checkpoint {final}: {reason}. {recovery_hint(run, is_full(error))}") from None
    best = state.get("best_step")
    protected = None if best is None else run.checkpoint(best)
    # A process that was killed while it saved has left an incomplete folder.
    for old in [*root.glob(f"{SAVING}*"), *run.checkpoints()[keep:]]:
        if old != protected:
            with suppress(OSError):
                delete(old)
    return final


def recovery_hint(run: Run, full: bool) -> str:
    """Returns the last lines of an error about a failed write: the saved checkpoints, and how to resume the run.

    Args:
        full: True if the disk is full.
    """
    kept = run.kept()
    return (
        f"{kept[0].upper()}{kept[1:]}.\n{'Free space' if full else 'Correct that'}, then: moe train --resume {run.id}"
    )


class AsyncCheckpointWriter:
    """Writes checkpoints on a thread of its own, one at a time. An error is raised by the next call."""

    def __init__(self, run: Run, keep: int) -> None:
        self._run = run
        self._keep = keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._last: Future[Path] | None = None

    def save(self, snapshot: Snapshot | None) -> None:
        """Writes a snapshot in the background; None means that another process does.

        Raises:
            TrainingError: the previous checkpoint could not be written.
        """
        self.wait()
        if snapshot is not None:
            self._last = self._thread.submit(save_checkpoint, self._run, snapshot, self._keep)

    def wait(self) -> None:
        """Waits until the last checkpoint is on disk. Raises TrainingError if it cannot be written."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def close(self) -> None:
        self._thread.shutdown()


def save_imported(run: Run, write_model: Callable[[Path], object], state: dict[str, Any]) -> Path:
    """Writes a checkpoint of step 0 without state of an optimizer; returns its folder.

    Args:
        write_model: writes the weights into the file of this path.
        state: the contents of state.json besides the step.
    """
    root, final = run.path / "checkpoints", run.checkpoint(0)
    ensure_folder(root)
    with new_folder(root, SAVING) as temporary:
        write_model(temporary / MODEL)
        adopt(temporary / MODEL)
        _write(temporary, Snapshot({OPTIMIZER: {}}, {"step": 0, **state}), [MODEL])
        rename(temporary, final)
    flush_folder(root)
    return final


def _write(folder: Path, snapshot: Snapshot, written: Sequence[str] = ()) -> None:
    """Writes the files of a checkpoint; `written` are those that are there."""
    for name, content in snapshot.files.items():
        save_file(content, folder / name)
        adopt(folder / name)
    checksums = {name: hash_file(folder / name) for name in (*written, *snapshot.files)}
    write_sealed(folder / "state.json", {"format": FORMAT, "checksums": checksums, "state": snapshot.state})
