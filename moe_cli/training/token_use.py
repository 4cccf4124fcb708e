"""Counts of the experts that each token id was assigned to, over an evaluation.

Memory grows with the pairs that occur, not with vocabulary times experts.

V token ids, E experts, A assignments, P pairs of a token and an expert that occur.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moe_cli.distributed import collectives
from moe_cli.moe.routing import Routing

# Assignments are gathered up to this number before they are counted, which bounds both the memory and the time that it takes.
BUFFERED = 2**19
# The size up to which a table is counted directly; a larger one is counted by sorting. Processes exchange as many
# numbers at a time.
DIRECT = 2**18


class TokenExpertCounts:
    """The number of assignments of each token id to each expert, before drops.

    Attributes:
        keys: the pairs that occur, id * E + expert, ascending.
        counts: the number of each pair.
    """

    def __init__(self, vocab_size: int, num_experts: int) -> None:
        self.vocab_size, self.num_experts = vocab_size, num_experts
        whole = torch.int32 if vocab_size * num_experts < 2**31 else torch.int64
        self.keys: Int[Tensor, " P"] = torch.empty(0, dtype=whole)
        self.counts: Int[Tensor, " P"] = torch.empty(0, dtype=torch.int32)
        # Allocated once, because a buffer per batch would fragment the memory.
        self._waiting = torch.empty(BUFFERED, dtype=whole)
        self._num_waiting = 0

    def add(self, routing: Routing, token_ids: Int[Tensor, " T"]) -> None:
        """Counts the assignments of a routing without null experts."""
        keys = token_ids[routing.token_ids] * self.num_experts + routing.expert_ids
        while len(keys):
            room = self._waiting[self._num_waiting :]
            if not len(room):
                self.count()
                continue
            part, keys = keys[: len(room)], keys[len(room) :]
            room[: len(part)] = part
            self._num_waiting += len(part)

    def count(self) -> None:
        """Adds the buffered assignments to the counts."""
        if not self._num_waiting:
            return
        waiting, self._num_waiting = self._waiting[: self._num_waiting], 0
        if self.vocab_size * self.num_experts <= DIRECT:
            table = torch.bincount(waiting, minlength=self.vocab_size * self.num_experts)
            table[self.keys.long()] += self.counts
            self._take(table, 0)
            return
        keys, counts = waiting.unique(return_counts=True)
        self._merge(keys, counts.int())

    def _merge(self, keys: Int[Tensor, " N"], counts: Int[Tensor, " N"]) -> None:
        """Adds counts of rising keys."""
        if not len(self.keys):
            self.keys, self.counts = keys, counts
            return
        merged, places = torch.cat([self.keys, keys]).unique(return_inverse=True)
        self.counts = torch.zeros(len(merged), dtype=torch.int32).index_add_(
            0, places, torch.cat([self.counts, counts])
        )
        self.keys = merged

    def _take(self, table: Int[Tensor, " N"], first: int) -> None:
        places = table.nonzero().flatten()
        self.keys, self.counts = (places + first).to(self.keys.dtype), table[places].int()

    def all_reduce(self) -> None:
        """Sums the counts over all processes, a part of the table at a time."""
        self.count()
        if collectives.world_size() == 1:
            return
        parts = []
        size = self.vocab_size * self.num_experts
        for first in range(0, size, DIRECT):
            low, high = torch.searchsorted(
                self.keys, torch.tensor([first, min(first + DIRECT, size)], dtype=self.keys.dtype)
            ).tolist()
            table = torch.zeros(DIRECT, dtype=torch.int64)
            table[self.keys[low:high].long() - first] = self.counts[low:high].long()
            table = collectives.all_reduce_sum(table)
            places = table.nonzero().flatten()
            parts.append(((places + first).to(self.keys.dtype), table[places].int()))
        self.keys, self.counts = (torch.cat(part) for part in zip(*parts, strict=True))

    @property
    def num_pairs(self) -> int:
        self.count()
        return len(self.keys)

    def per_token(self) -> Int[Tensor, " V"]:
        """Returns the assignments of each token."""
        self.count()
        ids = self.keys // self.num_experts
        return torch.zeros(self.vocab_size, dtype=torch.int64).index_add_(0, ids, self.counts.long())

    def specialisation(self) -> float:
        """Computes `stats.specialisation` of the table [V, E] from its nonzero entries."""
        by_token = self.per_token()
        by_expert = torch.zeros(self.num_experts, dtype=torch.int64)
        by_expert.index_add_(0, self.keys % self.num_experts, self.counts.long())
        total = max(1, int(by_expert.sum()))
        entropies = [
            torch.special.entr(part.double() / total).sum().item() for part in (by_token, by_expert, self.counts)
        ]
        bound = min(entropies[:2])
        information = entropies[0] + entropies[1] - entropies[2]
        return min(1.0, max(0.0, information / bound)) if bound > 1e-12 else 0.0

    def top_tokens(self, share: Float[Tensor, " E"], most: int) -> list[list[list[int]]]:
        """Returns, for each expert, the `most` token ids that chose it most above chance: [id, times it, times any].

        Above chance: the count minus the token's assignments times the expert's fraction of all assignments. Of equal
        ones the lowest id comes first. A token that never chose an expert is not above chance.
        """
        total = self.per_token()
        experts = self.keys % self.num_experts
        by_expert = experts.argsort(stable=True)
        ends = torch.bincount(experts, minlength=self.num_experts).cumsum(0).tolist()
        result = []
        for expert, (first, end) in enumerate(zip([0, *ends], ends, strict=False)):
            own = by_expert[first:end]
            ids, times = self.keys[own].long() // self.num_experts, self.counts[own].long()
            excess = times.double() - total[ids].double() * share[expert]
            order = excess.argsort(descending=True, stable=True)[:most]
            result.append(
                [
                    [int(ids[place]), int(times[place]), int(total[ids[place]])]
                    for place in order.tolist()
                    if excess[place] > 0
                ]
            )
        return result
