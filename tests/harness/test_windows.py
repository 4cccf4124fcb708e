"""Windows score each token of a continuation once, with the context that their length and stride allow."""

from hypothesis import given
from hypothesis import strategies as st

from moe_cli.harness.windows import split_windows


@given(st.integers(1, 12), st.integers(0, 40), st.integers(1, 8), st.integers(1, 8))
def test_each_token_is_scored_once(num_context: int, num_continuation: int, length: int, stride: int) -> None:
    """Tokens are their own positions here: targets follow each other, and each input is followed by its target."""
    stride = min(stride, length)
    windows = split_windows(range(num_context), range(num_context, num_context + num_continuation), length, stride)
    scored = [token for window in windows for token in window.targets]
    assert list(range(num_context, num_context + num_continuation)) == scored
    for window in windows:
        assert [token + 1 for token in window.inputs][-len(window.targets) :] == list(window.targets)
        assert list(range(window.inputs[0], window.inputs[-1] + 1)) == list(window.inputs)
        assert len(window.inputs) == min(length, window.targets[-1])
    assert [stride] * len(windows[1:-1]) == [len(window.targets) for window in windows[1:-1]]
    assert all(len(window.targets) <= length for window in windows)


def test_a_text_that_fits_is_read_at_once() -> None:
    """The context is cut from the left, as far as the model reads."""
    (window,) = split_windows([1, 2, 3, 4], [5, 6], length=4, stride=4)
    assert ([2, 3, 4, 5], [5, 6]) == (window.inputs, window.targets)
