"""Checks of a setting's range, in one wording."""

import math

from moe_cli.config.parse import show
from moe_cli.errors import BadValue


def at_least(key: str, value: float | None, minimum: float) -> None:
    _finite(key, value)
    if value is not None and value < minimum:
        raise BadValue(f"{key}={show(value)} is too small: the least is {show(minimum)}.")


def above(key: str, value: float | None, minimum: float) -> None:
    _finite(key, value)
    if value is not None and value <= minimum:
        raise BadValue(f"{key}={show(value)} must be greater than {show(minimum)}.")


def between(key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise BadValue(f"{key}={show(value)} must be between {show(low)} and {show(high)}.")


def share(key: str, value: float) -> None:
    if not 0 <= value < 1:
        raise BadValue(f"{key}={show(value)} must be at least 0 and below 1.")


def _finite(key: str, value: float | None) -> None:
    """Refuses NaN, which no comparison does, and infinity."""
    if isinstance(value, float) and not math.isfinite(value):
        raise BadValue(f"{key}={value} is not a number.")
