"""The mixture-of-experts layer, which routes tokens, drops overflow, dispatches to experts, and combines.

T tokens, E experts, K chosen per token, L positions per sequence, D width.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Unpack

from jaxtyping import Bool, Float, Int
from torch import Tensor

from moe_cli.config.capacity import DROP_RULES, expert_capacity
from moe_cli.config.ranges import check_above, check_between, check_whole
from moe_cli.config.routers import HashConfig, PluginRouter, RouterConfig, SoftConfig, check_router
from moe_cli.distributed.collectives import world_size
from moe_cli.errors import ConfigError
from moe_cli.moe.expert_parallel import drop_overflow_global
from moe_cli.moe.routers.registry import ROUTER_CONFIGS, make_router, named_config
from moe_cli.moe.routers.router import Router
from moe_cli.moe.routing import (
    Routing,
    RoutingPolicy,
    Sequences,
    drop_overflow,
    drop_overflow_in_order,
    renormalise_kept,
)
from moe_cli.moe.soft import SoftMoELayer
from moe_cli.moe.sparse_layer import ExpertOptions, SparseLayer, check_choice


class MoELayer(SparseLayer):
    """Sends each token to `top_k` of `num_experts` feed-forward networks and sums their weighted outputs.

    Args:
        d_model: width D of a token, in and out.
        num_experts: E.
        top_k: K, at most E.
        d_expert: hidden width of one expert, or a width for each.
        router: a name of `moe_cli.moe.routers.registry.ROUTER_CONFIGS` (topk, switch, ...), or a configuration.
        capacity_factor: None means no drops. Otherwise an expert keeps at most ceil(factor * T * K / E) assignments of
            a forward pass in training. At evaluation nothing is dropped unless a `RoutingPolicy` has a capacity.
        drop: the drop rule: `position`, `probability` or `random` (see `drop_overflow`), or `causal`, with which an
            expert keeps the first ceil(factor * L * K / E) assignments of each sequence (see `drop_overflow_in_order`).
        renormalise_after_drop: rescale the kept weights of a token to the sum of all its weights.
        vocab_size: number of token ids; only for router=hash.
        causal: True if tokens must not depend on later tokens. Routers that use later tokens are refused, and a
            policy with a capacity drops by `causal` unless it names another rule.
        options: settings of the experts, see `ExpertOptions`.

    Without tokens (an empty batch, or padding only) the output is empty or zero, and every balancing loss is 0.

    Raises:
        ConfigError: a count or width is not an integer of at least 1, K is more than E, the capacity factor is not
            above 0, a name is unknown, or settings exclude each other.
    """

    router: Router

    def __init__(  # noqa: PLR0913  (every argument is a property of the layer that users choose)
        self,
        d_model: int,
        num_experts: int,
        top_k: int,
        d_expert: int | Sequence[int],
        *,
        router: str | RouterConfig = "topk",
        capacity_factor: float | None = None,
        drop: str = "position",
        renormalise_after_drop: bool = False,
        vocab_size: int | None = None,
        causal: bool = False,
        **options: Unpack[ExpertOptions],
    ) -> None:
        config = resolve_router_config(router, num_experts, top_k, vocab_size, causal)
        check_choice("drop", drop, DROP_RULES)
        check_above("capacity_factor", capacity_factor, 0)
        super().__init__(
            d_model,
            num_experts,
            d_expert,
            lambda experts: make_router(config, d_model, num_experts, top_k, experts, vocab_size),
            **options,
        )
        self.top_k = top_k
        self.capacity_factor = capacity_factor
        self.drop = drop
        self.causal = causal
        self.renormalise_after_drop = renormalise_after_drop

    def extra_repr(self) -> str:
        return f"top_k={self.top_k}, capacity_factor={self.capacity_factor}"

    def forward(
        self,
        x: Float[Tensor, "*batch D"],
        token_ids: Int[Tensor, "*batch"] | None = None,
        mask: Bool[Tensor, "*batch"] | None = None,
        policy: RoutingPolicy | None = None,
    ) -> tuple[Float[Tensor, "*batch D"], Routing]:
        """Returns the layer's output and its routing.

        Args:
            x: tokens of any leading shape, which are routed together.
            token_ids: the vocabulary id of each token; only router=hash reads it.
            mask: False for padding, which is not routed: it uses no capacity, is not counted, and its output is zero.
            policy: the routing settings of this pass; None means those of the layer in training, and no drops at
                evaluation.
        """
        length = x.shape[-2] if x.ndim > 1 else 1
        sequences = Sequences(math.prod(x.shape[:-1]) // max(1, length), length, mask)
        tokens, token_ids = x.reshape(-1, x.shape[-1]), None if token_ids is None else token_ids.flatten()
        if mask is not None:
            mask = mask.flatten()
            tokens, token_ids = tokens[mask], None if token_ids is None else token_ids[mask]
        routing = self.route(tokens, token_ids, sequences, policy)
        y = self.add_shared(self.run_experts(tokens, routing), tokens)
        if mask is not None:
            y = y.new_zeros(len(mask), y.shape[1]).index_put((mask,), y)
        return y.view(x.shape), routing

    def route(
        self,
        tokens: Float[Tensor, "T D"],
        token_ids: Int[Tensor, " T"] | None = None,
        sequences: Sequences | None = None,
        policy: RoutingPolicy | None = None,
    ) -> Routing:
        """Returns the routing of the tokens, after drops.

        Args:
            sequences: the sequences that the tokens form; None means a single one.
            policy: as in `forward`.

        Raises:
            ConfigError: the policy's K is not an integer from 1 to E.
        """
        if policy is None:
            policy = RoutingPolicy(None, self.capacity_factor, self.drop) if self.training else RoutingPolicy()
        elif policy.top_k is not None:
            check_between("top_k", policy.top_k, 1, self.num_experts)
            check_whole("top_k", policy.top_k)
        if self.router.fills_capacity and policy.capacity_factor is None:
            policy = replace(policy, capacity_factor=self.capacity_factor)
        routing: Routing = self.router(tokens, token_ids, policy)
        if num_null := self.num_scored - self.num_experts:
            routing = replace(routing, num_null=num_null)
        if policy.capacity_factor is None or self.router.fills_capacity:
            return routing
        routing = self._drop_overflow(routing, policy, policy.capacity_factor, sequences or Sequences(1, len(tokens)))
        return renormalise_kept(routing) if self.renormalise_after_drop else routing

    @property
    def num_scored(self) -> int:
        return self.router.num_experts

    def after_step(self, assigned: Int[Tensor, " E"], num_tokens: int) -> None:
        self.router.after_step(assigned, num_tokens)

    def _drop_overflow(self, routing: Routing, policy: RoutingPolicy, factor: float, sequences: Sequences) -> Routing:
        """Drops the assignments over capacity.

        The capacity is that of a sequence (drop=causal), of the batch of all processes (training), or of this batch.
        """
        drop = policy.drop or ("causal" if self.causal else self.drop)
        top_k = policy.top_k or self.top_k
        if drop == "causal":
            capacity = expert_capacity(sequences.length, self.num_experts, top_k, factor)
            return drop_overflow_in_order(routing, capacity, sequences)
        num_tokens = routing.num_tokens * (world_size() if self.training else 1)
        capacity = expert_capacity(num_tokens, self.num_experts, top_k, factor)
        return (drop_overflow_global if self.training else drop_overflow)(routing, capacity, drop)


def make_sparse_layer(  # noqa: PLR0913  (the arguments of MoELayer)
    d_model: int,
    num_experts: int,
    top_k: int,
    d_expert: int | Sequence[int],
    *,
    router: str | RouterConfig = "topk",
    capacity_factor: float | None = None,
    drop: str = "position",
    renormalise_after_drop: bool = False,
    vocab_size: int | None = None,
    causal: bool = False,
    **options: Unpack[ExpertOptions],
) -> MoELayer | SoftMoELayer:
    """Builds the sparse layer of any router: `SoftMoELayer` for router=soft, else `MoELayer`.

    SoftMoELayer has neither K nor capacity: these arguments are then ignored.
    """
    config = SoftConfig() if router == "soft" else router
    if isinstance(config, SoftConfig):
        check_router(config, num_experts, top_k, causal)
        return SoftMoELayer(d_model, num_experts, d_expert, config.slots, config.init_scale, **options)
    return MoELayer(
        d_model,
        num_experts,
        top_k,
        d_expert,
        router=config,
        capacity_factor=capacity_factor,
        drop=drop,
        renormalise_after_drop=renormalise_after_drop,
        vocab_size=vocab_size,
        causal=causal,
        **options,
    )


def resolve_router_config(
    router: str | RouterConfig, num_experts: int, top_k: int, vocab_size: int | None = None, causal: bool = False
) -> RouterConfig:
    """Returns the configuration of a router that is given by name or as a configuration, after checks.

    Raises:
        ConfigError: as for `MoELayer`.
    """
    check_whole("num_experts", num_experts)
    if isinstance(top_k, int) and not 1 <= top_k <= num_experts:
        raise ConfigError(f"top_k={top_k} must be between 1 and num_experts={num_experts}.")
    check_whole("top_k", top_k)
    if router == "soft" or isinstance(router, SoftConfig):
        raise ConfigError("router=soft is a layer of its own. Use moe_cli.moe.soft.SoftMoELayer.")
    if isinstance(router, str):
        router = named_config(router)
    if type(router) not in ROUTER_CONFIGS.values() and not isinstance(router, PluginRouter):
        raise ConfigError(
            f"router={router!r} is not a router's configuration. Give a name: {', '.join(ROUTER_CONFIGS)}."
        )
    if vocab_size is not None:
        check_whole("vocab_size", vocab_size)
    check_router(router, num_experts, top_k, causal)
    if isinstance(router, HashConfig) and vocab_size is None:
        raise ConfigError("router=hash needs vocab_size, the number of token ids in its table.")
    return router
