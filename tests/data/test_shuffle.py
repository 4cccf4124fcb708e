"""The order of windows: every one once, well mixed, the same for the same seed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_cli.data import shuffle as module
from moe_cli.data.shuffle import MAX_IN_MEMORY, ExampleOrder, FeistelPermutation, epoch_order, evenly_spaced


def shuffle(size: int, seed: int = 0) -> FeistelPermutation:
    return FeistelPermutation(size, np.random.default_rng(seed).integers(2**64, size=module.ROUNDS, dtype=np.uint64))


@given(st.integers(1, 3000), st.integers(0, 2**32))
def test_a_shuffle_is_a_permutation(size: int, seed: int) -> None:
    """A shuffle of any size holds each window once, also where the rectangle of halves is larger."""
    assert list(range(size)) == sorted(shuffle(size, seed)[np.arange(size)].tolist())


def test_a_large_shuffle_is_a_permutation() -> None:
    """A shuffle larger than MAX_IN_MEMORY holds each window once."""
    seen = np.zeros(MAX_IN_MEMORY + 54_321, np.int64)
    np.add.at(seen, shuffle(len(seen))[np.arange(len(seen))], 1)
    assert np.all(seen == 1)


@given(st.integers(2**22, 2**62), st.lists(st.integers(0, 2**22 - 1), min_size=1, max_size=20, unique=True))
def test_places_beyond_two_to_the_31(size: int, places: list[int]) -> None:
    """Different places give different windows, all within, asked together or one at a time."""
    asked = size - 1 - np.array(places)
    found = shuffle(size)[asked]
    assert len(set(found.tolist())) == len(places)
    assert 0 <= found.min() <= found.max() < size
    assert found.tolist() == [int(shuffle(size)[asked[i : i + 1]][0]) for i in range(len(asked))]


@pytest.mark.parametrize("size", [100_000, 2**22 + 1, 2**33])
def test_neighbours_are_spread(size: int) -> None:
    """As far apart as chance puts them (a third of the range), each part of the range met equally, no trend left.

    The bounds are five standard deviations of what a random order gives.
    """
    sample = 20_000
    found = shuffle(size)[np.arange(sample)] / size
    assert abs(np.abs(np.diff(found)).mean() - 1 / 3) < 5 * (1 / 18 / sample * 1.4) ** 0.5
    counts = np.bincount((found * 100).astype(int), minlength=100)
    expected = sample / 100
    assert ((counts - expected) ** 2 / expected).sum() < 99 + 5 * (2 * 99) ** 0.5
    for lag in (1, 2, 16, 128, 1024):
        assert abs(np.corrcoef(found[:-lag], found[lag:])[0, 1]) < 5 / sample**0.5
    assert abs(np.corrcoef(found, np.arange(sample))[0, 1]) < 5 / sample**0.5


def test_the_first_window_is_any_window() -> None:
    """Over seeds and epochs the window that comes first is each of ten with the same chance."""
    counts = np.zeros(10)
    for seed in range(2000):
        counts[shuffle(10, seed)[np.arange(1)]] += 1
    assert ((counts - 200) ** 2 / 200).sum() < 9 + 5 * 18**0.5


@pytest.mark.parametrize("most_listed", [10**6, 0])
def test_epochs_and_seeds_have_orders_of_their_own(monkeypatch: pytest.MonkeyPatch, most_listed: int) -> None:
    """Seeds and epochs differ in order and offset; the same ones agree. Listed or not, offsets are the same."""
    monkeypatch.setattr(module, "MAX_IN_MEMORY", most_listed)
    places = np.arange(500)
    orders = {key: epoch_order(*key, 500, 128) for key in [(0, 0), (0, 1), (1, 0), (1, 1)]}
    found = {key: tuple(order.windows[places].tolist()) for key, order in orders.items()}
    assert len(set(found.values())) == 4
    assert all(sorted(windows) == places.tolist() for windows in found.values())
    assert found[1, 1] == tuple(epoch_order(1, 1, 500, 128).windows[places].tolist())
    offsets = {key: int(np.random.default_rng(key).integers(128)) for key in orders}
    assert offsets == {key: order.offset for key, order in orders.items()}


def test_few_windows_keep_the_order_of_numpy() -> None:
    """Up to the number that is listed the order is numpy's shuffle of (seed, epoch), as in every recorded result."""
    generator = np.random.default_rng((3, 2))
    offset, expected = int(generator.integers(128)), generator.permutation(1000)
    order = epoch_order(3, 2, 1000, 128)
    assert (offset, expected.tolist()) == (order.offset, order.windows[np.arange(1000)].tolist())
    assert isinstance(epoch_order(3, 2, MAX_IN_MEMORY, 128).windows, np.ndarray)
    assert isinstance(epoch_order(3, 2, MAX_IN_MEMORY + 1, 128).windows, FeistelPermutation)


def test_every_example_once_an_epoch() -> None:
    """Batches of any size and in parts, across the ends of epochs, are the epochs' shuffles one after another."""
    order = ExampleOrder(3, 50)
    expected = np.concatenate([epoch_order(3, epoch, 50, 1).windows for epoch in range(3)])[:144]
    for size, parts in ((16, 1), (16, 4), (72, 2)):
        found = [order.batch(index, size, part, parts) for index in range(144 // size) for part in range(parts)]
        assert expected.tolist() == np.concatenate(found).tolist()


@pytest.mark.parametrize(("wanted", "number"), [(None, 9), (100, 9), (3, 3), (0, 1)])
def test_examples_are_spread_evenly(wanted: int | None, number: int) -> None:
    """As many as are wanted and there are, all different, the first among them, and of several the last."""
    found = evenly_spaced(9, wanted).tolist()
    assert number == len(set(found)) == len(found)
    assert 0 == found[0]
    assert number == 1 or found[-1] == 8
