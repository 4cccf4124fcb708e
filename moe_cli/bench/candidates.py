"""The candidates of `moe bench layer`: our layer, a plain loop over modules, and the dense network as baseline.

T tokens, E experts, K chosen per token, D width, F width of an expert.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moe_cli.moe.experts import FeedForward
from moe_cli.moe.layer import MoELayer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class SkipCandidate(Exception):
    """Raised to skip a candidate; the message is the reason, in one line."""


@dataclass(frozen=True)
class Shape:
    """One point of the grid.

    Attributes:
        tokens: T.
        experts: E.
        k: K.
        d_model: D.
        d_expert: F.
        dtype: a name of DTYPES.
        threads: threads of the CPU; ignored on a GPU.
    """

    tokens: int
    experts: int
    k: int
    d_model: int
    d_expert: int
    dtype: str = "float32"
    threads: int = 1

    @property
    def rows_per_expert(self) -> float:
        """Returns T K / E, the mean number of rows per expert."""
        return self.tokens * self.k / self.experts

    @property
    def expert_params(self) -> int:
        """Returns the parameters of one gated expert; forward and backward of a row take 6 FLOPs for each."""
        return 3 * self.d_model * self.d_expert


@dataclass(frozen=True)
class Candidate:
    """A network and its forward pass.

    Attributes:
        rows: input rows: T, or T K for the dense network.
        forward: [rows, D] -> [rows, D].
    """

    name: str
    module: nn.Module
    rows: int
    forward: Callable[[Tensor], Tensor]


Builder = Callable[[], Candidate]


def make_layer(shape: Shape, dispatch: str = "auto", device: str = "cpu") -> MoELayer:
    """Builds our layer with router=topk; its weights do not depend on the back end."""
    layer = MoELayer(shape.d_model, shape.experts, shape.k, shape.d_expert, dispatch=dispatch)
    layer.reset_parameters(torch.Generator().manual_seed(0))
    return layer.to(device, DTYPES[shape.dtype])


def make_dense(shape: Shape, device: str = "cpu") -> Candidate:
    """Builds a SwiGLU network of width F for T K rows, which has the active FLOPs of the layer without routing."""
    dense = FeedForward(shape.d_model, shape.d_expert, ffn_type="glu", activation="silu")
    dense.reset_parameters(torch.Generator().manual_seed(0))
    return Candidate("dense", dense.to(device, DTYPES[shape.dtype]), shape.tokens * shape.k, dense)


class LoopOfLinears(nn.Module):
    """The straightforward loop: a module per expert, `where` to find its tokens, `index_add_` to sum its outputs."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.top_k = shape.k
        self.gate = nn.Linear(shape.d_model, shape.experts, bias=False)
        self.w_in = nn.ModuleList(
            nn.Linear(shape.d_model, 2 * shape.d_expert, bias=False) for _ in range(shape.experts)
        )
        self.w_out = nn.ModuleList(nn.Linear(shape.d_expert, shape.d_model, bias=False) for _ in range(shape.experts))

    @torch.no_grad()
    def copy_from(self, layer: MoELayer) -> None:
        """Copies the weights of our layer."""
        self.gate.weight.copy_(layer.router.get_parameter("gate.weight"))
        for linears, weights in ((self.w_in, layer.experts.w_in), (self.w_out, layer.experts.w_out)):
            for linear, weight in zip(linears, weights, strict=True):
                linear.weight.copy_(weight)  # type: ignore[operator]

    def forward(self, x: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        weights, expert_ids = self.gate(x).float().softmax(-1).topk(self.top_k)
        if self.top_k > 1:
            weights = weights / weights.sum(-1, keepdim=True)
        y = torch.zeros_like(x)
        for expert, (w_in, w_out) in enumerate(zip(self.w_in, self.w_out, strict=True)):
            tokens, choices = torch.where(expert_ids == expert)
            gate, up = w_in(x[tokens]).chunk(2, dim=-1)
            outputs = w_out(nn.functional.silu(gate) * up)
            y.index_add_(0, tokens, (outputs * weights[tokens, choices, None]).to(y.dtype))
        return y


def our_builders(shape: Shape, dispatches: Sequence[str], device: str = "cpu") -> dict[str, Builder]:
    """Returns the builders of our layer with each back end and of the loop, by name."""

    def moe(dispatch: str) -> Candidate:
        layer = make_layer(shape, dispatch, device)
        return Candidate(f"moe, {dispatch}", layer, shape.tokens, lambda x: layer(x)[0])

    def loop() -> Candidate:
        module = LoopOfLinears(shape).to(device, DTYPES[shape.dtype])
        module.copy_from(make_layer(shape, device=device))
        return Candidate("loop of nn.Linear", module, shape.tokens, module)

    builders: dict[str, Builder] = {f"moe, {dispatch}": partial(moe, dispatch) for dispatch in dispatches}
    return {**builders, "loop of nn.Linear": loop}
