"""What a configuration costs, from the configuration alone: parameters, FLOPs, memory. Builds nothing, knows no torch.

A multiply-add counts as 2 FLOPs; every matrix product counts, attention over the full context and the gate included;
embedding look-ups, norms and activations do not. Training is counted as three forward passes.
"""

import math
from collections import Counter
from dataclasses import dataclass

from moe_cli.config.routers import gate_flops, gate_params
from moe_cli.config.schema import MuonConfig, RunConfig

NEWTON_SCHULZ_STEPS = 5
BYTES_PER_PARAM = 4


@dataclass(frozen=True)
class Cost:
    """Attributes:
    num_params: every trained number, embedding and head included.
    num_active_params: those that one token meets: K of E experts, all of the rest.
    forward_flops_per_token: one token through the model.
    optimizer_flops_per_step: Muon's matrix products, which do not depend on the batch.
    state_bytes: weights, gradients and optimizer state, float32.
    num_sparse_layers: blocks with experts.
    """

    num_params: int
    num_active_params: int
    forward_flops_per_token: int
    optimizer_flops_per_step: int
    state_bytes: int
    num_sparse_layers: int

    @property
    def flops_per_token(self) -> int:
        """One training token, forward and backward."""
        return 3 * self.forward_flops_per_token


def cost(config: RunConfig, vocab_size: int) -> Cost:
    """The cost of a resolved configuration."""
    model = config.model
    width, sparse = model.d_model, 0 if config.dense else model.num_layers // model.moe_every
    dense = model.num_layers - sparse
    attention = 4 * width * width
    ffn = model.matrices_per_expert * width * model.d_ff
    expert = model.matrices_per_expert * width * (model.d_expert or 0)
    gate = gate_params(config.router, width, config.expert)
    norms = (2 * model.num_layers + 1) * width
    outer = vocab_size * width * (1 if model.tie_embeddings else 2)
    common = outer + norms + model.num_layers * attention + dense * ffn
    top_k = config.k or 1
    active = common + sparse * (gate + (top_k + model.shared_experts) * expert)
    total = common + sparse * (gate + (config.expert + model.shared_experts) * expert)
    matmuls = active - sparse * gate - norms - (0 if model.tie_embeddings else vocab_size * width)
    gates = sparse * gate_flops(config.router, width, config.expert)
    attention_scores = model.num_layers * 4 * model.context_length * width
    matrices = _matrices(config, sparse) if isinstance(config.optim, MuonConfig) else {}
    in_muon = sum(number * rows * columns for (rows, columns), number in matrices.items())
    return Cost(
        num_params=total,
        num_active_params=active,
        forward_flops_per_token=2 * matmuls + gates + attention_scores,
        optimizer_flops_per_step=sum(number * _newton_schulz_flops(*shape) for shape, number in matrices.items()),
        state_bytes=BYTES_PER_PARAM * (4 * total - in_muon),
        num_sparse_layers=sparse,
    )


def _matrices(config: RunConfig, sparse: int) -> Counter[tuple[int, int]]:
    """How many matrices of each shape Muon orthogonalises, in a model of `sparse` blocks with experts."""
    model = config.model
    d_expert = model.d_expert or 0
    matrices = Counter({(3 * model.d_model, model.d_model): model.num_layers})
    networks = [(model.d_ff, model.num_layers - sparse), (d_expert, sparse * config.expert),
                (model.shared_experts * d_expert, sparse if model.shared_experts else 0)]  # fmt: skip
    for shapes, number in [([(model.d_model, model.d_model)], model.num_layers),
                           *((_ffn_shapes(config, hidden), number) for hidden, number in networks)]:  # fmt: skip
        for shape in shapes:
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
