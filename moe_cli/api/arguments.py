"""Arguments of the Python functions, and the logger of their notes."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from moe_cli.errors import ConfigError

if TYPE_CHECKING:
    pass

LOGGER = logging.getLogger("moe_cli")


def check_list(name: str, given: Sequence[str]) -> None:
    """Raises ConfigError for a string, whose letters would be taken as settings."""
    if isinstance(given, str):
        raise ConfigError(f"{name}={given!r} is one text. Give a list: {name}={given.split()!r}")
