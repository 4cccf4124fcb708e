"""How is each token of a text routed? Its experts in every sparse layer, their weights, and routing metrics.

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

from moe_cli.config.training import EvalConfig
from moe_cli.data.bpe import SubwordTokenizer
from moe_cli.moe.routing import Routing
from moe_cli.moe.routing_metrics import relative_load
from moe_cli.training.evaluate import eval_policy, evaluation_mode, new_stats


@dataclass(frozen=True)
class TextToken:
    """A token and its characters.

    Attributes:
        id: token id.
        text: the characters that begin in the token. The texts of all tokens joined are the text.
        part: 1 for a token with text; 2, 3, ... for the further tokens of a character that spans several, which have no
            text; 0 for a separator before the text.
    """

    id: int
    text: str
    part: int = 1


@dataclass(frozen=True)
class Assignment:
    """One expert of a token.

    Attributes:
        expert: index of the expert, from 0.
        weight: weight of the expert's output in the token's sum.
        kept: False if the assignment was over the capacity and was not computed.
    """

    expert: int
    weight: float
    kept: bool


@dataclass(frozen=True)
class LayerAssignments:
    """The routing of a text by one sparse layer.

    Attributes:
        layer: index among the sparse layers, from 0.
        block: index among all blocks, from 0.
        choices: for each token its assignments: kept ones first, then by weight.
        load: for each expert its fraction of all assignments times E: 1 is a fair load.
        measures: LAYER_METRICS of `moe_cli.metrics` for this text.
    """

    layer: int
    block: int
    choices: tuple[tuple[Assignment, ...], ...]
    load: tuple[float, ...]
    measures: dict[str, float]


@dataclass(frozen=True)
class Explanation:
    """The routing of a text by a model.

    Attributes:
        window: tokens of a forward pass; the windows of a text do not overlap and are independent.
        tokens: the tokens of the text.
        layers: the sparse layers, first to last.
    """

    window: int
    tokens: tuple[TextToken, ...]
    layers: tuple[LayerAssignments, ...]


def explain(
    model: nn.Module,
    tokens: Sequence[TextToken],
    blocks: Sequence[int],
    window: int,
    eval_config: EvalConfig,
    precision: str,
) -> Explanation:
    """Returns the routing of a text in evaluation mode.

    Args:
        blocks: indices of the blocks with a sparse layer.
        window: tokens of a forward pass.
        eval_config: the settings `eval`: experts per token, and a capacity, which applies to one window.
        precision: precision of the forward pass, as `train.precision`.
    """
    ids = torch.tensor([token.id for token in tokens])
    passes = list(_routings(model, ids, window, eval_config, precision))
    layers = []
    for layer, block in enumerate(blocks):
        stats = new_stats(passes[0][layer], int(ids.max()) + 1, 1)
        choices: list[tuple[Assignment, ...]] = []
        for window_ids, routings in zip(ids.split(window), passes, strict=True):
            stats.add(routings[layer], window_ids, torch.zeros_like(window_ids))
            choices += token_choices(routings[layer])
        load = relative_load(stats.tokens_per_expert)
        layers.append(LayerAssignments(layer, block, tuple(choices), load, stats.metrics()))
    return Explanation(window, tuple(tokens), tuple(layers))


@torch.no_grad()
def _routings(
    model: nn.Module, ids: Int[Tensor, " T"], window: int, eval_config: EvalConfig, precision: str
) -> Iterator[list[Routing]]:
    """Yields, for each window, the routings of all sparse layers."""
    with evaluation_mode(model, eval_policy(eval_config), precision) as (routed, device):
        for window_ids in ids.split(window):
            yield [on_cpu(routing) for routing in routed(window_ids[None].to(device))[1]]


def on_cpu(routing: Routing) -> Routing:
    """Returns a routing whose scores and assignments are on the CPU."""
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
    """Returns the assignments of each token: kept ones first, then by weight, then by the index of the expert."""
    by_token: list[list[Assignment]] = [[] for _ in range(routing.num_tokens)]
    columns = (routing.token_ids, routing.expert_ids, routing.weights, routing.kept)
    for token, expert, weight, kept in zip(*(column.tolist() for column in columns), strict=True):
        by_token[token].append(Assignment(expert, weight, kept))
    return [tuple(sorted(choices, key=lambda one: (not one.kept, -one.weight, one.expert))) for choices in by_token]


def text_tokens(text: str, tokenizer: Any) -> list[TextToken]:
    """Returns the tokens of a text; a character that spans several tokens belongs to the first of them.

    Raises:
        DataError: the tokenizer does not know a character.
    """
    ids = tokenizer.encode(text).tolist()
    ends = tokenizer.token_ends(text) if isinstance(tokenizer, SubwordTokenizer) else _ends(text, ids, tokenizer)
    tokens, first, part = [], 0, 1
    for position, token in enumerate(ids):
        # Characters without a token, such as skipped blanks, belong to the next token, or at the end to the last one.
        last = max(first, ends[position]) if position + 1 < len(ids) else len(text)
        part = 1 if last > first else part + 1
        tokens.append(TextToken(token, text[first:last], part))
        first = last
    return tokens


def _ends(text: str, ids: Sequence[int], tokenizer: Any) -> list[int]:
    """Returns, for each token, the index after the last character that begins in it."""
    starts = [0, *accumulate(len(char.encode()) for char in text)][:-1]
    widths = tokenizer.bytes_per_token()
    return [bisect_left(starts, end) for end in accumulate(int(widths[token]) for token in ids)]
