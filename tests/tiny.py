"""Tiny text, configurations and runs: models of a few thousand parameters that train in a blink."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import jaxtyping
import torch
from torch import nn

from moe_cli.config.balances import CombinedBalance, WeightedBalance
from moe_cli.config.data import PackagedImagesConfig, SyntheticRatingsConfig, TextFilesConfig
from moe_cli.config.model import BERTConfig, GPTConfig, LSTMConfig, MMoEConfig, T5Config, ViTConfig
from moe_cli.config.optim import MuonConfig
from moe_cli.config.resolve import resolve
from moe_cli.config.routers import NoisyTopKConfig
from moe_cli.config.schema import RunConfig
from moe_cli.config.tasks import ImageTask, MaskedLM, RatingTask, SpanCorruption
from moe_cli.config.training import TrainConfig
from moe_cli.execution.data import load_run_data
from moe_cli.execution.run import run_one
from moe_cli.runs.folder import Run, create_run
from moe_cli.tasks.causal_lm import TextTask
from moe_cli.tasks.registry import make_task

SYLLABLES = ("ba", "de", "ki", "lo", "mu", "ne", "ra", "so", "tu", "ve")


def words(num_chars: int, seed: int = 0) -> str:
    """Lines of made-up words, the same for the same seed."""
    draw = random.Random(seed)
    text = ""
    while len(text) < num_chars:
        text += "".join(draw.choices(SYLLABLES, k=draw.randint(1, 3))) + draw.choice(" \n")
    return text[:num_chars]


# The other families in tiny, with what they need: `tiny_config(path, **TINY["bert"])`.
SIZES: dict[str, Any] = {"d_model": 16, "d_ff": 32, "d_expert": 12, "context_length": 16, "ffn_type": "mlp"}
TINY: dict[str, dict[str, Any]] = {
    "bert": {"model": BERTConfig(num_layers=2, num_heads=2, **SIZES), "task": MaskedLM(pseudo_perplexity_tokens=32)},
    "vit": {
        "model": ViTConfig(num_layers=2, num_heads=2, **{**SIZES, "context_length": 16}),
        "task": ImageTask(),
        "data": PackagedImagesConfig(name="digits"),
    },
    "mmoe": {
        "model": MMoEConfig(d_tower=8, dropout=0.0, **{**SIZES, "context_length": 2}),
        "task": RatingTask(),
        "data": SyntheticRatingsConfig(users=30, items=20, clusters=2, num_pairs=400),
    },
    "t5": {"model": T5Config(num_layers=4, num_heads=2, **SIZES), "task": SpanCorruption(num_sentinels=4)},
    "lstm": {
        "model": LSTMConfig(num_layers=2, **SIZES),
        "router": NoisyTopKConfig(),
        "balance": CombinedBalance(
            "importance+load", importance=WeightedBalance(name="importance"), load=WeightedBalance(name="load")
        ),
    },
}


def tiny_config(path: Path, **changes: Any) -> RunConfig:
    """A resolved configuration on the text at `path`; a dictionary among the changes goes into that group.

    A run evaluates and saves once, at its end: ten times, as by default, takes a third of the time of a tiny run.
    """
    config = RunConfig(
        expert=4,
        k=2,
        match="none",
        model=GPTConfig(num_layers=2, num_heads=2, d_model=16, d_ff=32, d_expert=12, context_length=16, ffn_type="mlp"),
        data=TextFilesConfig(path=str(path)),
        optim=MuonConfig(lr=0.03, adam_lr=0.01),
        train=TrainConfig(steps=6, batch_size=4, eval_every=99, eval_tokens=64, log_every=1, threads=1, device="cpu"),
    )
    groups = {key: replace(getattr(config, key), **value) for key, value in changes.items() if isinstance(value, dict)}
    return resolve(replace(config, **{**changes, **groups})).config


def tiny_task(config: RunConfig, outputs: Path) -> TextTask:
    return make_task(config, load_run_data(config, outputs))


def finish(config: RunConfig, outputs: Path, observer: Any = None) -> Run:
    """A new run of this configuration, carried out; without the checks of shapes, which double the time of a step."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        return run_one(create_run(outputs, "runs", config), outputs, observer)
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with every weight drawn at random: a fresh one answers alike whatever it is shown."""
    generator = torch.Generator().manual_seed(seed)
    for param in model.parameters():
        nn.init.normal_(param, std=0.5, generator=generator)
    return model
