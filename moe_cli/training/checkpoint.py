"""Checkpoints: safetensors and JSON, whole or absent, checksummed. Loading executes nothing.

checkpoints/step_00000120/model.safetensors, optimizer.safetensors, state.json
"""

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from moe_cli.errors import CheckpointError, TrainingError
from moe_cli.store import Run, read_json, write_json
from moe_cli.training.optim import Optimizers

FORMAT = 1
KEEP = 2
_FILES = ("model.safetensors", "optimizer.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk whose checksums hold.

    Attributes:
        state: what the training loop needs to go on: step, tokens, seconds, running means.
    """

    folder: Path
    state: dict[str, Any]

    def model_tensors(self) -> dict[str, Tensor]:
        return _load(self.folder / _FILES[0])

    def load_model(self, model: nn.Module) -> None:
        """Raises CheckpointError when the tensors are not those of this model."""
        try:
            model.load_state_dict(self.model_tensors())
        except RuntimeError:
            raise CheckpointError(f"{self.folder} was made for a model of another shape.") from None

    def load_training(self, model: nn.Module, optimizers: Optimizers) -> None:
        """Model, optimizers and random state, exactly as they were."""
        self.load_model(model)
        tensors = _load(self.folder / _FILES[1])
        torch.set_rng_state(tensors.pop("random.cpu"))
        random_cuda = tensors.pop("random.cuda", None)
        if random_cuda is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(random_cuda)
        optimizers.load_state_tensors(tensors)


def save_checkpoint(run: Run, model: nn.Module, optimizers: Optimizers, state: dict[str, Any]) -> Path:
    """Writes a checkpoint beside the older ones, then forgets all but the newest KEEP.

    Raises:
        TrainingError: the weights are not finite (the older checkpoints stay), or the disk is full.
    """
    if not all(bool(torch.isfinite(param).all()) for param in model.parameters()):
        raise TrainingError(f"the weights are not finite at step {state['step']}. Try a lower optim.lr.")
    root = run.path / "checkpoints"
    final = root / f"step_{state['step']:08d}"
    temporary = None
    try:
        root.mkdir(exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".saving-", dir=root))
        _write(temporary, model, optimizers, state)
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
        _sync(root)
    except (OSError, SafetensorError) as error:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise TrainingError(f"cannot write the checkpoint {final}: {reason}. The one before it is whole.") from None
    # A process that was killed while it saved has left its half-made folder.
    for old in [*root.glob(".saving-*"), *run.checkpoints()[KEEP:]]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def _write(folder: Path, model: nn.Module, optimizers: Optimizers, state: dict[str, Any]) -> None:
    tensors = {**optimizers.state_tensors(), "random.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    for name, content in zip(_FILES, (model.state_dict(), tensors), strict=True):
        save_file({key: value.contiguous() for key, value in content.items()}, folder / name)
        _sync(folder / name)
    checksums = {"state": _sha256_of_state(state), **{name: _sha256(folder / name) for name in _FILES}}
    write_json(folder / "state.json", {"format": FORMAT, "checksums": checksums, "state": state})
    os.chmod(folder, 0o755)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256_of_state(state: Any) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def latest_checkpoint(run: Run) -> Checkpoint:
    """The newest checkpoint of a run.

    Raises:
        CheckpointError: there is none, or it is damaged; the message names what is wrong.
    """
    folders = run.checkpoints()
    if not folders:
        raise CheckpointError(f"{run.id} has no checkpoint: it was stopped before its first one.")
    folder = folders[0]
    content = read_json(folder / "state.json")
    if content is None:
        raise CheckpointError(_damaged(folder, "state.json is missing or not whole"))
    if content.get("format") != FORMAT:
        raise CheckpointError(f"{folder} has format {content.get('format')}; this version of moe reads {FORMAT}.")
    state, checksums = content.get("state"), content.get("checksums", {})
    if not isinstance(state, dict) or _sha256_of_state(state) != checksums.get("state"):
        raise CheckpointError(_damaged(folder, "state.json does not have its checksum"))
    for name in _FILES:
        if not (folder / name).is_file():
            raise CheckpointError(_damaged(folder, f"{name} is missing"))
        if _sha256(folder / name) != checksums.get(name):
            raise CheckpointError(_damaged(folder, f"{name} does not have its checksum"))
    return Checkpoint(folder, state)


def _damaged(folder: Path, what: str) -> str:
    return f"checkpoint {folder} is damaged: {what}.\nDelete that folder to go on from the checkpoint before it."


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from None
