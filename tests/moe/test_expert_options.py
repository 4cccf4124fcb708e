"""Options of experts: dropout, the scale of their first weights, and shared experts behind a gate."""

import pytest
import torch
from torch import nn

from moe_cli.config.routers import TopKConfig
from moe_cli.errors import ConfigError
from moe_cli.moe.backends.dispatch import reference
from moe_cli.moe.experts import Experts
from moe_cli.moe.layer import MoELayer
from tests.moe.backends.test_dispatch import F, make_case


def test_what_a_mask_does() -> None:
    """reference with a mask is the sum of weight * W_out (mask * act(W_in x)), written out."""
    case = make_case("top2", 5, None, "mlp", "relu2")
    routing, mask = case.routing(), torch.rand(10, F, dtype=torch.float64)
    expected = torch.zeros(5, case.experts.w_out.shape[1], dtype=torch.float64)
    for a, (token, expert, weight) in enumerate(
        zip(routing.token_ids, routing.expert_ids, routing.weights, strict=True)
    ):
        act = (case.experts.w_in[expert] @ case.x[token]).relu().square()
        expected[token] += weight * (case.experts.w_out[expert] @ (mask[a] * act))
    assert torch.allclose(expected, reference(case.experts, case.x, routing, mask))


def test_dropout_leaves_out_its_share_and_only_in_training() -> None:
    """The mask is 0 or 1 / (1 - p), its mean 1; evaluation and p = 0 have none."""
    experts = Experts(4, 8, 50, 8, dropout=0.2)
    mask = experts.sample_dropout_mask(400)
    assert mask is not None
    assert {0.0, 1.25} == set(mask.unique().tolist())
    assert (mask == 0).float().mean().item() == pytest.approx(0.2, abs=0.02)
    assert experts.eval().sample_dropout_mask(400) is None
    assert Experts(4, 8, 50, 8).sample_dropout_mask(400) is None


@pytest.mark.parametrize("dispatch", ["auto", "loop", "einsum", "reference"])
def test_dropout_in_the_layer(dispatch: str) -> None:
    """Two forward passes differ in training and agree at evaluation, where they equal a layer without dropout."""
    layer = MoELayer(16, 4, 2, 24, dispatch=dispatch, router=TopKConfig(null_experts=2), expert_dropout=0.5)
    plain = MoELayer(16, 4, 2, 24, dispatch=dispatch, router=TopKConfig(null_experts=2))
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(20, 16)
    assert not torch.equal(layer(x)[0], layer(x)[0])
    layer.eval()
    assert torch.equal(layer(x)[0], plain.eval()(x)[0])


def test_first_weights_are_scaled() -> None:
    """A scale of 0.1 divides their variance by 10, those of the router and of shared experts not at all."""
    sizes = {1.0: None, 0.1: None}
    for scale in sizes:
        layer = MoELayer(16, 4, 2, 24, shared_experts=1, expert_init_scale=scale)
        layer.reset_parameters(torch.Generator().manual_seed(0))
        sizes[scale] = {name: param.detach().clone() for name, param in layer.named_parameters()}
    for name, param in sizes[1.0].items():
        expected = param * 0.1**0.5 if name.startswith("experts.") else param
        assert torch.allclose(expected, sizes[0.1][name]), name


@pytest.mark.peers
def test_a_shared_expert_behind_a_gate_is_qwen2s() -> None:
    """Output and all gradients equal transformers' Qwen2-MoE block on the same weights."""
    from transformers import Qwen2MoeConfig
    from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock

    torch.manual_seed(0)
    layer = MoELayer(16, 8, 2, 24, router=TopKConfig(renormalise=True), shared_experts=1, shared_gate=True)
    for gate in (layer.router.gate, layer.shared_gate):
        nn.init.normal_(gate.weight)
    peer = Qwen2MoeSparseMoeBlock(
        Qwen2MoeConfig(
            hidden_size=16,
            moe_intermediate_size=24,
            shared_expert_intermediate_size=24,
            num_experts=8,
            num_experts_per_tok=2,
            norm_topk_prob=True,
        )
    )
    shared = peer.shared_expert
    with torch.no_grad():
        peer.gate.weight.copy_(layer.router.gate.weight)
        peer.experts.gate_up_proj.copy_(layer.experts.w_in)
        peer.experts.down_proj.copy_(layer.experts.w_out)
        shared.gate_proj.weight.copy_(layer.shared_experts.w_in[:24])
        shared.up_proj.weight.copy_(layer.shared_experts.w_in[24:])
        shared.down_proj.weight.copy_(layer.shared_experts.w_out)
        peer.shared_expert_gate.weight.copy_(layer.shared_gate.weight)
    x = torch.randn(2, 20, 16)
    mine, yours = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = layer(mine)[0], peer(yours)
    assert torch.allclose(expected, y, atol=1e-5)
    cotangent = torch.randn_like(y)
    y.backward(cotangent)
    expected.backward(cotangent)
    for theirs, ours in (
        (yours.grad, mine.grad),
        (peer.gate.weight.grad, layer.router.gate.weight.grad),
        (peer.experts.gate_up_proj.grad, layer.experts.w_in.grad),
        (peer.experts.down_proj.grad, layer.experts.w_out.grad),
        (torch.cat([shared.gate_proj.weight.grad, shared.up_proj.weight.grad]), layer.shared_experts.w_in.grad),
        (shared.down_proj.weight.grad, layer.shared_experts.w_out.grad),
        (peer.shared_expert_gate.weight.grad, layer.shared_gate.weight.grad),
    ):
        assert torch.allclose(theirs, ours, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"expert_dropout": 1.0}, "expert_dropout=1.0 must be at least 0 and below 1"),
        ({"expert_init_scale": 0.0}, "expert_init_scale=0.0 must be "),
    ],
)
def test_ranges(options: dict[str, float], message: str) -> None:
    """Options outside their ranges are refused."""
    with pytest.raises(ConfigError, match=message):
        MoELayer(16, 4, 2, 24, **options)
