"""What is held out for validation and for a test."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_cli.tasks.splits import (
    TEST,
    TRAIN,
    VAL,
    choose_held_out,
    cut_with_gap,
    split_documents,
    split_of,
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
    """What is held out is the last share, or the most wanted where that is less; what is before ends at most 1 % earlier."""
    end, cut = cut_with_gap(num_tokens, fraction, most)
    share = num_tokens - int(num_tokens * (1 - fraction))
    assert num_tokens - cut == (share if most is None else min(share, most))
    assert cut - end == min(1024, cut // 100)


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=40), FRACTIONS, st.one_of(st.just(0.0), FRACTIONS))
def test_documents_held_out_stand_last(sizes: list[int], val: float, test: float) -> None:
    """The new order keeps that of each part, spans are theirs, nothing is lost; else the text is cut from behind with gaps."""
    split = split_documents(sizes, val, test_fraction=test)
    total = sum(sizes)
    assert sorted(split.order.tolist()) == list(range(len(sizes)))
    assert total == split.spans[TEST][1]
    if split.parts is None:
        val_end, begin = cut_with_gap(total, test) if test else (total, total)
        train_end, val_begin = cut_with_gap(val_end, val / (1 - test))
        assert ((0, train_end), (val_begin, val_end), (begin, total)) == split.spans
        return
    numbers = [np.flatnonzero(split.parts == part).tolist() for part in (TRAIN, VAL, TEST)]
    assert split.order.tolist() == [*numbers[TRAIN], *numbers[VAL], *numbers[TEST]]
    assert [sum(sizes[number] for number in of) for of in numbers] == [end - begin for begin, end in split.spans]
    assert bool(test) == bool(numbers[TEST])
    assert [0, split.spans[TRAIN][1], split.spans[VAL][1]] == [begin for begin, _ in split.spans]


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=40), FRACTIONS, FRACTIONS)
def test_the_test_split_does_not_depend_on_validation(sizes: list[int], val: float, test: float) -> None:
    """It is what would be held out if there were nothing else, whatever share is for validation."""
    split = split_documents(sizes, val, test_fraction=test)
    if split.parts is not None:
        assert choose_held_out(sizes, test) == set(np.flatnonzero(split.parts == TEST))


def test_each_of_a_few_domains_is_held_out() -> None:
    """A tenth of every domain, though one of them stands last as a whole; one document alone is learned from."""
    domains = [0] * 40 + [1] * 60 + [2]
    for test in (0.0, 0.1):
        parts = split_documents([100] * 101, 0.1, domains, test).parts
        assert parts is not None
        for part in (VAL, TEST) if test else (VAL,):
            held_out = np.flatnonzero(parts == part).tolist()
            assert [4, 6, 0] == [sum(domains[number] == domain for number in held_out) for domain in (0, 1, 2)]


@pytest.mark.parametrize(
    ("name", "split"),
    [("train", TRAIN), ("Training", TRAIN), ("train_0001.bin", TRAIN), ("val", VAL), ("wiki.valid.tokens", VAL),
     ("validation-2", VAL), ("dev", VAL), ("my-test-set", TEST), ("testing", TEST), ("train_test.txt", TEST),
     ("training_val.txt", VAL), ("trains", None), ("valley.txt", None), ("latest", None), ("contest.md", None)],
)  # fmt: skip
def test_names_that_say_a_split(name: str, split: int | None) -> None:
    """As a word of its own; of several words what is held out counts."""
    assert split == split_of(name)


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


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=20), st.lists(st.integers(1, 2000), min_size=1, max_size=5), FRACTIONS)  # fmt: skip
def test_validation_is_taken_from_training_where_only_a_test_is_given(
    train: list[int], test: list[int], fraction: float
) -> None:
    """Whole documents as if the test were not there; or the end of the training text, after a gap."""
    split = split_documents([*train, *test], fraction, given=[TRAIN] * len(train) + [TEST] * len(test))
    chosen, total = choose_held_out(train, fraction), sum(train)
    assert (total, total + sum(test)) == split.spans[TEST]
    if chosen:
        assert split.parts is not None
        assert chosen == set(np.flatnonzero(split.parts == VAL))
    else:
        end, begin = cut_with_gap(total, fraction)
        assert ((0, end), (begin, total)) == split.spans[:2]
