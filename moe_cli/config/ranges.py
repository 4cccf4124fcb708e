"""Checks of a setting's range, in one wording."""

import math
from typing import Any

from moe_cli.config.bounds import shortened
from moe_cli.errors import BadValue, ConfigError

# The most a count may be: beyond it a tensor's sizes overflow, whatever the machine.
MAX_COUNT = 2**31 - 1


def format_setting(value: Any) -> str:
    """Returns a value as a user types it: null, true, 0.5, text, [1,2]."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple) and all(isinstance(item, int) for item in value):
        return f"[{','.join(map(str, value))}]"
    return str(value)


def format_assignment(key: str, value: Any) -> str:
    """Returns a setting or an option with its value as a user types it: seeds=3, --seeds 3."""
    return f"{key}{' ' if key.startswith('-') else '='}{shortened(format_setting(value))}"


def check_whole(key: str, value: Any, minimum: int = 1, most: int = MAX_COUNT) -> int:
    """Returns the value. Raises BadValue unless it is an integer from `minimum` to `most`."""
    if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= most:
        raise BadValue(
            f"{format_assignment(key, value)} is not a whole number of at least {minimum} and at most {most}."
        )
    return value


def check_divisible(key: str, value: int, divisor_key: str, divisor: int) -> None:
    """Raises ConfigError unless the value is a multiple of the divisor."""
    if value % divisor:
        raise ConfigError(f"{key}={value} cannot be divided among {divisor_key}={divisor}: choose a multiple.")


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
