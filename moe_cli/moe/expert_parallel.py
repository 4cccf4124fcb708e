"""Experts and their capacity over several processes: rows travel to their experts, and one capacity holds for all.

T tokens of this process, A assignments, E experts, D width.
"""

from dataclasses import replace

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor

from moe_cli.distributed import collectives
from moe_cli.moe.backends.dispatch import Backend
from moe_cli.moe.experts import Experts
from moe_cli.moe.permutation import make_plan
from moe_cli.moe.routing import Routing, drop_overflow


def drop_overflow_global(routing: Routing, capacity: int, drop: str) -> Routing:
    """`drop_overflow` over the tokens of all processes: an expert keeps at most `capacity` assignments of all of them."""
    if collectives.world_size() == 1:
        return drop_overflow(routing, capacity, drop)
    asked = routing.probs[routing.token_ids, routing.expert_ids].detach().float()
    mine = torch.stack([routing.expert_ids.float(), torch.rand_like(asked) if drop == "random" else asked], dim=1)
    lengths = collectives.all_gather_rows(torch.tensor([[len(mine)]], device=mine.device)).flatten().tolist()
    padded = mine.new_zeros(max(lengths), 2)
    padded[: len(mine)] = mine
    parts = [
        part[:length]
        for part, length in zip(
            collectives.all_gather_rows(padded).chunk(collectives.world_size()), lengths, strict=True
        )
    ]
    # In the order in which one process would have recorded them: round by round, in each the processes in turn.
    turn = torch.cat([torch.arange(length) // max(1, length // routing.rounds) for length in lengths])
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
    first = sum(lengths[: collectives.rank()])
    return replace(routing, kept=routing.kept & kept[first : first + len(mine)])


def compute_divided(
    experts: Experts, x: Float[Tensor, "T D"], routing: Routing, group: collectives.ExpertGroup, backend: Backend
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
    arrived = collectives.exchanged(x.index_select(0, plan.token_ids), out, back, group)
    expert_ids = torch.arange(local, device=x.device).repeat(group.size).repeat_interleave(received)
    answers = backend(experts, arrived, _one_each(expert_ids, local), experts.draw_mask(len(expert_ids)))
    answers = collectives.exchanged(answers, back, out, group)
    weights = routing.weights.index_select(0, plan.assignments).to(answers.dtype)
    nothing = answers.new_zeros(1, answers.shape[1]).expand(len(x), -1)
    return nothing.index_add(0, plan.token_ids, answers * weights.unsqueeze(1))


def _one_each(expert_ids: Int[Tensor, " A"], num_experts: int) -> Routing:
    """Rows that are each one token with one expert, of weight 1."""
    none = torch.zeros(1, 1, device=expert_ids.device).expand(len(expert_ids), num_experts)
    kept: Bool[Tensor, " A"] = torch.ones_like(expert_ids, dtype=torch.bool)
    return Routing(none, none, torch.arange(len(kept), device=kept.device), expert_ids, kept.float(), kept)
