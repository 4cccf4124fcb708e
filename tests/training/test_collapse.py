"""From a collapsed start, which methods of balancing bring every expert back to work? The README's table is this test."""

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_cli.config.balances import (
    BalanceConfig,
    LoadBalance,
    NoBalance,
)
from moe_cli.config.schema import AdamWConfig
from moe_cli.moe.routers import Router
from moe_cli.moe.routing import Routing, from_choices
from moe_cli.training.evaluate import evaluate
from moe_cli.training.loop import Training
from tests.tiny import tiny_config
from tests.training.test_loop import make_training

STEPS = 600
EXPERTS = 4


class NoisyRouter(Router):
    """One expert by noisy logits (Shazeer): what the load loss needs, and no more."""

    def __init__(self, d_model: int, num_experts: int) -> None:
        super().__init__(d_model, num_experts, 1)
        self.noise = nn.Linear(d_model, num_experts, bias=False)
        nn.init.zeros_(self.noise.weight)

    def forward(self, x: Tensor) -> Routing:
        clean, _ = self.scores(x)
        std = F.softplus(self.noise(x)) + 0.01
        noisy = clean + std * torch.randn_like(clean) if self.training else clean
        probs = noisy.softmax(-1)
        chosen = probs.argmax(-1, keepdim=True)
        return replace(from_choices(noisy, probs, chosen, probs.gather(1, chosen)), clean_logits=clean, noise_std=std)


def collapsed_training(balance: BalanceConfig, text: Path, outputs: Path) -> Training:
    """A tiny model in which a bias of the gate, 5 in the logits, sends nearly every token to the first expert.

    Gates have no bias of their own: it comes through a feature of the embedding that is the same for every token.
    """
    config = tiny_config(
        text, expert=EXPERTS, k=1, balance=NoBalance(), optim=AdamWConfig(lr=0.003, schedule="constant", warmup=0.0),
        train={"steps": STEPS, "batch_size": 8, "eval_every": STEPS, "log_every": STEPS},
    )  # fmt: skip
    config = replace(config, balance=balance)
    training = make_training(config, outputs)
    model = training.model
    with torch.no_grad():
        model.embedding.weight[:, 0] = 3.0
        for layer in training.layers:
            if isinstance(balance, LoadBalance):
                layer.router = NoisyRouter(config.model.d_model, EXPERTS)
                layer.router.reset_parameters(torch.Generator().manual_seed(0))
            layer.router.gate.weight[0, 0] = 2.0
    return training


def violation(training: Training) -> float:
    """MaxVio over the validation text, averaged over layers: 0 when even, 7 when one of 8 gets all."""
    metrics = evaluate(training.model, training.task, 8).routing_metrics()
    assert metrics
    return metrics["max_violation"]
