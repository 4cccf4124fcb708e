"""Measures how much of a text repeats: novelty and repetition of n-grams, in one pass that takes a second or two.

An n-gram is n tokens that another token follows, so it is a context from which a model predicts. N tokens, K keys.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_cli.data.shards import Tokens
from moe_cli.data.shuffle import hash_integers

# The lengths of n-grams, in tokens. Each is twice the one before it, or the first: hashes are doubled.
LENGTHS = (4, 8, 16)
# At most this many training tokens are read, in pieces evenly spread over the split, so that texts of several sizes are
# compared on equal terms. A longer text has more chances to repeat.
MAX_TOKENS = 2**22
PIECE_TOKENS = 2**20
# N-grams of each split, evenly spread over what is read, that are looked up.
MAX_SAMPLES = 2**14

Text = Tokens | NDArray[Any]


def ngram_statistics(train: Text, val: Text) -> list[dict[str, float | int | None]]:
    """Measures the n-grams of a text, for each of LENGTHS that both splits are long enough for.

    Returns:
        For each length: `length`; `train_tokens`, the training tokens read; `seen`, the fraction of validation n-grams
        that occur in training; `repeated`, the fraction of training n-grams that occur there at least twice;
        `next_nats`, the entropy in nats of the token that follows a repeated n-gram, averaged over their occurrences
        (null if none repeats). It is estimated from counts, so it is too low where n-grams have few occurrences.
    """
    pieces = _pieces(train)
    return [
        {"length": length, "train_tokens": sum(map(len, pieces)), **_statistics(pieces, val, length)}
        for length in LENGTHS
        if len(val) > length and max(map(len, pieces), default=0) > length
    ]


def _pieces(tokens: Text) -> list[NDArray[Any]]:
    """Returns all tokens, or MAX_TOKENS of them in evenly spread pieces."""
    if len(tokens) <= MAX_TOKENS:
        return [tokens[:]]
    firsts = np.linspace(0, len(tokens) - PIECE_TOKENS, MAX_TOKENS // PIECE_TOKENS).astype(np.int64)
    return [tokens[first : first + PIECE_TOKENS] for first in firsts.tolist()]


def _statistics(pieces: list[NDArray[Any]], val: Text, length: int) -> dict[str, float | None]:
    sampled_train = _sample(pieces, length)
    sampled_val = _sample([val[:MAX_TOKENS]], length)
    keys = np.unique(np.concatenate((sampled_train, sampled_val)))
    counts, entropies = _count_following(pieces, keys, length)
    of_train = np.searchsorted(keys, sampled_train)
    repeated = counts[of_train] > 1
    return {
        "seen": float((counts[np.searchsorted(keys, sampled_val)] > 0).mean()),
        "repeated": float(repeated.mean()),
        "next_nats": float(entropies[of_train[repeated]].mean()) if repeated.any() else None,
    }


def _sample(pieces: list[NDArray[Any]], length: int) -> NDArray[np.uint64]:
    """Returns the hashes of every n-gram, or of MAX_SAMPLES at equal distances."""
    step = -(-sum(max(0, len(piece) - length) for piece in pieces) // MAX_SAMPLES)
    return np.concatenate([grams[::step] for piece in pieces for grams, _ in _ngrams(piece, length)])


def _count_following(
    pieces: list[NDArray[Any]], keys: NDArray[np.uint64], length: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Returns the occurrences of each key, and the entropy of the tokens that follow them, in nats.

    Args:
        keys: hashes of n-grams, ascending.
    """
    pairs, numbers = [], []
    vocab_size = 1 + max(int(piece.max(initial=0)) for piece in pieces)
    for piece in pieces:
        for grams, following in _ngrams(piece, length):
            index = np.searchsorted(keys, grams).clip(max=len(keys) - 1)
            is_key = keys[index] == grams
            found, number = np.unique(index[is_key] * vocab_size + following[is_key], return_counts=True)
            pairs.append(found)
            numbers.append(number)
    all_pairs, inverse = np.unique(np.concatenate(pairs), return_inverse=True)
    occurrences = np.bincount(inverse, np.concatenate(numbers), len(all_pairs))
    key = all_pairs // vocab_size
    counts = np.bincount(key, occurrences, len(keys))
    share = occurrences / counts[key]
    entropies = np.bincount(key, -share * np.log(share), len(keys))
    return counts.astype(np.int64), entropies.astype(np.float64)


def _ngrams(tokens: NDArray[Any], length: int) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.int64]]]:
    """Yields hashes of the n-grams that begin in each block of a text, and the tokens that follow them."""
    for first in range(0, len(tokens) - length, PIECE_TOKENS):
        block = tokens[first : first + PIECE_TOKENS + length]
        hashes, width = block.astype(np.uint64), 1
        while width < length:
            hashes = hash_integers(hashes[:-width], np.uint64(width)) + hashes[width:]
            width *= 2
        yield hashes[:-1], block[length:].astype(np.int64)
