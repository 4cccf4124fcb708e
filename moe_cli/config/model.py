"""What a model can be: its shape, and the rules within it. One class for each family, told apart by `name`."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from moe_cli.config.ranges import above, at_least, share
from moe_cli.errors import ConfigError

DEFAULT_ROPE_BASE = 10_000.0


@dataclass(frozen=True)
class ModelConfig:
    """What all families share: layers of a width, of which every `moe_layer_freq`-th has a mixture of experts.

    Attributes:
        context_length: positions of one example: tokens of a window, patches of an image.
        vocab_size: rows of the embedding and the head; None: as many as the data have tokens.
    """

    # Whether a position sees only those before it, as a model that writes text must.
    causal: ClassVar[bool] = True
    # Gates of a sparse layer, for each of so many tasks one.
    num_tasks: ClassVar[int] = 1
    # Of equally many layers: an encoder and a decoder are two.
    stacks: ClassVar[int] = 1
    num_layers: int = 4
    d_model: int = 96
    d_ff: int = 288
    d_expert: int | None = None
    ffn_type: Literal["glu", "mlp"] = "glu"
    activation: Literal["silu", "gelu", "relu", "relu2"] = "silu"
    expert_dropout: float = 0.0
    expert_init_scale: float = 1.0
    shared_experts: int = 0
    shared_gate: bool = False
    moe_layer_freq: int = 1
    first_k_dense: int = 0
    context_length: int = 128
    vocab_size: int | None = None
    tie_embeddings: bool = False
    dropout: float = 0.0
    dispatch: Literal["auto", "loop", "grouped_mm", "einsum", "reference"] = "auto"

    def __post_init__(self) -> None:
        for key in ("num_layers", "d_model", "d_ff", "d_expert", "vocab_size", "moe_layer_freq", "context_length"):
            at_least(f"model.{key}", getattr(self, key), 1)
        at_least("model.shared_experts", self.shared_experts, 0)
        at_least("model.first_k_dense", self.first_k_dense, 0)
        share("model.dropout", self.dropout)
        share("model.expert_dropout", self.expert_dropout)
        above("model.expert_init_scale", self.expert_init_scale, 0)
        if self.moe_layer_freq > self.stack_layers:
            raise ConfigError(
                f"model.moe_layer_freq={self.moe_layer_freq} is more than {self._stack}: "
                "no layer would have experts. Use expert=1 for a dense model."
            )
        if not self.sparse_layers:
            raise ConfigError(
                f"model.first_k_dense={self.first_k_dense} leaves no layer of {self._stack} to experts. "
                "Use expert=1 for a dense model."
            )

    @property
    def stack_layers(self) -> int:
        """Layers that stand on one another."""
        return self.num_layers // self.stacks

    @property
    def _stack(self) -> str:
        return f"model.num_layers={self.num_layers}" + (f" over {self.stacks} stacks" if self.stacks > 1 else "")

    @property
    def sparse_layers(self) -> tuple[int, ...]:
        """The layers, from 0, that have experts: in each stack the last of every `moe_layer_freq`, after the first `first_k_dense`."""
        first = -(-(self.first_k_dense + 1) // self.moe_layer_freq) * self.moe_layer_freq - 1
        return tuple(
            stack * self.stack_layers + layer
            for stack in range(self.stacks)
            for layer in range(first, self.stack_layers, self.moe_layer_freq)
        )

    @property
    def matrices_per_expert(self) -> int:
        """3 for a gated network (gate, up, down), 2 for a plain one."""
        return 3 if self.ffn_type == "glu" else 2

    @property
    def shared_gate_params(self) -> int:
        return self.d_model if self.shared_gate else 0


@dataclass(frozen=True)
class TransformerConfig(ModelConfig):
    """Blocks of attention and a feed-forward network.

    Attributes:
        sliding_window: a position sees so many positions, itself the last (Longformer, arXiv:2004.05150); None: all.
        attention_dropout: share of the attention weights left out in training; None: as `dropout`.
        kv_lora_rank: keys and values come from so many values per token (latent attention, arXiv:2405.04434); None: plain.
        q_lora_rank: queries come from so many values; None: from all of the token. Only with kv_lora_rank.
        qk_rope_head_dim: values of a query and of a key that turn with the position, beside d_head that do not. Only with kv_lora_rank.
    """

    num_heads: int | None = None
    num_kv_heads: int | None = None
    d_head: int | None = None
    sliding_window: int | None = None
    attention_dropout: float | None = None
    kv_lora_rank: int | None = None
    q_lora_rank: int | None = None
    qk_rope_head_dim: int | None = None
    norm: Literal["rms", "layer"] = "rms"
    qk_norm: bool = True
    position_encoding: Literal["rope", "learned"] = "rope"
    rope_base: float = DEFAULT_ROPE_BASE
    logit_softcap: float | None = None
    init_std: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in (
            "num_heads",
            "num_kv_heads",
            "d_head",
            "sliding_window",
            "kv_lora_rank",
            "q_lora_rank",
            "qk_rope_head_dim",
        ):
            at_least(f"model.{key}", getattr(self, key), 1)
        above("model.logit_softcap", self.logit_softcap, 0)
        above("model.init_std", self.init_std, 0)
        above("model.rope_base", self.rope_base, 1)
        if self.attention_dropout is not None:
            share("model.attention_dropout", self.attention_dropout)
        if self.num_heads is not None:
            self._check_heads(self.num_heads)
        if self.kv_lora_rank is not None:
            self._check_latent()

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
        if self.d_model % num_heads:
            raise ConfigError(
                f"model.d_model={self.d_model} cannot be divided among model.num_heads={num_heads}: choose a multiple."
            )
        if self.d_model // num_heads % 2 and self.position_encoding == "rope":
            raise ConfigError(
                f"model.d_model={self.d_model} over model.num_heads={num_heads} gives heads of odd width "
                f"{self.d_model // num_heads}: rotary positions need an even width."
            )

    def _check_latent(self) -> None:
        if self.position_encoding != "rope":
            raise ConfigError(
                f"model.kv_lora_rank={self.kv_lora_rank} keeps positions apart from what is compressed: "
                "it needs model.position_encoding=rope."
            )
        if self.qk_rope_head_dim is not None and self.qk_rope_head_dim % 2:
            raise ConfigError(
                f"model.qk_rope_head_dim={self.qk_rope_head_dim} is odd: rotary positions need an even width."
            )


@dataclass(frozen=True)
class GPTConfig(TransformerConfig):
    """A decoder-only transformer: it guesses the next token."""

    name: Literal["gpt"] = "gpt"


@dataclass(frozen=True)
class BERTConfig(TransformerConfig):
    """An encoder: every position sees all others, and what was masked is guessed (arXiv:1810.04805)."""

    causal: ClassVar[bool] = False
    name: Literal["bert"] = "bert"


@dataclass(frozen=True)
class ViTConfig(TransformerConfig):
    """A vision transformer (arXiv:2010.11929): patches of an image are its tokens, and their mean tells the class.

    Attributes:
        patch_size: pixels to a side of a patch; `context_length`, how many there are, follows from it and the data.
    """

    causal: ClassVar[bool] = False
    name: Literal["vit"] = "vit"
    patch_size: int = 2
    position_encoding: Literal["rope", "learned"] = "learned"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("model.patch_size", self.patch_size, 1)
        if self.tie_embeddings:
            raise ConfigError("model.tie_embeddings=true: a model of images has no embedding to share. Leave it out.")


@dataclass(frozen=True)
class LSTMConfig(ModelConfig):
    """LSTM layers with feed-forward layers between them (arXiv:1701.06538, appendix C); one LSTM more than `num_layers`.

    Attributes:
        sigmoid: what a feed-forward layer answers goes through a sigmoid.
    """

    name: Literal["lstm"] = "lstm"
    num_layers: int = 1
    d_model: int = 128
    d_ff: int = 512
    ffn_type: Literal["glu", "mlp"] = "mlp"
    activation: Literal["silu", "gelu", "relu", "relu2"] = "relu"
    sigmoid: bool = True


@dataclass(frozen=True)
class MMoEConfig(ModelConfig):
    """Experts shared by two tasks, a gate and a tower for each (MMoE, doi 10.1145/3219819.3220007).

    Attributes:
        d_model: width of the embeddings of a user and of an item together, half of it each.
        d_tower: width of a tower's hidden layer.
        mf_dim: of a user and of an item, for each task, whose product is added to its answer (matrix factorisation); 0: none.
        context_length: what is routed of one example: the pair, once for each task.
    """

    causal: ClassVar[bool] = False
    num_tasks: ClassVar[int] = 2
    name: Literal["mmoe"] = "mmoe"
    num_layers: int = 1
    d_model: int = 64
    d_ff: int = 256
    d_tower: int = 32
    mf_dim: int = 16
    dropout: float = 0.1
    context_length: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("model.d_tower", self.d_tower, 1)
        at_least("model.mf_dim", self.mf_dim, 0)
        if self.d_model % 2:
            raise ConfigError(f"model.d_model={self.d_model} is odd: users and items have half of it each.")
        if self.context_length != self.num_tasks:
            raise ConfigError(
                f"model.context_length={self.context_length}: a pair of user and item is routed {self.num_tasks} times, "
                "once for each task. Leave it out."
            )
        if self.tie_embeddings:
            raise ConfigError(
                "model.tie_embeddings=true: a model of ratings has no head over its embedding. Leave it out."
            )


@dataclass(frozen=True)
class T5Config(ModelConfig):
    """An encoder, and a decoder that looks at what the encoder made of the text (T5, arXiv:1910.10683, section 2.1).

    Attributes:
        num_layers: of both together, half of them in each.
        context_length: tokens of a window before spans are taken out of it.
        relative_attention_num_buckets: distances between positions that attention tells apart, with a bias for each and each head.
        relative_attention_max_distance: from here on all fall in one.
    """

    stacks: ClassVar[int] = 2
    name: Literal["t5"] = "t5"
    num_heads: int | None = None
    d_head: int | None = None
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    moe_layer_freq: int = 2

    def __post_init__(self) -> None:
        if self.num_layers % 2:
            raise ConfigError(
                f"model.num_layers={self.num_layers} is odd: half are of the encoder, half of the decoder."
            )
        super().__post_init__()
        at_least("model.num_heads", self.num_heads, 1)
        at_least("model.d_head", self.d_head, 1)
        at_least("model.relative_attention_num_buckets", self.relative_attention_num_buckets, 4)
        if self.relative_attention_num_buckets % 4:
            raise ConfigError(
                f"model.relative_attention_num_buckets={self.relative_attention_num_buckets} must be a multiple of 4: half are of each side."
            )
        if self.relative_attention_max_distance <= self.relative_attention_num_buckets // 2:
            raise ConfigError(
                f"model.relative_attention_max_distance={self.relative_attention_max_distance} must be above half of model.relative_attention_num_buckets={self.relative_attention_num_buckets}: "
                "so many near distances have a bucket each."
            )
        if self.num_heads is not None and self.d_head is None and self.d_model % self.num_heads:
            raise ConfigError(
                f"model.d_model={self.d_model} cannot be divided among model.num_heads={self.num_heads}: choose a multiple."
            )


AnyModel = GPTConfig | BERTConfig | LSTMConfig | ViTConfig | T5Config | MMoEConfig
