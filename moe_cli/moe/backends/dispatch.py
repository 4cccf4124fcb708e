"""Back ends: (experts, x, routing, mask) -> y, and BACKENDS. `reference` is the slow truth; the others must equal it.

A mask multiplies the hidden values of every assignment: dropout inside the experts.
T tokens, A assignments, R kept assignments (rows), E experts, D widths, F hidden width, H = 2F (gated) or F.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from moe_cli.moe.backends.loop import grouped_loop
from moe_cli.moe.backends.padded import einsum, padded
from moe_cli.moe.experts import Experts, hidden
from moe_cli.moe.permutation import make_plan, operand_dtype, operands
from moe_cli.moe.routing import Routing

# Up to so many rows per expert, on a CPU in float32, a call per product from Python costs more than it gains.
FEW_ROWS = 32


def reference(
    experts: Experts, x: Float[Tensor, "T D_in"], routing: Routing, mask: Float[Tensor, "A F"] | None = None
) -> Float[Tensor, "T D_out"]:
    """One assignment at a time: y_t = sum over kept assignments of weight * expert(x_t). The definition.

    Kept for backward, by autograd: everything, assignment by assignment.
    """
    rows: list[list[Tensor]] = [[] for _ in range(routing.num_tokens)]
    for a in range(len(routing.token_ids)):
        if routing.kept[a]:
            token, expert = int(routing.token_ids[a]), int(routing.expert_ids[a])
            answer = experts.one(expert, x[token : token + 1], None if mask is None else mask[a])[0]
            rows[token].append(routing.weights[a].to(answer.dtype) * answer)
    nothing = x.new_zeros(experts.w_out.shape[1])
    sums = [torch.stack(row).sum(0) if row else nothing for row in rows]
    return torch.stack(sums) if sums else x.new_zeros(0, len(nothing))


def grouped_mm(
    experts: Experts, x: Float[Tensor, "T D_in"], routing: Routing, mask: Float[Tensor, "A F"] | None = None
) -> Float[Tensor, "T D_out"]:
    """Sorted by expert, torch's grouped matrix product: the fast way on a GPU. Needs row strides of 16 bytes.

    Kept for backward, by autograd: the sorted input [R, D_in], the first product [R, H], what the activation makes of
    it, and the answers [R, D_out]. Nothing is recomputed.
    """
    plan = make_plan(routing)
    ends = torch.tensor(plan.counts, device=x.device).cumsum(0, dtype=torch.int32)
    given = operands(experts, x)
    inputs = given.x.index_select(0, plan.token_ids)
    pre = F.grouped_mm(inputs, given.w_in.transpose(1, 2), offs=ends)
    act = hidden(pre, experts.kind, experts.activation)
    act = act if mask is None else act * mask[plan.assignments].to(act.dtype)
    answers = F.grouped_mm(act, given.w_out.transpose(1, 2), offs=ends)
    weighted = answers * routing.weights.index_select(0, plan.assignments).to(answers.dtype).unsqueeze(1)
    return weighted.new_zeros(1, weighted.shape[1]).expand(len(x), -1).index_add(0, plan.token_ids, weighted)


@dataclass(frozen=True)
class Regime:
    """What the choice of a back end depends on.

    Attributes:
        dtype: of the operands, after autocast's cast.
        widths: of every row that is multiplied.
        rows: assignments per expert, on average.
        capability: of a GPU; (0, 0) for anything else.
        compiling: whether torch.compile is looking.
    """

    device: str
    dtype: torch.dtype
    widths: tuple[int, ...]
    rows: float
    capability: tuple[int, int] = (0, 0)
    compiling: bool = False


def make_regime(experts: Experts, dtype: torch.dtype, rows: float) -> Regime:
    """The regime of these experts at so many rows each."""
    device = experts.w_in.device
    return Regime(
        device=device.type,
        dtype=dtype,
        widths=(*experts.w_in.shape[1:], *experts.w_out.shape[1:]),
        rows=rows,
        capability=torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0),
        compiling=torch.compiler.is_compiling(),
    )


def regime_of(experts: Experts, x: Tensor, routing: Routing) -> Regime:
    """The regime of this call."""
    return make_regime(experts, operand_dtype(x), len(routing.expert_ids) / experts.num_experts)


def grouped_mm_serves(regime: Regime) -> bool:
    """Whether torch's grouped product exists for this device, precision and widths. Probes features, not versions."""
    aligned = all(width * regime.dtype.itemsize % 16 == 0 for width in regime.widths)
    on_gpu = regime.device == "cuda" and regime.capability >= (8, 0) and regime.dtype == torch.bfloat16
    on_cpu = regime.device == "cpu" and regime.dtype in (torch.float32, torch.bfloat16)
    return (on_gpu or on_cpu) and aligned and hasattr(F, "grouped_mm")


def choose_backend(regime: Regime) -> str:
    """The fastest exact back end, `grouped_mm` or `grouped_loop`, as far as it was measured.

    On a GPU the grouped product, where it serves (not measured). On a CPU (one thread of a busy Zen 4, torch 2.13, E
    from 8 to 1024, D from 64 to 128, forward and backward, medians of ratios of neighbouring rounds): in float32 the
    grouped product took 0.73 to 0.94 of the loop's time at up to FEW_ROWS rows per expert and 0.88 to 1.02 above, where
    the loop is preferred because it keeps less than half the memory; in bfloat16 0.42 to 0.92 at 4 to 1024 rows.
    `padded` took 0.9 to 2 times the loop's time in float32; in bfloat16 it won with few experts and lost with many, so
    it is left to those who ask for it. A compiler cannot look into the grouped product's sorting on a CPU: there the
    loop.
    """
    if not grouped_mm_serves(regime):
        return "grouped_loop"
    if regime.device == "cuda":
        return "grouped_mm"
    small = regime.dtype == torch.bfloat16 or regime.rows <= FEW_ROWS
    return "grouped_mm" if small and not regime.compiling else "grouped_loop"


def grouped(
    experts: Experts, x: Float[Tensor, "T D_in"], routing: Routing, mask: Float[Tensor, "A F"] | None = None
) -> Float[Tensor, "T D_out"]:
    """Sorted by expert: torch's grouped product on a GPU that has it, else the loop."""
    regime = regime_of(experts, x, routing)
    if regime.device == "cuda" and grouped_mm_serves(regime):
        return grouped_mm(experts, x, routing, mask)
    return grouped_loop(experts, x, routing, mask)


def auto(
    experts: Experts, x: Float[Tensor, "T D_in"], routing: Routing, mask: Float[Tensor, "A F"] | None = None
) -> Float[Tensor, "T D_out"]:
    """What `choose_backend` says."""
    return FASTEST[choose_backend(regime_of(experts, x, routing))](experts, x, routing, mask)


@runtime_checkable
class Backend(Protocol):
    def __call__(self, experts: Experts, x: Tensor, routing: Routing, mask: Tensor | None = None) -> Tensor: ...


FASTEST: dict[str, Backend] = {"grouped_loop": grouped_loop, "grouped_mm": grouped_mm}
BACKENDS: dict[str, Backend] = {
    "reference": reference,
    "grouped": grouped,
    "padded": padded,
    "einsum": einsum,
    "auto": auto,
}
