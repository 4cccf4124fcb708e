"""Routing of the tokens of one text: the chosen experts in every sparse layer, their weights, and routing metrics.

T tokens, E experts, V tokens in the vocabulary.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from moe_cli.data.bpe import SubwordTokenizer
from moe_cli.moe.routing import Routing
from moe_cli.training.evaluate import LayerRoutingStats, eval_policy, evaluation_mode, new_stats


@dataclass(frozen=True)
class TextToken:
    """Attributes:
    text: the characters that begin in it, so that those of all tokens are the text.
    part: 1; of a character spread over several tokens the later ones have no text and count on; 0: a separator before the text.
    """

    id: int
    text: str
    part: int = 1


@dataclass(frozen=True)
class Assignment:
    """An assignment of a token.

    Attributes:
        expert: from 0.
        weight: of the expert's output in the token's sum.
        kept: False means that the expert was full and the output was not computed.
    """

    expert: int
    weight: float
    kept: bool


@dataclass(frozen=True)
class LayerAssignments:
    """One sparse layer.

    Attributes:
        layer: its number among the sparse layers, from 0.
        block: its number among all layers, from 0.
        choices: for every token its assignments, best first: those kept, then by weight.
        load: per expert, the share of all assignments over a fair share 1 / E: 1 is even.
        measures: LAYER_METRICS of this text, see `moe_cli.metrics`.
    """

    layer: int
    block: int
    choices: tuple[tuple[Assignment, ...], ...]
    load: tuple[float, ...]
    measures: dict[str, float]


@dataclass(frozen=True)
class Explanation:
    """Attributes:
    window: tokens of one forward pass; the text is read in windows side by side, each by itself.
    """

    window: int
    tokens: tuple[TextToken, ...]
    layers: tuple[LayerAssignments, ...]


def explain(
    model: nn.Module, tokens: Sequence[TextToken], blocks: Sequence[int], window: int, policy: Any, precision: str
) -> Explanation:
    """Returns the routing of a text by the model's sparse layers at evaluation.

    Args:
        blocks: the indices of the blocks with a sparse layer.
        policy: the `EvalConfig`: experts per token, and the capacity, which applies to one window.
    """
    ids = torch.tensor([token.id for token in tokens])
    passes = list(_routings(model, ids, window, policy, precision))
    layers = []
    for layer, block in enumerate(blocks):
        stats = new_stats(passes[0][layer], int(ids.max()) + 1, 1)
        choices: list[tuple[Assignment, ...]] = []
        for part, routings in zip(ids.split(window), passes, strict=True):
            stats.add(routings[layer], part, torch.zeros_like(part))
            choices += token_choices(routings[layer])
        layers.append(LayerAssignments(layer, block, tuple(choices), _load(stats), stats.metrics()))
    return Explanation(window, tuple(tokens), tuple(layers))


@torch.no_grad()
def _routings(
    model: nn.Module, ids: Int[Tensor, " T"], window: int, policy: Any, precision: str
) -> Iterator[list[Routing]]:
    """Yields the routings of all sparse layers, with a forward pass for each window."""
    with evaluation_mode(model, eval_policy(policy), precision) as (routed, device):
        for part in ids.split(window):
            yield [_on_cpu(routing) for routing in routed(part[None].to(device))[1]]


def _on_cpu(routing: Routing) -> Routing:
    return replace(
        routing,
        logits=routing.logits.cpu(),
        probs=routing.probs.cpu(),
        token_ids=routing.token_ids.cpu(),
        expert_ids=routing.expert_ids.cpu(),
        weights=routing.weights.cpu(),
        kept=routing.kept.cpu(),
    )


def token_choices(routing: Routing) -> list[tuple[Assignment, ...]]:
    """Returns the assignments of every token, best first: those kept, then by weight, then by the expert's number."""
    found: list[list[Assignment]] = [[] for _ in range(routing.num_tokens)]
    columns = (routing.token_ids, routing.expert_ids, routing.weights, routing.kept)
    for token, expert, weight, kept in zip(*(column.tolist() for column in columns), strict=True):
        found[token].append(Assignment(expert, weight, kept))
    return [tuple(sorted(each, key=lambda choice: (not choice.kept, -choice.weight, choice.expert))) for each in found]


def _load(stats: LayerRoutingStats) -> tuple[float, ...]:
    return tuple((stats.asked * len(stats.asked) / stats.asked.sum().clamp(min=1)).tolist())


def text_tokens(text: str, tokenizer: Any) -> list[TextToken]:
    """Returns the tokens of a text with its characters, each whole in the token in which it begins.

    Raises:
        DataError: the tokenizer does not know a character.
    """
    ids = tokenizer.encode(text).tolist()
    ends = tokenizer.token_ends(text) if isinstance(tokenizer, SubwordTokenizer) else _ends(text, ids, tokenizer)
    tokens, first, part = [], 0, 1
    for place, token in enumerate(ids):
        # Text of no token, such as blanks that are left out, is with the next, and at the end with the last.
        last = max(first, ends[place]) if place + 1 < len(ids) else len(text)
        part = 1 if last > first else part + 1
        tokens.append(TextToken(token, text[first:last], part))
        first = last
    return tokens


def _ends(text: str, ids: Sequence[int], tokenizer: Any) -> list[int]:
    """Returns the end positions of the characters that begin in each token."""
    starts = [0, *accumulate(len(char.encode()) for char in text)][:-1]
    widths = tokenizer.bytes_per_token()
    return [bisect_left(starts, end) for end in accumulate(int(widths[token]) for token in ids)]
