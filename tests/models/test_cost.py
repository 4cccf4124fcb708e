"""What the cost formulas say against real modules, optimizers and torch's own counter."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from moe_cli.config.balances import NoBalance
from moe_cli.config.resolve import resolve
from moe_cli.config.routers import RandomConfig, SwitchConfig
from moe_cli.config.schema import AdamWConfig, GPTConfig, RunConfig, TextData, TrainConfig
from moe_cli.errors import ConfigError
from moe_cli.models.cost import cost, training_steps
from moe_cli.models.gpt import GPT, make_model
from moe_cli.moe.layer import moe_layers
from moe_cli.training.optim import make_optimizers
from tests.tiny import tiny_config

V = 13
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dense": {"expert": 1, "k": 1},
    "dense glu tied": {"expert": 1, "k": 1, "model": {"expert_kind": "glu", "tie_embeddings": True}},
    "glu": {"model": {"expert_kind": "glu"}},
    "shared": {"model": {"shared_experts": 2}},
    "shared glu": {"model": {"shared_experts": 1, "expert_kind": "glu"}},
    "every second": {"model": {"num_layers": 5, "moe_every": 2}},
    "random": {"router": RandomConfig(), "balance": NoBalance()},
    "switch": {"router": SwitchConfig(), "k": 1},
    "tied": {"model": {"tie_embeddings": True}},
    "odd": {"expert": 7, "k": 3, "model": {"d_model": 18, "num_heads": 3, "d_ff": 29, "d_expert": 5}},
    "every expert": {"expert": 4, "k": 4},
    "adamw": {"optim": AdamWConfig()},
    "one head": {"model": {"num_heads": 1, "num_layers": 1}},
}
every_config = pytest.mark.parametrize("name", CONFIGS)


def config(name: str) -> RunConfig:
    return tiny_config(Path("text"), **CONFIGS[name])


def model_of(name: str) -> GPT:
    return make_model(config(name), V)


def one_training_step(name: str) -> tuple[GPT, Any]:
    model = model_of(name)
    optimizers = make_optimizers(config(name).optim, model)
    torch.nn.init.normal_(model.embedding.weight if model.head is None else model.head.weight)
    tokens = torch.randint(V, (4, 16), generator=torch.Generator().manual_seed(0))
    torch.nn.functional.cross_entropy(model(tokens)[0].flatten(0, 1), tokens.flatten()).backward()
    return model, optimizers


@every_config
def test_parameters_equal_the_modules(name: str) -> None:
    """num_params is the number of trained numbers, to the last."""
    assert sum(param.numel() for param in model_of(name).parameters()) == cost(config(name), V).num_params


@every_config
def test_active_parameters_are_k_experts_and_all_the_rest(name: str) -> None:
    """Counted from the modules: all parameters but E - K of E experts in every sparse layer."""
    model, asked = model_of(name), config(name)
    idle = sum(param[asked.k :].numel() for layer in moe_layers(model) for param in layer.experts.parameters())
    costs = cost(asked, V)
    assert costs.num_params - idle == costs.num_active_params
    assert len(moe_layers(model)) == costs.num_sparse_layers


@every_config
def test_forward_flops_equal_torchs_counter(name: str) -> None:
    """FLOPs per token of a forward pass over full contexts agree with torch within 2 %; training is three of them."""
    # Torch counts the attention of this back end alone among those of a CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model_of(name).eval()(torch.zeros(2, 16, dtype=torch.int64))
    costs = cost(config(name), V)
    assert counter.get_total_flops() / 32 == pytest.approx(costs.forward_flops_per_token, rel=0.02)
    assert 3 * costs.forward_flops_per_token == costs.flops_per_token


@every_config
def test_optimizer_flops_equal_torchs_counter(name: str) -> None:
    """Muon's matrix products, counted by torch during a step, are those of the formula; AdamW has none."""
    _, optimizers = one_training_step(name)
    with FlopCounterMode(display=False) as counter:
        optimizers.step(0.5)
    assert counter.get_total_flops() == cost(config(name), V).optimizer_flops_per_step


@every_config
def test_state_bytes_are_those_of_the_tensors(name: str) -> None:
    """Weights, gradients and optimizer state after a step take what the formula says, but for a counter a parameter."""
    model, optimizers = one_training_step(name)
    optimizers.step(0.5)
    tensors = [*model.parameters(), *(param.grad for param in model.parameters())]
    tensors += [value for key, value in optimizers.state_tensors().items() if not key.endswith(".step")]
    assert sum(tensor.nbytes for tensor in tensors) == cost(config(name), V).state_bytes


@given(st.integers(2, 64), st.integers(1, 8), st.integers(0, 2), st.sampled_from(["glu", "mlp"]), st.booleans())
def test_matched_experts_have_the_active_parameters_of_the_dense_model(
    num_experts: int, top_k: int, shared: int, kind: Any, gateless: bool
) -> None:
    """match=active: the feed-forward parameters that a token meets, gate included, are within 1 % of the dense model's.

    Within a column of every chosen expert, that is, where 1 % of a small width is less than that.
    """
    model = GPTConfig(d_model=64, num_heads=4, d_ff=512, shared_experts=shared, expert_kind=kind, num_layers=3)
    router = {"router": RandomConfig(), "balance": NoBalance()} if gateless else {}
    asked = RunConfig(expert=num_experts, k=min(top_k, num_experts), model=model, data=TextData(path="text"), **router)
    sparse = resolve(asked).config
    dense = resolve(replace(asked, expert=1, k=1)).config
    actives = [cost(each, V).num_active_params for each in (sparse, dense)]
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
    flops = cost(config("plain"), V).flops_per_token * per_step
    assert amount == steps(steps=amount) == steps(flops=float(flops * amount))
    assert math.ceil(amount / per_step) == steps(tokens=amount)
    assert 1 == steps(flops=1.0)
    assert steps(minutes=1.0) is None
