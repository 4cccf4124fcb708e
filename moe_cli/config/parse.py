"""Plain dictionaries into the frozen dataclasses of `schema`, every value checked against its declared type."""

import dataclasses
import difflib
import sys
import types
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from moe_cli.errors import ConfigError

# Excludes infinities, NaN, and whole numbers that no float can hold.
LARGEST = sys.float_info.max


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """ " Did you mean 'expert'?" for the option nearest to `word`, or "" when none is near.

    A dotted option is also compared by its last part, so that `lr` finds `optim.lr`.
    """
    options = list(options)
    by_last_part = {option.rsplit(".", 1)[-1]: option for option in reversed(options)}
    if word in by_last_part:
        return f" Did you mean '{by_last_part[word]}'?"
    near = difflib.get_close_matches(word, options, n=1, cutoff=0.6)
    if not near:
        near = difflib.get_close_matches(word, by_last_part, n=1, cutoff=0.75)
        near = [by_last_part[part] for part in near]
    return f" Did you mean '{near[0]}'?" if near else ""


def show(value: Any) -> str:
    """A value as a user types it: null, true, 0.5, text."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def build(cls: type, values: Mapping[str, Any], prefix: str = "") -> Any:
    """An instance of the dataclass `cls` from a nested dictionary.

    Raises:
        ConfigError: a key that `cls` does not have, or a value of the wrong type.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            raise ConfigError(f"no setting '{prefix}{key}'.{did_you_mean(str(key), fields)}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigError(f"setting '{prefix}{name}' is missing.")
    hints = _type_hints(cls)
    return cls(**{key: _convert(value, hints[key], prefix + key) for key, value in values.items()})


_type_hints = cache(get_type_hints)


def _convert(value: Any, hint: Any, key: str) -> Any:
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    variants = [option for option in options if dataclasses.is_dataclass(option)]
    if variants:
        return _convert_group(value, variants, key)
    plain = [option for option in options if option is not type(None)]
    if plain[0] == tuple[str, ...]:
        return _convert_lines(value, key)
    return _convert_scalar(value, plain[0], key, optional=len(plain) < len(options))


def _convert_group(value: Any, variants: list[Any], key: str) -> Any:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key}={show(value)} is one value, but '{key}' is a group of settings.")
    if len(variants) == 1:
        return build(variants[0], value, key + ".")
    by_name = {variant.name: variant for variant in variants}
    name = value.get("name")
    combining = by_name.pop("+", None)  # the variant, if there is one, that holds several others: its name is a+b
    if combining and isinstance(name, str) and "+" in name:
        return build(combining, value, key + ".")
    if name not in by_name:
        hint = did_you_mean(str(name), by_name)
        raise ConfigError(f"{key}={show(name)} is not one of: {', '.join(sorted(by_name))}.{hint}")
    return build(by_name[name], value, key + ".")


def _convert_lines(value: Any, key: str) -> tuple[str, ...]:
    if isinstance(value, list | tuple) and all(isinstance(line, str) for line in value):
        return tuple(value)
    raise ConfigError(f'{key}={show(value)} is not a list of text. Write: \'{key}=["first","second"]\'')


def _convert_scalar(value: Any, hint: Any, key: str, optional: bool) -> Any:
    or_null = " or null" if optional else ""
    if isinstance(value, list):
        listed = ",".join(show(item) for item in value)
        raise ConfigError(f"{key}={show(value)} is a list; one run takes one value. Use: moe sweep {key}={listed}")
    if get_origin(hint) is Literal:
        choices = [str(choice) for choice in get_args(hint)]
        if isinstance(value, str) and value in choices:
            return value
        hint = did_you_mean(show(value), choices)
        raise ConfigError(f"{key}={show(value)} is not one of: {', '.join(choices)}.{hint}")
    if hint is bool and isinstance(value, bool):
        return value
    if hint is str and isinstance(value, str | int) and not isinstance(value, bool):
        return str(value)
    if hint is str and isinstance(value, float):  # 2024.10 has become 2024.1
        raise ConfigError(f"{key}={show(value)} was read as a number. Put quotes around it: '{key}=\"...\"'")
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST
    if hint in (int, float) and is_number:
        if hint is float:
            return float(value)
        if value == int(value):
            return int(value)
    kind = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[hint]
    raise ConfigError(f"{key}={show(value)} is not {kind}{or_null}.")
