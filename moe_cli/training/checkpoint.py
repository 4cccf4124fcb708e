"""How is a checkpoint found, checked and read? Loading executes no code.

A checkpoint is complete or absent. checkpoints/step_00000120/ has model.safetensors, optimizer.safetensors, state.json
with checksums, and ema.safetensors with the average of the weights, if optim.ema_decay is set. It is written by
checkpoint_writer.py; saved_training.py restores a training from it.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from moe_cli.distributed import collectives
from moe_cli.errors import CheckpointError, UnsafePath
from moe_cli.files.checksums import unsealed
from moe_cli.files.reading import Unreadable, hash_file, parse_object, read_bytes
from moe_cli.files.writing import rename
from moe_cli.formatting import is_utf8, print_line
from moe_cli.runs.folder import DAMAGED, RUNNING, Run, step_of_checkpoint

FORMAT = 1
MODEL, OPTIMIZER, EMA = "model.safetensors", "optimizer.safetensors", "ema.safetensors"
# Bytes of weights that are read before their file is opened again.
_MAPPED_BYTES = 2**26
# Counters of a state other than steps and tokens; and the largest number of threads that a state may have.
COUNTS = ("skipped", "skipped_in_a_row", "rewinds", "data_shift", "spikes")
MAX_THREADS = 4096


class DamagedCheckpoint(CheckpointError):
    """A checkpoint whose files are missing or changed."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk with valid checksums.

    Attributes:
        folder: its folder.
        state: the state of the training loop: step, tokens, seconds, running means.
    """

    folder: Path
    state: dict[str, Any]

    def model_tensors(self) -> dict[str, Tensor]:
        """Returns the weights for evaluation: their running average, if there is one."""
        average = load_tensors(self.folder / EMA) if (self.folder / EMA).exists() else {}
        return {**load_tensors(self.folder / MODEL), **average}

    def evaluated_files(self) -> list[Path]:
        """Returns the files of the weights for evaluation: their running average, if there is one, comes first."""
        return [path for path in (self.folder / EMA, self.folder / MODEL) if path.exists()]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shape of each tensor that `load_model` loads. Raises CheckpointError for a damaged file."""
        shapes: dict[str, tuple[int, ...]] = {}
        for path in self.evaluated_files():
            with _opened(path) as file:
                shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        return shapes

    def load_model(self, model: nn.Module) -> None:
        """Loads the weights for evaluation, one after the other: a model needs no memory for a second copy.

        Raises CheckpointError if the tensors do not fit the model.
        """
        missing = model.state_dict()
        for path in self.evaluated_files():
            loaded = 0
            with _opened(path) as file:
                names = list(file.keys())
            if unknown := sorted(set(names) - model.state_dict().keys()):
                raise self._misfit(unknown[0])
            while names:
                with _opened(path) as file:  # the pages of a mapped file count as memory until it is closed
                    while names and loaded < _MAPPED_BYTES:
                        name = names.pop()
                        if (target := missing.pop(name, None)) is None:
                            continue
                        tensor = file.get_tensor(name)
                        if tensor.shape != target.shape:
                            raise self._misfit(name)
                        target.copy_(tensor)
                        loaded += tensor.nbytes
                loaded = 0
        if missing:
            raise self._misfit(min(missing))

    def _misfit(self, name: str) -> CheckpointError:
        return CheckpointError(f"{self.folder} was made for a model of another shape: {name} does not fit.")


def latest_checkpoint(run: Run) -> Checkpoint:
    """Returns the newest checkpoint of a run.

    Raises:
        CheckpointError: there is no checkpoint.
        DamagedCheckpoint: the newest one is damaged.
    """
    folders = run.checkpoints()
    if not folders:
        again = f"moe train --resume {run.id}"
        if run.summary() is not None:
            raise CheckpointError(
                f"{run.id} is complete, but its checkpoints are gone: put {run.path / 'checkpoints'} back.\n"
                f"To train it again from the start, delete its summary.json, then: {again}"
            )
        if run.status().get("status") == RUNNING:
            raise CheckpointError(f"{run.id} is running and has no checkpoint yet. See its progress: moe runs watch")
        raise CheckpointError(f"{run.id} has no checkpoint: it was stopped before its first one. Continue it: {again}")
    return _verify(folders[0])


def newest_valid_checkpoint(run: Run) -> Checkpoint:
    """Returns the newest checkpoint with valid checksums. Newer, damaged ones are reported and renamed.

    The caller must have the lock of the run's folder.

    Raises:
        CheckpointError: no valid checkpoint exists.
    """
    try:
        return latest_checkpoint(run)
    except DamagedCheckpoint as error:
        problem, damaged = error, run.checkpoints()[:1]
    for folder in run.checkpoints()[1:]:
        try:
            found = _verify(folder)
        except DamagedCheckpoint:
            damaged.append(folder)
            continue
        if collectives.rank() == 0:
            reason = str(problem).split("\n")[0]
            print_line(f"note: {reason} Going on from step {found.state['step']:,}.")
            for bad in damaged:
                with suppress(OSError, UnsafePath):  # it stays until a checkpoint of the same step replaces it
                    rename(bad, bad.with_name(DAMAGED + bad.name))
        return found
    if len(damaged) > 1:
        raise CheckpointError(
            f"no checkpoint of {run.id} is whole; the newest: {problem}".split("\n")[0]
            + f"\nTo train it again from the start, move {run.path / 'checkpoints'} away, then: "
            f"moe train --resume {run.id}"
        )
    raise problem


def find_checkpoint(run: Run, which: str) -> Checkpoint:
    """Returns a checkpoint of a run.

    Args:
        which: `latest`, `best` (see train.keep_best), or a step.

    Raises:
        CheckpointError: there is no such checkpoint.
        DamagedCheckpoint: it is damaged.
    """
    latest = latest_checkpoint(run)
    if which == "latest":
        return latest
    step = latest.state.get("best_step") if which == "best" else int(which) if which.isdecimal() else None
    if step is not None and run.checkpoint(step) in run.checkpoints():
        return _verify(run.checkpoint(step))
    steps = ", ".join(str(step_of_checkpoint(folder)) for folder in run.checkpoints())
    hint = " The best is kept with: train.keep_best=true" if which == "best" else ""
    raise CheckpointError(f"{run.id} has no checkpoint '{which}'. There are: latest, {steps}.{hint}")


def _verify(folder: Path) -> Checkpoint:
    """Returns the checkpoint in a folder after testing its checksums and its state. Raises DamagedCheckpoint."""
    try:
        content = parse_object(read_bytes(folder / "state.json"))
        if content.get("format") != FORMAT:
            raise CheckpointError(f"{folder} has format {content.get('format')}; this version of moe reads {FORMAT}.")
        content = unsealed(content)
    except FileNotFoundError:
        raise _damaged(folder, "state.json is missing") from None
    except Unreadable as reason:
        raise _damaged(folder, f"state.json {reason}") from None
    state, checksums = content.get("state"), content.get("checksums")
    if not isinstance(state, dict) or not isinstance(checksums, dict):
        raise _damaged(folder, "state.json is no state of a training")
    if problem := _invalid_value(state, step_of_checkpoint(folder)):
        raise _damaged(folder, f"state.json has {problem}")
    for name in (MODEL, OPTIMIZER, *([EMA] if EMA in checksums or (folder / EMA).exists() else [])):
        try:
            same = hash_file(folder / name) == checksums.get(name)
        except FileNotFoundError:
            raise _damaged(folder, f"{name} is missing") from None
        except (OSError, Unreadable) as reason:
            raise _damaged(folder, f"{name} {reason}") from None
        if not same:
            raise _damaged(folder, f"{name} does not have its checksum")
    return Checkpoint(folder, state)


def _invalid_value(state: dict[str, Any], step: int) -> str | None:
    """Returns the first value with a wrong type or range; None means that the state is valid."""
    integers = {"step": step + 1, "tokens": 2**63, "threads": MAX_THREADS + 1, **dict.fromkeys(COUNTS, 2**63)}
    for name, stop in integers.items():
        value = state.get(name, step if name == "step" else 0)
        if type(value) is not int or not 0 <= value < stop or (name == "step" and value != step):
            return f"{name}={value!r:.40}"
    for name in ("seconds", "loss_mean", "loss_deviation", "best_step", "best_loss"):
        value = state.get(name)
        if value is not None and (type(value) not in (int, float) or (name == "seconds" and value < 0)):
            return f"{name}={value!r:.40}"
    if step and not state.get("seconds", 1.0):
        return f"seconds={state.get('seconds')!r}"
    metric_sums = state.get("metric_sums", {})
    if not isinstance(metric_sums, dict) or any(type(value) not in (int, float) for value in metric_sums.values()):
        return "metric_sums that are not numbers by name"
    for name in ("digest", "corpus_sha256"):
        if not isinstance(state.get(name, ""), str):
            return f"{name}={state[name]!r:.40}"
    return None


def _damaged(folder: Path, problem: str) -> DamagedCheckpoint:
    """Returns the error for a damaged checkpoint, which names another one if there is one."""
    run = Run(folder.parent.parent)
    others = [step_of_checkpoint(other) for other in run.checkpoints() if other != folder]
    hint = (
        f"Use another: --checkpoint {others[0]}; moe train --resume goes on from the newest whole one."
        if others
        else "There is no other. To train it again from the start, repeat its command with --force."
    )
    return DamagedCheckpoint(f"checkpoint {folder} is damaged: {problem}.\n{hint}")


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a safetensors file. Raises CheckpointError if it cannot be read."""
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dictionary)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Opens a safetensors file. Raises CheckpointError if it cannot be read."""
    try:
        if is_utf8(str(path)):
            with safe_open(path, framework="pt") as file:
                yield file
            return
        # safetensors opens paths in UTF-8 only, and /dev/fd/N is one.
        with open(path, "rb") as plain, safe_open(f"/dev/fd/{plain.fileno()}", framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from None
