"""How is the state of a training saved and restored? As safetensors and JSON with checksums; loading executes no code.

A checkpoint is complete or absent. checkpoints/step_00000120/ has model.safetensors, optimizer.safetensors, state.json,
and ema.safetensors with the average of the weights, if optim.ema_decay is set.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from moe_cli.distributed import collectives
from moe_cli.errors import CheckpointError, DiskFull, TrainingError, UnsafePath
from moe_cli.files.checksums import unsealed, write_sealed
from moe_cli.files.reading import Unreadable, open_regular, parse_object, read_bytes
from moe_cli.files.writing import adopt, delete, ensure_folder, flush_folder, is_full, new_folder, rename
from moe_cli.formatting import is_utf8, print_line
from moe_cli.runs.folder import RUNNING, Run
from moe_cli.training.distributed_model import DistributedModel
from moe_cli.training.optimizers import Optimizers
from moe_cli.training.weight_average import WeightAverage

# Prefix of the name of a folder in which a checkpoint is being written.
SAVING = ".saving-"
FORMAT = 1
_MODEL, _OPTIMIZER = "model.safetensors", "optimizer.safetensors"
_EMA = "ema.safetensors"
# Bytes of weights that are read before their file is opened again.
_MAPPED_BYTES = 2**26
# Prefix of the name of a checkpoint that had wrong checksums when the run was resumed.
DAMAGED = "damaged-"
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
        average = _load(self.folder / _EMA) if (self.folder / _EMA).exists() else {}
        return {**_load(self.folder / _MODEL), **average}

    def evaluated_files(self) -> list[Path]:
        """Returns the files of the weights for evaluation: their running average, if there is one, comes first."""
        return [path for path in (self.folder / _EMA, self.folder / _MODEL) if path.exists()]

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
            names = _names_in(path)
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

    def _load_into(self, model: nn.Module, tensors: dict[str, Tensor]) -> None:
        try:
            model.load_state_dict(tensors)
        except RuntimeError:
            raise CheckpointError(f"{self.folder} was made for a model of another shape.") from None

    def load_training(self, training_tensors: "TrainingTensors") -> None:
        """Restores model, optimizers, average and random state, whatever the number of processes that saved them.

        A process without a saved random state, because the job has more processes than before, gets a new one.

        Raises:
            CheckpointError: a tensor is missing or does not fit.
        """
        try:
            self._load_parts(training_tensors)
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise CheckpointError(f"{self.folder} does not fit this run: {str(error).splitlines()[0][:200]}") from error

    def _load_parts(self, training_tensors: "TrainingTensors") -> None:
        distributed_model = training_tensors.distributed_model
        params = dict(distributed_model.model.named_parameters())
        local = {
            name: distributed_model.to_local(tensor, name, params[name]) if name in params else tensor
            for name, tensor in _load(self.folder / _MODEL).items()
        }
        self._load_into(distributed_model.model, local)
        if training_tensors.average is not None:
            average = _load(self.folder / _EMA)
            training_tensors.average.load(
                {name: distributed_model.to_local(average[name], name, params[name]) for name in params}
            )
        tensors = _load(self.folder / _OPTIMIZER)
        random = {key: tensors.pop(key) for key in list(tensors) if key.startswith("random.")}
        cpu, cuda = random.get(f"random.cpu{_rank_suffix()}"), random.get(f"random.cuda{_rank_suffix()}")
        if cpu is None:
            torch.manual_seed(hash((self.state["step"], collectives.rank())) % 2**63)
        else:
            torch.set_rng_state(cpu)
        if cuda is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(cuda)
        training_tensors.load_optimizers(tensors)


@dataclass(frozen=True)
class Snapshot:
    """A copy of the contents of a checkpoint, so that training can continue while it is written.

    Attributes:
        files: the tensors of each file.
        state: the content of state.json, without checksums.
    """

    files: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


@dataclass(frozen=True)
class TrainingTensors:
    """The objects whose tensors a checkpoint contains, with this process's parts of them."""

    distributed_model: DistributedModel
    optimizers: Optimizers
    average: WeightAverage | None = None

    def tensors(self) -> Iterator[tuple[str, str, Tensor]]:
        """Yields file, key and full tensor. All processes must iterate to the end, because they gather each tensor."""
        for name, tensor in self.distributed_model.model.state_dict().items():
            yield _MODEL, name, self.distributed_model.to_full(tensor, name)
        names = self._names()
        for key, tensor in self.optimizers.state_tensors().items():
            yield _OPTIMIZER, key, self.distributed_model.to_full(tensor, names[key.rsplit(".", 1)[0]])
        for name, tensor in self.average.tensors.items() if self.average else ():
            yield _EMA, name, self.distributed_model.to_full(tensor, name)
        states = {"random.cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            states["random.cuda"] = torch.cuda.get_rng_state()
        for key, state in states.items():
            for rank, rank_state in enumerate(collectives.all_gather_rows(state[None])):
                yield _OPTIMIZER, key + _rank_suffix(rank), rank_state

    def load_optimizers(self, tensors: dict[str, Tensor]) -> None:
        """Loads the full tensors of the optimizers' state; each process keeps its part."""
        names, params = self._names(), dict(self.distributed_model.model.named_parameters())
        local = {}
        for key, tensor in tensors.items():
            name = names[key.rsplit(".", 1)[0]]
            like = params[name] if tensor.ndim == params[name].ndim else tensor  # a step count is one number
            local[key] = self.distributed_model.to_local(tensor, name, like)
        self.optimizers.load_state_tensors(local)

    def _names(self) -> dict[str, str]:
        """Returns the name of the parameter in the model for each key prefix of the optimizers' state."""
        names = {param: name for name, param in self.distributed_model.model.named_parameters()}
        return {key: names[param] for key, param in self.optimizers.params().items()}


def _rank_suffix(rank: int | None = None) -> str:
    """Returns the suffix of the key of a process's random state: its rank; empty for rank 0."""
    rank = collectives.rank() if rank is None else rank
    return f".{rank}" if rank else ""


def take_snapshot(training_tensors: TrainingTensors, state: dict[str, Any]) -> Snapshot | None:
    """Returns a copy of all tensors, which rank 0 gathers from all processes; None in the other processes.

    Full tensors, and not the parts of each process, give checkpoints one form. Any number of processes, and programs
    with nothing but safetensors, can read it. Rank 0 needs main memory for one copy.

    Raises:
        TrainingError: the weights are not finite.
    """
    files: dict[str, dict[str, Tensor]] = {}
    for name, key, tensor in training_tensors.tensors():
        if collectives.rank() == 0:
            files.setdefault(name, {})[key] = tensor.detach().to("cpu", copy=True).contiguous()
    if collectives.rank():
        return None
    if not all(bool(torch.isfinite(tensor).all()) for tensor in files[_MODEL].values()):
        raise TrainingError(f"the weights are not finite at step {state['step']}. Try a lower optim.lr.")
    return Snapshot(files, deepcopy(state))


def save_checkpoint(run: Run, snapshot: Snapshot, keep: int = 2) -> Path:
    """Writes a checkpoint; then deletes the older ones except the newest `keep` and the best of the state.

    Raises:
        DiskFull: the disk is full; the older checkpoints stay.
        TrainingError: the checkpoint cannot be written for another reason; the older ones stay.
    """
    state = snapshot.state
    root = run.path / "checkpoints"
    final = _folder(run, state["step"])
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
    protected = None if best is None else _folder(run, best)
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


def _folder(run: Run, step: int) -> Path:
    return run.path / "checkpoints" / f"step_{step:08d}"


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
    root, final = run.path / "checkpoints", _folder(run, 0)
    ensure_folder(root)
    with new_folder(root, SAVING) as temporary:
        write_model(temporary / _MODEL)
        adopt(temporary / _MODEL)
        _write(temporary, Snapshot({_OPTIMIZER: {}}, {"step": 0, **state}), [_MODEL])
        rename(temporary, final)
    flush_folder(root)
    return final


def _write(folder: Path, snapshot: Snapshot, written: Sequence[str] = ()) -> None:
    """Writes the files of a checkpoint; `written` are those that are there."""
    for name, content in snapshot.files.items():
        save_file(content, folder / name)
        adopt(folder / name)
    checksums = {name: _sha256(folder / name) for name in (*written, *snapshot.files)}
    write_sealed(folder / "state.json", {"format": FORMAT, "checksums": checksums, "state": snapshot.state})


def _sha256(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    if step is not None and _folder(run, step) in run.checkpoints():
        return _verify(_folder(run, step))
    steps = ", ".join(str(int(folder.name.removeprefix("step_"))) for folder in run.checkpoints())
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
    if problem := _invalid_value(state, int(folder.name.removeprefix("step_"))):
        raise _damaged(folder, f"state.json has {problem}")
    for name in (_MODEL, _OPTIMIZER, *([_EMA] if _EMA in checksums or (folder / _EMA).exists() else [])):
        try:
            same = _sha256(folder / name) == checksums.get(name)
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
    others = [int(other.name.removeprefix("step_")) for other in run.checkpoints() if other != folder]
    hint = (
        f"Use another: --checkpoint {others[0]}; moe train --resume goes on from the newest whole one."
        if others
        else "There is no other. To train it again from the start, repeat its command with --force."
    )
    return DamagedCheckpoint(f"checkpoint {folder} is damaged: {problem}.\n{hint}")


def _load(path: Path) -> dict[str, Tensor]:
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dictionary)


def _names_in(path: Path) -> list[str]:
    with _opened(path) as file:
        return list(file.keys())


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
