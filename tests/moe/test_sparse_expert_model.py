"""The model of one sparse layer against its formula. E experts, D and 3 widths."""

import pytest
import torch

from moe_cli.errors import ConfigError
from moe_cli.moe.sparse_expert_model import SparseExpertModel
from tests.moe.formulas import network, top_k_weights
from tests.moe.test_layer import D, E, gradients, tokens


def make_model(k: int, num_experts: int = E, output_dim: int = 3) -> SparseExpertModel:
    torch.manual_seed(0)
    model = SparseExpertModel(num_experts=num_experts, input_dim=D, output_dim=output_dim, k=k).double()
    torch.nn.init.normal_(model.router.gate.weight)
    return model


@pytest.mark.parametrize("k", [1, 2, 5, E])
def test_the_model_equals_its_formula(k: int) -> None:
    """Each row gets the sum of its own K networks' answers, weighted by softmax, renormalised for K > 1."""
    model, x = make_model(k), tokens().requires_grad_()
    weights = top_k_weights(x, model.router.gate.weight, k, renormalise=k > 1)
    matrices = zip(model.experts.w_in, model.experts.w_out, strict=True)
    answers = [network(x, w_in, w_out, "mlp", "gelu") for w_in, w_out in matrices]
    expected = sum(weights[:, e, None] * answer for e, answer in enumerate(answers))
    y = model(x)
    assert (20, 3) == tuple(y.shape)
    assert torch.allclose(expected, y, atol=1e-12)
    inputs = {"x": x, **dict(model.named_parameters())}
    actual = gradients(y, inputs)
    for name, gradient in gradients(expected, inputs).items():
        assert torch.allclose(gradient, actual[name], atol=1e-10), name


def test_selects_per_row() -> None:
    """A row's result does not depend on the other rows of the batch."""
    model, x = make_model(2), tokens()
    alone = torch.cat([model(row[None]) for row in x])
    assert torch.allclose(alone, model(x), atol=1e-12)
    assert len(model.router(x).expert_ids.unique()) > 2


def test_teaches_only_the_chosen() -> None:
    """For one row, exactly K experts get a gradient that is not zero."""
    model, x = make_model(2), tokens(1)
    model(x).sum().backward()
    chosen = set(model.router(x).expert_ids.tolist())
    for weight in model.experts.parameters():
        assert chosen == {e for e in range(E) if (weight.grad[e] != 0).any()}
    assert 2 == len(chosen)


def test_with_one_choice_trains_the_gate() -> None:
    """k=1 is not renormalised, so that the gate has a gradient, and one beyond rounding."""
    model = make_model(1)
    model(tokens()).square().sum().backward()
    assert model.router.gate.weight.grad.abs().max() > 1e-3


@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (2, 1, 3), (0,)])
def test_takes_any_leading_shape(shape: tuple[int, ...]) -> None:
    """[..., input_dim] becomes [..., output_dim]."""
    assert (*shape, 3) == tuple(make_model(2)(torch.randn(*shape, D, dtype=torch.float64)).shape)


@pytest.mark.parametrize("k", [0, 7])
def test_refuses_an_impossible_k(k: int) -> None:
    """k must be between 1 and num_experts."""
    with pytest.raises(ConfigError, match=rf"^top_k={k} must be between 1 and num_experts=6\.$"):
        SparseExpertModel(E, D, 3, k)
