"""Costs of feed-forward layers, dense or with experts: the formulas that `match=` and `moe_cli.costs.model` share.

A multiply-add counts as 2 FLOPs. T tokens of a forward pass, L of an example, E experts, N null experts, K chosen per
token, C capacity, S slots, D width.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from moe_cli.config.capacity import expert_capacity
from moe_cli.config.optim import MuonConfig
from moe_cli.config.routers import ExpertChoiceConfig, SoftConfig, gate_flops, gate_params, null_experts
from moe_cli.config.schema import RunConfig
from moe_cli.config.tasks import SpanCorruption

NEWTON_SCHULZ_STEPS = 5
# Pointwise operations of `dispatch=loop` process about this number of rows at a time, which fit in a processor's cache.
LOOP_CHUNK_ROWS = 1024
# Model FLOPs of training over those of a forward pass: each product's gradient is two products of its size.
TRAINING_PASSES = 3


def stack_input_lengths(config: RunConfig) -> tuple[int, ...]:
    """Returns the number of positions that each stack of layers reads of an example of L tokens."""
    length = config.model.context_length
    return config.task.lengths(length) if isinstance(config.task, SpanCorruption) else (length,)


@dataclass(frozen=True)
class LayerKind:
    """Sparse layers that cost the same.

    Attributes:
        top_k: K.
        input_length: positions of an example that these layers read.
        number: how many there are.
    """

    top_k: int
    input_length: int
    number: int = 1

    def input_fraction(self, config: RunConfig) -> float:
        """Returns the fraction of an example's tokens that these layers read."""
        return self.input_length / config.model.context_length


def layer_kinds(config: RunConfig) -> tuple[LayerKind, ...]:
    """Returns the kinds of sparse layers, in the order of their first layers; none in a dense model."""
    lengths, per_stack = stack_input_lengths(config), config.model.layers_per_stack
    inputs = [lengths[layer // per_stack] for layer in config.sparse_layers]
    counts = Counter(zip(config.top_ks, inputs, strict=True))
    return tuple(LayerKind(top_k, length, number) for (top_k, length), number in counts.items())


def last_layer_kind(config: RunConfig) -> LayerKind:
    """Returns the kind of the last sparse layer."""
    stack = config.sparse_layers[-1] // config.model.layers_per_stack
    return LayerKind(config.top_ks[-1], stack_input_lengths(config)[stack])


def mean_over_layers(kinds: Sequence[LayerKind], value: Callable[[LayerKind], float]) -> float:
    """Returns the mean of a value over the sparse layers."""
    return sum(kind.number * value(kind) for kind in kinds) / sum(kind.number for kind in kinds)


def sum_of_inputs(config: RunConfig) -> tuple[float, float]:
    """Returns the number of dense and of sparse layers, each weighted by the fraction of an example that it reads."""
    lengths, per_stack = stack_input_lengths(config), config.model.layers_per_stack
    every = sum(lengths) * per_stack / config.model.context_length
    sparse = sum(kind.number * kind.input_fraction(config) for kind in layer_kinds(config))
    return every - sparse, sparse


def experts_per_token(config: RunConfig, kind: LayerKind) -> float:
    """Returns the experts per token, without null experts, on average at even load: K E / (E + N)."""
    return kind.top_k * config.expert / (config.expert + null_experts(config.router))


def assignments_per_token(config: RunConfig, kind: LayerKind) -> float:
    """Returns the rows assigned to experts per token that a layer reads, at even load.

    `experts_per_token`; E C / T with expert_choice, where C is at most T; E S / L with soft, whose experts compute S
    slots of every example.
    """
    if isinstance(config.router, SoftConfig):
        return config.expert * config.router.slots / config.model.context_length
    if isinstance(config.router, ExpertChoiceConfig):
        return _capacity_per_token(config, kind, config.capacity or 1.0, limited=True)
    return experts_per_token(config, kind)


def rows_per_expert(config: RunConfig) -> float:
    """Returns the rows that an expert computes in a pass at even load, the mean over layers.

    They are those of a process or, if processes share the experts, of all that share them.
    """
    launch = config.launch
    fraction = launch.expert_parallel_size / launch.num_processes
    tokens = config.train.batch_size * config.model.context_length * fraction
    return tokens * mean_over_layers(layer_kinds(config), partial(assignments_per_token, config)) / config.expert


def slots_per_token(config: RunConfig, kind: LayerKind) -> float:
    """Returns E C / T, the rows of a back end with C rows per expert; `assignments_per_token` without a capacity."""
    if config.capacity is None or isinstance(config.router, ExpertChoiceConfig | SoftConfig):
        return assignments_per_token(config, kind)
    return _capacity_per_token(config, kind, config.capacity)


def computed_per_token(config: RunConfig, kind: LayerKind) -> float:
    """Returns the rows that the experts compute in training per token: the assignments, limited by the capacity."""
    return min(assignments_per_token(config, kind), slots_per_token(config, kind))


def _capacity_per_token(config: RunConfig, kind: LayerKind, factor: float, limited: bool = False) -> float:
    """Returns E C / T; with `limited`, C is at most T."""
    counted = capacity_tokens(config, kind.input_length)
    capacity = expert_capacity(counted, config.expert, kind.top_k, factor)
    return config.expert * (min(capacity, counted) if limited else capacity) / counted


def capacity_tokens(config: RunConfig, length: int) -> int:
    """Returns the tokens that an expert's capacity is counted over: a forward pass, or a sequence with drop=causal."""
    return length if config.drop == "causal" else config.train.batch_size * length


def expert_params(config: RunConfig, width: float) -> float:
    """Returns the number of parameters of one feed-forward network of this hidden width."""
    return config.model.matrices_per_expert * config.model.d_model * width


def sparse_params(config: RunConfig, d_expert: float, experts: float) -> float:
    """Returns the parameters of a sparse layer with this number of routed experts, its shared experts and its gates."""
    model = config.model
    gate = model.num_tasks * gate_params(config.router, model.d_model, config.expert) + model.shared_gate_params
    return gate + experts * expert_params(config, d_expert) + expert_params(config, model.shared_width(d_expert))


def sparse_forward_flops(config: RunConfig, kind: LayerKind, d_expert: float) -> float:
    """Returns the forward FLOPs of a sparse layer in training, per token that it reads, at even load."""
    model = config.model
    rows = expert_shapes(config, int(d_expert))[0][0]
    gate = gate_flops(config.router, model.d_model, config.expert, rows) + 2 * model.shared_gate_params
    shared = expert_params(config, model.shared_width(d_expert))
    return gate + 2 * (computed_per_token(config, kind) * expert_params(config, d_expert) + shared)


def expert_shapes(config: RunConfig, width: int) -> list[tuple[int, int]]:
    """Returns rows and columns of each matrix of one feed-forward network of this hidden width."""
    rows = 2 * width if config.model.ffn_type == "glu" else width
    return [(rows, config.model.d_model), (config.model.d_model, width)]


def dense_matrices(config: RunConfig) -> dict[tuple[int, int], float]:
    """Counts the matrices of each shape that Muon orthogonalises in a dense layer."""
    return add_matrices(*((1, {shape: 1}) for shape in expert_shapes(config, config.model.d_ff)))


def sparse_matrices(config: RunConfig, d_expert: float, experts: float) -> dict[tuple[int, int], float]:
    """Counts the matrices of each shape that Muon orthogonalises in a layer with this number of routed experts.

    Those of experts of unequal widths are the blocks that they consist of.
    """
    model = config.model
    shared, width = model.shared_width(d_expert), int(d_expert)
    if isinstance(model.d_expert, tuple):
        experts, width = experts * model.blocks_per_expert, model.block_width
    return add_matrices(
        *((experts, {shape: 1}) for shape in expert_shapes(config, width)),
        *((1, {shape: 1}) for shape in (expert_shapes(config, shared) if shared else ())),
    )


def add_matrices(*parts: tuple[float, Mapping[tuple[int, int], float]]) -> dict[tuple[int, int], float]:
    """Returns the sum of numbers of matrices by shape, each part multiplied by its factor."""
    total: dict[tuple[int, int], float] = {}
    for factor, matrices in parts:
        for shape, number in matrices.items():
            total[shape] = total.get(shape, 0) + factor * number
    return total


def updated_experts(config: RunConfig, kind: LayerKind) -> float:
    """Returns the mean number of experts in a layer that a step updates.

    With optim.skip_idle_experts only the experts with assignments are, where the load is taken as even. Muon updates a
    layer's experts in every `expert_period`-th step.
    """
    updated = config.expert
    if config.optim.skip_idle_experts:
        assigned = config.tokens_per_step * kind.input_fraction(config) * assignments_per_token(config, kind)
        updated = min(updated, math.ceil(assigned))
    return updated / ((config.optim.expert_period or 1) if isinstance(config.optim, MuonConfig) else 1)


def optimizer_flops(config: RunConfig, matrices: Mapping[tuple[int, int], float]) -> int:
    """Returns the mean FLOPs of a step's matrix products: Muon's Newton-Schulz iterations; AdamW and SGD have none."""
    if not isinstance(config.optim, MuonConfig):
        return 0
    return round(sum(number * newton_schulz_flops(*shape) for shape, number in matrices.items()))


def newton_schulz_flops(rows: int, columns: int) -> int:
    """Returns the FLOPs for one matrix: X X^T, its square, and the product of their sum with X, on the smaller side."""
    small, large = sorted((rows, columns))
    return NEWTON_SCHULZ_STEPS * (4 * small * small * large + 2 * small**3)


def dense_step_flops(config: RunConfig, kind: LayerKind, with_optimizer: bool) -> float:
    """Returns the training FLOPs of a dense layer in place of a sparse one, in a step.

    They are those of the model and, if requested, of the optimizer.
    """
    tokens = config.tokens_per_step * kind.input_fraction(config)
    optimizer = optimizer_flops(config, dense_matrices(config)) if with_optimizer else 0
    return TRAINING_PASSES * 2 * expert_params(config, config.model.d_ff) * tokens + optimizer


def sparse_step_flops(config: RunConfig, kind: LayerKind, d_expert: float, with_optimizer: bool) -> float:
    """Returns the training FLOPs of a sparse layer in a step, as `dense_step_flops` does for a dense layer."""
    tokens = config.tokens_per_step * kind.input_fraction(config)
    matrices = sparse_matrices(config, d_expert, updated_experts(config, kind))
    optimizer = optimizer_flops(config, matrices) if with_optimizer else 0
    return TRAINING_PASSES * sparse_forward_flops(config, kind, d_expert) * tokens + optimizer
