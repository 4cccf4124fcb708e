"""How are experts computed fast on a CPU? One after the other over contiguous rows, with a hand-written backward.

T tokens, A assignments, R kept assignments (rows), E experts, D widths, F hidden width, H = 2F (gated) or F.
"""

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from moe_cli.moe.experts import Experts, activate
from moe_cli.moe.permutation import (
    Permutation,
    build_permutation,
    cast_for_matmul,
    pad_rows,
    permutation_of,
    row_masks,
    row_multiple,
    row_weights,
    sorted_inputs,
    sum_by_token,
)
from moe_cli.moe.routing import Routing

# Pointwise operations process about this number of rows at a time, which fit in the processor's cache.
CHUNK_ROWS = 512


def loop(
    experts: Experts, x: Float[Tensor, "T D_in"], routing: Routing, dropout_mask: Float[Tensor, "A F"] | None = None
) -> Float[Tensor, "T D_out"]:
    """Sorts rows by expert and computes one matrix product per expert: fast on a CPU, correct on any device.

    Saved for backward: x [T, D_in], the weights [A], the permutation, the first product [R, H], and the mask if there
    is one. (When compiled, the first product has A rows or more, because R is unknown.) Backward recomputes the sorted
    input and the activation. It does not need the experts' outputs, because d(weight) = <dy W_out, hidden>.
    """
    operands = cast_for_matmul(experts, x)
    if torch.compiler.is_compiling():
        return experts_loop_op(  # type: ignore[no-any-return]
            operands.x,
            routing.token_ids,
            routing.expert_ids,
            routing.weights,
            routing.kept,
            operands.w_in,
            operands.w_out,
            dropout_mask,
            experts.ffn_type,
            experts.activation,
        )[0]
    return _ExpertsLoop.apply(  # type: ignore[no-any-return]
        operands.x,
        routing.weights,
        operands.w_in,
        operands.w_out,
        dropout_mask,
        pad_rows(permutation_of(routing), row_multiple(operands.x), len(routing.weights)),
        (experts.ffn_type, experts.activation),
    )


def chunks(counts: list[int]) -> list[tuple[range, slice]]:
    """Groups neighbouring experts up to CHUNK_ROWS rows; returns the experts and the rows of each group.

    Args:
        counts: rows of each expert.
    """
    ends = list(accumulate(counts))
    groups, first = [], 0
    for expert in range(len(counts)):
        start = ends[first] - counts[first]
        is_last = expert + 1 == len(counts)
        if is_last or ends[expert + 1] - start > CHUNK_ROWS:
            groups.append((range(first, expert + 1), slice(start, ends[expert])))
            first = expert + 1
    return groups


@dataclass(frozen=True)
class SavedForBackward:
    """Tensors that forward saves for backward.

    Attributes:
        pre: the first product, in its first R rows.
        dropout_mask: factors of the hidden values; None means 1.
    """

    x: Float[Tensor, "T D_in"]
    weights: Float[Tensor, " A"]
    w_in: Float[Tensor, "E H D_in"]
    w_out: Float[Tensor, "E D_out F"]
    pre: Float[Tensor, "_ H"]
    dropout_mask: Float[Tensor, "A F"] | None

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return self.x, self.weights, self.w_in, self.w_out, self.pre, self.dropout_mask

    def drop_(self, values: Float[Tensor, "N F"], permutation: Permutation, rows: slice) -> Float[Tensor, "N F"]:
        """Multiplies the values of these rows by their dropout masks, in place, and returns them."""
        return values if self.dropout_mask is None else values.mul_(row_masks(permutation, self.dropout_mask, rows))


def _forward(
    saved: SavedForBackward, permutation: Permutation, ffn_type: str, activation: str
) -> Float[Tensor, "T D_out"]:
    """Returns the output and fills `saved.pre`."""
    inputs, pre = sorted_inputs(permutation, saved.x, len(saved.weights)), saved.pre[: len(permutation.token_ids)]
    outputs = inputs.new_empty(len(inputs), saved.w_out.shape[1])
    w_in_t, w_out_t = saved.w_in.transpose(1, 2).unbind(0), saved.w_out.transpose(1, 2).unbind(0)
    inputs_of, pre_of, outputs_of = (rows.split(permutation.counts) for rows in (inputs, pre, outputs))
    for experts, rows in chunks(permutation.counts):
        for e in experts:
            torch.mm(inputs_of[e], w_in_t[e], out=pre_of[e])
        hidden = saved.drop_(activate(pre[rows], ffn_type, activation).values, permutation, rows)
        for e, hidden_e in zip(experts, hidden.split(permutation.counts[experts.start : experts.stop]), strict=True):
            torch.mm(hidden_e, w_out_t[e], out=outputs_of[e])
    return sum_by_token(permutation, outputs, row_weights(permutation, saved.weights).to(outputs.dtype))


def _backward(
    grad_y: Tensor, saved: SavedForBackward, permutation: Permutation, ffn_type: str, activation: str
) -> tuple[Tensor, ...]:
    """Returns the gradients of x, weights, w_in and w_out."""
    pre = saved.pre[: len(permutation.token_ids)]
    w_in, w_out = saved.w_in.unbind(0), saved.w_out.unbind(0)
    inputs = sorted_inputs(permutation, saved.x, len(saved.weights))
    grads = grad_y.index_select(0, permutation.token_ids)
    weights = row_weights(permutation, saved.weights)
    scale = weights.to(grads.dtype).unsqueeze(1)
    grad_weights_of_rows, grad_inputs = torch.empty_like(weights), torch.empty_like(inputs)
    grad_w_in, grad_w_out = torch.empty_like(saved.w_in), torch.empty_like(saved.w_out)
    inputs_of, grads_of, grad_inputs_of = (rows.split(permutation.counts) for rows in (inputs, grads, grad_inputs))
    grad_w_in_of, grad_w_out_of = grad_w_in.unbind(0), grad_w_out.unbind(0)
    for experts, rows in chunks(permutation.counts):
        counts = permutation.counts[experts.start : experts.stop]
        grad_hidden = pre.new_empty(rows.stop - rows.start, saved.w_out.shape[2])
        for e, target in zip(experts, grad_hidden.split(counts), strict=True):
            torch.mm(grads_of[e], w_out[e], out=target)
        saved.drop_(grad_hidden, permutation, rows)
        hidden = activate(pre[rows], ffn_type, activation)
        grad_weights_of_rows[rows] = (grad_hidden * hidden.values).sum(1, dtype=weights.dtype)
        grad_pre = hidden.backward(grad_hidden.mul_(scale[rows]))
        weighted = saved.drop_(hidden.values, permutation, rows).mul_(scale[rows])
        for e, hidden_e, grad_pre_e in zip(experts, weighted.split(counts), grad_pre.split(counts), strict=True):
            torch.mm(grads_of[e].T, hidden_e, out=grad_w_out_of[e])
            torch.mm(grad_pre_e.T, inputs_of[e], out=grad_w_in_of[e])
            torch.mm(grad_pre_e, w_in[e], out=grad_inputs_of[e])
    # The last entry is that of padding rows.
    grad_weights = saved.weights.new_zeros(len(saved.weights) + 1)
    grad_weights = grad_weights.index_copy_(0, permutation.assignments, grad_weights_of_rows)[:-1]
    return sum_by_token(permutation, grad_inputs), grad_weights, grad_w_in, grad_w_out


class _ExpertsLoop(torch.autograd.Function):
    """The loop in eager execution; `loop` lists the saved tensors."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weights: Tensor,
        w_in: Tensor,
        w_out: Tensor,
        dropout_mask: Tensor | None,
        permutation: Permutation,
        ffn_type_and_activation: tuple[str, str],
    ) -> Tensor:
        pre = x.new_empty(len(permutation.token_ids), w_in.shape[1])
        saved = SavedForBackward(x, weights, w_in, w_out, pre, dropout_mask)
        # From the list and on the CPU, so that the backward pass does not wait for a GPU again.
        ctx.rows_per_expert, ctx.ffn_type_and_activation = torch.tensor(permutation.counts), ffn_type_and_activation
        ctx.is_padded = permutation.is_padded
        ctx.save_for_backward(*saved.tensors, *permutation.tensors)
        return _forward(saved, permutation, *ffn_type_and_activation)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        *saved, assignments, token_ids, token_order, token_offsets = ctx.saved_tensors
        permutation = Permutation(
            assignments, token_ids, ctx.rows_per_expert, token_order, token_offsets, ctx.is_padded
        )
        return *_backward(grad_y, SavedForBackward(*saved), permutation, *ctx.ffn_type_and_activation), None, None, None


def _new_pre(x: Tensor, num_assignments: int, w_in: Tensor) -> Float[Tensor, "_ H"]:
    """Returns an empty first product with as many rows as any routing of the assignments can need."""
    return x.new_empty(num_assignments + w_in.shape[0] * (row_multiple(x) - 1), w_in.shape[1])


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
    pre = _new_pre(x, len(expert_ids), w_in)
    saved = SavedForBackward(x, weights, w_in, w_out, pre, dropout_mask)
    return _forward(saved, permutation, ffn_type, activation), pre


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
    saved = SavedForBackward(x, weights, w_in, w_out, pre, dropout_mask)
    return _backward(grad_y, saved, permutation, ffn_type, activation)


@experts_loop_op.register_fake
def _fake_forward(x: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    _, expert_ids, _, _, w_in, w_out, *_ = others
    return x.new_empty(x.shape[0], w_out.shape[1]), _new_pre(x, expert_ids.shape[0], w_in)


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
