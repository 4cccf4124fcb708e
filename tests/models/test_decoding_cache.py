"""Reading token by token with a cache against reading all at once. L positions, V tokens."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from moe_cli.config.balances import NoBalance
from moe_cli.config.routers import (
    HashConfig,
    NoisyTopKConfig,
    ReluConfig,
    SigmoidConfig,
    SinkhornConfig,
    SwitchConfig,
    TopKConfig,
)
from moe_cli.models.decoding_cache import DecodingCache
from moe_cli.models.registry import make_model
from moe_cli.training.generate import SamplingParams, sample
from tests.tiny import TINY, randomise, tiny_config

V, L = 11, 16
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no qk norm": {"model": {"qk_norm": False}},
    "learned positions": {"model": {"position_encoding": "learned"}},
    "grouped queries": {"model": {"num_heads": 4, "num_kv_heads": 2}},
    "window": {"model": {"sliding_window": 5}},
    "window of one": {"model": {"sliding_window": 1, "position_encoding": "learned"}},
    "latent": {"model": {"kv_lora_rank": 6}},
    "latent queries": {"model": {"kv_lora_rank": 6, "q_lora_rank": 7, "sliding_window": 4}},
    "n-grams": {"model": {"ngrams": 4, "ngram_rows": 50}},
    "dense": {"expert": 1, "k": 1},
    "shared": {"model": {"shared_experts": 1, "moe_layer_freq": 2, "logit_softcap": 5.0}},
    "capacity": {"capacity": 0.25, "drop": "probability", "renormalise_after_drop": True},
    "lstm": TINY["lstm"],
    "lstm dense": {"expert": 1, "k": 1, "model": replace(TINY["lstm"]["model"], tie_embeddings=True)},
    **{
        f"router {router.name}": {"router": router, "k": 1 if router.name == "switch" else 2, "balance": NoBalance()}
        for router in (
            TopKConfig(), SwitchConfig(), NoisyTopKConfig(), SigmoidConfig(), SinkhornConfig(), ReluConfig(), HashConfig()
        )
    },
}  # fmt: skip
every_config = pytest.mark.parametrize("name", CONFIGS)


def model_of(name: str) -> nn.Module:
    """In float64 and evaluation mode, with every weight at random."""
    config = tiny_config(Path("text"), **CONFIGS[name])
    return randomise(make_model(config, V)).double().eval()


def tokens() -> Tensor:
    return torch.randint(V, (2, L), generator=torch.Generator().manual_seed(3))


@every_config
def test_logits_are_those_of_reading_all_at_once(name: str) -> None:
    """In parts of any length, whatever attention, positions, router or capacity; and the experts are the same."""
    model, x = model_of(name), tokens()
    whole, routings = model(x)
    for cuts in ([1, 1, 1, 1, 5, 1, 1, 5], [7, 1, 1, 7]):
        cache = DecodingCache()
        parts = [model(part, cache=cache) for part in x.split(cuts, 1)]
        assert L == cache.length
        torch.testing.assert_close(torch.cat([logits for logits, _ in parts], 1), whole, rtol=1e-9, atol=1e-9)
        for layer, routing in enumerate(routings):
            probs = torch.cat([part[layer].probs.view(2, -1, routing.num_experts) for _, part in parts], 1)
            torch.testing.assert_close(probs.flatten(0, 1), routing.probs)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    "name", ["learned positions", "window", "n-grams", "latent queries", "capacity", "lstm", "router hash"]
)
def test_tokens_are_those_of_computing_without_a_cache(name: str) -> None:
    """Drawn with one seed, with and without a cache, through the end of the context and beyond."""
    model, drawing = model_of(name), SamplingParams(1.3, top_k=9, top_p=0.95)
    texts = [list(sample(model, [1, 2, 3], 2 * L, L, drawing, 5, cached=cached)) for cached in (True, False)]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 2


@pytest.mark.parametrize(("name", "values"), [("plain", 2 * 16), ("grouped queries", 2 * 8), ("latent", 6 + 4)])
def test_what_is_kept_of_a_token(name: str, values: int) -> None:
    """Keys and values of the heads that there are; of latent attention the short vector and the key that turns."""
    cache = DecodingCache()
    model_of(name)(tokens(), cache=cache)
    assert values * 2 * L == sum(part.numel() for part in cache.layers[0].tensors)
    assert {0, 1} == set(cache.layers)
