"""torch.compile of a model around the layer: equal outputs and gradients, and no graph break where none is needed."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from moe_cli.config.model import GPTConfig
from moe_cli.config.resolve import resolve
from moe_cli.config.schema import RunConfig
from moe_cli.models.registry import make_model
from moe_cli.moe.backends.loop import loop
from moe_cli.moe.backends.traced import expert_products, traced_experts
from moe_cli.moe.experts import Experts
from moe_cli.moe.permutation import cast_for_matmul
from moe_cli.moe.routing import Routing
from tests.moe.backends.test_dispatch import E, F, assert_same, make_case
from tests.tiny import randomise

# Raised inside the compiler, not by anything we call.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def tiny_gpt(capacity: float | None = None, dispatch: str = "auto", drop: str = "position") -> nn.Module:
    shape = GPTConfig(num_layers=1, num_heads=2, d_model=16, d_expert=12, context_length=16, dispatch=dispatch)
    config = RunConfig(expert=4, k=2, match="none", capacity=capacity, drop=drop, model=shape)  # type: ignore[arg-type]
    return randomise(make_model(resolve(config).config, 32))


def outcome(model: nn.Module, network: nn.Module, tokens: Tensor) -> dict[str, Tensor]:
    """Logits, and every gradient of a loss that looks at logits and routing probabilities."""
    model.zero_grad()
    logits, routings = network(tokens)
    loss = logits.square().mean() + sum(routing.probs.square().mean() for routing in routings)
    loss.backward()
    return {"logits": logits.detach(), **{name: param.grad.clone() for name, param in model.named_parameters()}}


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.slow
@pytest.mark.parametrize(("capacity", "dispatch"), [(None, "auto"), (1.0, "auto"), (None, "loop"), (1.0, "einsum")])
def test_a_compiled_model_is_the_model(capacity: float | None, dispatch: str) -> None:
    """Logits and all gradients of the compiled GPT equal the plain one's, for two batches, drops included."""
    torch.compiler.reset()
    model = tiny_gpt(capacity, dispatch)
    compiled = torch.compile(model)
    for seed in range(2):
        tokens = torch.randint(32, (4, 16), generator=torch.Generator().manual_seed(seed))
        assert_same(outcome(model, model, tokens), outcome(model, compiled, tokens), 1e-4)


@pytest.mark.slow
def test_the_model_is_one_graph() -> None:
    """With the loop nothing breaks the graph, drops included: `fullgraph` traces forward and backward.

    Nothing is generated from the graph, which takes most of the time and is tried above. In a process of its own, for the
    checks of shapes, even at rest, would break it.
    """
    code = "from tests.moe.test_compile import trace_whole; trace_whole()"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert 0 == ended.returncode, ended.stderr[-2000:]


def trace_whole() -> None:
    """Raises what torch.compile does where the graph breaks."""
    for capacity, drop in ((None, "position"), (1.0, "position"), (1.0, "causal")):
        model = tiny_gpt(capacity, drop=drop)
        tokens = torch.randint(32, (4, 16))
        traced = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert_same(outcome(model, model, tokens), outcome(model, traced, tokens), 1e-4)


@pytest.mark.parametrize("multiple", [1, 16])
@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("capacity", [None, 0.5])
def test_the_traced_experts_equal_the_loop(capacity: float | None, with_mask: bool, multiple: int) -> None:
    """The graph for the compiler gives the outputs and gradients of the loop, with drops, masks and padding."""
    case = make_case("top2", 64, capacity)
    mask = torch.randint(0, 3, (128, F), generator=torch.Generator().manual_seed(3)).double() if with_mask else None

    def by_loop(experts: Experts, x: Tensor, routing: Routing) -> Tensor:
        return loop(experts, x, routing, mask)

    def by_graph(experts: Experts, x: Tensor, routing: Routing) -> Tensor:
        cast = cast_for_matmul(experts, x)
        return traced_experts(cast, ("glu", "silu"), routing, mask, multiple)

    assert_same(case.outcome(by_loop), case.outcome(by_graph), 1e-12)


def test_nothing_to_compute_needs_no_padding() -> None:
    """Without tokens, or without assignments, padding rows have nothing to read, and the output is zero."""
    for num_tokens in (0, 5):
        case = make_case("top2", 5)
        ids, x = torch.zeros(0, dtype=torch.int64), case.x[:num_tokens]
        probs = torch.zeros(num_tokens, E, dtype=torch.float64)
        routing = Routing(probs, probs, ids, ids, torch.zeros(0, dtype=torch.float64), ids.bool())
        cast, mask = cast_for_matmul(case.experts, x), torch.zeros(0, F, dtype=torch.float64)
        y = traced_experts(cast, ("glu", "silu"), routing, mask, 16)
        assert (num_tokens, 0) == (len(y), int(y.count_nonzero()))


@pytest.mark.slow
def test_the_operators_keep_their_promises() -> None:
    """Torch's own check of a custom operator: schema, shapes without data, and gradients."""
    rows = torch.randn(9, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(E, 2, 3, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(expert_products, (rows, weights, torch.tensor([0, 2, 2, 5, 7, 8][:E])))
