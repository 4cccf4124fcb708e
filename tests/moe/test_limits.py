"""Layers with no tokens or one expert have a result, and invalid numbers are refused."""

import itertools
import math
from typing import Any

import pytest
import torch

from moe_cli.config.balances import (
    SwitchBalance,
    WeightedBalance,
)
from moe_cli.config.ranges import check_above, check_at_least, check_between, check_fraction, check_whole
from moe_cli.errors import ConfigError
from moe_cli.moe import routing_metrics
from moe_cli.moe.backends.dispatch import BACKENDS
from moe_cli.moe.balance import auxiliary_losses, loss_free_bias, quantile_bias
from moe_cli.moe.gates import LinearGate, PerTaskGate
from moe_cli.moe.layer import MoELayer, make_sparse_layer
from moe_cli.moe.max_violation import max_violation
from moe_cli.moe.routers.registry import ROUTER_CONFIGS
from moe_cli.moe.routers.token_choice import ReluRouter
from moe_cli.moe.routing import Routing, RoutingPolicy
from moe_cli.moe.sparse_expert_model import SparseExpertModel
from moe_cli.moe.sparse_layer import SparseLayer

# No tokens in every place, one token, and several.
SHAPES = ((0, 8), (2, 0, 8), (0, 5, 8), (8,), (1, 1, 8), (2, 3, 8))
MASKS = ("none", "full", "all padding", "one padded")
BALANCES = (
    SwitchBalance(),
    SwitchBalance(scope="global"),
    WeightedBalance(name="importance"),
    WeightedBalance(name="z"),
    WeightedBalance(name="entropy"),
    WeightedBalance(name="mutual_information"),
)
BAD_COUNTS = (0, -1, True, 10**30)


def make_mask(name: str, shape: tuple[int, ...]) -> torch.Tensor | None:
    if name == "none":
        return None
    mask = torch.full(shape, name != "all padding")
    if name == "one padded" and mask.numel():
        mask.view(-1)[0] = False
    return mask


def check_measures(layer: SparseLayer, routing: Routing) -> None:
    asked = routing.tokens_per_expert
    measures = [
        max_violation(asked.tolist()),
        routing_metrics.load_cv(asked),
        routing_metrics.dead_experts(asked),
        routing_metrics.dropped_fraction(routing).item(),
        routing_metrics.routing_entropy(routing.probs),
    ]
    assert all(map(math.isfinite, measures)), measures
    still = torch.zeros(routing.num_experts)
    for bias in (quantile_bias(still, routing.probs, layer.top_k, 3), loss_free_bias(still, asked, 0.1)):
        assert bias.isfinite().all()
    if isinstance(layer.router, ReluRouter):
        layer.router.after_step(asked, routing.num_tokens)
        assert layer.router.l1.isfinite()


def check_pass(layer: SparseLayer, shape: tuple[int, ...], masked: str, policy: RoutingPolicy | None = None) -> None:
    x = torch.randn(shape, requires_grad=True)
    y, routing = layer(x, torch.zeros(shape[:-1], dtype=torch.int64), make_mask(masked, shape[:-1]), policy)
    assert x.shape == y.shape
    losses = [value for balance in BALANCES for value in auxiliary_losses(balance, [routing]).values()]
    if masked != "one padded":
        sequences = math.prod(shape[:-2]) if len(shape) > 2 else 1
        losses += auxiliary_losses(SwitchBalance(scope="sequence"), [routing], num_sequences=sequences).values()
    if routing.clean_logits is not None:
        losses += auxiliary_losses(WeightedBalance(name="load"), [routing]).values()
    if routing.router_loss is not None:
        losses.append(routing.router_loss)
    loss = y.square().sum() + torch.stack(losses).sum()
    assert loss.isfinite()
    if routing.num_tokens == 0:
        assert loss.item() == 0
    if loss.requires_grad:
        loss.backward()
    for tensor in (x, *layer.parameters()):
        assert tensor.grad is None or tensor.grad.isfinite().all()
    check_measures(layer, routing)


@pytest.mark.parametrize("size", [(4, 2), (1, 1)], ids=["E4", "E1"])
@pytest.mark.parametrize("router", [*ROUTER_CONFIGS, "soft"])
def test_no_tokens_and_one_expert_have_a_result(router: str, size: tuple[int, int]) -> None:
    """Output, losses, gradients, bias and measures are finite for every router, shape, mask and capacity; 0 without tokens."""
    num_experts, top_k = (size[0], 1) if router == "switch" else size
    layers = []
    for capacity, drop in ((None, "position"), (1.0, "position"), (1.0, "causal")):
        try:
            layer = make_sparse_layer(
                8, num_experts, top_k, 8, router=router, capacity_factor=capacity, drop=drop, vocab_size=16
            )
        except ConfigError:
            continue  # this router takes no such capacity
        layers.append((layer, RoutingPolicy(capacity_factor=capacity)))
    # Each shape and each mask meets every capacity, but not every pair of them does.
    assert layers or (router, num_experts) == ("noisy_topk", 1)  # which refuses a single expert
    for index, (shape, masked) in enumerate(itertools.product(SHAPES, MASKS) if layers else ()):
        layer, policy = layers[(index + index // len(MASKS)) % len(layers)]
        layer.train(masked != "full")
        check_pass(layer, shape, masked, None if layer.training else policy)


@pytest.mark.parametrize("backend", BACKENDS)
def test_back_ends_compute_nothing(backend: str) -> None:
    """Every back end answers a batch without tokens, of choices and of slots."""
    for router in ("topk", "expert_choice", "soft"):
        layer = make_sparse_layer(8, 4, 2, 8, router=router, dispatch=backend)
        for shape in SHAPES:
            check_pass(layer, shape, "all padding")


def test_gates_of_tasks_take_no_tokens() -> None:
    """A gate for each task scores an empty batch."""
    assert (0, 3) == PerTaskGate(LinearGate(8, 3), 2)(torch.zeros(0, 8)).shape


@pytest.mark.parametrize("name", ["d_model", "num_experts", "top_k", "d_expert", "shared_experts", "vocab_size"])
def test_counts_of_a_layer_are_whole_and_above_0(name: str) -> None:
    """Anything else is refused by name, before a tensor is made; only shared_experts may be 0."""
    for value in BAD_COUNTS[1:] if name == "shared_experts" else BAD_COUNTS:
        sizes = {"d_model": 8, "num_experts": 4, "top_k": 2, "d_expert": 8, "vocab_size": 16, name: value}
        with pytest.raises(ConfigError, match=f"{name}="):
            MoELayer(**sizes, router="hash")


@pytest.mark.parametrize("name", ["num_experts", "input_dim", "output_dim", "k"])
def test_counts_of_a_model_are_whole_and_above_0(name: str) -> None:
    """The same for the model that is one mixture."""
    for value in BAD_COUNTS:
        with pytest.raises(ConfigError):
            SparseExpertModel(**{"num_experts": 4, "input_dim": 8, "output_dim": 8, "k": 2, name: value})


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf], ids=str)
def test_fractions_of_a_layer_are_numbers(value: float) -> None:
    """Capacities, dropout and scales that are no finite numbers above 0 are refused, also for an evaluation."""
    for name in ("capacity_factor", "expert_init_scale", *(("expert_dropout",) if value != 0 else ())):
        with pytest.raises(ConfigError, match=name):
            MoELayer(8, 4, 2, 8, **{name: value})
    with pytest.raises(ConfigError, match="capacity_factor"):
        RoutingPolicy(capacity_factor=value)


@pytest.mark.parametrize("top_k", [0, -1, 5])
def test_evaluation_takes_as_many_experts_as_there_are(top_k: int) -> None:
    """0 experts are not taken for none named."""
    with pytest.raises(ConfigError, match="top_k"):
        MoELayer(8, 4, 2, 8)(torch.randn(3, 8), policy=RoutingPolicy(top_k))


@pytest.mark.parametrize("value", [1.5, math.nan, "4", [4], None], ids=str)
def test_counts_of_another_type_are_refused(value: Any) -> None:
    """Callers without a type checker get the same error."""
    with pytest.raises(ConfigError, match="d_model="):
        check_whole("d_model", value)


@pytest.mark.parametrize("value", [math.nan, math.inf, "4", [4]], ids=str)
def test_fractions_of_another_type_are_refused(value: Any) -> None:
    """The same of every range."""
    for check in (check_at_least, check_above):
        with pytest.raises(ConfigError, match="x="):
            check("x", value, 0)
    with pytest.raises(ConfigError, match="x="):
        check_fraction("x", value)
    with pytest.raises(ConfigError, match="x="):
        check_between("x", value, 0, 1)
