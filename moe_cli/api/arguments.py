"""Arguments of the Python functions, and the logger of their notes."""

import logging
from collections.abc import Sequence

from moe_cli.errors import ConfigError

LOGGER = logging.getLogger("moe_cli")


def check_list(name: str, value: Sequence[str]) -> None:
    """Raises ConfigError for a string, whose letters would be taken for settings."""
    if isinstance(value, str):
        raise ConfigError(f"{name}={value!r} is a string. Give a list: {name}={value.split()!r}")
