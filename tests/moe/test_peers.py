"""The layer and its balancing loss agree with an independent implementation: transformers' Mixtral."""

import pytest
import torch
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock, load_balancing_loss_func

from moe_cli.config.balances import SwitchBalance, own_convention
from moe_cli.moe.balance import load_balancing_loss
from moe_cli.moe.dispatch import BACKENDS
from moe_cli.moe.layer import MoELayer
from moe_cli.moe.routers import top_indices
from moe_cli.moe.routing import from_choices


@pytest.mark.parametrize("dispatch", BACKENDS)
@pytest.mark.parametrize(("num_experts", "top_k"), [(8, 2), (4, 4), (6, 3), (16, 5)])
def test_equals_mixtral(num_experts: int, top_k: int, dispatch: str) -> None:
    """Output and the gradients of input, gate and both expert matrices agree to 1e-5 in float32."""
    torch.manual_seed(0)
    d_model, d_expert = 16, 24
    config = MixtralConfig(
        hidden_size=d_model, intermediate_size=d_expert, num_local_experts=num_experts, num_experts_per_tok=top_k
    )
    peer = MixtralSparseMoeBlock(config)
    layer = MoELayer(d_model, num_experts, top_k, d_expert, dispatch=dispatch)
    torch.nn.init.normal_(layer.router.gate.weight)
    pairs = {
        "gate": (layer.router.gate.weight, peer.gate.weight),
        "w_in": (layer.experts.w_in, peer.experts.gate_up_proj),
        "w_out": (layer.experts.w_out, peer.experts.down_proj),
    }
    for ours, theirs in pairs.values():
        theirs.data.copy_(ours)
    x = torch.randn(2, 20, d_model)
    mine, yours = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = layer(mine)[0], peer(yours)
    cotangent = torch.randn_like(y)
    y.backward(cotangent)
    expected.backward(cotangent)

    assert torch.allclose(expected, y, atol=1e-5, rtol=1e-5)
    assert torch.allclose(yours.grad, mine.grad, atol=1e-5, rtol=1e-5)
    for name, (ours, theirs) in pairs.items():
        assert torch.allclose(theirs.grad, ours.grad, atol=1e-5, rtol=1e-5), name


@pytest.mark.parametrize(("num_experts", "top_k"), [(8, 1), (8, 2), (6, 3), (4, 4)])
def test_a_coefficient_of_transformers_is_converted(num_experts: int, top_k: int) -> None:
    """Their coefficient times their load-balancing loss is our converted weight times ours, for one layer."""
    logits = 2 * torch.randn(30, num_experts, generator=torch.Generator().manual_seed(0))
    theirs = load_balancing_loss_func((logits,), num_experts, top_k)
    probs = logits.softmax(-1)
    chosen = top_indices(probs, top_k)
    ours = load_balancing_loss(from_choices(logits, probs, chosen, probs.gather(1, chosen)))
    converted = own_convention(SwitchBalance(weight=0.02, convention="hf"), top_k)
    assert (0.02 * theirs).item() == pytest.approx(converted.weight * ours.item(), rel=1e-5)
    assert converted == own_convention(converted, top_k)
