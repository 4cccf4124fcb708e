"""How do several processes share experts, and their capacity? Rows are sent to the process that holds their expert.

T tokens of this process, A assignments, E experts, D width.
"""

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from moe_cli.distributed import collectives
from moe_cli.moe.backends.dispatch import Backend
from moe_cli.moe.experts import Experts
from moe_cli.moe.permutation import add_to_tokens, permutation_of
from moe_cli.moe.routing import Routing, drop_overflow, identity_routing, position_in_queue, to_null


def drop_overflow_global(routing: Routing, capacity: int, drop: str) -> Routing:
    """Applies `drop_overflow` to the tokens of all processes together; returns the part of this process."""
    if collectives.world_size() == 1:
        return drop_overflow(routing, capacity, drop)
    probs = routing.probs[routing.token_ids, routing.expert_ids].detach().float()
    local = torch.stack([routing.expert_ids.float(), torch.rand_like(probs) if drop == "random" else probs], dim=1)
    lengths = collectives.all_gather_rows(torch.tensor([[len(local)]], device=local.device)).flatten().tolist()
    padded = local.new_zeros(max(lengths), 2)
    padded[: len(local)] = local
    parts = [
        part[:length]
        for part, length in zip(
            collectives.all_gather_rows(padded).chunk(collectives.world_size()), lengths, strict=True
        )
    ]
    # The order of a single process: round by round, and within a round by rank.
    round_index = torch.cat([torch.arange(length) // max(1, length // routing.rounds) for length in lengths])
    order = torch.argsort(round_index, stable=True).to(local.device)
    experts, priorities = torch.cat(parts).unbind(1)
    if drop != "position":
        order = order[torch.argsort(priorities[order], descending=True, stable=True)]
    has_room = torch.empty_like(experts, dtype=torch.bool)
    has_room[order] = position_in_queue(experts[order].long(), routing.num_experts) < capacity
    first = sum(lengths[: collectives.rank()])
    return routing.keep_only(has_room[first : first + len(local)] | to_null(routing))


def expert_parallel_forward(
    experts: Experts, x: Float[Tensor, "T D"], routing: Routing, group: collectives.ExpertGroup, backend: Backend
) -> Float[Tensor, "T D"]:
    """Sends each row to the process that holds its expert, computes the experts there, and returns the outputs.

    Each process sends one row per kept assignment, without padding (GShard, arXiv:2006.16668, section 3.2).

    Args:
        experts: this process's part of the experts.
        routing: assignments of this process's tokens to all E experts.
    """
    permutation = permutation_of(routing)
    local = experts.num_experts
    send_counts = permutation.rows_per_expert
    recv_counts = torch.empty_like(send_counts)
    dist.all_to_all_single(recv_counts, send_counts, group=group.group)
    send_splits, recv_splits = (counts.view(group.size, local).sum(1).tolist() for counts in (send_counts, recv_counts))
    recv_rows = collectives.all_to_all(x.index_select(0, permutation.token_ids), send_splits, recv_splits, group)
    expert_ids = torch.arange(local, device=x.device).repeat(group.size).repeat_interleave(recv_counts)
    outputs = backend(
        experts, recv_rows, identity_routing(expert_ids, local), experts.sample_dropout_mask(len(expert_ids))
    )
    outputs = collectives.all_to_all(outputs, recv_splits, send_splits, group)
    return add_to_tokens(permutation, outputs, routing.weights, len(x))
