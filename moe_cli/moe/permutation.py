"""How are assignments sorted by expert, and outputs summed by token? The permutation that back ends share.

T tokens, A assignments, R kept assignments (rows), E experts, D width.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from moe_cli.moe.experts import Experts
from moe_cli.moe.routing import Routing, count_ids

# oneDNN multiplies bfloat16 on a CPU. It compiles a kernel for every new number of rows, which takes longer than a
# small product. Multiples of 16 are few; wide products take longer than their kernels, and less padding is better.
WIDE, WIDE_MULTIPLE, NARROW_MULTIPLE = 256, 8, 16


@dataclass(frozen=True)
class Permutation:
    """The kept assignments sorted by expert ("rows"), and the order that sums them by token.

    Padding rows, which `pad_rows` adds, have assignment A and belong to no token.

    Attributes:
        assignments: index of the assignment of each row.
        token_ids: token that each row reads.
        rows_per_expert: rows of each expert, in the order of the rows.
        token_order: indices of the rows, sorted by token.
        token_offsets: start of each token's rows in `token_order`.
        is_padded: whether there are padding rows.
    """

    assignments: Int[Tensor, " R"]
    token_ids: Int[Tensor, " R"]
    rows_per_expert: Int[Tensor, " E"]
    token_order: Int[Tensor, " _"]
    token_offsets: Int[Tensor, " T"]
    is_padded: bool = False

    @cached_property
    def counts(self) -> list[int]:
        """Returns `rows_per_expert` as a list, for which the CPU waits for a GPU."""
        return self.rows_per_expert.tolist()

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.assignments, self.token_ids, self.token_order, self.token_offsets


def permutation_of(routing: Routing) -> Permutation:
    """Sorts the kept assignments of a routing by expert."""
    size = (routing.num_tokens, routing.num_experts)
    if not routing.is_dropless:
        return build_permutation(routing.token_ids, routing.expert_ids, routing.kept, size)
    assert not routing.kept.is_cpu or routing.kept.all(), "is_dropless contradicts kept"
    return build_permutation(routing.token_ids, routing.expert_ids, None, size, routing.tokens_per_expert)


def build_permutation(
    token_ids: Int[Tensor, " A"],
    expert_ids: Int[Tensor, " A"],
    kept: Bool[Tensor, " A"] | None,
    size: tuple[int, int],
    rows_per_expert: Int[Tensor, " E"] | None = None,
) -> Permutation:
    """Sorts kept assignments by expert. On a CPU it uses numpy, whose radix sort was the fastest.

    Args:
        kept: None means that all assignments are kept.
        size: (T, E).
        rows_per_expert: kept assignments of each expert; None means that they are counted here.
    """
    num_tokens, num_experts = size
    assignments = None
    if kept is not None:
        assignments = kept.nonzero().squeeze(1)
        expert_ids, token_ids = expert_ids[assignments], token_ids[assignments]
    by_expert = stable_argsort(expert_ids, num_experts)
    if rows_per_expert is None:
        rows_per_expert = count_ids(expert_ids, num_experts)
    rows = torch.empty_like(by_expert)
    rows[by_expert] = torch.arange(len(by_expert), device=by_expert.device)
    by_token = stable_argsort(token_ids, num_tokens)
    per_token = count_ids(token_ids, num_tokens)
    return Permutation(
        assignments=by_expert if assignments is None else assignments[by_expert],
        token_ids=token_ids[by_expert],
        rows_per_expert=rows_per_expert,
        token_order=rows[by_token],
        token_offsets=per_token.cumsum(0) - per_token,
    )


def row_multiple(x: Float[Tensor, "T D_in"]) -> int:
    """Returns the multiple to which the rows of every expert are rounded up in products with x."""
    if not x.is_cpu or x.dtype != torch.bfloat16:
        return 1
    return WIDE_MULTIPLE if x.shape[1] >= WIDE else NARROW_MULTIPLE


def pad_rows(permutation: Permutation, multiple: int, num_assignments: int) -> Permutation:
    """Rounds the rows of every expert up to a multiple. A padding row reads token 0 until `sorted_inputs` clears it."""
    if multiple == 1:
        return permutation
    counts, device = permutation.rows_per_expert, permutation.token_ids.device
    padded = (counts + multiple - 1).div(multiple, rounding_mode="floor") * multiple
    padding, num_rows, total = padded - counts, len(permutation.token_ids), int(padded.sum())
    padding_before = (padding.cumsum(0) - padding).repeat_interleave(counts, output_size=num_rows)
    rows = torch.arange(num_rows, device=device) + padding_before
    return Permutation(
        assignments=torch.full((total,), num_assignments, device=device).index_copy_(0, rows, permutation.assignments),
        token_ids=permutation.token_ids.new_zeros(total).index_copy_(0, rows, permutation.token_ids),
        rows_per_expert=padded,
        token_order=rows[permutation.token_order],
        token_offsets=permutation.token_offsets,
        is_padded=True,
    )


def sorted_inputs(permutation: Permutation, x: Float[Tensor, "T D"], num_assignments: int) -> Float[Tensor, "R D"]:
    """Returns the token of each row; zeros for padding rows."""
    inputs = x.index_select(0, permutation.token_ids)
    if not permutation.is_padded:
        return inputs
    return inputs.index_fill_(0, (permutation.assignments == num_assignments).nonzero().squeeze(1), 0)


def row_weights(permutation: Permutation, weights: Float[Tensor, " A"]) -> Float[Tensor, " R"]:
    """Returns the weight of each row; 0 for padding rows."""
    weights = F.pad(weights, (0, 1)) if permutation.is_padded else weights
    return weights.index_select(0, permutation.assignments)


def row_masks(permutation: Permutation, mask: Float[Tensor, "A F"], rows: slice = slice(None)) -> Tensor:
    """Returns the mask of each of the `rows`; that of a padding row is arbitrary, because its values are zero."""
    assignments = permutation.assignments[rows]
    return mask[assignments.clamp(max=len(mask) - 1) if permutation.is_padded else assignments]


def stable_argsort(ids: Int[Tensor, " N"], bound: int) -> Int[Tensor, " N"]:
    """Returns the indices that sort ids in [0, bound), equal ids in their order."""
    if ids.device.type != "cpu":
        return torch.argsort(ids, stable=True)
    dtype = np.uint8 if bound <= 2**8 else np.uint16 if bound <= 2**16 else np.int64
    return torch.from_numpy(np.argsort(ids.numpy().astype(dtype), kind="stable"))


def sum_by_token(
    permutation: Permutation, rows: Float[Tensor, "R D"], weights: Tensor | None = None
) -> Float[Tensor, "T D"]:
    """Computes the (weighted) sum of each token's rows; zero for a token without rows."""
    if weights is not None:
        weights = weights.index_select(0, permutation.token_order)
    return F.embedding_bag(
        permutation.token_order, rows, permutation.token_offsets, mode="sum", per_sample_weights=weights
    )


def add_to_tokens(
    permutation: Permutation, rows: Float[Tensor, "R D"], weights: Float[Tensor, " A"], num_tokens: int
) -> Float[Tensor, "T D"]:
    """Computes the weighted sum of each token's rows by `index_add`. Autograd saves the rows.

    Args:
        weights: weight of every assignment, in the order of the record.
    """
    weighted = rows * row_weights(permutation, weights).to(rows.dtype).unsqueeze(1)
    return rows.new_zeros(1, rows.shape[1]).expand(num_tokens, -1).index_add(0, permutation.token_ids, weighted)


@dataclass(frozen=True)
class CastOperands:
    """Input and weights in the precision of the matrix products."""

    x: Float[Tensor, "T D_in"]
    w_in: Float[Tensor, "E H D_in"]
    w_out: Float[Tensor, "E D_out F"]


def operand_dtype(x: Tensor) -> torch.dtype:
    """Returns the dtype of matrix products: autocast's if it is enabled and x is not float64, else that of x."""
    device = x.device.type
    if not torch.is_autocast_enabled(device) or x.dtype == torch.float64:
        return x.dtype
    return torch.get_autocast_dtype(device)


def hidden_multiple(device: str, dtype: torch.dtype) -> int:
    """Returns the multiple to which `pad_hidden` rounds the hidden width up: bfloat16 weights are copies on a CPU."""
    return 8 if device == "cpu" and dtype == torch.bfloat16 else 1


def pad_hidden(operands: CastOperands, multiple: int) -> CastOperands:
    """Rounds the hidden width up to a multiple with hidden units whose weights are zero."""
    width = operands.w_out.shape[2]
    if width % multiple == 0:
        return operands
    padding, parts = -width % multiple, operands.w_in.unflatten(1, (-1, width))
    return CastOperands(operands.x, F.pad(parts, (0, 0, 0, padding)).flatten(1, 2), F.pad(operands.w_out, (0, padding)))


def cast_for_matmul(experts: Experts, x: Float[Tensor, "T D_in"]) -> CastOperands:
    """Casts input and weights explicitly, because autocast casts neither products with `out=` nor grouped products."""
    if not torch.is_autocast_enabled(x.device.type):
        return CastOperands(x, experts.w_in, experts.w_out)
    dtype = operand_dtype(x)
    return CastOperands(x.to(dtype), experts.w_in.to(dtype), experts.w_out.to(dtype))
