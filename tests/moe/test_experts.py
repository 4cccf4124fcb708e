"""The experts' networks and their hand-written derivatives. E experts, D widths, F hidden, H = 2F (gated) or F."""

import pytest
import torch

from moe_cli.moe.experts import (
    ACTIVATIONS,
    Experts,
    FeedForward,
    activate,
    expert_activation,
    init_matrix,
)
from tests.moe.formulas import ACTIVATIONS as FORMULAS
from tests.moe.formulas import FFN_TYPES, network

every_ffn_type = pytest.mark.parametrize("ffn_type", FFN_TYPES)
every_activation = pytest.mark.parametrize("activation", sorted(FORMULAS))


def test_every_activation_has_a_formula() -> None:
    """The oracle below knows every activation that can be chosen."""
    assert set(FORMULAS) == set(ACTIVATIONS)


@every_ffn_type
@every_activation
def test_hidden_backward_is_the_gradient(ffn_type: str, activation: str) -> None:
    """The hand-written derivative equals finite differences (gradcheck) and autograd through the operations."""
    torch.manual_seed(0)
    pre = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: expert_activation(x, ffn_type, activation), pre)

    values = activate(pre, ffn_type, activation).values
    grad = torch.randn_like(values)
    (expected,) = torch.autograd.grad(values, pre, grad)
    assert torch.allclose(expected, activate(pre.detach(), ffn_type, activation).backward(grad), atol=1e-12)


@every_ffn_type
@every_activation
def test_hidden_backward_leaves_its_arguments_alone(ffn_type: str, activation: str) -> None:
    """Neither the incoming gradient nor the saved product is written to."""
    pre = torch.randn(4, 6, dtype=torch.float64)
    hidden = activate(pre, ffn_type, activation)
    grad = torch.randn_like(hidden.values)
    before = pre.clone(), grad.clone()
    hidden.backward(grad)
    assert torch.equal(before[0], pre)
    assert torch.equal(before[1], grad)


@every_ffn_type
@every_activation
def test_an_expert_is_two_matrices_around_an_activation(ffn_type: str, activation: str) -> None:
    """Each expert answers with its own slice of the stacked weights, as the formula says."""
    torch.manual_seed(0)
    experts = Experts(3, 4, 6, 5, ffn_type=ffn_type, activation=activation).double()
    experts.reset_parameters()
    x = torch.randn(7, 4, dtype=torch.float64)
    for e in range(3):
        expected = network(x, experts.w_in[e], experts.w_out[e], ffn_type, activation)
        assert torch.allclose(expected, experts.forward_one(e, x), atol=1e-12)


@every_ffn_type
@every_activation
def test_the_dense_network_is_one_expert(ffn_type: str, activation: str) -> None:
    """FeedForward, given an expert's weights, gives that expert's answer, for any leading shape."""
    torch.manual_seed(0)
    experts = Experts(2, 4, 6, 4, ffn_type=ffn_type, activation=activation).double()
    experts.reset_parameters()
    network = FeedForward(4, 6, ffn_type=ffn_type, activation=activation).double()
    network.load_state_dict({"w_in": experts.w_in[1], "w_out": experts.w_out[1]})
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    assert torch.allclose(experts.forward_one(1, x.view(6, 4)).view(2, 3, 4), network(x), atol=1e-12)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
def test_initial_weights_have_variance_one_over_fan_in(scale: float) -> None:
    """A matrix starts uniform with standard deviation scale / sqrt(fan-in), fan-in being its last dimension."""
    weight = torch.empty(8, 50, 100)
    init_matrix(weight, torch.Generator().manual_seed(0), scale)
    assert weight.abs().max() <= scale * (3 / 100) ** 0.5
    assert weight.std().item() == pytest.approx(scale * 100**-0.5, rel=0.02)


@every_ffn_type
def test_out_scale_shrinks_the_second_matrix_only(ffn_type: str) -> None:
    """out_scale=0 starts experts and dense network silent, with the first matrix as ever."""
    for module in (Experts(2, 4, 6, 4, ffn_type=ffn_type), FeedForward(4, 6, ffn_type=ffn_type, activation="silu")):
        module.reset_parameters(torch.Generator().manual_seed(0), out_scale=0.0)
        assert (module.w_out == 0).all()
        silent = module.w_in.detach().clone()
        module.reset_parameters(torch.Generator().manual_seed(0))
        assert torch.equal(silent, module.w_in)
        assert (module.w_out != 0).any()
