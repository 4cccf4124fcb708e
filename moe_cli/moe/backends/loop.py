"""How are experts computed fast on a CPU? One after the other over contiguous rows.

T tokens, A assignments, R kept assignments (rows), E experts, D widths, F hidden width, H = 2F (gated) or F.
"""

from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from moe_cli.config.layer_costs import LOOP_CHUNK_ROWS
from moe_cli.moe.backends.sorted_experts import (
    BackwardRows,
    Operands,
    RowGradients,
    compute_backward,
    compute_experts,
    compute_forward,
)
from moe_cli.moe.experts import Experts
from moe_cli.moe.permutation import (
    Permutation,
    build_permutation,
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
    is one. (When compiled, the first product has A rows or more, because R is unknown.) Backward recomputes the sorted
    input and the activation.
    """
    cast = cast_for_matmul(experts, x)
    if torch.compiler.is_compiling():
        return experts_loop_op(  # type: ignore[no-any-return]
            cast.x,
            routing.token_ids,
            routing.expert_ids,
            routing.weights,
            routing.kept,
            cast.w_in,
            cast.w_out,
            dropout_mask,
            experts.ffn_type,
            experts.activation,
        )[0]
    permutation = pad_rows(permutation_of(routing), row_multiple(cast.x), len(routing.weights))
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
            grad_weights[chunk] = (grad_hidden * hidden.values).sum(1, dtype=grad_weights.dtype)
            grad_pre = hidden.backward(grad_hidden).split(chunk_counts)
            dropped = operands.drop_(hidden.values, permutation, chunk).split(chunk_counts)
            for e, hidden_e, grad_pre_e in zip(experts, dropped, grad_pre, strict=True):
                torch.mm(weighted_grads_of[e].T, hidden_e, out=grad_w_out[e])
                torch.mm(grad_pre_e.T, inputs_of[e], out=grad_w_in[e])
                torch.mm(grad_pre_e, w_in[e], out=grad_inputs_of[e])
        return gradients


def _max_rows(x: Tensor, num_assignments: int, num_experts: int) -> int:
    """Returns the most rows that any routing of the assignments can need."""
    return num_assignments + num_experts * (row_multiple(x) - 1)


# The loop under torch.compile. It cannot be traced, because the number of rows of an expert depends on the data. It is
# therefore one operator, which also sorts. Eager execution does not use it: calling an operator takes longer than a
# small layer.
@torch.library.custom_op(
    "moe_cli::experts_loop",
    mutates_args=(),
    schema="(Tensor x, Tensor token_ids, Tensor expert_ids, Tensor weights, Tensor kept, Tensor w_in, Tensor w_out, "
    "Tensor? dropout_mask, str ffn_type, str activation) -> (Tensor, Tensor)",
)
def experts_loop_op(  # noqa: PLR0913  (an operator takes tensors one by one)
    x: Tensor,
    token_ids: Tensor,
    expert_ids: Tensor,
    weights: Tensor,
    kept: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    dropout_mask: Tensor | None,
    ffn_type: str,
    activation: str,
) -> tuple[Tensor, Tensor]:
    permutation = build_permutation(token_ids, expert_ids, kept, (len(x), len(w_in)))
    permutation = pad_rows(permutation, row_multiple(x), len(weights))
    operands = Operands(x, weights, w_in, w_out, dropout_mask, ffn_type, activation)
    y, pre = compute_forward(LoopProducts(), operands, permutation)
    return y, pre.resize_(_max_rows(x, len(expert_ids), len(w_in)), pre.shape[1])


@torch.library.custom_op(
    "moe_cli::experts_loop_backward",
    mutates_args=(),
    schema="(Tensor grad_y, Tensor x, Tensor token_ids, Tensor expert_ids, Tensor weights, Tensor kept, Tensor w_in, "
    "Tensor w_out, Tensor? dropout_mask, Tensor pre, str ffn_type, str activation) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _compiled_backward(  # noqa: PLR0913  (an operator takes tensors one by one)
    grad_y: Tensor,
    x: Tensor,
    token_ids: Tensor,
    expert_ids: Tensor,
    weights: Tensor,
    kept: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    dropout_mask: Tensor | None,
    pre: Tensor,
    ffn_type: str,
    activation: str,
) -> tuple[Tensor, ...]:
    permutation = build_permutation(token_ids, expert_ids, kept, (len(x), len(w_in)))
    permutation = pad_rows(permutation, row_multiple(x), len(weights))
    operands = Operands(x, weights, w_in, w_out, dropout_mask, ffn_type, activation)
    return compute_backward(LoopProducts(), operands, permutation, pre[: len(permutation.token_ids)], grad_y)


@experts_loop_op.register_fake
def _fake_forward(x: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    _, expert_ids, _, _, w_in, w_out, *_ = others
    max_rows = _max_rows(x, expert_ids.shape[0], w_in.shape[0])
    return x.new_empty(x.shape[0], w_out.shape[1]), x.new_empty(max_rows, w_in.shape[1])


@_compiled_backward.register_fake
def _fake_backward(grad_y: Tensor, x: Tensor, *others: Any) -> tuple[Tensor, ...]:
    _, _, weights, _, w_in, w_out, *_ = others
    return tuple(torch.empty_like(tensor) for tensor in (x, weights, w_in, w_out))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ffn_type, activation = inputs
    ctx.set_materialize_grads(False)
    ctx.ffn_type_and_activation = (ffn_type, activation)
    ctx.save_for_backward(*tensors, output[1])


def _backward_formula(ctx: Any, grad_y: Tensor, grad_pre: None) -> tuple[Tensor | None, ...]:
    x, weights, w_in, w_out = _compiled_backward(grad_y, *ctx.saved_tensors, *ctx.ffn_type_and_activation)
    return x, None, None, weights, None, w_in, w_out, None, None, None


experts_loop_op.register_autograd(_backward_formula, setup_context=_setup_context)
