"""Sums, means and gathers over the processes of one training, and exchange among those that share a set of experts.

N processes, M of them sharing one set of experts; E experts, D width. Every process sees its own part of a batch, all
parts of one size. With one process every function is a no-op.
"""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

# A process that is silent for this long counts as dead. One that has died is noticed at once.
TIMEOUT = timedelta(minutes=30)
_started = False


def init_process_group() -> None:
    """Joins the processes that a launcher (torchrun) has started, if it has. Ends with `destroy_process_group`."""
    global _started
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not _started:
        store, rank, size = next(rendezvous("env://", timeout=TIMEOUT))
        if os.environ.get("GROUP_WORLD_SIZE") == "1":
            # On one machine a store outlives its processes: those that start again must not find the dead ones in it.
            store = PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
        _started = True


def destroy_process_group() -> None:
    global _started
    if _started:
        _started = False
        dist.destroy_process_group()


def world_size() -> int:
    """Returns N; 1 for a program that did not call `init_process_group`, even if it uses torch.distributed."""
    return dist.get_world_size() if _started else 1


def rank() -> int:
    return dist.get_rank() if _started else 0


def barrier() -> None:
    if world_size() > 1:
        all_reduce_max(0.0)  # on the processor: nothing waits for a GPU


def broadcast_object(value: Any) -> Any:
    """Broadcasts the first process's value to all."""
    if world_size() == 1:
        return value
    holder = [value]
    dist.broadcast_object_list(holder, src=0, device=torch.device("cpu"))
    return holder[0]


def all_reduce_max(value: float) -> float:
    """Returns the largest of all processes' numbers."""
    if world_size() == 1:
        return value
    largest = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest.item()


def all_reduce_sum(values: Tensor) -> Tensor:
    """Returns the sum over processes; without a gradient."""
    if world_size() == 1:
        return values
    values = values.detach().clone()
    dist.all_reduce(values)
    return values


def all_reduce_mean(values: Tensor) -> Tensor:
    """Returns the mean over processes. Its gradient is right where gradients are averaged over processes afterwards.

    For L(m) with m = (1/N) sum_r x_r, process r gives dL/dm * dx_r/dw, and the mean of that over processes is dL/dw.
    """
    return values if world_size() == 1 else _Mean.apply(values)


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return all_reduce_sum(values) / world_size()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def all_gather_rows(values: Shaped[Tensor, "T D"]) -> Shaped[Tensor, "R D"]:
    """Returns the rows of all processes, one process after the other; without a gradient."""
    if world_size() == 1:
        return values
    values = values.detach().contiguous()
    gathered = values.new_empty(world_size(), *values.shape)
    dist.all_gather(list(gathered), values)
    return gathered.flatten(0, 1)


def local_rows(gathered: Tensor) -> Tensor:
    """Returns this process's part of the result of `all_gather_rows`."""
    return gathered.chunk(world_size())[rank()]


@dataclass(frozen=True)
class ExpertGroup:
    """The processes that hold one set of experts between them: process number i holds E / M of them, from i * E / M on.

    GShard, arXiv:2006.16668, section 3.2: tokens travel to their experts and the outputs back (all-to-all).

    Attributes:
        mesh: [N / M, M] processes; those of a row share a set, those of a column hold the same experts.
    """

    mesh: DeviceMesh

    @property
    def size(self) -> int:
        return self.mesh["experts"].size()

    @property
    def rank(self) -> int:
        return self.mesh["experts"].get_local_rank()

    @property
    def group(self) -> dist.ProcessGroup:
        return self.mesh.get_group("experts")

    def local_shard(self, stacked: Tensor) -> Tensor:
        """This process's experts of a tensor [E, ...]."""
        return stacked.chunk(self.size)[self.rank]

    def gather(self, stacked: Tensor) -> Tensor:
        """Returns the tensor [E, ...] of all experts, put together from the parts."""
        stacked = stacked.contiguous()
        whole = stacked.new_empty(self.size, *stacked.shape)
        dist.all_gather(list(whole), stacked, group=self.group)
        return whole.flatten(0, 1)


def make_expert_group(device: str, members: int) -> ExpertGroup:
    """Divides all processes into groups of `members` neighbours."""
    return ExpertGroup(
        init_device_mesh(device, (world_size() // members, members), mesh_dim_names=("replicas", "experts"))
    )


def all_to_all(
    values: Float[Tensor, "S D"], send_splits: list[int], recv_splits: list[int], group: ExpertGroup
) -> Tensor:
    """Sends rows to their processes, `send_splits[i]` of them to member i; the gradient travels back."""
    return _AllToAll.apply(values, send_splits, recv_splits, group)  # type: ignore[no-any-return]


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, send_splits: list[int], recv_splits: list[int], group: ExpertGroup) -> Tensor:
        ctx.splits = (recv_splits, send_splits, group)
        return _all_to_all(values, send_splits, recv_splits, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _all_to_all(grad, *ctx.splits), None, None, None


def _all_to_all(values: Tensor, send_splits: list[int], recv_splits: list[int], group: ExpertGroup) -> Tensor:
    recv_rows = values.new_empty(sum(recv_splits), *values.shape[1:])
    dist.all_to_all_single(recv_rows, values.contiguous(), recv_splits, send_splits, group=group.group)
    return recv_rows
