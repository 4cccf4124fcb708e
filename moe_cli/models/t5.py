"""How does an encoder-decoder transformer use experts? In both of its stacks.

Sources: T5, arXiv:1910.10683; Switch Transformer, arXiv:2101.03961.
B sequences, L positions of the encoder, M of the decoder, D width, N heads, W head width, V tokens.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from moe_cli.config.model import T5Config
from moe_cli.config.schema import RunConfig
from moe_cli.models.blocks import (
    OUT_SCALE,
    TIED_STD,
    attend,
    init_embedding,
    make_dense_layer,
    output_logits,
    run_ffn,
    sparse_layer_from_config,
)
from moe_cli.models.norms import RMSNorm
from moe_cli.moe.experts import init_matrix
from moe_cli.moe.routing import Routing, RoutingPolicy


def relative_position_bucket(
    distance: Int[Tensor, "L M"], buckets: int, max_distance: int, both_sides: bool
) -> Int[Tensor, "L M"]:
    """Returns the bucket of each distance, key minus query, as in T5's code.

    Near distances have a bucket each; far ones share buckets of logarithmic width.

    Args:
        buckets: number of buckets.
        max_distance: all distances from this one on share the last bucket.
        both_sides: True if half of the buckets are for keys after the query; else all those keys are in bucket 0.
    """
    first = torch.zeros_like(distance)
    if both_sides:
        buckets //= 2
        first = (distance > 0) * buckets
    far = distance.abs() if both_sides else (-distance).clamp(min=0)
    near = buckets // 2
    logarithm = (far.clamp(min=1).double() / near).log() / math.log(max_distance / near)
    return first + torch.where(far < near, far, (near + logarithm * (buckets - near)).long().clamp(max=buckets - 1))


class RelativePositionBias(nn.Module):
    """A learned bias for each bucket of distances and each head, which is added to the attention scores of a stack."""

    def __init__(self, model: T5Config, causal: bool) -> None:
        super().__init__()
        assert model.num_heads
        self.num_buckets = model.relative_attention_num_buckets
        self.max_distance = model.relative_attention_max_distance
        self.causal = causal
        self.positions = nn.Embedding(self.num_buckets, model.num_heads)

    def forward(self, length: int) -> Float[Tensor, "1 N L L"]:
        """Returns the bias for L = `length` positions; it is minus infinity for later positions in a causal stack."""
        positions = torch.arange(length, device=self.positions.weight.device)
        distance = positions[None, :] - positions[:, None]
        bias = self.positions(relative_position_bucket(distance, self.num_buckets, self.max_distance, not self.causal))
        if self.causal:
            bias = bias.masked_fill((distance > 0).unsqueeze(-1), -torch.inf)
        return bias.permute(2, 0, 1).unsqueeze(0)  # type: ignore[no-any-return]


class T5Attention(nn.Module):
    """Multi-head attention without biases, to positions of the same stack or of the encoder.

    Scores are divided by sqrt(W). T5 has no such division, but initialises its query weights smaller by that factor,
    which is equivalent.
    """

    def __init__(self, model: T5Config) -> None:
        super().__init__()
        assert model.num_heads
        assert model.d_head
        self.d_head, width = model.d_head, model.num_heads * model.d_head
        self.dropout = model.dropout
        self.q = nn.Linear(model.d_model, width, bias=False)
        self.kv = nn.Linear(model.d_model, 2 * width, bias=False)
        self.out = nn.Linear(width, model.d_model, bias=False)

    def reset_parameters(self, generator: torch.Generator | None) -> None:
        init_matrix(self.q.weight, generator)
        init_matrix(self.kv.weight, generator)
        init_matrix(self.out.weight, generator, OUT_SCALE)

    def forward(
        self, x: Float[Tensor, "B M D"], source: Float[Tensor, "B L D"], bias: Float[Tensor, "1 N M L"] | None = None
    ) -> Float[Tensor, "B M D"]:
        """Computes the attention of each position of `x` to all positions of `source`.

        Args:
            bias: is added to the scores.
        """
        q, k, v = (
            rows.unflatten(-1, (-1, self.d_head)).transpose(1, 2)
            for rows in (self.q(x), *self.kv(source).chunk(2, dim=-1))
        )
        y = attend(q, k, v, bias, self.dropout if self.training else 0.0)
        return self.out(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class T5Block(nn.Module):
    """A pre-norm block: self-attention, attention to the encoder (decoder only), and a feed-forward layer."""

    def __init__(self, config: RunConfig, sparse: bool, decoder: bool, vocab_size: int) -> None:
        super().__init__()
        model = config.model
        assert isinstance(model, T5Config)
        self.attention_norm = RMSNorm(model.d_model)
        self.attention = T5Attention(model)
        self.cross_norm = RMSNorm(model.d_model) if decoder else None
        self.cross_attention = T5Attention(model) if decoder else None
        self.ffn_norm = RMSNorm(model.d_model)
        self.ffn = sparse_layer_from_config(config, vocab_size, causal=decoder) if sparse else make_dense_layer(model)
        self.dropout = nn.Dropout(model.dropout)

    def reset_parameters(self, generator: torch.Generator | None) -> None:
        self.attention.reset_parameters(generator)
        if self.cross_attention is not None:
            self.cross_attention.reset_parameters(generator)
        self.ffn.reset_parameters(generator, OUT_SCALE)

    def forward(
        self,
        x: Float[Tensor, "B M D"],
        token_ids: Int[Tensor, "B M"],
        bias: Float[Tensor, "1 N M M"],
        encoder_output: Float[Tensor, "B L D"] | None = None,
        policy: RoutingPolicy | None = None,
    ) -> tuple[Float[Tensor, "B M D"], list[Routing]]:
        """Returns the block's output, and a list of its routing, which is empty for a dense block.

        Args:
            bias: is added to the scores of the self-attention.
            encoder_output: output of the encoder; None in the encoder.
        """
        normed = self.attention_norm(x)
        x = x + self.dropout(self.attention(normed, normed, bias))
        if self.cross_norm is not None and self.cross_attention is not None:
            x = x + self.dropout(self.cross_attention(self.cross_norm(x), encoder_output))
        y, routings = run_ffn(self.ffn, self.ffn_norm(x), token_ids, policy=policy)
        return x + self.dropout(y), routings


class T5(nn.Module):
    """An encoder-decoder transformer: a shared embedding, the encoder and its norm, the decoder and its norm, a head.

    T5 1.0 multiplies by 1 / sqrt(D) before its tied head; here the scales of the last norm can learn this factor.

    Args:
        config: a resolved configuration.
        vocab_size: V.
    """

    def __init__(self, config: RunConfig, vocab_size: int) -> None:
        super().__init__()
        model = config.model
        assert isinstance(model, T5Config)
        self.layers_per_stack = model.layers_per_stack
        self.embedding = nn.Embedding(vocab_size, model.d_model)
        self.dropout = nn.Dropout(model.dropout)
        self.encoder_bias = RelativePositionBias(model, causal=False)
        self.decoder_bias = RelativePositionBias(model, causal=True)
        # The encoder's blocks come first.
        self.blocks = nn.ModuleList(
            T5Block(config.at_layer(layer), layer in config.sparse_layers, layer >= self.layers_per_stack, vocab_size)
            for layer in range(model.num_layers)
        )
        self.encoder_norm, self.norm = RMSNorm(model.d_model), RMSNorm(model.d_model)
        self.head = None if model.tie_embeddings else nn.Linear(model.d_model, vocab_size, bias=False)

    def reset_parameters(self, seed: int) -> None:
        """Initialises the weights, which depend on the seed only."""
        generator = torch.Generator().manual_seed(seed)
        init_embedding(self.embedding, self.head, generator)
        for bias in (self.encoder_bias, self.decoder_bias):
            nn.init.normal_(bias.positions.weight, std=TIED_STD, generator=generator)
        for block in self.blocks:
            block.reset_parameters(generator)  # type: ignore[operator]
        if self.head is not None:
            nn.init.zeros_(self.head.weight)

    def forward(
        self, tokens: Int[Tensor, "B L"], decoder_tokens: Int[Tensor, "B M"], policy: RoutingPolicy | None = None
    ) -> tuple[Float[Tensor, "B M V"], list[Routing]]:
        """Returns the logits of the token after each of `decoder_tokens`, and the routings, the encoder's first."""
        encoder_output, routings = self._run_stack(tokens, self.encoder_bias, None, policy)
        encoder_output = self.encoder_norm(encoder_output)
        x, decoder_routings = self._run_stack(decoder_tokens, self.decoder_bias, encoder_output, policy)
        return output_logits(self.norm(x), self.embedding, self.head), routings + decoder_routings

    def _run_stack(
        self,
        tokens: Int[Tensor, "B M"],
        bias: RelativePositionBias,
        encoder_output: Tensor | None,
        policy: RoutingPolicy | None,
    ) -> tuple[Float[Tensor, "B M D"], list[Routing]]:
        """Returns the output and the routings of the encoder, or of the decoder if `encoder_output` is given."""
        routings: list[Routing] = []
        x = self.dropout(self.embedding(tokens))
        scores = bias(tokens.shape[1])
        depth = self.layers_per_stack
        for block in self.blocks[:depth] if encoder_output is None else self.blocks[depth:]:
            x, new = block(x, tokens, scores, encoder_output, policy)
            routings += new
        return self.dropout(x), routings
