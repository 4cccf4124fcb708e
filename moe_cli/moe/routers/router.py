"""The interface of all routers, `Router.route`, and the gate of `GatedRouter`.

Equal scores select the expert with the lowest index (on a GPU, the one that torch.topk returns), so a token of zeros or
a gate of zeros selects experts 0 to K - 1. Gates therefore start at small random weights, never at zero.

A new router needs a config class in config/routers.py, a subclass of `Router` or `GatedRouter` with a `route` in this
package, one line in ROUTERS (routers/registry.py), and conf/router/NAME.yaml.
T tokens, E experts (null ones included), K chosen per token, D width.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from moe_cli.config.routers import GateConfig, TokenChoiceConfig, TopKConfig
from moe_cli.moe.experts import Experts
from moe_cli.moe.gates import PerTaskGate, make_gate
from moe_cli.moe.routing import Routing, RoutingPolicy

# Of AVX-512.
FLOATS_PER_REGISTER = 16


class Router(nn.Module, ABC):
    """Assigns tokens to experts.

    Attributes:
        num_experts: E.
        top_k: K; a `RoutingPolicy` can replace it for one forward pass.
        config: the settings of the router, an instance of its class in config/routers.py.
        fills_capacity: True if each expert selects its tokens up to its capacity, so that no assignment is dropped.

    All routers are built with the same arguments; `d_model` and `experts` are used by gates only.
    """

    fills_capacity: ClassVar[bool] = False

    def __init__(
        self, d_model: int, num_experts: int, top_k: int, config: object, experts: Experts | None = None
    ) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.top_k = top_k
        self.config = config

    @abstractmethod
    def route(
        self, tokens: Float[Tensor, "T D"], token_ids: Int[Tensor, " T"] | None, policy: RoutingPolicy
    ) -> Routing:
        """Returns the assignments of all tokens, before drops.

        Args:
            token_ids: the vocabulary id of each token; only router=hash reads it.
            policy: K, and the capacity factor of routers with `fills_capacity`.
        """

    def forward(
        self,
        tokens: Float[Tensor, "T D"],
        token_ids: Int[Tensor, " T"] | None = None,
        policy: RoutingPolicy | None = None,
    ) -> Routing:
        """Calls `route`, by default with the router's own K."""
        return self.route(tokens, token_ids, policy or RoutingPolicy())

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Initialises the weights; a router without a gate has none."""

    def use_task_gates(self, num_tasks: int) -> None:
        """Replaces each gate by one gate per task; a router without a gate stays as it is."""

    def after_step(self, assigned: Int[Tensor, " E"], num_tokens: int) -> None:
        """Updates parameters that have no gradient, after an optimizer step.

        Args:
            assigned: assignments to each expert in the step, before drops.
            num_tokens: tokens routed in the step.
        """


class GatedRouter(Router):
    """A router with a learned gate, which computes in float32 even if the model does not.

    Attributes:
        gate: maps tokens [T, D] to scores [T, E].
        expert_bias: added to the scores for the selection only, never to the weights: loss-free balancing,
            arXiv:2408.15664.
    """

    expert_bias: Tensor

    def __init__(
        self, d_model: int, num_experts: int, top_k: int, config: object, experts: Experts | None = None
    ) -> None:
        plain = TopKConfig(score="linear", temperature=1.0, null_experts=0)
        options = config if isinstance(config, TokenChoiceConfig) else plain
        super().__init__(d_model, num_experts + options.null_experts, top_k, config, experts)
        self.temperature = options.temperature
        init_scale = config.init_scale if isinstance(config, GateConfig) else 1.0
        self.gate = make_gate(options.score, d_model, self.num_experts, experts, init_scale)
        self.register_buffer("expert_bias", torch.zeros(self.num_experts))

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        self.gate.reset_parameters(generator)  # type: ignore[operator]

    def use_task_gates(self, num_tasks: int) -> None:
        self.gate = PerTaskGate(self.gate, num_tasks)

    def logits(self, tokens: Float[Tensor, "T D"]) -> Float[Tensor, "T E"]:
        """Computes the gate's scores divided by the temperature, in float32 (float64 for float64 weights).

        Autocast does not change this precision.
        """
        with torch.autocast(tokens.device.type, enabled=False):
            weight = next(self.gate.parameters(), tokens)
            scores: Tensor = self.gate(tokens, gate_dtype(weight))
            return scores if self.temperature == 1 else scores / self.temperature

    def scores(self, tokens: Float[Tensor, "T D"]) -> tuple[Float[Tensor, "T E"], Float[Tensor, "T E"]]:
        """Returns the logits and their softmax."""
        logits = self.logits(tokens)
        return logits, softmax(logits)

    def select_experts(self, scores: Float[Tensor, "T E"], policy: RoutingPolicy) -> Int[Tensor, "T K"]:
        """Returns the K experts with the highest score plus bias, best first."""
        return top_indices(scores.detach() + self.expert_bias, policy.top_k or self.top_k)


def gate_dtype(tensor: Tensor) -> torch.dtype:
    """Returns the precision in which scores are computed: float64 for float64, else float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def softmax(scores: Float[Tensor, "T E"]) -> Float[Tensor, "T E"]:
    """Computes the softmax of each row.

    On a CPU, rows that do not fill a vector register take two to five times as long as columns.
    """
    is_short = scores.is_cpu and scores.shape[1] < FLOATS_PER_REGISTER
    return scores.T.softmax(0).T.contiguous() if is_short else scores.softmax(1)


def gather_scores(scores: Float[Tensor, "T E"], expert_ids: Int[Tensor, "T K"]) -> Float[Tensor, "T K"]:
    """Returns the scores of K different experts of each token. Unlike `gather` it saves their indices alone."""
    if torch.compiler.is_compiling():
        return scores.gather(1, expert_ids)
    return _GatherScores.apply(scores, expert_ids)  # type: ignore[no-any-return]


class _GatherScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, expert_ids: Tensor) -> Tensor:
        ctx.shape = scores.shape
        ctx.save_for_backward(expert_ids)
        return scores.gather(1, expert_ids)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.new_zeros(ctx.shape).scatter_(1, ctx.saved_tensors[0], grad), None


def top_indices(scores: Float[Tensor, "T E"], top_k: int) -> Int[Tensor, "T K"]:
    """Returns the indices of the K largest scores of each row, largest first.

    On a CPU equal scores keep the order of their indices. `topk` does not define that order, and K calls of argmax are
    faster for small K. The operator TopK of an exported ONNX graph does define it.
    """
    if scores.device.type != "cpu" or torch.compiler.is_exporting():
        return scores.topk(top_k, dim=-1).indices
    if not 0 < top_k <= 8:
        return scores.argsort(dim=-1, descending=True, stable=True)[:, :top_k]
    indices = [_argmax(scores)]
    if top_k == 1:
        return indices[0]
    scores = scores.clone()
    for _ in range(top_k - 1):
        scores.scatter_(1, indices[-1], -torch.inf)
        indices.append(_argmax(scores))
    return torch.cat(indices, dim=1)


def _argmax(scores: Float[Tensor, "T E"]) -> Int[Tensor, "T 1"]:
    """Returns the index of the largest score of each row. On a CPU numpy is three to nine times faster."""
    if torch.compiler.is_compiling():
        return scores.argmax(-1, keepdim=True)
    scores = scores.detach()
    values = scores if scores.dtype == torch.float64 else scores.float()  # numpy has no bfloat16
    return torch.from_numpy(values.numpy().argmax(-1, keepdims=True))
