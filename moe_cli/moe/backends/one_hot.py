"""How do one-hot tensors dispatch and combine tokens? GShard's back end, for teaching.

Every expert processes C rows; unused rows are zeros.
T tokens, R kept assignments (rows), E experts, C the largest load, D widths, F hidden width, H = 2F (gated) or F.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from moe_cli.moe.experts import Experts, expert_activation
from moe_cli.moe.permutation import cast_for_matmul, permutation_of
from moe_cli.moe.routing import Routing, position_in_queue


def einsum(
    experts: Experts, x: Float[Tensor, "T D_in"], routing: Routing, dropout_mask: Float[Tensor, "A F"] | None = None
) -> Float[Tensor, "T D_out"]:
    """Dispatches and combines by one-hot tensors [T, E, C]: algorithm 1 of GShard, arXiv:2006.16668.

    The dispatched input is the sum over T of dispatch * x; y is the sum over (E, C) of combine * outputs.
    Autograd saves both tensors [T, E, C], x, the dispatched input [E, C, D_in], the first product [E, C, H], the
    activation, and the outputs [E, C, D_out]. Nothing is recomputed.
    """
    permutation = permutation_of(routing)
    operands = cast_for_matmul(experts, x)
    expert_ids = routing.expert_ids[permutation.assignments]
    index = (permutation.token_ids, expert_ids, position_in_queue(expert_ids, routing.num_experts))
    zeros = operands.x.new_zeros(len(x), len(permutation.counts), max(permutation.counts))
    dispatch = zeros.index_put(index, zeros.new_ones(()))
    combine = zeros.index_put(index, routing.weights[permutation.assignments].to(zeros.dtype))
    dispatched = torch.einsum("tec,td->ecd", dispatch, operands.x)
    act = expert_activation(
        torch.einsum("ecd,ehd->ech", dispatched, operands.w_in), experts.ffn_type, experts.activation
    )
    if dropout_mask is not None:
        act = act * torch.zeros_like(act).index_put(index[1:], dropout_mask[permutation.assignments].to(act.dtype))
    outputs = torch.einsum("ecf,edf->ecd", act, operands.w_out)
    return torch.einsum("tec,ecd->td", combine, outputs)
