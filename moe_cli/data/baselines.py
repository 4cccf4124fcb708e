"""Baselines of a language model on the same text: token frequencies, a bigram model, and gzip."""

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_cli.data.shards import Tokens, blocks
from moe_cli.data.tokenizers import Tokenizer

# Up to this many possible pairs are counted in a table, more by sorting.
MAX_TABLE = 2**20


def bigram_bits_per_byte(train: Tokens | NDArray[Any], val: Tokens | NDArray[Any], tokenizer: Tokenizer) -> float:
    """Returns the bits per byte on `val` of a bigram model counted on `train`.

    The probability of b after a is (count(a, b) + p(b)) / (count(a) + 1). p is the unigram distribution with one added
    to every count. Only pairs that occur in `val` are counted, so that memory grows with their number and not with the
    text.
    """
    size = tokenizer.vocab_size
    val_pairs, occurrences = np.empty(0, np.int64), np.empty(0, np.int64)
    for block in blocks(val, overlap=1):
        val_pairs, occurrences = _merged(val_pairs, occurrences, *_pairs(block, size))
    seen, single = np.zeros(len(val_pairs), np.int64), np.zeros(size, np.int64)
    for block in blocks(train, overlap=1):
        pairs, counts = _pairs(block, size)
        index = np.searchsorted(val_pairs, pairs).clip(max=len(val_pairs) - 1)
        known = val_pairs[index] == pairs
        seen[index[known]] += counts[known]
        single += np.bincount(block[:-1], minlength=size)
    starts = single.copy()
    single[train[-1:]] += 1  # the last token begins no pair
    before, after = np.divmod(val_pairs, size)
    unigram = (single + 1) / (len(train) + size)
    bits = -(occurrences * np.log2((seen + unigram[after]) / (starts[before] + 1))).sum()
    # The negated sum of zeros is -0. Adding 0.0 gives 0 for a text that is predicted without loss.
    return 0.0 + float(bits / (occurrences * tokenizer.bytes_per_token()[after]).sum())


def unigram_baselines(train: Tokens | NDArray[Any], val: Tokens | NDArray[Any], vocab_size: int) -> dict[str, float]:
    """Computes the unigram loss and the accuracy of the most frequent token on `val`, with the counts of `train`.

    unigram_loss is in nats per token, with one added to every count. commonest_accuracy is the fraction of the tokens
    of `val` that equal the most frequent token of `train`.
    """
    learned, val_pairs = (
        sum((np.bincount(block, minlength=vocab_size) for block in blocks(split)), np.zeros(vocab_size, np.int64))
        for split in (train, val)
    )
    nats = -(val_pairs * np.log((learned + 1) / (len(train) + vocab_size))).sum() / len(val)
    return {"unigram_loss": float(nats), "commonest_accuracy": float(val_pairs[learned.argmax()] / len(val))}


def _pairs(block: NDArray[Any], size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the pairs of neighbours as first * size + second, in ascending order, and the count of each."""
    codes = block[:-1].astype(np.int64) * size + block[1:]
    if size**2 > MAX_TABLE:
        return np.unique(codes, return_counts=True)
    counts = np.bincount(codes, minlength=size**2)
    found = np.flatnonzero(counts)
    return found, counts[found]


def _merged(
    val_pairs: NDArray[np.int64], occurrences: NDArray[np.int64], pairs: NDArray[np.int64], counts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    both, index = np.unique(np.concatenate((val_pairs, pairs)), return_inverse=True)
    total = np.zeros(len(both), np.int64)
    np.add.at(total, index, np.concatenate((occurrences, counts)))
    return both, total


def gzip_bits_per_byte(val: Tokens, tokenizer: Tokenizer) -> float:
    """Returns the size of the text under `gzip -9`, in bits per byte."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    packed = num_bytes = 0
    for block in blocks(val):
        text = tokenizer.to_bytes(block.tolist())
        packed += len(packer.compress(text))
        num_bytes += len(text)
    return 8 * (packed + len(packer.flush())) / num_bytes
