"""Windows that each hold tokens of one document only. D documents, W windows, L positions."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class DocumentWindows:
    """Every token of a split is scored once: of a document longer than a window, in several.

    What a window shows is its targets moved by one place: before the first token of a document stands the separator.

    Attributes:
        starts: the first target of each window, rising.
        sizes: how many targets it has, at most L.
        skipped: how many of those, its first, the windows before it score.
    """

    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    skipped: NDArray[np.int64]

    def sizes_at(self, starts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of the windows that begin there."""
        return self.sizes[np.searchsorted(self.starts, starts)]


def document_windows(
    begins: NDArray[np.int64], num_tokens: int, length: int, stride: int | None = None
) -> DocumentWindows:
    """The windows of documents that begin at `begins`, the first at 0, of `num_tokens` in all.

    Args:
        stride: from one window of a document to its next; a window scores its last `stride` targets; None: `length`.
    """
    stride = stride or length
    lengths = np.diff(begins, append=num_tokens)
    counts = 1 + -(-np.maximum(lengths - length, 0) // stride)
    number = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = np.repeat(begins, counts) + number * stride
    sizes = np.minimum(np.repeat(begins + lengths, counts) - starts, length)
    return DocumentWindows(starts, sizes, np.where(number, length - stride, 0))
