"""Measures of a Routing, by hand and by their bounds. T tokens, E experts, K chosen per token."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moe_cli.moe.max_violation import max_violation
from moe_cli.moe.routing import Routing, drop_overflow
from moe_cli.moe.routing_metrics import (
    assignment_mask,
    assignments_by_group,
    chance_saturation,
    co_activation,
    co_activation_dependence,
    dead_experts,
    dropped_fraction,
    expected_co_activation,
    load_cv,
    router_saturation,
    routing_entropy,
    specialisation,
)
from tests.moe.formulas import dense, routings


@given(routing=routings())
def test_tokens_per_expert_counts_assignments(routing: Routing) -> None:
    """Asked and kept assignments of each expert equal the column sums of the dense matrices."""
    ones = torch.ones(len(routing.kept), dtype=torch.float64)
    assert dense(routing, ones).sum(0).tolist() == routing.tokens_per_expert.tolist()
    assert dense(routing, ones * routing.kept).sum(0).tolist() == routing.kept_per_expert.tolist()


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
    assert expected == max_violation(load)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=20), st.integers(1, 1000))
def test_max_violation_has_bounds_and_no_scale(load: list[int], factor: int) -> None:
    """MaxVio lies between 0 and E - 1 and does not depend on how many tokens were counted."""
    value = max_violation(load)
    assert 0 <= value <= len(load) - 1 + 1e-9
    assert value == pytest.approx(max_violation([factor * count for count in load]))


@given(routing=routings(), capacity=st.integers(1, 5))
def test_dropped_fraction_is_what_found_no_room(routing: Routing, capacity: int) -> None:
    """One minus kept over requested; 0 for an empty record."""
    dropped = drop_overflow(routing, capacity)
    requested = len(dropped.kept)
    expected = (requested - int(dropped.kept.sum())) / requested if requested else 0.0
    assert dropped_fraction(dropped).item() == pytest.approx(expected)


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


@pytest.mark.parametrize(
    ("load", "expected"),
    [([5, 5, 5, 5], 0.0), ([20, 0, 0, 0], math.sqrt(3)), ([6, 2], 0.5), ([7], 0.0), ([0, 0], 0.0), ([1, 3], 0.5)],
)
def test_load_cv_by_hand(load: list[int], expected: float) -> None:
    """Population standard deviation over mean: sqrt(E - 1) when one takes all, and 0 when there is no load."""
    assert expected == pytest.approx(load_cv(torch.tensor(load)))


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=20))
def test_load_cv_has_bounds(load: list[int]) -> None:
    """CV is at most sqrt(E - 1), and CV^2 at most MaxVio (the Bhatia-Davis bound of a variance)."""
    cv, worst = load_cv(torch.tensor(load)), max_violation(load)
    assert 0 <= cv <= math.sqrt(len(load) - 1) + 1e-9
    assert cv**2 <= worst + 1e-9


@given(routing=routings())
def test_choices_and_co_activation_count_tokens(routing: Routing) -> None:
    """A choice is an assignment asked; a pair counts the tokens that asked for both, by a loop over tokens."""
    asked = [set() for _ in range(routing.num_tokens)]
    for token, expert in zip(routing.token_ids.tolist(), routing.expert_ids.tolist(), strict=True):
        asked[token].add(expert)
    chosen = assignment_mask(routing)
    assert [sorted(experts) for experts in asked] == [row.nonzero().flatten().tolist() for row in chosen]
    experts = range(routing.num_experts)
    pairs = [[sum(i in one and j in one for one in asked) for j in experts] for i in experts]
    assert pairs == co_activation(chosen).tolist()


def test_co_activation_by_hand() -> None:
    """Three tokens, three experts: symmetric, with loads on the diagonal."""
    chosen = torch.tensor([[True, True, False], [True, False, True], [True, True, False]])
    assert [[3, 2, 1], [2, 2, 0], [1, 0, 1]] == co_activation(chosen).tolist()


def test_saturation_by_hand() -> None:
    """The share of final choices that were there before; 1 for the final router itself, 0 for nothing in common."""
    final = torch.tensor([[True, True, False, False], [False, True, True, False]])
    before = torch.tensor([[True, False, True, False], [False, True, True, False]])
    assert 0.75 == router_saturation(before, final)
    assert 1.0 == router_saturation(final, final)
    assert 0.0 == router_saturation(~final, final)
    assert 1.0 == router_saturation(final[:0], final[:0])


@given(routing=routings(), seed=st.integers(0, 9))
def test_group_counts_split_the_load(routing: Routing, seed: int) -> None:
    """Groups together make the load, and each is the load of its own tokens."""
    groups = torch.randint(3, (routing.num_tokens,), generator=torch.Generator().manual_seed(seed))
    counts = assignments_by_group(routing, groups, 3)
    assert routing.tokens_per_expert.tolist() == counts.sum(0).tolist()
    for group in range(3):
        theirs = routing.expert_ids[groups[routing.token_ids] == group]
        assert torch.bincount(theirs, minlength=routing.num_experts).tolist() == counts[group].tolist()


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([[5, 0], [0, 5]], 1.0),
        ([[5, 5], [3, 3]], 0.0),
        ([[4, 0, 0], [0, 2, 2]], 1.0),  # the expert tells the group
        ([[4, 0], [4, 0], [0, 8]], 1.0),  # the group tells the expert
        ([[3, 7]], 0.0),  # one group
        ([[3], [7]], 0.0),  # one expert
        ([[0, 0], [0, 0]], 0.0),
        # H = ln 2 both; I = ln 2 - H(3/4) = ln 2 - (ln 4 - 3/4 ln 3)
        ([[3, 1], [1, 3]], (0.75 * math.log(3) - math.log(2)) / math.log(2)),
    ],
)
def test_specialisation_by_hand(counts: list[list[int]], expected: float) -> None:
    """Mutual information over the smaller entropy: 0 when independent, 1 when one decides the other."""
    assert expected == pytest.approx(specialisation(torch.tensor(counts)), abs=1e-12)


@given(st.lists(st.lists(st.integers(0, 50), min_size=3, max_size=3), min_size=1, max_size=6))
def test_specialisation_has_bounds_and_no_sides(counts: list[list[int]]) -> None:
    """Between 0 and 1, the same with groups and experts exchanged, and blind to empty groups."""
    table = torch.tensor(counts)
    value = specialisation(table)
    assert 0 <= value <= 1
    assert value == pytest.approx(specialisation(table.T), abs=1e-9)
    assert value == pytest.approx(specialisation(torch.cat((table, 0 * table))), abs=1e-9)


def test_independent_pairs_are_expected() -> None:
    """Pairs w_i w_j of any weights are expected as they are; the rows of expected pairs have the sums of the measured."""
    weights = torch.tensor([1.0, 2, 3, 5])
    pairs = (1000 * torch.outer(weights, weights)).long()
    expected = expected_co_activation(pairs)
    off_diagonal = pairs - pairs.diag().diag()
    assert torch.allclose(off_diagonal.double(), expected, rtol=1e-3)
    assert 0 == pytest.approx(co_activation_dependence(pairs, expected), abs=1e-3)
    uneven = pairs + torch.tensor([[0, 9000, 0, 0], [9000, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    sums = (uneven - uneven.diag().diag()).sum(1).double()
    assert torch.allclose(sums, expected_co_activation(uneven).sum(1), rtol=1e-6)


def test_fixed_couples_of_experts_depend_on_each_other() -> None:
    """Two couples of four experts: of six pairs two occur, where each would be expected a third as often."""
    pairs = co_activation(torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1]]).bool().repeat(300, 1))
    expected = expected_co_activation(pairs)
    assert torch.allclose(expected, 100 * (1 - torch.eye(4, dtype=torch.float64)))
    assert 2 / 3 == pytest.approx(co_activation_dependence(pairs, expected))


def test_saturation_by_chance_is_that_of_independent_routers() -> None:
    """Random choices of K of E agree in K / E; two routers that prefer one expert agree more often."""
    generator = torch.Generator().manual_seed(0)

    def choices(scores: Tensor) -> Tensor:
        best = (torch.rand(20_000, 4, generator=generator) + scores).topk(2).indices
        return torch.zeros(20_000, 4, dtype=torch.bool).scatter_(1, best, True)

    for scores, by_chance in ((torch.zeros(4), 0.5), (torch.tensor([9.0, 0, 0, 0]), 2 / 3)):
        first, second = choices(scores), choices(scores)
        assert by_chance == pytest.approx(chance_saturation(first, second), abs=0.01)
        assert by_chance == pytest.approx(router_saturation(first, second), abs=0.01)
