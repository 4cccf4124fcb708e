"""Back ends: (experts, x, routing) -> y, and BACKENDS. `reference` is the slow truth; the others must equal it.

T tokens, R kept assignments (rows), E experts, D widths, F hidden width, H = 2F (gated) or F.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from moe_cli.moe.experts import Experts, hidden
from moe_cli.moe.grouped import grouped_loop
from moe_cli.moe.padded import einsum, padded
from moe_cli.moe.plan import make_plan, operand_dtype, operands
from moe_cli.moe.routing import Routing


def reference(experts: Experts, x: Float[Tensor, "T D_in"], routing: Routing) -> Float[Tensor, "T D_out"]:
    """One assignment at a time: y_t = sum over kept assignments of weight * expert(x_t). The definition.

    Kept for backward, by autograd: everything, assignment by assignment.
    """
    rows: list[list[Tensor]] = [[] for _ in range(routing.num_tokens)]
    for a in range(len(routing.token_ids)):
        if routing.kept[a]:
            token, expert = int(routing.token_ids[a]), int(routing.expert_ids[a])
            answer = experts.one(expert, x[token : token + 1])[0]
            rows[token].append(routing.weights[a].to(answer.dtype) * answer)
    nothing = x.new_zeros(experts.w_out.shape[1])
    sums = [torch.stack(row).sum(0) if row else nothing for row in rows]
    return torch.stack(sums) if sums else x.new_zeros(0, len(nothing))


def grouped_mm(experts: Experts, x: Float[Tensor, "T D_in"], routing: Routing) -> Float[Tensor, "T D_out"]:
    """Sorted by expert, torch's grouped matrix product: the fast way on a GPU. Needs row strides of 16 bytes.

    Kept for backward, by autograd: the sorted input [R, D_in], the first product [R, H], what the activation makes of
    it, and the answers [R, D_out]. Nothing is recomputed.
    """
    plan = make_plan(routing)
    ends = torch.tensor(plan.counts, device=x.device).cumsum(0, dtype=torch.int32)
    given = operands(experts, x)
    inputs = given.x.index_select(0, plan.token_ids)
    pre = F.grouped_mm(inputs, given.w_in.transpose(1, 2), offs=ends)
    answers = F.grouped_mm(hidden(pre, experts.kind, experts.activation), given.w_out.transpose(1, 2), offs=ends)
    weighted = answers * routing.weights.index_select(0, plan.assignments).to(answers.dtype).unsqueeze(1)
    return weighted.new_zeros(1, weighted.shape[1]).expand(len(x), -1).index_add(0, plan.token_ids, weighted)


@dataclass(frozen=True)
class Regime:
    """What the choice of a back end depends on.

    Attributes:
        dtype: of the operands, after autocast's cast.
        widths: of every row that is multiplied.
        capability: of a GPU; (0, 0) for anything else.
    """

    device: str
    dtype: torch.dtype
    widths: tuple[int, ...]
    capability: tuple[int, int] = (0, 0)


def regime_of(experts: Experts, x: Tensor) -> Regime:
    """The regime of this call."""
    capability = torch.cuda.get_device_capability(x.device) if x.is_cuda else (0, 0)
    widths = (*experts.w_in.shape[1:], *experts.w_out.shape[1:])
    return Regime(x.device.type, operand_dtype(x), widths, capability)


def grouped_mm_serves(regime: Regime) -> bool:
    """Whether torch's grouped product exists for this device, precision and widths. Probes features, not versions."""
    aligned = all(width * regime.dtype.itemsize % 16 == 0 for width in regime.widths)
    fits = regime.device == "cuda" and regime.capability >= (8, 0) and regime.dtype == torch.bfloat16
    return fits and aligned and hasattr(F, "grouped_mm")


def choose_backend(regime: Regime) -> str:
    """The fastest exact back end known: `grouped_mm` on a GPU that serves it, else `grouped_loop`."""
    return "grouped_mm" if grouped_mm_serves(regime) else "grouped_loop"


def grouped(experts: Experts, x: Float[Tensor, "T D_in"], routing: Routing) -> Float[Tensor, "T D_out"]:
    """Sorted by expert: torch's grouped product on a GPU that has it, else the loop."""
    if grouped_mm_serves(regime_of(experts, x)):
        return grouped_mm(experts, x, routing)
    return grouped_loop(experts, x, routing)


def auto(experts: Experts, x: Float[Tensor, "T D_in"], routing: Routing) -> Float[Tensor, "T D_out"]:
    """What `choose_backend` says."""
    return FASTEST[choose_backend(regime_of(experts, x))](experts, x, routing)


Backend = Callable[[Experts, Tensor, Routing], Tensor]
FASTEST: dict[str, Backend] = {"grouped_loop": grouped_loop, "grouped_mm": grouped_mm, "padded": padded}
BACKENDS: dict[str, Backend] = {
    "reference": reference,
    "grouped": grouped,
    "padded": padded,
    "einsum": einsum,
    "auto": auto,
}
