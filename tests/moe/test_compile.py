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
from moe_cli.moe.backends.loop import experts_loop_op, loop
from moe_cli.moe.experts import Experts
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


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("capacity", [None, 0.5])
def test_the_operator_equals_the_loop(capacity: float | None, with_mask: bool) -> None:
    """The operator that the compiler sees gives the loop's outputs and gradients to the last bit."""
    case = make_case("top2", 64, capacity)
    mask = torch.randint(0, 3, (128, F), generator=torch.Generator().manual_seed(3)).double() if with_mask else None

    def by_loop(experts: Experts, x: Tensor, routing: Routing) -> Tensor:
        return loop(experts, x, routing, mask)

    def by_operator(experts: Experts, x: Tensor, routing: Routing) -> Tensor:
        record = (routing.token_ids, routing.expert_ids, routing.weights, routing.kept)
        return experts_loop_op(x, *record, *experts.parameters(), mask, "glu", "silu")[0]

    assert_same(case.outcome(by_loop), case.outcome(by_operator), 0.0)


@pytest.mark.slow
def test_the_operator_keeps_its_promises() -> None:
    """Torch's own check of a custom operator: schema, shapes without data, and autograd registration."""
    case = make_case("top2", 9, 0.5, dtype=torch.float64)
    routing = case.routing()
    tensors = (case.x, routing.token_ids, routing.expert_ids, routing.weights.detach(), routing.kept)
    given = (*tensors, case.experts.w_in, case.experts.w_out, None, "glu", "silu")
    # Rows of dropped assignments are left uninitialised in the second output, so values cannot be compared there.
    torch.library.opcheck(
        experts_loop_op, given, test_utils=("test_schema", "test_autograd_registration", "test_faketensor")
    )
    assert E == len(case.experts.w_in)
