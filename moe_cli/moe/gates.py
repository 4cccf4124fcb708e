"""How is an expert scored for a token? The gates, which map tokens [T, D] to scores [T, E].

Gates compute in a given precision, by default that of their input. Routers ask for float32, or float64 for a float64
gate.
T tokens, E experts, D width, P projected width.
"""

import math
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from moe_cli.config.routers import ACTIVATION_WIDTH, COSINE_TEMPERATURE, MIN_COSINE_TEMPERATURE, cosine_width
from moe_cli.errors import ConfigError
from moe_cli.moe.experts import Experts

GATE_STD = 0.02


class LinearGate(nn.Module):
    """Scores x . e_i, with one learned embedding e_i per expert; `init_scale` multiplies the initial scores."""

    def __init__(self, d_model: int, num_experts: int, init_scale: float = 1.0) -> None:
        super().__init__()
        self.init_scale = init_scale
        self.weight = nn.Parameter(torch.empty(num_experts, d_model))

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        nn.init.normal_(self.weight, std=GATE_STD * self.init_scale, generator=generator)

    def forward(self, x: Float[Tensor, "T D"], dtype: torch.dtype | None = None) -> Float[Tensor, "T E"]:
        if dtype is None or dtype == x.dtype or torch.compiler.is_compiling():
            x = x.to(dtype or x.dtype)
            return F.linear(x, self.weight.to(x.dtype))
        return _CastLinear.apply(x, self.weight, dtype)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        num_experts, d_model = self.weight.shape
        return f"d_model={d_model}, num_experts={num_experts}"


class _CastLinear(torch.autograd.Function):
    """x W^T in another precision than that of x; unlike the operations one by one, it saves x in its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(x.to(dtype), weight.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        grad_x, grad_weight = grad @ weight.to(grad.dtype), grad.T @ x.to(grad.dtype)
        return grad_x.to(x.dtype), grad_weight.to(weight.dtype), None


class CosineGate(nn.Module):
    """Scores the cosine of the projected token and the expert's embedding, divided by a learned temperature.

    Source: X-MoE, arXiv:2204.09179. `init_scale` divides the initial temperature.
    """

    def __init__(self, d_model: int, num_experts: int, init_scale: float = 1.0) -> None:
        super().__init__()
        self.init_scale = init_scale
        width = cosine_width(num_experts)
        self.projection = nn.Parameter(torch.empty(width, d_model))
        self.embedding = nn.Parameter(torch.empty(num_experts, width))
        self.log_scale = nn.Parameter(torch.empty(1))

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        nn.init.normal_(self.projection, std=GATE_STD, generator=generator)
        nn.init.normal_(self.embedding, std=GATE_STD, generator=generator)
        nn.init.constant_(self.log_scale, math.log(self.init_scale / COSINE_TEMPERATURE))

    def forward(self, x: Float[Tensor, "T D"], dtype: torch.dtype | None = None) -> Float[Tensor, "T E"]:
        x = x.to(dtype or x.dtype)
        projected = F.normalize(F.linear(x, self.projection.to(x.dtype)), dim=-1)
        scale = self.log_scale.to(x.dtype).clamp(max=math.log(1 / MIN_COSINE_TEMPERATURE)).exp()
        return F.linear(projected, F.normalize(self.embedding.to(x.dtype), dim=-1)) * scale


class MlpGate(nn.Module):
    """Scores by two layers with a ReLU between them; the hidden layer has width D.

    `init_scale` multiplies the initial weights of the second layer.
    """

    def __init__(self, d_model: int, num_experts: int, init_scale: float = 1.0) -> None:
        super().__init__()
        self.init_scale = init_scale
        self.hidden = nn.Parameter(torch.empty(d_model, d_model))
        self.out = nn.Parameter(torch.empty(num_experts, d_model))

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Initialises the weights; each row of the second matrix has mean 0.

        Hidden values are not negative. Without the zero mean, their positive mean would favour the same experts for
        every token.
        """
        nn.init.normal_(self.hidden, std=self.hidden.shape[1] ** -0.5, generator=generator)
        nn.init.normal_(self.out, std=GATE_STD * self.init_scale, generator=generator)
        self.out.sub_(self.out.mean(1, keepdim=True))

    def forward(self, x: Float[Tensor, "T D"], dtype: torch.dtype | None = None) -> Float[Tensor, "T E"]:
        x = x.to(dtype or x.dtype)
        return F.linear(F.linear(x, self.hidden.to(x.dtype)).relu(), self.out.to(x.dtype))


class ActivationGate(nn.Module):
    """Scores an expert by the norm of the first values of its own first product (arXiv:2501.13074, section 3).

    Has no parameters of its own. The loss of the task reaches only the chosen experts. A balancing loss depends on all
    scores, so it also trains the first rows of `w_in` of every expert.
    """

    def __init__(self, experts: Experts) -> None:
        super().__init__()
        if experts.blocks is not None:
            raise ConfigError("score=activation needs experts of one width.")
        self._experts = (experts,)  # in a tuple, so that the experts' parameters are not registered twice

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Does nothing, because the gate has no weights of its own."""

    def forward(self, x: Float[Tensor, "T D"], dtype: torch.dtype | None = None) -> Float[Tensor, "T E"]:
        x = x.to(dtype or x.dtype)
        rows = self._experts[0].w_in[:, :ACTIVATION_WIDTH].to(x.dtype)
        products = F.linear(x, rows.flatten(0, 1)).unflatten(-1, rows.shape[:2])
        norms: Tensor = torch.linalg.vector_norm(products, dim=-1)
        return norms


class PerTaskGate(nn.Module):
    """One gate for each of G tasks (MMoE, doi 10.1145/3219819.3220007, section 4.2).

    Of each G consecutive tokens, token g is scored by gate g.

    Args:
        gate: the first task's gate, which is copied for the others.
        num_tasks: G.
    """

    def __init__(self, gate: nn.Module, num_tasks: int) -> None:
        super().__init__()
        self.gates = nn.ModuleList([gate, *(deepcopy(gate) for _ in range(1, num_tasks))])

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        for gate in self.gates:
            gate.reset_parameters(generator)  # type: ignore[operator]

    def forward(self, x: Float[Tensor, "T D"], dtype: torch.dtype | None = None) -> Float[Tensor, "T E"]:
        by_task = x.unflatten(0, (x.shape[0] // len(self.gates), len(self.gates))).unbind(1)
        scores = [gate(tokens, dtype) for gate, tokens in zip(self.gates, by_task, strict=True)]
        return torch.stack(scores, 1).flatten(0, 1)


GATES = {"linear": LinearGate, "cosine": CosineGate, "mlp": MlpGate}


def make_gate(
    score: str, d_model: int, num_experts: int, experts: Experts | None, init_scale: float = 1.0
) -> nn.Module:
    """Builds the gate of a name.

    Args:
        score: `linear`, `cosine`, `mlp` or `activation`.
        experts: the experts whose weights score=activation reads.
        init_scale: factor of the initial scores.
    """
    if score == "activation":
        assert experts is not None
        return ActivationGate(experts)
    return GATES[score](d_model, num_experts, init_scale)
