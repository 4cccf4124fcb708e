"""Which part of a corpus is held out for validation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# No document is more than this share of a validation split that holds whole documents, if there are smaller ones.
LARGEST_SHARE = 1 / 8
# Up to so many domains, each is represented in validation.
MOST_DOMAINS = 8
# Between training and validation text of one document, so that no training context reaches into validation.
GAP_TOKENS = 1024


@dataclass(frozen=True)
class Split:
    """A corpus with the documents that are held out moved to its end.

    Attributes:
        chosen: the documents held out; none: the text is cut where it is.
        order: the number of each, in the new order.
        train_end: training is what lies before, in units of `sizes`.
        cut: validation is from here on.
        size: of all.
    """

    chosen: set[int]
    order: NDArray[np.int64]
    train_end: int
    cut: int
    size: int


def split_documents(sizes: Sequence[int], val_fraction: float, domains: Sequence[int] = ()) -> Split:
    """Whole documents when they come near to the share wanted; else the text is cut at the share, with a gap.

    Args:
        domains: of each document, where there are a handful: the share is then taken of each that has enough documents.
    """
    chosen = _choose_of_each(sizes, val_fraction, domains) if len(domains) else set()
    chosen = chosen or choose_validation(sizes, val_fraction)
    held_out = np.zeros(len(sizes), bool)
    held_out[sorted(chosen)] = True
    order = np.concatenate((np.flatnonzero(~held_out), np.flatnonzero(held_out)))
    total = sum(sizes)
    if chosen:
        train_end = cut = total - sum(sizes[number] for number in chosen)
    else:
        train_end, cut = cut_with_gap(total, val_fraction)
    return Split(chosen, order, train_end, cut, total)


def _choose_of_each(sizes: Sequence[int], fraction: float, domains: Sequence[int]) -> set[int]:
    chosen: set[int] = set()
    for domain in set(domains):
        inside = [number for number, its in enumerate(domains) if its == domain]
        chosen |= {inside[place] for place in choose_validation([sizes[number] for number in inside], fraction)}
    return chosen


def cut_with_gap(num_tokens: int, val_fraction: float, most: int | None = None) -> tuple[int, int]:
    """Where training ends and where validation, of at most so many tokens, begins."""
    cut = int(num_tokens * (1 - val_fraction))
    cut = cut if most is None else max(cut, num_tokens - most)
    return cut - min(GAP_TOKENS, cut // 100), cut


def choose_validation(sizes: Sequence[int], fraction: float) -> set[int]:
    """Which documents of these sizes are held out for validation; none if whole ones do not come near to the share.

    From the last on, those that are small beside the share wanted, so that no single document decides how a model is
    judged; if that does not do, whatever comes last.
    """
    wanted = fraction * sum(sizes)
    for largest in (LARGEST_SHARE * wanted, math.inf):
        chosen: set[int] = set()
        total = 0
        for number in range(len(sizes) - 1, 0, -1):
            if sizes[number] <= largest and abs(total + sizes[number] - wanted) < abs(total - wanted):
                chosen.add(number)
                total += sizes[number]
        if wanted / 2 <= total <= 2 * wanted:
            return chosen
    return set()
