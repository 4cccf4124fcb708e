"""How does a transformer over tokens use experts? In some of its blocks; gpt is a decoder, bert an encoder.

B sequences, L positions, V tokens.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from moe_cli.config.model import TransformerConfig
from moe_cli.config.schema import RunConfig
from moe_cli.models.blocks import (
    OUT_SCALE,
    TIED_STD,
    Block,
    attention_mask,
    init_embedding,
    init_gpt2,
    make_norm,
    output_logits,
)
from moe_cli.models.decoding_cache import DecodingCache
from moe_cli.models.ngrams import NgramEmbedding
from moe_cli.moe.routing import Routing, RoutingPolicy


class Transformer(nn.Module):
    """A transformer: embedding, blocks, a last norm, and a head.

    Args:
        config: a resolved configuration.
        vocab_size: V.
    """

    def __init__(self, config: RunConfig, vocab_size: int) -> None:
        super().__init__()
        model = config.model
        assert isinstance(model, TransformerConfig)
        self.causal, self.window = model.causal, model.sliding_window
        self.embedding = self.make_embedding(config, vocab_size)
        self.ngrams = NgramEmbedding(model.ngrams, model.ngram_rows, model.d_model) if model.ngrams > 1 else None
        self.embedding_dropout = nn.Dropout(model.dropout)
        learned = model.position_encoding == "learned"
        self.positions = nn.Embedding(model.context_length, model.d_model) if learned else None
        self.logit_softcap = model.logit_softcap
        self.init_std = model.init_std
        self.expert_init_scale = model.expert_init_scale
        self.blocks = nn.ModuleList(
            Block(config.at_layer(layer), layer in config.sparse_layers, vocab_size)
            for layer in range(model.num_layers)
        )
        self.norm = make_norm(model)
        self.head = None if model.tie_embeddings else nn.Linear(model.d_model, vocab_size, bias=False)

    def make_embedding(self, config: RunConfig, vocab_size: int) -> nn.Module:
        return nn.Embedding(vocab_size, config.model.d_model)

    def reset_embedding(self, generator: torch.Generator) -> None:
        init_embedding(self.embedding, self.head, generator)

    def reset_parameters(self, seed: int) -> None:
        """Initialises the weights, which depend on the seed only.

        The scheme is that of GPT-2 with `model.init_std`, see `init_gpt2`; else the standard deviation depends on
        fan-in, and the output of each residual branch and of the head is zero.
        """
        generator = torch.Generator().manual_seed(seed)
        self.reset_embedding(generator)
        if self.ngrams is not None:
            self.ngrams.reset_parameters()
        for block in self.blocks:
            block.reset_parameters(generator, OUT_SCALE)  # type: ignore[operator]
        if self.head is not None:
            nn.init.zeros_(self.head.weight)
        if self.positions is not None:
            nn.init.normal_(self.positions.weight, std=TIED_STD, generator=generator)
        if self.init_std is not None:
            init_gpt2(self, self.init_std, self.expert_init_scale, len(self.blocks), generator)

    def forward(
        self,
        tokens: Int[Tensor, "B L"],
        mask: Bool[Tensor, "B L"] | None = None,
        documents: Int[Tensor, "B L"] | None = None,
        cache: DecodingCache | None = None,
        policy: RoutingPolicy | None = None,
    ) -> tuple[Float[Tensor, "B L V"], list[Routing]]:
        """Returns the logits at every position, and the routing of every sparse block, first block first.

        The logits predict the next token (gpt) or the token at the position (bert).

        Args:
            mask: False for padding, which is neither attended to nor routed.
            documents: document of each token; a position attends to tokens of its own document only.
            cache: keys and values of the earlier tokens (gpt), to which these tokens are added; not with `mask` or
                `documents`.
            policy: the routing settings of this pass; None means those of the layers.
        """
        x = self.embedding(tokens)
        if self.ngrams is not None:
            x = x + self.ngrams(tokens, mask, documents, cache)
        x, routings = self.run_blocks(x, tokens, mask, documents, cache, policy)
        assert isinstance(self.embedding, nn.Embedding)
        return self.cap_logits(output_logits(x, self.embedding, self.head)), routings

    def run_blocks(
        self,
        x: Float[Tensor, "B L D"],
        token_ids: Int[Tensor, "B L"] | None = None,
        mask: Bool[Tensor, "B L"] | None = None,
        documents: Int[Tensor, "B L"] | None = None,
        cache: DecodingCache | None = None,
        policy: RoutingPolicy | None = None,
    ) -> tuple[Float[Tensor, "B L D"], list[Routing]]:
        """Runs all blocks and the last norm on embedded tokens, to which learned positions are added first."""
        length, num_cached = x.shape[1], cache.length if cache else 0
        if self.positions is not None:
            x = x + self.positions.weight[num_cached : num_cached + length]
        x = self.embedding_dropout(x)
        attn_mask = attention_mask(length, self.causal, self.window, mask, documents, x.device, num_cached)
        routings: list[Routing] = []
        for layer, block in enumerate(self.blocks):
            x, new = block(x, token_ids, mask, attn_mask, cache.layers[layer] if cache else None, policy)
            routings += new
        if cache:
            cache.length += length
        return self.norm(x), routings

    def cap_logits(self, logits: Tensor) -> Tensor:
        """Computes cap * tanh(logits / cap) if model.logit_softcap is set, else returns the logits."""
        return logits if self.logit_softcap is None else self.logit_softcap * torch.tanh(logits / self.logit_softcap)
