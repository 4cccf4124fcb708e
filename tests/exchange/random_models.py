"""Random small configurations of each family, and runs and folders with random weights."""

import random
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from moe_cli.config.compose import load_config
from moe_cli.config.schema import RunConfig
from moe_cli.models.registry import make_model
from moe_cli.runs.folder import Run, create_run
from moe_cli.training.checkpoint_writer import save_imported

LENGTH = 24
VOCAB = 256


def our_settings(family: str, seed: int) -> list[str]:  # noqa: C901  (a few lines for each family)
    """Settings of a random run that is exported as this family."""
    draw = random.Random(f"{family} {seed}")
    heads, width = draw.choice([(2, 8), (4, 8), (4, 6), (3, 10)])
    square = family in ("qwen2_moe", "olmoe", "qwen2", "llama")
    settings: dict[str, Any] = {
        "model.num_layers": draw.choice([1, 2, 3]),
        "model.num_heads": heads,
        "model.num_kv_heads": draw.choice([n for n in range(1, heads + 1) if heads % n == 0]),
        "model.d_head": width,
        "model.d_model": heads * width if square else heads * draw.choice([6, 8, 10]),
        "model.d_ff": draw.choice([24, 36]),
        "model.context_length": LENGTH,
        "model.activation": draw.choice(["silu", "gelu", "relu", "relu2"]),
        "model.tie_embeddings": draw.choice(["true", "false"]),
        "model.rope_base": draw.choice([100.0, 10000.0]),
        "model.norm_eps": draw.choice(["null", 1e-6, 1e-3]),
        "train.device": "cpu",
    }
    if draw.random() < 0.5 and family != "deepseek_v3":
        kind = draw.choice(["linear", "yarn", "llama3"])
        settings |= {"model.rope_scaling": kind, "model.rope_factor": draw.choice([2.0, 3.5])}
    experts = draw.choice([4, 6, 8])
    if family in ("qwen3", "qwen2", "llama"):
        settings |= {"expert": 1}
    else:
        settings |= {"expert": experts, "k": draw.choice([1, 2, 3]), "match": "none"}
        settings |= {"model.d_expert": draw.choice([5, 8, 12]), "balance": "none"}
    if family in ("qwen3_moe", "qwen2_moe"):
        dense_first = {"model.first_k_dense": draw.choice([0, settings["model.num_layers"] - 1])}
        settings |= draw.choice([dense_first, {"model.moe_layers": "[1]"}])
        settings |= {"router.renormalise": draw.choice(["true", "false"]) if settings["k"] > 1 else "false"}
    if family in ("qwen3_moe", "qwen3"):
        settings |= {"model.qk_norm_weights": draw.choice(["none", "head"])}
    if family == "olmoe":
        settings |= {"model.qk_norm_weights": "full", "router.renormalise": "false"}
    if family == "mixtral":
        settings |= {"model.qk_norm": "false", "k": draw.choice([2, 3])}
    if family in ("qwen2_moe", "qwen2", "llama"):
        settings |= {"model.qk_norm": "false"}
    if family == "qwen2_moe":
        settings |= {"model.shared_experts": draw.choice([1, 2]), "model.shared_gate": "true"}
        settings |= {"model.qkv_bias": draw.choice(["true", "false"])}
        settings |= {"model.d_shared": draw.choice(["null", 10])}
    if family == "qwen2":
        settings |= {"model.qkv_bias": "true"}
    if family == "deepseek_v3":
        del settings["model.num_kv_heads"]
        settings |= {"router": "sigmoid", "model.kv_lora_rank": 7, "model.q_lora_rank": draw.choice(["null", 9])}
        settings |= {"model.qk_rope_head_dim": draw.choice([2, 4]), "model.shared_experts": draw.choice([0, 1, 2])}
        settings |= {"router.scale": draw.choice([1.0, 2.5]), "model.d_head": draw.choice([6, 8])}
        settings |= {"router.renormalise": draw.choice(["true", "false"]) if settings["k"] > 1 else "false"}
        settings |= {"model.first_k_dense": draw.choice([0, settings["model.num_layers"] - 1])}
        if draw.random() < 0.5:
            settings |= {"model.rope_scaling": "yarn", "model.rope_factor": draw.choice([2.0, 40.0])}
            settings |= {"model.rope_mscale_all_dim": draw.choice(["null", 0.7, 1.0])}
        if experts == 8 and settings["k"] < 3:
            settings |= {"router.groups": 4, "router.top_groups": draw.choice([1, 2])}
    return [f"{key}={value}" for key, value in settings.items()]


def their_settings(family: str, seed: int) -> dict[str, Any]:
    """Arguments of the configuration class of a family of transformers."""
    draw = random.Random(f"their {family} {seed}")
    heads = draw.choice([2, 4])
    settings: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": heads * 8,
        "intermediate_size": draw.choice([20, 28]),
        "num_hidden_layers": draw.choice([1, 2]),
        "num_attention_heads": heads,
        "num_key_value_heads": draw.choice([1, heads]),
        "max_position_embeddings": LENGTH,
        "hidden_act": draw.choice(["silu", "gelu", "relu"]),
        "rms_norm_eps": draw.choice([1e-6, 1e-2]),
        "tie_word_embeddings": draw.choice([True, False]),
        "rope_parameters": {"rope_type": "default", "rope_theta": draw.choice([100.0, 10000.0])},
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
    }
    if family != "deepseek_v3" and draw.random() < 0.5:
        kind = draw.choice(["linear", "yarn", "llama3"])
        settings["rope_parameters"] = {"rope_type": kind, "rope_theta": 100.0, "factor": 2.0}
        if kind == "llama3":
            settings["rope_parameters"] |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
        if kind != "linear":
            settings["rope_parameters"]["original_max_position_embeddings"] = LENGTH // 2
    if family in ("qwen3_moe", "qwen3", "mixtral", "llama"):
        settings["head_dim"] = draw.choice([6, 8])
    experts = {"num_experts_per_tok": draw.choice([2, 3]), "norm_topk_prob": draw.choice([True, False])}
    if family in ("qwen3_moe", "qwen2_moe"):
        settings |= {**experts, "num_experts": 6, "moe_intermediate_size": 7}
        settings |= draw.choice([{}, {"mlp_only_layers": [0]}]) if settings["num_hidden_layers"] > 1 else {}
    if family == "qwen2_moe":
        settings |= {"shared_expert_intermediate_size": draw.choice([14, 9]), "qkv_bias": draw.choice([True, False])}
    if family == "olmoe":
        settings |= {**experts, "num_experts": 6}
    if family == "mixtral":
        settings |= {"num_experts_per_tok": 2, "num_local_experts": 5}
    if family == "deepseek_v3":
        settings["num_key_value_heads"] = heads
        settings |= {**experts, "n_routed_experts": 8, "moe_intermediate_size": 7, "kv_lora_rank": 10}
        settings |= {"q_lora_rank": draw.choice([None, 9]), "qk_rope_head_dim": 4, "qk_nope_head_dim": 6}
        settings |= {"v_head_dim": 6, "n_group": 4, "topk_group": 2, "n_shared_experts": draw.choice([1, 2])}
        settings |= {"first_k_dense_replace": draw.choice([0, 1]) if settings["num_hidden_layers"] > 1 else 0}
        settings |= {"rope_interleave": draw.choice([True, False]), "routed_scaling_factor": draw.choice([1.0, 2.5])}
    return settings


def randomise(model: nn.Module, seed: int) -> nn.Module:
    """Draws all weights, so that no part of the model is idle and logits are of size 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if name.endswith("norm.weight") or "layernorm" in name:
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        elif "bias" in name:
            tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
        elif tensor.is_floating_point() and tensor.ndim > 1:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / tensor.shape[-1] ** 0.5)
    return model.eval()


def random_run(outputs: Path, settings: list[str], seed: int) -> tuple[Run, nn.Module]:
    """A run folder with a checkpoint of random weights, and its model."""
    config: RunConfig = load_config(settings).config
    model = randomise(make_model(config, VOCAB), seed)
    if config.router is not None and config.router.name != "sigmoid":
        for name, tensor in model.state_dict().items():
            if name.endswith("expert_bias"):
                tensor.zero_()
    run = create_run(outputs, "runs", config)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_imported(run, lambda path: save_file(state, path), {})
    return run, model


def tokens(seed: int) -> Tensor:
    return torch.randint(VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(seed))
