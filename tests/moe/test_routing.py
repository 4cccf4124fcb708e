"""Capacity and drops. T tokens, E experts, K chosen per token, A assignments, C capacity."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_cli.config.capacity import expert_capacity
from moe_cli.errors import ConfigError
from moe_cli.moe.permutation import permutation_of
from moe_cli.moe.routing import Routing, drop_overflow, renormalise_kept, routing_from_top_k, without_null_experts
from tests.moe.formulas import dense, routings


def routing_of(chosen: list[list[int]], num_experts: int, probs: torch.Tensor | None = None) -> Routing:
    """The routing of hand-written choices, one list per token."""
    choices = torch.tensor(chosen)
    if probs is None:
        probs = torch.full((len(choices), num_experts), 1 / num_experts)
    return routing_from_top_k(probs.log(), probs, choices, probs.gather(1, choices))


def assignments(routing: Routing) -> list[tuple[int, int]]:
    return list(zip(routing.token_ids.tolist(), routing.expert_ids.tolist(), strict=True))


def test_first_choices_of_all_tokens_stand_before_second_choices() -> None:
    """The record lists every first choice in token order, then every second choice, with its own weight."""
    weights = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]])
    choices = torch.tensor([[0, 1], [2, 0], [1, 2]])
    routing = routing_from_top_k(torch.zeros(3, 3), torch.full((3, 3), 1 / 3), choices, weights)

    assert [(0, 0), (1, 2), (2, 1), (0, 1), (1, 0), (2, 2)] == assignments(routing)
    assert torch.equal(torch.tensor([0.9, 0.8, 0.7, 0.1, 0.2, 0.3]), routing.weights)
    assert routing.kept.all()


def test_a_dropless_routing_is_sorted_as_one_with_a_mask() -> None:
    """The flag spares the mask and changes nothing; a drop clears it, and a mask that contradicts it is an error."""
    routing = routing_of([[0, 1], [2, 0], [1, 2]], 3)
    masked = replace(routing, is_dropless=False)
    expected, found = permutation_of(masked), permutation_of(routing)
    assert [tensor.tolist() for tensor in expected.tensors] == [tensor.tolist() for tensor in found.tensors]
    assert [2, 2, 2] == expected.counts == found.counts
    assert (True, False) == (routing.is_dropless, drop_overflow(routing, 2).is_dropless)
    with pytest.raises(AssertionError, match="is_dropless contradicts kept"):
        permutation_of(replace(routing, kept=~routing.kept))


@pytest.mark.parametrize(
    ("tokens", "experts", "top_k", "factor", "expected"),
    [
        (100, 8, 2, 1.25, 32),  # 31.25, rounded up
        (100, 8, 2, 1.0, 25),
        (100, 8, 1, 1.0, 13),  # 12.5
        (64, 8, 2, 0.5, 8),
        (9, 4, 2, 2.0, 9),
        (1, 8, 1, 1.0, 1),  # 0.125: the least is 1
        (3, 64, 1, 0.01, 1),
        (100, 10, 1, 1.1, 11),  # 11.000000000000002 as a float
        (1, 8, 1, 1e-12, 1),
        (1000, 10, 3, 1.1, 330),
    ],
)
def test_capacity_table(tokens: int, experts: int, top_k: int, factor: float, expected: int) -> None:
    """Capacity is ceil(factor * T * K / E), at least 1, as worked out by hand."""
    assert expected == expert_capacity(tokens, experts, top_k, factor)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((100, 8, 2, 0.0), "capacity_factor=0.0 must be "),
        ((100, 8, 2, math.nan), "capacity_factor=nan is not a number."),
        ((100, 8, 2, math.inf), "capacity_factor=inf is not a number."),
        ((-1, 8, 2, 1.0), "num_tokens=-1 is "),
        ((100, 0, 2, 1.0), "num_experts=0 is "),
        ((100, 8, 0, 1.0), "top_k=0 is "),
    ],
)
def test_no_capacity_without_meaning(arguments: tuple[int, int, int, float], message: str) -> None:
    """A factor that leaves no room, or is no number, is refused and not rounded up to 1; so are impossible counts."""
    with pytest.raises(ConfigError) as error:
        expert_capacity(*arguments)
    assert str(error.value).startswith(message)


@given(st.integers(1, 5000), st.integers(1, 256), st.data())
def test_capacity_of_one_holds_a_balanced_load(tokens: int, experts: int, data: st.DataObject) -> None:
    """With factor 1 the experts together have room for every assignment, and none to spare for another row of them."""
    top_k = data.draw(st.integers(1, experts))
    capacity = expert_capacity(tokens, experts, top_k, 1.0)
    assert capacity * experts >= tokens * top_k
    assert (capacity - 1) * experts < tokens * top_k


@pytest.mark.parametrize("drop", ["position", "probability"])
@given(routing=routings(), capacity=st.integers(1, 9))
def test_an_expert_keeps_as_much_as_it_can_and_no_more(drop: str, routing: Routing, capacity: int) -> None:
    """Kept + dropped = requested, and each expert keeps min(asked, capacity) assignments."""
    routing = replace(routing, kept=torch.ones_like(routing.kept))
    dropped = drop_overflow(routing, capacity, drop)

    kept = torch.bincount(dropped.expert_ids[dropped.kept], minlength=routing.num_experts)
    lost = torch.bincount(dropped.expert_ids[~dropped.kept], minlength=routing.num_experts)
    asked = torch.bincount(routing.expert_ids, minlength=routing.num_experts)
    assert torch.equal(asked, kept + lost)
    assert torch.equal(asked.clamp(max=capacity), kept)


@given(routing=routings(), capacity=st.integers(1, 9))
def test_position_keeps_the_first_to_come(routing: Routing, capacity: int) -> None:
    """Dropping by position equals a walk down the record that drops each assignment to a full expert."""
    places = [0] * routing.num_experts
    expected = []
    for expert, was_kept in zip(routing.expert_ids.tolist(), routing.kept.tolist(), strict=True):
        expected.append(was_kept and places[expert] < capacity)
        places[expert] += 1

    dropped = drop_overflow(routing, capacity, "position")
    assert expected == dropped.kept.tolist()
    assert assignments(routing) == assignments(dropped)


@given(routing=routings(), capacity=st.integers(1, 9))
def test_probability_keeps_the_most_probable(routing: Routing, capacity: int) -> None:
    """No assignment dropped by probability was more probable than one that the same expert kept."""
    dropped = drop_overflow(replace(routing, kept=torch.ones_like(routing.kept)), capacity, "probability")
    asked = dropped.probs[dropped.token_ids, dropped.expert_ids]
    for expert in range(routing.num_experts):
        mine = dropped.expert_ids == expert
        kept, lost = asked[mine & dropped.kept], asked[mine & ~dropped.kept]
        assert not len(lost) or kept.min() >= lost.max()


@given(routing=routings())
def test_probability_drop_reorders_and_changes_no_assignment(routing: Routing) -> None:
    """An assignment keeps its token, expert, weight and earlier fate when the record is reordered."""
    dropped = drop_overflow(routing, 1000, "probability")
    assert torch.allclose(dense(routing, routing.weights), dense(dropped, dropped.weights))
    kept, still_kept = routing.weights * routing.kept, dropped.weights * dropped.kept
    assert torch.allclose(dense(routing, kept), dense(dropped, still_kept))
    assert sorted(assignments(routing)) == sorted(assignments(dropped))


@pytest.mark.parametrize("drop", ["probability", "random"])
def test_a_reordered_record_has_one_round(drop: str) -> None:
    """Only a record with all first choices before all second choices has K rounds."""
    routing = routing_of([[0, 1], [2, 0], [1, 2]], 3)
    assert (2, 1) == (routing.rounds, drop_overflow(routing, 2, drop).rounds)
    assert 1 == without_null_experts(replace(routing, num_null=1)).rounds


def test_equally_probable_assignments_stay_in_the_order_of_the_record() -> None:
    """Among equal probabilities the first to come is kept."""
    dropped = drop_overflow(routing_of([[0], [0], [0]], 2), 2, "probability")
    assert [(0, 0), (1, 0), (2, 0)] == assignments(dropped)
    assert [True, True, False] == dropped.kept.tolist()


def test_the_two_rules_differ_when_the_last_token_is_the_surest() -> None:
    """Position keeps the earlier token, probability the surer one."""
    routing = routing_of([[0], [0]], 2, torch.tensor([[0.6, 0.4], [0.9, 0.1]]))
    by_position, by_probability = drop_overflow(routing, 1), drop_overflow(routing, 1, "probability")
    assert [0] == by_position.token_ids[by_position.kept].tolist()
    assert [1] == by_probability.token_ids[by_probability.kept].tolist()


@pytest.mark.parametrize("drop", ["position", "probability"])
@given(routing=routings())
def test_room_for_all_drops_nothing(drop: str, routing: Routing) -> None:
    """With a capacity of A nothing is dropped that was kept before."""
    dropped = drop_overflow(routing, max(1, len(routing.kept)), drop)
    assert int(routing.kept.sum()) == int(dropped.kept.sum())


def test_an_unknown_rule_is_a_bug() -> None:
    """The layer checks the rule's name; here a wrong one is an assertion."""
    with pytest.raises(AssertionError):
        drop_overflow(routing_of([[0]], 1), 1, "chance")


def test_random_drops_leave_no_place_better(monkeypatch: pytest.MonkeyPatch) -> None:
    """With drop=random every assignment of an overfull expert is kept as often as any other, and the record is whole."""
    routing = Routing(
        torch.zeros(10, 2),
        torch.full((10, 2), 0.5),
        torch.arange(10),
        torch.zeros(10, dtype=torch.int64),
        torch.rand(10),
        torch.ones(10, dtype=torch.bool),
    )
    torch.manual_seed(0)
    kept = torch.zeros(10)
    for _ in range(500):
        dropped = drop_overflow(routing, 4, "random")
        assert [*range(10)] == sorted(dropped.token_ids.tolist())
        assert torch.equal(routing.weights[dropped.token_ids], dropped.weights)
        assert 4 == int(dropped.kept.sum())
        kept += torch.zeros(10).index_put((dropped.token_ids[dropped.kept],), torch.ones(4))
    assert (kept / 500 - 0.4).abs().max() < 0.1


def test_weights_may_be_renormalised_after_a_drop() -> None:
    """Kept assignments of a token take over the weight of its dropped ones; a token without any keeps no weight."""
    routing = Routing(
        torch.zeros(3, 2),
        torch.full((3, 2), 0.5),
        torch.tensor([0, 1, 2, 0, 1, 2]),
        torch.tensor([0, 0, 0, 1, 1, 1]),
        torch.tensor([0.6, 0.5, 0.8, 0.4, 0.3, 0.2]),
        torch.tensor([True, True, False, True, False, False]),
    )
    kept = renormalise_kept(routing).weights * routing.kept
    torch.testing.assert_close(torch.tensor([0.6, 0.8, 0, 0.4, 0, 0]), kept)
