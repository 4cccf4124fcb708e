"""The experts over rows that are sorted by expert, with a hand-written backward pass that several back ends share.

T tokens, A assignments, R kept assignments (rows), E experts, D widths, F hidden width, H = 2F (gated) or F.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from moe_cli.moe.experts import Hidden, activate
from moe_cli.moe.permutation import Permutation, row_masks, row_weights, sorted_inputs, sum_by_token


@dataclass(frozen=True)
class Operands:
    """The arguments of the experts' computation.

    Attributes:
        dropout_mask: factors of the hidden values; None means 1.
    """

    x: Float[Tensor, "T D_in"]
    weights: Float[Tensor, " A"]
    w_in: Float[Tensor, "E H D_in"]
    w_out: Float[Tensor, "E D_out F"]
    dropout_mask: Float[Tensor, "A F"] | None
    ffn_type: str
    activation: str

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return self.x, self.weights, self.w_in, self.w_out, self.dropout_mask

    def hidden(self, pre: Float[Tensor, "N H"]) -> Hidden:
        """Computes the hidden values, before dropout, from the first product."""
        return activate(pre, self.ffn_type, self.activation)

    def drop_(self, values: Float[Tensor, "N F"], permutation: Permutation, rows: slice) -> Float[Tensor, "N F"]:
        """Multiplies the values of these rows by their dropout masks, in place, and returns them."""
        return values if self.dropout_mask is None else values.mul_(row_masks(permutation, self.dropout_mask, rows))


@dataclass(frozen=True)
class BackwardRows:
    """The rows of a backward pass, sorted by expert.

    The gradient of the experts' outputs is `grads` times the weight of the row. The weights multiply vectors of the
    model's width alone, which is cheaper than hidden vectors: inputs and gradients before the products with them, and
    the gradients of the inputs where they are summed.

    Attributes:
        inputs: input of each row, multiplied by its weight.
        grads: gradient of the output of the token of each row.
        weighted_grads: the same, multiplied by the weight of the row.
        pre: the first product.
    """

    inputs: Float[Tensor, "R D_in"]
    grads: Float[Tensor, "R D_out"]
    weighted_grads: Float[Tensor, "R D_out"]
    pre: Float[Tensor, "R H"]


@dataclass(frozen=True)
class RowGradients:
    """The gradients of the sorted rows and of the weights.

    Attributes:
        inputs: gradient of the input of each row, before the multiplication by its weight.
        weights: gradient of the weight of each row.
    """

    inputs: Float[Tensor, "R D_in"]
    weights: Float[Tensor, " R"]
    w_in: Float[Tensor, "E H D_in"]
    w_out: Float[Tensor, "E D_out F"]


@runtime_checkable
class Products(Protocol):
    """The matrix products of a back end."""

    def forward(
        self, operands: Operands, permutation: Permutation, inputs: Float[Tensor, "R D_in"]
    ) -> tuple[Float[Tensor, "R D_out"], Float[Tensor, "R H"]]:
        """Returns the experts' outputs and the first product, from the sorted inputs."""
        ...

    def backward(self, operands: Operands, permutation: Permutation, rows: BackwardRows) -> RowGradients:
        """Returns the gradients of the rows and of the experts' weights."""
        ...


def compute_forward(
    products: Products, operands: Operands, permutation: Permutation
) -> tuple[Float[Tensor, "T D_out"], Float[Tensor, "R H"]]:
    """Returns the output and the first product."""
    inputs = sorted_inputs(permutation, operands.x, len(operands.weights))
    outputs, pre = products.forward(operands, permutation, inputs)
    return sum_by_token(permutation, outputs, row_weights(permutation, operands.weights).to(outputs.dtype)), pre


def compute_backward(
    products: Products,
    operands: Operands,
    permutation: Permutation,
    pre: Float[Tensor, "R H"],
    grad_y: Float[Tensor, "T D_out"],
) -> tuple[Tensor, ...]:
    """Returns the gradients of x, weights, w_in and w_out.

    The experts' outputs are not needed, because d(weight) = <dy W_out, hidden>.
    """
    weights = row_weights(permutation, operands.weights).to(grad_y.dtype)
    inputs = sorted_inputs(permutation, operands.x, len(operands.weights)).mul_(weights.unsqueeze(1))
    grads = grad_y.index_select(0, permutation.token_ids)
    rows = BackwardRows(inputs, grads, grads * weights.unsqueeze(1), pre)
    of_rows = products.backward(operands, permutation, rows)
    # The last entry is that of padding rows.
    grad_weights = operands.weights.new_zeros(len(operands.weights) + 1)
    grad_weights = grad_weights.index_copy_(0, permutation.assignments, of_rows.weights)[:-1]
    grad_x = sum_by_token(permutation, of_rows.inputs, weights.to(of_rows.inputs.dtype))
    return grad_x, grad_weights, of_rows.w_in, of_rows.w_out


def compute_experts(products: Products, operands: Operands, permutation: Permutation) -> Float[Tensor, "T D_out"]:
    """Computes the output of all tokens. Autograd saves the operands, the permutation and the first product."""
    return _SortedExperts.apply(  # type: ignore[no-any-return]
        *operands.tensors, permutation, products, (operands.ffn_type, operands.activation)
    )


class _SortedExperts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        *tensors, permutation, products, network = inputs
        y, pre = compute_forward(products, Operands(*tensors, *network), permutation)
        # If the CPU has read the counts, backward takes them from there, so that it does not wait for a GPU again.
        has_counts = "counts" in vars(permutation)
        ctx.rows_per_expert = torch.tensor(permutation.counts) if has_counts else permutation.rows_per_expert
        ctx.is_padded, ctx.products, ctx.network = permutation.is_padded, products, network
        ctx.save_for_backward(*tensors, pre, *permutation.tensors)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, pre, assignments, token_ids, token_order, token_offsets = ctx.saved_tensors
        permutation = Permutation(
            assignments, token_ids, ctx.rows_per_expert, token_order, token_offsets, ctx.is_padded
        )
        gradients = compute_backward(ctx.products, Operands(*tensors, *ctx.network), permutation, pre, grad_y)
        return *gradients, None, None, None, None
