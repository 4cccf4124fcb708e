"""Padding and empty batches: what a mask hides reaches no expert and no other token, whatever the router."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moe_cli.config.routers import SigmoidConfig, SoftConfig, TokenChoiceConfig, TopKConfig
from moe_cli.moe.layer import make_sparse_layer
from moe_cli.moe.routers.registry import ROUTER_CONFIGS
from moe_cli.moe.routing import Routing
from moe_cli.moe.soft import SoftMoELayer
from moe_cli.moe.sparse_layer import SparseLayer

D, E, SEQUENCES, LENGTH = 6, 4, 3, 5
ROUTERS: dict[str, Any] = {name: config() for name, config in ROUTER_CONFIGS.items()} | {
    "soft": SoftConfig(),
    "topk-cosine": TopKConfig(score="cosine"),
    "topk-activation": TopKConfig(score="activation"),
    "topk-null": TopKConfig(null_experts=2),
    "sigmoid-mlp": SigmoidConfig(score="mlp", groups=2),
    "soft-slots": SoftConfig(slots=3),
}
every_router = pytest.mark.parametrize("name", ROUTERS)
IDS = torch.arange(SEQUENCES * LENGTH).view(SEQUENCES, LENGTH)


def layer_of(name: str, **options: Any) -> SparseLayer:
    torch.manual_seed(0)
    layer = make_sparse_layer(
        D,
        E,
        1 if name == "switch" else 2,
        7,
        router=ROUTERS[name],
        vocab_size=99,
        shared_experts=1,
        shared_gate=True,
        **options,
    ).double()
    for param in layer.router.parameters():
        torch.nn.init.normal_(param)
    return layer


def answer(layer: SparseLayer, x: Tensor, ids: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Routing]:
    """The layer's answer with the same random numbers every time."""
    torch.manual_seed(1)
    y, routing = layer(x, ids, mask)
    return y, routing


def examples() -> Tensor:
    return torch.randn(SEQUENCES, LENGTH, D, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def test_every_router_is_here() -> None:
    """A router that is added later cannot be left out, nor a score."""
    assert ROUTER_CONFIGS.keys() <= ROUTERS.keys()
    scores = {config.score for config in ROUTERS.values() if isinstance(config, TokenChoiceConfig)}
    assert {"linear", "cosine", "mlp", "activation"} == scores


@every_router
def test_a_mask_that_hides_nothing_changes_nothing(name: str) -> None:
    """All True: the same output, record and gradient, to the last bit, in training and at evaluation."""
    for capacity, training in itertools.product((None, 0.6), (True, False)):
        layer = layer_of(name, capacity_factor=capacity).train(training)
        outcomes = []
        for mask in (None, torch.ones(SEQUENCES, LENGTH, dtype=torch.bool)):
            x = examples().requires_grad_()
            y, routing = answer(layer, x, IDS, mask)
            (gradient,) = torch.autograd.grad(y.square().sum(), x)
            outcomes.append([y, routing.probs, routing.expert_ids, routing.kept, gradient])
        for plain, masked in zip(*outcomes, strict=True):
            assert torch.equal(plain, masked)


@every_router
@settings(max_examples=6)
@given(bits=st.lists(st.booleans(), min_size=SEQUENCES * LENGTH, max_size=SEQUENCES * LENGTH), training=st.booleans())
def test_what_is_hidden_has_no_influence(name: str, bits: list[bool], training: bool) -> None:
    """NaN and unknown ids in place of hidden tokens change nothing; those get zero, and every gradient is finite."""
    layer, mask = layer_of(name, capacity_factor=0.6).train(training), torch.tensor(bits).view(SEQUENCES, LENGTH)
    x = examples()
    expected, record = answer(layer, x, IDS, mask)
    hidden = x.masked_fill(~mask.unsqueeze(-1), torch.nan).requires_grad_()
    y, routing = answer(layer, hidden, IDS.masked_fill(~mask, -1), mask)
    assert torch.equal(expected, y)
    assert not y[~mask].any()
    assert int(mask.sum()) == routing.num_tokens == record.num_tokens
    assert torch.equal(record.probs, routing.probs)
    loss = y.square().sum() + (0 if routing.router_loss is None else routing.router_loss)
    loss.backward()
    assert hidden.grad is not None
    assert not hidden.grad[~mask].any()
    for param in (hidden, *layer.parameters()):
        assert param.grad is None or param.grad.isfinite().all()


@settings(max_examples=20)
@given(lengths=st.lists(st.integers(0, LENGTH), min_size=SEQUENCES, max_size=SEQUENCES), slots=st.integers(1, 3))
def test_soft_mixes_within_a_sequence(lengths: list[int], slots: int) -> None:
    """Each padded sequence gets what it gets alone and unpadded; one that is all padding gets zeros."""
    torch.manual_seed(0)
    layer, x = SoftMoELayer(D, E, 7, slots, shared_experts=1).double(), examples()
    y, _ = layer(x, mask=torch.arange(LENGTH) < torch.tensor(lengths).unsqueeze(1))
    for sequence, padded, length in zip(x, y, lengths, strict=True):
        assert not padded[length:].any()
        assert torch.allclose(layer(sequence[:length])[0], padded[:length])


@pytest.mark.parametrize("name", sorted(ROUTERS.keys() - ROUTER_CONFIGS.keys() - {"soft"}))
def test_tokens_come_in_any_shape_and_number(name: str) -> None:
    """No tokens at all, one, or several leading dimensions: the output has the input's shape and finite gradients.

    The routers without options are those of test_limits.
    """
    layer = layer_of(name, capacity_factor=1.0)
    for shape in ((0,), (0, 5), (3, 0), (), (1,), (2, 3, 5)):
        x = torch.randn(*shape, D, dtype=torch.float64, requires_grad=True)
        y, routing = layer(x, torch.zeros(shape, dtype=torch.int64))
        assert x.shape == y.shape
        assert x.shape[:-1].numel() == routing.num_tokens
        (y.sum() + (0 if routing.router_loss is None else routing.router_loss)).backward()
        for param in (x, *layer.parameters()):
            assert param.grad is None or param.grad.isfinite().all()
