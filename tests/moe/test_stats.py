"""Measures of a Routing, by hand and by their bounds. T tokens, E experts, K chosen per token."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_cli.moe.routing import Routing, drop_overflow
from moe_cli.moe.stats import (
    dead_experts,
    dropped_fraction,
    max_violation,
    routing_entropy,
    tokens_per_expert,
)
from tests.moe.formulas import dense, routings


@given(routing=routings())
def test_tokens_per_expert_counts_assignments(routing: Routing) -> None:
    """Asked and kept assignments of each expert equal the column sums of the dense matrices."""
    ones = torch.ones(len(routing.kept), dtype=torch.float64)
    assert dense(routing, ones).sum(0).tolist() == tokens_per_expert(routing).tolist()
    assert dense(routing, ones * routing.kept).sum(0).tolist() == tokens_per_expert(routing, kept=True).tolist()


@pytest.mark.parametrize(
    ("load", "expected"),
    [
        ([5, 5, 5, 5], 0.0),
        ([20, 0, 0, 0], 3.0),  # one takes all: E - 1
        ([6, 2], 0.5),
        ([1, 2, 3], 0.5),
        ([7], 0.0),
        ([0, 0], 0.0),
    ],
)
def test_max_violation_by_hand(load: list[int], expected: float) -> None:
    """(largest load - mean load) / mean load, and 0 when there is no load."""
    assert expected == max_violation(torch.tensor(load))


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=20), st.integers(1, 1000))
def test_max_violation_has_bounds_and_no_scale(load: list[int], factor: int) -> None:
    """MaxVio lies between 0 and E - 1 and does not depend on how many tokens were counted."""
    value = max_violation(torch.tensor(load))
    assert 0 <= value <= len(load) - 1 + 1e-9
    assert value == pytest.approx(max_violation(factor * torch.tensor(load)))


@given(routing=routings(), capacity=st.integers(1, 5))
def test_dropped_fraction_is_what_found_no_room(routing: Routing, capacity: int) -> None:
    """One minus kept over requested; 0 for an empty record."""
    dropped = drop_overflow(routing, capacity)
    requested = len(dropped.kept)
    expected = (requested - int(dropped.kept.sum())) / requested if requested else 0.0
    assert dropped_fraction(dropped) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("probs", "per_token", "of_the_mean"),
    [
        ([[0.25, 0.25, 0.25, 0.25]], 1.0, 1.0),
        ([[1.0, 0.0, 0.0, 0.0]], 0.0, 0.0),
        ([[0.5, 0.5, 0.0, 0.0]], 0.5, 0.5),
        ([[1.0, 0.0], [0.0, 1.0]], 0.0, 1.0),  # sure tokens, even use
        ([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]], 0.5, 1.0),
        ([[1.0]], 0.0, 0.0),  # one expert: nothing to decide
    ],
)
def test_entropies_by_hand(probs: list[list[float]], per_token: float, of_the_mean: float) -> None:
    """Entropy over ln E, averaged over tokens, and of the averaged probabilities."""
    assert routing_entropy(torch.tensor(probs)) == pytest.approx(per_token)
    assert routing_entropy(torch.tensor(probs).mean(0, keepdim=True)) == pytest.approx(of_the_mean)


@given(routing=routings())
def test_entropies_have_their_order(routing: Routing) -> None:
    """Both lie in [0, 1], and the mean is at least as undecided as the tokens (entropy is concave)."""
    per_token, of_the_mean = routing_entropy(routing.probs), routing_entropy(routing.probs.mean(0, keepdim=True))
    assert -1e-12 <= per_token <= of_the_mean + 1e-12 <= 1 + 2e-12


def test_entropy_uses_the_natural_logarithm_of_e() -> None:
    """Two equal halves among E experts have entropy ln 2 / ln E."""
    probs = torch.tensor([[0.5, 0.5, 0.0, 0.0, 0.0]])
    assert routing_entropy(probs) == pytest.approx(math.log(2) / math.log(5))


@pytest.mark.parametrize(
    ("load", "expected"),
    [
        ([10, 10, 10, 10], 0.0),
        ([0, 10, 10, 10], 0.25),
        ([99, 99, 1, 201], 0.0),  # exactly 1 % of a fair load lives
        ([199, 199, 1, 1], 0.0),
        ([399, 399, 1, 1], 0.5),
        ([0, 0], 1.0),
    ],
)
def test_dead_experts_by_hand(load: list[int], expected: float) -> None:
    """The share of experts below one hundredth of the mean load; all of them when there is no load."""
    assert expected == dead_experts(torch.tensor(load))
