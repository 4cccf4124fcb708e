"""evaluate(model, task) -> Evaluation: loss over a whole split, and how the experts were used.

B sequences, L positions, T = B * L tokens, E experts, V tokens in the vocabulary, G domains.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from moe_cli.config.schema import EvalConfig
from moe_cli.distributed import collectives
from moe_cli.metrics import layer_key
from moe_cli.moe.routing import Routing, RoutingPolicy, without_null_experts
from moe_cli.moe.routing_metrics import (
    assignments_by_group,
    chosen_mask,
    co_activation,
    dead_experts,
    load_cv,
    max_violation,
    router_saturation,
    routing_entropy,
    specialisation,
)
from moe_cli.tasks.base import BY_DOMAIN, CONTEXT, Batch, Task
from moe_cli.training.precision import autocast
from moe_cli.training.token_use import TokenExpertCounts

# Tables of a layer are recorded up to this many numbers: 64 experts in pairs, or 64 domains of 64 experts.
MAX_TABLE = 64 * 64
# Of each expert, the tokens that are recorded as its own.
TOP_TOKENS = 8
# Tokens whose choices are remembered at each evaluation.
PROBE_TOKENS = 256


@dataclass
class LayerRoutingStats:
    """One sparse layer's routing, summed over an evaluation: the usage of E experts, and null experts separately.

    Attributes:
        probs: over all choices of the router, including null experts.
        pairs: tokens assigned to both experts, before drops; None if the table would be large.
        by_token, by_domain: assignments before drops, by the id of the input token, and by its domain.
        to_null: assignments to null experts.
    """

    asked: Int[Tensor, " E"]
    kept: Int[Tensor, " E"]
    probs: Float[Tensor, " choices"]
    pairs: Int[Tensor, "E E"] | None
    by_token: TokenExpertCounts
    by_domain: Int[Tensor, "G E"]
    entropy: float = 0.0
    num_tokens: int = 0
    to_null: int = 0

    def add(self, routing: Routing, token_ids: Int[Tensor, " T"], domain_ids: Int[Tensor, " T"]) -> None:
        self.probs += routing.probs.double().sum(0).cpu()
        self.entropy += routing_entropy(routing.probs) * routing.num_tokens
        self.num_tokens += routing.num_tokens
        self.to_null += len(routing.expert_ids)
        routing = without_null_experts(routing)
        self.to_null -= len(routing.expert_ids)
        self.by_token.add(routing, token_ids)
        self.by_domain += assignments_by_group(routing, domain_ids, len(self.by_domain)).cpu()
        if self.pairs is not None:
            self.pairs += co_activation(chosen_mask(routing)).cpu()
        self.asked += routing.tokens_per_expert.cpu()
        self.kept += routing.kept_per_expert.cpu()

    def all_reduce(self) -> None:
        """Sums the counts over all processes."""
        for name in ("asked", "kept", "probs", "pairs", "by_domain"):
            if getattr(self, name) is not None:
                setattr(self, name, collectives.all_reduce_sum(getattr(self, name)))
        self.by_token.all_reduce()
        sums = collectives.all_reduce_sum(
            torch.tensor([self.entropy, self.num_tokens, self.to_null], dtype=torch.float64)
        ).tolist()
        self.entropy, self.num_tokens, self.to_null = sums[0], round(sums[1]), round(sums[2])

    def metrics(self) -> dict[str, float]:
        """Computes LAYER_METRICS of `moe_cli.metrics`.

        Specialisation by domain is left out if all text is one domain, and null_fraction without null experts.
        """
        mean_probs = self.probs / self.num_tokens
        several = int(self.by_domain.any(1).sum()) > 1
        asked = self.asked.sum().item()
        return {
            "max_violation": max_violation(self.asked),
            "load_cv": load_cv(self.asked),
            "routing_entropy": self.entropy / self.num_tokens,
            "mean_routing_entropy": routing_entropy(mean_probs.unsqueeze(0)),
            "dropped_fraction": (self.asked - self.kept).sum().item() / max(1, asked),
            "dead_experts": dead_experts(self.asked),
            "token_specialisation": self.by_token.specialisation(),
            **({"domain_specialisation": specialisation(self.by_domain)} if several else {}),
            **({"null_fraction": self.to_null / (asked + self.to_null)} if len(self.probs) > len(self.asked) else {}),
        }

    def tables(self, domains: Sequence[str]) -> dict[str, Any]:
        """Returns co-activation, assignments of each domain to each expert, and top tokens.

        Large tables are left out.
        """
        present = {name: counts.tolist() for name, counts in zip(domains, self.by_domain, strict=True) if counts.any()}
        small = len(present) * len(self.asked) <= MAX_TABLE
        return {
            **({"co_activation": self.pairs.tolist()} if self.pairs is not None else {}),
            **({"experts_by_domain": present} if small else {}),
            **({"top_tokens": self.top_tokens()} if TOP_TOKENS * len(self.asked) <= MAX_TABLE else {}),
        }

    def top_tokens(self) -> list[list[list[int]]]:
        """Returns, for each expert, the TOP_TOKENS ids that chose it most above chance: [id, times it, times any]."""
        share = (self.asked / self.asked.sum().clamp(min=1)).double()
        return self.by_token.top_tokens(share, TOP_TOKENS)


@dataclass
class Evaluation:
    """The result of one pass over validation text.

    Attributes:
        loss: nats per token.
        bits_per_byte: loss in bits per byte of text, comparable between tokenizers. None, like `num_bytes`, means that
            the text of the tokens is unknown.
        domains: names of the domains of the data.
        measures: the metrics of the task, such as accuracy.
        domain_losses: nats per target, for every domain that has targets.
        layers: one entry per sparse layer, first to last; empty for a dense model.
        mean_context: the mean number of earlier tokens that a causal model predicts a token from; None for other
            models.
    """

    loss: float
    bits_per_byte: float | None
    num_tokens: int
    num_bytes: int | None
    domains: Sequence[str]
    measures: dict[str, float] = field(default_factory=dict)
    layers: list[LayerRoutingStats] = field(default_factory=list)
    domain_losses: dict[str, float] = field(default_factory=dict)
    mean_context: float | None = None

    @property
    def perplexity(self) -> float:
        """Returns exp(loss), per token; infinite if it would overflow."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    def routing_metrics(self) -> dict[str, float] | None:
        """Returns the layers' measures, averaged over layers; None for a dense model."""
        if not self.layers:
            return None
        each = [layer.metrics() for layer in self.layers]
        return {key: sum(metrics[key] for metrics in each) / len(each) for key in each[0]}

    def layer_metrics(self) -> dict[str, float]:
        """Returns every metric of every layer: moe/layer_03/max_violation is that of the fourth sparse layer."""
        return {
            layer_key(number, key): value
            for number, layer in enumerate(self.layers)
            for key, value in layer.metrics().items()
        }

    def layer_records(self, tables: bool = False) -> list[dict[str, Any]]:
        """Returns, per layer, its metrics, the assignments to each expert before and after drops, and its tables."""
        return [
            {
                "layer": number,
                "tokens_per_expert": layer.asked.tolist(),
                "kept_per_expert": layer.kept.tolist(),
                **layer.metrics(),
                **(layer.tables(self.domains) if tables else {}),
            }
            for number, layer in enumerate(self.layers)
        ]


@torch.no_grad()
def evaluate(
    model: nn.Module,
    task: Task,
    batch_size: int,
    *,
    max_tokens: int | None = None,
    policy: RoutingPolicy = RoutingPolicy(),  # noqa: B008  (frozen)
    precision: str = "auto",
) -> Evaluation:
    """Evaluates the model on the validation split, in evaluation mode. Mode and random state are restored.

    Args:
        batch_size: windows per forward pass; a capacity applies to all of them unless drop=causal.
        max_tokens: read about this number of tokens, spread over the split; None means the whole split.
        policy: experts per token, and the drop rule; by default as trained, without drops.
        precision: of the forward pass, as `train.precision`.
    """
    nats = 0.0
    num_targets = num_bytes = 0
    measured: dict[str, Tensor] = {}
    layers: list[LayerRoutingStats] = []
    with evaluation_mode(model, policy, precision) as (routed, device):
        for batch, own in _distribute_batches(task.val_batches(batch_size, max_tokens)):
            scored = task.score(routed, batch.to(device))
            layers = layers or [new_stats(each, task.vocab_size, len(task.domains)) for each in scored.routings]
            measured = measured or {name: torch.zeros_like(value).double().cpu() for name, value in scored.sums.items()}
            if not own:
                continue
            nats += scored.loss.item() * batch.num_targets
            num_targets += batch.num_targets
            num_bytes += batch.num_bytes or 0
            for name, value in scored.sums.items():
                measured[name] += value.double().cpu()
            stacks = [tuple(ids.to(device) for ids in stack) for stack in task.routed_ids_and_domains(batch)]
            for number, (layer, routing) in enumerate(zip(layers, scored.routings, strict=True)):
                layer.add(routing, *stacks[number * len(stacks) // len(layers)])
    nats, *counts = collectives.all_reduce_sum(
        torch.tensor([nats, num_targets, num_bytes], dtype=torch.float64)
    ).tolist()
    num_targets, num_bytes = map(round, counts)
    measured = {name: collectives.all_reduce_sum(value) for name, value in measured.items()}
    for layer in layers:
        layer.all_reduce()
    return Evaluation(
        nats / num_targets,
        nats / math.log(2) / num_bytes if num_bytes else None,
        num_targets,
        num_bytes or None,
        task.domains,
        task.metrics(measured, num_targets),
        layers,
        _domain_losses(task, measured),
        float(measured[CONTEXT]) / num_targets if CONTEXT in measured else None,
    )


def _domain_losses(task: Task, measured: Mapping[str, Tensor]) -> dict[str, float]:
    if BY_DOMAIN not in measured:
        return {}
    sums, numbers = measured[BY_DOMAIN].tolist()
    return {name: nats / number for name, nats, number in zip(task.domains, sums, numbers, strict=True) if number}


def _distribute_batches(batches: Iterable[Batch]) -> Iterator[tuple[Batch, bool]]:
    """This process's batches, the processes taking turns, and whether they count.

    All are given equally many, since they may need each other in every forward pass: in the last round some are given
    one that belongs to another, which does not count.
    """
    batches = iter(batches)
    while turn := list(islice(batches, collectives.world_size())):
        own = collectives.rank() < len(turn)
        yield turn[collectives.rank() if own else 0], own


@contextmanager
def evaluation_mode(
    model: nn.Module, policy: RoutingPolicy, precision: str
) -> Iterator[tuple["PolicyModel", torch.device]]:
    """Sets evaluation mode and fixed random numbers; restores mode and random state afterwards.

    Yields the model, which then routes by the policy, and its device.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(0)
        with autocast(precision, device):
            yield PolicyModel(model, policy), device
    model.train(was_training)


class PolicyModel(nn.Module):
    """A model whose sparse layers route by a policy. With the default policy it works for any model."""

    def __init__(self, model: nn.Module, policy: RoutingPolicy) -> None:
        super().__init__()
        self.model = model
        self.options = {} if policy == RoutingPolicy() else {"policy": policy}
        self.train(model.training)

    def forward(self, *inputs: Any, **options: Any) -> Any:
        return self.model(*inputs, **options, **self.options)


def eval_policy(config: EvalConfig) -> RoutingPolicy:
    """Returns the policy of an evaluation's settings."""
    return RoutingPolicy(config.k, config.capacity, config.drop)


@torch.no_grad()
def probe_routing(
    model: nn.Module, task: Task, top_k: int | None = None, precision: str = "auto"
) -> list[Bool[Tensor, "_T E"]]:
    """Returns the dropless choices of each sparse layer for about PROBE_TOKENS fixed validation tokens."""
    with evaluation_mode(model, RoutingPolicy(top_k), precision) as (routed, device):
        batches = task.val_batches(PROBE_TOKENS, PROBE_TOKENS)
        passes = [
            [chosen_mask(routing).cpu() for routing in task.loss(routed, batch.to(device))[1]] for batch in batches
        ]
    return [torch.cat(layer) for layer in zip(*passes, strict=True)]


def expert_lists(chosen: Bool[Tensor, "T E"]) -> list[list[int]]:
    """Returns the experts of each token, in rising order."""
    return [row.nonzero().flatten().tolist() for row in chosen]


def saturations(records: Iterable[dict[str, Any]], final: list[Bool[Tensor, "_T E"]]) -> list[dict[int, float]]:
    """Returns, for each layer, evaluation step -> router saturation of the recorded choices against the final ones."""
    result: list[dict[int, float]] = [{} for _ in final]
    for record in records:
        if "choices" in record:
            with suppress(LookupError, TypeError, ValueError, RuntimeError):  # of a file that was damaged or edited
                last = final[record["layer"]]
                chosen = torch.zeros_like(last)
                for row, experts in zip(chosen, record["choices"], strict=True):
                    row[experts] = True
                result[record["layer"]][int(record["step"])] = router_saturation(chosen, last)
    return result


def new_stats(routing: Routing, vocab_size: int, num_domains: int) -> LayerRoutingStats:
    size = routing.num_experts - routing.num_null
    asked, kept, by_domain = (torch.zeros(*shape, size, dtype=torch.int64) for shape in ((), (), (num_domains,)))
    pairs = torch.zeros(size, size, dtype=torch.int64) if size**2 <= MAX_TABLE else None
    probs = torch.zeros(routing.num_experts, dtype=torch.float64)
    return LayerRoutingStats(asked, kept, probs, pairs, TokenExpertCounts(vocab_size, size), by_domain)
