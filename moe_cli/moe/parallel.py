"""Several processes: sums and means over all of them, and experts divided among them. Alone, all of it does nothing.

N processes, M of them sharing one set of experts; T tokens of this process, A assignments, E experts, D width. Every
process sees its own part of a batch, all parts of one size; what a loss or a rule takes over the whole batch is put
together here, so that results do not depend on how many processes there are.
"""

import os
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from moe_cli.moe.dispatch import Backend
from moe_cli.moe.experts import Experts
from moe_cli.moe.plan import make_plan
from moe_cli.moe.routing import Routing, drop_overflow

# A process that is silent for so long is taken for dead. One that has died is noticed at once.
PATIENCE = timedelta(minutes=30)
_started = False


def start() -> None:
    """Joins the processes that a launcher (torchrun) has started, if it has. Ends with `stop`."""
    global _started
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not _started:
        store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
        if os.environ.get("GROUP_WORLD_SIZE") == "1":
            # On one machine a store outlives its processes: those that start again must not find the dead ones in it.
            store = PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
        _started = True


def stop() -> None:
    global _started
    if _started:
        _started = False
        dist.destroy_process_group()


def size() -> int:
    """N; 1 for a program that did not `start`, whatever else it does with torch.distributed."""
    return dist.get_world_size() if _started else 1


def rank() -> int:
    return dist.get_rank() if _started else 0


def barrier() -> None:
    if size() > 1:
        most(0.0)  # on the processor: nothing waits for a GPU


def told(value: Any) -> Any:
    """What the first process says."""
    if size() == 1:
        return value
    said = [value]
    dist.broadcast_object_list(said, src=0, device=torch.device("cpu"))
    return said[0]


def most(value: float) -> float:
    """The largest of all processes' numbers."""
    if size() == 1:
        return value
    largest = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest.item()


def total(values: Tensor) -> Tensor:
    """The sum over processes; without a gradient."""
    if size() == 1:
        return values
    values = values.detach().clone()
    dist.all_reduce(values)
    return values


def mean(values: Tensor) -> Tensor:
    """The mean over processes. Its gradient is right where gradients are averaged over processes afterwards.

    For L(m) with m = (1/N) sum_r x_r, process r gives dL/dm * dx_r/dw, and the mean of that over processes is dL/dw.
    """
    return values if size() == 1 else _Mean.apply(values)


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return total(values) / size()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def rows(values: Shaped[Tensor, "T D"]) -> Shaped[Tensor, "R D"]:
    """The rows of all processes, one process after the other; without a gradient."""
    if size() == 1:
        return values
    values = values.detach().contiguous()
    gathered = values.new_empty(size(), *values.shape)
    dist.all_gather(list(gathered), values)
    return gathered.flatten(0, 1)


def own_rows(gathered: Tensor) -> Tensor:
    """This process's part of what `rows` gave."""
    return gathered.chunk(size())[rank()]


def drop_overflow_everywhere(routing: Routing, capacity: int, drop: str, rounds: int) -> Routing:
    """`drop_overflow` over the tokens of all processes: an expert keeps at most `capacity` assignments of all of them.

    Args:
        rounds: the record holds so many choices of each token, first choices of all tokens before second ones; 1 for a
            record that goes token by token.
    """
    if size() == 1:
        return drop_overflow(routing, capacity, drop)
    asked = routing.probs[routing.token_ids, routing.expert_ids].detach().float()
    mine = torch.stack([routing.expert_ids.float(), torch.rand_like(asked) if drop == "random" else asked], dim=1)
    lengths = rows(torch.tensor([[len(mine)]], device=mine.device)).flatten().tolist()
    padded = mine.new_zeros(max(lengths), 2)
    padded[: len(mine)] = mine
    parts = [part[:length] for part, length in zip(rows(padded).chunk(size()), lengths, strict=True)]
    # In the order in which one process would have recorded them: round by round, in each the processes in turn.
    turn = torch.cat([torch.arange(length) // max(1, length // rounds) for length in lengths])
    order = torch.argsort(turn, stable=True).to(mine.device)
    experts, scores = torch.cat(parts)[order].unbind(1)
    everyone = Routing(
        logits=routing.logits, probs=scores[:, None].expand(-1, routing.num_experts),
        token_ids=torch.arange(len(order), device=mine.device), expert_ids=experts.long(), weights=scores,
        kept=torch.ones_like(scores, dtype=torch.bool), num_null=routing.num_null,
    )  # fmt: skip
    dropped = drop_overflow(everyone, capacity, "position" if drop == "position" else "probability")
    kept = torch.empty_like(everyone.kept)
    kept[order[dropped.token_ids]] = dropped.kept
    first = sum(lengths[: rank()])
    return replace(routing, kept=routing.kept & kept[first : first + len(mine)])


@dataclass(frozen=True)
class ExpertGroup:
    """The processes that hold one set of experts between them: process number i holds E / M of them, from i * E / M on.

    GShard, arXiv:2006.16668, section 3.2: tokens travel to their experts and the answers back (all-to-all).

    Attributes:
        mesh: [N / M, M] processes; those of a row share a set, those of a column hold the same experts.
    """

    mesh: DeviceMesh

    @property
    def size(self) -> int:
        return self.mesh["experts"].size()

    @property
    def place(self) -> int:
        return self.mesh["experts"].get_local_rank()

    @property
    def group(self) -> dist.ProcessGroup:
        return self.mesh.get_group("experts")

    def own(self, stacked: Tensor) -> Tensor:
        """This process's experts of a tensor [E, ...]."""
        return stacked.chunk(self.size)[self.place]

    def gather(self, stacked: Tensor) -> Tensor:
        """The tensor [E, ...] of all experts, put together from the parts."""
        stacked = stacked.contiguous()
        whole = stacked.new_empty(self.size, *stacked.shape)
        dist.all_gather(list(whole), stacked, group=self.group)
        return whole.flatten(0, 1)


def make_expert_group(device: str, members: int) -> ExpertGroup:
    """Divides all processes into groups of `members` neighbours."""
    return ExpertGroup(init_device_mesh(device, (size() // members, members), mesh_dim_names=("replicas", "experts")))


def compute_divided(
    experts: Experts, x: Float[Tensor, "T D"], routing: Routing, group: ExpertGroup, backend: Backend
) -> Float[Tensor, "T D"]:
    """What a back end gives, when `experts` are this process's part of all: rows travel there, answers travel back.

    Nothing is padded: each process sends as many rows as the routing asks for.
    """
    plan = make_plan(routing)
    local = experts.num_experts
    sent = torch.tensor(plan.counts, device=x.device)
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=group.group)
    out, back = (counts.view(group.size, local).sum(1).tolist() for counts in (sent, received))
    arrived = exchanged(x.index_select(0, plan.token_ids), out, back, group)
    expert_ids = torch.arange(local, device=x.device).repeat(group.size).repeat_interleave(received)
    answers = backend(experts, arrived, _one_each(expert_ids, local), experts.draw_mask(len(expert_ids)))
    answers = exchanged(answers, back, out, group)
    weights = routing.weights.index_select(0, plan.assignments).to(answers.dtype)
    nothing = answers.new_zeros(1, answers.shape[1]).expand(len(x), -1)
    return nothing.index_add(0, plan.token_ids, answers * weights.unsqueeze(1))


def _one_each(expert_ids: Int[Tensor, " A"], num_experts: int) -> Routing:
    """Rows that are each one token with one expert, of weight 1."""
    none = torch.zeros(1, 1, device=expert_ids.device).expand(len(expert_ids), num_experts)
    kept: Bool[Tensor, " A"] = torch.ones_like(expert_ids, dtype=torch.bool)
    return Routing(none, none, torch.arange(len(kept), device=kept.device), expert_ids, kept.float(), kept)


def exchanged(values: Float[Tensor, "S D"], sent: list[int], received: list[int], group: ExpertGroup) -> Tensor:
    """Rows to their processes, `sent[i]` of them to member i; the gradient takes the way back."""
    return _Exchange.apply(values, sent, received, group)  # type: ignore[no-any-return]


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, sent: list[int], received: list[int], group: ExpertGroup) -> Tensor:
        ctx.way = (received, sent, group)
        return _exchange(values, sent, received, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _exchange(grad, *ctx.way), None, None, None


def _exchange(values: Tensor, sent: list[int], received: list[int], group: ExpertGroup) -> Tensor:
    arrived = values.new_empty(sum(received), *values.shape[1:])
    dist.all_to_all_single(arrived, values.contiguous(), received, sent, group=group.group)
    return arrived
