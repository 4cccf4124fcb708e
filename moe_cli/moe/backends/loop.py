"""How are experts computed fast on a CPU? One after the other over contiguous rows.

T tokens, A assignments, R kept assignments (rows), E experts, D widths, F hidden width, H = 2F (gated) or F.
"""

from itertools import accumulate

import torch
from jaxtyping import Float
from torch import Tensor

from moe_cli.config.layer_costs import LOOP_CHUNK_ROWS
from moe_cli.moe.backends.sorted_experts import (
    BackwardRows,
    Operands,
    RowGradients,
    compute_experts,
)
from moe_cli.moe.backends.traced import traced_experts
from moe_cli.moe.experts import Experts
from moe_cli.moe.permutation import (
    Permutation,
    cast_for_matmul,
    pad_rows,
    permutation_of,
    row_multiple,
)
from moe_cli.moe.routing import Routing


def loop(
    experts: Experts, x: Float[Tensor, "T D_in"], routing: Routing, dropout_mask: Float[Tensor, "A F"] | None = None
) -> Float[Tensor, "T D_out"]:
    """Sorts rows by expert and computes one matrix product per expert: fast on a CPU, correct on any device.

    Saved for backward: x [T, D_in], the weights [A], the permutation, the first product [R, H], and the mask if there
    is one. Backward recomputes the sorted input and the activation. When compiled, the compiler decides
    (`moe_cli.moe.backends.traced`).
    """
    cast = cast_for_matmul(experts, x)
    multiple = row_multiple(cast.x)
    if torch.compiler.is_compiling():
        network = experts.ffn_type, experts.activation
        return traced_experts(cast, network, routing, dropout_mask, multiple)
    permutation = pad_rows(permutation_of(routing), multiple, len(routing.weights))
    operands = Operands(
        cast.x, routing.weights, cast.w_in, cast.w_out, dropout_mask, experts.ffn_type, experts.activation
    )
    return compute_experts(LoopProducts(), operands, permutation)


def chunks(counts: list[int]) -> list[tuple[range, slice]]:
    """Groups neighbouring experts up to LOOP_CHUNK_ROWS rows; returns the experts and the rows of each group.

    Args:
        counts: rows of each expert.
    """
    ends = list(accumulate(counts))
    groups, first = [], 0
    for expert in range(len(counts)):
        start = ends[first] - counts[first]
        is_last = expert + 1 == len(counts)
        if is_last or ends[expert + 1] - start > LOOP_CHUNK_ROWS:
            groups.append((range(first, expert + 1), slice(start, ends[expert])))
            first = expert + 1
    return groups


class LoopProducts:
    """One product after the other, and pointwise operations over chunks of rows."""

    def forward(
        self, operands: Operands, permutation: Permutation, inputs: Float[Tensor, "R D_in"]
    ) -> tuple[Float[Tensor, "R D_out"], Float[Tensor, "R H"]]:
        counts = permutation.counts
        pre = inputs.new_empty(len(inputs), operands.w_in.shape[1])
        outputs = inputs.new_empty(len(inputs), operands.w_out.shape[1])
        w_in_t, w_out_t = operands.w_in.transpose(1, 2).unbind(0), operands.w_out.transpose(1, 2).unbind(0)
        inputs_of, pre_of, outputs_of = (rows.split(counts) for rows in (inputs, pre, outputs))
        for experts, rows in chunks(counts):
            for e in experts:
                torch.mm(inputs_of[e], w_in_t[e], out=pre_of[e])
            hidden = operands.drop_(operands.hidden(pre[rows]).values, permutation, rows)
            for e, hidden_e in zip(experts, hidden.split(counts[experts.start : experts.stop]), strict=True):
                torch.mm(hidden_e, w_out_t[e], out=outputs_of[e])
        return outputs, pre

    def backward(self, operands: Operands, permutation: Permutation, rows: BackwardRows) -> RowGradients:
        counts, grad_weights = permutation.counts, operands.weights.new_empty(len(rows.pre))
        gradients = RowGradients(
            torch.empty_like(rows.inputs),
            grad_weights,
            torch.empty_like(operands.w_in),
            torch.empty_like(operands.w_out),
        )
        of_experts = (rows.inputs, rows.grads, rows.weighted_grads, gradients.inputs)
        inputs_of, grads_of, weighted_grads_of, grad_inputs_of = (tensor.split(counts) for tensor in of_experts)
        stacks = (operands.w_in, operands.w_out, gradients.w_in, gradients.w_out)
        w_in, w_out, grad_w_in, grad_w_out = (stack.unbind(0) for stack in stacks)
        for experts, chunk in chunks(counts):
            chunk_counts = counts[experts.start : experts.stop]
            grad_hidden = rows.grads.new_empty(chunk.stop - chunk.start, operands.w_out.shape[2])
            for e, target in zip(experts, grad_hidden.split(chunk_counts), strict=True):
                torch.mm(grads_of[e], w_out[e], out=target)
            operands.drop_(grad_hidden, permutation, chunk)
            hidden = operands.hidden(rows.pre[chunk])
            values = hidden.values
            grad_weights[chunk] = (grad_hidden * values).sum(1, dtype=grad_weights.dtype)
            grad_pre = hidden.backward(grad_hidden).split(chunk_counts)
            dropped = operands.drop_(values, permutation, chunk).split(chunk_counts)
            for e, hidden_e, grad_pre_e in zip(experts, dropped, grad_pre, strict=True):
                torch.mm(weighted_grads_of[e].T, hidden_e, out=grad_w_out[e])
                torch.mm(grad_pre_e.T, inputs_of[e], out=grad_w_in[e])
                torch.mm(grad_pre_e, w_in[e], out=grad_inputs_of[e])
        return gradients
