"""How many parameters, FLOPs and bytes does a configuration need? Estimated without a model and without torch.

"FLOPs" are the sum of the FLOPs of the model and those of the optimizer. A multiply-add counts as 2.

- Model: all matrix products at even load of the experts, gates included. Attention counts over the full context, even
  if a causal kernel skips a part. Embedding look-ups, norms and activations do not count. Training counts as three
  forward passes minus the gradient of inputs that need none. Recomputation in backward is not counted, so that the
  figure does not depend on the implementation.
- Optimizer: the matrix products of Muon's Newton-Schulz iterations, averaged over steps. They do not depend on the
  batch, except with optim.skip_idle_experts (`updated_experts`). AdamW, SGD and the average of weights have none. They
  are counted once, even if several processes compute the same products (launch.data_parallel=dp).

D width, F hidden width of an expert, E experts, K chosen, K' chosen experts that compute, S slots, V logits, T tokens.
"""

import math
from dataclasses import dataclass
from functools import lru_cache, partial

from moe_cli.config.layer_costs import (
    LOOP_CHUNK_ROWS,
    TRAINING_PASSES,
    add_matrices,
    computed_per_token,
    dense_matrices,
    expert_params,
    experts_per_token,
    last_layer_kind,
    layer_kinds,
    mean_over_layers,
    optimizer_flops,
    sparse_forward_flops,
    sparse_matrices,
    sparse_params,
    stack_input_lengths,
    sum_of_inputs,
    updated_experts,
)
from moe_cli.config.optim import MuonConfig, SGDConfig
from moe_cli.config.routers import HashConfig, RandomConfig, SoftConfig, SwitchConfig, null_experts
from moe_cli.config.schema import RunConfig
from moe_cli.costs.backbone import FLOATS_PER_INT64, Backbone, backbone_cost

BYTES_PER_PARAM = 4
BYTES_PER_VALUE = 4


@dataclass(frozen=True)
class Cost:
    """The estimated cost of a configuration.

    Attributes:
        num_params: all trained parameters, embedding and head included.
        num_active_params: parameters that a token uses: those of K' experts at even load, and all outside the experts.
            router=soft counts as K experts, as with match=active, although its tokens use all.
        num_embedding_params: the part of both in embeddings and head (`Backbone.embedding_params`); None means unknown.
        num_expert_params: parameters of all routed experts.
        forward_flops_per_token: forward FLOPs of a token in training.
        model_flops_per_token: forward and backward FLOPs of a training token.
        optimizer_flops_per_step: FLOPs of Muon's matrix products, averaged over steps; 0 for AdamW and SGD.
        tokens_per_step: tokens of an optimizer step.
        state_bytes: bytes of weights, gradients and optimizer state, float32.
        expert_state_bytes: the part of `state_bytes` that belongs to routed experts.
        activation_bytes: estimated peak of the activations of one batch in a training step, see `_activations`.
        num_sparse_layers: number of blocks with experts.
    """

    num_params: int
    num_active_params: int
    num_embedding_params: int | None
    num_expert_params: int
    forward_flops_per_token: int
    model_flops_per_token: int
    optimizer_flops_per_step: int
    tokens_per_step: int
    state_bytes: int
    expert_state_bytes: int
    activation_bytes: int
    num_sparse_layers: int

    @property
    def non_embedding_params(self) -> int | None:
        """Returns the parameters without embeddings and head (N of Kaplan et al., arXiv:2001.08361)."""
        return None if self.num_embedding_params is None else self.num_params - self.num_embedding_params

    @property
    def active_non_embedding_params(self) -> int | None:
        """Returns the active parameters without embeddings and head."""
        return None if self.num_embedding_params is None else self.num_active_params - self.num_embedding_params

    @property
    def flops_per_step(self) -> int:
        """Returns the FLOPs of an optimizer step, of model and optimizer."""
        return self.model_flops_per_token * self.tokens_per_step + self.optimizer_flops_per_step

    @property
    def flops_per_token(self) -> float:
        """Returns the FLOPs of a training token, with its part of the optimizer's FLOPs."""
        return self.flops_per_step / self.tokens_per_step


@lru_cache(maxsize=1024)  # one run needs it for its threads, its steps, its compilation and its summary
def estimate_cost(config: RunConfig, vocab_size: int) -> Cost:
    """Estimates the cost of a resolved configuration."""
    model, backbone = config.model, backbone_cost(config, vocab_size)
    sparse, d_expert, kinds = len(config.sparse_layers), model.mean_d_expert, layer_kinds(config)
    dense_network = expert_params(config, model.d_ff)
    experts = config.expert * expert_params(config, d_expert)
    forward = 2 * (backbone.matmul_params + sum_of_inputs(config)[0] * dense_network) + backbone.flops_per_token
    active = total = backbone.num_params + round((model.num_layers - sparse) * dense_network)
    forward += sum(
        kind.number * kind.input_fraction(config) * sparse_forward_flops(config, kind, d_expert) for kind in kinds
    )
    active += round(
        sum(kind.number * sparse_params(config, d_expert, experts_per_token(config, kind)) for kind in kinds)
    )
    total += round(sparse * sparse_params(config, d_expert, config.expert))
    muon = isinstance(config.optim, MuonConfig)
    updated = mean_over_layers(kinds, partial(updated_experts, config)) if sparse else 0.0
    return Cost(
        num_params=total,
        num_active_params=active,
        num_embedding_params=backbone.embedding_params,
        num_expert_params=round(sparse * experts),
        forward_flops_per_token=round(forward),
        model_flops_per_token=round(TRAINING_PASSES * forward - backbone.constant_input_flops),
        optimizer_flops_per_step=optimizer_flops(config, _matrices(config, sparse, backbone, updated)),
        tokens_per_step=config.tokens_per_step,
        state_bytes=BYTES_PER_PARAM * (_copies_per_param(config) * total - _muon_params(config, sparse, backbone)),
        expert_state_bytes=BYTES_PER_PARAM * round(sparse * experts) * (_copies_per_param(config) - muon),
        activation_bytes=round(BYTES_PER_VALUE * _activations(config, sparse, backbone)),
        num_sparse_layers=sparse,
    )


def _matrices(config: RunConfig, sparse: int, backbone: Backbone, experts: float) -> dict[tuple[int, int], float]:
    """Counts the matrices of each shape that Muon orthogonalises, with `experts` updated experts per sparse layer."""
    return add_matrices(
        (1, backbone.matrices),
        (config.model.num_layers - sparse, dense_matrices(config)),
        (sparse, sparse_matrices(config, config.model.mean_d_expert, experts)),
    )


def _muon_params(config: RunConfig, sparse: int, backbone: Backbone) -> int:
    """Counts the parameters that Muon updates; their optimizer state is one number per parameter less than AdamW's."""
    if not isinstance(config.optim, MuonConfig):
        return 0
    matrices = _matrices(config, sparse, backbone, config.expert)
    return round(sum(number * rows * columns for (rows, columns), number in matrices.items()))


def _copies_per_param(config: RunConfig) -> int:
    """Counts the numbers per parameter: weight, gradient, one or two of the optimizer, and the average of weights."""
    optim = config.optim
    optimizer_state = int(optim.momentum > 0) if isinstance(optim, SGDConfig) else 2
    return 2 + optimizer_state + int(optim.ema_decay is not None)


def _tokens_per_pass(config: RunConfig) -> int:
    return config.train.batch_size * config.model.context_length


def _activations(config: RunConfig, sparse: int, backbone: Backbone) -> float:
    """Estimates the peak number of stored values of a batch, with the back end `loop` or `grouped_mm`.

    The peak is the sum of the values that forward saves and those that the beginning of backward adds.

    Saved per token in addition to the backbone:
    - dense layer: 3 F if gated, else 2 F, or F with relu;
    - experts: K' (D + 2 F) if gated, else K' (D + F), and K' F with dropout; experts of unequal widths have a row of D
      for each of their blocks;
    - router: E probabilities, 2 D with jitter, and about 7 K' for the routing record;
    - router=soft instead: four mixtures of E S, the record (7 E), the normalised input (2 D), slot outputs (K' D).

    Added by backward, the largest of:
    - at the loss: 3 V per token;
    - in the last sparse layer: 3 K' D per token, a second copy of its experts' gradients, and 4 F (3 F if not gated)
      per row; with `loop` 7 F (4 F if not gated) per row of a chunk, which has `LOOP_CHUNK_ROWS` or one expert;
    - in a dense last layer: 6 F per token if gated, else F (2 F with relu).

    In bfloat16 the values of dense layers and experts count half, and the cast weights are saved too. The rest of
    the model stays in float32 on a CPU.
    """
    model, tokens = config.model, _tokens_per_pass(config)
    is_narrow = config.train.precision == "bfloat16"
    narrowed = 0.5 if is_narrow else 1.0
    width, gated = model.d_model, model.ffn_type == "glu"
    # relu saves its output only.
    copies = 3 if gated else 1 if model.activation == "relu" else 2
    dense = copies * model.d_ff
    d_expert, blocks = model.mean_d_expert, model.blocks_per_expert
    masks = 1 if model.expert_dropout else 0
    row = blocks * (width + 1 + 3 * FLOATS_PER_INT64) + ((2 if gated else 1) + masks) * d_expert
    shared = copies * model.shared_width(d_expert) + model.shared_gate_params
    router = config.router
    scores: float = 0 if isinstance(router, RandomConfig | HashConfig) else config.expert + null_experts(router)
    scores += 2 * width if isinstance(router, SwitchConfig) and router.jitter else 0
    dense_inputs, sparse_inputs = sum_of_inputs(config)
    computed = sum(
        kind.number * kind.input_fraction(config) * computed_per_token(config, kind) for kind in layer_kinds(config)
    )
    if isinstance(router, SoftConfig):
        scores = config.expert * (4 * router.slots + 7) + 2 * width
    ffn = narrowed * (dense_inputs * dense + computed * row + sparse_inputs * shared) + sparse_inputs * scores
    ffn += computed * width if isinstance(router, SoftConfig) else 0
    cast_weights = 0.0
    if is_narrow:
        networks = (model.num_layers - sparse) * model.d_ff + sparse * config.expert * d_expert
        cast_weights = narrowed * (backbone.matmul_params + networks * model.matrices_per_expert * width)
    gradients = config.expert * model.matrices_per_expert * width * d_expert
    last_dense = (
        model.d_ff * (6 if gated else 2 if copies == 1 else 1)
        if model.num_layers - 1 not in config.sparse_layers
        else 0
    )
    last_layer_tokens = config.train.batch_size * stack_input_lengths(config)[-1]
    last_sparse = 0.0
    if sparse:
        last = last_layer_kind(config)
        rows = config.train.batch_size * last.input_length * computed_per_token(config, last)
        of_expert = rows / config.expert
        chunk = max(of_expert, min(rows, LOOP_CHUNK_ROWS - of_expert / 2))
        hidden = chunk * (7 if gated else 4) if model.dispatch == "loop" else rows * (4 if gated else 3)
        last_sparse = narrowed * (rows * 3 * blocks * width + hidden * d_expert) + gradients
    peak_extra = max(
        3 * tokens * backbone.logits_per_token,
        last_sparse,
        narrowed * last_layer_tokens * last_dense,
    )
    per_token = backbone.saved_values_per_token + ffn
    return tokens * per_token + cast_weights + peak_extra


def all_to_all_bytes_per_step(config: RunConfig, ranks: int) -> float:
    """Estimates the bytes that all ranks together send in an optimizer step if each of W ranks has E / W experts.

    4 * layers * T * K' * D * bytes * (W - 1) / W, with the T tokens of all ranks. Each assignment is sent to its expert
    and its output back, and the gradients of both. At even load a fraction 1 / W stays on its rank (GShard,
    arXiv:2006.16668).
    """
    computed = sum(
        kind.number * kind.input_fraction(config) * computed_per_token(config, kind) for kind in layer_kinds(config)
    )
    rows = config.tokens_per_step * computed * (ranks - 1) / ranks
    return 4 * rows * config.model.d_model * BYTES_PER_VALUE


def tokens_per_expert(config: RunConfig, tokens: float) -> float:
    """Returns the tokens that a routed expert trains on at even load, the mean over experts and layers.

    It is T K / E for token choice without drops. Experts train on no more than their capacity. In a dense model each
    network trains on all tokens.
    """
    if config.dense:
        return tokens
    return (
        tokens
        * mean_over_layers(
            layer_kinds(config), lambda kind: kind.input_fraction(config) * computed_per_token(config, kind)
        )
        / config.expert
    )


def training_steps(config: RunConfig, vocab_size: int) -> int | None:
    """Returns the optimizer steps of the budget, rounded for a budget of FLOPs; None for a budget of time."""
    train = config.train
    if train.steps is not None:
        return train.steps
    if train.tokens is not None:
        return math.ceil(train.tokens / config.tokens_per_step)
    if train.flops is not None:
        return max(1, round(train.flops / estimate_cost(config, vocab_size).flops_per_step))
    if train.model_flops is not None:
        per_token = estimate_cost(config, vocab_size).model_flops_per_token
        return max(1, round(train.model_flops / (per_token * config.tokens_per_step)))
    return None
