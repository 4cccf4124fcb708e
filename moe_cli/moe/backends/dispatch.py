"""The back ends that compute the experts of a routing, and the choice of `auto`.

A back end maps (experts, x, routing, dropout_mask) to y. `reference` is the slow definition, which the others must
equal. The mask multiplies the hidden values of every assignment: it holds 0, or 1 / (1 - p) for a value that is kept.
T tokens, A assignments, R kept assignments (rows), E experts, D widths, F hidden width, H = 2F (gated) or F.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from moe_cli.errors import ConfigError
from moe_cli.moe.backends.loop import loop
from moe_cli.moe.backends.one_hot import einsum
from moe_cli.moe.backends.sorted_experts import BackwardRows, Operands, RowGradients, compute_experts
from moe_cli.moe.experts import Experts, expert_activation
from moe_cli.moe.permutation import (
    Permutation,
    add_to_tokens,
    cast_for_matmul,
    hidden_multiple,
    operand_dtype,
    pad_hidden,
    pad_rows,
    permutation_of,
    row_masks,
    row_multiple,
    sorted_inputs,
)
from moe_cli.moe.routing import Routing

# Pointwise operations process about this number of values of the first product at a time, for a processor's cache.
CHUNK_VALUES = 2**19
# From this number of multiply-adds in the first product of an expert on, a CPU computes the loop faster.
LOOP_MULTIPLY_ADDS = {torch.float32: 10**7, torch.bfloat16: 3 * 10**7}


def reference(
    experts: Experts, x: Float[Tensor, "T D_in"], routing: Routing, dropout_mask: Float[Tensor, "A F"] | None = None
) -> Float[Tensor, "T D_out"]:
    """Computes one assignment at a time: y_t = sum of weight * expert(x_t) over the kept assignments of token t.

    This is the definition of every back end. Autograd saves every intermediate value.
    """
    rows: list[list[Tensor]] = [[] for _ in range(routing.num_tokens)]
    for a in range(len(routing.token_ids)):
        if routing.kept[a]:
            token, expert = int(routing.token_ids[a]), int(routing.expert_ids[a])
            factors = None if dropout_mask is None else dropout_mask[a]
            output = experts.forward_one(expert, x[token : token + 1], factors)[0]
            rows[token].append(routing.weights[a].to(output.dtype) * output)
    zeros = x.new_zeros(experts.w_out.shape[1])
    sums = [torch.stack(row).sum(0) if row else zeros for row in rows]
    return torch.stack(sums) if sums else x.new_zeros(0, len(zeros))


def grouped_mm(
    experts: Experts, x: Float[Tensor, "T D_in"], routing: Routing, dropout_mask: Float[Tensor, "A F"] | None = None
) -> Float[Tensor, "T D_out"]:
    """Sorts rows by expert and uses torch's grouped matrix product, which is fast on a GPU.

    Saves for backward, and recomputes there, what `loop` does. When compiled, the compiler decides.

    Raises:
        ConfigError: torch has no grouped product for this device or precision, or a width is not a multiple of 16
            bytes.
    """
    query = backend_query(experts, operand_dtype(x))
    if not grouped_mm_supported(query):
        raise ConfigError(
            f"dispatch=grouped_mm is not available for {query.dtype} on {query.device} with widths {query.widths}. "
            "Use dispatch=auto, or widths that are multiples of 16 bytes."
        )
    cast = pad_hidden(cast_for_matmul(experts, x), hidden_multiple(query.device, query.dtype))
    permutation = pad_rows(permutation_of(routing), row_multiple(cast.x), len(routing.weights))
    if dropout_mask is not None:
        dropout_mask = F.pad(dropout_mask, (0, cast.w_out.shape[2] - dropout_mask.shape[1]))
    operands = Operands(
        cast.x, routing.weights, cast.w_in, cast.w_out, dropout_mask, experts.ffn_type, experts.activation
    )
    if not query.compiling:
        return compute_experts(GroupedProducts(), operands, permutation)
    ends = permutation.rows_per_expert.cumsum(0, dtype=torch.int32)
    inputs = sorted_inputs(permutation, cast.x, len(routing.weights))
    pre = F.grouped_mm(inputs, cast.w_in.transpose(1, 2), offs=ends)
    act = expert_activation(pre, experts.ffn_type, experts.activation)
    if dropout_mask is not None:
        act = act * row_masks(permutation, dropout_mask).to(act.dtype)
    outputs = F.grouped_mm(act, cast.w_out.transpose(1, 2), offs=ends)
    return add_to_tokens(permutation, outputs, routing.weights, len(x))


class GroupedProducts:
    """One product for all experts."""

    def forward(
        self, operands: Operands, permutation: Permutation, inputs: Float[Tensor, "R D_in"]
    ) -> tuple[Float[Tensor, "R D_out"], Float[Tensor, "R H"]]:
        ends = permutation.rows_per_expert.cumsum(0, dtype=torch.int32)
        pre = F.grouped_mm(inputs, operands.w_in.transpose(1, 2), offs=ends)
        values = pre.new_empty(len(pre), operands.w_out.shape[2])
        for chunk in _chunks(pre):
            operands.hidden(pre[chunk]).write_values(values[chunk])
            operands.drop_(values[chunk], permutation, chunk)
        return F.grouped_mm(values, operands.w_out.transpose(1, 2), offs=ends), pre

    def backward(self, operands: Operands, permutation: Permutation, rows: BackwardRows) -> RowGradients:
        ends = permutation.rows_per_expert.cumsum(0, dtype=torch.int32)
        grad_hidden = F.grouped_mm(rows.grads, operands.w_out, offs=ends)
        grad_pre, values = torch.empty_like(rows.pre), torch.empty_like(grad_hidden)
        grad_weights = operands.weights.new_empty(len(rows.pre))
        for chunk in _chunks(rows.pre):
            grad, hidden = operands.drop_(grad_hidden[chunk], permutation, chunk), operands.hidden(rows.pre[chunk])
            hidden.write_gradient(grad, grad_pre[chunk])
            hidden.write_values(values[chunk])
            grad_weights[chunk] = grad.mul_(values[chunk]).sum(1, dtype=grad_weights.dtype)
            operands.drop_(values[chunk], permutation, chunk)
        return RowGradients(
            inputs=F.grouped_mm(grad_pre, operands.w_in, offs=ends),
            weights=grad_weights,
            w_in=F.grouped_mm(grad_pre.T, rows.inputs, offs=ends),
            w_out=F.grouped_mm(rows.weighted_grads.T, values, offs=ends),
        )


def _chunks(pre: Float[Tensor, "R H"]) -> list[slice]:
    """Divides the rows into chunks for pointwise operations: a few that fit in the cache of a CPU, or all on a GPU."""
    is_whole = not pre.is_cpu or pre.numel() <= 4 * CHUNK_VALUES
    size = max(1, len(pre) if is_whole else CHUNK_VALUES // pre.shape[1])
    return [slice(start, start + size) for start in range(0, len(pre), size)]


@dataclass(frozen=True)
class BackendQuery:
    """The properties of a call that determine the back end.

    Attributes:
        device: device type, `cpu` or `cuda`.
        dtype: dtype of the operands, after autocast's cast.
        widths: row widths of all operands, with the hidden width that the grouped product computes: of the first
            product, the input, the output, and the hidden values.
        rows_per_expert: mean number of rows; only `choose_backend` reads it.
        capability: compute capability of a GPU; (0, 0) for any other device.
        compiling: True while torch.compile traces the call.
    """

    device: str
    dtype: torch.dtype
    widths: tuple[int, ...]
    rows_per_expert: float = 0
    capability: tuple[int, int] = (0, 0)
    compiling: bool = False


def backend_query(experts: Experts, dtype: torch.dtype, rows_per_expert: float = 0) -> BackendQuery:
    """Returns the properties of a call of these experts."""
    device = experts.w_in.device
    (_, num_hidden, d_in), (_, d_out, d_expert) = experts.w_in.shape, experts.w_out.shape
    padded = -(-d_expert // (multiple := hidden_multiple(device.type, dtype))) * multiple
    return BackendQuery(
        device=device.type,
        dtype=dtype,
        widths=(num_hidden // d_expert * padded, d_in, d_out, padded),
        rows_per_expert=rows_per_expert,
        capability=torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0),
        compiling=torch.compiler.is_compiling(),
    )


def grouped_mm_supported(query: BackendQuery) -> bool:
    """Returns True if torch's grouped product exists for this device, precision and widths."""
    aligned = all(width * query.dtype.itemsize % 16 == 0 for width in query.widths)
    on_gpu = query.device == "cuda" and query.capability >= (8, 0) and query.dtype == torch.bfloat16
    on_cpu = query.device == "cpu" and query.dtype in (torch.float32, torch.bfloat16)
    return (on_gpu or on_cpu) and aligned and hasattr(F, "grouped_mm")


def choose_backend(query: BackendQuery) -> str:
    """Returns the back end that `auto` uses, `grouped_mm` or `loop`.

    The grouped product, if it is supported; on a GPU it was not measured. On a CPU small products take less time
    grouped, and large ones in the loop, whose intermediate values stay in the cache (docs/benchmarks.md, "One layer").
    torch.compile gets the loop on a CPU, because there it cannot trace torch's grouped product in float32.
    """
    if not grouped_mm_supported(query):
        return "loop"
    if query.device != "cpu":
        return "grouped_mm"
    multiply_adds = query.rows_per_expert * query.widths[0] * query.widths[1]
    return "loop" if query.compiling or multiply_adds >= LOOP_MULTIPLY_ADDS[query.dtype] else "grouped_mm"


def auto(
    experts: Experts, x: Float[Tensor, "T D_in"], routing: Routing, dropout_mask: Float[Tensor, "A F"] | None = None
) -> Float[Tensor, "T D_out"]:
    """Runs the back end that `choose_backend` names."""
    query = backend_query(experts, operand_dtype(x), len(routing.expert_ids) / experts.num_experts)
    return BACKENDS[choose_backend(query)](experts, x, routing, dropout_mask)


@runtime_checkable
class Backend(Protocol):
    def __call__(self, experts: Experts, x: Tensor, routing: Routing, dropout_mask: Tensor | None = None) -> Tensor: ...


BACKENDS: dict[str, Backend] = {
    "auto": auto,
    "loop": loop,
    "grouped_mm": grouped_mm,
    "einsum": einsum,
    "reference": reference,
}
