"""Parsed overrides: a value, a list of values, a glob, or an interval. Knows no Hydra."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moe_cli.config.ranges import format_setting
from moe_cli.errors import ConfigError


@dataclass(frozen=True)
class Glob:
    """`glob(s*)`, `glob(*, exclude=z)`: the choices of a group whose names are like one of `include`."""

    include: tuple[str, ...]
    exclude: tuple[str, ...]

    def __str__(self) -> str:
        without = f",exclude=[{','.join(self.exclude)}]" if self.exclude else ""
        return f"glob([{','.join(self.include)}]{without})"


@dataclass(frozen=True)
class Interval:
    """`interval(low, high)`, or `tag(log, interval(low, high))`: from where a search draws.

    Attributes:
        step: only low, low + step, ... are drawn; a sweep file can say it.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None

    def __str__(self) -> str:
        if self.step is not None:
            return f"interval({self.low:g},{self.high:g}) in steps of {self.step:g}"
        text = f"interval({self.low:g},{self.high:g})"
        return f"tag(log,{text})" if self.log else text


@dataclass(frozen=True)
class Axis:
    """One key and its values. A plain override is an axis of one value.

    A Glob or an Interval is the only value of its axis. `Composer.expanded` converts a Glob to values. Only a search
    accepts an Interval.
    """

    key: str
    values: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.key}={','.join(format_setting(value) for value in self.values)}"


def repeated_keys(overrides: Sequence[str]) -> list[str]:
    """Returns the keys that are given more than once; the last word on a key holds."""
    keys = [word.split("=", 1)[0] for word in overrides]
    return sorted({key for key in keys if keys.count(key) > 1})


def single_values(axes: Sequence[Axis], command: str) -> dict[str, Any]:
    """Returns one value per key, for commands that work on one configuration.

    Raises:
        ConfigError: an axis with several values.
    """
    for axis in axes:
        if isinstance(axis.values[0], Interval):
            raise ConfigError(
                f"'{axis}' is an interval; {command} takes one value, such as {axis.key}={axis.values[0].low:g}"
            )
        if len(axis.values) > 1 or isinstance(axis.values[0], Glob):
            raise ConfigError(f"'{axis}' names several values; {command} takes one. Use: moe sweep {axis}")
    return {axis.key: axis.values[0] for axis in axes}
