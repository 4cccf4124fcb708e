"""The Routing record, which lists the experts of every token, and the drops of a capacity.

Routers write the record; back ends, losses and metrics read it.
T tokens, E experts, K chosen per token, A assignments (a token sent to an expert), C capacity of an expert.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from moe_cli.config.ranges import check_above


@dataclass(frozen=True)
class RoutingPolicy:
    """The routing settings of one forward pass.

    Attributes:
        top_k: K; None means the K of training.
        capacity_factor: None means no drops; router=expert_choice then uses the capacity of training.
        drop: the drop rule; None means `causal` in layers of causal models, else the rule of training.

    Raises:
        ConfigError: the capacity factor is not above 0.
    """

    top_k: int | None = None
    capacity_factor: float | None = None
    drop: str | None = None

    def __post_init__(self) -> None:
        check_above("capacity_factor", self.capacity_factor, 0)


@dataclass(frozen=True)
class Routing:
    """All assignments of a forward pass, in the order in which they fill the experts' capacity.

    Attributes:
        logits: float32, score of each expert for each token.
        probs: float32, softmax of the logits; router=sigmoid stores normalised scores.
        token_ids: int64, token of each assignment.
        expert_ids: int64, expert of each assignment.
        weights: float32, weight of the expert's output in the token's sum.
        kept: False for an assignment over the capacity, which contributes nothing.
        clean_logits: logits before the router's noise; None means no noise.
        noise_std: standard deviation of the noise.
        router_loss: a loss of the router itself, already weighted; None means no such loss.
        num_null: number of null experts, which compute nothing; they are the last of the E experts.
        rounds: K if the record lists the first choices of all tokens, then all second choices, and so on; 1 for any
            other order.
        is_dropless: True if all assignments are known to be kept, so that `kept` need not be read from the device. It
            must be False in a record with drops: use `keep_only`.
    """

    logits: Float[Tensor, "T E"]
    probs: Float[Tensor, "T E"]
    token_ids: Int[Tensor, " A"]
    expert_ids: Int[Tensor, " A"]
    weights: Float[Tensor, " A"]
    kept: Bool[Tensor, " A"]
    clean_logits: Float[Tensor, "T E"] | None = None
    noise_std: Float[Tensor, "T E"] | None = None
    router_loss: Float[Tensor, ""] | None = None
    num_null: int = 0
    rounds: int = 1
    is_dropless: bool = False

    @property
    def num_tokens(self) -> int:
        return self.probs.shape[0]

    @property
    def num_experts(self) -> int:
        return self.probs.shape[1]

    @cached_property
    def tokens_per_expert(self) -> Int[Tensor, " E"]:
        """Counts the assignments to each expert before drops, null experts included."""
        return count_ids(self.expert_ids, self.num_experts)

    @cached_property
    def kept_per_expert(self) -> Int[Tensor, " E"]:
        """Counts the assignments that each expert kept."""
        return count_ids(self.expert_ids[self.kept], self.num_experts)

    def keep_only(self, mask: Bool[Tensor, " A"]) -> "Routing":
        """Returns the routing with `kept` False wherever the mask is False. No assignment is removed."""
        return replace(self, kept=self.kept & mask, is_dropless=False)

    def take(self, index: Int[Tensor, " N"], **changes: Any) -> "Routing":
        """Returns the routing with the assignments of the index, in its order, and with changes of other fields."""
        return replace(
            self,
            token_ids=self.token_ids[index],
            expert_ids=self.expert_ids[index],
            weights=self.weights[index],
            kept=self.kept[index],
            rounds=1,
            **changes,
        )


def count_ids(ids: Int[Tensor, " N"], bound: int) -> Int[Tensor, " bound"]:
    """Counts each id in [0, bound). Unlike torch.bincount it does not wait for a GPU."""
    if ids.device.type == "cpu":
        return torch.bincount(ids, minlength=bound)
    return torch.zeros(bound, dtype=torch.int64, device=ids.device).index_add_(0, ids, torch.ones_like(ids))


def routing_from_top_k(
    logits: Float[Tensor, "T E"],
    probs: Float[Tensor, "T E"],
    top_experts: Int[Tensor, "T K"],
    weights: Float[Tensor, "T K"],
    *,
    clean_logits: Float[Tensor, "T E"] | None = None,
    noise_std: Float[Tensor, "T E"] | None = None,
) -> Routing:
    """Returns the Routing of K choices per token: first choices of all tokens, then second choices, and so on."""
    num_tokens, top_k = top_experts.shape
    token_ids = torch.arange(num_tokens, device=top_experts.device).repeat(top_k)
    kept = torch.ones(num_tokens * top_k, dtype=torch.bool, device=top_experts.device)
    expert_ids, weights = top_experts.T.reshape(-1), weights.T.reshape(-1)
    return Routing(
        logits,
        probs,
        token_ids,
        expert_ids,
        weights,
        kept,
        clean_logits=clean_logits,
        noise_std=noise_std,
        rounds=top_k,
        is_dropless=True,
    )


def identity_routing(expert_ids: Int[Tensor, " A"], num_experts: int) -> Routing:
    """Returns the routing that sends row i to expert_ids[i] with weight 1; its logits and probabilities are zero."""
    none = torch.zeros(1, 1, device=expert_ids.device).expand(expert_ids.shape[0], num_experts)
    kept: Bool[Tensor, " A"] = torch.ones_like(expert_ids, dtype=torch.bool)
    rows = torch.arange(kept.shape[0], device=kept.device)
    return Routing(none, none, rows, expert_ids, kept.float(), kept, is_dropless=True)


def without_null_experts(routing: Routing) -> Routing:
    """Returns the routing without null experts and without the assignments to them."""
    if not routing.num_null:
        return routing
    num_experts = routing.num_experts - routing.num_null
    real = (routing.expert_ids < num_experts).nonzero().squeeze(1)  # one read from a GPU, where each mask would be one
    return routing.take(
        real,
        logits=routing.logits[:, :num_experts],
        probs=routing.probs[:, :num_experts],
        clean_logits=None,
        noise_std=None,
        num_null=0,
    )


def to_blocks(routing: Routing, blocks: Sequence[int]) -> Routing:
    """Returns the routing to the blocks of experts: each assignment becomes one to every block of its expert.

    An expert is the sum of its blocks, which are numbered expert by expert. The new assignments have the weight of the
    old one. The shapes do not depend on the routing: an expert with fewer blocks has assignments that are not kept.

    Args:
        blocks: number of blocks of each expert.
    """
    device, most = routing.expert_ids.device, max(blocks)
    first = torch.tensor([0, *accumulate(blocks)], device=device)[routing.expert_ids].unsqueeze(1)
    own = torch.tensor(tuple(blocks), device=device)[routing.expert_ids].unsqueeze(1)
    offsets = torch.arange(most, device=device)
    none = routing.probs.new_zeros(1, 1).expand(routing.num_tokens, sum(blocks))
    return Routing(
        none,
        none,
        routing.token_ids.repeat_interleave(most),
        (first + torch.minimum(offsets, own - 1)).flatten(),
        routing.weights.repeat_interleave(most),
        (routing.kept.unsqueeze(1) & (offsets < own)).flatten(),
    )


def renormalise_kept(routing: Routing) -> Routing:
    """Rescales the kept weights of each token so that their sum is the sum of all its weights before drops."""
    sums = [
        routing.weights.new_zeros(routing.num_tokens).index_add(0, routing.token_ids, weights)
        for weights in (routing.weights, routing.weights * routing.kept)
    ]
    has_kept = sums[1] > 0
    factor = torch.where(has_kept, sums[0] / sums[1].where(has_kept, torch.ones_like(sums[1])), 1)
    return replace(routing, weights=routing.weights * factor[routing.token_ids])


def drop_overflow(routing: Routing, capacity: int, drop: str = "position") -> Routing:
    """Drops assignments so that no expert keeps more than `capacity`. Null experts keep all.

    A later token can displace an earlier one of its sequence; with `position` only for K > 1, because the first choices
    of all tokens come before the second. With `drop_overflow_in_order` it cannot.

    Args:
        drop: the assignments that an expert keeps. `position`: the first in the order of the record. `probability`:
            those with the highest routing probability, equal ones in the order of the record (batch prioritised
            routing, arXiv:2106.05974). `random`: a random subset, drawn from torch's generator.
    """
    if drop in ("probability", "random"):
        if drop == "random":
            order = torch.randperm(len(routing.expert_ids), device=routing.expert_ids.device)
        else:
            probs = routing.probs[routing.token_ids, routing.expert_ids]
            order = torch.argsort(probs, descending=True, stable=True)
        routing = routing.take(order)
    else:
        assert drop == "position", drop
    has_room = position_in_queue(routing.expert_ids, routing.num_experts) < capacity
    return routing.keep_only(has_room | to_null(routing))


def to_null(routing: Routing) -> Bool[Tensor, " A"]:
    """Returns True for assignments to null experts."""
    return routing.expert_ids >= routing.num_experts - routing.num_null


@dataclass(frozen=True)
class Sequences:
    """The sequences that the routed tokens form.

    Attributes:
        number: number of sequences.
        length: positions per sequence, padding included.
        mask: False for padding, which is not routed; None means no padding.
    """

    number: int
    length: int
    mask: Bool[Tensor, "*positions"] | None = None

    def ids(self, device: torch.device) -> Int[Tensor, " T"]:
        """Returns the index of the sequence of each token."""
        ids = torch.arange(self.number * self.length, device=device) // self.length
        return ids if self.mask is None else ids[self.mask.flatten()]


def drop_overflow_in_order(routing: Routing, capacity: int, sequences: Sequences) -> Routing:
    """Drops assignments so that an expert keeps only the first `capacity` of each sequence. Null experts keep all.

    All choices of a token come before those of the next token. A token therefore depends neither on later tokens nor on
    other sequences.
    """
    order = torch.argsort(routing.token_ids, stable=True)  # the record may have first choices before second choices
    queues = sequences.ids(order.device)[routing.token_ids] * routing.num_experts + routing.expert_ids
    has_room = torch.empty_like(routing.kept)
    has_room[order] = position_in_queue(queues[order], sequences.number * routing.num_experts) < capacity
    return routing.keep_only(has_room | to_null(routing))


def position_in_queue(queues: Int[Tensor, " A"], number: int) -> Int[Tensor, " A"]:
    """Returns, for each assignment, the number of earlier assignments in its queue.

    Args:
        queues: queue of each assignment, from 0 to number - 1.
    """
    by_queue = torch.argsort(queues, stable=True)
    # Not bincount, because torch.compile cannot infer the length of its result.
    counts = torch.zeros(number, dtype=torch.int64, device=by_queue.device)
    counts.index_add_(0, queues, torch.ones_like(by_queue))
    starts = counts.cumsum(0) - counts
    index = torch.empty_like(by_queue)
    index[by_queue] = torch.arange(len(by_queue), device=by_queue.device)
    return index - starts[queues]
