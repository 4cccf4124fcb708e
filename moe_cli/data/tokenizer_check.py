"""Protection against an untrusted tokenizer.json whose patterns never end, or whose replacements exhaust the memory.

Three checks complement each other: `hazard` reads the file, `tokenizer_probe` encodes short texts that are hard for its
patterns, and `EncodingTime` bounds the time of all texts that are encoded.
"""

import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, TypeVar

from moe_cli.errors import DataError

MAX_PATTERN, MAX_GROWTH = 10_000, 64.0
# A group with an open repetition inside that is repeated itself, such as (a+)+ or (?:x|y*){2,}.
_NESTED = re.compile(r"\((?:[^()\\]|\\.)*(?:[*+]|\{\d*,\d*\})(?:[^()\\]|\\.)*\)(?:[*+]|\{\d*,\d*\})")
# The time that texts may take to encode: a constant, and for each character 100 times that of published tokenizers.
START_SECONDS, MIN_CHARACTERS_PER_SECOND = 60.0, 20_000
# Texts of up to this many characters are encoded without a time limit: the library starts at most one match at each
# character, and gives up a match after 10 million steps, or 0.4 s.
MAX_DIRECT = 1_000
# Escapes of one character and sets of characters, which are replaced before _NESTED is searched.
_ATOMS = re.compile(r"\\[pP]\{[^}]*\}|\\.|\[(?:\\.|[^\]\\])+\]")
T = TypeVar("T")


def tokenizers_library() -> Any:
    """Returns the library `tokenizers`. Raises DataError if it is not installed."""
    try:
        import tokenizers
    except ImportError:
        raise DataError(
            "this data.tokenizer needs the library tokenizers, which is not installed. pip install 'moe-cli[bpe]'"
        ) from None
    return tokenizers


def hazard(content: dict[str, Any]) -> str | None:
    """Returns the reason why a tokenizer may not be used; None if it may."""
    for pattern in patterns_in(content):
        if len(pattern) > MAX_PATTERN:
            return f"it has a pattern of {len(pattern):,} characters"
        if has_nested_repetition(pattern):
            return f"its pattern {pattern[:40]!r} may never end: it repeats a group that contains a repetition"
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        if (growth := _growth(content.get(part))) > MAX_GROWTH:
            return f"its {part} makes text up to {growth:.3g} times as long"
    return None


def has_nested_repetition(pattern: str) -> bool:
    """Returns whether a repeated group contains an unbounded repetition. On some texts, such patterns do not end."""
    bare, before = _ATOMS.sub("x", pattern), ""
    while bare != before:
        if _NESTED.search(bare):
            return True
        # Innermost groups become characters, but an open repetition in them stays one.
        before, bare = (
            bare,
            re.sub(r"\(([^()]*)\)", lambda group: "y+" if re.search(r"[*+]|\{\d*,", group[1]) else "y", bare),
        )
        bare = re.sub(r"y\+(?=[*+]|\{\d*,)", "(y+)", bare)
    return False


def patterns_in(value: Any) -> Iterator[str]:
    """Yields every regular expression of a tokenizer. The vocabulary, which is large, has none and is skipped."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key == "Regex" and isinstance(item, str):
                yield item
            elif key != "vocab":
                yield from patterns_in(item)
    elif isinstance(value, list):
        for item in value:
            if not isinstance(item, str):
                yield from patterns_in(item)


def _growth(value: Any) -> float:
    """Returns the factor by which the replacements of a part, applied in sequence, may lengthen a text."""
    if isinstance(value, list):
        product = 1.0
        for item in value:
            product *= _growth(item)
        return product
    if not isinstance(value, dict):
        return 1.0
    inner = 1.0
    for item in value.values():
        inner *= _growth(item)
    if value.get("type") == "Replace" and isinstance(value.get("content"), str):
        pattern = value.get("pattern")
        text = pattern.get("String") if isinstance(pattern, dict) else None
        inner *= max(1.0, len(value["content"].encode()) / max(1, len(text.encode()) if isinstance(text, str) else 1))
    return inner


class _Caller(Thread):
    """A daemon thread that makes calls, one at a time. A call that never ends does not keep the process alive."""

    def __init__(self) -> None:
        super().__init__(name="tokenizer", daemon=True)
        self.calls: SimpleQueue[tuple[Callable[[], Any], SimpleQueue[tuple[Any, BaseException | None]]]] = SimpleQueue()
        self.start()

    def run(self) -> None:
        while True:
            function, answer = self.calls.get()
            try:
                answer.put((function(), None))
            except BaseException as error:  # it is raised in the calling thread
                answer.put((None, error))


@cache
def _caller() -> _Caller:
    return _Caller()


def call_with_limit(function: Callable[[], T], seconds: float) -> T:
    """Returns the result of the function. It must release the GIL while it computes, and continues after the limit.

    Raises:
        TimeoutError: it takes longer. Its thread is abandoned.
    """
    if not _caller().is_alive():  # in a forked process, where threads do not run
        _caller.cache_clear()
    answer: SimpleQueue[tuple[T, BaseException | None]] = SimpleQueue()
    _caller().calls.put((function, answer))
    try:
        result, error = answer.get(timeout=max(0.0, seconds))
    except Empty:
        _caller.cache_clear()
        raise TimeoutError from None
    if error is not None:
        raise error
    return result


class EncodingTime:
    """The total time that a tokenizer has taken. It is bounded by the length of its texts."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.characters = 0

    def call(self, function: Callable[[], T], num_characters: int) -> T:
        """Returns the result of a function that encodes a text. Raises TimeoutError if the tokenizer is too slow."""
        self.characters += num_characters
        left = START_SECONDS + self.characters / MIN_CHARACTERS_PER_SECOND - self.seconds
        started = time.monotonic()
        # A thread costs 20 us, as much as a short text. Without one, an exceeded limit is noticed at the next text.
        direct = left > 0 and num_characters <= MAX_DIRECT
        result = function() if direct else call_with_limit(function, left)
        self.seconds += time.monotonic() - started
        return result


@contextmanager
def quiet() -> Iterator[None]:
    """Suppresses standard error, because a panic of the library prints many lines."""
    sys.stderr.flush()
    try:
        kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    except OSError:  # standard error is closed
        yield
        return
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)
