"""The parts of transformer blocks: attention with rotary positions, norms, and a dense or sparse feed-forward layer.

B sequences, L positions, P cached positions, D model width, N heads, W head width, V tokens.
"""

import math
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from moe_cli.config.model import ModelConfig, TransformerConfig
from moe_cli.config.ranges import format_setting
from moe_cli.config.schema import RunConfig
from moe_cli.errors import ConfigError
from moe_cli.models.decoding_cache import LayerCache
from moe_cli.models.norms import RMSNorm, rms_norm
from moe_cli.moe.experts import FeedForward, init_matrix
from moe_cli.moe.layer import MoELayer, make_sparse_layer
from moe_cli.moe.routing import Routing, RoutingPolicy
from moe_cli.moe.soft import SoftMoELayer
from moe_cli.moe.sparse_layer import SparseLayer

# Factor of the initial last matrix of every residual branch. With 0, and a zero head, the first prediction is uniform.
OUT_SCALE = 0.0
# Epsilon of the norms of latents, as in DeepSeek-V2 and V3.
LATENT_EPS = 1e-6
# Epsilon of LayerNorm with model.norm_eps=null.
LAYER_NORM_EPS = 1e-5
# Standard deviation of an initial embedding with a head of its own.
EMBEDDING_STD = 1.0
# The same for an embedding that is also the head, and for positions.
TIED_STD = 0.02

# True where the query (row) may attend to the key (column); P cached positions come first.
AttentionMask = Bool[Tensor, "#B 1 L PL"] | None


def attention_mask(
    length: int,
    causal: bool,
    window: int | None,
    mask: Bool[Tensor, "B L"] | None,
    documents: Int[Tensor, "B L"] | None,
    device: torch.device,
    num_cached: int = 0,
) -> AttentionMask:
    """Returns the attention mask; None if the causal flag of the attention kernel, or no mask, is enough.

    A position always attends to itself, so that the softmax of padding stays finite.

    Args:
        window: positions that a position attends to, itself included; on both sides in a model that is not causal.
        mask: False for padding.
        documents: document of each position; a position attends to positions of its own document only.
        num_cached: P, the number of cached positions; only without `mask` and `documents`.
    """
    total = num_cached + length
    is_trivial = num_cached == 0 or length == 1  # a square causal mask, or a single new position, which attends to all
    if mask is None and documents is None and is_trivial and (window is None or window >= total):
        return None
    positions = torch.arange(total, device=device)
    distance = positions[num_cached:, None] - positions[None, :]
    attn_mask = (distance >= 0 if causal else distance == distance) & (distance.abs() < (window or total))
    attn_mask = attn_mask[None]
    if mask is not None:
        attn_mask = attn_mask & mask[:, None, :]
    if documents is not None:
        attn_mask = attn_mask & (documents[:, :, None] == documents[:, None, :])
    return (attn_mask | (distance == 0)).unsqueeze(1)


# Rotations within the original context above which YaRN keeps a frequency, and below which it divides it.
YARN_FAST, YARN_SLOW = 32, 1
# The same for llama3, as in Llama 3.1 and 3.2.
LLAMA3_FAST, LLAMA3_SLOW = 4, 1


def rotary_rates(model: TransformerConfig, d_head: int) -> Float[Tensor, " pairs"]:
    """Returns the rotation per position of each pair of a head: base^(-2i/W), scaled by `model.rope_scaling`.

    `linear` divides all rates by the factor (arXiv:2306.15595). `yarn` divides the slow ones, keeps the fast ones, and
    interpolates between them by their index (arXiv:2309.00071, eq. 23); `llama3` does so by their rotations within the
    original context (`modeling_rope_utils` of transformers).
    """
    pairs = torch.arange(0, d_head, 2).double()
    rates = model.rope_base ** (-pairs / d_head)
    if model.rope_scaling == "none":
        return rates
    assert model.rope_factor
    if model.rope_scaling == "linear":
        return rates / model.rope_factor
    assert model.rope_original_context
    if model.rope_scaling == "llama3":
        rotations = model.rope_original_context * rates / (2 * math.pi)
        kept = ((rotations - LLAMA3_SLOW) / (LLAMA3_FAST - LLAMA3_SLOW)).clamp(0, 1)
        return rates * (kept + (1 - kept) / model.rope_factor)

    def pair_of(rotations: float) -> float:
        """Returns the index of the pair that turns this often within the original context."""
        wavelengths = model.rope_original_context / (2 * math.pi * rotations)  # type: ignore[operator]
        return d_head * math.log(wavelengths) / (2 * math.log(model.rope_base))

    first, last = max(0, math.floor(pair_of(YARN_FAST))), min(d_head - 1, math.ceil(pair_of(YARN_SLOW)))
    divided = ((pairs / 2 - first) / (last - first or 0.001)).clamp(0, 1)
    return rates * (1 - divided + divided / model.rope_factor)


def yarn_length(factor: float, mscale: float = 1.0) -> float:
    """Returns the factor by which YaRN lengthens queries and keys."""
    return 0.1 * mscale * math.log(factor) + 1


class Rotary(nn.Module):
    """Rotary positions (RoFormer, arXiv:2104.09864): rotates pair (i, i + W/2) of a head by position * rate.

    YaRN also lengthens the rotated values (arXiv:2309.00071, eq. 22), unless `rope_mscale_all_dim` scales all scores.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, model: TransformerConfig, d_head: int) -> None:
        super().__init__()
        angles = torch.outer(torch.arange(model.context_length).double(), rotary_rates(model, d_head)).unsqueeze(1)
        is_lengthened = model.rope_scaling == "yarn" and model.rope_mscale_all_dim is None
        length = yarn_length(model.rope_factor or 1) if is_lengthened else 1.0
        cos, sin = (angles.cos() * length).float(), (angles.sin() * length).float()
        self.register_buffer("cos", torch.cat((cos, cos), -1), persistent=False)
        self.register_buffer("sin", torch.cat((-sin, sin), -1), persistent=False)

    def forward(self, x: Float[Tensor, "B L N W"], offset: int = 0) -> Float[Tensor, "B L N W"]:
        """Rotates the positions from `offset` to `offset` + L - 1."""
        cos, sin = (table[offset : offset + x.shape[1]] for table in (self.cos, self.sin))
        # Whole rows with their halves exchanged take less time on a CPU than halves of rows.
        return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def _is_narrowed(x: Tensor) -> bool:
    """Returns whether autocast computes in bfloat16 on a CPU."""
    return x.is_cpu and torch.is_autocast_enabled("cpu")


def attention_operand(x: Tensor) -> Tensor:
    """Returns values in the precision of attention: float32 instead of bfloat16 on a CPU under autocast."""
    return x.float() if x.dtype == torch.bfloat16 and _is_narrowed(x) else x


def attend(
    q: Float[Tensor, "B N L W"],
    k: Float[Tensor, "B M S W"],
    v: Float[Tensor, "B M S V"],
    attn_mask: Tensor | None,
    dropout: float,
    causal: bool = False,
) -> Float[Tensor, "B N L V"]:
    """Computes the attention of queries to keys and values, whose M heads N is a multiple of.

    On a CPU it computes in float32 under autocast too, because the backward pass of attention in bfloat16 takes four
    times as long (docs/benchmarks.md).

    Args:
        attn_mask: bool, or values that are added to the scores.
    """
    uses_gqa = q.shape[1] != k.shape[1]
    q, k, v = (attention_operand(rows) for rows in (q, k, v))
    if attn_mask is not None and attn_mask.is_floating_point():
        attn_mask = attn_mask.to(q.dtype)
    with torch.autocast("cpu", enabled=False) if _is_narrowed(q) else nullcontext():
        return F.scaled_dot_product_attention(q, k, v, attn_mask, dropout, causal, enable_gqa=uses_gqa)


class Attention(nn.Module):
    """Multi-head self-attention, optionally with normalised queries and keys (QK norm, arXiv:2302.05442).

    With fewer heads of keys and values than of queries, neighbouring query heads share one (GQA, arXiv:2305.13245).
    """

    def __init__(self, model: TransformerConfig) -> None:
        super().__init__()
        assert model.num_heads
        assert model.num_kv_heads
        assert model.d_head
        self.d_head, self.num_heads, self.num_kv_heads = model.d_head, model.num_heads, model.num_kv_heads
        widths = [heads * model.d_head for heads in (model.num_heads, model.num_kv_heads, model.num_kv_heads)]
        self.qk_norm, self.qk_norm_weights = model.qk_norm, model.qk_norm_weights
        self.norm_eps = model.norm_eps
        self.q_norm, self.k_norm = (_qk_norm(model, width) for width in widths[:2])
        self.dropout = attention_dropout(model)
        self.causal = model.causal
        self.qkv = nn.Linear(model.d_model, sum(widths), bias=model.qkv_bias)
        self.out = nn.Linear(widths[0], model.d_model, bias=False)
        rope = model.position_encoding == "rope"
        self.rotary = Rotary(model, model.d_head) if rope else None

    def reset_parameters(self, generator: torch.Generator | None, out_scale: float) -> None:
        init_matrix(self.qkv.weight, generator)
        if self.qkv.bias is not None:
            nn.init.zeros_(self.qkv.bias)
        init_matrix(self.out.weight, generator, out_scale)

    def forward(
        self, x: Float[Tensor, "B L D"], attn_mask: AttentionMask = None, layer_cache: LayerCache | None = None
    ) -> Float[Tensor, "B L D"]:
        """Computes the attention of each position to the positions in the mask, cached positions included."""
        rows = attention_operand(self.qkv(x)).unflatten(-1, (-1, self.d_head))
        qk, v = rows.split([self.num_heads + self.num_kv_heads, self.num_kv_heads], dim=2)
        if self.qk_norm:
            qk = self._normalise_qk(qk)
        offset = layer_cache.length if layer_cache else 0
        if self.rotary is not None:
            qk = self.rotary(qk, offset)
        q, k = qk.split([self.num_heads, self.num_kv_heads], dim=2)
        q, k, v = (heads.transpose(1, 2) for heads in (q, k, v))
        if layer_cache is not None:
            k, v = layer_cache.append(k, v)
        dropout = self.dropout if self.training else 0.0
        causal = self.causal and attn_mask is None and offset == 0
        y = attend(q, k, v, attn_mask, dropout, causal)
        return self.out(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _normalise_qk(self, qk: Float[Tensor, "B L NM W"]) -> Float[Tensor, "B L NM W"]:
        """Normalises queries and keys: each head or, with weights over all heads, all heads together."""
        if self.q_norm is None or self.k_norm is None:
            return rms_norm(qk, eps=self.norm_eps)
        q, k = qk.split([self.num_heads, self.num_kv_heads], dim=2)
        if self.qk_norm_weights == "full":
            q, k = (norm(heads.flatten(2)).view_as(heads) for norm, heads in ((self.q_norm, q), (self.k_norm, k)))
        else:
            q, k = self.q_norm(q), self.k_norm(k)
        return torch.cat((q, k), dim=2)


def _qk_norm(model: TransformerConfig, width: int) -> RMSNorm | None:
    """Builds the norm, with weights, of queries or keys of a width over all heads; None without weights."""
    if model.qk_norm_weights == "none":
        return None
    assert model.d_head
    return RMSNorm(model.d_head if model.qk_norm_weights == "head" else width, model.norm_eps)


class LatentAttention(nn.Module):
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1).

    Keys and values of all heads are computed from one latent vector of `kv_lora_rank` values, queries from one of
    `q_lora_rank` values. Positions are encoded in `qk_rope_head_dim` further values of each query, and in one key of
    that width that all heads share.
    """

    def __init__(self, model: TransformerConfig) -> None:
        super().__init__()
        assert model.num_heads
        assert model.d_head
        assert model.kv_lora_rank
        assert model.qk_rope_head_dim
        self.dropout = attention_dropout(model)
        self.causal = model.causal
        self.d_head, self.qk_rope_head_dim, self.kv_lora_rank = model.d_head, model.qk_rope_head_dim, model.kv_lora_rank
        width, heads = model.d_model, model.num_heads
        self.q_down = None if model.q_lora_rank is None else nn.Linear(width, model.q_lora_rank, bias=False)
        self.q_norm = None if model.q_lora_rank is None else RMSNorm(model.q_lora_rank, LATENT_EPS)
        self.q_up = nn.Linear(model.q_lora_rank or width, heads * (model.d_head + model.qk_rope_head_dim), bias=False)
        self.kv_down = nn.Linear(width, model.kv_lora_rank + model.qk_rope_head_dim, bias=False)
        self.kv_norm = RMSNorm(model.kv_lora_rank, LATENT_EPS)
        self.kv_up = nn.Linear(model.kv_lora_rank, heads * 2 * model.d_head, bias=False)
        self.out = nn.Linear(heads * model.d_head, width, bias=False)
        self.rotary = Rotary(model, model.qk_rope_head_dim)
        # Queries times this square scale the scores of whole heads.
        mscale = model.rope_mscale_all_dim
        self.score_scale = 1.0 if mscale is None else yarn_length(model.rope_factor or 1, mscale) ** 2

    def reset_parameters(self, generator: torch.Generator | None, out_scale: float) -> None:
        for linear in (self.q_down, self.q_up, self.kv_down, self.kv_up):
            if linear is not None:
                init_matrix(linear.weight, generator)
        init_matrix(self.out.weight, generator, out_scale)

    def forward(
        self, x: Float[Tensor, "B L D"], attn_mask: AttentionMask = None, layer_cache: LayerCache | None = None
    ) -> Float[Tensor, "B L D"]:
        """Computes the attention of each position to the positions in the mask; only latent vectors are cached."""
        queries = x if self.q_down is None or self.q_norm is None else self.q_norm(self.q_down(x))
        q = self.q_up(queries).unflatten(-1, (-1, self.d_head + self.qk_rope_head_dim))
        q_nope, q_rope = q.split([self.d_head, self.qk_rope_head_dim], dim=-1)
        latent, key = self.kv_down(x).split([self.kv_lora_rank, self.qk_rope_head_dim], dim=-1)
        offset = layer_cache.length if layer_cache else 0
        latent, key = self.kv_norm(latent), self.rotary(key.unsqueeze(2), offset).transpose(1, 2)
        if layer_cache is not None:
            latent, key = layer_cache.append(latent, key)
        k, v = self.kv_up(latent).unflatten(-1, (-1, 2 * self.d_head)).transpose(1, 2).chunk(2, dim=-1)
        q = torch.cat((q_nope, self.rotary(q_rope, offset)), dim=-1).transpose(1, 2)
        q = q if self.score_scale == 1 else q * self.score_scale
        k = torch.cat((k, key.expand(-1, k.shape[1], -1, -1)), dim=-1)
        dropout = self.dropout if self.training else 0.0
        causal = self.causal and attn_mask is None and offset == 0
        y = attend(q, k, v, attn_mask, dropout, causal)
        return self.out(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Block(nn.Module):
    """A pre-norm block: x + attention(norm x), then x + feed-forward(norm x), which is dense or sparse."""

    def __init__(self, config: RunConfig, sparse: bool, vocab_size: int) -> None:
        super().__init__()
        model = config.model
        assert isinstance(model, TransformerConfig)
        self.attention_norm = make_norm(model)
        self.attention = Attention(model) if model.kv_lora_rank is None else LatentAttention(model)
        self.ffn_norm = make_norm(model)
        self.ffn = sparse_layer_from_config(config, vocab_size) if sparse else make_dense_layer(model)
        self.dropout = nn.Dropout(model.dropout)

    def reset_parameters(self, generator: torch.Generator | None, out_scale: float) -> None:
        self.attention.reset_parameters(generator, out_scale)
        self.ffn.reset_parameters(generator, out_scale)

    def forward(
        self,
        x: Float[Tensor, "B L D"],
        token_ids: Int[Tensor, "B L"] | None = None,
        mask: Bool[Tensor, "B L"] | None = None,
        attn_mask: AttentionMask = None,
        layer_cache: LayerCache | None = None,
        policy: RoutingPolicy | None = None,
    ) -> tuple[Float[Tensor, "B L D"], list[Routing]]:
        """Returns the block's output, and a list of its routing, which is empty for a dense block.

        Args:
            mask: False for padding, which is not routed.
        """
        x = x + self.dropout(self.attention(self.attention_norm(x), attn_mask, layer_cache))
        y, routings = run_ffn(self.ffn, self.ffn_norm(x), token_ids, mask, policy)
        return x + self.dropout(y), routings


def run_ffn(
    ffn: nn.Module,
    x: Float[Tensor, "*batch D"],
    token_ids: Int[Tensor, "*batch"] | None = None,
    mask: Bool[Tensor, "*batch"] | None = None,
    policy: RoutingPolicy | None = None,
) -> tuple[Float[Tensor, "*batch D"], list[Routing]]:
    """Returns the output of a dense or sparse layer, and a list of its routing, which is empty for a dense layer."""
    if not isinstance(ffn, SparseLayer):
        return ffn(x), []
    y, routing = ffn(x, token_ids, mask, policy)
    return y, [routing]


def init_gpt2(model: nn.Module, std: float, expert_scale: float, num_layers: int, generator: torch.Generator) -> None:
    """Initialises matrices as in GPT-2: normal; the last matrix of each residual branch is divided by sqrt(2 layers).

    Gates and the embeddings of n-grams stay as they are.

    Args:
        std: standard deviation.
        expert_scale: factor of the variance of the routed experts' weights.
    """
    for name, param in model.named_parameters():
        if param.ndim >= 2 and ".router." not in name and not name.startswith("ngrams."):
            is_branch_output = name.endswith(("attention.out.weight", ".w_out"))
            scale = (2 * num_layers) ** -0.5 if is_branch_output else 1.0
            scale *= expert_scale**0.5 if ".experts." in name else 1.0
            nn.init.normal_(param, std=std * scale, generator=generator)


def init_embedding(embedding: nn.Module, head: nn.Linear | None, generator: torch.Generator) -> None:
    """Initialises an embedding; with a small standard deviation if it is also the head (`head` is None)."""
    std = TIED_STD if head is None else EMBEDDING_STD
    nn.init.normal_(embedding.get_parameter("weight"), std=std, generator=generator)


def output_logits(x: Float[Tensor, "B L D"], embedding: nn.Embedding, head: nn.Linear | None) -> Float[Tensor, "B L V"]:
    """Computes the logits of all tokens by the head or, if that is None, by the transposed embedding (tied)."""
    return F.linear(x, embedding.weight if head is None else head.weight)


def attention_dropout(model: TransformerConfig) -> float:
    return model.dropout if model.attention_dropout is None else model.attention_dropout


def make_norm(model: TransformerConfig) -> nn.Module:
    """Builds RMSNorm or LayerNorm, with one scale per value and without bias."""
    if model.norm == "rms":
        return RMSNorm(model.d_model, model.norm_eps)
    return nn.LayerNorm(model.d_model, LAYER_NORM_EPS if model.norm_eps is None else model.norm_eps, bias=False)


def make_dense_layer(model: ModelConfig) -> FeedForward:
    return FeedForward(model.d_model, model.d_ff, ffn_type=model.ffn_type, activation=model.activation)


def sparse_layer_from_config(config: RunConfig, vocab_size: int, causal: bool | None = None) -> MoELayer | SoftMoELayer:
    """Builds the sparse layer of a resolved configuration; `causal` is that of the model by default.

    Args:
        config: as the layer has it: see `RunConfig.at_layer`.

    Raises:
        ConfigError: a model of a plug-in builds a layer from the configuration of all layers.
    """
    model = config.model
    if isinstance(config.k, tuple):
        raise ConfigError(
            f"k={format_setting(config.k)}: model={model.name} gives all its layers one k. Give one number, or build "
            "its layers from config.at_layer(layer)."
        )
    assert config.router is not None
    assert config.k is not None
    assert model.d_expert is not None
    return make_sparse_layer(
        model.d_model,
        config.expert,
        config.k,
        model.d_expert,
        router=config.router,
        capacity_factor=config.capacity,
        drop=config.drop or "position",
        renormalise_after_drop=config.renormalise_after_drop,
        ffn_type=model.ffn_type,
        activation=model.activation,
        shared_experts=model.shared_experts,
        d_shared=model.d_shared,
        shared_gate=model.shared_gate,
        expert_dropout=model.expert_dropout,
        expert_init_scale=model.expert_init_scale,
        dispatch=model.dispatch,
        vocab_size=vocab_size,
        causal=model.causal if causal is None else causal,
    )
