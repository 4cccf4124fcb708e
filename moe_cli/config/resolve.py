"""Derives open settings of a configuration, and removes settings without effect, with a note.

A setting without effect in the configuration (a router for a dense model, a drop rule without a capacity) is removed,
so that equal trainings have equal digests and a grid contains each model once. A note reports a removed setting that
the user gave. `moe_cli.config.resolve_sparse` resolves the settings of the experts.
"""

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from moe_cli.config.data import TOKENIZERS, CorpusConfig, DataConfig, HubConfig, ImageData, MovieLensConfig, is_local
from moe_cli.config.ignored_settings import Notes
from moe_cli.config.loggers import loggers_of
from moe_cli.config.model import ModelConfig, T5Config, TransformerConfig, ViTConfig
from moe_cli.config.probes import ProbeConfig
from moe_cli.config.resolve_sparse import resolve_sparse, top_k, with_moe_layers, without_experts
from moe_cli.config.schema import RunConfig
from moe_cli.config.settings import Settings, default_of, replace_group, replace_unchecked
from moe_cli.config.tasks import RatingTask, SpanCorruption
from moe_cli.config.training import BUDGETS, DEFAULT_STEPS
from moe_cli.errors import ConfigError

Transformer = TypeVar("Transformer", bound=TransformerConfig)

# Defaults of task.l2_embedding. Ratings by people are noisier than synthetic ones, and need a larger weight.
DEFAULT_L2_SYNTHETIC, DEFAULT_L2_MOVIELENS = 0.1, 0.5


@dataclass(frozen=True)
class Resolved:
    config: RunConfig
    notes: tuple[str, ...]


def resolve(config: RunConfig, user_keys: Collection[str] = ()) -> Resolved:
    """Returns the configuration with every derived value filled in; `user_keys` are the settings that the user gave.

    Raises:
        ConfigError: the settings contradict each other.
    """
    loggers_of(config.log)
    notes, before = Notes(user_keys), config
    config = with_moe_layers(config, notes)
    config = replace_unchecked(config, k=top_k(config))
    config.check_choice()  # the derived k too, because widths and balance depend on it
    config = _with_shape(config, notes)
    config = without_experts(config, notes, before.k) if config.dense else resolve_sparse(config, notes, before.k)
    config = _with_training(config, notes)
    _check_changes(before, config)
    return Resolved(config, tuple(notes.lines))


def _check_changes(before: RunConfig, after: RunConfig) -> None:
    """Checks the groups of settings that have changed, then the whole configuration."""
    known = vars(before)
    for name, group in vars(after).items():
        if isinstance(group, Settings) and group is not known[name]:
            group.check_whole()
    after.check_whole()


def _with_shape(config: RunConfig, notes: Notes) -> RunConfig:
    """Derives settings of a model family from its sizes and the data."""
    if isinstance(config.model, ViTConfig):
        config = replace_unchecked(config, model=_with_patches(config, config.model, notes))
    if isinstance(config.data, ProbeConfig):
        config = replace_unchecked(config, model=_with_question(config, config.data, notes))
    if isinstance(config.model, TransformerConfig):
        config = replace_unchecked(config, model=_with_attention(config.model, notes))
    if isinstance(config.model, T5Config):
        heads = _num_heads(config.model)
        model = replace_unchecked(
            config.model, num_heads=heads, d_head=config.model.d_head or config.model.d_model // heads
        )
        model.check()
        config = replace_unchecked(config, model=model)
    if isinstance(config.task, RatingTask) and config.task.l2_embedding is None:
        default = DEFAULT_L2_MOVIELENS if isinstance(config.data, MovieLensConfig) else DEFAULT_L2_SYNTHETIC
        config = replace_group(config, "task", l2_embedding=default)
    if isinstance(config.task, SpanCorruption):
        config.task.check_sentinels(config.model.context_length)
    # A value that equals the default becomes null.
    length, stride = config.eval.context_length, config.eval.stride
    return replace_group(
        config,
        "eval",
        context_length=None if length == config.model.context_length else length,
        stride=None if stride == config.eval_length else stride,
    )


def _with_attention(model: Transformer, notes: Notes) -> Transformer:
    num_heads = _num_heads(model)
    model = replace_unchecked(
        model,
        num_heads=num_heads,
        num_kv_heads=model.num_kv_heads or num_heads,
        d_head=model.d_head or model.d_model // num_heads,
    )
    model.check()
    if model.kv_lora_rank is None:
        reason = "model.kv_lora_rank=null is plain attention"
        notes.ignored(reason, "model.q_lora_rank", "model.qk_rope_head_dim")
        model = replace_unchecked(model, q_lora_rank=None, qk_rope_head_dim=None)
    else:
        reason = "model.kv_lora_rank is latent attention"
        notes.ignored(reason, "model.num_kv_heads", "model.qk_norm", "model.qkv_bias")
        model = replace_unchecked(
            model,
            num_kv_heads=num_heads,
            qk_norm=False,
            qkv_bias=False,
            qk_rope_head_dim=model.qk_rope_head_dim or max(2, (model.d_head or 0) // 4 * 2),
        )
    if model.sliding_window is not None and model.sliding_window >= model.context_length:
        notes.ignored(f"model.context_length={model.context_length} is within the window", "model.sliding_window")
        model = replace_unchecked(model, sliding_window=None)
    if model.attention_dropout == model.dropout:
        model = replace_unchecked(model, attention_dropout=None)
    if model.position_encoding == "learned":
        model = replace_unchecked(model, rope_base=default_of(model, "rope_base"))
        model = replace_unchecked(model, rope_scaling="none")
        ignored = ("model.rope_base", "model.rope_scaling", *_ROPE)
        notes.ignored("model.position_encoding=learned has no rotation", *ignored)
    if not model.qk_norm:
        notes.ignored("there is no norm of queries and keys", "model.qk_norm_weights")
        model = replace_unchecked(model, qk_norm_weights="none")
    if model.ngrams == 1:
        notes.ignored("model.ngrams=1 has no table", "model.ngram_rows")
        model = replace_unchecked(model, ngram_rows=default_of(model, "ngram_rows"))
    return _with_rope_scaling(model, notes)


_ROPE = ("model.rope_factor", "model.rope_original_context", "model.rope_mscale_all_dim")


def _with_rope_scaling(model: Transformer, notes: Notes) -> Transformer:
    """Derives the context before its extension, and removes settings that the kind of scaling does not read."""
    if model.rope_factor == 1 and model.rope_scaling != "none":
        notes.ignored("model.rope_factor=1 extends nothing", "model.rope_scaling", *_ROPE[1:])
        model = replace_unchecked(model, rope_scaling="none", rope_factor=None, rope_original_context=None)
        return replace_unchecked(model, rope_mscale_all_dim=None)
    if model.rope_scaling == "none":
        if model.position_encoding == "rope":
            notes.ignored("model.rope_scaling=none extends nothing", *_ROPE)
        return replace_unchecked(model, rope_factor=None, rope_original_context=None, rope_mscale_all_dim=None)
    if model.rope_scaling != "yarn" or model.kv_lora_rank is None:
        notes.ignored("it needs model.rope_scaling=yarn and model.kv_lora_rank", _ROPE[2])
        model = replace_unchecked(model, rope_mscale_all_dim=None)
    if model.rope_scaling == "linear":
        notes.ignored("model.rope_scaling=linear does not read it", "model.rope_original_context")
        return replace_unchecked(model, rope_original_context=None)
    derived = max(1, round(model.context_length / (model.rope_factor or 1)))
    return replace_unchecked(model, rope_original_context=model.rope_original_context or derived)


def _with_patches(config: RunConfig, model: ViTConfig, notes: Notes) -> ViTConfig:
    """Sets the number of positions to the number of patches of an image."""
    assert isinstance(config.data, ImageData)
    size = config.data.image_size
    if size % model.patch_size:
        raise ConfigError(
            f"model.patch_size={model.patch_size} does not divide the side of images of {size} x {size} pixels. Use a "
            f"divisor of {size}."
        )
    num_patches = (size // model.patch_size) ** 2
    if "model.context_length" in notes.user_keys and model.context_length != num_patches:
        raise ConfigError(
            f"model.context_length={model.context_length}: images of {size} x {size} pixels have {num_patches} "
            "patches. Set model.patch_size."
        )
    return replace_unchecked(model, context_length=num_patches)


def _with_question(config: RunConfig, data: ProbeConfig, notes: Notes) -> ModelConfig:
    """Sets the number of positions to that of a question."""
    length = config.model.context_length
    if "model.context_length" in notes.user_keys and length != data.context_length:
        raise ConfigError(
            f"model.context_length={length}: of each question of data={data.name} a model reads {data.context_length} "
            "tokens. Leave model.context_length out."
        )
    return replace_unchecked(config.model, context_length=data.context_length)


def _num_heads(model: TransformerConfig | T5Config) -> int:
    return model.num_heads if model.num_heads is not None else default_num_heads(model.d_model)


def default_num_heads(d_model: int) -> int:
    """Returns the number of heads of width 32, or of the next even width that divides d_model."""
    return next((heads for heads in range(d_model // 32, 1, -1) if d_model % (2 * heads) == 0), 1)


def _with_training(config: RunConfig, notes: Notes) -> RunConfig:
    optim, train, data = config.optim, config.train, config.data
    if optim.schedule == "wsd" and optim.decay_fraction is None:
        optim = replace_unchecked(optim, decay_fraction=round(min(0.6, 1 - optim.warmup_fraction), 12))
    if optim.schedule == "wsd" and optim.decay_fraction == 0:
        optim = replace_unchecked(optim, schedule="constant", decay_fraction=None)
    if optim.schedule != "wsd" and optim.decay_fraction is not None:
        optim = replace_unchecked(optim, decay_fraction=None)
        notes.ignored(f"optim.schedule={optim.schedule} has no plateau", "optim.decay_fraction")
    if optim.schedule == "constant":
        optim = replace_unchecked(optim, min_lr_ratio=None)
        notes.ignored("optim.schedule=constant has no decay", "optim.min_lr_ratio")
    elif optim.min_lr_ratio == 1:
        optim = replace_unchecked(optim, schedule="constant", decay_fraction=None, min_lr_ratio=None)
        notes.ignored("optim.min_lr_ratio=1 is a constant rate", "optim.schedule", "optim.decay_fraction")
    elif optim.warmup_fraction == 1:
        optim = replace_unchecked(optim, schedule="constant", min_lr_ratio=None)
        notes.ignored("optim.warmup_fraction=1 leaves no time to decay", "optim.schedule", "optim.min_lr_ratio")
    elif optim.min_lr_ratio is None:
        optim = replace_unchecked(optim, min_lr_ratio=0.02)
    if optim.ema_decay == 0:
        optim = replace_unchecked(optim, ema_decay=None)
        notes.ignored("a decay of 0 averages nothing", "optim.ema_decay")
    if all(getattr(train, budget) is None for budget in BUDGETS):
        train = replace_unchecked(train, steps=DEFAULT_STEPS)
    return replace_unchecked(config, optim=optim, train=train, data=_with_paths(_with_tokenizer(data, notes)))


def _with_tokenizer(data: DataConfig, notes: Notes) -> DataConfig:
    if not isinstance(data, CorpusConfig) or data.tokenizer == "bpe":
        return data
    notes.ignored(f"data.tokenizer={data.tokenizer} has its own vocabulary", "data.bpe_vocab")
    return replace_unchecked(data, bpe_vocab=None)


def _with_paths(data: DataConfig) -> DataConfig:
    """Makes paths absolute, so that the run finds its data from any working directory, and sorts patterns."""
    path: str | None = getattr(data, "path", None)
    if exclude := getattr(data, "exclude", ()):
        data = replace_unchecked(data, exclude=tuple(sorted(set(exclude))))
    if path is not None and not (isinstance(data, HubConfig) and not is_local(path)):
        data = replace_unchecked(data, path=_absolute(path))
    if isinstance(data, CorpusConfig) and data.tokenizer not in TOKENIZERS:
        data = replace_unchecked(data, tokenizer=_absolute(data.tokenizer))
    return data


def _absolute(text: str) -> str:
    """Returns the absolute path. The name of a link is kept, because it gives the kind of the file."""
    path = Path(os.path.expanduser(text))
    if ".." not in path.parts:
        return os.path.abspath(path)
    # Only the file system knows which folder .. is behind a link.
    return str(path.resolve() if path.name == ".." else path.parent.resolve() / path.name)
