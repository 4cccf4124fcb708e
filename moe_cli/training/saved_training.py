"""How is a training restored? From the tensors in a checkpoint, which rank 0 gathers from all processes."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moe_cli.distributed import collectives
from moe_cli.errors import CheckpointError, TrainingError
from moe_cli.training.checkpoint import EMA, MODEL, OPTIMIZER, Checkpoint, load_tensors
from moe_cli.training.checkpoint_writer import Snapshot
from moe_cli.training.distributed_model import DistributedModel
from moe_cli.training.optimizers import Optimizers
from moe_cli.training.weight_average import WeightAverage


@dataclass(frozen=True)
class TrainingParts:
    """The objects whose tensors a checkpoint contains, with this process's parts of them."""

    distributed_model: DistributedModel
    optimizers: Optimizers
    average: WeightAverage | None = None

    def tensors(self) -> Iterator[tuple[str, str, Tensor]]:
        """Yields file, key and full tensor. All processes must iterate to the end, because they gather each tensor."""
        for name, tensor in self.distributed_model.model.state_dict().items():
            yield MODEL, name, self.distributed_model.to_full(tensor, name)
        names = self._names()
        for key, tensor in self.optimizers.state_tensors().items():
            yield OPTIMIZER, key, self.distributed_model.to_full(tensor, names[key.rsplit(".", 1)[0]])
        for name, tensor in self.average.tensors.items() if self.average else ():
            yield EMA, name, self.distributed_model.to_full(tensor, name)
        states = {"random.cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            states["random.cuda"] = torch.cuda.get_rng_state()
        for key, state in states.items():
            for rank, rank_state in enumerate(collectives.all_gather_rows(state[None])):
                yield OPTIMIZER, key + _rank_suffix(rank), rank_state

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


def take_snapshot(parts: TrainingParts, state: dict[str, Any]) -> Snapshot | None:
    """Returns a copy of all tensors, which rank 0 gathers from all processes; None in the other processes.

    Full tensors, and not the parts of each process, give checkpoints one form. Any number of processes, and programs
    with nothing but safetensors, can read it. Rank 0 needs main memory for one copy.

    Raises:
        TrainingError: the weights are not finite.
    """
    files: dict[str, dict[str, Tensor]] = {}
    for name, key, tensor in parts.tensors():
        if collectives.rank() == 0:
            files.setdefault(name, {})[key] = tensor.detach().to("cpu", copy=True).contiguous()
    if collectives.rank():
        return None
    if not all(bool(torch.isfinite(tensor).all()) for tensor in files[MODEL].values()):
        raise TrainingError(f"the weights are not finite at step {state['step']}. Try a lower optim.lr.")
    return Snapshot(files, deepcopy(state))


def load_training(checkpoint: Checkpoint, parts: TrainingParts) -> None:
    """Restores model, optimizers, average and random state, whatever the number of processes that saved them.

    A process without a saved random state, because the job has more processes than before, gets a new one.

    Raises:
        CheckpointError: a tensor is missing or does not fit.
    """
    try:
        _load_parts(checkpoint, parts)
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = str(error).splitlines()[0][:200]
        raise CheckpointError(f"{checkpoint.folder} does not fit this run: {reason}") from error


def _load_parts(checkpoint: Checkpoint, parts: TrainingParts) -> None:
    folder = checkpoint.folder
    distributed_model = parts.distributed_model
    params = dict(distributed_model.model.named_parameters())
    local = {
        name: distributed_model.to_local(tensor, name, params[name]) if name in params else tensor
        for name, tensor in load_tensors(folder / MODEL).items()
    }
    try:
        distributed_model.model.load_state_dict(local)
    except RuntimeError:
        raise CheckpointError(f"{folder} was made for a model of another shape.") from None
    if parts.average is not None:
        average = load_tensors(folder / EMA)
        parts.average.load({name: distributed_model.to_local(average[name], name, params[name]) for name in params})
    tensors = load_tensors(folder / OPTIMIZER)
    random = {key: tensors.pop(key) for key in list(tensors) if key.startswith("random.")}
    cpu, cuda = random.get(f"random.cpu{_rank_suffix()}"), random.get(f"random.cuda{_rank_suffix()}")
    if cpu is None:
        torch.manual_seed(hash((checkpoint.state["step"], collectives.rank())) % 2**63)
    else:
        torch.set_rng_state(cpu)
    if cuda is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(cuda)
    parts.load_optimizers(tensors)
