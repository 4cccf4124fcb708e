"""The layer equals an independent implementation: transformers' Mixtral block, on the same weights and tokens."""

import pytest
import torch
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

from moe_cli.moe.dispatch import BACKENDS
from moe_cli.moe.layer import MoELayer


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
