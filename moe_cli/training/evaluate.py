"""evaluate(model, task) -> Evaluation: loss over a whole split, and how the experts were used."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from moe_cli.moe.layer import evaluation_policy
from moe_cli.moe.routing import Routing
from moe_cli.moe.stats import dead_experts, max_violation, routing_entropy, tokens_per_expert
from moe_cli.tasks.text import TextTask
from moe_cli.training.precision import autocast


@dataclass
class LayerUse:
    """One sparse layer's routing, summed over an evaluation."""

    asked: Tensor
    kept: Tensor
    probs: Tensor
    entropy: float = 0.0
    num_tokens: int = 0

    def add(self, routing: Routing) -> None:
        self.asked += tokens_per_expert(routing).cpu()
        self.kept += tokens_per_expert(routing, kept=True).cpu()
        self.probs += routing.probs.double().sum(0).cpu()
        self.entropy += routing_entropy(routing.probs) * routing.num_tokens
        self.num_tokens += routing.num_tokens

    def metrics(self) -> dict[str, float]:
        mean_probs = self.probs / self.num_tokens
        return {
            "max_violation": max_violation(self.asked),
            "routing_entropy": self.entropy / self.num_tokens,
            "mean_routing_entropy": routing_entropy(mean_probs.unsqueeze(0)),
            "dropped_fraction": 1 - self.kept.sum().item() / self.asked.sum().item(),
            "dead_experts": dead_experts(self.asked),
        }


@dataclass
class Evaluation:
    """What one pass over validation text gave.

    Attributes:
        loss: nats per token.
        bits_per_byte: loss in bits, per byte of text: comparable between tokenizers.
        layers: per sparse layer, first to last; empty for a dense model.
    """

    loss: float
    bits_per_byte: float
    num_tokens: int
    num_bytes: int
    layers: list[LayerUse] = field(default_factory=list)

    @property
    def perplexity(self) -> float:
        """exp(loss), per token; infinite where it would overflow."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    def routing_metrics(self) -> dict[str, float] | None:
        """The layers' measures, averaged over layers; None for a dense model."""
        if not self.layers:
            return None
        each = [layer.metrics() for layer in self.layers]
        return {key: sum(metrics[key] for metrics in each) / len(each) for key in each[0]}

    def layer_records(self) -> list[dict[str, Any]]:
        """Per layer, its measures and the assignments asked of and kept by each expert."""
        return [
            {"layer": number, "tokens_per_expert": layer.asked.tolist(), "kept_per_expert": layer.kept.tolist(),
             **layer.metrics()}
            for number, layer in enumerate(self.layers)
        ]  # fmt: skip


@torch.no_grad()
def evaluate(
    model: nn.Module,
    task: TextTask,
    batch_size: int,
    *,
    max_tokens: int | None = None,
    top_k: int | None = None,
    capacity_factor: float | None = None,
    precision: str = "auto",
) -> Evaluation:
    """The model on the validation split, in evaluation mode; leaves mode and random state as they were.

    Args:
        batch_size: windows per forward pass; a capacity counts over one pass, as in training.
        max_tokens: look at about so many tokens, spread over the split; None: the whole split.
        top_k: experts per token; None: as trained.
        capacity_factor: None drops nothing.
        precision: of the forward pass, as `train.precision`.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    nats = 0.0
    num_tokens = num_bytes = 0
    layers: list[LayerUse] = []
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), evaluation_policy(model, top_k, capacity_factor):
        torch.manual_seed(0)
        for batch in task.val_batches(batch_size, max_tokens):
            with autocast(precision, device):
                loss, routings = task.loss(model, batch.to(device))
            nats += loss.item() * batch.num_tokens
            num_tokens += batch.num_tokens
            num_bytes += batch.num_bytes
            layers = layers or [_empty(routing) for routing in routings]
            for layer, routing in zip(layers, routings, strict=True):
                layer.add(routing)
    model.train(was_training)
    return Evaluation(nats / num_tokens, nats / math.log(2) / num_bytes, num_tokens, num_bytes, layers)


def _empty(routing: Routing) -> LayerUse:
    counts = torch.zeros(routing.num_experts, dtype=torch.int64)
    return LayerUse(counts, counts.clone(), torch.zeros(routing.num_experts, dtype=torch.float64))
