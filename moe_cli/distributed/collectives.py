"""How do the processes of one training exchange data? Sums, means, gathers, and all-to-all among expert groups.

Every process has its own part of a batch; all parts have equal size. With one process, reductions, gathers and
broadcasts return their argument; expert groups and `all_to_all` need several processes.
N processes, M of them share one set of experts; E experts, T rows of a process, R rows of all, D width.
"""

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

from moe_cli.distributed import launch

# A collective call fails if a process does not answer within this time. A process that dies is noticed at once.
TIMEOUT = timedelta(minutes=30)
_started = False


def init_process_group() -> None:
    """Joins the processes of a launcher, such as torchrun, if there is one. `destroy_process_group` ends it."""
    global _started
    if launch.is_distributed() and not _started:
        store, rank, size = next(rendezvous("env://", timeout=TIMEOUT))
        if launch.is_single_machine():
            # The store survives a restart of the processes, and would still contain the keys of those that died.
            store = PrefixStore(f"attempt_{launch.num_restarts()}", store)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
        _started = True


def destroy_process_group() -> None:
    global _started
    if _started:
        _started = False
        dist.destroy_process_group()


def world_size() -> int:
    """Returns N; 1 before `init_process_group`, even if the program uses torch.distributed itself."""
    return launch.world_size() if _started else 1


def rank() -> int:
    """Returns the rank of this process; 0 before `init_process_group`."""
    return launch.rank() if _started else 0


def barrier() -> None:
    """Waits until all processes have called it."""
    all_reduce_max(0.0)  # on the CPU, so that it waits for no GPU


def broadcast_object(value: Any) -> Any:
    """Returns the value of rank 0."""
    if world_size() == 1:
        return value
    holder = [value]
    dist.broadcast_object_list(holder, src=0, device=torch.device("cpu"))
    return holder[0]


def all_reduce_max(value: float) -> float:
    """Returns the maximum over processes."""
    if world_size() == 1:
        return value
    largest = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest.item()


def all_reduce_sum(values: Tensor) -> Tensor:
    """Returns the sum over processes, without gradient."""
    if world_size() == 1:
        return values
    values = values.detach().clone()
    dist.all_reduce(values)
    return values


def all_reduce_mean(values: Tensor) -> Tensor:
    """Returns the mean over processes; its gradient is correct if gradients are averaged over processes afterwards.

    For L(m) with m = (1/N) sum_r x_r, process r computes dL/dm * dx_r/dw. The mean of that over processes is dL/dw.
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
    """Returns the rows of all processes in the order of their ranks, without gradient."""
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
    """The M processes that share one set of experts: member i has the E / M experts from i * E / M on.

    Tokens are sent to their experts and the outputs back by all-to-all (GShard, arXiv:2006.16668, section 3.2).

    Attributes:
        mesh: [N / M, M] processes; a row shares one set of experts, a column has the same experts.
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
        """Returns this process's part [E / M, ...] of a tensor [E, ...]."""
        return stacked.chunk(self.size)[self.rank]

    def gather(self, stacked: Tensor) -> Tensor:
        """Returns the tensor [E, ...] from the parts [E / M, ...] of all members."""
        stacked = stacked.contiguous()
        gathered = stacked.new_empty(self.size, *stacked.shape)
        dist.all_gather(list(gathered), stacked, group=self.group)
        return gathered.flatten(0, 1)


def make_expert_group(device: str, members: int) -> ExpertGroup:
    """Divides all processes into groups of `members` neighbours."""
    return ExpertGroup(
        init_device_mesh(device, (world_size() // members, members), mesh_dim_names=("replicas", "experts"))
    )


def all_to_all(
    values: Float[Tensor, "S D"], send_splits: list[int], recv_splits: list[int], group: ExpertGroup
) -> Tensor:
    """Sends `send_splits[i]` rows to member i and returns the received rows; the gradient is sent back.

    Args:
        send_splits: rows for each member, in the order of `values`.
        recv_splits: rows from each member.
    """
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
