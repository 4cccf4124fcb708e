"""How good is a model, and how does it use its experts? The loss and the routing metrics over a validation split.

B sequences, L positions, T = B * L tokens, E experts, V tokens in the vocabulary, G domains.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from moe_cli.config.training import EvalConfig
from moe_cli.distributed import collectives
from moe_cli.metrics import layer_key
from moe_cli.moe.max_violation import max_violation
from moe_cli.moe.routing import Routing, RoutingPolicy, without_null_experts
from moe_cli.moe.routing_metrics import (
    assignment_mask,
    assignments_by_group,
    co_activation,
    dead_experts,
    load_cv,
    router_saturation,
    routing_entropy,
    specialisation,
)
from moe_cli.tasks.base import BY_DOMAIN, CONTEXT, Batch, Task
from moe_cli.tasks.bits_per_byte import bits_per_byte
from moe_cli.training.precision import autocast
from moe_cli.training.token_use import TokenExpertCounts

# Largest number of entries of a table that is recorded per layer: pairs of 64 experts, or 64 domains times 64 experts.
MAX_TABLE = 64 * 64
# The largest number of pairs of experts that an evaluation counts, those of 512 experts.
MAX_PAIRS = 512 * 512
# Number of token ids that are recorded for each expert.
TOP_TOKENS = 8
# Number of tokens whose expert choices are recorded at each evaluation.
PROBE_TOKENS = 256


@dataclass
class LayerRoutingStats:
    """The routing of one sparse layer, summed over an evaluation. Null experts are counted separately.

    Attributes:
        tokens_per_expert: assignments to each expert before drops.
        kept: assignments to each expert after drops.
        probs: sums of the routing probabilities, null experts included.
        pairs: tokens assigned to both experts of a pair, before drops; None if the table would be too large.
        by_token: assignments before drops, by the id of the input token.
        by_domain: assignments before drops, by the domain of the input token.
        entropy: sum of `routing_entropy` over tokens.
        num_tokens: number of routed tokens.
        to_null: assignments to null experts.
    """

    tokens_per_expert: Int[Tensor, " E"]
    kept: Int[Tensor, " E"]
    probs: Float[Tensor, " choices"]
    pairs: Int[Tensor, "E E"] | None
    by_token: TokenExpertCounts
    by_domain: Int[Tensor, "G E"]
    entropy: float = 0.0
    num_tokens: int = 0
    to_null: int = 0

    def add(self, routing: Routing, token_ids: Int[Tensor, " T"], domain_ids: Int[Tensor, " T"]) -> None:
        """Adds the routing of one batch, whose tokens have these ids and domains."""
        self.probs += routing.probs.double().sum(0).cpu()
        self.entropy += routing_entropy(routing.probs) * routing.num_tokens
        self.num_tokens += routing.num_tokens
        self.to_null += len(routing.expert_ids)
        routing = without_null_experts(routing)
        self.to_null -= len(routing.expert_ids)
        self.by_token.add(routing, token_ids)
        self.by_domain += assignments_by_group(routing, domain_ids, len(self.by_domain)).cpu()
        if self.pairs is not None:
            self.pairs += co_activation(assignment_mask(routing)).cpu()
        self.tokens_per_expert += routing.tokens_per_expert.cpu()
        self.kept += routing.kept_per_expert.cpu()

    def all_reduce(self) -> None:
        """Sums the counts over all processes."""
        for name in ("tokens_per_expert", "kept", "probs", "pairs", "by_domain"):
            if getattr(self, name) is not None:
                setattr(self, name, collectives.all_reduce_sum(getattr(self, name)))
        self.by_token.all_reduce()
        sums = collectives.all_reduce_sum(
            torch.tensor([self.entropy, self.num_tokens, self.to_null], dtype=torch.float64)
        ).tolist()
        self.entropy, self.num_tokens, self.to_null = sums[0], round(sums[1]), round(sums[2])

    def metrics(self) -> dict[str, float]:
        """Computes LAYER_METRICS of `moe_cli.metrics`.

        domain_specialisation needs text of several domains, and null_fraction needs null experts.
        """
        mean_probs = self.probs / self.num_tokens
        has_several_domains = int(self.by_domain.any(1).sum()) > 1
        num_assignments = self.tokens_per_expert.sum().item()
        return {
            "max_violation": max_violation(self.tokens_per_expert.tolist()),
            "load_cv": load_cv(self.tokens_per_expert),
            "routing_entropy": self.entropy / self.num_tokens,
            "mean_routing_entropy": routing_entropy(mean_probs.unsqueeze(0)),
            "dropped_fraction": (self.tokens_per_expert - self.kept).sum().item() / max(1, num_assignments),
            "dead_experts": dead_experts(self.tokens_per_expert),
            "token_specialisation": self.by_token.specialisation(),
            **({"domain_specialisation": specialisation(self.by_domain)} if has_several_domains else {}),
            **(
                {"null_fraction": self.to_null / (num_assignments + self.to_null)}
                if len(self.probs) > len(self.tokens_per_expert)
                else {}
            ),
        }

    def tables(self, domains: Sequence[str]) -> dict[str, Any]:
        """Returns co-activation, assignments of each domain to each expert, and top tokens, without too large tables.

        Args:
            domains: names of the G domains.
        """
        present = {name: counts.tolist() for name, counts in zip(domains, self.by_domain, strict=True) if counts.any()}
        is_small = len(present) * len(self.tokens_per_expert) <= MAX_TABLE
        return {
            **(
                {"co_activation": self.pairs.tolist()}
                if self.pairs is not None and self.pairs.numel() <= MAX_TABLE
                else {}
            ),
            **({"experts_by_domain": present} if is_small else {}),
            **({"top_tokens": self.top_tokens()} if TOP_TOKENS * len(self.tokens_per_expert) <= MAX_TABLE else {}),
        }

    def top_tokens(self) -> list[list[list[int]]]:
        """Returns the top tokens of each expert, see `TokenExpertCounts.top_tokens`."""
        load = (self.tokens_per_expert / self.tokens_per_expert.sum().clamp(min=1)).double()
        return self.by_token.top_tokens(load, TOP_TOKENS)


@dataclass
class Evaluation:
    """The result of an evaluation.

    Attributes:
        loss: mean loss in nats per target token.
        bits_per_byte: loss in bits per byte of text, which is comparable between tokenizers; None if the text of the
            tokens is unknown.
        num_tokens: number of target tokens.
        num_bytes: bytes of their text; None if it is unknown.
        domains: names of the domains of the data.
        measures: metrics of the task, such as accuracy.
        layers: routing of each sparse layer, first to last; empty for a dense model.
        domain_losses: nats per target token, for each domain with targets.
        mean_context: mean number of earlier tokens from which a causal model predicts a token; None for other models.
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
        """Returns exp(loss); infinity if it would overflow."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @cached_property
    def _metrics_by_layer(self) -> list[dict[str, float]]:
        return [layer.metrics() for layer in self.layers]

    def routing_metrics(self) -> dict[str, float] | None:
        """Returns LAYER_METRICS averaged over layers; None for a dense model."""
        by_layer = self._metrics_by_layer
        if not by_layer:
            return None
        return {key: sum(metrics[key] for metrics in by_layer) / len(by_layer) for key in by_layer[0]}

    def layer_metrics(self) -> dict[str, float]:
        """Returns all metrics of all layers, by keys such as moe/layer_03/max_violation (the third sparse layer)."""
        return {
            layer_key(number, key): value
            for number, metrics in enumerate(self._metrics_by_layer)
            for key, value in metrics.items()
        }

    def layer_records(self, tables: bool = False) -> list[dict[str, Any]]:
        """Returns a record for each layer: assignments per expert before and after drops, and metrics.

        Args:
            tables: True to include `LayerRoutingStats.tables`.
        """
        return [
            {
                "layer": number,
                "tokens_per_expert": layer.tokens_per_expert.tolist(),
                "kept_per_expert": layer.kept.tolist(),
                **metrics,
                **(layer.tables(self.domains) if tables else {}),
            }
            for number, (layer, metrics) in enumerate(zip(self.layers, self._metrics_by_layer, strict=True))
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
    observer: Callable[[Batch, list[Routing], list[tuple[Tensor, ...]]], None] | None = None,
) -> Evaluation:
    """Evaluates the model on the validation split, in evaluation mode. Mode and random state are restored.

    Args:
        batch_size: windows per forward pass; a capacity applies to all of them together unless drop=causal.
        max_tokens: approximate number of tokens to read, spread over the split; None means the whole split.
        policy: experts per token, capacity and drop rule; the default is the K of training without drops.
        precision: precision of the forward pass, as `train.precision`.
        observer: called after each batch of this process with the batch, the routings of the sparse layers, and for
            each stack the ids and domains of the routed tokens.
    """
    nats = 0.0
    num_targets = num_bytes = 0
    measured: dict[str, Tensor] = {}
    layers: list[LayerRoutingStats] = []
    with evaluation_mode(model, policy, precision) as (routed, device):
        for batch, is_local in _distribute_batches(task.val_batches(batch_size, max_tokens)):
            scored = task.score(routed, batch.to(device))
            layers = layers or [new_stats(routing, task.vocab_size, len(task.domains)) for routing in scored.routings]
            measured = measured or {name: torch.zeros_like(value).double().cpu() for name, value in scored.sums.items()}
            if not is_local:
                continue
            nats += scored.loss.item() * batch.num_targets
            num_targets += batch.num_targets
            num_bytes += batch.num_bytes or 0
            for name, value in scored.sums.items():
                measured[name] += value.double().cpu()
            stacks = [tuple(ids.to(device) for ids in stack) for stack in task.routed_ids_and_domains(batch)]
            for number, (layer, routing) in enumerate(zip(layers, scored.routings, strict=True)):
                layer.add(routing, *stacks[number * len(stacks) // len(layers)])
            if observer is not None:
                observer(batch, scored.routings, stacks)
    nats, *counts = collectives.all_reduce_sum(
        torch.tensor([nats, num_targets, num_bytes], dtype=torch.float64)
    ).tolist()
    num_targets, num_bytes = map(round, counts)
    measured = {name: collectives.all_reduce_sum(value) for name, value in measured.items()}
    for layer in layers:
        layer.all_reduce()
    return Evaluation(
        nats / num_targets,
        bits_per_byte(nats, num_bytes) if num_bytes else None,
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
    """Yields every N-th batch, N being the number of processes, and whether the batch belongs to this process.

    All processes get the same number of batches, because they may need each other in every forward pass. In the last
    round some get a batch of another process, whose results they ignore.
    """
    batches = iter(batches)
    while round_batches := list(islice(batches, collectives.world_size())):
        is_local = collectives.rank() < len(round_batches)
        yield round_batches[collectives.rank() if is_local else 0], is_local


@contextmanager
def evaluation_mode(
    model: nn.Module, policy: RoutingPolicy, precision: str
) -> Iterator[tuple["PolicyModel", torch.device]]:
    """Sets evaluation mode and a fixed random seed; restores mode and random state afterwards.

    Yields the model, whose sparse layers route by the policy, and its device.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    cuda = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=cuda), autocast(precision, device):
            torch.manual_seed(0)
            yield PolicyModel(model, policy), device
    finally:
        model.train(was_training)


class PolicyModel(nn.Module):
    """A model whose sparse layers route by a policy. With the default policy the model needs no such argument."""

    def __init__(self, model: nn.Module, policy: RoutingPolicy) -> None:
        super().__init__()
        self.model = model
        self.options = {} if policy == RoutingPolicy() else {"policy": policy}
        self.train(model.training)

    def forward(self, *inputs: Any, **options: Any) -> Any:
        return self.model(*inputs, **options, **self.options)


def eval_policy(config: EvalConfig) -> RoutingPolicy:
    """Returns the routing policy of the settings `eval`."""
    return RoutingPolicy(config.k, config.capacity, config.drop)


@torch.no_grad()
def probe_routing(
    model: nn.Module, task: Task, top_k: int | None = None, precision: str = "auto", num_tokens: int = PROBE_TOKENS
) -> list[Bool[Tensor, "_T E"]]:
    """Returns, for each sparse layer, the dropless choices of about `num_tokens` fixed validation tokens."""
    with evaluation_mode(model, RoutingPolicy(top_k), precision) as (routed, device):
        batches = task.val_batches(PROBE_TOKENS, num_tokens)
        passes = [
            [assignment_mask(routing).cpu() for routing in task.loss(routed, batch.to(device))[1]] for batch in batches
        ]
    return [torch.cat(layer) for layer in zip(*passes, strict=True)]


def expert_lists(mask: Bool[Tensor, "T E"]) -> list[list[int]]:
    """Returns the experts of each token, in ascending order."""
    return [row.nonzero().flatten().tolist() for row in mask]


def saturations(records: Iterable[dict[str, Any]], final: list[Bool[Tensor, "_T E"]]) -> list[dict[int, float]]:
    """Computes, for each layer and evaluation step, the router saturation of the recorded choices.

    Args:
        records: lines of routing.jsonl.
        final: choices of the final router for the same tokens.
    """
    result: list[dict[int, float]] = [{} for _ in final]
    for record in records:
        if "choices" in record:
            with suppress(LookupError, TypeError, ValueError, RuntimeError):  # the file may be damaged or edited
                last = final[record["layer"]]
                mask = torch.zeros_like(last)
                for row, experts in zip(mask, record["choices"], strict=True):
                    row[experts] = True
                result[record["layer"]][int(record["step"])] = router_saturation(mask, last)
    return result


def new_stats(routing: Routing, vocab_size: int, num_domains: int) -> LayerRoutingStats:
    """Returns empty statistics for a layer with routings like this one."""
    size = routing.num_experts - routing.num_null
    return LayerRoutingStats(
        tokens_per_expert=torch.zeros(size, dtype=torch.int64),
        kept=torch.zeros(size, dtype=torch.int64),
        probs=torch.zeros(routing.num_experts, dtype=torch.float64),
        pairs=torch.zeros(size, size, dtype=torch.int64) if size**2 <= MAX_PAIRS else None,
        by_token=TokenExpertCounts(vocab_size, size),
        by_domain=torch.zeros(num_domains, size, dtype=torch.int64),
    )
