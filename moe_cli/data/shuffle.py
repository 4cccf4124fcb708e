"""The order of the windows of an epoch: a shuffle determined by the seed and the epoch."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

# Up to this many windows (5e8 tokens with a context of 128) the shuffled order is held in memory, with 8 bytes each.
# For more windows, each entry of the order is computed when it is needed.
MAX_IN_MEMORY = 2**22
ROUNDS = 8


@dataclass(frozen=True)
class FeistelPermutation:
    """A permutation of 0 ... size - 1 in constant memory.

    It is an unbalanced Feistel network on pairs (left, right) with left < rows and right < columns, where rows x
    columns is slightly more than `size`. Each round adds a hash of one half to the other, modulo its range, which is
    invertible. Results outside the range are mapped again until they are inside (Black and Rogaway, Ciphers with
    arbitrary finite domains, 2002).
    """

    size: int
    keys: NDArray[np.uint64]

    def __getitem__(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        result = self._once(indices.astype(np.uint64))
        while len(outside := np.flatnonzero(result >= self.size)):
            result[outside] = self._once(result[outside])
        return result.astype(np.int64)

    def _once(self, indices: NDArray[np.uint64]) -> NDArray[np.uint64]:
        columns = int(np.ceil(np.sqrt(self.size)))
        rows = -(-self.size // columns)
        left, right = indices // np.uint64(columns), indices % np.uint64(columns)
        for number, key in enumerate(self.keys):
            if number % 2:
                right = (right + hash_integers(left, key) % np.uint64(columns)) % np.uint64(columns)
            else:
                left = (left + hash_integers(right, key) % np.uint64(rows)) % np.uint64(rows)
        return left * np.uint64(columns) + right


def hash_integers(values: NDArray[np.uint64], key: np.uint64) -> NDArray[np.uint64]:
    """Hashes values with a key by the finaliser of splitmix64 (Steele, Lea and Flood, 2014)."""
    values = values * np.uint64(0x9E3779B97F4A7C15) + key
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@dataclass(frozen=True)
class EpochOrder:
    """The offset of the first window of an epoch in the text, and the permutation of the windows."""

    offset: int
    windows: NDArray[np.int64] | FeistelPermutation


def epoch_order(seed: int, epoch: int, num_windows: int, max_offset: int) -> EpochOrder:
    """Returns the order of an epoch, with an offset below `max_offset`; a pure function of its arguments."""
    generator = np.random.default_rng((seed, epoch))
    offset = int(generator.integers(max_offset))
    if num_windows <= MAX_IN_MEMORY:
        return EpochOrder(offset, generator.permutation(num_windows))
    return EpochOrder(offset, FeistelPermutation(num_windows, generator.integers(2**64, size=ROUNDS, dtype=np.uint64)))


class ExampleOrder:
    """The order of separate examples, determined by the seed. Each epoch has every example once."""

    def __init__(self, seed: int, num_examples: int) -> None:
        self.num_examples = num_examples
        self._order = lru_cache(maxsize=2)(lambda epoch: epoch_order(seed, epoch, num_examples, 1).windows)

    def batch(self, index: int, size: int, part: int = 0, parts: int = 1) -> NDArray[np.int64]:
        """Returns the examples of the `part`-th of `parts` equal parts of the `index`-th batch of `size`."""
        part_size = size // parts
        first = index * size + part * part_size
        epochs, indices = np.divmod(np.arange(first, first + part_size), self.num_examples)
        return np.concatenate([self._order(int(epoch))[indices[epochs == epoch]] for epoch in np.unique(epochs)])


def evenly_spaced(total: int, wanted: int | None) -> NDArray[np.int64]:
    """Returns `wanted` of `total` examples, at least one, evenly spaced from first to last; None means all."""
    number = total if wanted is None else max(1, min(total, wanted))
    return np.linspace(0, total - 1, number).astype(np.int64)
