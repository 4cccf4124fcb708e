"""How soon does a stream of tokens use an expert again? Repeats, and hits of a cache of experts.

Every definition reads earlier tokens only. The order is that of the stream: one text after another, as a process that
serves them one by one would see them, and nothing is forgotten between two texts.
T tokens, E experts, A assignments.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# The distances, in tokens, within which repeats are counted.
DISTANCES = (1, 4, 16, 64, 256)
# Comparisons of two experts that are made at a time.
MAX_COMPARISONS = 2**22


@dataclass
class ExpertLocality:
    """Counts over a stream of tokens, in constant memory.

    Attributes:
        repeats: for each distance n, the assignments whose expert one of the n tokens before was also assigned to.
        eligible: for each distance n, the assignments of tokens with at least n tokens before them.
        depths: assignments by the number of other experts that were used more recently than their own; the last entry
            counts first uses.
        num_tokens: tokens so far.
    """

    num_experts: int
    repeats: Int[Tensor, " N"] = field(default_factory=lambda: torch.zeros(len(DISTANCES), dtype=torch.int64))
    eligible: Int[Tensor, " N"] = field(default_factory=lambda: torch.zeros(len(DISTANCES), dtype=torch.int64))
    depths: Int[Tensor, " E_1"] = field(init=False)
    num_tokens: int = 0
    _last_use: Int[Tensor, " E"] = field(init=False)

    def __post_init__(self) -> None:
        self.depths = torch.zeros(self.num_experts + 1, dtype=torch.int64)
        self._last_use = torch.full((self.num_experts,), -1)

    def add(self, mask: Bool[Tensor, "T E"]) -> None:
        """Adds the next tokens of the stream, by the experts that each was assigned to."""
        if not len(mask):
            return
        times = self.num_tokens + torch.arange(len(mask))
        used = torch.where(mask, times[:, None], -1)
        last_uses = torch.cat([self._last_use[None], used]).cummax(0).values
        before, self._last_use = last_uses[:-1], last_uses[-1]
        self.num_tokens += len(mask)
        tokens, experts = mask.nonzero(as_tuple=True)
        last_use = before[tokens, experts]
        gap, is_reuse = times[tokens] - last_use, last_use >= 0
        for index, distance in enumerate(DISTANCES):
            is_eligible = times[tokens] >= distance
            self.eligible[index] += is_eligible.sum()
            self.repeats[index] += (is_eligible & is_reuse & (gap <= distance)).sum()
        self.depths += torch.bincount(
            torch.where(is_reuse, _depths(before, tokens, experts), self.num_experts), minlength=self.num_experts + 1
        )

    def repeated(self) -> list[float | None]:
        """Computes, for each distance n, the share of assignments that repeat an expert of the n tokens before.

        Only assignments of tokens with n tokens before them count; None without any. Tokens whose experts are drawn
        independently, expert e with probability p_e, repeat with sum_e p_e (1 - (1 - p_e)^n) / sum_e p_e.
        """
        pairs = zip(self.repeats.tolist(), self.eligible.tolist(), strict=True)
        return [number / total if total else None for number, total in pairs]

    def hit_rates(self) -> list[float]:
        """Computes, for c = 1 to E, the share of assignments that a cache of the c most recently used experts holds.

        The cache is of this layer alone and starts empty. All experts of a token are looked up before any of them
        enters; those of one token enter in the order of their index. By the stack property of LRU (Mattson et al. 1970,
        IBM Systems Journal 9(2)), an assignment is a hit if fewer than c experts were used more recently than its own.
        """
        total = max(1, int(self.depths.sum()))
        return (self.depths[:-1].cumsum(0).double() / total).tolist()


def _depths(before: Int[Tensor, "T E"], tokens: Int[Tensor, " A"], experts: Int[Tensor, " A"]) -> Int[Tensor, " A"]:
    """Counts, for each assignment, the experts that were used more recently than its own; later indices first."""
    num_experts = before.shape[1]
    recency = before * num_experts + torch.arange(num_experts)
    size = max(1, MAX_COMPARISONS // num_experts)
    parts = [
        (recency[token] > recency[token, expert][:, None]).sum(1)
        for token, expert in zip(tokens.split(size), experts.split(size), strict=True)
    ]
    return torch.cat(parts)


class TokenSample:
    """A uniform random sample of the rows of a stream, of at most `size` rows.

    Every row gets a random key, and the smallest keys are kept (Efraimidis and Spirakis 2006). Samples of the same seed
    that see equally many rows keep the same positions.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        self.size = size
        self._generator = torch.Generator().manual_seed(seed)
        self._keys: Float[Tensor, " N"] = torch.empty(0)
        self._rows: Any = None

    def add(self, rows: Any) -> None:
        """Adds a tensor of rows [T, ...]."""
        keys = torch.rand(len(rows), generator=self._generator)
        self._keys = torch.cat([self._keys, keys])
        self._rows = rows if self._rows is None else torch.cat([self._rows, rows])
        if len(self._keys) > self.size:
            self._keys, kept = self._keys.topk(self.size, largest=False, sorted=False)
            self._rows = self._rows[kept]

    def shuffled(self) -> Any:
        """Returns the rows of the sample in random order."""
        return self._rows[self._keys.argsort(stable=True)]
