"""Every back end equals `reference`, and `reference` equals its sum. T tokens, E experts, D widths, F hidden."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moe_cli.config.capacity import expert_capacity
from moe_cli.errors import ConfigError
from moe_cli.moe import permutation
from moe_cli.moe.backends import dispatch
from moe_cli.moe.backends import loop as loop_module
from moe_cli.moe.backends.all_experts import all_experts
from moe_cli.moe.backends.dispatch import (
    BACKENDS,
    BackendQuery,
    backend_query,
    choose_backend,
    grouped_mm,
    grouped_mm_supported,
    reference,
)
from moe_cli.moe.backends.loop import loop
from moe_cli.moe.backends.one_hot import einsum
from moe_cli.moe.experts import Experts
from moe_cli.moe.routers.registry import make_router
from moe_cli.moe.routing import Routing, drop_overflow
from tests.moe.formulas import ACTIVATIONS, FFN_TYPES, ROUTERS, dense, network, routings

Backend = Callable[..., Tensor]
# Widths whose rows are multiples of 16 bytes in bfloat16 too, which the grouped product needs.
E, D_IN, F, D_OUT = 6, 8, 24, 16
every_backend = pytest.mark.parametrize("backend", [reference, loop, grouped_mm, einsum, all_experts])


@dataclass(frozen=True)
class Case:
    """A router, experts and tokens, the same for every back end."""

    router: torch.nn.Module
    experts: Experts
    x: Tensor
    capacity: float | None = None

    def routing(self) -> Routing:
        torch.manual_seed(7)  # the random router and the jitter draw the same every time
        routing = self.router(self.x)
        if self.capacity is None:
            return routing
        return drop_overflow(routing, expert_capacity(len(self.x), E, self.router.top_k, self.capacity))

    def outcome(self, backend: Backend) -> dict[str, Tensor]:
        """The answer, and the gradient of x and of every parameter for an answer's gradient drawn at random."""
        y = backend(self.experts, self.x, self.routing())
        parameters = {**dict(self.router.named_parameters()), **dict(self.experts.named_parameters())}
        cotangent = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(8))
        grads = torch.autograd.grad(y, [self.x, *parameters.values()], cotangent)
        return {"y": y, **dict(zip(["x", *parameters], grads, strict=True))}


def make_case(
    router: str,
    num_tokens: int,
    capacity: float | None = None,
    ffn_type: str = "glu",
    activation: str = "silu",
    dtype: torch.dtype = torch.float64,
) -> Case:
    torch.manual_seed(0)
    config, top_k = ROUTERS[router]
    gate = make_router(config, D_IN, E, top_k)
    for weight in gate.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    experts = Experts(E, D_IN, F, D_OUT, ffn_type=ffn_type, activation=activation)
    experts.reset_parameters()
    x = torch.randn(num_tokens, D_IN, dtype=dtype, requires_grad=True)
    return Case(gate.to(dtype), experts.to(dtype), x, capacity)


def assert_same(expected: dict[str, Tensor], actual: dict[str, Tensor], tolerance: float) -> None:
    assert expected.keys() == actual.keys()
    for name in expected:
        assert torch.allclose(expected[name], actual[name], rtol=tolerance, atol=tolerance), name


@pytest.mark.parametrize("ffn_type", FFN_TYPES)
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_every_back_end_equals_the_reference(activation: str, ffn_type: str) -> None:
    """The output and every gradient agree: in float64, and in float32, which is the widest precision of grouped_mm."""
    wide = make_case("top2", 64, 1.0, ffn_type, activation)
    for backend in (loop, einsum, all_experts):
        assert_same(wide.outcome(reference), wide.outcome(backend), 1e-10)
    narrow = make_case("top2", 64, 1.0, ffn_type, activation, torch.float32)
    for backend in (loop, grouped_mm):
        assert_same(narrow.outcome(reference), narrow.outcome(backend), 1e-5)


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "grouped_mm"])  # has no float64
def test_every_named_back_end_equals_the_reference(backend: str) -> None:
    """Whatever name a user gives to `dispatch`, the outcome is the reference's."""
    case = make_case("top2", 9, 1.0)
    assert_same(case.outcome(reference), case.outcome(BACKENDS[backend]), 1e-10)


def test_a_grouped_product_that_torch_lacks_is_refused() -> None:
    """dispatch=grouped_mm in float64 names what is missing and what to use."""
    case = make_case("top2", 9, 1.0)
    with pytest.raises(ConfigError, match=r"^dispatch=grouped_mm is not available for torch\.float64 on cpu"):
        case.outcome(BACKENDS["grouped_mm"])


@given(routing=routings(num_experts=E))
def test_the_reference_is_the_weighted_sum(routing: Routing) -> None:
    """reference equals sum_i weight_ti * expert_i(x_t) over dense kept weights."""
    case = make_case("top2", routing.num_tokens)
    weights = dense(routing, routing.weights * routing.kept)
    answers = [network(case.x, *matrices, "glu", "silu") for matrices in zip(*case.experts.parameters(), strict=True)]
    expected = sum(weights[:, i, None] * answer for i, answer in enumerate(answers))
    assert torch.allclose(expected, reference(case.experts, case.x, routing), atol=1e-12)


@given(
    routing=routings(num_experts=E),
    ffn_type=st.sampled_from(FFN_TYPES),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    with_mask=st.booleans(),
)
def test_any_routing_is_served(routing: Routing, ffn_type: str, activation: str, with_mask: bool) -> None:
    """Every back end equals the reference for repeated, missing and dropped assignments in any order, with and
    without a factor for each hidden value of an assignment.
    """
    case = make_case("top2", routing.num_tokens, ffn_type=ffn_type, activation=activation)
    weights = routing.weights.clone().requires_grad_()
    factors = torch.randint(0, 3, (len(routing.expert_ids), F), generator=torch.Generator().manual_seed(3))

    def outcome(backend: Backend, dtype: torch.dtype) -> dict[str, Tensor]:
        x, experts = case.x.to(dtype), case.experts.to(dtype)
        record = replace(routing, weights=weights.to(dtype))
        y = backend(experts, x, record, factors.to(dtype) if with_mask else None)
        total = (y * torch.linspace(-1, 1, y.numel(), dtype=dtype).view_as(y)).sum() + 0 * (x.sum() + weights.sum())
        total = total + 0 * sum(weight.sum() for weight in experts.parameters())
        grads = torch.autograd.grad(total, [case.x, weights, experts.w_in, experts.w_out])
        names = ("y", "x", "weights", "w_in", "w_out")
        return {name: value.double() for name, value in zip(names, (y, *grads), strict=True)}

    expected = outcome(reference, torch.float64)
    for backend in (loop, einsum):
        assert_same(expected, outcome(backend, torch.float64), 1e-10)
    assert_same(expected, outcome(grouped_mm, torch.float32), 1e-4)


@every_backend
def test_an_expert_without_tokens_has_a_zero_gradient(backend: Backend) -> None:
    """Experts without a kept assignment have a gradient of exactly zero."""
    case = make_case("top2", 9, dtype=torch.float32)
    case.router.expert_bias[2] = -10.0
    routing = case.routing()
    routing = routing.keep_only(routing.expert_ids != 4)
    backend(case.experts, case.x, routing).square().sum().backward()
    for weight in case.experts.parameters():
        assert [bool((grad != 0).any()) for grad in weight.grad] == [
            bool((routing.expert_ids[routing.kept] == e).any()) for e in range(E)
        ]
        assert (weight.grad[2] == 0).all()
        assert (weight.grad[4] == 0).all()


@every_backend
def test_all_dropped_is_nothing(backend: Backend) -> None:
    """When no assignment is kept, every token gets zero."""
    case = make_case("top2", 9, dtype=torch.float32)
    routing = case.routing()
    y = backend(case.experts, case.x, routing.keep_only(torch.zeros_like(routing.kept)))
    assert torch.equal(torch.zeros(9, D_OUT), y)


@every_backend
def test_no_tokens_no_answers(backend: Backend) -> None:
    """An empty batch gives an empty answer of the right width."""
    case = make_case("top2", 0, dtype=torch.float32)
    assert (0, D_OUT) == tuple(backend(case.experts, case.x, case.routing()).shape)


@every_backend
def test_gradients_without_strides_and_inputs_with_odd_ones(backend: Backend) -> None:
    """A transposed input and the expanded gradient of a plain sum give what contiguous ones give."""
    case = make_case("top2", 9, dtype=torch.float32)
    with torch.no_grad():
        routing = case.routing()
    odd = case.x.detach().T.contiguous().T.requires_grad_()
    assert not odd.is_contiguous()
    (actual,) = torch.autograd.grad(backend(case.experts, odd, routing).sum(), odd, retain_graph=True)
    y = reference(case.experts, case.x, routing)
    (expected,) = torch.autograd.grad(y, case.x, torch.ones_like(y))
    assert torch.allclose(expected, actual, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 4, 10**6])
def test_the_size_of_a_chunk_changes_nothing(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many experts are worked on at a time, the loop equals the reference."""
    case = make_case("top2", 64, 1.0)
    monkeypatch.setattr(loop_module, "LOOP_CHUNK_ROWS", rows)
    assert_same(case.outcome(reference), case.outcome(loop), 1e-10)


@given(st.lists(st.integers(0, 900), min_size=1, max_size=20))
def test_chunks_cover_every_expert_and_row_once(counts: list[int]) -> None:
    """Chunks follow each other without gaps and hold their experts' rows; only a lone expert exceeds the limit."""
    chunks = loop_module.chunks(counts)
    assert list(range(len(counts))) == [expert for experts, _ in chunks for expert in experts]
    row = 0
    for experts, rows in chunks:
        assert slice(row, row + sum(counts[experts.start : experts.stop])) == rows
        assert rows.stop - rows.start <= loop_module.LOOP_CHUNK_ROWS or sum(counts[e] > 0 for e in experts) == 1
        row = rows.stop
    assert sum(counts) == row


@pytest.mark.parametrize("bound", [1, 2**8, 2**8 + 1, 2**16, 2**16 + 1])
def test_small_integers_sort_like_large_ones(bound: int) -> None:
    """Sorting in as few bits as the bound allows is stable and loses no id, at the edges of each width too."""
    ids = torch.randint(bound, (500,), generator=torch.Generator().manual_seed(0))
    ids[::50] = bound - 1
    assert torch.equal(torch.argsort(ids, stable=True), permutation.stable_argsort(ids, bound))


def query_of(case: Case) -> BackendQuery:
    return backend_query(case.experts, permutation.operand_dtype(case.x), 3)


def test_the_regime_is_the_one_after_autocast() -> None:
    """float32 parameters and tokens are bfloat16 operands under autocast, float32 without it, float64 stays itself.
    In bfloat16 the grouped product rounds the hidden width up.
    """
    case, wide = make_case("top2", 9, dtype=torch.float32), make_case("top2", 9, dtype=torch.float64)
    expected = BackendQuery("cpu", torch.float32, (2 * F, D_IN, D_OUT, F), 3)
    assert expected == query_of(case)
    with torch.autocast("cpu", torch.bfloat16):
        assert replace(expected, dtype=torch.bfloat16) == query_of(case)
        assert replace(expected, dtype=torch.float64) == query_of(wide)
    experts = Experts(E, D_IN, F - 3, D_OUT, ffn_type="mlp")
    assert (F - 3, D_IN, D_OUT, F - 3) == backend_query(experts, torch.float32, 3).widths
    assert (F, D_IN, D_OUT, F) == backend_query(experts, torch.bfloat16, 3).widths


GPU = BackendQuery("cuda", torch.bfloat16, (64, 8), 2**20, (8, 0))
CPU = BackendQuery("cpu", torch.float32, (64, 8), 100)


@pytest.mark.parametrize(
    ("query", "supported", "expected"),
    [
        (GPU, True, "grouped_mm"),
        (replace(GPU, capability=(9, 0)), True, "grouped_mm"),
        (replace(GPU, compiling=True), True, "grouped_mm"),
        (replace(GPU, capability=(7, 5)), False, "loop"),
        (replace(GPU, dtype=torch.float32), False, "loop"),
        (replace(GPU, widths=(64, 12)), False, "loop"),
        (replace(GPU, device="mps", capability=(0, 0)), False, "loop"),
        (CPU, True, "grouped_mm"),
        (replace(CPU, compiling=True), True, "loop"),
        (replace(CPU, rows_per_expert=20_000), True, "loop"),
        (replace(CPU, rows_per_expert=19_000), True, "grouped_mm"),
        (replace(CPU, rows_per_expert=20_000, dtype=torch.bfloat16), True, "grouped_mm"),
        (replace(CPU, rows_per_expert=60_000, dtype=torch.bfloat16), True, "loop"),
        (replace(CPU, widths=(64, 6)), False, "loop"),
        (replace(CPU, dtype=torch.float64), False, "loop"),
        (replace(CPU, dtype=torch.bfloat16), True, "grouped_mm"),
        (replace(CPU, dtype=torch.bfloat16, compiling=True), True, "loop"),
    ],
)
def test_the_choice_follows_the_regime(query: BackendQuery, supported: bool, expected: str) -> None:
    """Device, precision after autocast, row strides, and on a CPU the size of a product decide."""
    assert supported == grouped_mm_supported(query)
    assert expected == choose_backend(query)
    assert expected in BACKENDS


@pytest.mark.parametrize(("dtype", "expected"), [(torch.float32, "grouped_mm"), (torch.float64, "loop")])
def test_auto_takes_what_is_chosen(dtype: torch.dtype, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` calls the back end of its regime, and only that one."""
    called = []
    for name, backend in {name: BACKENDS[name] for name in ("loop", "grouped_mm")}.items():
        monkeypatch.setitem(
            BACKENDS, name, lambda *words, name=name, backend=backend: called.append(name) or backend(*words)
        )
    case = make_case("top2", 9, dtype=dtype)
    assert torch.allclose(
        loop(case.experts, case.x, case.routing()),
        dispatch.auto(case.experts, case.x, case.routing()),
        atol=1e-5,
    )
    assert [expected] == called


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("backend", [reference, loop, einsum])
def test_gradients_are_those_of_finite_differences(backend: Backend) -> None:
    """gradcheck of every back end that multiplies in float64, on a tiny layer with drops."""
    torch.manual_seed(0)
    config, top_k = ROUTERS["top2"]
    gate, experts = make_router(config, 2, 5, top_k), Experts(5, 2, 3, 2)
    for weight in [*gate.parameters(), *experts.parameters()]:
        torch.nn.init.normal_(weight)
    case = Case(gate.double(), experts.double(), torch.randn(4, 2, dtype=torch.float64, requires_grad=True))
    names = [*(("router", name) for name, _ in gate.named_parameters()), ("experts", "w_in"), ("experts", "w_out")]

    def answer(x: Tensor, *weights: Tensor) -> Tensor:
        given: dict[str, dict[str, Tensor]] = {"router": {}, "experts": {}}
        for (owner, name), weight in zip(names, weights, strict=True):
            given[owner][name] = weight
        torch.manual_seed(7)
        routing = drop_overflow(torch.func.functional_call(case.router, given["router"], (x,)), 2)
        changed = Experts(5, 2, 3, 2)
        del changed.w_in, changed.w_out
        changed.w_in, changed.w_out = given["experts"]["w_in"], given["experts"]["w_out"]
        return backend(changed, x, routing)

    assert torch.autograd.gradcheck(answer, (case.x, *gate.parameters(), *experts.parameters()), fast_mode=True)


@given(
    routing=routings(num_experts=E),
    ffn_type=st.sampled_from(FFN_TYPES),
    width=st.sampled_from([F, F - 3]),
    with_mask=st.booleans(),
)
def test_any_routing_is_served_in_bfloat16(routing: Routing, ffn_type: str, width: int, with_mask: bool) -> None:
    """Under autocast every back end is within rounding of the float32 reference, for any number of rows per expert
    and any hidden width; the gradients of x, weights and parameters are float32.
    """
    case = make_case("top2", routing.num_tokens, dtype=torch.float32)
    experts = Experts(E, D_IN, width, D_OUT, ffn_type=ffn_type)
    experts.reset_parameters(torch.Generator().manual_seed(1))
    weights = routing.weights.float().requires_grad_()
    routing = replace(routing, weights=weights)
    mask = torch.rand(len(routing.expert_ids), width, generator=torch.Generator().manual_seed(3)) if with_mask else None
    leaves = [case.x, weights, *experts.parameters()]

    def cotangent_of(rows: Tensor) -> Tensor:
        return torch.randn(len(rows), D_OUT, generator=torch.Generator().manual_seed(8))

    def outcome(backend: Backend, is_narrow: bool) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=is_narrow):
            y = backend(experts, case.x, routing, mask)
        loss = (y.float() * cotangent_of(y)).sum() + 0 * sum(leaf.sum() for leaf in leaves)
        return [y.detach().float(), *torch.autograd.grad(loss, leaves)]

    expected = outcome(reference, is_narrow=False)
    scales = [1 + max(wide.abs().flatten().tolist(), default=0.0) for wide in expected]
    # The gradient of a weight is the dot product of the gradient and the output of its expert. Their terms may cancel,
    # and their roundings do not: these are relative to the product of the norms.
    outputs = [experts.forward_one(expert, case.x).detach().norm(dim=1) for expert in range(E)]
    norms = torch.stack(outputs).max(0).values * cotangent_of(case.x).norm(dim=1)
    scales[2] = 1 + max(norms.tolist(), default=0.0)
    for backend in (loop, grouped_mm, einsum):
        for wide, narrow, scale in zip(expected, outcome(backend, is_narrow=True), scales, strict=True):
            assert torch.float32 == narrow.dtype
            # Some ten roundings of 2^-9 each of values below 1.
            assert torch.allclose(wide, narrow, rtol=0, atol=0.02 * scale), backend


def test_bfloat16_products_on_a_cpu_have_few_numbers_of_rows() -> None:
    """Rows of every expert are a multiple of 16 in bfloat16; padding rows are zero and have no weight."""
    case = make_case("top2", 300, 1.0, dtype=torch.float32)
    routing, x = case.routing(), case.x.bfloat16()
    assert 1 == permutation.row_multiple(case.x)
    assert 8 == permutation.row_multiple(torch.zeros(1, 256, dtype=torch.bfloat16))
    exact = permutation.permutation_of(routing)
    padded = permutation.pad_rows(exact, permutation.row_multiple(x), len(routing.weights))
    assert [-(-count // 16) * 16 for count in exact.counts] == padded.counts
    inputs = permutation.sorted_inputs(padded, x, len(routing.weights))
    weights = permutation.row_weights(padded, routing.weights)
    assert 0 < sum(padded.counts) - sum(exact.counts) == int((inputs == 0).all(1).sum()) == int((weights == 0).sum())
    assert torch.equal(permutation.sum_by_token(exact, x[exact.token_ids]), permutation.sum_by_token(padded, inputs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@every_backend
def test_autocast_is_obeyed(backend: Backend, dtype: torch.dtype) -> None:
    """Under autocast every back end answers in bfloat16, near the float32 answer; gradients keep each tensor's type."""
    case = make_case("top2", 9, dtype=torch.float32)
    x = case.x.detach().to(dtype).requires_grad_()
    expected = reference(case.experts, x.float(), case.routing())
    with torch.autocast("cpu", torch.bfloat16):
        y = backend(case.experts, x, case.routing())
    y.float().square().sum().backward()
    assert torch.bfloat16 == y.dtype
    assert torch.allclose(expected, y.float(), atol=0.05)
    assert dtype == x.grad.dtype
    assert {torch.float32} == {weight.grad.dtype for weight in case.experts.parameters()}
