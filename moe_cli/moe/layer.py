"""The mixture-of-experts layer: route, drop, dispatch, combine. T tokens, E experts, K chosen per token, D width."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from moe_cli.config.ranges import above, between, share, whole
from moe_cli.config.routers import HashConfig, RouterConfig, check_router
from moe_cli.distributed.collectives import ExpertGroup, world_size
from moe_cli.errors import ConfigError
from moe_cli.moe.backends.dispatch import BACKENDS
from moe_cli.moe.expert_parallel import compute_divided, drop_overflow_everywhere
from moe_cli.moe.experts import ACTIVATIONS, Experts, FeedForward
from moe_cli.moe.gates import LinearGate
from moe_cli.moe.routers.expert_choice import ExpertChoiceRouter
from moe_cli.moe.routers.registry import CONFIGS, make_router
from moe_cli.moe.routers.soft import SoftRouter
from moe_cli.moe.routers.token_choice import ReluRouter
from moe_cli.moe.routing import (
    Routing,
    Sequences,
    computed,
    drop_overflow,
    drop_overflow_in_order,
    expert_capacity,
    renormalised,
)

DROPS = ("position", "probability", "random", "causal")


class MoELayer(nn.Module):
    """Sends each token to `top_k` of `num_experts` feed-forward networks and sums their weighted answers.

    Args:
        d_model: width D of a token, in and out.
        num_experts: E.
        top_k: K, at most E.
        d_expert: hidden width of one expert.
        router: a name of `moe_cli.moe.routers.registry.CONFIGS` (topk, switch, sigmoid, ...), or its config with options.
        capacity_factor: None drops nothing; else an expert takes at most ceil(factor * T * K / E) assignments of one
            forward pass in training. At evaluation nothing is dropped unless `eval_capacity_factor` is set.
        drop: who is dropped, `position`, `probability` or `random` (see `drop_overflow`), or `causal`
            (`drop_overflow_in_order`): an expert then takes at most ceil(factor * L * K / E) assignments of each sequence
            of L positions, the first ones.
        renormalise_after_drop: give the weights of what was dropped to what a token kept.
        ffn_type: `glu` (gated) or `mlp`.
        activation: silu, gelu, relu or relu2; by default silu for glu and gelu for mlp.
        shared_experts: experts of width d_expert that see every token; their answers are added.
        shared_gate: weight those answers by sigmoid(x . w) (Qwen2-MoE, arXiv:2407.10671, section 2.2.2).
        expert_dropout: share of the routed experts' hidden values that training leaves out (Switch 2101.03961, 2.4).
        expert_init_scale: variance of the routed experts' first weights times fan-in; Switch takes 0.1 (section 2.4).
        dispatch: back end, a name of `moe_cli.moe.backends.dispatch.BACKENDS`.
        vocab_size: how many token ids there are; only for router=hash.
        causal: tokens must not depend on later ones of their sequence. Routers that look at them are refused, and an
            `eval_capacity_factor` drops by `causal` unless `eval_drop` says otherwise.

    Without tokens (an empty batch, or one that is all padding) the output is empty or zero, and every balancing loss 0.

    Raises:
        ConfigError: a count or width is no whole number of at least 1, K is more than E, the capacity is not above 0, a
            name is unknown, or settings exclude each other.
    """

    def __init__(  # noqa: PLR0913  (every argument is a property of the layer that users choose)
        self,
        d_model: int,
        num_experts: int,
        top_k: int,
        d_expert: int,
        *,
        router: str | RouterConfig = "topk",
        capacity_factor: float | None = None,
        drop: str = "position",
        ffn_type: str = "glu",
        activation: str | None = None,
        shared_experts: int = 0,
        shared_gate: bool = False,
        expert_dropout: float = 0.0,
        expert_init_scale: float = 1.0,
        dispatch: str = "auto",
        renormalise_after_drop: bool = False,
        vocab_size: int | None = None,
        causal: bool = False,
    ) -> None:
        super().__init__()
        router = _router_config(router, num_experts, top_k, vocab_size, causal)
        whole("d_model", d_model)
        whole("d_expert", d_expert)
        whole("shared_experts", shared_experts, 0)
        _one_of("drop", drop, DROPS)
        _one_of("ffn_type", ffn_type, ("glu", "mlp"))
        _one_of("dispatch", dispatch, BACKENDS)
        activation = activation or ("silu" if ffn_type == "glu" else "gelu")
        _one_of("activation", activation, ACTIVATIONS)
        above("capacity_factor", capacity_factor, 0)
        above("expert_init_scale", expert_init_scale, 0)
        share("expert_dropout", expert_dropout)
        self.top_k = top_k
        self.capacity_factor = capacity_factor
        self.eval_capacity_factor: float | None = None
        self.eval_drop: str | None = None
        self.drop = drop
        self.causal = causal
        self.renormalise_after_drop = renormalise_after_drop
        self.dispatch = dispatch
        self.expert_init_scale = expert_init_scale
        self.num_experts = num_experts
        self.expert_group: ExpertGroup | None = None
        experts = Experts(
            num_experts, d_model, d_expert, d_model, kind=ffn_type, activation=activation, dropout=expert_dropout
        )
        self.router = make_router(router, d_model, num_experts, top_k, experts, vocab_size)
        self.experts = experts
        self.shared_experts = (
            FeedForward(d_model, shared_experts * d_expert, kind=ffn_type, activation=activation)
            if shared_experts
            else None
        )
        self.shared_gate = LinearGate(d_model, 1) if shared_experts and shared_gate else None
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None, out_scale: float = 1.0) -> None:
        self.router.reset_parameters(generator)
        self.experts.reset_parameters(generator, out_scale, self.expert_init_scale)
        if self.shared_experts is not None:
            self.shared_experts.reset_parameters(generator, out_scale)
        if self.shared_gate is not None:
            self.shared_gate.reset_parameters(generator)

    def forward(
        self,
        x: Float[Tensor, "*batch D"],
        token_ids: Int[Tensor, "*batch"] | None = None,
        mask: Bool[Tensor, "*batch"] | None = None,
    ) -> tuple[Float[Tensor, "*batch D"], Routing]:
        """The layer's output and who went where.

        Args:
            x: tokens of any leading shape; all of them are routed together (router=soft mixes within a sequence, the
                last dimension but one).
            token_ids: what each token is; read by router=hash.
            mask: False for padding, which never reaches the router: it takes no room, is not counted, and gets zero.
        """
        if x.ndim == 1:  # one token: a batch of one
            ids, one = (None if each is None else each.unsqueeze(0) for each in (token_ids, mask))
            y, routing = self(x.unsqueeze(0), ids, one)
            return y.squeeze(0), routing
        length = x.shape[-2]
        sequences = Sequences(x.shape[:-1].numel() // max(1, length), length, mask)
        if mask is None:
            return self._answer(x, token_ids, sequences)
        if isinstance(self.router, SoftRouter):  # sequences must stay whole; from shared experts a zero gets zero
            return self._answer(x.masked_fill(~mask.unsqueeze(-1), 0), None, sequences)
        y, routing = self._answer(x[mask], None if token_ids is None else token_ids[mask], sequences)
        return x.new_zeros(x.shape, dtype=y.dtype).index_put((mask,), y), routing

    def _answer(
        self, x: Float[Tensor, "*batch D"], token_ids: Int[Tensor, "*batch"] | None, sequences: Sequences
    ) -> tuple[Float[Tensor, "*batch D"], Routing]:
        """The same of tokens that are routed; with soft, padding among them."""
        tokens = x.reshape(-1, x.shape[-1])
        if isinstance(self.router, SoftRouter):
            y, routing = self._mix(x, sequences.mask)
        else:
            routing = self.route(tokens, None if token_ids is None else token_ids.flatten(), sequences)
            y = self._compute(tokens, routing)
        if self.shared_experts is not None:
            shared = self.shared_experts(tokens)
            y = y + (shared if self.shared_gate is None else self.shared_gate(tokens).sigmoid() * shared)
        return y.view(x.shape), routing

    def route(
        self,
        tokens: Float[Tensor, "T D"],
        token_ids: Int[Tensor, " T"] | None = None,
        sequences: Sequences | None = None,
    ) -> Routing:
        """Who goes where, overflow dropped; without `sequences` the tokens are one."""
        factor = self.capacity_factor if self.training else self.eval_capacity_factor
        if isinstance(self.router, ExpertChoiceRouter):  # the experts take as many as they have room for
            self.router.capacity_factor = factor or self.capacity_factor or 1.0
            factor = None
        routing: Routing = self.router(tokens, token_ids) if self.router.reads_token_ids else self.router(tokens)
        if null := self.router.num_experts - self.num_experts:
            routing = replace(routing, num_null=null)
        if factor is None:
            return routing
        drop = self.drop if self.training else self.eval_drop or ("causal" if self.causal else self.drop)
        if drop == "causal":
            sequences = sequences or Sequences(1, len(tokens))
            capacity = expert_capacity(sequences.length, self.num_experts, self.router.top_k, factor)
            routing = drop_overflow_in_order(routing, capacity, sequences)
        elif self.training:  # over the batch of all processes
            capacity = expert_capacity(world_size() * len(tokens), self.num_experts, self.router.top_k, factor)
            rounds = 1 if isinstance(self.router, ReluRouter) else self.router.top_k
            routing = drop_overflow_everywhere(routing, capacity, drop, rounds)
        else:
            capacity = expert_capacity(len(tokens), self.num_experts, self.router.top_k, factor)
            routing = drop_overflow(routing, capacity, drop)
        return renormalised(routing) if self.renormalise_after_drop else routing

    def _compute(self, tokens: Float[Tensor, "T D"], routing: Routing) -> Float[Tensor, "T D"]:
        routing = computed(routing)
        if self.expert_group is not None:
            return compute_divided(self.experts, tokens, routing, self.expert_group, BACKENDS[self.dispatch])
        return BACKENDS[self.dispatch](self.experts, tokens, routing, self.experts.draw_mask(len(routing.expert_ids)))

    def divide(self, group: ExpertGroup) -> None:
        """Keeps this process's part of the experts; the others are asked for their answers. E is a multiple of M."""
        self.expert_group = group
        self.experts.keep(group.own)

    def _mix(
        self, x: Float[Tensor, "*batch D"], mask: Bool[Tensor, "*batch"] | None
    ) -> tuple[Float[Tensor, "T D"], Routing]:
        """Soft MoE: the experts work on the slots, and every token mixes the slots' answers; padding gets zero."""
        x = x[(None,) * (3 - x.ndim)].flatten(0, -3)  # sequences [G, L, D]; fewer dimensions are one sequence
        mask = None if mask is None else mask.reshape(x.shape[:-1])
        logits = self.router.logits(x)
        slots = self.router.slot_tokens(x, logits, mask)
        answers = self._compute(slots, self.router.slot_routing(len(x), x.device))
        y = logits.softmax(-1).to(answers.dtype) @ answers.view(len(x), logits.shape[-1], answers.shape[-1])
        if mask is None:
            return y.flatten(0, 1), self.router.token_routing(logits.flatten(0, 1))
        y = y.masked_fill(~mask.unsqueeze(-1), 0)
        return y.flatten(0, 1), self.router.token_routing(logits[mask])


def _router_config(
    router: str | RouterConfig, num_experts: int, top_k: int, vocab_size: int | None = None, causal: bool = False
) -> RouterConfig:
    whole("num_experts", num_experts)
    if isinstance(top_k, int) and not 1 <= top_k <= num_experts:
        raise ConfigError(f"top_k={top_k} must be between 1 and num_experts={num_experts}.")
    whole("top_k", top_k)
    if isinstance(router, str):
        _one_of("router", router, CONFIGS)
        router = CONFIGS[router]()
    if type(router) not in CONFIGS.values():
        raise ConfigError(f"router={router!r} is not a router's configuration. Give a name: {', '.join(CONFIGS)}.")
    if vocab_size is not None:
        whole("vocab_size", vocab_size)
    check_router(router, num_experts, top_k, causal)
    if isinstance(router, HashConfig) and vocab_size is None:
        raise ConfigError("router=hash needs vocab_size: it has a place for every token id.")
    return router


def _one_of(name: str, value: str, options: Collection[str]) -> None:
    if value not in options:
        raise ConfigError(f"{name}={value!r} is not one of: {', '.join(options)}.")


def moe_layers(model: nn.Module) -> list[MoELayer]:
    """The mixture-of-experts layers of a model, first to last."""
    return [module for module in model.modules() if isinstance(module, MoELayer)]


@contextmanager
def evaluation_policy(
    model: nn.Module, top_k: int | None, capacity_factor: float | None, drop: str | None = None
) -> Iterator[None]:
    """Within it, evaluation chooses `top_k` experts and drops by `capacity_factor` (None: never) those that `drop` says.

    None is as trained for the others; for `drop`, `causal` in layers of causal models.

    Raises:
        ConfigError: the capacity is not above 0, or a layer has fewer experts than `top_k`.
    """
    above("capacity_factor", capacity_factor, 0)
    layers = moe_layers(model)
    for layer in layers:
        between("top_k", layer.top_k if top_k is None else top_k, 1, layer.num_experts)
        whole("top_k", layer.top_k if top_k is None else top_k)
    for layer in layers:
        layer.router.top_k = layer.top_k if top_k is None else top_k
        layer.eval_capacity_factor, layer.eval_drop = capacity_factor, drop
    try:
        yield
    finally:
        for layer in layers:
            layer.router.top_k = layer.top_k
            layer.eval_capacity_factor = layer.eval_drop = None


class SparseExpertModel(nn.Module):
    """A model that is one mixture of experts: each row of the input goes to its own `k` of `num_experts` networks.

    The gate learns through the weights, only the chosen experts are computed, and only they receive a gradient.

    Args:
        num_experts: E.
        input_dim: width of an input row.
        output_dim: width of an output row.
        k: experts chosen per row.

    Raises:
        ConfigError: a number is no whole one of at least 1, or k is more than num_experts.
    """

    def __init__(self, num_experts: int, input_dim: int, output_dim: int, k: int) -> None:
        super().__init__()
        config = _router_config("topk", num_experts, k)
        whole("input_dim", input_dim)
        whole("output_dim", output_dim)
        self.router = make_router(config, input_dim, num_experts, k)
        self.experts = Experts(num_experts, input_dim, input_dim, output_dim, kind="mlp", activation="gelu")
        self.router.reset_parameters()
        self.experts.reset_parameters()

    def forward(self, x: Float[Tensor, "*batch D_in"]) -> Float[Tensor, "*batch D_out"]:
        rows = x.reshape(-1, x.shape[-1])
        y = BACKENDS["auto"](self.experts, rows, self.router(rows))
        return y.view(*x.shape[:-1], y.shape[-1])
