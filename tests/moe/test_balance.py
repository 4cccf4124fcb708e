"""Balancing losses in closed form. T tokens, E experts, K chosen per token, f and P the shares of eq. 4."""

import math
from dataclasses import replace
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moe_cli.config.balances import BalanceConfig, LossFreeBalance, NoBalance, SwitchBalance, ZBalance
from moe_cli.config.routers import TopKConfig
from moe_cli.moe.balance import LOSSES, auxiliary_loss, load_balancing_loss, router_z_loss, update_expert_bias
from moe_cli.moe.registry import make_router
from moe_cli.moe.routers import top_indices
from moe_cli.moe.routing import Routing, drop_overflow, from_choices
from moe_cli.moe.stats import max_violation, tokens_per_expert

E = 8
every_k = pytest.mark.parametrize("top_k", [1, 2, 3, E])


def routing_of(logits: Tensor, chosen: Tensor) -> Routing:
    probs = logits.softmax(-1)
    return from_choices(logits, probs, chosen, probs.gather(1, chosen))


def in_turn(top_k: int, num_tokens: int = 2 * E) -> Tensor:
    """Choices that use every expert equally: token t takes experts t, t + 1, ... in a circle."""
    return (torch.arange(num_tokens)[:, None] + torch.arange(top_k)) % E


@every_k
def test_balanced_loss_is_one_for_every_k(top_k: int) -> None:
    """Even choices cost exactly 1 whatever the probabilities, and even probabilities whatever the choices."""
    torch.manual_seed(0)
    logits = torch.randn(2 * E, E, dtype=torch.float64)
    even_choices = routing_of(logits, in_turn(top_k))
    even_probabilities = routing_of(torch.zeros_like(logits), top_indices(logits, top_k))
    assert load_balancing_loss(even_choices).item() == pytest.approx(1, abs=1e-12)
    assert load_balancing_loss(even_probabilities).item() == pytest.approx(1, abs=1e-12)


@every_k
def test_all_to_one_costs_experts_over_k(top_k: int) -> None:
    """When every token is sure of one expert, that expert has 1 / K of the assignments and the loss is E / K."""
    logits = torch.full((10, E), -1000.0, dtype=torch.float64)
    logits[:, 3] = 0
    assert load_balancing_loss(routing_of(logits, top_indices(logits, top_k))).item() == pytest.approx(E / top_k)


@given(st.integers(1, E), st.floats(0, 30), st.integers(0, 1000))
def test_no_routing_costs_more_than_all_to_one(top_k: int, strength: float, seed: int) -> None:
    """E / K is the most that any top-K routing costs."""
    logits = strength * torch.randn(12, E, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    loss = load_balancing_loss(routing_of(logits, top_indices(logits, top_k))).item()
    assert 0 < loss <= E / top_k + 1e-9


def test_balancing_loss_by_hand() -> None:
    """Three of four first choices on expert 0, mean probabilities (0.65, 0.35): 2 * (0.75 * 0.65 + 0.25 * 0.35)."""
    probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.3, 0.7]], dtype=torch.float64)
    routing = routing_of(probs.log(), probs.argmax(-1, keepdim=True))
    assert load_balancing_loss(routing).item() == pytest.approx(2 * (0.75 * 0.65 + 0.25 * 0.35))


@every_k
def test_balancing_loss_counts_before_drops(top_k: int) -> None:
    """What was asked is counted, not what found room."""
    torch.manual_seed(0)
    logits = torch.randn(20, E, dtype=torch.float64)
    routing = routing_of(logits, top_indices(logits, top_k))
    dropped = drop_overflow(routing, 1)
    assert not dropped.kept.all()
    assert load_balancing_loss(routing) == load_balancing_loss(dropped)


def test_balancing_loss_teaches_through_the_probabilities_alone() -> None:
    """d loss / d p_ti = (E / K) f_i / T: the counts are constants."""
    torch.manual_seed(0)
    logits = torch.randn(6, E, dtype=torch.float64)
    routing = routing_of(logits, top_indices(logits, 2))
    probs = routing.probs.clone().requires_grad_()
    load_balancing_loss(replace(routing, probs=probs)).backward()
    asked_per_token = tokens_per_expert(routing) / 6
    assert torch.allclose((E / 2 * asked_per_token / 6).expand(6, E).double(), probs.grad, atol=1e-6)


@pytest.mark.parametrize("num_experts", [1, 2, 8, 64])
def test_z_loss_of_zero_logits(num_experts: int) -> None:
    """Zero logits cost (ln E)^2."""
    loss = router_z_loss(torch.zeros(5, num_experts, dtype=torch.float64))
    assert loss.item() == pytest.approx(math.log(num_experts) ** 2)


def test_z_loss_is_a_mean_of_squares() -> None:
    """Logits shifted by c_t cost the mean over tokens of (ln E + c_t)^2."""
    shift = torch.tensor([-3.0, 0.0, 2.0], dtype=torch.float64)
    loss = router_z_loss(torch.zeros(3, E, dtype=torch.float64) + shift[:, None])
    assert loss.item() == pytest.approx(((math.log(E) + shift) ** 2).mean().item())


def test_bias_update_by_hand() -> None:
    """The bias of an overloaded expert falls by the rate, of an idle one rises, of an average one stays."""
    bias = torch.tensor([0.5, 0.5, 0.5, 0.5])
    updated = update_expert_bias(bias, torch.tensor([7, 5, 5, 3]), 0.1)
    assert torch.allclose(torch.tensor([0.4, 0.5, 0.5, 0.6]), updated)
    assert torch.float32 == updated.dtype
    assert torch.equal(torch.full((4,), 0.5), bias)


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=16), st.floats(1e-4, 1))
def test_bias_moves_against_the_load(load: list[int], rate: float) -> None:
    """Every expert's bias moves by the rate, away from its deviation from the mean load, or not at all."""
    moved = update_expert_bias(torch.zeros(len(load), dtype=torch.float64), torch.tensor(load), rate)
    for count, step in zip(load, moved.tolist(), strict=True):
        deviation = count * len(load) - sum(load)
        assert step == (-rate if deviation > 0 else rate if deviation < 0 else 0)


def test_the_bias_evens_out_a_skewed_gate() -> None:
    """Repeated updates bring a gate that prefers one expert to an almost even load."""
    torch.manual_seed(0)
    router = make_router(TopKConfig(), E, E, 2)
    x = torch.randn(512, E) + 1
    torch.nn.init.eye_(router.gate.weight)
    router.gate.weight.data[0] += 0.3
    before = max_violation(tokens_per_expert(router(x)))
    for _ in range(300):
        router.expert_bias.copy_(update_expert_bias(router.expert_bias, tokens_per_expert(router(x)), 0.005))
    assert before > 1
    assert max_violation(tokens_per_expert(router(x))) < 0.2


def collapsed(expert: int) -> Routing:
    logits = torch.full((10, E), -1000.0, dtype=torch.float64)
    logits[:, expert] = 0
    return routing_of(logits, top_indices(logits, 1))


def test_opposite_collapses_of_two_layers_do_not_cancel() -> None:
    """The loss is averaged over layers, never pooled: two collapsed layers cost as much as one."""
    loss = auxiliary_loss(SwitchBalance(), [collapsed(0), collapsed(1)])
    assert loss.item() == pytest.approx(E)


@pytest.mark.parametrize("balance", [SwitchBalance(), ZBalance()])
def test_auxiliary_loss_is_the_mean_over_layers(balance: BalanceConfig) -> None:
    """Each layer is measured by the loss that the config names, before its weight."""
    torch.manual_seed(0)
    layers = [routing_of(logits, in_turn(2)) for logits in torch.randn(3, 2 * E, E, dtype=torch.float64)]
    layers.append(collapsed(2))
    switch = isinstance(balance, SwitchBalance)
    losses = [load_balancing_loss(each) if switch else router_z_loss(each.logits) for each in layers]
    expected = sum(loss.item() for loss in losses) / 4
    assert auxiliary_loss(balance, layers).item() == pytest.approx(expected)


@pytest.mark.parametrize("balance", [None, NoBalance(), LossFreeBalance()])
def test_nothing_to_add_is_none(balance: BalanceConfig | None) -> None:
    """Without a loss to add there is None, so that the loop adds nothing at all."""
    assert auxiliary_loss(balance, [collapsed(0)]) is None


def test_a_dense_model_has_no_auxiliary_loss() -> None:
    """A model without expert layers has no routings and no loss."""
    assert auxiliary_loss(SwitchBalance(), []) is None


def test_every_balance_is_a_loss_or_none() -> None:
    """Each variant of the schema has a loss or is known to have none."""
    assert set(get_args(BalanceConfig)) == {*LOSSES, NoBalance, LossFreeBalance}
