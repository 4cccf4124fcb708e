"""How does torch.compile see the experts? As a graph of sorting, products and sums, whose pointwise parts it fuses.

The products are two operators, because their sizes depend on the data. Eager execution does not use this module: its
hand-written backward pass saves less, and makes fewer passes over the rows.

T tokens, A assignments, R rows, E experts, D widths, F hidden width, H = 2F (gated) or F.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from moe_cli.moe.experts import expert_activation
from moe_cli.moe.permutation import CastOperands, Permutation, row_masks, row_weights
from moe_cli.moe.routing import Routing


def traced_experts(
    cast: CastOperands,
    network: tuple[str, str],
    routing: Routing,
    dropout_mask: Float[Tensor, "A F"] | None,
    multiple: int,
) -> Float[Tensor, "T D_out"]:
    """Computes the output of all tokens from operations that the compiler can trace.

    Args:
        network: the type of the network and its activation.
        multiple: the rows of every expert are rounded up to a multiple of it.
    """
    permutation, ends = _permutation(routing, multiple)
    order = (permutation.token_ids, permutation.token_order, permutation.token_offsets)
    inputs = _GatherRows.apply(cast.x, *order)
    act = expert_activation(expert_products(inputs, cast.w_in, ends), *network)
    if dropout_mask is not None:
        act = act * row_masks(permutation, dropout_mask).to(act.dtype)
    outputs = expert_products(act, cast.w_out, ends)
    weighted = outputs * row_weights(permutation, routing.weights).to(outputs.dtype).unsqueeze(1)
    return _SumRows.apply(weighted, *order)  # type: ignore[no-any-return]


def _permutation(routing: Routing, multiple: int) -> tuple[Permutation, Int[Tensor, " E"]]:
    """Sorts all assignments by expert, dropped ones last, and returns the end of each expert's rows too.

    The number of rows does not depend on the data: there are A + E (multiple - 1). Rows of padding and of dropped
    assignments read a token, but have weight zero, or follow the last expert.
    """
    num_assignments, num_experts, device = len(routing.expert_ids), routing.num_experts, routing.expert_ids.device
    multiple = multiple if num_assignments else 1  # without rows there is no token for padding to read
    keys = routing.expert_ids if routing.is_dropless else routing.expert_ids.where(routing.kept, num_experts)
    order = torch.argsort(keys, stable=True)
    ends = torch.searchsorted(keys[order], torch.arange(num_experts, device=device), right=True)
    rows = torch.arange(num_assignments, device=device)
    if multiple > 1:
        padding = ends.diff(prepend=ends.new_zeros(1)).neg() % multiple
        ends = ends + padding.cumsum(0)
        rows = rows + F.pad(padding.cumsum(0), (1, 0))[keys[order]]
    total = num_assignments + num_experts * (multiple - 1)
    row_of = torch.empty_like(rows).index_copy(0, order, rows)
    by_token = torch.argsort(routing.token_ids, stable=True)
    tokens = torch.arange(routing.num_tokens, device=device)
    permutation = Permutation(
        assignments=torch.full((total,), num_assignments, device=device).index_copy(0, rows, order),
        token_ids=torch.zeros(total, dtype=torch.int64, device=device).index_copy(0, rows, routing.token_ids[order]),
        rows_per_expert=ends,
        token_order=row_of[by_token],
        token_offsets=torch.searchsorted(routing.token_ids[by_token], tokens),
        is_padded=True,
    )
    return permutation, ends


class _GatherRows(torch.autograd.Function):
    """The token of each row. Its gradient is a sum by token, which the compiler itself would compute more slowly."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, token_ids: Tensor, token_order: Tensor, token_offsets: Tensor) -> Tensor:
        ctx.save_for_backward(token_order, token_offsets)
        return x.index_select(0, token_ids)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        token_order, token_offsets = ctx.saved_tensors
        return F.embedding_bag(token_order, grad, token_offsets, mode="sum"), None, None, None


class _SumRows(torch.autograd.Function):
    """The sum of the rows of each token. Its gradient is that of the token of each row."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, token_ids: Tensor, token_order: Tensor, token_offsets: Tensor) -> Tensor:
        ctx.save_for_backward(token_ids)
        return F.embedding_bag(token_order, rows, token_offsets, mode="sum")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (token_ids,) = ctx.saved_tensors
        return grad.index_select(0, token_ids), None, None, None


@torch.library.custom_op(
    "moe_cli::expert_products", mutates_args=(), schema="(Tensor rows, Tensor weights, Tensor ends) -> Tensor"
)
def expert_products(
    rows: Float[Tensor, "R I"], weights: Float[Tensor, "E O I"], ends: Int[Tensor, " E"]
) -> Float[Tensor, "R O"]:
    """Multiplies the rows of each expert by its transposed weights; rows after the last end are zero."""
    result, start = rows.new_empty(len(rows), weights.shape[1]), 0
    for weight, end in zip(weights.transpose(1, 2).unbind(0), ends.tolist(), strict=True):
        torch.mm(rows[start:end], weight, out=result[start:end])
        start = end
    result[start:].zero_()
    return result


@torch.library.custom_op(
    "moe_cli::expert_weight_gradients", mutates_args=(), schema="(Tensor grads, Tensor rows, Tensor ends) -> Tensor"
)
def _weight_gradients(
    grads: Float[Tensor, "R O"], rows: Float[Tensor, "R I"], ends: Int[Tensor, " E"]
) -> Float[Tensor, "E O I"]:
    result, start = rows.new_empty(len(ends), grads.shape[1], rows.shape[1]), 0
    for weight, end in zip(result.unbind(0), ends.tolist(), strict=True):
        torch.mm(grads[start:end].T, rows[start:end], out=weight)
        start = end
    return result


@expert_products.register_fake
def _fake_products(rows: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    return rows.new_empty(rows.shape[0], weights.shape[1])


@_weight_gradients.register_fake
def _fake_weight_gradients(grads: Tensor, rows: Tensor, ends: Tensor) -> Tensor:
    return rows.new_empty(ends.shape[0], grads.shape[1], rows.shape[1])


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    rows, weights, ends = ctx.saved_tensors
    return expert_products(grad, weights.transpose(1, 2), ends), _weight_gradients(grad, rows, ends), None


expert_products.register_autograd(_backward, setup_context=_setup_context)
