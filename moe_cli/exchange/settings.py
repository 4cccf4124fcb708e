"""Translates the settings of a run to a config.json of a family, and those of a foreign config.json back.

What one side cannot express is refused in a line that names the setting and its value.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from moe_cli.config.build import flatten_dict
from moe_cli.config.ranges import format_setting
from moe_cli.config.routers import SigmoidConfig, SwitchConfig, TopKConfig
from moe_cli.config.schema import RunConfig
from moe_cli.errors import ConfigError
from moe_cli.exchange.families import (
    DEEPSEEK_V3,
    DEFAULT_EPS,
    FAMILIES,
    LLAMA,
    MIXTRAL,
    OLMOE,
    QWEN2,
    QWEN2_MOE,
    QWEN3,
    QWEN3_MOE,
    Family,
)
from moe_cli.formatting import foreign_name

# The values that every family needs.
_NEEDED = {
    "model.name": "gpt",
    "task.name": "causal_lm",
    "model.position_encoding": "rope",
    "model.norm": "rms",
    "model.ffn_type": "glu",
    "model.sliding_window": None,
    "model.logit_softcap": None,
    "model.ngrams": 1,
    "router.score": "linear",
    "router.temperature": 1.0,
    "router.null_experts": 0,
}
MAX_LAYERS = 10_000
# Our names of their activations.
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "relu": "relu", "relu2": "relu2"}
# Scalings of rotary positions, and their keys that YaRN may have, with the values that are ours.
_YARN_FIXED = {
    "beta_fast": (32, None),
    "beta_slow": (1, None),
    "attention_factor": (None,),
    "truncate": (None, True),
}
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}


def choose_family(config: RunConfig) -> Family:
    """Returns the family with the settings of a run. Raises ConfigError, which names a setting that has no place."""
    flat = _flat(config)
    for key, needed in _NEEDED.items():
        if key in flat and flat[key] != needed:
            raise _refused(flat, key, f"{_name(key)}={format_setting(needed)}")
    _check_lists(flat)
    family = _dense_family(flat) if config.dense else _sparse_family(config, flat)
    for key, needed in family.ours.items():
        if key == "model.qkv_bias" or (key == "model.qk_norm_weights" and family.has_unit_norms):
            continue
        if key in flat and flat[key] != needed:
            raise _refused(flat, key, f"{key}={format_setting(needed)}")
    if "model.qkv_bias" not in {*family.settings, *family.ours} and flat["model.qkv_bias"]:
        raise _refused(flat, "model.qkv_bias", "model.qkv_bias=false, or with router=topk model.shared_gate=true")
    square = flat["model.num_heads"] * flat["model.d_head"] == flat["model.d_model"]
    if "model.d_head" not in family.settings and not square:
        wanted = flat["model.d_model"] / flat["model.num_heads"]
        raise _refused(flat, "model.d_head", f"model.d_head={wanted:g}" if wanted % 1 == 0 else "another num_heads")
    if family is LLAMA and flat["model.d_model"] % flat["model.num_heads"]:
        raise _refused(flat, "model.num_heads", f"a divisor of model.d_model={flat['model.d_model']}")
    return family


def _check_lists(flat: Mapping[str, Any]) -> None:
    """Raises ConfigError for a k for each layer, and for a width for each expert."""
    for key, one in (("k", "one k for all layers, such as k=2"), ("model.d_expert", "one width for all experts")):
        if isinstance(flat[key], list):
            raise _refused(flat, key, one)


def _dense_family(flat: Mapping[str, Any]) -> Family:
    if flat["model.kv_lora_rank"] is not None:
        raise _refused(flat, "model.kv_lora_rank", "with expert=1 model.kv_lora_rank=null")
    if flat["model.qk_norm"]:
        if flat["model.qk_norm_weights"] == "full":
            raise _refused(flat, "model.qk_norm_weights", "with expert=1 model.qk_norm_weights=head or none")
        return QWEN3
    return QWEN2 if flat["model.qkv_bias"] else LLAMA


def _sparse_family(config: RunConfig, flat: Mapping[str, Any]) -> Family:
    if isinstance(config.router, SigmoidConfig):
        _check_sigmoid(config, flat)
        return DEEPSEEK_V3
    if not isinstance(config.router, TopKConfig | SwitchConfig):
        raise _refused(flat, "router.name", "router=topk, router=switch, or router=sigmoid with latent attention")
    if flat["model.kv_lora_rank"] is not None:
        raise _refused(flat, "model.kv_lora_rank", "with router=topk model.kv_lora_rank=null, or router=sigmoid")
    return _softmax_family(config, flat)


def _check_sigmoid(config: RunConfig, flat: Mapping[str, Any]) -> None:
    """Raises ConfigError for a model with router=sigmoid that is no DeepSeek-V3."""
    if flat["model.kv_lora_rank"] is None:
        raise _refused(flat, "model.kv_lora_rank", "with router=sigmoid a width (DeepSeek-V3), or router=topk")
    if flat["model.shared_gate"] and flat["model.shared_experts"]:
        raise _refused(flat, "model.shared_gate", "with router=sigmoid model.shared_gate=false")
    if flat["model.d_shared"] is not None:
        raise _refused(flat, "model.d_shared", "with router=sigmoid model.d_shared=null")
    if config.sparse_layers != tuple(range(config.sparse_layers[0], config.model.num_layers)):
        key = "model.moe_layer_freq" if config.model.moe_layers is None else "model.moe_layers"
        raise _refused(flat, key, "with router=sigmoid model.moe_layer_freq=1")


def _softmax_family(config: RunConfig, flat: Mapping[str, Any]) -> Family:
    """Returns the family of a model with plain attention and a softmax over experts. Raises ConfigError."""
    if flat["model.shared_experts"]:
        if not flat["model.shared_gate"]:
            raise _refused(flat, "model.shared_experts", "with router=topk 0, or model.shared_gate=true (Qwen2-MoE)")
        return QWEN2_MOE
    all_sparse = len(config.sparse_layers) == config.model.num_layers
    if flat["model.qk_norm_weights"] == "full":
        if not all_sparse:
            raise _refused(flat, "model.qk_norm_weights", "in a model with dense layers head or none")
        return OLMOE
    if flat["model.qk_norm"]:
        return QWEN3_MOE
    if all_sparse and renormalises(config):
        return MIXTRAL
    raise _refused(
        flat, "model.qk_norm", "with dense layers, or weights that do not sum to 1, model.qk_norm=true (Qwen3-MoE)"
    )


def renormalises(config: RunConfig) -> bool:
    """Returns whether the weights of the chosen experts are made to sum to 1."""
    router = config.router
    if isinstance(router, TopKConfig | SigmoidConfig):
        return min(config.k_values) > 1 if router.renormalise is None else router.renormalise
    return False


def _flat(config: RunConfig) -> dict[str, Any]:
    flat = flatten_dict(config.to_dict())
    return flat if not config.dense else {key: value for key, value in flat.items() if not key.startswith("router")}


def _name(key: str) -> str:
    return key.removesuffix(".name") if key in ("model.name", "task.name", "router.name") else key


def _refused(flat: Mapping[str, Any], key: str, instead: str) -> ConfigError:
    return ConfigError(
        f"{_name(key)}={format_setting(flat[key])} has no counterpart in the model families of Hugging Face. "
        f"Exportable: {instead}. A file .onnx takes most models."
    )


def to_their_config(config: RunConfig, family: Family, vocab_size: int) -> dict[str, Any]:
    """Returns the config.json of a run, with the keys that transformers 4 and 5 read."""
    flat = _flat(config)
    flat["router.renormalise"] = renormalises(config)
    flat["k"] = config.eval.k or config.k
    flat["model.norm_eps"] = DEFAULT_EPS if flat["model.norm_eps"] is None else flat["model.norm_eps"]
    theirs = {name: flat[key] for key, name in family.settings.items()}
    theirs |= family.fixed
    if "expert" in family.settings and "model.first_k_dense" not in family.settings and "model.d_ff" in family.settings:
        sparse = config.sparse_layers
        theirs["decoder_sparse_step"] = 1
        theirs["mlp_only_layers"] = [layer for layer in range(config.model.num_layers) if layer not in sparse]
    if family is QWEN2_MOE:
        theirs["shared_expert_intermediate_size"] = config.model.shared_width(flat["model.d_expert"])
    if family is DEEPSEEK_V3:
        theirs["first_k_dense_replace"] = config.sparse_layers[0]
        theirs["v_head_dim"] = flat["model.d_head"]
        theirs["rope_interleave"] = False
        theirs["num_key_value_heads"] = flat["model.num_heads"]
    # The grouped product of torch, which is the default of transformers, needs rows of a multiple of 16 bytes.
    aligned = flat["model.d_model"] % 4 == 0 and (flat["model.d_expert"] or 0) % 4 == 0
    if not config.dense and not aligned:
        theirs["experts_implementation"] = "eager"
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        **theirs,
        "vocab_size": vocab_size,
        **_their_rope(flat),
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "torch_dtype": "float32",
    }


def _their_rope(flat: Mapping[str, Any]) -> dict[str, Any]:
    scaling = flat["model.rope_scaling"]
    if scaling == "none":
        return {"rope_theta": flat["model.rope_base"], "rope_scaling": None}
    described = {"rope_type": scaling, "factor": flat["model.rope_factor"]}
    if scaling != "linear":
        described["original_max_position_embeddings"] = flat["model.rope_original_context"]
    if scaling == "llama3":
        described |= _LLAMA3
    if flat["model.rope_mscale_all_dim"] is not None:
        described |= dict.fromkeys(("mscale", "mscale_all_dim"), flat["model.rope_mscale_all_dim"])
    return {"rope_theta": flat["model.rope_base"], "rope_scaling": described}


class TheirConfig:
    """A config.json of another program: each value is asked for by name, and refusals name it.

    Raises:
        ConfigError: its family is unknown, or it needs code of its own.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values
        kind = values.get("model_type")
        if "auto_map" in values:
            raise ConfigError("config.json has auto_map, which names code to run. Such models are not imported.")
        if values.get("quantization_config") is not None:
            raise ConfigError("config.json has quantization_config: import the weights before they are quantised.")
        if not isinstance(kind, str) or kind not in FAMILIES:
            raise ConfigError(
                f"config.json has model_type={_shown(kind)}. Families that are read: {', '.join(FAMILIES)}."
            )
        self.family = FAMILIES[kind]

    def get(self, name: str) -> Any:
        """Returns a value, or the default of the family. Raises ConfigError if it has none."""
        spellings = {
            "num_experts": "num_local_experts",
            "num_local_experts": "num_experts",
            "n_routed_experts": "num_local_experts",
        }
        for spelling in (name, spellings.get(name, name)):
            if spelling in self.values:
                return self.values[spelling]
        try:
            return self.family.default(name)
        except KeyError:
            raise ConfigError(f"config.json has no {name}, which {self.family.title} needs.") from None

    def whole(self, name: str) -> int:
        """Returns a whole number of at least 1. Raises ConfigError for another value."""
        value = self.get(name)
        if type(value) is not int or not 1 <= value < 2**32:
            raise self.refused(name, value, "a whole number from 1 to 2^32 - 1")
        return value

    def refused(self, name: str, value: Any, instead: str) -> ConfigError:
        return ConfigError(f"config.json has {name}={_shown(value)}. This program takes {instead}.")


def _shown(value: Any) -> str:
    return foreign_name(format_setting(value))


def to_our_settings(theirs: TheirConfig) -> dict[str, Any]:
    """Returns the settings of a foreign config.json, by their dotted names. Raises ConfigError."""
    family = theirs.family
    _check_fixed(theirs)
    ours = {"model": "gpt", "match": "none", "balance": "none", **family.ours}
    if not family.is_sparse:
        ours["expert"] = 1
    for key, name in family.settings.items():
        ours[key] = value = theirs.get(name)
        if key != "model.activation" and not isinstance(value, int | float | None):  # no text, which may refer
            raise theirs.refused(name, value, "only numbers there")
    ours["model.vocab_size"] = theirs.whole("vocab_size")
    ours["model.context_length"] = theirs.whole("max_position_embeddings")
    ours["model.activation"] = _activation(theirs)
    _derive_heads(theirs, ours)
    ours |= dict(_rope(theirs))
    if "model.d_ff" not in ours:  # no layer is dense
        ours["model.d_ff"] = ours["model.d_expert"]
    if family is DEEPSEEK_V3:
        ours |= _deepseek(theirs)
    elif "model.d_ff" in family.settings and family.is_sparse:
        ours |= _sparse_layers(theirs)
    if family is QWEN2_MOE:
        ours |= _shared_experts(theirs)
    return ours


def _check_fixed(theirs: TheirConfig) -> None:
    """Raises ConfigError for a setting of theirs with a value other than the one that is like ours."""
    for name, needed in theirs.family.fixed_values().items():
        if (value := theirs.get(name)) != needed and not _is_idle(theirs, name, value):
            raise theirs.refused(name, value, f"only {name}={format_setting(needed)}")
    kinds = theirs.values.get("layer_types") or []
    if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
        raise theirs.refused("layer_types", kinds, "only full_attention")


def _is_idle(theirs: TheirConfig, name: str, value: Any) -> bool:
    """Returns whether a window is as long as the context, or off."""
    if name != "sliding_window" or type(value) not in (int, type(None), bool):
        return False
    return not value or value >= theirs.whole("max_position_embeddings")


def _activation(theirs: TheirConfig) -> str:
    value = theirs.get("hidden_act")
    if not isinstance(value, str) or value not in _ACTIVATIONS:
        raise theirs.refused("hidden_act", value, f"only {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[value]


def _derive_heads(theirs: TheirConfig, ours: dict[str, Any]) -> None:
    """Fills in the number and the width of heads where a config.json leaves them out."""
    heads, width = theirs.whole("num_attention_heads"), theirs.whole("hidden_size")
    if theirs.family is DEEPSEEK_V3:
        return
    if ours.get("model.num_kv_heads") is None:
        ours["model.num_kv_heads"] = heads
    if ours.get("model.d_head") is None:
        ours["model.d_head"] = width // heads
    head_dim = theirs.get("head_dim")
    if "model.d_head" not in theirs.family.settings and head_dim not in (None, width // heads):
        raise theirs.refused("head_dim", head_dim, f"for {theirs.family.title} only hidden_size / num_attention_heads")


def _rope(theirs: TheirConfig) -> Iterator[tuple[str, Any]]:
    """Yields the settings of rotary positions, in the spelling of transformers 4 or 5."""
    values = theirs.values
    described = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(described, Mapping):
        raise theirs.refused("rope_parameters", described, "a table of values there")
    default = theirs.family.defaults.get("rope_theta", 10_000.0)
    base = described.get("rope_theta", values.get("rope_theta", default))
    yield "model.rope_base", _number(theirs, "rope_theta", base)
    kind = described.get("rope_type", described.get("type", "default"))
    if kind == "default":
        return
    if kind not in ("linear", "yarn", "llama3"):
        raise theirs.refused("rope_type", kind, "default, linear, yarn and llama3")
    if described.get("partial_rotary_factor", 1.0) != 1.0:
        raise theirs.refused("partial_rotary_factor", described["partial_rotary_factor"], "1")
    yield "model.rope_scaling", kind
    yield "model.rope_factor", _number(theirs, "rope_scaling.factor", described.get("factor"))
    if kind == "linear":
        return
    fixed = _YARN_FIXED if kind == "yarn" else {name: (value,) for name, value in _LLAMA3.items()}
    for name, allowed in fixed.items():
        if not any(described.get(name) == value for value in allowed):
            raise theirs.refused(f"rope_scaling.{name}", described.get(name), f"{name}={format_setting(allowed[0])}")
    if kind == "yarn":
        yield from _mscale(theirs, described)
    original = described.get("original_max_position_embeddings", values.get("original_max_position_embeddings"))
    original = original or theirs.whole("max_position_embeddings")
    yield "model.rope_original_context", _number(theirs, "original_max_position_embeddings", original)


def _mscale(theirs: TheirConfig, described: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields the setting of YaRN's factor of scores. Raises ConfigError for values that ours has no place for."""
    scale, of_all = (described.get(name) for name in ("mscale", "mscale_all_dim"))
    if not of_all:
        if scale not in (None, 0, 1):
            raise theirs.refused("rope_scaling.mscale", scale, "without mscale_all_dim only mscale=1")
        return
    if theirs.family is not DEEPSEEK_V3 or scale != of_all:
        raise theirs.refused("rope_scaling.mscale_all_dim", of_all, "of DeepSeek-V3 mscale_all_dim=mscale, else 0")
    yield "model.rope_mscale_all_dim", _number(theirs, "rope_scaling.mscale_all_dim", of_all)


def has_interleaved_rotations(theirs: TheirConfig) -> bool:
    """Returns whether rotary pairs are next to each other, (0, 1), (2, 3), ..., where ours are half a head apart."""
    if theirs.family is not DEEPSEEK_V3:
        return False
    value = theirs.get("rope_interleave")
    if not isinstance(value, bool):
        raise theirs.refused("rope_interleave", value, "true or false")
    return value


def _number(theirs: TheirConfig, name: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise theirs.refused(name, value, "only numbers there")
    return value


def _sparse_layers(theirs: TheirConfig) -> dict[str, Any]:
    """Returns the settings that place the experts of Qwen's families. Raises ConfigError if there are none."""
    layers = theirs.whole("num_hidden_layers")
    step, dense = theirs.values.get("decoder_sparse_step", 1), theirs.values.get("mlp_only_layers") or []
    if layers > MAX_LAYERS:
        raise theirs.refused("num_hidden_layers", layers, f"at most {MAX_LAYERS:,} of them")
    if type(step) is not int or step < 1 or not isinstance(dense, list):
        raise theirs.refused("decoder_sparse_step", step, "a whole number of at least 1")
    sparse = [layer for layer in range(layers) if layer not in dense and (layer + 1) % step == 0]
    first = sparse[0] if sparse else 0
    every = sparse[1] - first if len(sparse) > 1 else max(1, first + 1)
    for freq in (every, 1):
        begin = -(-(first + 1) // freq) * freq - 1
        if sparse and sparse == list(range(begin, layers, freq)):
            return {"model.moe_layer_freq": freq, "model.first_k_dense": first if freq == 1 or first >= freq else 0}
    if not sparse:
        raise theirs.refused("mlp_only_layers", dense, "at least one layer with experts")
    return {"model.moe_layers": [layer + 1 for layer in sparse]}


def _deepseek(theirs: TheirConfig) -> dict[str, Any]:
    width = theirs.whole("qk_nope_head_dim")
    if (value := theirs.get("v_head_dim")) != width:
        raise theirs.refused("v_head_dim", value, f"only qk_nope_head_dim={width} there")
    if theirs.values.get("num_key_value_heads") not in (None, theirs.whole("num_attention_heads")):
        raise theirs.refused(
            "num_key_value_heads", theirs.values["num_key_value_heads"], "only num_attention_heads there"
        )
    if theirs.values.get("moe_layer_freq", 1) != 1:
        raise theirs.refused("moe_layer_freq", theirs.values["moe_layer_freq"], "for this family only 1")
    shared = theirs.values.get("n_shared_experts")
    return {"model.shared_experts": shared or 0, "model.num_kv_heads": None}


def _shared_experts(theirs: TheirConfig) -> dict[str, Any]:
    """Returns the settings of Qwen2-MoE's shared expert: several of a routed one's width, or one of its own."""
    width, one = theirs.whole("shared_expert_intermediate_size"), theirs.whole("moe_intermediate_size")
    return (
        {"model.shared_experts": 1, "model.d_shared": width} if width % one else {"model.shared_experts": width // one}
    )
