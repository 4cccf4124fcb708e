"""The splits that are held out for validation and for a test."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_cli.data.splits import (
    TEST,
    TRAIN,
    VAL,
    choose_held_out,
    cut_with_gap,
    ignored_split_names,
    split_documents,
    split_from_name,
    splits_by_name,
)

FRACTIONS = st.floats(0.01, 0.4)


@given(st.lists(st.integers(1, 2000), max_size=60), st.floats(0.01, 0.5))
def test_what_is_held_out_is_near_the_share(sizes: list[int], fraction: float) -> None:
    """None, or whole documents within half and twice the share, and never the first."""
    chosen = choose_held_out(sizes, fraction)
    wanted = fraction * sum(sizes)
    assert 0 not in chosen
    assert not chosen or wanted / 2 <= sum(sizes[number] for number in chosen) <= 2 * wanted


@pytest.mark.parametrize(
    ("sizes", "chosen"),
    [
        ([10] * 10, {9}),  # all alike: the last
        ([1000, *[5] * 200, 400, 5, 400], None),
        ([100, 100], set()),  # no document is near a tenth
        ([90, 10], {1}),
        ([10, 90], set()),  # the first is always learned from
    ],
)
def test_no_large_document_decides_validation(sizes: list[int], chosen: set[int] | None) -> None:
    """A tenth of the text: small documents from the last on when there are enough; else whatever comes near."""
    found = choose_held_out(sizes, 0.1)
    if chosen is not None:
        assert chosen == found
    else:
        assert 400 not in {sizes[number] for number in found}
        assert sum(sizes[number] for number in found) == pytest.approx(0.1 * sum(sizes), rel=0.02)


@given(st.integers(2, 10**10), st.floats(0.0001, 0.5), st.one_of(st.none(), st.integers(2, 10**9)))
def test_a_cut_leaves_a_gap(num_tokens: int, fraction: float, most: int | None) -> None:
    """`cut_with_gap` holds out the last share, or `most` tokens if that is less, and leaves a gap of at most 1 %."""
    end, cut = cut_with_gap(num_tokens, fraction, most)
    share = num_tokens - int(num_tokens * (1 - fraction))
    assert num_tokens - cut == (share if most is None else min(share, most))
    assert cut - end == min(1024, cut // 100)


def lengths_by_hand(sizes: list[int], parts: list[int], cut: tuple[tuple[int, int], ...] | None) -> tuple[int, ...]:
    whole = [sum(size for size, its in zip(sizes, parts, strict=True) if its == part) for part in (TRAIN, VAL, TEST)]
    if cut is None:
        return tuple(whole)
    return tuple(end - begin + (whole[part] if part != TRAIN else 0) for part, (begin, end) in enumerate(cut))


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=40), FRACTIONS, st.one_of(st.just(0.0), FRACTIONS))
def test_whole_documents_or_a_cut_of_what_is_left(sizes: list[int], val: float, test: float) -> None:
    """First those for a test, then of the rest those for validation; where none come near, the rest is cut from behind."""
    split = split_documents(sizes, val, test_fraction=test)
    parts, rest, cut = [TRAIN] * len(sizes), list(range(len(sizes))), None
    for part, fraction in ((TEST, test), (VAL, val / (1 - test))):
        chosen = choose_held_out([sizes[number] for number in rest], fraction) if fraction else set()
        if fraction and not chosen:
            total = sum(sizes[number] for number in rest)
            end, begin = cut_with_gap(total, test) if part == TEST else (total, total)
            train_end, val_begin = cut_with_gap(end, val / (1 - test))
            cut = ((0, train_end), (val_begin, end), (begin, total))
            break
        for place in chosen:
            parts[rest[place]] = part
        rest = [number for number in rest if parts[number] == TRAIN]
    assert (parts, cut) == (split.parts.tolist(), split.cut)
    assert lengths_by_hand(sizes, parts, cut) == split.lengths
    assert bool(test) == bool(split.lengths[TEST]) or split.cut is not None


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=40), FRACTIONS, FRACTIONS, FRACTIONS)
def test_the_test_split_does_not_depend_on_validation(sizes: list[int], val: float, other: float, test: float) -> None:
    """It is what would be held out if there were nothing else, whatever share is for validation."""
    splits = [split_documents(sizes, each, test_fraction=test) for each in (val, other)]
    chosen = choose_held_out(sizes, test)
    for split in splits:
        assert chosen == set(np.flatnonzero(split.parts == TEST))
    if not chosen:
        assert splits[0].cut is not None
        assert splits[1].cut is not None
        assert splits[0].cut[TEST] == splits[1].cut[TEST] == (cut_with_gap(sum(sizes), test)[1], sum(sizes))


def test_each_of_a_few_domains_is_held_out() -> None:
    """A tenth of every domain, though one of them stands last as a whole; one document alone is learned from."""
    domains = [0] * 40 + [1] * 60 + [2]
    for test in (0.0, 0.1):
        parts = split_documents([100] * 101, 0.1, domains, test).parts
        for part in (VAL, TEST) if test else (VAL,):
            held_out = np.flatnonzero(parts == part).tolist()
            assert [4, 6, 0] == [sum(domains[number] == domain for number in held_out) for domain in (0, 1, 2)]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", TRAIN),
        ("Training", TRAIN),
        ("train_0001.bin", TRAIN),
        ("val", VAL),
        ("wiki.valid.tokens", VAL),
        ("validation-2", VAL),
        ("dev", VAL),
        ("my-test-set", TEST),
        ("testing", TEST),
        ("train_test.txt", TEST),
        ("trainset", TRAIN),
        ("testset.txt", TEST),
        ("tests", None),
        ("training_val.txt", VAL),
        ("trains", None),
        ("valley.txt", None),
        ("latest", None),
        ("contest.md", None),
    ],
)
def test_names_that_say_a_split(name: str, split: int | None) -> None:
    """As a word of its own; of several words what is held out counts."""
    assert split == split_from_name(name)


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train/a.txt", "test/b.txt", "val/deep/c.txt"], [TRAIN, TEST, VAL]),
        (["train.txt", "valid.txt"], [TRAIN, VAL]),
        (["train.py", "test.py", "model.py"], None),  # a program, not splits
        (["train/a.txt", "train/test.txt"], None),  # nothing is held out by the first part of the name
        (["val/a.txt", "test/b.txt"], None),  # nothing is left to learn from
    ],
)
def test_files_are_split_by_name_where_all_names_say_so(names: list[str], splits: list[int] | None) -> None:
    """Every name has to, and training has to be among them."""
    assert splits == splits_by_name([Path(name) for name in names])


@given(
    st.lists(st.integers(1, 2000), min_size=1, max_size=20),
    st.lists(st.integers(1, 2000), min_size=1, max_size=5),
    FRACTIONS,
)
def test_validation_is_taken_from_training_where_only_a_test_is_given(
    train: list[int], test: list[int], fraction: float
) -> None:
    """Whole documents as if the test were not there; or the end of the training text, after a gap. Wherever the test stands."""
    chosen, total = choose_held_out(train, fraction), sum(train)
    for first in (True, False):
        sizes, given = ([*test, *train], [TEST, TRAIN]) if first else ([*train, *test], [TRAIN, TEST])
        counts = (len(test), len(train)) if first else (len(train), len(test))
        split = split_documents(sizes, fraction, known_splits=[given[0]] * counts[0] + [given[1]] * counts[1])
        assert sum(test) == split.lengths[TEST]
        if chosen:
            offset = len(test) if first else 0
            assert {place + offset for place in chosen} == set(np.flatnonzero(split.parts == VAL))
            assert split.cut is None
        else:
            end, begin = cut_with_gap(total, fraction)
            assert ((0, end), (begin, total), (total, total)) == split.cut


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["train.txt", "test.txt"], None),
        (["a.txt", "b.txt"], None),
        (
            ["train.txt", "test.txt", "README.md"],
            "test.txt may be trained on: names give no splits, because README.md is named as no split",
        ),
        (
            ["val/a.png", "test/b.png"],
            "test, val may be trained on: names give no splits, because nothing is named train",
        ),
    ],
)
def test_split_names_that_are_ignored_are_noted(names: list[str], expected: str | None) -> None:
    """`ignored_split_names` names the held-out splits that are ignored and gives the reason."""
    assert expected == ignored_split_names([Path(name) for name in names])
