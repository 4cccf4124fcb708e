"""Settings of the model: one class for each family, selected by `name`, with the rules between its settings."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from moe_cli.config.ranges import check_divisible, format_setting
from moe_cli.config.settings import PluginSettings, Settings, setting
from moe_cli.errors import ConfigError

MAX_WIDTH = 2**20


@dataclass(frozen=True)
class LayersConfig(Settings):
    """Settings of all families: layers of one width; every `moe_layer_freq`-th has a mixture of experts.

    Attributes:
        context_length: positions of one example: tokens of a window, patches of an image.
        vocab_size: rows of the embedding and the head; None means the number of token ids of the data.
        d_expert: hidden width of an expert; a list has one width for each expert.
        moe_layers: the layers with experts, counted from 1; of an encoder and a decoder, those of the decoder come
            after. None means that moe_layer_freq and first_k_dense place them.
        d_shared: hidden width of one shared expert; None means d_expert.
    """

    group: ClassVar[str] = "model"
    # Whether a position attends only to itself and earlier positions. Models that generate text must be causal.
    causal: ClassVar[bool] = True
    # Number of gates of a sparse layer: one per task.
    num_tasks: ClassVar[int] = 1
    # Number of equally deep stacks: an encoder and a decoder are two.
    stacks: ClassVar[int] = 1
    num_layers: int = setting(at_least=1, at_most=10_000)
    d_model: int = setting(at_least=1, at_most=MAX_WIDTH)
    d_ff: int = setting(at_least=1, at_most=2**24)
    d_expert: int | tuple[int, ...] | None = setting(at_least=1, at_most=2**24)
    ffn_type: Literal["glu", "mlp"] = setting()
    activation: Literal["silu", "gelu", "relu", "relu2"] = setting()
    expert_dropout: float = setting(fraction=True)
    expert_init_scale: float = setting(above=0)
    shared_experts: int = setting(at_least=0, at_most=2**16)
    d_shared: int | None = setting(at_least=1, at_most=2**24)
    shared_gate: bool = setting()
    moe_layer_freq: int = setting(at_least=1)
    first_k_dense: int = setting(at_least=0)
    moe_layers: tuple[int, ...] | None = setting(at_least=1, at_most=10_000)
    context_length: int = setting(at_least=1, at_most=2**24)
    vocab_size: int | None = setting(at_least=1, at_most=2**32)
    dropout: float = setting(fraction=True)
    dispatch: Literal["auto", "loop", "grouped_mm", "einsum", "reference"] = setting()

    def check(self) -> None:
        if self.moe_layers is not None:
            self._check_moe_layers(self.moe_layers)
            return
        if self.moe_layer_freq > self.layers_per_stack:
            raise ConfigError(
                f"model.moe_layer_freq={self.moe_layer_freq} is more than {self._stack}: "
                "no layer would have experts. Use expert=1 for a dense model."
            )
        if not self.sparse_layers:
            raise ConfigError(
                f"model.first_k_dense={self.first_k_dense} leaves no layer of {self._stack} to experts. "
                "Use expert=1 for a dense model."
            )

    def _check_moe_layers(self, layers: tuple[int, ...]) -> None:
        shown = f"model.moe_layers={format_setting(layers)}"
        if not layers:
            raise ConfigError(f"{shown} leaves no layer to experts. Use expert=1 for a dense model.")
        if max(layers) > self.num_layers:
            raise ConfigError(f"{shown}: layers count from 1 to model.num_layers={self.num_layers}.")
        if len(set(layers)) < len(layers):
            raise ConfigError(f"{shown} names a layer twice.")

    @property
    def layers_per_stack(self) -> int:
        """Returns the number of layers per stack."""
        return self.num_layers // self.stacks

    @property
    def _stack(self) -> str:
        return f"model.num_layers={self.num_layers}" + (f" over {self.stacks} stacks" if self.stacks > 1 else "")

    @property
    def sparse_layers(self) -> tuple[int, ...]:
        """Returns the layers, from 0, with experts.

        They are those of `moe_layers`; or, in each stack, the last of every `moe_layer_freq`, after the first
        `first_k_dense`.
        """
        if self.moe_layers is not None:
            return tuple(sorted(layer - 1 for layer in self.moe_layers))
        first = -(-(self.first_k_dense + 1) // self.moe_layer_freq) * self.moe_layer_freq - 1
        return tuple(
            stack * self.layers_per_stack + layer
            for stack in range(self.stacks)
            for layer in range(first, self.layers_per_stack, self.moe_layer_freq)
        )

    @property
    def matrices_per_expert(self) -> int:
        """Returns 3 for a gated network (gate, up, down), 2 for a plain one."""
        return 3 if self.ffn_type == "glu" else 2

    def shared_width(self, d_expert: float) -> int:
        """Returns the hidden width of all shared experts of a layer together, which are one network."""
        return self.shared_experts * (self.d_shared or int(d_expert))

    @property
    def mean_d_expert(self) -> float:
        """Returns the mean width of the routed experts; 0 in a dense model."""
        widths = self.d_expert or 0
        return sum(widths) / len(widths) if isinstance(widths, tuple) else widths

    @property
    def block_width(self) -> int:
        """Returns the width of the networks that are computed: of an expert, or of the blocks of unequal experts."""
        widths = self.d_expert or 0
        return math.gcd(*widths) if isinstance(widths, tuple) else widths

    @property
    def blocks_per_expert(self) -> float:
        """Returns the mean number of blocks of an expert; 1 for experts of one width."""
        return self.mean_d_expert / self.block_width if isinstance(self.d_expert, tuple) else 1

    @property
    def shared_gate_params(self) -> int:
        return self.d_model if self.shared_gate else 0


@dataclass(frozen=True)
class TransformerConfig(LayersConfig):
    """Blocks of attention and a feed-forward network.

    Attributes:
        sliding_window: number of attended positions, including the current one (Longformer, arXiv:2004.05150); None
            means all.
        attention_dropout: fraction of the attention weights dropped in training; None means `dropout`.
        kv_lora_rank: width of the latent of keys and values (latent attention, arXiv:2405.04434); None means plain
            attention.
        q_lora_rank: width of the latent of the queries; None means no latent. Only with kv_lora_rank.
        qk_rope_head_dim: rotary dimensions of a head, in addition to d_head. Only with kv_lora_rank.
        ngrams: longest n-gram with an embedding (`moe_cli.models.ngrams`); 1 means that only tokens have one.
        ngram_rows: rows of the table of each length. Only with ngrams.
        norm_eps: epsilon of all norms but those of latents; None means torch's default.
        qk_norm_weights: `head` for one trained weight per value of a head; `full` for a norm, with weights, over all
            heads. Only with qk_norm.
        rope_factor: factor by which rope_scaling extends the context.
        rope_original_context: length of the context before its extension. Only with rope_scaling=yarn or llama3.
        rope_mscale_all_dim: m of the factor (0.1 m ln(rope_factor) + 1)^2 of all scores, in place of YaRN's of the
            rotary ones. Only with rope_scaling=yarn and kv_lora_rank.
    """

    num_heads: int | None = setting(at_least=1, at_most=2**16)
    num_kv_heads: int | None = setting(at_least=1, at_most=2**16)
    d_head: int | None = setting(at_least=1, at_most=MAX_WIDTH)
    sliding_window: int | None = setting(at_least=1)
    attention_dropout: float | None = setting(fraction=True)
    kv_lora_rank: int | None = setting(at_least=1, at_most=MAX_WIDTH)
    q_lora_rank: int | None = setting(at_least=1, at_most=MAX_WIDTH)
    qk_rope_head_dim: int | None = setting(at_least=1, at_most=MAX_WIDTH)
    ngrams: int = setting(at_least=1, at_most=16)
    ngram_rows: int = setting(at_least=1, at_most=2**24)
    tie_embeddings: bool = setting()
    norm: Literal["rms", "layer"] = setting()
    norm_eps: float | None = setting(above=0, at_most=1)
    qk_norm: bool = setting()
    qk_norm_weights: Literal["none", "head", "full"] = setting()
    qkv_bias: bool = setting()
    position_encoding: Literal["rope", "learned"] = setting()
    rope_base: float = setting(above=1)
    rope_scaling: Literal["none", "linear", "yarn", "llama3"] = setting()
    rope_factor: float | None = setting(at_least=1, at_most=1e6)
    rope_original_context: int | None = setting(at_least=1, at_most=2**24)
    rope_mscale_all_dim: float | None = setting(above=0, at_most=100)
    logit_softcap: float | None = setting(above=0)
    init_std: float | None = setting(above=0)

    def check(self) -> None:
        super().check()
        if self.num_heads is not None:
            self._check_heads(self.num_heads)
        if self.kv_lora_rank is not None:
            self._check_latent()
        if self.rope_scaling != "none" and self.rope_factor is None and self.position_encoding == "rope":
            raise ConfigError(f"model.rope_scaling={self.rope_scaling} needs a factor. Add: model.rope_factor=4")

    def _check_heads(self, num_heads: int) -> None:
        if self.num_kv_heads is not None and num_heads % self.num_kv_heads:
            raise ConfigError(
                f"model.num_heads={num_heads} cannot share model.num_kv_heads={self.num_kv_heads} evenly: "
                "choose a divisor."
            )
        if self.d_head is not None:
            if self.d_head % 2 and self.position_encoding == "rope":
                raise ConfigError(f"model.d_head={self.d_head} is odd: rotary positions need an even width.")
            return
        check_divisible("model.d_model", self.d_model, "model.num_heads", num_heads)
        if self.d_model // num_heads % 2 and self.position_encoding == "rope":
            raise ConfigError(
                f"model.d_model={self.d_model} over model.num_heads={num_heads} gives heads of odd width "
                f"{self.d_model // num_heads}: rotary positions need an even width."
            )

    def _check_latent(self) -> None:
        if self.position_encoding != "rope":
            raise ConfigError(
                f"model.kv_lora_rank={self.kv_lora_rank} separates positions from the compressed keys: "
                "it needs model.position_encoding=rope."
            )
        if self.qk_rope_head_dim is not None and self.qk_rope_head_dim % 2:
            raise ConfigError(
                f"model.qk_rope_head_dim={self.qk_rope_head_dim} is odd: rotary positions need an even width."
            )


@dataclass(frozen=True)
class GPTConfig(TransformerConfig):
    """A decoder-only transformer, which predicts the next token."""

    name: Literal["gpt"] = "gpt"


@dataclass(frozen=True)
class BERTConfig(TransformerConfig):
    """An encoder: every position attends to all others, and masked tokens are predicted (arXiv:1810.04805)."""

    causal: ClassVar[bool] = False
    name: Literal["bert"] = "bert"


@dataclass(frozen=True)
class ViTConfig(TransformerConfig):
    """A vision transformer (arXiv:2010.11929): the patches of an image are its tokens, and their mean gives the class.

    Attributes:
        patch_size: side of a patch in pixels; the number of patches, `context_length`, follows from it and the data.
    """

    causal: ClassVar[bool] = False
    name: Literal["vit"] = "vit"
    patch_size: int = setting(at_least=1)

    def check(self) -> None:
        super().check()
        if self.tie_embeddings:
            raise ConfigError("model.tie_embeddings=true: a model of images has no embedding to share. Leave it out.")
        if self.ngrams > 1:
            raise ConfigError(f"model.ngrams={self.ngrams}: a model of images has no tokens in a row. Leave it out.")


@dataclass(frozen=True)
class LSTMConfig(LayersConfig):
    """`num_layers` feed-forward layers between `num_layers` + 1 LSTM layers (arXiv:1701.06538, appendix C).

    Attributes:
        sigmoid: whether a sigmoid is applied to the output of a feed-forward layer.
    """

    name: Literal["lstm"] = "lstm"
    sigmoid: bool = setting()
    tie_embeddings: bool = setting()


@dataclass(frozen=True)
class MMoEConfig(LayersConfig):
    """Experts shared by two tasks, a gate and a tower for each (MMoE, doi 10.1145/3219819.3220007).

    Attributes:
        d_model: width of the embeddings of a user and of an item together, half of it each.
        d_tower: width of a tower's hidden layer.
        mf_dim: width of the factors of a user and an item, for each task, whose product is added to the output (matrix
            factorisation); 0 means none.
        context_length: the routed tokens of one example: the pair, once for each task.
    """

    causal: ClassVar[bool] = False
    num_tasks: ClassVar[int] = 2
    name: Literal["mmoe"] = "mmoe"
    d_tower: int = setting(at_least=1, at_most=MAX_WIDTH)
    mf_dim: int = setting(at_least=0, at_most=MAX_WIDTH)

    def check(self) -> None:
        super().check()
        if self.d_model % 2:
            raise ConfigError(f"model.d_model={self.d_model} is odd: users and items have half of it each.")
        if self.context_length != self.num_tasks:
            raise ConfigError(
                f"model.context_length={self.context_length}: a pair of user and item is routed {self.num_tasks} "
                "times, once for each task. Leave it out."
            )


@dataclass(frozen=True)
class T5Config(LayersConfig):
    """An encoder, and a decoder with cross-attention to the encoder's outputs (T5, arXiv:1910.10683, section 2.1).

    Attributes:
        num_layers: of both together, half of them in each.
        context_length: tokens of a window before spans are removed.
        relative_attention_num_buckets: number of distance buckets of attention, with a bias for each bucket and each
            head.
        relative_attention_max_distance: distances from here on share one bucket.
    """

    stacks: ClassVar[int] = 2
    name: Literal["t5"] = "t5"
    num_heads: int | None = setting(at_least=1, at_most=2**16)
    d_head: int | None = setting(at_least=1, at_most=MAX_WIDTH)
    relative_attention_num_buckets: int = setting(at_least=4, at_most=2**16)
    relative_attention_max_distance: int = setting()
    tie_embeddings: bool = setting()

    def check(self) -> None:
        if self.num_layers % 2:
            raise ConfigError(
                f"model.num_layers={self.num_layers} is odd: encoder and decoder have half of the layers each."
            )
        super().check()
        if self.relative_attention_num_buckets % 4:
            raise ConfigError(
                f"model.relative_attention_num_buckets={self.relative_attention_num_buckets} must be a multiple of "
                "4: each direction has half of them."
            )
        if self.relative_attention_max_distance <= self.relative_attention_num_buckets // 2:
            raise ConfigError(
                f"model.relative_attention_max_distance={self.relative_attention_max_distance} must be above half of "
                f"model.relative_attention_num_buckets={self.relative_attention_num_buckets}: "
                "each near distance has a bucket."
            )
        if self.num_heads is not None and self.d_head is None:
            check_divisible("model.d_model", self.d_model, "model.num_heads", self.num_heads)


@dataclass(frozen=True)
class PluginModel(PluginSettings, LayersConfig):
    """Base of the settings of a model of tokens that a plug-in brings. TransformerConfig may be the second base.

    Attributes:
        task: causal_lm or masked_lm.
        has_cache: whether `forward` takes a DecodingCache, with which text is sampled faster.
    """

    task: ClassVar[Literal["causal_lm", "masked_lm"]] = "causal_lm"
    has_cache: ClassVar[bool] = False
    name: str = ""

    def backbone(self, vocab_size: int) -> Mapping[str, float]:
        """Returns the cost without feed-forward layers and gates, by the names of `moe_cli.costs.backbone.Backbone`.

        With TransformerConfig as a base, {} means the cost of a transformer.
        """
        return {}


ModelConfig = GPTConfig | BERTConfig | LSTMConfig | ViTConfig | T5Config | MMoEConfig | PluginModel
