"""RMS normalisation equals torch's, in output and gradients."""

import pytest
import torch
import torch.nn.functional as F

from moe_cli.models.norms import RMSNorm, rms_norm


@pytest.mark.parametrize(("has_weight", "eps"), [(True, None), (False, None), (True, 0.1)])
def test_rms_norm_equals_torch(has_weight: bool, eps: float | None) -> None:
    """Output and gradients are those of torch.nn.functional.rms_norm, also for rows with gaps and a row of zeros."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 10, dtype=torch.float64, generator=generator)[..., :6]
    x[0, 0] = 0
    weight = torch.randn(6, dtype=torch.float64, generator=generator) if has_weight else None
    grad = torch.randn(2, 3, 6, dtype=torch.float64, generator=generator)
    results = []
    for norm in (lambda x, weight: F.rms_norm(x, (6,), weight, eps), lambda x, weight: rms_norm(x, weight, eps)):
        inputs = [tensor.detach().requires_grad_() for tensor in (x, weight) if tensor is not None]
        y = norm(inputs[0], inputs[1] if has_weight else None)
        results.append((y.detach(), *torch.autograd.grad(y, inputs, grad)))
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)


def test_the_module_computes_in_the_precision_of_its_weights() -> None:
    """A bfloat16 input gives float32."""
    x = torch.randn(3, 4).bfloat16()
    assert torch.equal(rms_norm(x.float()), RMSNorm(4)(x))
