"""Checks of a setting's range, in one wording."""

import math
from typing import Any

from moe_cli.errors import BadValue

# The most a count may be: beyond it a tensor's sizes overflow, whatever the machine.
MAX_COUNT = 2**31 - 1


def format_setting(value: Any) -> str:
    """Returns a value as a user types it: null, true, 0.5, text."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def check_whole(key: str, value: int, minimum: int = 1) -> None:
    """Raises BadValue unless the value is an integer of at least `minimum`.

    A type checker does not see every caller.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= MAX_COUNT:
        raise BadValue(
            f"{key}={format_setting(value)} is not a whole number of at least {minimum} (and at most {MAX_COUNT})."
        )


def check_at_least(key: str, value: float | None, minimum: float) -> None:
    _finite(key, value)
    if value is not None and value < minimum:
        raise BadValue(f"{key}={format_setting(value)} is too small: the least is {format_setting(minimum)}.")


def check_above(key: str, value: float | None, minimum: float) -> None:
    _finite(key, value)
    if value is not None and value <= minimum:
        raise BadValue(f"{key}={format_setting(value)} must be greater than {format_setting(minimum)}.")


def check_between(key: str, value: float, low: float, high: float) -> None:
    _finite(key, value)
    if not low <= value <= high:
        raise BadValue(
            f"{key}={format_setting(value)} must be between {format_setting(low)} and {format_setting(high)}."
        )


def check_fraction(key: str, value: float) -> None:
    _finite(key, value)
    if not 0 <= value < 1:
        raise BadValue(f"{key}={format_setting(value)} must be at least 0 and below 1.")


def _finite(key: str, value: float | None) -> None:
    """Raises BadValue for NaN, which comparisons do not detect, for infinity, and for other types."""
    if value is not None and (
        not isinstance(value, int | float) or (isinstance(value, float) and not math.isfinite(value))
    ):
        raise BadValue(f"{key}={value} is not a number.")
