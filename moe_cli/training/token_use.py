"""How often was each token id assigned to each expert? Counts over an evaluation.

Only pairs of a token id and an expert that occur take memory.
V token ids, E experts, P pairs that occur.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from moe_cli.distributed import collectives
from moe_cli.moe.routing import Routing
from moe_cli.moe.routing_metrics import normalised_information

# Number of assignments that are buffered before they are counted.
BUFFER_SIZE = 2**19
# Largest table V * E that is counted directly; a larger one is counted by sorting. Also the number of counts that
# processes exchange at a time.
MAX_DIRECT_SIZE = 2**18


class TokenExpertCounts:
    """The number of assignments of each token id to each expert, before drops.

    Attributes:
        keys: the pairs that occur, id * E + expert, in ascending order.
        counts: assignments of each pair.
    """

    def __init__(self, vocab_size: int, num_experts: int) -> None:
        self.vocab_size, self.num_experts = vocab_size, num_experts
        key_dtype = torch.int32 if vocab_size * num_experts < 2**31 else torch.int64
        self.keys: Int[Tensor, " P"] = torch.empty(0, dtype=key_dtype)
        self.counts: Int[Tensor, " P"] = torch.empty(0, dtype=torch.int32)
        # Allocated once, because a buffer per batch would fragment the memory.
        self._buffer = torch.empty(BUFFER_SIZE, dtype=key_dtype)
        self._num_buffered = 0

    def add(self, routing: Routing, token_ids: Int[Tensor, " T"]) -> None:
        """Adds the assignments of a routing without null experts, whose tokens have these ids."""
        keys = token_ids[routing.token_ids] * self.num_experts + routing.expert_ids
        while len(keys):
            free = self._buffer[self._num_buffered :]
            if not len(free):
                self.count()
                continue
            added, keys = keys[: len(free)], keys[len(free) :]
            free[: len(added)] = added
            self._num_buffered += len(added)

    def count(self) -> None:
        """Adds the buffered assignments to the counts."""
        if not self._num_buffered:
            return
        buffered, self._num_buffered = self._buffer[: self._num_buffered], 0
        if self.vocab_size * self.num_experts <= MAX_DIRECT_SIZE:
            table = torch.bincount(buffered, minlength=self.vocab_size * self.num_experts)
            table[self.keys.long()] += self.counts
            self.keys, self.counts = self._nonzero(table, 0)
            return
        keys, counts = buffered.unique(return_counts=True)
        self._merge(keys, counts.int())

    def _merge(self, keys: Int[Tensor, " N"], counts: Int[Tensor, " N"]) -> None:
        """Adds the counts of further keys in ascending order."""
        if not len(self.keys):
            self.keys, self.counts = keys, counts
            return
        merged, index = torch.cat([self.keys, keys]).unique(return_inverse=True)
        counts = torch.cat([self.counts, counts])
        self.counts = torch.zeros(len(merged), dtype=torch.int32).index_add_(0, index, counts)
        self.keys = merged

    def _nonzero(self, table: Int[Tensor, " N"], first: int) -> tuple[Int[Tensor, " P"], Int[Tensor, " P"]]:
        """Returns the keys and counts of the nonzero entries of a table, whose first key is `first`."""
        index = table.nonzero().flatten()
        return (index + first).to(self.keys.dtype), table[index].int()

    def all_reduce(self) -> None:
        """Sums the counts over all processes, MAX_DIRECT_SIZE entries of the table at a time."""
        self.count()
        if collectives.world_size() == 1:
            return
        parts = []
        size = self.vocab_size * self.num_experts
        for first in range(0, size, MAX_DIRECT_SIZE):
            bounds = torch.tensor([first, min(first + MAX_DIRECT_SIZE, size)], dtype=self.keys.dtype)
            low, high = torch.searchsorted(self.keys, bounds).tolist()
            table = torch.zeros(MAX_DIRECT_SIZE, dtype=torch.int64)
            table[self.keys[low:high].long() - first] = self.counts[low:high].long()
            parts.append(self._nonzero(collectives.all_reduce_sum(table), first))
        self.keys, self.counts = (torch.cat(part) for part in zip(*parts, strict=True))

    def per_token(self) -> Int[Tensor, " V"]:
        """Returns the number of assignments of each token id."""
        self.count()
        ids = self.keys // self.num_experts
        return torch.zeros(self.vocab_size, dtype=torch.int64).index_add_(0, ids, self.counts.long())

    def specialisation(self) -> float:
        """Computes `routing_metrics.specialisation` of the table [V, E] from its nonzero entries."""
        by_token = self.per_token()
        by_expert = torch.zeros(self.num_experts, dtype=torch.int64)
        by_expert.index_add_(0, self.keys % self.num_experts, self.counts.long())
        return normalised_information(by_token, by_expert, self.counts)

    def top_tokens(self, load: Float[Tensor, " E"], limit: int) -> list[list[list[int]]]:
        """Returns, for each expert, the token ids that chose it most above chance, at most `limit`.

        The excess over chance is the number of assignments to the expert minus the token's assignments times the
        expert's `load`. Only tokens with a positive excess are listed; equal ones are ordered by id.

        Args:
            load: fraction of all assignments that each expert has.

        Returns:
            For each expert a list of [token id, assignments to this expert, assignments to any expert].
        """
        total = self.per_token()
        experts = self.keys % self.num_experts
        by_expert = experts.argsort(stable=True)
        ends = torch.bincount(experts, minlength=self.num_experts).cumsum(0).tolist()
        result = []
        for expert, (first, end) in enumerate(zip([0, *ends], ends, strict=False)):
            pairs = by_expert[first:end]
            ids, counts = self.keys[pairs].long() // self.num_experts, self.counts[pairs].long()
            excess = counts.double() - total[ids].double() * load[expert]
            order = excess.argsort(descending=True, stable=True)[:limit]
            order = order[excess[order] > 0]
            result.append(torch.stack([ids[order], counts[order], total[ids[order]]], dim=1).tolist())
        return result
