"""The experts: E feed-forward networks as stacked weights, and the single network of dense layers.

E experts, D_in and D_out widths in and out, F hidden width, H = 2F for a gated network (gate over up) or F.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

aten = torch.ops.aten


@dataclass(frozen=True)
class Activation:
    """A pointwise function and its gradient: backward(grad, x) = grad * function'(x)."""

    function: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]


ACTIVATIONS = {
    "silu": Activation(F.silu, lambda grad, x: aten.silu_backward(grad, x)),
    "gelu": Activation(F.gelu, lambda grad, x: aten.gelu_backward(grad, x)),
    "relu": Activation(F.relu, lambda grad, x: aten.threshold_backward(grad, x, 0)),
    "relu2": Activation(lambda x: F.relu(x).square(), lambda grad, x: F.relu(x).mul_(grad).mul_(2)),
}


@dataclass(frozen=True)
class Hidden:
    """The hidden values of a network, with the intermediate values of their gradient.

    Attributes:
        pre: the first product.
        gate: the gate for `glu`, else `pre`.
        activated: act(gate).
    """

    pre: Float[Tensor, "... H"]
    gate: Float[Tensor, "... F"]
    activated: Float[Tensor, "... F"]
    activation: Activation

    @property
    def values(self) -> Float[Tensor, "... F"]:
        """Returns act(gate) * up for `glu` (arXiv:2002.05202), act(pre) for `mlp`."""
        return self.activated if self.gate is self.pre else self.activated * self.pre.chunk(2, dim=-1)[1]

    def backward(self, grad: Float[Tensor, "... F"]) -> Float[Tensor, "... H"]:
        """Returns the gradient of `pre` from that of the values."""
        if self.gate is self.pre:
            return self.activation.backward(grad, self.pre)
        result = torch.empty_like(self.pre)
        self.write_gradient(grad, result)
        return result

    def write_values(self, result: Float[Tensor, "... F"]) -> None:
        """Writes the values into `result`."""
        if self.gate is self.pre:
            result.copy_(self.activated)
        else:
            torch.mul(self.activated, self.pre.chunk(2, dim=-1)[1], out=result)

    def write_gradient(self, grad: Float[Tensor, "... F"], result: Float[Tensor, "... H"]) -> None:
        """Writes the gradient of `pre` into `result`."""
        if self.gate is self.pre:
            result.copy_(self.activation.backward(grad, self.pre))
            return
        grad_gate, grad_up = result.chunk(2, dim=-1)
        torch.mul(grad, self.activated, out=grad_up)
        grad_gate.copy_(self.activation.backward(grad * self.pre.chunk(2, dim=-1)[1], self.gate))


def activate(pre: Float[Tensor, "... H"], ffn_type: str, activation: str) -> Hidden:
    """Applies the activation to the first product."""
    # A copy, because functions of rows with gaps take twice as long on a CPU.
    gate = pre.chunk(2, dim=-1)[0].contiguous() if ffn_type == "glu" else pre
    act = ACTIVATIONS[activation]
    return Hidden(pre, gate, act.function(gate), act)


def expert_activation(pre: Float[Tensor, "... H"], ffn_type: str, activation: str) -> Float[Tensor, "... F"]:
    """Computes the hidden values from the first product. Autograd saves no more than that product."""
    if ffn_type == "mlp":
        return ACTIVATIONS[activation].function(pre)
    if torch.compiler.is_compiling():
        # The compiler fuses this with its gradient. From two calls of `chunk` it makes slow code.
        gate, up = pre.chunk(2, dim=-1)
        return ACTIVATIONS[activation].function(gate) * up
    return _GatedActivation.apply(pre, activation)  # type: ignore[no-any-return]


class _GatedActivation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, activation: str) -> Tensor:
        ctx.activation = activation
        ctx.save_for_backward(pre)
        return activate(pre, "glu", activation).values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (pre,) = ctx.saved_tensors
        return activate(pre, "glu", ctx.activation).backward(grad), None


class Experts(nn.Module):
    """E feed-forward networks without biases, as two stacked parameters.

    Experts of unequal widths are sums of blocks of one width, their greatest common divisor: a network of width 3 F is
    the sum of three of width F. Below, E and F are then the number and the width of the blocks, which are numbered
    expert by expert; `moe_cli.moe.routing.to_blocks` sends tokens to them.

    Args:
        d_expert: hidden width of every expert, or one width for each.

    Attributes:
        num_experts: E.
        blocks: number of blocks of each expert; None if all have one.
        ffn_type: `glu` (gated) or `mlp`.
        activation: a name of ACTIVATIONS.
        dropout: fraction of the hidden values that training drops ("expert dropout", Switch, arXiv:2101.03961, 2.4).
        w_in: [E, H, D_in]; for `glu` the first F rows of H are the gate and the last F rows are the up projection.
        w_out: [E, D_out, F].
    """

    def __init__(
        self,
        num_experts: int,
        d_in: int,
        d_expert: int | Sequence[int],
        d_out: int,
        *,
        ffn_type: str = "glu",
        activation: str = "silu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.blocks: tuple[int, ...] | None = None
        if not isinstance(d_expert, int):
            widths, d_expert = d_expert, math.gcd(*d_expert)
            blocks = tuple(width // d_expert for width in widths)
            num_experts, self.blocks = sum(blocks), blocks if max(blocks) > 1 else None
        self.num_experts = num_experts
        self.ffn_type = ffn_type
        self.activation = activation
        self.dropout = dropout
        rows = 2 * d_expert if ffn_type == "glu" else d_expert
        self.w_in = nn.Parameter(torch.empty(num_experts, rows, d_in))
        self.w_out = nn.Parameter(torch.empty(num_experts, d_out, d_expert))

    def extra_repr(self) -> str:
        d_in, (_, d_out, d_expert) = self.w_in.shape[2], self.w_out.shape
        return f"num_experts={self.num_experts}, {d_in} -> {d_expert} -> {d_out}, {self.ffn_type} {self.activation}"

    def reset_parameters(
        self, generator: torch.Generator | None = None, out_scale: float = 1.0, init_scale: float = 1.0
    ) -> None:
        """Initialises uniformly with variance init_scale / fan-in; `out_scale` multiplies the second matrix.

        The fan-in of the second matrix is the width of the whole expert.
        """
        init_matrix(self.w_in, generator, init_scale**0.5)
        init_matrix(self.w_out, generator, out_scale * init_scale**0.5)
        if self.blocks is not None:
            blocks = torch.tensor(self.blocks, device=self.w_out.device)
            with torch.no_grad():
                self.w_out.div_(blocks.repeat_interleave(blocks).sqrt()[:, None, None])

    def shard_(self, part: Callable[[Tensor], Tensor]) -> None:
        """Replaces the stacked weights by a part of the experts: `part` maps [E, ...] to [E', ...]."""
        self.w_in, self.w_out = (nn.Parameter(part(stack.detach()).clone()) for stack in (self.w_in, self.w_out))
        self.num_experts = len(self.w_in)

    def forward_one(
        self, expert: int, x: Float[Tensor, "T D_in"], dropout_mask: Tensor | None = None
    ) -> Float[Tensor, "T D_out"]:
        """Computes the output of one expert, with its hidden values multiplied by `dropout_mask` [T, F]."""
        act = expert_activation(F.linear(x, self.w_in[expert]), self.ffn_type, self.activation)
        return F.linear(act if dropout_mask is None else act * dropout_mask, self.w_out[expert])

    def sample_dropout_mask(self, num_assignments: int) -> Float[Tensor, "A F"] | None:
        """Samples inverted dropout of the hidden values: 0 or 1 / (1 - dropout). Returns None without dropout."""
        if not (self.training and self.dropout):
            return None
        keep = 1 - self.dropout
        return self.w_out.new_empty(num_assignments, self.w_out.shape[2]).bernoulli_(keep).div_(keep)


class FeedForward(nn.Module):
    """One feed-forward network without biases: a dense layer, or the shared experts.

    Attributes:
        w_in: [H, D].
        w_out: [D, F].
    """

    def __init__(self, d_model: int, d_ff: int, *, ffn_type: str, activation: str) -> None:
        super().__init__()
        self.ffn_type = ffn_type
        self.activation = activation
        self.w_in = nn.Parameter(torch.empty(2 * d_ff if ffn_type == "glu" else d_ff, d_model))
        self.w_out = nn.Parameter(torch.empty(d_model, d_ff))

    def reset_parameters(self, generator: torch.Generator | None = None, out_scale: float = 1.0) -> None:
        """Initialises the weights as `Experts` does."""
        init_matrix(self.w_in, generator)
        init_matrix(self.w_out, generator, out_scale)

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        return F.linear(expert_activation(F.linear(x, self.w_in), self.ffn_type, self.activation), self.w_out)


def init_matrix(weight: Tensor, generator: torch.Generator | None, scale: float = 1.0) -> None:
    """Initialises uniformly with standard deviation scale / sqrt(fan-in), over the last two dimensions [out, in]."""
    bound = scale * (3 / weight.shape[-1]) ** 0.5
    nn.init.uniform_(weight, -bound, bound, generator=generator)
