"""Checks of a setting's range, in one wording."""

import math
from typing import Any

from moe_cli.errors import BadValue

# The most a count may be: beyond it a tensor's sizes overflow, whatever the machine.
MAX_COUNT = 2**31 - 1


def show(value: Any) -> str:
    """Returns a value as a user types it: null, true, 0.5, text."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def whole(key: str, value: int, minimum: int = 1) -> None:
    """Raises BadValue unless the value is an integer of at least `minimum`.

    A type checker does not see every caller.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= MAX_COUNT:
        raise BadValue(f"{key}={show(value)} is not a whole number of at least {minimum} (and at most {MAX_COUNT}).")


def at_least(key: str, value: float | None, minimum: float) -> None:
    _finite(key, value)
    if value is not None and value < minimum:
        raise BadValue(f"{key}={show(value)} is too small: the least is {show(minimum)}.")


def above(key: str, value: float | None, minimum: float) -> None:
    _finite(key, value)
    if value is not None and value <= minimum:
        raise BadValue(f"{key}={show(value)} must be greater than {show(minimum)}.")


def between(key: str, value: float, low: float, high: float) -> None:
    _finite(key, value)
    if not low <= value <= high:
        raise BadValue(f"{key}={show(value)} must be between {show(low)} and {show(high)}.")


def share(key: str, value: float) -> None:
    _finite(key, value)
    if not 0 <= value < 1:
        raise BadValue(f"{key}={show(value)} must be at least 0 and below 1.")


def _finite(key: str, value: float | None) -> None:
    """Raises BadValue for NaN, which comparisons do not detect, for infinity, and for other types."""
    if value is not None and (
        not isinstance(value, int | float) or (isinstance(value, float) and not math.isfinite(value))
    ):
        raise BadValue(f"{key}={value} is not a number.")
