"""Embeddings of n-grams: each position looks up the n-grams that end there. V tokens, N longest n-gram."""

import pytest
import torch
from torch import Tensor

from moe_cli.models.decoding_cache import DecodingCache
from moe_cli.models.ngrams import NgramEmbedding
from tests.tiny import randomise

V, N, ROWS, D = 7, 4, 50_000, 3
NONE = -1


def embedding(num_rows: int = ROWS) -> NgramEmbedding:
    return randomise(NgramEmbedding(N, num_rows, D)).double()  # type: ignore[return-value]


def tokens(batch: int, length: int) -> Tensor:
    return torch.randint(V, (batch, length), generator=torch.Generator().manual_seed(5))


def ngrams(row: list[int], documents: list[int]) -> list[list[tuple[int, ...]]]:
    """Returns the n-grams of each position, by slicing; NONE in place of a token of another document."""

    def ngram(end: int, n: int) -> tuple[int, ...]:
        return tuple(row[i] if i >= 0 and documents[i] == documents[end] else NONE for i in range(end, end - n, -1))

    return [[ngram(end, n) for n in range(2, N + 1)] for end in range(len(row))]


@pytest.mark.parametrize("ids", [[0] * 40, [0] * 11 + [1] * 29])
def test_a_row_for_each_ngram(ids: list[int]) -> None:
    """Equal n-grams have one row, different ones have different rows, and lengths have tables of their own."""
    x, documents = tokens(3, 40), torch.tensor([ids] * 3)
    rows = embedding().rows_of(x, None, documents)
    row_of: dict[tuple[int, ...], int] = {}
    for sequence, found in zip(x.tolist(), rows.tolist(), strict=True):
        for expected, actual in zip(ngrams(sequence, ids), found, strict=True):
            for ngram, row in zip(expected, actual, strict=True):
                assert row_of.setdefault(ngram, row) == row
                assert (len(ngram) - 2) * ROWS <= row < (len(ngram) - 1) * ROWS
    assert len(row_of) > 100
    assert len(set(row_of.values())) == len(row_of)


def test_the_sum_of_rows() -> None:
    """The output is the sum of the rows of the weight."""
    module, x = embedding(), tokens(2, 9)
    torch.testing.assert_close(module(x), module.weight[module.rows_of(x, None, None)].sum(-2))


def test_rows_are_shared_evenly_in_a_small_table() -> None:
    """With fewer rows than n-grams every row is used, and none by far more n-grams than another."""
    every = torch.cartesian_prod(*[torch.arange(16)] * N)
    used = torch.bincount(embedding(64).rows_of(every, None, None)[:, -1, -1] - 64 * (N - 2), minlength=64)
    assert 16**N == used.sum()
    assert used.min() > 0.8 * used.double().mean()
    assert used.max() < 1.2 * used.double().mean()


def test_padding_belongs_to_no_ngram() -> None:
    """Tokens after padding on the left have the n-grams of a sequence that starts with them."""
    module, x = embedding(), tokens(2, 9)
    mask = torch.arange(9) >= 4
    torch.testing.assert_close(module(x[:, 4:]), module(x, mask.expand(2, 9))[:, 4:])


@pytest.mark.parametrize("cuts", [[1] * 9, [5, 4], [2, 1, 6]])
def test_a_cache_has_the_tokens_before(cuts: list[int]) -> None:
    """In parts of any length, the embeddings are those of all tokens at once."""
    module, x, cache = embedding(), tokens(2, 9), DecodingCache()
    parts = [module(part, cache=cache) for part in x.split(cuts, 1)]
    torch.testing.assert_close(module(x), torch.cat(parts, 1))
    assert cache.last_tokens is not None
    assert N - 1 == cache.last_tokens.shape[1]


def test_narrow_token_ids_have_the_same_rows() -> None:
    """int32 tokens have the rows of int64 tokens."""
    x = tokens(2, 9)
    assert torch.equal(embedding().rows_of(x, None, None), embedding().rows_of(x.int(), None, None))


def test_large_token_ids_do_not_overflow() -> None:
    """Rows are in their tables up to a vocabulary of 2^24 tokens."""
    rows = embedding().rows_of(torch.full((1, 20), 2**24 - 1), None, None)
    assert (rows >= torch.arange(N - 1) * ROWS).all()
    assert (rows < torch.arange(1, N) * ROWS).all()
