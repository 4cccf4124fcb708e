"""How are ratings and clicks predicted by experts that tasks share? The multi-gate mixture of experts, MMoE.

Source: Ma et al., KDD 2018, doi 10.1145/3219819.3220007.
B pairs of a user and an item, G tasks (rating and click), D width, F factors, V users and items.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from moe_cli.config.model import MMoEConfig
from moe_cli.config.schema import RunConfig
from moe_cli.models.blocks import make_dense_layer, run_ffn, sparse_layer_from_config
from moe_cli.moe.experts import FeedForward, init_matrix
from moe_cli.moe.layer import MoELayer
from moe_cli.moe.routing import Routing, RoutingPolicy

EMBEDDING_STD = 0.1


class Tower(nn.Module):
    """The output network of one task, h_k in the paper: one hidden layer and one output value."""

    def __init__(self, d_model: int, d_tower: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(d_model, d_tower)
        self.head = nn.Linear(d_tower, 1, bias=False)

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Initialises the weights so that the output starts at zero."""
        init_matrix(self.hidden.weight, generator)
        nn.init.zeros_(self.hidden.bias)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
        return self.head(F.relu(self.hidden(x))).squeeze(-1)  # type: ignore[no-any-return]


class MMoE(nn.Module):
    """A multi-gate mixture of experts (section 4.2) plus biased matrix factorisation.

    y_k = h_k(f_k(x)) + b_k + b_ku + b_ki + p_ku . q_ki, with f_k(x) = sum_i g_k(x)_i f_i(x) over the shared experts.

    x is the concatenation of the user's and the item's embedding. Each task routes it with its own gate, so a pair is G
    tokens. Each task has its own biases (global, user, item) and its own F factors of the user and of the item: biased
    matrix factorisation (Koren, Bell and Volinsky, 2009). The model adds these products because a network over
    concatenated embeddings learns them badly; NeuMF adds them as well (arXiv:1708.05031, section 3.3). With dense
    layers the model is a multi-task network with a shared bottom.

    Args:
        config: a resolved configuration.
        vocab_size: V.
    """

    def __init__(self, config: RunConfig, vocab_size: int) -> None:
        super().__init__()
        model = config.model
        assert isinstance(model, MMoEConfig)
        self.num_tasks = model.num_tasks
        self.embedding = nn.Embedding(vocab_size, model.d_model // 2)
        self.bias_embedding = nn.Embedding(vocab_size, model.num_tasks)
        self.bias = nn.Parameter(torch.empty(model.num_tasks))
        self.factor_embedding = nn.Embedding(vocab_size, model.num_tasks * model.mf_dim) if model.mf_dim else None
        self.dropout = nn.Dropout(model.dropout)
        self.blocks = nn.ModuleList(
            _make_layer(config.at_layer(layer), layer in config.sparse_layers, vocab_size)
            for layer in range(model.num_layers)
        )
        self.towers = nn.ModuleList(Tower(model.d_model, model.d_tower) for _ in range(model.num_tasks))

    def reset_parameters(self, seed: int) -> None:
        """Initialises the weights, which depend on the seed only.

        Heads and biases are zero, so that the first prediction is near the mean.
        """
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(self.embedding.weight, std=EMBEDDING_STD, generator=generator)
        nn.init.zeros_(self.bias_embedding.weight)
        nn.init.zeros_(self.bias)
        for part in (*self.blocks, *self.towers):
            part.reset_parameters(generator)
        if self.factor_embedding is not None:
            nn.init.normal_(self.factor_embedding.weight, std=EMBEDDING_STD, generator=generator)

    def forward(
        self, pairs: Int[Tensor, "B 2"], policy: RoutingPolicy | None = None
    ) -> tuple[Float[Tensor, "B G"], list[Routing], Float[Tensor, "B 2"]]:
        """Returns the predictions of all tasks, the routing of every sparse layer, and squared norms for L2 penalties.

        Args:
            pairs: the embedding rows of the user and of the item.

        Returns:
            Predictions [B, G]; routings, first layer first; and per pair the squared norm of its embeddings and that of
            its biases and factors, [B, 2].
        """
        embedded, biases = self.embedding(pairs), self.bias_embedding(pairs)
        bias_and_factor_norms = _squared_norms(biases)
        x = self.dropout(embedded.flatten(1)).unsqueeze(1).expand(-1, self.num_tasks, -1)
        routings: list[Routing] = []
        for block in self.blocks:
            x, new = run_ffn(block, x, policy=policy)
            routings += new
        predictions = torch.stack([tower(x[:, task]) for task, tower in enumerate(self.towers)], dim=1)
        predictions = predictions + biases.sum(1) + self.bias
        if self.factor_embedding is not None:
            factors = self.factor_embedding(pairs)
            bias_and_factor_norms = bias_and_factor_norms + _squared_norms(factors)
            predictions = predictions + (factors[:, 0] * factors[:, 1]).unflatten(1, (self.num_tasks, -1)).sum(-1)
        return predictions, routings, torch.stack((_squared_norms(embedded), bias_and_factor_norms), dim=1)


def _squared_norms(rows: Float[Tensor, "B 2 N"]) -> Float[Tensor, " B"]:
    return rows.square().sum((1, 2))


def _make_layer(config: RunConfig, sparse: bool, vocab_size: int) -> MoELayer | FeedForward:
    """Builds a sparse layer with one gate per task, or a dense layer."""
    if not sparse:
        return make_dense_layer(config.model)
    layer = sparse_layer_from_config(config, vocab_size)
    assert isinstance(layer, MoELayer), "config.routers.check_task_router refuses router=soft"
    layer.router.use_task_gates(config.model.num_tasks)
    return layer
