"""Which windows documents are cut into when none holds more than one. D documents, W windows, L positions."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class DocumentWindows:
    """Every token of a split is a target once: of a document longer than a window, in several.

    What a window shows is its targets moved by one place: before the first token of a document stands the separator.

    Attributes:
        starts: the first target of each window, rising.
        sizes: how many targets it has, at most L.
    """

    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def sizes_at(self, starts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of the windows that begin there."""
        return self.sizes[np.searchsorted(self.starts, starts)]


def document_windows(begins: NDArray[np.int64], num_tokens: int, length: int) -> DocumentWindows:
    """The windows of documents that begin at `begins`, the first at 0, of `num_tokens` in all."""
    lengths = np.diff(begins, append=num_tokens)
    counts = -(-lengths // length)
    number = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = np.repeat(begins, counts) + number * length
    return DocumentWindows(starts, np.minimum(np.repeat(begins + lengths, counts) - starts, length))
