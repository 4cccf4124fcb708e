"""A causal model with a capacity: no later token pushes an earlier one out. B sequences, L positions, V tokens."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from moe_cli.config.capacity import expert_capacity
from moe_cli.config.routers import (
    HashConfig,
    NoisyTopKConfig,
    RandomConfig,
    ReluConfig,
    SigmoidConfig,
    SinkhornConfig,
    SwitchConfig,
    TopKConfig,
)
from moe_cli.errors import ConfigError
from moe_cli.models.registry import make_model
from moe_cli.moe.layer import MoELayer, make_sparse_layer
from moe_cli.moe.routers.registry import ROUTERS as ALL
from moe_cli.moe.routing import Routing, RoutingPolicy, Sequences, drop_overflow_in_order
from moe_cli.moe.sparse_layer import moe_layers
from tests.tiny import TINY, randomise, tiny_config

pytestmark = pytest.mark.usefixtures("unchecked_shapes")
V, L, B = 40, 16, 3
ROUTERS: dict[str, Any] = {
    "topk": TopKConfig(),
    "switch": SwitchConfig(),
    "noisy_topk": NoisyTopKConfig(),
    "sigmoid": SigmoidConfig(),
    "sinkhorn": SinkhornConfig(),
    "relu": ReluConfig(),
    "hash": HashConfig(),
    "random": RandomConfig(),
}
# Their weights, or who is chosen, have a part that training draws or takes from the whole batch.
DETERMINISTIC = [name for name in ROUTERS if name not in ("noisy_topk", "random", "sinkhorn")]
FAMILIES = ("gpt", "lstm", "t5")


def model_of(family: str, router: str, **changes: Any) -> nn.Module:
    """A float64 model with every weight at random."""
    given = {**TINY.get(family, {}), "balance": None, "router": ROUTERS[router], "k": 1 if router == "switch" else 2}
    return randomise(make_model(tiny_config(Path("text"), **{**given, "capacity": 0.5, **changes}), V)).double()


def logits(model: nn.Module, family: str, tokens: Tensor, policy: RoutingPolicy | None = None) -> Tensor:
    """Returns the logits of the generated tokens; the encoder of t5 always reads the same tokens."""
    torch.manual_seed(0)
    given = (torch.arange(L).expand(B, -1), tokens) if family == "t5" else (tokens,)
    with torch.no_grad():
        return model(*given, policy=policy)[0]  # type: ignore[no-any-return]


def moved(model: nn.Module, family: str, policy: RoutingPolicy | None = None, seed: int = 0) -> float:
    """The share of the logits before t that another continuation from t on changes, over all t; those at t must change."""
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(V, (B, L), generator=draw)
    before, changed = logits(model, family, tokens, policy), []
    for t in range(1, L):
        other = tokens.clone()
        other[:, t:] = (other[:, t:] + torch.randint(1, V, (B, L - t), generator=draw)) % V
        difference = (logits(model, family, other, policy) - before).abs().amax(-1)
        changed.append(difference[:, :t].flatten() > 1e-9)
        assert (difference[:, t] > 1e-9).all()
    return torch.cat(changed).double().mean().item()


def test_every_router_is_here() -> None:
    """All but those that a causal model refuses."""
    assert {*ROUTERS, "expert_choice"} == {config.name for config in ALL}


@pytest.mark.parametrize(
    ("family", "router"),
    [*(("gpt", router) for router in ROUTERS), ("lstm", "topk"), ("t5", "topk"), ("t5", "sinkhorn")],
)
def test_a_limited_evaluation_sees_no_later_token(family: str, router: str) -> None:
    """By default, whatever rule training drops by: tokens from t on change no logits before t, though some are dropped."""
    model = model_of(family, router, drop="position").eval()
    policy = RoutingPolicy(capacity_factor=0.5)
    assert 0 == moved(model, family, policy)
    dropped = [
        layer.route(torch.randn(L, 16).double(), torch.arange(L), policy=policy).kept.logical_not().sum()
        for layer in moe_layers(model)
    ]
    assert all(number > 0 for number in dropped)


@pytest.mark.parametrize(
    ("family", "router"), [*(("gpt", router) for router in DETERMINISTIC), ("lstm", "topk"), ("t5", "topk")]
)
def test_training_may_drop_so_too(family: str, router: str) -> None:
    """drop=causal in training mode."""
    assert 0 == moved(model_of(family, router, drop="causal").train(), family)


@pytest.mark.parametrize(
    ("family", "drop"),
    [("gpt", "position"), ("gpt", "probability"), ("gpt", "random"), ("lstm", "probability"), ("t5", "position")],
)
def test_the_other_rules_see_later_tokens(family: str, drop: str) -> None:
    """Asked for by eval.drop, as in training, each changes logits before t."""
    model = model_of(family, "topk", drop=drop)
    assert moved(model.eval(), family, RoutingPolicy(None, 0.5, drop)) > 0.02
    assert moved(model.train(), family) > 0.02


def test_sinkhorn_sees_later_tokens_in_training_alone() -> None:
    """It balances the batch, dropless too; at evaluation it takes the K largest."""
    model = model_of("gpt", "sinkhorn", capacity=None)
    assert moved(model.train(), "gpt") > 0.02
    assert 0 == moved(model.eval(), "gpt")


@pytest.mark.parametrize("family", FAMILIES)
def test_another_sequence_changes_nothing(family: str) -> None:
    """With drop=causal the logits of a sequence are those of the sequence alone."""
    model = model_of(family, "topk").eval()
    tokens = torch.randint(V, (B, L), generator=torch.Generator().manual_seed(1))
    other = tokens.clone()
    other[1:] = (other[1:] + 1) % V
    policy = RoutingPolicy(None, 0.5, "causal")
    both = [logits(model, family, each, policy)[0] for each in (tokens, other)]
    torch.testing.assert_close(*both, rtol=0, atol=1e-9)


@given(
    data=st.data(),
    experts=st.integers(1, 5),
    number=st.integers(0, 3),
    length=st.integers(1, 6),
    top_k=st.integers(1, 3),
    padded=st.booleans(),
    capacity=st.integers(1, 5),
)
def test_the_first_of_each_sequence_are_kept(
    data: Any, experts: int, number: int, length: int, top_k: int, padded: bool, capacity: int
) -> None:
    """A slow loop over sequences, tokens and choices, for any record whose choices of a token come in order."""
    rows = [[data.draw(st.booleans()) for _ in range(length)] for _ in range(number)]
    mask = torch.tensor(rows, dtype=torch.bool).view(number, length)
    homes = [row for row in range(number) for place in range(length) if not padded or mask[row, place]]
    ids = torch.arange(len(homes)).repeat(top_k)
    asked = torch.tensor(
        data.draw(st.lists(st.integers(0, experts - 1), min_size=len(ids), max_size=len(ids))), dtype=torch.int64
    )
    probs = torch.zeros(len(homes), experts)
    routing = Routing(probs, probs, ids, asked, torch.ones(len(ids)), torch.ones(len(ids), dtype=torch.bool))
    taken: dict[tuple[int, int], int] = defaultdict(int)
    expected = torch.zeros(len(ids), dtype=torch.bool)
    for token, home in enumerate(homes):
        for choice in range(top_k):
            place = choice * len(homes) + token
            queue = (home, int(asked[place]))
            taken[queue] += 1
            expected[place] = taken[queue] <= capacity
    found = drop_overflow_in_order(routing, capacity, Sequences(number, length, mask if padded else None))
    assert expected.tolist() == found.kept.tolist()


def test_the_capacity_is_that_of_a_whole_sequence() -> None:
    """C = ceil(factor L K / E) for each sequence, padded or not: not even its length tells of later tokens."""
    torch.manual_seed(0)
    layer = MoELayer(8, 4, 2, 8, capacity_factor=0.5, drop="causal")
    x, mask = torch.randn(1, 10, 8).expand(2, -1, -1), torch.arange(10) < torch.tensor([[10], [6]])
    capacity = expert_capacity(10, 4, 2, 0.5)
    whole, part = layer(x[:1])[1], layer(x, mask=mask)[1]
    assert capacity == int(torch.bincount(whole.expert_ids[whole.kept]).max()) == 3

    def assignments(routing: Routing, first: int, last: int) -> set[tuple[int, int]]:
        """Returns the kept pairs of (token, expert) of a range of tokens, counted from its first token."""
        triples = zip(routing.token_ids, routing.expert_ids, routing.kept, strict=True)
        return {(int(token) - first, int(expert)) for token, expert, kept in triples if kept and first <= token < last}

    early = {pair for pair in assignments(whole, 0, 10) if pair[0] < 6}
    assert assignments(part, 0, 10) == assignments(whole, 0, 10)
    assert assignments(part, 10, 16) == early


def test_a_causal_layer_refuses_routers_that_look_ahead() -> None:
    """The layer itself, as the configuration does."""
    for router in ("expert_choice", "soft"):
        with pytest.raises(ConfigError, match=f"router={router} looks at later tokens"):
            make_sparse_layer(8, 4, 2, 8, router=router, causal=True)
