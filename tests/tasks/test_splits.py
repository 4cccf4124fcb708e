"""What is held out for validation."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_cli.tasks.splits import choose_validation, cut_with_gap, split_documents


@given(st.lists(st.integers(1, 2000), max_size=60), st.floats(0.01, 0.5))
def test_what_is_chosen_for_validation_is_near_the_share(sizes: list[int], fraction: float) -> None:
    """None, or whole documents within half and twice the share, and never the first."""
    chosen = choose_validation(sizes, fraction)
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
    found = choose_validation(sizes, 0.1)
    if chosen is not None:
        assert chosen == found
    else:
        assert 400 not in {sizes[number] for number in found}
        assert sum(sizes[number] for number in found) == pytest.approx(0.1 * sum(sizes), rel=0.02)


@given(st.integers(2, 10**10), st.floats(0.0001, 0.5), st.one_of(st.none(), st.integers(2, 10**9)))
def test_a_cut_leaves_a_gap(num_tokens: int, fraction: float, most: int | None) -> None:
    """Validation is the last share, or the most wanted where that is less; training ends at most 1 % before it."""
    train_end, cut = cut_with_gap(num_tokens, fraction, most)
    share = num_tokens - int(num_tokens * (1 - fraction))
    assert num_tokens - cut == (share if most is None else min(share, most))
    assert cut - train_end == min(1024, cut // 100)


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=40), st.floats(0.01, 0.5))
def test_documents_held_out_stand_last(sizes: list[int], fraction: float) -> None:
    """The new order keeps that of both parts, and nothing is lost."""
    split = split_documents(sizes, fraction)
    assert sorted(split.order.tolist()) == list(range(len(sizes)))
    rest = [number for number in range(len(sizes)) if number not in split.chosen]
    assert split.order.tolist() == [*rest, *sorted(split.chosen)]
    assert split.size == sum(sizes)
    if split.chosen:
        assert split.train_end == split.cut == split.size - sum(sizes[number] for number in split.chosen)
    else:
        assert (split.train_end, split.cut) == cut_with_gap(sum(sizes), fraction)


def test_each_of_a_few_domains_is_held_out() -> None:
    """A tenth of every domain, though one of them stands last as a whole; one document alone is learned from."""
    domains = [0] * 40 + [1] * 60 + [2]
    split = split_documents([100] * 101, 0.1, domains)
    assert [4, 6] == [sum(domains[number] == domain for number in split.chosen) for domain in (0, 1)]
    assert 100 not in split.chosen
    assert 10 == len(split.chosen)
