"""What a configuration costs, from the configuration alone: parameters, FLOPs, memory. Builds nothing, knows no torch.

A multiply-add counts as 2 FLOPs; every matrix product counts, attention over the full context and the gate included;
embedding look-ups, norms and activations do not. Training is counted as three forward passes.
"""

import math
from collections import Counter
from dataclasses import dataclass

from moe_cli.config.routers import HashConfig, RandomConfig, SwitchConfig, gate_flops, gate_params
from moe_cli.config.schema import MuonConfig, RunConfig, SGDConfig
from moe_cli.models.backbone import INTEGER, Backbone, backbone, read_lengths, read_share

NEWTON_SCHULZ_STEPS = 5
BYTES_PER_PARAM = 4
BYTES_PER_VALUE = 4


@dataclass(frozen=True)
class Cost:
    """Attributes:
    num_params: every trained number, embedding and head included.
    num_active_params: those that one token meets: K of E experts, all of the rest.
    num_expert_params: those of all routed experts.
    forward_flops_per_token: one token through the model.
    optimizer_flops_per_step: Muon's matrix products, which do not depend on the batch.
    padding_flops_per_token: on top of that, what a back end with a full row of places for every expert would spend in a
        forward pass on places that stay empty at even load; only `padded` and `einsum` compute them.
    state_bytes: weights, gradients and optimizer state, float32.
    expert_state_bytes: the routed experts' part of it.
    activation_bytes: an estimate of what one batch of a training step holds at its peak, see `_activations`.
    num_sparse_layers: blocks with experts.
    """

    num_params: int
    num_active_params: int
    num_expert_params: int
    forward_flops_per_token: int
    optimizer_flops_per_step: int
    padding_flops_per_token: float
    state_bytes: int
    expert_state_bytes: int
    activation_bytes: int
    num_sparse_layers: int

    @property
    def flops_per_token(self) -> int:
        """One training token, forward and backward."""
        return 3 * self.forward_flops_per_token


def cost(config: RunConfig, vocab_size: int) -> Cost:
    """The cost of a resolved configuration."""
    model, rest = config.model, backbone(config, vocab_size)
    width, sparse, read = model.d_model, len(config.sparse_layers), read_share(config)
    dense = model.num_layers - sparse
    ffn = model.matrices_per_expert * width * model.d_ff
    expert = model.matrices_per_expert * width * (model.d_expert or 0)
    gate = model.num_tasks * gate_params(config.router, width, config.expert) + model.shared_gate_params
    top_k = config.k or 1
    chosen = dense * ffn + sparse * (top_k + model.shared_experts) * expert
    active = rest.num_params + chosen + sparse * gate
    total = active + sparse * (config.expert - top_k) * expert if sparse else active
    gates = sparse * (gate_flops(config.router, width, config.expert) + 2 * model.shared_gate_params)
    matrices = rest.matrices + _matrices(config, sparse) if isinstance(config.optim, MuonConfig) else {}
    in_muon = sum(number * rows * columns for (rows, columns), number in matrices.items())
    return Cost(
        num_params=total,
        num_active_params=active,
        num_expert_params=sparse * config.expert * expert,
        forward_flops_per_token=round(2 * (rest.num_multiplied + read * chosen) + read * gates) + rest.flops_per_token,
        optimizer_flops_per_step=sum(number * _newton_schulz_flops(*shape) for shape, number in matrices.items()),
        padding_flops_per_token=2 * expert * sparse * read * max(0.0, _places_per_token(config) - top_k),
        state_bytes=BYTES_PER_PARAM * (_copies(config) * total - in_muon),
        expert_state_bytes=BYTES_PER_PARAM * sparse * config.expert * expert * (_copies(config) - bool(matrices)),
        activation_bytes=round(BYTES_PER_VALUE * _activations(config, sparse, rest)),
        num_sparse_layers=sparse,
    )


def _copies(config: RunConfig) -> int:
    """Numbers held per parameter: weight, gradient, the optimizer's one or two (AdamW), and the average of weights."""
    optim = config.optim
    own = int(optim.momentum > 0) if isinstance(optim, SGDConfig) else 2
    return 2 + own + int(optim.ema is not None)


def _tokens_per_pass(config: RunConfig) -> int:
    return config.train.batch_size * config.model.context_length


def _places_per_token(config: RunConfig) -> float:
    """E * C / T: places for assignments, per token of a training pass; K when dropless, where places follow the load."""
    top_k, tokens = config.k or 1, _tokens_per_pass(config)
    if config.capacity is None:
        return top_k
    # As `moe_cli.moe.routing.expert_capacity`, which lives above torch.
    room = max(1, math.ceil(round(config.capacity * tokens * top_k / config.expert, 9)))
    return config.expert * room / tokens


def _activations(config: RunConfig, sparse: int, rest: Backbone) -> float:
    """Values that a batch holds at its peak: what forward keeps for backward, and what the first backward adds to it.

    Kept per token beside the backbone's, with D width, F hidden width, K' kept choices, V logits: a dense network 4 F if
    gated, else 2 F, of relu F; experts K' (D + 2 F), or K' (D + F), K' F of a dropout's mask, the probabilities (E), the jitter and
    what it made of the input (2 D) and who went where (about 7 K'). The peak is at the loss, 3 V, or in the last sparse
    layer: 2 K' D, a second copy of its experts' gradients, and for the rows of one expert at even load 7 F if gated, else
    4 F. In float32, without dropout, by the loop of `grouped`; other back ends hold more.
    """
    model, tokens = config.model, _tokens_per_pass(config)
    width, gated = model.d_model, model.expert_kind == "glu"
    # Of relu's input nothing is kept.
    copies = 4 if gated else 1 if model.activation == "relu" else 2
    dense = copies * model.d_ff
    d_expert = model.d_expert or 0
    kept = min(config.k or 1, _places_per_token(config))
    masks = 1 if model.expert_dropout else 0
    rows = kept * (width + ((2 if gated else 1) + masks) * d_expert + 1 + 3 * INTEGER)
    shared = copies * model.shared_experts * d_expert + model.shared_gate_params
    router = config.router
    scores = 0 if isinstance(router, RandomConfig | HashConfig) else config.expert
    scores += 2 * width if isinstance(router, SwitchConfig) and router.jitter else 0
    ffn = (model.num_layers - sparse) * dense + sparse * (rows + shared + scores)
    backward = 2 * width + (7 if gated else 4) * d_expert / config.expert
    gradients = config.expert * model.matrices_per_expert * width * d_expert
    last_dense = model.d_ff * (2 if copies == 1 else 1) if model.num_layers - 1 not in config.sparse_layers else 0
    last = config.train.batch_size * read_lengths(config)[-1]
    first = max(
        3 * tokens * rest.logits_per_token, last * kept * backward + gradients if sparse else 0, last * last_dense
    )
    return tokens * (rest.kept_per_token + read_share(config) * ffn) + first


def all_to_all_bytes_per_step(config: RunConfig, ranks: int) -> float:
    """Bytes that leave one of W ranks in an optimizer step when each holds E / W experts of every sparse layer.

    4 * layers * T * K' * D * bytes * (W - 1) / W: each kept choice of the rank's T tokens travels to its expert and the
    answer back, and so do both gradients; at even load a share of 1 / W has no way to go (GShard, arXiv:2006.16668).
    """
    sparse = len(config.sparse_layers)
    kept = min(config.k or 1, _places_per_token(config))
    rows = sparse * config.tokens_per_step * read_share(config) * kept * (ranks - 1) / ranks
    return 4 * rows * config.model.d_model * BYTES_PER_VALUE


def _matrices(config: RunConfig, sparse: int) -> Counter[tuple[int, int]]:
    """How many matrices of each shape Muon orthogonalises in the feed-forward layers, `sparse` of which have experts."""
    model = config.model
    d_expert = model.d_expert or 0
    matrices: Counter[tuple[int, int]] = Counter()
    for hidden, number in [(model.d_ff, model.num_layers - sparse), (d_expert, sparse * config.expert),
                           (model.shared_experts * d_expert, sparse if model.shared_experts else 0)]:  # fmt: skip
        for shape in _ffn_shapes(config, hidden):
            matrices[shape] += number
    return matrices


def _ffn_shapes(config: RunConfig, hidden: int) -> list[tuple[int, int]]:
    rows = 2 * hidden if config.model.expert_kind == "glu" else hidden
    return [(rows, config.model.d_model), (config.model.d_model, hidden)]


def _newton_schulz_flops(rows: int, columns: int) -> int:
    small, large = sorted((rows, columns))
    return NEWTON_SCHULZ_STEPS * (4 * small * small * large + 2 * small**3)


def training_steps(config: RunConfig, vocab_size: int) -> int | None:
    """Optimizer steps of the budget; None when the budget is a time."""
    train = config.train
    if train.steps is not None:
        return train.steps
    if train.tokens is not None:
        return math.ceil(train.tokens / config.tokens_per_step)
    if train.flops is not None:
        return max(1, round(train.flops / (cost(config, vocab_size).flops_per_token * config.tokens_per_step)))
    return None
