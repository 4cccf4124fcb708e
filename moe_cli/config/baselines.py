"""The settings that name a baseline, as typed: `balance=none router=topk`, or `balance == "none" and k == 2`."""

import shlex
from typing import Any

from moe_cli.config.axes import Glob, Interval
from moe_cli.config.expressions import equalities, parse_expression
from moe_cli.config.folders import is_text
from moe_cli.errors import ConfigError


def parse_baseline(text: str) -> dict[str, Any]:
    """Returns the settings of a baseline by name.

    Raises:
        ConfigError: the text cannot be read, gives a setting several values, or names the seed.
    """
    if any(sign in text for sign in ("==", "<", ">", "!=")):
        found = equalities(parse_expression(text), is_text)
    else:
        found = _parse_settings(text)
    if not found:
        raise ConfigError(f"--baseline '{text}' must give settings by equality, as in: --baseline balance=none")
    if "seed" in found:
        raise ConfigError(f"--baseline '{text}': configurations are compared seed by seed. Leave out the seed.")
    return found


def _parse_settings(text: str) -> dict[str, Any]:
    from moe_cli.config.overrides import parse_overrides

    try:
        axes = parse_overrides(shlex.split(text))
    except ValueError:
        raise ConfigError(f"--baseline '{text}': a quote is not closed.") from None
    several = next((axis for axis in axes if len(axis.values) > 1 or isinstance(axis.values[0], Glob | Interval)), None)
    if several is not None:
        raise ConfigError(f"--baseline '{text}': {several.key} has several values, and a baseline has one of each.")
    return {axis.key: axis.values[0] for axis in axes}
