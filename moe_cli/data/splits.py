"""Splits of a corpus: training, validation, and a test split if one is requested."""

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moe_cli.config.data import DataConfig
from moe_cli.config.settings import default_of
from moe_cli.errors import DataError

# The splits, and their purpose in messages.
SPLIT_LABELS = {"train": "training", "val": "validation", "test": "a test"}
SPLITS = tuple(SPLIT_LABELS)
TRAIN, VAL, TEST = range(3)
# The largest fraction of a held-out split of whole documents that one document may have, if smaller ones exist.
MAX_DOCUMENT_FRACTION = 1 / 8
# Up to this many domains, each domain is represented in the held-out splits.
MAX_DOMAINS = 8
# Gap between the splits in one document, so that no training context overlaps held-out text.
GAP_TOKENS = 1024
_NAMES = [
    re.compile(rf"(?<![a-z])({synonyms})(?![a-z])")
    for synonyms in ("train|training|trainset", "val|valid|validation|valset|dev|devset", "test|testing|testset")
]


@dataclass(frozen=True)
class Split:
    """The held-out documents of a corpus; or the cuts of its text, if whole documents do not give the fraction.

    Attributes:
        parts: TRAIN, VAL or TEST for each document.
        cut: the start and end of each of SPLITS in the text of the TRAIN documents, in units of `sizes`. None means
            that all of this text is trained on.
        lengths: the length of each of SPLITS, in the same units.
    """

    parts: NDArray[np.int64]
    cut: tuple[tuple[int, int], ...] | None
    lengths: tuple[int, ...]


def split_from_name(*names: str) -> int | None:
    """Returns TRAIN, VAL or TEST if a name has such a word: train, wiki.valid.tokens, my-test-set; the last counts."""
    for name in reversed(names):
        found = [part for part, pattern in enumerate(_NAMES) if pattern.search(name.lower())]
        if found:
            return found[-1]
    return None


def splits_by_name(names: Sequence[Path]) -> list[int] | None:
    """Returns the split of each file if the first part of every name gives one, for training and another split."""
    found = [split_from_name(name.parts[0]) for name in names]
    if None in found or TRAIN not in found or set(found) == {TRAIN}:
        return None
    return [part for part in found if part is not None]


def ignored_split_names(names: Sequence[Path]) -> str | None:
    """Returns a warning if some names look like held-out splits but `splits_by_name` finds no splits; else None."""
    split_of = {name.parts[0]: split_from_name(name.parts[0]) for name in names}
    held_out = sorted(name for name, part in split_of.items() if part in (VAL, TEST))
    if not held_out or splits_by_name(names):
        return None
    others = sorted(name for name, part in split_of.items() if part is None)
    reason = f"{others[0]} is named as no split" if TRAIN in split_of.values() else "nothing is named train"
    named = ", ".join([*held_out[:3], *(["..."] if len(held_out) > 3 else [])])
    return f"{named} may be trained on: names give no splits, because {reason}"


def refuse_unused_fraction(data: DataConfig, parts: Collection[int], where: str) -> None:
    """Raises DataError for a fraction to hold out that has no effect because file names give the held-out splits.

    Args:
        parts: VAL, TEST: the splits that names give.
        where: the data as the user gave them.

    Raises:
        DataError: the fraction of one of these parts is not the default.
    """
    for part, key in ((VAL, "val_fraction"), (TEST, "test_fraction")):
        fraction = getattr(data, key)
        if part in parts and fraction != default_of(data, key):
            raise DataError(
                f"data.{key}={fraction} has no effect: file names in {where} give the held-out splits. Leave it out."
            )


def split_documents(
    sizes: Sequence[int],
    val_fraction: float,
    domains: Sequence[int] = (),
    test_fraction: float = 0.0,
    known_splits: Sequence[int] | None = None,
) -> Split:
    """Holds out whole documents if they come near the fractions; else cuts the text at the fractions, with gaps.

    The test split is chosen first, as if there were no validation.

    Args:
        domains: the domain of each document, if domains are few: the fractions are then applied to each domain that has
            enough documents.
        known_splits: the split of each document. If none is for validation, that fraction of the training documents is
            held out.
    """
    parts = np.full(len(sizes), TRAIN) if known_splits is None else np.array(known_splits)
    val_fraction /= 1 - test_fraction
    cut = None
    for part, fraction in ((TEST, test_fraction), (VAL, 0.0 if VAL in parts else val_fraction)):
        if not fraction:
            continue
        rest = np.flatnonzero(parts == TRAIN).tolist()
        left, of_domains = ([values[number] for number in rest] if len(values) else [] for values in (sizes, domains))
        held_out = _choose(left, of_domains, fraction)
        if not held_out:
            cut = _cut_text(sum(left), val_fraction, test_fraction if part == TEST else 0.0)
            break
        parts[[rest[index] for index in held_out]] = part
    split_sizes = np.bincount(parts, np.asarray(sizes), len(SPLITS)).astype(np.int64).tolist()
    if cut is None:
        return Split(parts, None, tuple(split_sizes))
    cut_lengths = [end - begin for begin, end in cut]
    return Split(
        parts, cut, (cut_lengths[TRAIN], cut_lengths[VAL] + split_sizes[VAL], cut_lengths[TEST] + split_sizes[TEST])
    )


def _choose(sizes: Sequence[int], domains: Sequence[int], fraction: float) -> set[int]:
    held_out: set[int] = set()
    for domain in set(domains):
        inside = [number for number, label in enumerate(domains) if label == domain]
        held_out |= {inside[index] for index in choose_held_out([sizes[number] for number in inside], fraction)}
    return held_out or choose_held_out(sizes, fraction)


def _cut_text(total: int, val_fraction: float, test_fraction: float) -> tuple[tuple[int, int], ...]:
    val_end, test_begin = cut_with_gap(total, test_fraction) if test_fraction else (total, total)
    train_end, val_begin = cut_with_gap(val_end, val_fraction)
    return (0, train_end), (val_begin, val_end), (test_begin, total)


def cut_with_gap(num_tokens: int, fraction: float, most: int | None = None) -> tuple[int, int]:
    """Returns the end of the text before the gap, and the start of the held-out part of at most `most` tokens."""
    cut = int(num_tokens * (1 - fraction))
    cut = cut if most is None else max(cut, num_tokens - most)
    return cut - min(GAP_TOKENS, cut // 100), cut


def choose_held_out(sizes: Sequence[int], fraction: float) -> set[int]:
    """Returns the indices of the held-out documents; empty if whole documents do not come near the fraction.

    Documents are taken from the end. Documents that are large compared with the fraction are skipped first, so that no
    single document dominates the evaluation. If the small ones do not suffice, documents of any size are taken.
    """
    wanted = fraction * sum(sizes)
    for largest in (MAX_DOCUMENT_FRACTION * wanted, math.inf):
        held_out: set[int] = set()
        total = 0
        for number in range(len(sizes) - 1, 0, -1):
            if sizes[number] <= largest and abs(total + sizes[number] - wanted) < abs(total - wanted):
                held_out.add(number)
                total += sizes[number]
        if wanted / 2 <= total <= 2 * wanted:
            return held_out
    return set()
