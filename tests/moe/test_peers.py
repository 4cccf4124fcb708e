"""The layer equals independent implementations on the same weights and tokens: the sparse blocks of transformers.

Where a definition differs it is said: Switch counts its capacity over a sequence, this project over a forward pass, so
the two are compared on one sequence.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from moe_cli.config.routers import RouterConfig, SigmoidConfig, SwitchConfig, TopKConfig
from moe_cli.moe.balance import load_balancing_loss
from moe_cli.moe.layer import MoELayer
from moe_cli.moe.routers.router import top_indices
from moe_cli.moe.routing import routing_from_top_k
from moe_cli.moe.soft import SoftMoELayer

# The peers are imported where they are used: most worker processes of the suite need none of them.
pytestmark = pytest.mark.peers
D, F = 16, 24
SIZES = [(8, 2), (4, 4), (6, 3), (16, 5)]


@dataclass(frozen=True)
class Pair:
    """Our layer, a peer with the same weights, and which parameters are the same."""

    layer: MoELayer
    peer: nn.Module
    params: dict[str, tuple[Tensor, Tensor]]


def pair(layer: MoELayer, peer: nn.Module, theirs: dict[str, Tensor]) -> Pair:
    """The peer with our weights in the place of its own."""
    params = {name: (layer.get_parameter(name), param) for name, param in theirs.items()}
    assert set(params) == {name for name, _ in layer.named_parameters()}
    for ours, param in params.values():
        param.data.copy_(ours)
    return Pair(layer, peer.train(), params)


def make_layer(num_experts: int, top_k: int, router: RouterConfig, **options: object) -> MoELayer:
    torch.manual_seed(0)
    layer = MoELayer(D, num_experts, top_k, F, router=router, **options)  # type: ignore[arg-type]
    nn.init.normal_(layer.router.gate.weight)
    return layer


def stacked(peer: nn.Module) -> dict[str, Tensor]:
    """The parameters that Mixtral and its like keep as stacks."""
    return {
        "router.gate.weight": peer.gate.weight,
        "experts.w_in": peer.experts.gate_up_proj,
        "experts.w_out": peer.experts.down_proj,
    }


def assert_equal(both: Pair, x: Tensor) -> None:
    """Output and the gradient of the input and of every parameter agree to 1e-5 in float32."""
    mine, yours = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = both.layer(mine)[0], both.peer(yours)
    cotangent = torch.randn_like(y)
    y.backward(cotangent)
    expected.backward(cotangent)
    assert torch.allclose(expected, y, atol=1e-5, rtol=1e-5)
    assert torch.allclose(yours.grad, mine.grad, atol=1e-5, rtol=1e-5)
    for name, (ours, theirs) in both.params.items():
        assert torch.allclose(theirs.grad, ours.grad, atol=1e-5, rtol=1e-5), name


def mixtral(num_experts: int, top_k: int) -> Pair:
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    config = MixtralConfig(hidden_size=D, intermediate_size=F, num_local_experts=num_experts, num_experts_per_tok=top_k)
    peer = MixtralSparseMoeBlock(config)
    return pair(make_layer(num_experts, top_k, TopKConfig()), peer, stacked(peer))


def olmoe(num_experts: int, top_k: int) -> Pair:
    """Weights that are not renormalised."""
    from transformers import OlmoeConfig
    from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock

    config = OlmoeConfig(
        hidden_size=D, intermediate_size=F, num_experts=num_experts, num_experts_per_tok=top_k, norm_topk_prob=False
    )
    peer = OlmoeSparseMoeBlock(config)
    return pair(make_layer(num_experts, top_k, TopKConfig(renormalise=False)), peer, stacked(peer))


def qwen3(num_experts: int, top_k: int) -> Pair:
    from transformers import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

    config = Qwen3MoeConfig(
        hidden_size=D, moe_intermediate_size=F, num_experts=num_experts, num_experts_per_tok=top_k, norm_topk_prob=True
    )
    peer = Qwen3MoeSparseMoeBlock(config)
    return pair(make_layer(num_experts, top_k, TopKConfig(renormalise=True)), peer, stacked(peer))


@pytest.mark.parametrize(("num_experts", "top_k"), SIZES)
@pytest.mark.parametrize("make", [mixtral, olmoe, qwen3])
def test_equals_softmax_blocks(make: Callable[..., Pair], num_experts: int, top_k: int) -> None:
    """Mixtral, OLMoE and Qwen3-MoE."""
    assert_equal(make(num_experts, top_k), torch.randn(2, 20, D))


@pytest.mark.parametrize(("groups", "top_groups"), [(1, 1), (4, 2), (2, 1)])
def test_equals_deepseek_v3(groups: int, top_groups: int) -> None:
    """Sigmoid scores, bias on the choice, group-limited choice, scale, and a shared expert of twice the width."""
    from transformers import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE

    config = DeepseekV3Config(
        hidden_size=D,
        moe_intermediate_size=F,
        n_routed_experts=8,
        num_experts_per_tok=2,
        n_group=groups,
        topk_group=top_groups,
        n_shared_experts=2,
        routed_scaling_factor=2.5,
        norm_topk_prob=True,
    )
    peer = DeepseekV3MoE(config)
    router = SigmoidConfig(scale=2.5, groups=groups, top_groups=top_groups)
    layer = make_layer(8, 2, router, shared_experts=2)
    bias = torch.linspace(-0.3, 0.3, 8)
    layer.router.expert_bias.copy_(bias)
    peer.gate.e_score_correction_bias.copy_(bias)
    assert layer.shared_experts is not None
    shared = peer.shared_experts
    # Ours keeps gate over up in one matrix; theirs are two, given here as views of one.
    joined = nn.Parameter(torch.empty_like(layer.shared_experts.w_in))
    theirs = {**stacked(peer), "shared_experts.w_in": joined, "shared_experts.w_out": shared.down_proj.weight}
    both = pair(layer, peer, theirs)
    for name, rows in (("gate_proj", joined[: 2 * F]), ("up_proj", joined[2 * F :])):
        del getattr(shared, name)._parameters["weight"]
        getattr(shared, name).weight = rows
    assert_equal(both, torch.randn(2, 20, D))


@pytest.mark.parametrize("room", [None, 1.0, 0.5])
def test_equals_switch(room: float | None) -> None:
    """One expert per token, weighted by its probability, the first to come kept: on one sequence."""
    from transformers import SwitchTransformersConfig
    from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersSparseMLP

    capacity = 10**6 if room is None else math.ceil(20 * room / 4)
    config = SwitchTransformersConfig(
        d_model=D,
        d_ff=F,
        num_experts=4,
        expert_capacity=capacity,
        router_jitter_noise=0.0,
        dropout_rate=0.0,
        dense_act_fn="relu",
    )
    peer = SwitchTransformersSparseMLP(config)
    layer = make_layer(4, 1, SwitchConfig(jitter=0.0), ffn_type="mlp", activation="relu", capacity_factor=room)
    stacks = {"wi": layer.experts.w_in, "wo": layer.experts.w_out}
    theirs = {name: nn.Parameter(torch.empty_like(stack)) for name, stack in stacks.items()}
    both = pair(
        layer,
        peer,
        {
            "router.gate.weight": peer.router.classifier.weight,
            "experts.w_in": theirs["wi"],
            "experts.w_out": theirs["wo"],
        },
    )
    for name in stacks:
        for number in range(4):
            linear = getattr(peer.experts[f"expert_{number}"], name)
            del linear._parameters["weight"]
            linear.weight = theirs[name][number]
    assert_equal(both, torch.randn(1, 20, D))


@pytest.mark.parametrize(("num_experts", "top_k"), [(8, 1), (8, 2), (6, 3), (4, 4)])
def test_a_coefficient_of_transformers_is_worth_k_times_as_much(num_experts: int, top_k: int) -> None:
    """Their load-balancing loss is K times ours, for one layer."""
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    logits = 2 * torch.randn(30, num_experts, generator=torch.Generator().manual_seed(0))
    theirs = load_balancing_loss_func((logits,), num_experts, top_k)
    probs = logits.softmax(-1)
    chosen = top_indices(probs, top_k)
    ours = load_balancing_loss(routing_from_top_k(logits, probs, chosen, probs.gather(1, chosen)))
    assert theirs.item() == pytest.approx(top_k * ours.item(), rel=1e-5)


@pytest.mark.parametrize("slots", [1, 3])
def test_equals_soft_moe_pytorch(slots: int) -> None:
    """The mixture of soft-moe-pytorch. It mixes normalised tokens where the paper and this layer normalise for the scores
    alone, so both are shown tokens of norm 1; its gains are set to what makes its norms plain.
    """
    from soft_moe_pytorch import SoftMoE

    torch.manual_seed(0)
    layer = SoftMoELayer(D, 4, F, slots, ffn_type="mlp", activation="gelu")
    layer.router.scale.data.fill_(3.0)
    peer = SoftMoE(D, num_experts=4, num_slots=slots, expert_mult=F / D)
    slot_embeds = layer.router.phi.detach().view(4, slots, D)
    with torch.no_grad():
        peer.norm.gamma.fill_(D**-0.5)
        peer.slot_norm.gamma.fill_(3.0 * D**-0.5)
        peer.slot_embeds.copy_(slot_embeds)
        for ours_in, ours_out, expert in zip(
            layer.experts.w_in, layer.experts.w_out, peer.experts.experts, strict=True
        ):
            for linear, weight in ((expert[0], ours_in), (expert[3], ours_out)):
                linear.weight.copy_(weight)
                linear.bias.zero_()
    x = torch.randn(2, 20, D)
    mine, yours = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = layer(nn.functional.normalize(mine, dim=-1))[0], peer(nn.functional.normalize(yours, dim=-1))
    assert torch.allclose(expected, y, atol=1e-5)
    cotangent = torch.randn_like(y)
    y.backward(cotangent)
    expected.backward(cotangent)
    experts = peer.experts.experts
    for theirs, ours in (
        (yours.grad, mine.grad),
        (peer.slot_embeds.grad.flatten(0, 1), layer.router.phi.grad),
        (torch.stack([expert[0].weight.grad for expert in experts]), layer.experts.w_in.grad),
        (torch.stack([expert[3].weight.grad for expert in experts]), layer.experts.w_out.grad),
    ):
        assert torch.allclose(theirs, ours, atol=1e-5, rtol=1e-5)
