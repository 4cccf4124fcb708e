"""Checks the shapes and types in signatures while the tests run."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

# An int passes for a float, as in mypy.
CONF = BeartypeConf(is_pep484_tower=True)


def checked_lazily(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that builds its checks at the first call: those of all functions take half a second."""
    checked: Callable[..., Any] | None = None

    @wraps(function)
    def check(*values: Any, **options: Any) -> Any:
        nonlocal checked
        checked = checked or beartype(conf=CONF)(function)
        return checked(*values, **options)

    return check


def install_shape_checks(packages: list[str]) -> None:
    """Adds checks to all functions of the packages, which must not be imported yet."""
    install_import_hook(packages, f"{__name__}.{checked_lazily.__name__}")
