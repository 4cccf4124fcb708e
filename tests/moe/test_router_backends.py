"""Every router with every back end: equal answers and gradients, and gradients equal to finite differences."""

from typing import Any

import pytest
import torch
from torch import Tensor

from moe_cli.config.routers import (
    ExpertChoiceConfig,
    HashConfig,
    NoisyTopKConfig,
    ReluConfig,
    RouterConfig,
    SigmoidConfig,
    SinkhornConfig,
    SoftConfig,
    TopKConfig,
)
from moe_cli.moe.layer import MoELayer, make_sparse_layer
from moe_cli.moe.soft import SoftMoELayer

E, D, F, V = 4, 6, 18, 11
ROUTERS: dict[str, RouterConfig] = {
    "noisy_topk": NoisyTopKConfig(),
    "sigmoid": SigmoidConfig(scale=1.5),
    "groups": SigmoidConfig(groups=2),
    "sinkhorn": SinkhornConfig(),
    "relu": ReluConfig(l1=0.1),
    "hash": HashConfig(),
    "constant_hash": HashConfig(weights="constant"),
    "expert_choice": ExpertChoiceConfig(),
    "soft": SoftConfig(slots=2),
    "cosine": TopKConfig(score="cosine"),
    "mlp": TopKConfig(score="mlp"),
    "activation": TopKConfig(score="activation"),
    "null": TopKConfig(null_experts=2),
}
every_router = pytest.mark.parametrize("router", ROUTERS)


def make(router: str, dispatch: str, **options: Any) -> MoELayer | SoftMoELayer:
    torch.manual_seed(0)
    layer = make_sparse_layer(D, E, 2, F, router=ROUTERS[router], dispatch=dispatch, vocab_size=V, **options).double()
    for weight in layer.router.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return layer


def tokens(num_tokens: int) -> tuple[Tensor, Tensor]:
    """One sequence of tokens and their ids."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, num_tokens, D, dtype=torch.float64, generator=generator)
    return x, torch.randint(V, (1, num_tokens), generator=generator)


def outcome(layer: MoELayer | SoftMoELayer, num_tokens: int) -> dict[str, Tensor]:
    """The answer, and the gradient of the input and of every parameter for an answer's gradient drawn at random."""
    x, ids = tokens(num_tokens)
    inputs = {"x": x.requires_grad_(), **dict(layer.named_parameters())}
    torch.manual_seed(3)  # noise and random drops are the same every time
    y, _ = layer(x, ids)
    y = y + 0 * x.sum()  # where no expert answers there is no gradient either
    cotangent = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(2))
    grads = torch.autograd.grad(y, list(inputs.values()), cotangent, allow_unused=True)
    zeros = {name: torch.zeros_like(value) for name, value in inputs.items()}
    return {"y": y, **{name: zeros[name] if grad is None else grad for name, grad in zip(inputs, grads, strict=True)}}


@pytest.mark.parametrize("capacity", [None, 0.5])
@every_router
def test_every_router_is_served_by_every_back_end(router: str, capacity: float | None) -> None:
    """Output and all gradients equal the reference's."""
    options = {"capacity_factor": capacity, "drop": "random", "renormalise_after_drop": True}
    expected = outcome(make(router, "reference", **options), 9)
    for dispatch in ("auto", "loop", "einsum"):
        actual = outcome(make(router, dispatch, **options), 9)
        for name, value in expected.items():
            assert torch.allclose(value, actual[name], rtol=1e-9, atol=1e-9), (dispatch, name)


@pytest.mark.usefixtures("unchecked_shapes")
@every_router
def test_gradcheck(router: str) -> None:
    """At evaluation, where nothing is drawn, every gradient equals finite differences."""
    layer = make(router, "auto").eval()
    x, ids = tokens(3)
    names = [name for name, _ in layer.named_parameters()]

    def answer(x: Tensor, *weights: Tensor) -> Tensor:
        y, _ = torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), (x, ids))
        return y

    assert torch.autograd.gradcheck(answer, (x.requires_grad_(), *layer.parameters()), fast_mode=True, rtol=1e-5)


@every_router
def test_evaluation_draws_nothing(router: str) -> None:
    """At evaluation two passes agree to the bit and the random state stays where it was: noise is for training."""
    layer = make(router, "loop").eval()
    before = torch.get_rng_state()
    first, second = layer(*tokens(9))[0], layer(*tokens(9))[0]
    assert torch.equal(first, second)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("router", [name for name in ROUTERS if name not in ("expert_choice", "soft", "sinkhorn")])
def test_later_tokens_change_nothing_before_them(router: str) -> None:
    """Dropless, a token's answer depends on itself alone; sinkhorn, which balances the batch, does so at evaluation."""
    layer = make(router, "loop").eval()
    x, ids = tokens(9)
    assert torch.allclose(layer(x[:, :4], ids[:, :4])[0], layer(x, ids)[0][:, :4], atol=1e-12)
