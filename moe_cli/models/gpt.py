"""A decoder-only transformer language model with experts in every `moe_every`-th block.

B sequences, L positions, V tokens.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from moe_cli.config.schema import RunConfig
from moe_cli.models.blocks import Block
from moe_cli.moe.routing import Routing

# The last matrix of every residual branch and the head start at zero, so that the model starts as the uniform guess.
OUT_SCALE = 0.0
EMBEDDING_STD = 1.0


class GPT(nn.Module):
    """Embedding, blocks, norm, head.

    Args:
        config: a resolved configuration.
        vocab_size: V.
    """

    def __init__(self, config: RunConfig, vocab_size: int) -> None:
        super().__init__()
        model = config.model
        self.embedding = nn.Embedding(vocab_size, model.d_model)
        self.embedding_dropout = nn.Dropout(model.dropout)
        self.blocks = nn.ModuleList(
            Block(config, is_sparse(config, layer), vocab_size) for layer in range(model.num_layers)
        )
        self.norm = nn.RMSNorm(model.d_model)
        self.head = None if model.tie_embeddings else nn.Linear(model.d_model, vocab_size, bias=False)

    def reset_parameters(self, seed: int) -> None:
        """Initial weights, decided by the seed alone."""
        generator = torch.Generator().manual_seed(seed)
        tied = self.head is None
        nn.init.normal_(self.embedding.weight, std=0.02 if tied else EMBEDDING_STD, generator=generator)
        for block in self.blocks:
            block.reset_parameters(generator, OUT_SCALE)  # type: ignore[operator]
        if self.head is not None:
            nn.init.zeros_(self.head.weight)

    def forward(self, tokens: Int[Tensor, "B L"]) -> tuple[Float[Tensor, "B L V"], list[Routing]]:
        """Logits of the next token at every position, and the routing of every sparse block."""
        x = self.embedding_dropout(self.embedding(tokens))
        routings = []
        for block in self.blocks:
            x, routing = block(x, tokens)
            if routing is not None:
                routings.append(routing)
        x = self.norm(x)
        return F.linear(x, self.embedding.weight if self.head is None else self.head.weight), routings


def is_sparse(config: RunConfig, layer: int) -> bool:
    """Whether block `layer` (from 0) has experts: the last of every `moe_every` blocks."""
    return not config.dense and (layer + 1) % config.model.moe_every == 0


MODELS = {"gpt": GPT}


def make_model(config: RunConfig, vocab_size: int) -> GPT:
    """The model of a resolved configuration, initialised from its seed."""
    model = MODELS[config.model.name](config, vocab_size)
    model.reset_parameters(config.seed)
    return model
