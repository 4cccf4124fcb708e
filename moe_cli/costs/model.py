"""Estimates of parameters, FLOPs and memory from the configuration alone. Builds no model, imports no torch.

FLOPs are two quantities, of the model and of the optimizer; "FLOPs" without qualification is their sum. A multiply-add
counts as 2.

- Model: every matrix product, the gate included, attention over the full context though causal kernels skip part of it,
  at even load of the experts; embedding look-ups, norms and activations do not count. Training takes three forward
  passes, minus the gradient for inputs that need none. Recomputation by a kernel in backward (the scores of fused
  attention) is not counted: the figure is that of the model, independent of the implementation.
- Optimizer: the matrix products of a step. Muon has them in its Newton-Schulz iterations, independent of the batch;
  AdamW, SGD and the average of weights have none. They are counted once, even if each of several processes computes
  them (launch.data_parallel=dp).
"""

import math
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

from moe_cli.config.layer_costs import (
    TRAINING_PASSES,
    chosen_experts,
    computed_per_token,
    dense_matrices,
    expert_params,
    optimizer_flops,
    places_per_token,
    sparse_forward_flops,
    sparse_matrices,
    sparse_params,
    stack_input_fraction,
    stack_input_lengths,
    updated_experts,
)
from moe_cli.config.routers import HashConfig, RandomConfig, SoftConfig, SwitchConfig, null_experts
from moe_cli.config.schema import MuonConfig, RunConfig, SGDConfig
from moe_cli.costs.backbone import FLOATS_PER_INT64, Backbone, backbone_cost

BYTES_PER_PARAM = 4
BYTES_PER_VALUE = 4


@dataclass(frozen=True)
class Cost:
    """The estimated cost of a configuration.

    Attributes:
        num_params: all trained parameters, embedding and head included.
        num_active_params: active parameters per token: K of E experts, minus null assignments at even load, and all
            others. With router=soft, whose tokens use all experts in part, those of K, by which match=active sizes
            them.
        num_expert_params: those of all routed experts.
        forward_flops_per_token: one token through the model in training.
        model_flops_per_token: one training token, forward and backward.
        optimizer_flops_per_step: Muon's matrix products, which do not depend on the batch; 0 for AdamW and SGD. With
            optim.skip_idle_experts those of the experts with assignments, at even load: all, unless a step has fewer
            assignments.
        tokens_per_step: tokens of an optimizer step.
        padding_flops_per_token: additional forward FLOPs of a back end that computes C rows for every expert, on rows
            that are empty at even load; only `einsum` computes them.
        state_bytes: weights, gradients and optimizer state, float32.
        expert_state_bytes: the routed experts' part of it.
        activation_bytes: an estimate of the peak memory of one batch in a training step, see `_activations`.
        num_sparse_layers: blocks with experts.
    """

    num_params: int
    num_active_params: int
    num_expert_params: int
    forward_flops_per_token: int
    model_flops_per_token: int
    optimizer_flops_per_step: int
    tokens_per_step: int
    padding_flops_per_token: float
    state_bytes: int
    expert_state_bytes: int
    activation_bytes: int
    num_sparse_layers: int

    @property
    def flops_per_step(self) -> int:
        """Returns an optimizer step: model and optimizer."""
        return self.model_flops_per_token * self.tokens_per_step + self.optimizer_flops_per_step

    @property
    def flops_per_token(self) -> float:
        """Returns the FLOPs of one training token, with its part of the optimizer's FLOPs."""
        return self.flops_per_step / self.tokens_per_step


@lru_cache(maxsize=1024)  # a run asks for it when it picks threads, steps, compilation, and for its summary
def estimate_cost(config: RunConfig, vocab_size: int) -> Cost:
    """Returns the cost of a resolved configuration, counted once."""
    model, backbone = config.model, backbone_cost(config, vocab_size)
    sparse, read, d_expert = len(config.sparse_layers), stack_input_fraction(config), model.d_expert or 0
    dense = model.num_layers - sparse
    networks = dense * expert_params(config, model.d_ff)
    experts = config.expert * expert_params(config, d_expert)
    forward = 2 * (backbone.matmul_params + read * networks) + backbone.flops_per_token
    active = total = backbone.num_params + networks
    if sparse:
        forward += read * sparse * sparse_forward_flops(config, d_expert)
        active += round(sparse * sparse_params(config, d_expert, chosen_experts(config)))
        total += round(sparse * sparse_params(config, d_expert, config.expert))
    muon = isinstance(config.optim, MuonConfig)
    padding = max(0.0, places_per_token(config) - computed_per_token(config)) if sparse else 0.0
    return Cost(
        num_params=total,
        num_active_params=active,
        num_expert_params=sparse * experts,
        forward_flops_per_token=round(forward),
        model_flops_per_token=round(TRAINING_PASSES * forward - backbone.constant_input_flops),
        optimizer_flops_per_step=optimizer_flops(config, _matrices(config, sparse, backbone, updated_experts(config))),
        tokens_per_step=config.tokens_per_step,
        padding_flops_per_token=2 * expert_params(config, d_expert) * sparse * read * padding,
        state_bytes=BYTES_PER_PARAM * (_copies_per_param(config) * total - _muon_params(config, sparse, backbone)),
        expert_state_bytes=BYTES_PER_PARAM * sparse * experts * (_copies_per_param(config) - muon),
        activation_bytes=round(BYTES_PER_VALUE * _activations(config, sparse, backbone)),
        num_sparse_layers=sparse,
    )


def _matrices(config: RunConfig, sparse: int, backbone: Backbone, experts: int) -> Counter[tuple[int, int]]:
    """Counts the matrices of each shape that Muon orthogonalises, with `experts` in each of the `sparse` layers."""
    matrices = Counter(backbone.matrices)
    for number, layer in (
        (config.model.num_layers - sparse, dense_matrices(config)),
        (sparse, sparse_matrices(config, config.model.d_expert or 0, experts)),
    ):
        matrices.update({shape: number * each for shape, each in layer.items()})
    return matrices


def _muon_params(config: RunConfig, sparse: int, backbone: Backbone) -> int:
    """Parameters that Muon updates: it holds one number less for each than AdamW does."""
    if not isinstance(config.optim, MuonConfig):
        return 0
    matrices = _matrices(config, sparse, backbone, config.expert)
    return sum(number * rows * columns for (rows, columns), number in matrices.items())


def _copies_per_param(config: RunConfig) -> int:
    """Numbers held per parameter: weight, gradient, the optimizer's one or two (AdamW), and the average of weights."""
    optim = config.optim
    own = int(optim.momentum > 0) if isinstance(optim, SGDConfig) else 2
    return 2 + own + int(optim.ema_decay is not None)


def _tokens_per_pass(config: RunConfig) -> int:
    return config.train.batch_size * config.model.context_length


def _activations(config: RunConfig, sparse: int, backbone: Backbone) -> float:
    """Estimates a batch's peak of stored values: those saved for backward, and those that the start of backward adds.

    Kept per token in addition to the backbone's, with D width, F hidden width, K' kept choices, V logits: a dense
    network 4 F if gated, else 2 F, of relu F; experts K' (D + 2 F), or K' (D + F), K' F of a dropout's mask, the
    probabilities (E), the jitter and the jittered input (2 D) and the routing record (about 7 K'). With router=soft in
    place of the probabilities four mixtures (E S each), the record (7 E), the normalised input (2 D) and the slots'
    outputs (K' D). The peak is at the loss, 3 V, or in the last sparse layer: 2 K' D, a second copy of its experts'
    gradients, and for the rows of one expert at even load 7 F if gated, else 4 F. In float32, without dropout, with the
    back end `loop`; other back ends hold more.
    """
    model, tokens = config.model, _tokens_per_pass(config)
    width, gated = model.d_model, model.ffn_type == "glu"
    # Of relu's input nothing is kept.
    copies = 4 if gated else 1 if model.activation == "relu" else 2
    dense = copies * model.d_ff
    d_expert = model.d_expert or 0
    kept = computed_per_token(config)
    masks = 1 if model.expert_dropout else 0
    rows = kept * (width + ((2 if gated else 1) + masks) * d_expert + 1 + 3 * FLOATS_PER_INT64)
    shared = copies * model.shared_experts * d_expert + model.shared_gate_params
    router = config.router
    scores: float = 0 if isinstance(router, RandomConfig | HashConfig) else config.expert + null_experts(router)
    scores += 2 * width if isinstance(router, SwitchConfig) and router.jitter else 0
    if isinstance(router, SoftConfig):
        scores = config.expert * (4 * router.slots + 7) + 2 * width + kept * width
    ffn = (model.num_layers - sparse) * dense + sparse * (rows + shared + scores)
    backward = 2 * width + (7 if gated else 4) * d_expert / config.expert
    gradients = config.expert * model.matrices_per_expert * width * d_expert
    last_dense = model.d_ff * (2 if copies == 1 else 1) if model.num_layers - 1 not in config.sparse_layers else 0
    last_layer_tokens = config.train.batch_size * stack_input_lengths(config)[-1]
    peak_extra = max(
        3 * tokens * backbone.logits_per_token,
        last_layer_tokens * kept * backward + gradients if sparse else 0,
        last_layer_tokens * last_dense,
    )
    return tokens * (backbone.saved_values_per_token + stack_input_fraction(config) * ffn) + peak_extra


def all_to_all_bytes_per_step(config: RunConfig, ranks: int) -> float:
    """Bytes that leave one of W ranks in an optimizer step when each holds E / W experts of every sparse layer.

    4 * layers * T * K' * D * bytes * (W - 1) / W: each kept choice of the rank's T tokens travels to its expert and the
    output back, and so do both gradients; at even load a share of 1 / W stays where it is (GShard, arXiv:2006.16668).
    """
    sparse = len(config.sparse_layers)
    rows = (
        sparse
        * config.tokens_per_step
        * stack_input_fraction(config)
        * computed_per_token(config)
        * (ranks - 1)
        / ranks
    )
    return 4 * rows * config.model.d_model * BYTES_PER_VALUE


def training_steps(config: RunConfig, vocab_size: int) -> int | None:
    """Returns the optimizer steps of the budget, rounded for one of FLOPs; None for a time budget."""
    train = config.train
    if train.steps is not None:
        return train.steps
    if train.tokens is not None:
        return math.ceil(train.tokens / config.tokens_per_step)
    if train.flops is not None:
        return max(1, round(train.flops / estimate_cost(config, vocab_size).flops_per_step))
    return None
