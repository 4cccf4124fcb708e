"""Cost formulas agree with real modules, optimizers, and torch's own counter."""

import math
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from moe_cli.config.balances import NoBalance
from moe_cli.config.capacity import expert_capacity
from moe_cli.config.compose import load_config
from moe_cli.config.data import TextFilesConfig
from moe_cli.config.layer_costs import layer_kinds, slots_per_token, stack_input_lengths
from moe_cli.config.model import GPTConfig, MMoEConfig, ViTConfig
from moe_cli.config.optim import AdamWConfig, SGDConfig
from moe_cli.config.resolve import resolve
from moe_cli.config.routers import ExpertChoiceConfig, RandomConfig, SoftConfig, SwitchConfig, TopKConfig
from moe_cli.config.schema import RunConfig
from moe_cli.config.settings import packaged_conf
from moe_cli.config.training import TrainConfig
from moe_cli.costs.model import all_to_all_bytes_per_step, estimate_cost, tokens_per_expert, training_steps
from moe_cli.errors import ConfigError
from moe_cli.models.ngrams import NgramEmbedding
from moe_cli.models.registry import make_model
from moe_cli.models.transformer import Transformer
from moe_cli.moe.sparse_layer import moe_layers
from moe_cli.training.optimizers import make_optimizers
from tests.tiny import TINY, tiny_config

V = 13
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dense": {"expert": 1, "k": 1},
    "dense glu tied": {"expert": 1, "k": 1, "model": {"ffn_type": "glu", "tie_embeddings": True}},
    "glu": {"model": {"ffn_type": "glu"}},
    "shared": {"model": {"shared_experts": 2}},
    "shared glu": {"model": {"shared_experts": 1, "ffn_type": "glu"}},
    "shared of another width": {"model": {"shared_experts": 2, "d_shared": 5}},
    "listed layers": {"model": {"num_layers": 5, "moe_layers": (1, 4)}},
    "k of each layer": {"model": {"num_layers": 4, "moe_layers": (1, 2, 4)}, "k": (1, 4, 2)},
    "k of each layer, adamw": {"k": (3, 1), "optim": AdamWConfig()},
    "unequal experts": {"k": 4, "model": {"d_expert": (4, 12, 8, 8)}},
    "unequal experts, glu adamw": {
        "k": 4,
        "model": {"d_expert": (6, 6, 6, 18), "ffn_type": "glu"},
        "optim": AdamWConfig(),
    },
    "gates with a rate": {"optim": AdamWConfig(router_lr=0.5)},
    "shared gate": {"model": {"shared_experts": 1, "shared_gate": True}},
    "expert dropout": {"model": {"expert_dropout": 0.1}},
    "every second": {"model": {"num_layers": 5, "moe_layer_freq": 2}},
    "random": {"router": RandomConfig(), "balance": NoBalance()},
    "switch": {"router": SwitchConfig(), "k": 1},
    "tied": {"model": {"tie_embeddings": True}},
    "odd": {"expert": 7, "k": 3, "model": {"d_model": 18, "num_heads": 3, "d_ff": 29, "d_expert": 5}},
    "every expert": {"expert": 4, "k": 4},
    "adamw": {"optim": AdamWConfig()},
    "sgd": {"optim": SGDConfig()},
    "sgd without momentum": {"optim": SGDConfig(momentum=0.0)},
    "grouped queries": {"model": {"num_heads": 4, "num_kv_heads": 1}},
    "wide heads": {"model": {"num_heads": 3, "d_head": 10}},
    "first dense": {"model": {"num_layers": 4, "moe_layer_freq": 2, "first_k_dense": 2}},
    "gpt-2": {"model": {"norm": "layer", "position_encoding": "learned", "qk_norm": False, "init_std": 0.02}},
    "norm weights of heads": {
        "model": {"qk_norm_weights": "head", "qkv_bias": True, "num_heads": 4, "num_kv_heads": 1}
    },
    "norm weights of all heads": {"model": {"qk_norm_weights": "full", "num_heads": 4, "num_kv_heads": 1}},
    "n-grams": {"model": {"ngrams": 4, "ngram_rows": 50}},
    "capped": {"model": {"logit_softcap": 15.0}},
    "latent": {"model": {"kv_lora_rank": 6, "num_layers": 3}},
    "latent queries": {
        "model": {"kv_lora_rank": 10, "q_lora_rank": 7, "qk_rope_head_dim": 4, "d_head": 6},
        "optim": AdamWConfig(),
    },
    "relu": {"expert": 1, "k": 1, "model": {"activation": "relu"}},
    "relu shared": {"model": {"activation": "relu", "shared_experts": 2}},
    "one head": {"model": {"num_heads": 1, "num_layers": 1}},
    **TINY,
    "mmoe dense": {**TINY["mmoe"], "expert": 1, "k": 1},
    "mmoe adamw": {**TINY["mmoe"], "optim": AdamWConfig()},
    "mmoe cosine": {**TINY["mmoe"], "router": TopKConfig(score="cosine")},
    "mmoe layers": {**TINY["mmoe"], "model": replace(TINY["mmoe"]["model"], num_layers=2, first_k_dense=1)},
    "t5 tied": {
        **TINY["t5"],
        "model": replace(TINY["t5"]["model"], tie_embeddings=True, moe_layer_freq=1, ffn_type="glu"),
    },
    "t5 uneven": {
        **TINY["t5"],
        "model": replace(TINY["t5"]["model"], moe_layers=(1, 2, 4), ffn_type="glu"),
        "k": (1, 3, 2),
    },
    "t5 dense": {**TINY["t5"], "expert": 1, "k": 1},
    "lstm dense tied": {"expert": 1, "k": 1, "model": replace(TINY["lstm"]["model"], tie_embeddings=True)},
    "lstm first dense": {
        **TINY["lstm"],
        "model": replace(TINY["lstm"]["model"], first_k_dense=1),
        "optim": AdamWConfig(),
    },
}


@contextmanager
def without_onednn() -> Iterator[None]:
    """As torch.backends.mkldnn.flags, which warns of GPUs that are not there."""
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


# Routers whose experts compute other than K rows of a token.
UNUSUAL: dict[str, dict[str, Any]] = {
    "null experts": {"router": TopKConfig(null_experts=3)},
    "expert choice": {**TINY["bert"], "router": ExpertChoiceConfig(), "balance": NoBalance(), "capacity": 2.0},
    "soft": {**TINY["bert"], "router": SoftConfig(slots=8), "balance": NoBalance()},
    "soft, few slots": {**TINY["bert"], "router": SoftConfig(), "balance": NoBalance()},
}
# Those that differ from another by their optimizer alone, which neither activations nor a forward pass read.
OF_OPTIMIZERS = ("gates with a rate", "adamw", "sgd", "sgd without momentum", "mmoe adamw")
OF_MODELS = [name for name in CONFIGS if name not in OF_OPTIMIZERS]
every_config = pytest.mark.parametrize("name", CONFIGS)


def config(name: str) -> RunConfig:
    return tiny_config(Path("text"), **{**CONFIGS, **UNUSUAL}[name])


def model_of(name: str) -> Transformer:
    return make_model(config(name), V)


def inputs_of(asked: RunConfig, batch: int, vocab_size: int) -> tuple[torch.Tensor, ...]:
    """Returns inputs for a model: tokens over the context for each of its stacks, pairs, or images."""
    generator = torch.Generator().manual_seed(0)
    if isinstance(asked.model, ViTConfig):
        return (torch.randn(batch, 1, 8, 8, generator=generator),)
    return tuple(
        torch.randint(vocab_size, (batch, length), generator=generator) for length in stack_input_lengths(asked)
    )


def loss_of(model: Any, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The mean loss of all that is answered, whatever is right."""
    return -model(*inputs)[0].log_softmax(-1)[..., 0].mean()


def one_training_step(name: str) -> tuple[Transformer, Any]:
    model = model_of(name)
    optimizers = make_optimizers(config(name).optim, model)
    heads = [param for name, param in model.named_parameters() if name.endswith("head.weight")]
    for param in heads or [model.embedding.weight]:  # of zeros nothing would learn but they
        torch.nn.init.normal_(param)
    loss_of(model, inputs_of(config(name), 4, V)).backward()
    return model, optimizers


@pytest.mark.parametrize("name", [*CONFIGS, *UNUSUAL])
def test_parameters_and_state_equal_the_modules(name: str) -> None:
    """num_params counts every trained number; weights, gradients and optimizer state take state_bytes, counters aside.

    The matrix products of an optimizer step are those that torch counts: Muon's, for the others have none.
    """
    model, optimizers = one_training_step(name)
    costs = estimate_cost(config(name), V)
    assert costs.num_params == sum(param.numel() for param in model.parameters())
    tables = [module.weight for module in model.modules() if isinstance(module, torch.nn.Embedding | NgramEmbedding)]
    heads = [param for name, param in model.named_parameters() if name == "head.weight"]
    assert costs.num_embedding_params == sum(param.numel() for param in (*tables, *heads))
    assert costs.non_embedding_params == costs.num_params - sum(param.numel() for param in (*tables, *heads))
    with FlopCounterMode(display=False) as counter:
        optimizers.step(0, 0.5)
    assert costs.optimizer_flops_per_step == counter.get_total_flops()
    tensors = [*model.parameters(), *(param.grad for param in model.parameters())]
    tensors += [value for key, value in optimizers.state_tensors().items() if not key.endswith(".step")]
    assert costs.state_bytes == sum(tensor.nbytes for tensor in tensors)


def test_null_experts_take_their_share_of_the_active_parameters() -> None:
    """At even load K E / (E + N) of the chosen experts have parameters: 2 * 4 / 7 of each sparse layer's."""
    asked = config("null experts")
    experts = [param for layer in moe_layers(make_model(asked, V)) for param in layer.experts.parameters()]
    all_of_one = sum(param[0].numel() for param in experts)
    costs = estimate_cost(asked, V)
    assert round(costs.num_params - (4 - 2 * 4 / 7) * all_of_one) == costs.num_active_params


@pytest.mark.parametrize("name", OF_MODELS)
def test_active_parameters_and_forward_flops_are_those_of_k_experts(name: str) -> None:
    """All parameters but E - K of E experts in every sparse layer; FLOPs of a pass over full contexts as torch counts them,
    within 2 %.
    """
    # Torch counts the attention of this back end alone among those of a CPU.
    # Nor does it see into oneDNN's recurrent layers.
    with (
        sdpa_kernel(SDPBackend.MATH),
        without_onednn(),
        FlopCounterMode(display=False) as counter,
    ):
        model = model_of(name).eval()
        for layer in moe_layers(model):
            layer.dispatch = "loop"  # torch does not count its grouped product
        model(*inputs_of(config(name), 2, V))
    asked, costs = config(name), estimate_cost(config(name), V)
    assert counter.get_total_flops() / (2 * asked.model.context_length) == pytest.approx(
        costs.forward_flops_per_token, rel=0.02
    )
    idle = sum(
        param.numel() * (asked.expert - layer.top_k) // asked.expert
        for layer in moe_layers(model)
        for param in layer.experts.parameters()
    )
    assert costs.num_active_params == costs.num_params - idle
    assert costs.num_sparse_layers == len(moe_layers(model))


class Held(TorchDispatchMode):
    """Bytes of all tensors made within it that are still alive, and the most they have been."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        old = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in old | self._known:
                    self._count(storage._cdata, storage.nbytes())
                    weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())
        return result

    def _count(self, key: int, size: int) -> None:
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


@pytest.mark.parametrize(
    ("expert", "precision"), [(1, "float32"), (1, "bfloat16"), (8, "float32"), (64, "float32"), (64, "bfloat16")]
)
def test_activations_of_auto_are_estimated_within_an_eighth(expert: int, precision: str) -> None:
    """With the back end that `auto` takes; cast weights and experts in bfloat16 are counted."""
    asked = load_config([f"expert={expert}", "model.num_layers=2", f"train.precision={precision}"]).config
    torch.manual_seed(0)
    model = make_model(asked, 256)
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    with Held() as held:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            logits = model(*inputs_of(asked, 16, 256))[0].flatten(0, -2)
        torch.nn.functional.cross_entropy(logits.float(), torch.zeros(len(logits), dtype=torch.int64)).backward()
    assert held.peak == pytest.approx(estimate_cost(asked, 256).activation_bytes, rel=0.125)


@pytest.mark.parametrize("name", [*OF_MODELS, *UNUSUAL, "limited", "no qk norm"])
def test_activations_are_estimated_within_an_eighth(name: str) -> None:
    """Estimated activations are within 12.5 % of the peak of forward and backward, without weights and gradients."""
    changes = {**CONFIGS, **UNUSUAL, "limited": {"capacity": 0.25}, "no qk norm": {"model": {"qk_norm": False}}}[name]
    sizes = {"num_heads": 3, "d_model": 96, "d_ff": 768, "d_expert": 384, "context_length": 64, "dispatch": "loop"}
    given = changes.get("model", {})
    if not isinstance(given, dict):  # another family
        fixed = ("context_length",) if isinstance(given, ViTConfig | MMoEConfig) else ()
        sizes = {key: value for key, value in sizes.items() if hasattr(given, key) and key not in fixed}
    model = {**given, **sizes} if isinstance(given, dict) else replace(given, **sizes)
    # Of 16 patches, 2 tasks, or 64 tokens. At K = 2 of 4 experts each has 768 rows, and a chunk of the loop has one.
    batch = 96 if isinstance(given, ViTConfig) else 768 if isinstance(given, MMoEConfig) else 24
    asked = tiny_config(Path("text"), **{**changes, "model": model, "train": {"batch_size": batch}})
    torch.manual_seed(0)
    model, inputs = make_model(asked, 256), inputs_of(asked, batch, 256)
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    with Held() as held:
        loss = model(*inputs)[0].flatten(0, -2)
        torch.nn.functional.cross_entropy(loss, torch.zeros(len(loss), dtype=torch.int64)).backward()
    assert held.peak == pytest.approx(estimate_cost(asked, 256).activation_bytes, rel=0.125)


@given(st.integers(1, 300), st.integers(1, 8), st.floats(0.1, 4.0))
def test_places_are_those_of_the_router(batch: int, top_k: int, capacity: float) -> None:
    """E times the capacity of one forward pass, rounded as the layer rounds it."""
    assume(capacity * top_k / 8 < 0.999)  # from 1 on there is no capacity: every token has a place
    train = {"batch_size": batch}
    asked = tiny_config(
        Path("text"),
        expert=8,
        k=top_k,
        capacity=capacity,
        train=train,
        router=SwitchConfig() if top_k == 1 else TopKConfig(),
    )
    (kind,) = layer_kinds(asked)
    places = 8 * expert_capacity(16 * batch, 8, top_k, capacity)
    assert places == pytest.approx(16 * batch * slots_per_token(asked, kind))


@pytest.mark.parametrize(("ranks", "capacity"), [(1, None), (2, None), (4, None), (4, 0.5), (2, 1.25)])
def test_all_to_all_bytes_by_counting_journeys(ranks: int, capacity: float | None) -> None:
    """Each row of any rank whose expert is on another rank is sent out and back, forward and backward, in both layers."""
    train = {"batch_size": 4, "grad_accumulation": 3}
    asked = tiny_config(Path("text"), capacity=capacity, train=train)
    # Even load: assignment a of a batch belongs to token a mod 64 and goes to expert a mod 4. Each of the W ranks has
    # 64 / W tokens and 4 / W experts.
    kept = [a for a in range(128) if capacity is None or a // 4 < expert_capacity(64, 4, 2, capacity)]
    away = sum(a % 64 * ranks // 64 != a % 4 * ranks // 4 for a in kept)
    one_row = 4 * 16  # float32, width 16
    assert 4 * 2 * 3 * away * one_row == all_to_all_bytes_per_step(asked, ranks)
    assert 0 == all_to_all_bytes_per_step(config("dense"), ranks)


@given(st.integers(2, 64), st.integers(1, 8), st.integers(0, 2), st.sampled_from(["glu", "mlp"]), st.booleans())
def test_matched_experts_have_the_active_parameters_of_the_dense_model(
    num_experts: int, top_k: int, shared: int, kind: Any, gateless: bool
) -> None:
    """match=active: the feed-forward parameters that a token meets, gate included, are within 1 % of the dense model's.

    Within a column of every chosen expert, that is, where 1 % of a small width is less than that.
    """
    model = GPTConfig(d_model=64, num_heads=4, d_ff=512, shared_experts=shared, ffn_type=kind, num_layers=3)
    router = {"router": RandomConfig(), "balance": NoBalance()} if gateless else {}
    asked = RunConfig(
        expert=num_experts, k=min(top_k, num_experts), model=model, data=TextFilesConfig(path="text"), **router
    )
    sparse = resolve(asked).config
    dense = resolve(replace(asked, expert=1, k=1)).config
    actives = [estimate_cost(each, V).num_active_params for each in (sparse, dense)]
    ffn = 3 * model.matrices_per_expert * 64 * 512
    column = 3 * model.matrices_per_expert * 64 * (sparse.k + shared) / 2
    assert abs(actives[0] - actives[1]) <= max(0.01 * ffn, column)


def test_matching_that_leaves_no_width_is_refused() -> None:
    """More experts than the dense width can pay for is a ConfigError."""
    with pytest.raises(ConfigError, match="leave no width"):
        tiny_config(Path("text"), match="active", expert=64, k=8, model={"d_ff": 16, "d_expert": None})


@given(st.integers(1, 10_000), st.integers(1, 8), st.integers(1, 3))
def test_the_budget_in_steps(amount: int, batch: int, accumulation: int) -> None:
    """steps as given; tokens rounded up to whole steps; FLOPs to the nearest, at least one; minutes unknown."""

    def steps(**budget: Any) -> int | None:
        train = TrainConfig(batch_size=batch, grad_accumulation=accumulation, **budget)
        return training_steps(tiny_config(Path("text"), train=train), V)

    per_step = 16 * batch * accumulation
    assert amount == steps(steps=amount)
    train = TrainConfig(batch_size=batch, grad_accumulation=accumulation)
    assert amount == steps(
        flops=float(estimate_cost(tiny_config(Path("text"), train=train), V).flops_per_step * amount)
    )
    model_flops = estimate_cost(tiny_config(Path("text"), train=train), V).model_flops_per_token * per_step
    assert amount == steps(model_flops=float(model_flops * amount))
    assert math.ceil(amount / per_step) == steps(tokens=amount)
    assert 1 == steps(flops=1.0)
    assert steps(minutes=1.0) is None


@given(st.integers(1, 10**6), st.integers(2, 16), st.integers(1, 4))
def test_tokens_of_an_expert(tokens: int, experts: int, top_k: int) -> None:
    """T K / E for dropless token choice, all T in a dense model, and a quarter of those with a capacity of 1 / 4."""
    assume(top_k <= experts)
    sparse = tiny_config(Path("text"), expert=experts, k=top_k)
    assert tokens * top_k / experts == pytest.approx(tokens_per_expert(sparse, tokens))
    assert tokens == tokens_per_expert(tiny_config(Path("text"), expert=1, k=1), tokens)
    full = tokens_per_expert(tiny_config(Path("text"), expert=4, k=2, capacity=1.0), tokens)
    assert full / 4 == pytest.approx(tokens_per_expert(tiny_config(Path("text"), expert=4, k=2, capacity=0.25), tokens))


def test_a_gate_for_shared_experts_is_counted() -> None:
    """A product of D more per token and sparse layer, forward."""
    shared = {"shared_experts": 1}
    plain, gated = (tiny_config(Path("text"), model={**shared, "shared_gate": gate}) for gate in (False, True))
    difference = estimate_cost(gated, V).forward_flops_per_token - estimate_cost(plain, V).forward_flops_per_token
    assert difference == 2 * gated.model.num_layers * gated.model.d_model


def test_jitter_holds_two_more_inputs() -> None:
    """The noise and what it made of the input, per token and sparse layer."""
    noisy, still = (
        tiny_config(Path("text"), router=SwitchConfig(jitter=jitter), k=1, model={"num_layers": 2})
        for jitter in (0.01, 0.0)
    )
    tokens = noisy.train.batch_size * noisy.model.context_length
    difference = estimate_cost(noisy, V).activation_bytes - estimate_cost(still, V).activation_bytes
    assert difference == 4 * tokens * 2 * 2 * noisy.model.d_model


# Published in the papers that the files name: total and active parameters, in 1e9, and how far ours may be from them.
# Of DeepSeek-V3 and Qwen3 the active parameters are published with two digits, and how the input embedding counts is not.
PUBLISHED = {
    "mixtral_8x7b": (46.7, 12.9, 0.01),
    "olmoe_1b_7b": (6.92, 1.28, 0.01),
    "qwen3_30b_a3b": (30.5, 3.3, 0.02),
    "deepseek_v3": (671, 37, 0.02),
    "switch_base_128": (7.41, 0.223, 0.01),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_their_published_size(name: str) -> None:
    """Every file of conf/experiment/published composes, and its counts are those of its paper."""
    total, active, tolerance = PUBLISHED[name]
    config = load_config([f"experiment=published/{name}"]).config
    costs = estimate_cost(config, config.model.vocab_size or 0)
    assert costs.num_params / 1e9 == pytest.approx(total, rel=0.01)
    if active is not None:
        assert costs.num_active_params / 1e9 == pytest.approx(active, rel=tolerance)


def test_every_published_file_is_checked() -> None:
    """None is without a figure to be held against."""
    files = (packaged_conf() / "experiment" / "published").glob("*.yaml")
    assert {file.stem for file in files} == set(PUBLISHED)
