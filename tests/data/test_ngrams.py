"""Statistics of n-grams against a count of every n-gram, one by one."""

import math
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_cli.data import ngrams
from moe_cli.data.ngrams import ngram_statistics


def count_one_by_one(train: list[int], val: list[int], length: int) -> dict[str, Any]:
    """The same statistics from a table of the tokens that follow each n-gram."""

    def contexts(tokens: list[int]) -> list[tuple[tuple[int, ...], int]]:
        return [(tuple(tokens[i : i + length]), tokens[i + length]) for i in range(len(tokens) - length)]

    following: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for gram, token in contexts(train):
        following[gram][token] += 1

    def entropy(gram: tuple[int, ...]) -> float:
        total = sum(following[gram].values())
        return -sum(number / total * math.log(number / total) for number in following[gram].values())

    repeated = [gram for gram, _ in contexts(train) if sum(following[gram].values()) > 1]
    return {
        "length": length,
        "train_tokens": len(train),
        "seen": pytest.approx(sum(gram in following for gram, _ in contexts(val)) / len(contexts(val))),
        "repeated": pytest.approx(len(repeated) / len(contexts(train))),
        "next_nats": pytest.approx(sum(map(entropy, repeated)) / len(repeated)) if repeated else None,
    }


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=80),
    st.lists(st.integers(0, 3), min_size=1, max_size=30),
    st.sampled_from([3, 7, 2**20]),
    st.sampled_from([1, 255, 70_000]),
)
def test_statistics_are_those_of_a_count_one_by_one(train: list[int], val: list[int], block: int, scale: int) -> None:
    """N-grams that cross blocks count too, and tokens may be large; lengths that a split is too short for are left out."""
    train, val = [scale * token for token in train], [scale * token for token in val]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngrams, "PIECE_TOKENS", block)
        found = ngram_statistics(*(np.array(tokens, np.uint32) for tokens in (train, val)))
    lengths = [length for length in (4, 8, 16) if min(len(train), len(val)) > length]
    assert [count_one_by_one(train, val, length) for length in lengths] == found


def test_known_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A period repeats wholly and leaves no doubt; of a text of tokens that never come again, nothing is seen."""
    period, fresh = np.tile(np.arange(10, dtype=np.uint16), 20), np.arange(500, dtype=np.uint16)
    for found in ngram_statistics(period, period):
        assert (1.0, 1.0, 0.0) == (found["seen"], found["repeated"], found["next_nats"])
    for found in ngram_statistics(fresh[:400], fresh[400:]):
        assert (0.0, 0.0, None) == (found["seen"], found["repeated"], found["next_nats"])
    # Two tokens at random follow each other: the entropy of the next one is ln 2, wherever the context repeats often.
    coin = np.random.default_rng(0).integers(2, size=20_000).astype(np.uint8)
    assert ngram_statistics(coin, coin)[0]["next_nats"] == pytest.approx(math.log(2), abs=0.01)


def test_a_sample_is_close_to_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a tenth of the n-grams looked up, shares differ by less than four standard errors."""
    draw = np.random.default_rng(0)
    train, val = (draw.zipf(1.5, size=size).clip(max=200).astype(np.uint8) for size in (20_000, 20_000))
    whole = ngram_statistics(train, val)
    monkeypatch.setattr(ngrams, "MAX_SAMPLES", 2000)
    for sampled, exact in zip(ngram_statistics(train, val), whole, strict=True):
        for key in ("seen", "repeated"):
            share = exact[key] or 0.0
            assert abs((sampled[key] or 0.0) - share) <= 4 * math.sqrt(share * (1 - share) / 2000)


def test_a_long_text_is_read_in_pieces_spread_over_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first and the last tokens are among them; what is read has the given size."""
    monkeypatch.setattr(ngrams, "PIECE_TOKENS", 50)
    monkeypatch.setattr(ngrams, "MAX_TOKENS", 150)
    tokens = np.arange(1000, dtype=np.uint16)
    for place, seen in ((tokens[:30], 1.0), (tokens[-30:], 1.0), (tokens[100:130], 0.0)):
        found = ngram_statistics(tokens, place)
        assert [150] * 3 == [entry["train_tokens"] for entry in found]
        assert [seen] * 3 == [entry["seen"] for entry in found]
