"""Baselines of language models equal direct counts over tokens."""

import gzip
import math
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_cli.data import baselines, shards
from moe_cli.data.baselines import bigram_bits_per_byte, unigram_baselines
from moe_cli.data.tokenizers import ByteTokenizer, CharTokenizer, Tokenizer
from tests.data.test_corpora import load, write
from tests.tiny import words


def direct_bigram(train: list[int], val: list[int], tokenizer: Tokenizer) -> float:
    """The bigram reference, a token at a time."""
    size, widths = tokenizer.vocab_size, tokenizer.bytes_per_token()
    pairs, starts, single = Counter(pairwise(train)), Counter(train[:-1]), Counter(train)
    bits = 0.0
    for a, b in pairwise(val):
        unigram = (single[b] + 1) / (len(train) + size)
        bits -= math.log2((pairs[a, b] + unigram) / (starts[a] + 1))
    return bits / sum(int(widths[b]) for b in val[1:])


@pytest.mark.parametrize("largest_table", [0, 2**20])
@pytest.mark.parametrize("block", [1, 7, 2**20])
@given(
    train=st.lists(st.integers(0, 4), min_size=2, max_size=60),
    val=st.lists(st.integers(0, 4), min_size=2, max_size=20),
    tokenizer=st.sampled_from([ByteTokenizer(), CharTokenizer("abé€𝄞")]),
)
def test_the_bigram_line_equals_a_direct_count(
    train: list[int], val: list[int], tokenizer: Tokenizer, largest_table: int, block: int
) -> None:
    """Bits per byte of the bigram model, also for pairs and tokens that training never saw; however it is counted."""
    arrays = (np.array(tokens, np.uint8) for tokens in (train, val))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines, "MAX_TABLE", largest_table)
        patch.setattr(shards, "BLOCK_TOKENS", block)
        found = bigram_bits_per_byte(*arrays, tokenizer)
    assert direct_bigram(train, val, tokenizer) == pytest.approx(found)


@pytest.mark.parametrize("block", [1, 7, 2**20])
@given(
    train=st.lists(st.integers(0, 4), min_size=2, max_size=60), val=st.lists(st.integers(0, 4), min_size=2, max_size=20)
)
def test_what_frequencies_alone_give(train: list[int], val: list[int], block: int) -> None:
    """Nats of the smoothed frequencies, and how often a commonest token of training is the one, by a direct count."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "BLOCK_TOKENS", block)
        found = unigram_baselines(*(np.array(tokens, np.uint8) for tokens in (train, val)), 5)
    counts = Counter(train)
    nats = -sum(math.log((counts[token] + 1) / (len(train) + 5)) for token in val) / len(val)
    assert nats == pytest.approx(found["unigram_loss"])
    commonest = [token for token in range(5) if counts[token] == max(counts.values())]
    assert val.count(commonest[0]) / len(val) == found["commonest_accuracy"]


@pytest.mark.parametrize("tokenizer", ["bytes", "chars"])
@pytest.mark.parametrize("block", [100, 2**20])
def test_the_reference_lines_are_of_the_validation_bytes(
    tmp_path: Path, tokenizer: Any, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gzip_bpb is gzip -9's size of the validation text in bits per byte; bigram_bpb is the model's above."""
    monkeypatch.setattr(shards, "BLOCK_TOKENS", block)
    path = write(tmp_path, {"a.txt": ("é" + words(99)) * 50}) / "a.txt"
    corpus = load(path, tmp_path / "cache", tokenizer=tokenizer)
    raw = corpus.tokenizer.decode(corpus.val.tolist()).encode()
    assert 8 * len(gzip.compress(raw, 9)) / len(raw) == corpus.meta["gzip_bpb"]
    direct = direct_bigram(corpus.train.tolist(), corpus.val.tolist(), corpus.tokenizer)
    assert direct == pytest.approx(corpus.meta["bigram_bpb"])
