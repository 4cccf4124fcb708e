"""Back ends: (experts, x, routing) -> y, and BACKENDS. `reference` is the slow truth; the others must equal it.

T tokens, A assignments, R kept assignments (rows), E experts, D widths, F hidden width, H = 2F (gated) or F.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from moe_cli.moe.experts import Experts, hidden, hidden_backward
from moe_cli.moe.routing import Routing

# Pointwise work is done on about this many rows at a time, so that it stays in the processor's cache.
CHUNK_ROWS = 512


def reference(experts: Experts, x: Float[Tensor, "T D_in"], routing: Routing) -> Float[Tensor, "T D_out"]:
    """One assignment at a time: y_t = sum over kept assignments of weight * expert(x_t). The definition."""
    rows: list[list[Tensor]] = [[] for _ in range(routing.num_tokens)]
    for a in range(len(routing.token_ids)):
        if routing.kept[a]:
            token, expert = int(routing.token_ids[a]), int(routing.expert_ids[a])
            answer = experts.one(expert, x[token : token + 1])[0]
            rows[token].append(routing.weights[a].to(answer.dtype) * answer)
    nothing = x.new_zeros(experts.w_out.shape[1])
    sums = [torch.stack(row).sum(0) if row else nothing for row in rows]
    return torch.stack(sums) if sums else x.new_zeros(0, len(nothing))


@dataclass(frozen=True)
class Plan:
    """Kept assignments sorted by expert ("rows"), and how to sum them back by token.

    Attributes:
        assignments: which assignment each row is.
        token_ids: which token each row reads.
        counts: rows of each expert; they lie one expert after the other.
        bag_rows: the rows again, sorted by token.
        bag_starts: where each token's rows start in `bag_rows`.
    """

    assignments: Int[Tensor, " R"]
    token_ids: Int[Tensor, " R"]
    counts: list[int]
    bag_rows: Int[Tensor, " R"]
    bag_starts: Int[Tensor, " T"]


def make_plan(routing: Routing) -> Plan:
    """The sorting that `grouped` works on. On a CPU through numpy, whose radix sort of small integers is fastest."""
    kept = routing.kept.nonzero().squeeze(1)
    expert_ids, token_ids = routing.expert_ids[kept], routing.token_ids[kept]
    by_expert = _stable_argsort(expert_ids, routing.num_experts)
    counts = torch.bincount(expert_ids, minlength=routing.num_experts)
    rows = torch.empty_like(by_expert)
    rows[by_expert] = torch.arange(len(by_expert), device=by_expert.device)
    by_token = _stable_argsort(token_ids, routing.num_tokens)
    per_token = torch.bincount(token_ids, minlength=routing.num_tokens)
    return Plan(
        assignments=kept[by_expert],
        token_ids=token_ids[by_expert],
        counts=counts.tolist(),
        bag_rows=rows[by_token],
        bag_starts=per_token.cumsum(0) - per_token,
    )


def _stable_argsort(ids: Int[Tensor, " N"], bound: int) -> Int[Tensor, " N"]:
    if ids.device.type != "cpu":
        return torch.argsort(ids, stable=True)
    small = np.uint8 if bound <= 2**8 else np.uint16 if bound <= 2**16 else np.int64
    return torch.from_numpy(np.argsort(ids.numpy().astype(small), kind="stable"))


def _sum_by_token(plan: Plan, rows: Float[Tensor, "R D"], weights: Tensor | None = None) -> Float[Tensor, "T D"]:
    """Each token's (weighted) sum of its rows; zero for a token without any."""
    if weights is not None:
        weights = weights.index_select(0, plan.bag_rows)
    return F.embedding_bag(plan.bag_rows, rows, plan.bag_starts, mode="sum", per_sample_weights=weights)


def _chunks(counts: list[int]) -> list[tuple[range, slice]]:
    """Neighbouring experts together until they fill CHUNK_ROWS, with the slice of rows they hold."""
    ends = list(accumulate(counts))
    chunks, first = [], 0
    for expert in range(len(counts)):
        start = ends[first] - counts[first]
        is_last = expert + 1 == len(counts)
        if is_last or ends[expert + 1] - start > CHUNK_ROWS:
            chunks.append((range(first, expert + 1), slice(start, ends[expert])))
            first = expert + 1
    return chunks


class _GroupedExperts(torch.autograd.Function):
    """A loop of matrix products over contiguous slices, with a hand-written backward.

    Kept for backward: the sorted input [R, D_in] and the first product [R, H]. The activation is recomputed; the
    experts' answers are not kept, because d(weight) = <dy W_out, hidden> needs only what is there.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weights: Tensor, w_in: Tensor, w_out: Tensor, plan: Plan, kind: str, activation: str
    ) -> Tensor:
        inputs = x.index_select(0, plan.token_ids)
        pre = x.new_empty(len(inputs), w_in.shape[1])
        answers = x.new_empty(len(inputs), w_out.shape[1])
        w_in_t, w_out_t = w_in.transpose(1, 2).unbind(0), w_out.transpose(1, 2).unbind(0)
        for experts, rows in _chunks(plan.counts):
            counts = plan.counts[experts.start : experts.stop]
            for e, source, target in zip(experts, inputs[rows].split(counts), pre[rows].split(counts), strict=True):
                torch.mm(source, w_in_t[e], out=target)
            act = hidden(pre[rows], kind, activation)
            for e, source, target in zip(experts, act.split(counts), answers[rows].split(counts), strict=True):
                torch.mm(source, w_out_t[e], out=target)
        row_weights = weights.index_select(0, plan.assignments)
        ctx.plan, ctx.kind, ctx.activation, ctx.num_assignments = plan, kind, activation, len(weights)
        ctx.save_for_backward(inputs, pre, row_weights, w_in, w_out)
        return _sum_by_token(plan, answers, row_weights.to(answers.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        inputs, pre, row_weights, w_in, w_out = ctx.saved_tensors
        plan: Plan = ctx.plan
        grads = grad_y.index_select(0, plan.token_ids)
        scale = row_weights.to(grads.dtype).unsqueeze(1)
        grad_row_weights = torch.empty_like(row_weights)
        grad_inputs = torch.empty_like(inputs)
        grad_w_in, grad_w_out = torch.empty_like(w_in), torch.empty_like(w_out)
        for experts, rows in _chunks(plan.counts):
            counts = plan.counts[experts.start : experts.stop]
            grad_hidden = pre.new_empty(rows.stop - rows.start, w_out.shape[2])
            for e, source, target in zip(experts, grads[rows].split(counts), grad_hidden.split(counts), strict=True):
                torch.mm(source, w_out[e], out=target)
            act = hidden(pre[rows], ctx.kind, ctx.activation)
            grad_row_weights[rows] = (grad_hidden * act).sum(1, dtype=row_weights.dtype)
            act.mul_(scale[rows])
            grad_pre = hidden_backward(grad_hidden.mul_(scale[rows]), pre[rows], ctx.kind, ctx.activation)
            split = zip(experts, grads[rows].split(counts), act.split(counts), grad_pre.split(counts),
                        inputs[rows].split(counts), grad_inputs[rows].split(counts), strict=True)  # fmt: skip
            for e, grad, act_e, grad_pre_e, input_e, grad_input_e in split:
                torch.mm(grad.T, act_e, out=grad_w_out[e])
                torch.mm(grad_pre_e.T, input_e, out=grad_w_in[e])
                torch.mm(grad_pre_e, w_in[e], out=grad_input_e)
        grad_weights = row_weights.new_zeros(ctx.num_assignments).index_copy_(0, plan.assignments, grad_row_weights)
        return _sum_by_token(plan, grad_inputs), grad_weights, grad_w_in, grad_w_out, None, None, None


def _operands(experts: Experts, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x, w_in and w_out, in autocast's precision where it is on: it casts no product that is written into a place."""
    operands = (x, experts.w_in, experts.w_out)
    device = x.device.type
    if not torch.is_autocast_enabled(device) or x.dtype == torch.float64:
        return operands
    first, w_in, w_out = (tensor.to(torch.get_autocast_dtype(device)) for tensor in operands)
    return first, w_in, w_out


def grouped_loop(experts: Experts, x: Float[Tensor, "T D_in"], routing: Routing) -> Float[Tensor, "T D_out"]:
    """Sorted by expert, one matrix product per expert: the fast way on a CPU, and right on any device."""
    plan = make_plan(routing)
    x, w_in, w_out = _operands(experts, x)
    return _GroupedExperts.apply(  # type: ignore[no-any-return]
        x, routing.weights, w_in, w_out, plan, experts.kind, experts.activation
    )


def grouped_mm(experts: Experts, x: Float[Tensor, "T D_in"], routing: Routing) -> Float[Tensor, "T D_out"]:
    """Sorted by expert, torch's grouped matrix product: the fast way on a GPU. Needs row strides of 16 bytes."""
    plan = make_plan(routing)
    ends = torch.tensor(plan.counts, device=x.device).cumsum(0, dtype=torch.int32)
    x, w_in, w_out = _operands(experts, x)
    inputs = x.index_select(0, plan.token_ids)
    pre = F.grouped_mm(inputs, w_in.transpose(1, 2), offs=ends)
    answers = F.grouped_mm(hidden(pre, experts.kind, experts.activation), w_out.transpose(1, 2), offs=ends)
    weighted = answers * routing.weights.index_select(0, plan.assignments).to(answers.dtype).unsqueeze(1)
    return weighted.new_zeros(1, weighted.shape[1]).expand(len(x), -1).index_add(0, plan.token_ids, weighted)


def grouped(experts: Experts, x: Float[Tensor, "T D_in"], routing: Routing) -> Float[Tensor, "T D_out"]:
    """The fastest exact way known for the device: torch's grouped product on a GPU that has it, else the loop."""
    if grouped_mm_serves(experts, x):
        return grouped_mm(experts, x, routing)
    return grouped_loop(experts, x, routing)


def grouped_mm_serves(experts: Experts, x: Tensor) -> bool:
    """Whether torch's grouped product exists here, for this device and these widths. Probes features, not versions."""
    if not (x.is_cuda and hasattr(F, "grouped_mm") and x.dtype == torch.bfloat16 == experts.w_in.dtype):
        return False
    aligned = all(width * x.element_size() % 16 == 0 for w in (experts.w_in, experts.w_out) for width in w.shape[1:])
    return aligned and torch.cuda.get_device_capability(x.device) >= (8, 0)


BACKENDS: dict[str, Callable[[Experts, Tensor, Routing], Tensor]] = {
    "reference": reference,
    "grouped": grouped,
    "auto": grouped,
}
