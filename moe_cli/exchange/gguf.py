"""How does llama.cpp name the settings, the tensors and the tokenizer of a run? Families: Qwen3-MoE, Qwen3, Llama.

Names are those that llama.cpp's own converter writes. What its graph of a family fixes must be so in the run.
E experts, F hidden width, D width.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from moe_cli.config.model import TransformerConfig
from moe_cli.config.ranges import format_setting
from moe_cli.config.schema import RunConfig
from moe_cli.data.bpe import SubwordTokenizer, byte_alphabet
from moe_cli.data.tokenizers import ByteTokenizer, Tokenizer
from moe_cli.errors import ConfigError
from moe_cli.exchange.families import DEFAULT_EPS, LLAMA, QWEN3, QWEN3_MOE, Family
from moe_cli.exchange.settings import choose_family, renormalises
from moe_cli.exchange.tensors import EXPERT_BIAS, Shapes, ones, read_range, row_heights
from moe_cli.files.gguf_file import Value
from moe_cli.files.tensor_file import NewTensor, Values

ARCHITECTURES = {QWEN3_MOE.model_type: "qwen3moe", QWEN3.model_type: "qwen3", LLAMA.model_type: "llama"}
# The version of its quantised types, which every file names.
QUANTISATION_VERSION = 2
NORMAL, CONTROL, UNUSED = 1, 3, 5
_TOP = {"embedding.weight": "token_embd", "norm.weight": "output_norm", "head.weight": "output"}
# Their tensors of each of ours in a layer; ours has the rows of theirs, one below the other.
_LAYER = {
    "attention_norm.weight": ("attn_norm",),
    "attention.qkv.weight": ("attn_q", "attn_k", "attn_v"),
    "attention.q_norm.weight": ("attn_q_norm",),
    "attention.k_norm.weight": ("attn_k_norm",),
    "attention.out.weight": ("attn_output",),
    "ffn_norm.weight": ("ffn_norm",),
    "ffn.w_in": ("ffn_gate", "ffn_up"),
    "ffn.w_out": ("ffn_down",),
    "ffn.router.gate.weight": ("ffn_gate_inp",),
    "ffn.experts.w_in": ("ffn_gate_exps", "ffn_up_exps"),
    "ffn.experts.w_out": ("ffn_down_exps",),
}
Read = Callable[[str, int, int], Values]


def choose_architecture(config: RunConfig) -> str:
    """Returns llama.cpp's name of the model of a run. Raises ConfigError, which names a setting without counterpart."""
    family = choose_family(config)
    model = config.model
    assert isinstance(model, TransformerConfig)
    if family.model_type not in ARCHITECTURES:
        raise ConfigError(
            f"a file .gguf holds Qwen3-MoE, Qwen3 or Llama, and this run is {family.title}. "
            "Export a folder, and convert it with llama.cpp."
        )
    if family.is_sparse and config.k == 1 and not renormalises(config):
        raise ConfigError(
            f"k=1 has weights below 1, and llama.cpp's {family.title} makes weights sum to 1. Exportable: k=2 or more."
        )
    needed: list[tuple[str, Any, Any]] = [("model.activation", model.activation, "silu")]
    if model.rope_scaling != "linear":
        needed.append(("model.rope_scaling", model.rope_scaling, "none"))
    if family.is_sparse:
        needed.append(("router.renormalise", renormalises(config), True))
        needed.append(("model.first_k_dense", model.first_k_dense, 0))
        needed.append(("model.moe_layer_freq", model.moe_layer_freq, 1))
        needed.append(("model.moe_layers", model.moe_layers, None))
    for key, value, only in needed:
        if value != only:
            raise ConfigError(
                f"{key}={format_setting(value)} has no counterpart in llama.cpp's {family.title}, "
                f"which has {key}={format_setting(only)}."
            )
    return ARCHITECTURES[family.model_type]


def metadata_of(config: RunConfig, name: str, vocab_size: int, is_half: bool) -> dict[str, Value]:
    """Returns the metadata of the model, without those of the tokenizer.

    Args:
        name: a name for people.
    """
    model, family = config.model, choose_family(config)
    assert isinstance(model, TransformerConfig)
    assert model.num_heads
    assert model.num_kv_heads
    assert model.d_head
    values: dict[str, Value] = {
        "block_count": model.num_layers,
        "context_length": model.context_length,
        "embedding_length": model.d_model,
        "feed_forward_length": model.d_ff,
        "vocab_size": vocab_size,
        "attention.head_count": model.num_heads,
        "attention.head_count_kv": model.num_kv_heads,
        "attention.key_length": model.d_head,
        "attention.value_length": model.d_head,
        "attention.layer_norm_rms_epsilon": DEFAULT_EPS if model.norm_eps is None else model.norm_eps,
        "rope.dimension_count": model.d_head,
        "rope.freq_base": float(model.rope_base),
    }
    if model.rope_scaling == "linear":
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(model.rope_factor or 1)}
    if family.is_sparse:
        assert model.d_expert
        values |= {"expert_count": config.expert, "expert_used_count": config.eval.k or config.k or 1}
        values |= {"expert_feed_forward_length": model.d_expert}
    architecture = ARCHITECTURES[family.model_type]
    return {
        "general.architecture": architecture,
        "general.type": "model",
        "general.name": name,
        "general.file_type": int(is_half),
        "general.quantization_version": QUANTISATION_VERSION,
        **{f"{architecture}.{key}": value for key, value in values.items()},
    }


def tokenizer_metadata(tokenizer: Tokenizer | None, vocab_size: int) -> dict[str, Value]:
    """Returns the metadata of a tokenizer; for one that llama.cpp cannot have, those of none."""
    found = _bpe_of(tokenizer)
    if tokenizer is None or found is None:
        return {"tokenizer.ggml.model": "none"}
    vocab, merges = found
    tokens, types = [f"[PAD{index}]" for index in range(vocab_size)], [UNUSED] * vocab_size
    for token, index in vocab.items():
        tokens[index], types[index] = token, NORMAL
    if isinstance(tokenizer, SubwordTokenizer):
        types[tokenizer.separator] = CONTROL
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": tokenizer.separator,
        "tokenizer.ggml.eos_token_id": tokenizer.separator,
        "tokenizer.ggml.add_bos_token": False,
    }


def _bpe_of(tokenizer: Tokenizer | None) -> tuple[dict[str, int], list[str]] | None:
    """Returns vocabulary and merges of a tokenizer that splits text as GPT-2's; None for any other."""
    if isinstance(tokenizer, ByteTokenizer):
        return {sign: byte[0] for sign, byte in byte_alphabet().items()}, []
    if not isinstance(tokenizer, SubwordTokenizer):
        return None
    content: Mapping[str, Any] = json.loads(tokenizer.json)
    split, model = content.get("pre_tokenizer") or {}, content["model"]
    wanted = {"type": "ByteLevel", "add_prefix_space": False}
    is_like_gpt2 = (
        wanted.items() <= split.items()
        and split.get("use_regex", True)
        and model.get("type") == "BPE"
        and not any(content.get(key) for key in ("normalizer", "post_processor"))
        and not any(model.get(key) for key in ("byte_fallback", "ignore_merges", "continuing_subword_prefix"))
    )
    if not is_like_gpt2:
        return None
    added = {token["content"]: token["id"] for token in content.get("added_tokens") or []}
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    return {**model["vocab"], **added}, merges


def gguf_tensors(config: RunConfig, shapes: Shapes, read: Read) -> Iterator[NewTensor]:
    """Yields the tensors to write.

    Args:
        shapes: those of the run's tensors, by their names.
        read: returns `count` values from `first` of a tensor of ours: read(name, first, count).
    """
    family, model = choose_family(config), config.model
    assert isinstance(model, TransformerConfig)
    for name, shape in shapes.items():
        if name in _TOP:
            yield NewTensor(f"{_TOP[name]}.weight", shape, partial(read_range, read, name, 0, math.prod(shape)))
            continue
        _, layer, local = name.split(".", 2)
        if local == EXPERT_BIAS:
            if read(name, 0, math.prod(shape)).any():
                raise ConfigError(f"{name} has learned biases of experts, which llama.cpp's {family.title} lacks.")
            continue
        yield from _layer_tensors(config, family, f"blk.{layer}.", (name, local, shape), read)
    if family.has_unit_norms and model.qk_norm_weights == "none":
        width = (model.d_head or 1,)
        for index in range(model.num_layers):
            for letter in "qk":
                yield NewTensor(f"blk.{index}.attn_{letter}_norm.weight", width, partial(ones, width))


def _layer_tensors(
    config: RunConfig, family: Family, prefix: str, ours: tuple[str, str, tuple[int, ...]], read: Read
) -> Iterator[NewTensor]:
    """Yields the tensors that a tensor of ours, (name, name in its layer, shape), consists of."""
    model = config.model
    assert isinstance(model, TransformerConfig)
    name, local, shape = ours
    theirs = _LAYER[local]
    stacks, height, row = (shape[0] if len(shape) == 3 else 1), shape[-2] if len(shape) > 1 else 1, shape[-1]
    first = 0
    for their, part in zip(theirs, row_heights(config, local, height, len(theirs)), strict=True):
        starts = [(stack * height + first) * row for stack in range(stacks)]
        of_shape = (part, row) if len(shape) == 2 else (stacks, part, row) if len(shape) == 3 else shape
        chunks = partial(_ranges, read, name, starts, part * row)
        if family is LLAMA and their in ("attn_q", "attn_k"):
            chunks = partial(_interleaved, read, name, starts[0], (part, model.d_head or 1, row))
        yield NewTensor(f"{prefix}{their}.weight", of_shape, chunks)
        first += part


def _ranges(read: Read, name: str, starts: list[int], count: int) -> Iterator[Values]:
    for start in starts:
        yield from read_range(read, name, start, count)


def _interleaved(read: Read, name: str, first: int, size: tuple[int, int, int]) -> Iterator[Values]:
    """Yields the rows of each head with those of a rotated pair next to each other, as llama.cpp's Llama has them."""
    rows, d_head, row = size
    for head in range(rows // d_head):
        values = read(name, first + head * d_head * row, d_head * row).reshape(2, d_head // 2, row)
        yield values.swapaxes(0, 1).reshape(-1)


def halved_names(tensors: list[NewTensor]) -> set[str]:
    """Returns the tensors that a file of float16 has in float16: matrices, but for gates, whose choice is delicate."""
    return {tensor.name for tensor in tensors if len(tensor.shape) > 1 and "ffn_gate_inp" not in tensor.name}
