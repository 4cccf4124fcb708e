"""Attention and blocks against formulas written out. B sequences, L positions, D model width, N heads, W head width."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from moe_cli.config.model import GPTConfig, T5Config
from moe_cli.config.resolve import resolve
from moe_cli.config.schema import RunConfig
from moe_cli.errors import ConfigError
from moe_cli.models.blocks import Attention, Block, LatentAttention, Rotary
from moe_cli.models.t5 import T5Attention
from moe_cli.moe.layer import MoELayer
from tests.tiny import randomise, tiny_config

L, D, N, W = 7, 16, 2, 8
MODEL = GPTConfig(d_model=D, num_heads=N, num_kv_heads=N, d_head=W, context_length=16, rope_base=100.0)


def sequences(batch: int = 2) -> Tensor:
    return torch.randn(batch, L, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def turned(x: Tensor) -> Tensor:
    """Rotary positions as complex numbers: entries i and i + W/2 are one number, turned by position * base^(-2i/W)."""
    rates = MODEL.rope_base ** (-2 * torch.arange(W // 2, dtype=torch.float64) / W)
    angles = torch.arange(x.shape[-2], dtype=torch.float64)[:, None] * rates
    z = torch.complex(x[..., : W // 2], x[..., W // 2 :]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((z.real, z.imag), -1)


def attention_formula(attention: Attention, x: Tensor, model: GPTConfig) -> Tensor:
    """Softmax of scores over earlier positions, head by head, position by position."""
    heads, kv_heads = model.num_heads or 0, model.num_kv_heads or 0
    queries, keys, values = attention.qkv.weight.view(-1, W, D).split([heads, kv_heads, kv_heads])
    answers = []
    for head in range(heads):
        shared = head * kv_heads // heads
        q, k, v = (x @ weight.T for weight in (queries[head], keys[shared], values[shared]))
        if model.qk_norm:
            # The epsilon is that of the type.
            eps = torch.finfo(x.dtype).eps
            q, k = (y / (y.square().mean(-1, keepdim=True) + eps).sqrt() for y in (q, k))
        if model.position_encoding == "rope":
            q, k = turned(q), turned(k)
        rows = []
        for t in range(x.shape[1]):
            scores = (k[:, : t + 1] @ q[:, t, :, None]).squeeze(-1) / math.sqrt(W)
            exp = scores.exp()
            rows.append(((exp / exp.sum(1, keepdim=True))[:, :, None] * v[:, : t + 1]).sum(1))
        answers.append(torch.stack(rows, 1))
    return torch.cat(answers, -1) @ attention.out.weight.T


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"qk_norm": False},
        {"position_encoding": "learned"},
        {"num_heads": 6, "num_kv_heads": 2},
        {"num_heads": 4, "num_kv_heads": 1, "qk_norm": False},
    ],
)
def test_attention_equals_the_formula(changes: dict[str, Any]) -> None:
    """Torch's fused attention is causal softmax attention written out, heads of any number sharing keys and values."""
    model = replace(MODEL, **changes)
    attention = randomise(Attention(model)).double()
    x = sequences()
    # The tables of rotary positions are float32.
    torch.testing.assert_close(attention(x), attention_formula(attention, x, model), rtol=1e-5, atol=1e-5)


LATENT = replace(MODEL, kv_lora_rank=6, qk_rope_head_dim=4)


@pytest.mark.parametrize(
    ("make", "num_inputs"),
    [
        (lambda: Attention(MODEL), 1),
        (lambda: LatentAttention(LATENT), 1),
        (lambda: T5Attention(T5Config(d_model=D, num_heads=N, d_head=W)), 2),
    ],
    ids=["plain", "latent", "t5"],
)
def test_attention_is_float32_under_autocast_on_a_cpu(
    make: Callable[[], torch.nn.Module], num_inputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores and their softmax are float32, because their backward pass is slow in bfloat16; projections are not."""
    attention = randomise(make())
    seen = []
    fused = torch.nn.functional.scaled_dot_product_attention

    def record(*arguments: Any, **options: Any) -> Tensor:
        y = fused(*arguments, **options)
        seen.append({y.dtype, *(value.dtype for value in arguments[:3])})
        return y

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", record)
    inputs = [sequences().float()] * num_inputs
    with torch.autocast("cpu", torch.bfloat16):
        y = attention(*inputs)
    assert [{torch.float32}] == seen
    assert torch.bfloat16 == y.dtype
    torch.testing.assert_close(attention(*inputs), y.float(), rtol=0.05, atol=0.05)


def test_rotary_scores_depend_on_the_distance_alone() -> None:
    """<q at m, k at n> is the same for every m - n, differs with it, and no vector changes its length."""
    rotary = Rotary(replace(MODEL, context_length=16, rope_base=100.0), W)
    q, k = torch.randn(2, 1, 1, 1, W, generator=torch.Generator().manual_seed(0)).expand(2, 1, 16, 1, W)
    scores = (rotary(q).transpose(1, 2) @ rotary(k).transpose(1, 2).mT)[0, 0]
    for distance in range(-15, 16):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-5)
    assert scores[0].std() > 0.1
    torch.testing.assert_close(rotary(q).norm(dim=-1), q.norm(dim=-1))


def test_normalised_queries_make_the_scale_of_their_weights_idle() -> None:
    """With qk_norm, queries and keys ten times as large change nothing; without it they do."""
    for qk_norm in (True, False):
        attention = randomise(Attention(replace(MODEL, qk_norm=qk_norm))).double()
        x = sequences()
        before = attention(x)
        with torch.no_grad():
            attention.qkv.weight[: 2 * D] *= 10
        assert qk_norm == torch.allclose(before, attention(x))


@pytest.mark.parametrize("sparse", [True, False])
def test_a_block_is_two_residual_branches(sparse: bool) -> None:
    """x + attention(norm x), then + feed-forward(norm of that): with RMS norms written out."""

    def norm(y: Tensor, weight: Tensor) -> Tensor:
        return weight * y / (y.square().mean(-1, keepdim=True) + torch.finfo(y.dtype).eps).sqrt()

    block = randomise(Block(tiny_config(Path("text")), sparse, 256)).double()
    x = sequences()
    middle = x + block.attention(norm(x, block.attention_norm.weight))
    answer = block.ffn(norm(middle, block.ffn_norm.weight))
    y, routing = block(x, torch.zeros(x.shape[:2], dtype=torch.int64))
    torch.testing.assert_close(middle + (answer[0] if sparse else answer), y)
    assert sparse == isinstance(block.ffn, MoELayer) == bool(routing)


def test_dropout_acts_in_training_alone() -> None:
    """With dropout two passes differ in training and agree at evaluation; without it they agree in both."""
    for dropout in (0.5, 0.0):
        block = randomise(
            Block(tiny_config(Path("text"), model={"dropout": dropout}), sparse=True, vocab_size=256)
        ).double()
        x, ids = sequences(), torch.zeros(sequences().shape[:2], dtype=torch.int64)
        torch.manual_seed(0)
        first, second = block(x, ids)[0], block(x, ids)[0]
        assert torch.equal(first, second) == (dropout == 0)
        assert torch.equal(block.attention(x), block.attention(x)) == (dropout == 0)
        assert torch.equal(block.eval()(x, ids)[0], block(x, ids)[0])


def test_latent_attention_equals_the_formula() -> None:
    """Each head, written out position by position: content from the latents, position from the shared rotary key."""
    torch.manual_seed(0)
    model = GPTConfig(
        num_heads=2,
        num_kv_heads=2,
        d_model=12,
        d_head=4,
        kv_lora_rank=5,
        q_lora_rank=6,
        qk_rope_head_dim=2,
        context_length=7,
    )
    layer = LatentAttention(model)
    x = torch.randn(1, 7, 12)

    def turn(pair: torch.Tensor, place: int) -> torch.Tensor:
        a, b = pair  # of a single pair, whose angle is the position
        cos, sin = math.cos(place), math.sin(place)
        return torch.stack((a * cos - b * sin, b * cos + a * sin))

    rows = []
    for place in range(7):
        heads = []
        queries = layer.q_up(layer.q_norm(layer.q_down(x[0, place]))).view(2, 6)
        for head in range(2):
            scores, values = [], []
            for other in range(place + 1):
                down = layer.kv_down(x[0, other])
                up = layer.kv_up(layer.kv_norm(down[:5])).view(2, 8)[head]
                content = queries[head, :4] @ up[:4]
                position = turn(queries[head, 4:], place) @ turn(down[5:], other)
                scores.append((content + position) / 6**0.5)
                values.append(up[4:])
            heads.append(torch.stack(scores).softmax(0) @ torch.stack(values))
        rows.append(layer.out(torch.cat(heads)))
    torch.testing.assert_close(layer(x)[0], torch.stack(rows))


def test_what_latent_attention_needs() -> None:
    """Rotary positions of an even width; without it its settings are ignored."""
    with pytest.raises(ConfigError, match=r"model.kv_lora_rank=4 .* it needs model.position_encoding=rope"):
        GPTConfig(num_heads=2, kv_lora_rank=4, position_encoding="learned")
    with pytest.raises(ConfigError, match=r"model.qk_rope_head_dim=3 is odd"):
        GPTConfig(num_heads=2, kv_lora_rank=4, qk_rope_head_dim=3)
    plain = resolve(RunConfig(model=GPTConfig(q_lora_rank=4, qk_rope_head_dim=2))).config
    assert resolve(RunConfig()).config == plain
    latent = resolve(RunConfig(model=GPTConfig(kv_lora_rank=4))).config.model
    assert (16, False) == (latent.qk_rope_head_dim, latent.qk_norm)
