"""Back ends with a fixed place for everybody: [E, C, D], C rows per expert, empty places filled with zeros.

T tokens, R kept assignments (rows), E experts, C the largest load, D widths, F hidden width, H = 2F (gated) or F.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from moe_cli.moe.experts import Experts, hidden
from moe_cli.moe.permutation import make_plan, operands, places_in_expert
from moe_cli.moe.routing import Routing


def padded(
    experts: Experts, x: Float[Tensor, "T D_in"], routing: Routing, mask: Float[Tensor, "A F"] | None = None
) -> Float[Tensor, "T D_out"]:
    """Every expert works on C rows, as many as the busiest has: two batched products, whatever E.

    Kept for backward, by autograd: the padded input [E, C, D_in], the first product [E, C, H], what the activation
    makes of it (2 [E, C, F] if gated, else [E, C, F]) and the answers' rows [R, D_out]. Nothing is recomputed.
    Time and memory grow with the unevenness of the load: C = T K / E only when balanced.
    """
    plan = make_plan(routing)
    given = operands(experts, x)
    capacity = max(plan.counts)
    slots = routing.expert_ids[plan.assignments] * capacity + places_in_expert(plan)
    rows = given.x.index_select(0, plan.token_ids)
    places = rows.new_zeros(len(plan.counts) * capacity, rows.shape[1]).index_copy(0, slots, rows)
    pre = torch.bmm(places.view(len(plan.counts), capacity, rows.shape[1]), given.w_in.mT)
    act = hidden(pre, experts.kind, experts.activation)
    if mask is not None:
        rows_mask = mask[plan.assignments].to(act.dtype)
        act = act * act.new_zeros(len(places), act.shape[2]).index_copy(0, slots, rows_mask).view(act.shape)
    answers = torch.bmm(act, given.w_out.mT)
    weights = routing.weights.index_select(0, plan.assignments).to(answers.dtype).unsqueeze(1)
    weighted = answers.flatten(0, 1).index_select(0, slots) * weights
    return weighted.new_zeros(len(x), weighted.shape[1]).index_add(0, plan.token_ids, weighted)


def einsum(
    experts: Experts, x: Float[Tensor, "T D_in"], routing: Routing, mask: Float[Tensor, "A F"] | None = None
) -> Float[Tensor, "T D_out"]:
    """One-hot dispatch and combine tensors [T, E, C], algorithm 1 of GShard, arXiv:2006.16668: for teaching, not speed.

    dispatched = dispatch x, y = combine answers: the sums over T and over (E, C) are the sending and collecting.
    Kept for backward, by autograd: both tensors [T, E, C], x, the dispatched input [E, C, D_in], the first product
    [E, C, H], what the activation makes of it, and the answers [E, C, D_out]. Nothing is recomputed.
    """
    plan = make_plan(routing)
    given = operands(experts, x)
    place = (plan.token_ids, routing.expert_ids[plan.assignments], places_in_expert(plan))
    nothing = given.x.new_zeros(len(x), len(plan.counts), max(plan.counts))
    dispatch = nothing.index_put(place, nothing.new_ones(()))
    combine = nothing.index_put(place, routing.weights[plan.assignments].to(nothing.dtype))
    dispatched = torch.einsum("tec,td->ecd", dispatch, given.x)
    act = hidden(torch.einsum("ecd,ehd->ech", dispatched, given.w_in), experts.kind, experts.activation)
    if mask is not None:
        act = act * torch.zeros_like(act).index_put(place[1:], mask[plan.assignments].to(act.dtype))
    answers = torch.einsum("ecf,edf->ecd", act, given.w_out)
    return torch.einsum("tec,ecd->td", combine, answers)
