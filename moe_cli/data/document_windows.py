"""Windows that each hold tokens of one document only. D documents, W windows, L positions."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class DocumentWindows:
    """Windows that score every token of a split once. A document longer than a window has several.

    The inputs of a window are its targets shifted by one position. Before the first token of a document they have the
    separator.

    Attributes:
        starts: the first target of each window, ascending.
        sizes: the number of its targets, at most L.
        skipped: the number of its first targets that earlier windows score.
    """

    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    skipped: NDArray[np.int64]

    def sizes_at(self, starts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the sizes of the windows with these starts."""
        return self.sizes[np.searchsorted(self.starts, starts)]


def document_windows(
    begins: NDArray[np.int64], num_tokens: int, length: int, stride: int | None = None
) -> DocumentWindows:
    """Returns the windows of documents that begin at `begins`, the first at 0, with `num_tokens` in total.

    Args:
        stride: targets from one window of a document to its next; a window scores its last `stride` targets; None means
            `length`.
    """
    stride = stride or length
    lengths = np.diff(begins, append=num_tokens)
    counts = 1 + -(-np.maximum(lengths - length, 0) // stride)
    number = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = np.repeat(begins, counts) + number * stride
    sizes = np.minimum(np.repeat(begins + lengths, counts) - starts, length)
    return DocumentWindows(starts, sizes, np.where(number, length - stride, 0))
