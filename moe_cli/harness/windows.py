"""Cuts a context and its continuation into windows that a model can read. L tokens in a window."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """Inputs of a model, and the tokens that its last positions are scored on."""

    inputs: Sequence[int]
    targets: Sequence[int]


def split_windows(context: Sequence[int], continuation: Sequence[int], length: int, stride: int) -> list[Window]:
    """Returns windows that score each token of the continuation once.

    A continuation of at most `length` tokens is one window, whose context is cut from the left. A longer one begins
    after the last token of the context: the first window scores `length` tokens, each later one the next `stride`
    tokens, from `length` inputs. With stride=length these are the windows of lm-evaluation-harness. The last window has
    `length` inputs too, although fewer tokens are left.

    Args:
        context: at least one token.
        length: L, the most tokens that the model reads.
        stride: tokens from one window to the next, at most `length`.
    """
    assert context, "a context has at least one token"
    tokens, first = [*context, *continuation], len(context)
    ends = range(first + min(length, len(continuation)), len(tokens) + stride, stride)
    windows, scored = [], first
    for end in (min(end, len(tokens)) for end in ends):
        if end > scored:
            windows.append(Window(tokens[max(0, end - 1 - length) : end - 1], tokens[scored:end]))
            scored = end
    return windows
