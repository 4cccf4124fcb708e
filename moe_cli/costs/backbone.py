"""How much does a model cost without its feed-forward layers? One function per family, from the configuration alone.

A multiply-add counts as 2 FLOPs. D width, L positions, N heads, W head width, V tokens.
"""

from collections import Counter
from dataclasses import dataclass, field

from moe_cli.config.data import ImageData
from moe_cli.config.layer_costs import stack_input_lengths
from moe_cli.config.model import LSTMConfig, MMoEConfig, PluginModel, T5Config, TransformerConfig, ViTConfig
from moe_cli.config.schema import RunConfig
from moe_cli.errors import ConfigError

# An int64, such as a token id, counts as two 4-byte values.
FLOATS_PER_INT64 = 2


@dataclass(frozen=True)
class Backbone:
    """The cost of a model without its feed-forward layers and their gates.

    Attributes:
        num_params: trained parameters.
        matmul_params: parameters that every token is multiplied with; the others are looked up or added.
        flops_per_token: forward FLOPs of products without parameters, such as attention scores.
        saved_values_per_token: values that a forward pass saves for backward, without logits.
        logits_per_token: outputs of the head.
        matrices: number of matrices of each shape that Muon orthogonalises.
        embedding_params: the part of `num_params` in embeddings: tables of token ids and of positions, and the head,
            which has a row for each output. None means unknown.
        constant_input_flops: forward FLOPs per token of products whose input needs no gradient: data, or an initial
            state of zeros.
    """

    num_params: int
    matmul_params: float
    flops_per_token: int
    saved_values_per_token: float
    logits_per_token: float
    matrices: Counter[tuple[int, int]] = field(default_factory=Counter)
    constant_input_flops: float = 0
    embedding_params: int | None = None


def backbone_cost(config: RunConfig, vocab_size: int) -> Backbone:
    """Estimates the backbone of a resolved configuration."""
    model = config.model
    if isinstance(model, PluginModel) and (cost := model.backbone(vocab_size)):
        return Backbone(**cost)  # type: ignore[arg-type]
    if isinstance(model, LSTMConfig):
        return _lstm(model, vocab_size)
    if isinstance(model, ViTConfig):
        assert isinstance(config.data, ImageData)
        return _vit(model, config.data.channels, vocab_size)
    if isinstance(model, MMoEConfig):
        return _mmoe(model, vocab_size)
    if isinstance(model, T5Config):
        return _t5(model, stack_input_lengths(config), vocab_size)
    if not isinstance(model, TransformerConfig):
        raise ConfigError(f"model={model.name} states no cost: its settings need the method backbone(vocab_size).")
    return _transformer(model, vocab_size)


def _vit(model: ViTConfig, channels: int, num_classes: int) -> Backbone:
    """Returns the cost of a transformer's blocks, a patch projection, and a head once per image."""
    blocks = _transformer(model, 0)
    patches, head = model.patch_size**2 * channels * model.d_model, num_classes * model.d_model
    return Backbone(
        num_params=blocks.num_params + patches + head,
        matmul_params=blocks.matmul_params + patches + head / model.context_length,
        flops_per_token=blocks.flops_per_token,
        saved_values_per_token=blocks.saved_values_per_token - FLOATS_PER_INT64 + model.patch_size**2 * channels,
        logits_per_token=num_classes / model.context_length,
        matrices=blocks.matrices,
        constant_input_flops=2 * patches,
        embedding_params=(blocks.embedding_params or 0) + head,
    )


def _t5(model: T5Config, lengths: tuple[int, ...], vocab_size: int) -> Backbone:
    """Returns the cost of an encoder and a decoder that read M of L tokens each, per token of the L.

    Saved per token read: 2 D + 1 for each norm. Self-attention: 6 N W for queries, keys, values, scaled queries and
    keys, and the output; and N weights for each position. Attention to the encoder: 3 N W for queries and output, and
    2 N W per encoder token for keys and values.
    """
    encoder, decoder = (length / model.context_length for length in lengths)
    depth, width, heads = model.layers_per_stack, model.d_model, (model.num_heads or 1) * (model.d_head or 1)
    square = heads * width
    head = vocab_size * width
    embeddings = 2 * model.relative_attention_num_buckets * (model.num_heads or 1)
    embeddings += head * (1 if model.tie_embeddings else 2)
    attended = lengths[0] * encoder + lengths[1] * decoder + lengths[0] * decoder
    shapes = Counter([(heads, width), (2 * heads, width), (width, heads)] * 3 * depth)
    norm = 2 * width + 1
    saved = encoder * (2 * norm + 8 * heads) + decoder * (3 * norm + 9 * heads)
    saved += (model.num_heads or 1) * (lengths[0] * encoder + lengths[1] * decoder)
    return Backbone(
        num_params=depth * (3 * 4 * square + 5 * width) + 2 * width + embeddings,
        matmul_params=depth * square * 6 * (encoder + decoder) + decoder * head,
        flops_per_token=round(depth * 4 * heads * attended),
        saved_values_per_token=round(
            FLOATS_PER_INT64 * (encoder + decoder) + depth * saved + norm * (encoder + decoder)
        ),
        logits_per_token=decoder * vocab_size,
        matrices=shapes,
        embedding_params=embeddings,
    )


def _lstm(model: LSTMConfig, vocab_size: int) -> Backbone:
    """Returns the cost of num_layers + 1 LSTMs, each with four gates over input and state and two biases.

    Saved per token and LSTM: 17 D by oneDNN (measured), and D for the sum with its input; D for a sigmoid's output.
    """
    width, number = model.d_model, model.num_layers + 1
    head = vocab_size * width
    embeddings = head * (1 if model.tie_embeddings else 2)
    products = number * 8 * width * width
    return Backbone(
        num_params=products + number * 8 * width + embeddings,
        matmul_params=products + head,
        flops_per_token=0,
        saved_values_per_token=FLOATS_PER_INT64
        + number * 18 * width
        + (model.num_layers * width if model.sigmoid else 0),
        logits_per_token=vocab_size,
        constant_input_flops=number * 8 * width * width / model.context_length,
        embedding_params=embeddings,
    )


def _mmoe(model: MMoEConfig, vocab_size: int) -> Backbone:
    """Returns the cost of embeddings of width D / 2, biases and factors, and of a tower and a bias per task.

    Saved per token (a pair has one per task): the input, the tower's input and hidden values, and the factors.
    """
    width, hidden, tasks = model.d_model, model.d_tower, model.num_tasks
    tower = width * hidden + hidden
    embeddings = vocab_size * (width // 2 + tasks * (1 + model.mf_dim))
    return Backbone(
        num_params=embeddings + tasks * (tower + hidden + 1),
        matmul_params=tower,
        flops_per_token=0,
        saved_values_per_token=FLOATS_PER_INT64 + 2 * width + hidden + 2 * model.mf_dim,
        logits_per_token=1,
        matrices=Counter({(hidden, width): tasks}),
        embedding_params=embeddings,
    )


def _transformer(model: TransformerConfig, vocab_size: int) -> Backbone:
    """Returns the cost of a transformer with embedding, norms and head.

    Saved per token by a norm: input, output and factor (2 D + 1), or two factors for LayerNorm. Saved by attention:
    queries, keys and values as multiplied (3 D), queries and keys after norm and rotation (2 D), the output (D), N
    sums, and 2 N factors of queries and keys.
    """
    width, layers, heads = model.d_model, model.num_layers, model.num_heads or 1
    shapes = _attention_shapes(model)
    queries, keys, outputs = _attention_widths(model)
    norms = (2 * layers + 1) * width + layers * (_latent_width(model) + _qk_norm_width(model))
    biases = layers * (queries + 2 * keys) if model.qkv_bias else 0
    positions = model.context_length * width if model.position_encoding == "learned" else 0
    head = vocab_size * width
    products = layers * sum(rows * columns for rows, columns in shapes)
    norm = 2 * width + (1 if model.norm == "rms" else 2)
    changes_queries = model.qk_norm or model.position_encoding == "rope"
    attention = queries + 2 * keys + outputs + (queries + keys if changes_queries else 0)
    attention += heads * (3 if model.qk_norm else 1)
    attention += queries + keys if model.qk_norm_weights != "none" else 0
    if model.kv_lora_rank:
        attention = (
            queries + keys + 3 * outputs + heads + 3 * _latent_width(model) + 2 + 2 * (model.qk_rope_head_dim or 0)
        )
    embeddings = positions + head * (1 if model.tie_embeddings else 2) + (model.ngrams - 1) * model.ngram_rows * width
    return Backbone(
        num_params=products + norms + biases + embeddings,
        matmul_params=products + head,
        flops_per_token=layers * 2 * model.context_length * (queries + outputs),
        saved_values_per_token=model.ngrams * FLOATS_PER_INT64 + layers * (2 * norm + attention) + norm,
        logits_per_token=vocab_size,
        matrices=Counter({shape: layers * number for shape, number in Counter(shapes).items()}),
        embedding_params=embeddings,
    )


def _attention_widths(model: TransformerConfig) -> tuple[int, int, int]:
    """Returns the widths of the queries, the keys and the output of a token, before the output projection."""
    num_heads, d_head = model.num_heads or 1, model.d_head or model.d_model // (model.num_heads or 1)
    rope_width = (model.qk_rope_head_dim or 0) if model.kv_lora_rank else 0
    queries = num_heads * (d_head + rope_width)
    keys = queries if model.kv_lora_rank else (model.num_kv_heads or num_heads) * d_head
    return queries, keys, num_heads * d_head


def _attention_shapes(model: TransformerConfig) -> list[tuple[int, int]]:
    """Returns the shapes (rows, columns) of the matrices of one attention layer."""
    width = model.d_model
    queries, keys, outputs = _attention_widths(model)
    if model.kv_lora_rank is None:
        return [(queries + 2 * keys, width), (width, queries)]
    shapes = [
        (queries, model.q_lora_rank or width),
        (model.kv_lora_rank + (model.qk_rope_head_dim or 0), width),
        (2 * outputs, model.kv_lora_rank),
        (width, outputs),
    ]
    return shapes if model.q_lora_rank is None else [(model.q_lora_rank, width), *shapes]


def _qk_norm_width(model: TransformerConfig) -> int:
    """Returns the number of trained weights of the norms of queries and keys of one attention layer."""
    queries, keys, _ = _attention_widths(model)
    return {"none": 0, "head": 2 * (model.d_head or 0), "full": queries + keys}[model.qk_norm_weights]


def _latent_width(model: TransformerConfig) -> int:
    """Returns the width of the latent vectors of one attention layer, which have norms; 0 without latent attention."""
    return (model.q_lora_rank or 0) + model.kv_lora_rank if model.kv_lora_rank else 0
