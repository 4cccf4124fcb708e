"""RMS normalisation, on a CPU with a backward pass of its own.

torch composes it there of elementary operations, which take twice as long and save more for backward.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class RMSNorm(nn.RMSNorm):
    """RMSNorm (arXiv:1910.07467) over the last dimension, computed in the precision of its weights."""

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        return rms_norm(x.to(self.weight.dtype), self.weight, self.eps)


def rms_norm(
    x: Float[Tensor, "... D"], weight: Float[Tensor, " D"] | None = None, eps: float | None = None
) -> Float[Tensor, "... D"]:
    """Computes x / sqrt(mean(x^2) + eps) * weight over the last dimension.

    Args:
        eps: None means that of the precision of x.
    """
    if not x.is_cpu or torch.compiler.is_compiling():
        return F.rms_norm(x, x.shape[-1:], weight, eps)
    return _RMSNorm.apply(x, weight, torch.finfo(x.dtype).eps if eps is None else eps)  # type: ignore[no-any-return]


class _RMSNorm(torch.autograd.Function):
    """Saves x, the weight, and one factor per row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        factor = mean_square.add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, factor)
        y: Tensor = x * factor
        return y if weight is None else y.mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight, factor = ctx.saved_tensors
        if weight is None:
            grad_weight, grad_scaled, dot = None, grad, torch.linalg.vecdot(grad, x)
        else:
            product = grad * x
            grad_weight = factor.flatten() @ product.flatten(0, -2)
            grad_scaled, dot = grad * weight, product @ weight
        slope = dot.unsqueeze(-1).mul_(factor.square()).div_(-x.shape[-1])
        return torch.addcmul(grad_scaled, x, slope).mul_(factor), grad_weight, None
