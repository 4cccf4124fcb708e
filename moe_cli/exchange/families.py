"""The names that families of Hugging Face models give to what a run names: one table for both directions.

A family is chosen by the settings of a run, or by `model_type` of a config.json. `settings` maps our names to theirs,
value by value; `fixed` are their settings that only one value of ours corresponds to. `layer` maps the tensors of a
layer: ours has the rows of theirs, one below the other; `{e}` runs over the experts. A family is thus a table, and what
no line of it can express is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Tensors outside the layers, and the prefix of those of layer i.
TOP = {
    "embedding.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}
THEIR_LAYER = "model.layers.{i}."
# The epsilon of torch's RMSNorm without one, in float32.
DEFAULT_EPS = 1.1920928955078125e-07

_DENSE = {"ffn.w_in": ("mlp.gate_proj.weight", "mlp.up_proj.weight"), "ffn.w_out": ("mlp.down_proj.weight",)}
_BLOCK = {
    "attention_norm.weight": ("input_layernorm.weight",),
    "ffn_norm.weight": ("post_attention_layernorm.weight",),
    "attention.out.weight": ("self_attn.o_proj.weight",),
}
_QKV = tuple(f"self_attn.{letter}_proj" for letter in "qkv")
_ATTENTION = {
    **_BLOCK,
    "attention.qkv.weight": tuple(f"{name}.weight" for name in _QKV),
    "attention.qkv.bias": tuple(f"{name}.bias" for name in _QKV),
    "attention.q_norm.weight": ("self_attn.q_norm.weight",),
    "attention.k_norm.weight": ("self_attn.k_norm.weight",),
}
_LATENT = {
    **_BLOCK,
    "attention.q_down.weight": ("self_attn.q_a_proj.weight",),
    "attention.q_norm.weight": ("self_attn.q_a_layernorm.weight",),
    "attention.kv_down.weight": ("self_attn.kv_a_proj_with_mqa.weight",),
    "attention.kv_norm.weight": ("self_attn.kv_a_layernorm.weight",),
    "attention.kv_up.weight": ("self_attn.kv_b_proj.weight",),
}
_EXPERTS = {
    "ffn.router.gate.weight": ("mlp.gate.weight",),
    "ffn.experts.w_in": ("mlp.experts.{e}.gate_proj.weight", "mlp.experts.{e}.up_proj.weight"),
    "ffn.experts.w_out": ("mlp.experts.{e}.down_proj.weight",),
}
_MIXTRAL_EXPERTS = {
    "ffn.router.gate.weight": ("block_sparse_moe.gate.weight",),
    "ffn.experts.w_in": ("block_sparse_moe.experts.{e}.w1.weight", "block_sparse_moe.experts.{e}.w3.weight"),
    "ffn.experts.w_out": ("block_sparse_moe.experts.{e}.w2.weight",),
}
# The names of one tensor for all experts, as memory has them since transformers 5.
FUSED = {"ffn.experts.w_in": "experts.gate_up_proj", "ffn.experts.w_out": "experts.down_proj"}

_SETTINGS = {
    "model.d_model": "hidden_size",
    "model.num_layers": "num_hidden_layers",
    "model.num_heads": "num_attention_heads",
    "model.context_length": "max_position_embeddings",
    "model.activation": "hidden_act",
    "model.norm_eps": "rms_norm_eps",
    "model.tie_embeddings": "tie_word_embeddings",
}
_KV_HEADS = {"model.num_kv_heads": "num_key_value_heads"}
_HEADS = {**_KV_HEADS, "model.d_head": "head_dim"}
_SPARSE = {"k": "num_experts_per_tok", "router.renormalise": "norm_topk_prob"}
_DEFAULTS = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "num_key_value_heads": None,
    "head_dim": None,
    "norm_topk_prob": False,
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
    "sliding_window": None,
    "clip_qkv": None,
    "partial_rotary_factor": 1.0,
}
# Of all families.
_FIXED = {"partial_rotary_factor": 1.0}


@dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        title: its name for people.
        settings: their name of each of our settings.
        ours: our settings that the family implies.
        fixed: their settings with the one value that is like ours.
        defaults: the values of their settings that a config.json may lack.
        layer: their tensors of each of our tensors in a layer.
        has_unit_norms: whether they have weights of query and key norms that a run may lack; they are then 1.
    """

    model_type: str
    architecture: str
    title: str
    settings: Mapping[str, str]
    layer: Mapping[str, tuple[str, ...]]
    ours: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    has_unit_norms: bool = False

    @property
    def is_sparse(self) -> bool:
        return "expert" in self.settings

    def default(self, name: str) -> Any:
        """Returns the value of their setting that a config.json lacks. Raises KeyError if it must be there."""
        return {**_DEFAULTS, **self.defaults}[name]

    def fixed_values(self) -> dict[str, Any]:
        return {**_FIXED, **self.fixed}


_NO_QK_NORM = {"model.qk_norm": False}
_HEAD_NORM = {"model.qk_norm": True, "model.qk_norm_weights": "head"}
_QWEN_FIXED = {"attention_bias": False, "use_sliding_window": False}
_QWEN_EXPERTS = {"expert": "num_experts", "model.d_expert": "moe_intermediate_size", "model.d_ff": "intermediate_size"}

QWEN3_MOE = Family(
    "qwen3_moe",
    "Qwen3MoeForCausalLM",
    "Qwen3-MoE",
    {**_SETTINGS, **_HEADS, **_SPARSE, **_QWEN_EXPERTS},
    {**_ATTENTION, **_DENSE, **_EXPERTS},
    {**_HEAD_NORM, "router": "topk"},
    _QWEN_FIXED,
    has_unit_norms=True,
)
QWEN2_MOE = Family(
    "qwen2_moe",
    "Qwen2MoeForCausalLM",
    "Qwen2-MoE",
    {**_SETTINGS, **_KV_HEADS, **_SPARSE, **_QWEN_EXPERTS, "model.qkv_bias": "qkv_bias"},
    {
        **_ATTENTION,
        **_DENSE,
        **_EXPERTS,
        "ffn.shared_experts.w_in": ("mlp.shared_expert.gate_proj.weight", "mlp.shared_expert.up_proj.weight"),
        "ffn.shared_experts.w_out": ("mlp.shared_expert.down_proj.weight",),
        "ffn.shared_gate.weight": ("mlp.shared_expert_gate.weight",),
    },
    {**_NO_QK_NORM, "router": "topk", "model.shared_gate": True},
    {"use_sliding_window": False},
    {"qkv_bias": True},
)
OLMOE = Family(
    "olmoe",
    "OlmoeForCausalLM",
    "OLMoE",
    {**_SETTINGS, **_KV_HEADS, **_SPARSE, "expert": "num_experts", "model.d_expert": "intermediate_size"},
    {**_ATTENTION, **_EXPERTS},
    {"model.qk_norm": True, "model.qk_norm_weights": "full", "router": "topk"},
    {"attention_bias": False, "clip_qkv": None},
    {"rms_norm_eps": 1e-5},
)
MIXTRAL = Family(
    "mixtral",
    "MixtralForCausalLM",
    "Mixtral",
    {
        **_SETTINGS,
        **_HEADS,
        "k": "num_experts_per_tok",
        "expert": "num_local_experts",
        "model.d_expert": "intermediate_size",
    },
    {**_ATTENTION, **_MIXTRAL_EXPERTS},
    {**_NO_QK_NORM, "router": "topk", "router.renormalise": True},
    {"sliding_window": None},
    {"rms_norm_eps": 1e-5, "rope_theta": 1e6, "num_local_experts": 8, "num_experts_per_tok": 2},
)
DEEPSEEK_V3 = Family(
    "deepseek_v3",
    "DeepseekV3ForCausalLM",
    "DeepSeek-V3",
    {
        **_SETTINGS,
        **_SPARSE,
        "expert": "n_routed_experts",
        "model.d_expert": "moe_intermediate_size",
        "model.d_ff": "intermediate_size",
        "model.d_head": "qk_nope_head_dim",
        "model.kv_lora_rank": "kv_lora_rank",
        "model.q_lora_rank": "q_lora_rank",
        "model.qk_rope_head_dim": "qk_rope_head_dim",
        "model.shared_experts": "n_shared_experts",
        "model.first_k_dense": "first_k_dense_replace",
        "router.scale": "routed_scaling_factor",
        "router.groups": "n_group",
        "router.top_groups": "topk_group",
    },
    {
        **_LATENT,
        "attention.q_up.weight": ("self_attn.q_b_proj.weight",),
        **_DENSE,
        **_EXPERTS,
        "ffn.router.expert_bias": ("mlp.gate.e_score_correction_bias",),
        "ffn.shared_experts.w_in": ("mlp.shared_experts.gate_proj.weight", "mlp.shared_experts.up_proj.weight"),
        "ffn.shared_experts.w_out": ("mlp.shared_experts.down_proj.weight",),
    },
    {"router": "sigmoid"},
    {"attention_bias": False},
    {"rope_interleave": True, "q_lora_rank": None, "norm_topk_prob": True, "n_group": 1, "topk_group": 1},
)
_DENSE_SETTINGS = {**_SETTINGS, **_HEADS, "model.d_ff": "intermediate_size"}
QWEN3 = Family(
    "qwen3",
    "Qwen3ForCausalLM",
    "Qwen3",
    _DENSE_SETTINGS,
    {**_ATTENTION, **_DENSE},
    _HEAD_NORM,
    _QWEN_FIXED,
    {"head_dim": 128},
    has_unit_norms=True,
)
QWEN2 = Family(
    "qwen2",
    "Qwen2ForCausalLM",
    "Qwen2",
    {**_SETTINGS, **_KV_HEADS, "model.d_ff": "intermediate_size"},
    {**_ATTENTION, **_DENSE},
    {**_NO_QK_NORM, "model.qkv_bias": True},
    {"use_sliding_window": False},
)
LLAMA = Family(
    "llama",
    "LlamaForCausalLM",
    "Llama",
    _DENSE_SETTINGS,
    {**_ATTENTION, **_DENSE},
    _NO_QK_NORM,
    {"attention_bias": False, "mlp_bias": False},
)
FAMILIES = {
    family.model_type: family for family in (QWEN3_MOE, QWEN2_MOE, OLMOE, MIXTRAL, DEEPSEEK_V3, QWEN3, QWEN2, LLAMA)
}
