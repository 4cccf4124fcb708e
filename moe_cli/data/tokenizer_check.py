"""Whether a tokenizer.json may be handed to its library: it is data from others, and runs as patterns and replacements.

Refused are patterns that can take time exponential in the text, and replacements that multiply it.
"""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

MAX_PATTERN, MAX_GROWTH = 10_000, 64.0
# A group with an open repetition inside that is repeated itself, such as (a+)+ or (?:x|y*){2,}.
_NESTED = re.compile(r"\((?:[^()\\]|\\.)*(?:[*+]|\{\d*,\d*\})(?:[^()\\]|\\.)*\)(?:[*+]|\{\d*,\d*\})")
# What is taken out before: escapes of one character, and sets of characters.
_ATOMS = re.compile(r"\\[pP]\{[^}]*\}|\\.|\[(?:\\.|[^\]\\])+\]")


def hazard(content: dict[str, Any]) -> str | None:
    """Why a tokenizer may not be used, None if nothing speaks against it."""
    for pattern in _patterns(content):
        if len(pattern) > MAX_PATTERN:
            return f"it has a pattern of {len(pattern):,} characters"
        if has_nested_repetition(pattern):
            return f"its pattern {pattern[:40]!r} can take time without end: a repeated group that holds a repetition"
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        if (growth := _growth(content.get(part))) > MAX_GROWTH:
            return f"its {part} makes text up to {growth:.3g} times as long"
    return None


def has_nested_repetition(pattern: str) -> bool:
    """Whether a group that is repeated holds what is repeated without bound: on some texts such patterns never end."""
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


def _patterns(value: Any) -> Iterator[str]:
    """Every regular expression of a tokenizer; the vocabulary, which is large, holds none."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key == "Regex" and isinstance(item, str):
                yield item
            elif key != "vocab":
                yield from _patterns(item)
    elif isinstance(value, list):
        for item in value:
            if not isinstance(item, str):
                yield from _patterns(item)


def _growth(value: Any) -> float:
    """How many times longer a text may become by the replacements of a part, one after the other."""
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


@contextmanager
def quiet() -> Iterator[None]:
    """Within it nothing reaches standard error, where the library prints pages when it panics."""
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
