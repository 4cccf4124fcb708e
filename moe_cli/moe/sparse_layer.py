"""The base of all sparse layers: routed experts with a back end, and shared experts, which process all tokens.

T tokens, A assignments, E experts, D width.
"""

from collections.abc import Callable, Collection, Sequence
from typing import TypedDict

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from moe_cli.config.ranges import check_above, check_fraction, check_whole
from moe_cli.distributed.collectives import ExpertGroup
from moe_cli.errors import ConfigError
from moe_cli.moe.backends.dispatch import BACKENDS, Backend
from moe_cli.moe.expert_parallel import expert_parallel_forward
from moe_cli.moe.experts import ACTIVATIONS, Experts, FeedForward
from moe_cli.moe.gates import LinearGate
from moe_cli.moe.routing import Routing, to_blocks, without_null_experts


class ExpertOptions(TypedDict, total=False):
    """Options of every sparse layer.

    Attributes:
        ffn_type: `glu` (gated, the default) or `mlp`.
        activation: silu, gelu, relu or relu2; the default is silu for glu and gelu for mlp.
        shared_experts: number of experts that process every token; the default is 0. Their outputs are added.
        d_shared: hidden width of one shared expert; the default is d_expert.
        shared_gate: True if those outputs are weighted by sigmoid(x . w) (Qwen2-MoE, arXiv:2407.10671, section 2.2.2).
        expert_dropout: fraction of the routed experts' hidden values that training drops (Switch, arXiv:2101.03961,
            section 2.4).
        expert_init_scale: variance of the routed experts' initial weights times fan-in; 0.1 in Switch (section 2.4).
        dispatch: back end, a name of `moe_cli.moe.backends.dispatch.BACKENDS`; the default is `auto`.
    """

    ffn_type: str
    activation: str | None
    shared_experts: int
    d_shared: int | None
    shared_gate: bool
    expert_dropout: float
    expert_init_scale: float
    dispatch: str


class SparseLayer(nn.Module):
    """Routed and shared experts; a subclass defines how tokens reach them.

    Args:
        router: builds the router; its argument are the experts, whose weights a gate may read.

    Attributes:
        top_k: experts per token; E if every token uses all experts.
        backend: the back end in place of that of `dispatch`; None means none. An export sets it.
        expert_group: the processes that share the experts; None means that this process has all of them.
    """

    top_k: int

    def __init__(  # noqa: PLR0913  (every argument is a property of the layer that users choose)
        self,
        d_model: int,
        num_experts: int,
        d_expert: int | Sequence[int],
        router: Callable[[Experts], nn.Module],
        *,
        ffn_type: str = "glu",
        activation: str | None = None,
        shared_experts: int = 0,
        d_shared: int | None = None,
        shared_gate: bool = False,
        expert_dropout: float = 0.0,
        expert_init_scale: float = 1.0,
        dispatch: str = "auto",
    ) -> None:
        super().__init__()
        check_whole("d_model", d_model)
        check_widths(d_expert, num_experts)
        check_whole("shared_experts", shared_experts, 0)
        if d_shared is None:
            if shared_experts and not isinstance(d_expert, int):
                raise ConfigError("shared_experts needs d_shared if experts have unequal widths.")
            d_shared = d_expert if isinstance(d_expert, int) else 1
        check_whole("d_shared", d_shared)
        check_choice("ffn_type", ffn_type, ("glu", "mlp"))
        check_choice("dispatch", dispatch, BACKENDS)
        activation = activation or ("silu" if ffn_type == "glu" else "gelu")
        check_choice("activation", activation, ACTIVATIONS)
        check_above("expert_init_scale", expert_init_scale, 0)
        check_fraction("expert_dropout", expert_dropout)
        self.num_experts = num_experts
        self.dispatch = dispatch
        self.expert_init_scale = expert_init_scale
        self.backend: Backend | None = None
        self.expert_group: ExpertGroup | None = None
        experts = Experts(
            num_experts, d_model, d_expert, d_model, ffn_type=ffn_type, activation=activation, dropout=expert_dropout
        )
        self.router = router(experts)
        self.experts = experts
        self.shared_experts = (
            FeedForward(d_model, shared_experts * d_shared, ffn_type=ffn_type, activation=activation)
            if shared_experts
            else None
        )
        self.shared_gate = LinearGate(d_model, 1) if shared_experts and shared_gate else None
        self.reset_parameters()

    @property
    def num_scored(self) -> int:
        """Returns the number of experts that the router scores, null experts included."""
        return self.num_experts

    def reset_parameters(self, generator: torch.Generator | None = None, out_scale: float = 1.0) -> None:
        self.router.reset_parameters(generator)  # type: ignore[operator]
        self.experts.reset_parameters(generator, out_scale, self.expert_init_scale)
        if self.shared_experts is not None:
            self.shared_experts.reset_parameters(generator, out_scale)
        if self.shared_gate is not None:
            self.shared_gate.reset_parameters(generator)

    def after_step(self, assigned: Int[Tensor, " E"], num_tokens: int) -> None:
        """Updates the router's parameters that have no gradient; see `Router.after_step`."""

    def shard_experts(self, group: ExpertGroup) -> None:
        """Keeps this process's part of the experts; the others are reached through `group`, whose size divides E."""
        self.expert_group = group
        self.experts.shard_(group.local_shard)

    def run_experts(self, tokens: Float[Tensor, "T D"], routing: Routing) -> Float[Tensor, "T D"]:
        """Computes each token's weighted sum of the outputs of its kept experts."""
        routing = without_null_experts(routing)
        if self.experts.blocks is not None:
            routing = to_blocks(routing, self.experts.blocks)
        backend = self.backend or BACKENDS[self.dispatch]
        if self.expert_group is not None:
            return expert_parallel_forward(self.experts, tokens, routing, self.expert_group, backend)
        return backend(self.experts, tokens, routing, self.experts.sample_dropout_mask(routing.expert_ids.shape[0]))

    def add_shared(self, y: Float[Tensor, "T D"], tokens: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        """Adds the output of the shared experts, if the layer has any."""
        if self.shared_experts is None:
            return y
        shared: Tensor = self.shared_experts(tokens)
        return y + (shared if self.shared_gate is None else self.shared_gate(tokens).sigmoid() * shared)


def check_widths(d_expert: int | Sequence[int], num_experts: int) -> None:
    """Raises ConfigError unless d_expert is a width, or has one for each expert."""
    for width in [d_expert] if isinstance(d_expert, int) else d_expert:
        check_whole("d_expert", width)
    if not isinstance(d_expert, int) and len(d_expert) != num_experts:
        raise ConfigError(f"d_expert has {len(d_expert)} widths, and num_experts={num_experts}: give one for each.")


def check_choice(name: str, value: str, options: Collection[str]) -> None:
    """Raises ConfigError for a value that is not one of the options."""
    if value not in options:
        raise ConfigError(f"{name}={value!r} is not one of: {', '.join(options)}.")


def moe_layers(model: nn.Module) -> list[SparseLayer]:
    """Returns the sparse layers of a model, first to last."""
    return [module for module in model.modules() if isinstance(module, SparseLayer)]
