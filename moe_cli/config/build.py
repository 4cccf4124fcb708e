"""Builds the frozen dataclasses of `schema` from plain dictionaries, and checks every value against its type."""

import dataclasses
import difflib
import re
import sys
import types
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from moe_cli.config.bounds import shortened
from moe_cli.config.ranges import format_assignment, format_setting
from moe_cli.config.settings import Limits, PluginSettings, Settings, limits_of
from moe_cli.errors import BadValue, ConfigError
from moe_cli.plugins import find, names

# Excludes infinities, NaN, and whole numbers that no float can hold.
LARGEST = sys.float_info.max


# The types of plain settings.
SCALARS = frozenset({type(None), str, int, float, bool})
# The type of a setting with a value for each layer, or for each expert.
WHOLE_NUMBERS = tuple[int, ...]
# Such a list as reports have it: [1,2].
LIST_TEXT = re.compile(r"\[\d+(,\d+)*\]")


def mean_of_list(value: Any) -> Any:
    """Returns the mean of a list of whole numbers, or of its text [1,2]; any other value as it is."""
    if isinstance(value, str) and LIST_TEXT.fullmatch(value):
        value = [int(number) for number in value[1:-1].split(",")]
    is_list = isinstance(value, list | tuple) and value and all(type(item) is int for item in value)
    return sum(value) / len(value) if is_list else value


def flatten_dict(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the values of a nested dictionary by their dotted names, such as model.d_model."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if not isinstance(value, Mapping):
            flat[name] = value
        elif SCALARS.issuperset(map(type, value.values())):  # no loop in Python: reports flatten thousands
            flat.update(zip(map(f"{name}.".__add__, value), value.values(), strict=True))
        else:
            flat.update(flatten_dict(value, f"{name}."))
    return flat


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """Returns " Did you mean 'expert'?" for the option nearest to `word`, or "" if none is near.

    The last part of a dotted option counts by itself, so that `lr` finds `optim.lr` and `train.seed` finds `seed`. Then
    come options with the same words (`model.heads`: model.num_heads), and last those with similar letters, the options
    of the same group first.
    """
    options = list(options)
    group, _, last = word.rpartition(".")
    nearby = [option for option in options if group and option.startswith(f"{group}.")]
    found = (
        _ends_with(last, nearby)
        or _ends_with(last, options)
        or (None if group else _similar(word, options, cutoff=0.8))
        or _has_word(last, nearby)
        or _has_word(last, options)
        or _similar_part(last, nearby, cutoff=0.6)
        or _similar(word, options, cutoff=0.6)
        or _similar_part(last, options, cutoff=0.75)
    )
    return f" Did you mean '{found}'?" if found else ""


def _ends_with(last: str, options: Sequence[str]) -> str | None:
    """Returns the first option whose last part is the word."""
    return next((option for option in options if last == option.rpartition(".")[2]), None)


def _has_word(last: str, options: Sequence[str]) -> str | None:
    """Returns the first option that contains the word, as num_heads contains heads. Needs at least four letters."""
    parts = ((option, re.split(r"[._/]", option)) for option in options)
    return next((option for option, segments in parts if last in segments), None) if len(last) >= 4 else None


def _similar(word: str, options: Iterable[str], cutoff: float) -> str | None:
    """Returns the option with the most similar letters."""
    return next(iter(difflib.get_close_matches(word, options, n=1, cutoff=cutoff)), None)


def _similar_part(last: str, options: Sequence[str], cutoff: float) -> str | None:
    """Returns the first option whose last part has the most similar letters."""
    by_part = {option.rpartition(".")[2]: option for option in reversed(options)}
    found = _similar(last, by_part, cutoff)
    return by_part[found] if found else None


def build(cls: type, values: Mapping[str, Any], prefix: str = "") -> Any:
    """Returns an instance of the dataclass `cls` from a nested dictionary.

    Raises:
        ConfigError: a key that `cls` does not have, or a value of the wrong type.
    """
    hints, required = _type_hints(cls), _required(cls)
    for key in values:
        if key not in hints:
            suffix = f" with {prefix[:-1]}={format_setting(values['name'])}" if prefix and "name" in values else ""
            raise ConfigError(f"no setting '{prefix}{key}'{suffix}.{did_you_mean(str(key), hints)}")
    for name in required:
        if name not in values:
            raise ConfigError(f"setting '{prefix}{name}' is missing.")
    limits = limits_of(cls)
    checked = {key: _convert(value, hints[key], prefix + key, limits.get(key)) for key, value in values.items()}
    return cls.of_checked(checked) if issubclass(cls, Settings) else cls(**checked)


@cache
def _type_hints(cls: type) -> dict[str, Any]:
    """Returns the types of the fields of a dataclass, without constants of the class."""
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


@cache
def _required(cls: type) -> list[str]:
    """Returns the fields that have no default."""
    missing = dataclasses.MISSING
    return [
        field.name for field in dataclasses.fields(cls) if field.default is missing and field.default_factory is missing
    ]


@cache
def takes_text(cls: type, name: str) -> bool:
    """Returns whether a setting takes text, or a list of text, in every group variant that has it."""
    group, _, rest = name.partition(".")
    variants, plain = _options(_type_hints(cls).get(group))
    if not rest:
        return not variants and set(plain) - {type(None)} in ({str}, {tuple[str, ...]})
    own = rest.partition(".")[0]
    found = [variant for variant in variants if own in {field.name for field in dataclasses.fields(variant)}]
    return bool(found) and all(takes_text(variant, rest) for variant in found)


@cache
def takes_list(cls: type, name: str) -> bool:
    """Returns whether a setting takes a list of whole numbers in any variant of its group."""
    group, _, rest = name.partition(".")
    variants, plain = _options(_type_hints(cls).get(group))
    return any(takes_list(variant, rest) for variant in variants) if rest else WHOLE_NUMBERS in plain


def names_of(cls: type, prefix: str = "") -> list[str]:
    """Returns the dotted names of all settings of a dataclass, with those of every variant of its groups."""
    names: dict[str, None] = {}
    for name, hint in _type_hints(cls).items():
        inside = [nested for group in _options(hint)[0] for nested in names_of(group, f"{prefix}{name}.")]
        names.update(dict.fromkeys(inside or [prefix + name]))
    return list(names)


def names_of_variants(cls: type, group: str) -> set[str]:
    """Returns the names of the variants of a group."""
    variants = [variant for variant in _options(_type_hints(cls)[group])[0] if "name" in _type_hints(variant)]
    return {name for variant in variants for name in _variant_names(variant)}


def _variant_names(variant: Any) -> tuple[str, ...]:
    """Returns the names that choose a variant of a group; "+" is the combination of others."""
    if issubclass(variant, PluginSettings):  # of plug-ins, which are found when a name is unknown
        return ()
    return get_args(_type_hints(variant)["name"]) or ("+",)


def kinds_of(cls: type, name: str) -> set[type]:
    """Returns the types that a setting has in its groups and their variants; empty if the setting does not exist."""
    group, _, rest = name.partition(".")
    variants, plain = _options(_type_hints(cls).get(group))
    if not rest:
        return {option for option in plain if isinstance(option, type) and option is not type(None)}
    return {kind for variant in variants for kind in kinds_of(variant, rest)}


def options_of(hint: Any) -> tuple[Any, ...]:
    """Returns the types of a union, or the type itself."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


@cache
def _options(hint: Any) -> tuple[list[Any], list[Any]]:
    """Splits a declared type into its dataclasses (the variants of a group) and its other types, None last."""
    options = options_of(hint)
    variants = [option for option in options if dataclasses.is_dataclass(option)]
    plain = [option for option in options if option not in variants]
    return variants, sorted(plain, key=lambda option: option is type(None))


_ANY = Limits()


def _convert(value: Any, hint: Any, key: str, limits: Limits | None = None) -> Any:
    variants, plain = _options(hint)
    optional = type(None) in plain
    if value is None and optional:
        return None
    if variants:
        return _convert_group(value, variants, key)
    if isinstance(value, tuple) and value and all(isinstance(item, PluginSettings) for item in value):  # built before
        return value
    is_list, is_listed = isinstance(value, list | tuple), type(plain[0]) is types.GenericAlias
    if is_listed and plain[0] != WHOLE_NUMBERS:
        return _convert_lines(value, key)
    if isinstance(value, str) and LIST_TEXT.fullmatch(value) and WHOLE_NUMBERS in plain:
        value, is_list = [int(number) for number in value[1:-1].split(",")], True
    if is_listed or (is_list and WHOLE_NUMBERS in plain):
        items = value if is_list else [value]
        return tuple(_convert_scalar(item, int, key, False, limits or _ANY) for item in items)
    return _convert_scalar(value, plain[0], key, optional, limits or _ANY)


def _convert_group(value: Any, variants: list[Any], key: str) -> Any:
    if isinstance(value, tuple(variants)):  # built before
        return value
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key}={format_setting(value)} is one value, but '{key}' is a group of settings.")
    if len(variants) == 1:
        named = {"name": key.rpartition(".")[2]} if "name" in _required(variants[0]) else {}  # of a combined balance
        return build(variants[0], named | dict(value), key + ".")
    by_name = {name: variant for variant in variants for name in _variant_names(variant)}
    name = value.get("name")
    combining = by_name.pop("+", None)  # the variant that combines several others, whose name is a+b
    if combining and isinstance(name, str) and "+" in name:
        own = {part: value[part] for part in name.split("+") if part in value and part not in _type_hints(combining)}
        methods = tuple(_build_plugin({**own[part], "name": part}, [], key, f"{key}.{part}.") for part in sorted(own))
        rest = {part: settings for part, settings in value.items() if part not in own}
        return build(combining, rest | ({"plugins": methods} if methods else {}), key + ".")
    if name not in by_name:
        return _build_plugin(value, by_name, key, f"{key}.")
    return build(by_name[name], value, key + ".")


def _build_plugin(value: Mapping[str, Any], built_in: Iterable[str], group: str, prefix: str) -> Any:
    """Returns the settings of a choice that a plug-in brings. Raises ConfigError where none does."""
    plugin = find(group, value.get("name"))
    if plugin is None or plugin.config is None:
        choices = sorted({*built_in, *names(group)})
        name = value.get("name")
        hint = did_you_mean(str(name), choices)
        raise ConfigError(f"{group}={format_setting(name)} is not one of: {', '.join(choices)}.{hint}")
    return build(plugin.config, value, prefix)


def _convert_lines(value: Any, key: str) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list | tuple) and all(isinstance(line, str) for line in value):
        return tuple(value)
    raise BadValue(f'{key}={format_setting(value)} is not a list of text. Write: \'{key}=["first","second"]\'')


def check_choice(key: str, value: Any, choices: Sequence[str]) -> str:
    """Returns the value. Raises BadValue unless it is one of the choices."""
    if isinstance(value, bool) and {"on", "off"} <= set(choices):  # how YAML reads these two words
        value = "on" if value else "off"
    if isinstance(value, str) and value in choices:
        return value
    hint = did_you_mean(format_setting(value), choices)
    raise BadValue(f"{format_assignment(key, value)} is not one of: {', '.join(choices)}.{hint}")


def _convert_scalar(value: Any, hint: Any, key: str, optional: bool, limits: Limits) -> Any:
    or_null = " or null" if optional else ""
    if isinstance(value, list):
        listed = ",".join(format_setting(item) for item in value)
        raise BadValue(
            f"{key}={format_setting(value)} is a list; one run takes one value. Use: moe sweep {key}={listed}"
        )
    if get_origin(hint) is Literal:
        return check_choice(key, value, [str(choice) for choice in get_args(hint)])
    if hint is bool and isinstance(value, bool):
        return value
    if hint is str and isinstance(value, str | int) and not isinstance(value, bool):
        return str(value)
    if hint is str and isinstance(value, float):  # 2024.10 has become 2024.1
        raise BadValue(f"{key}={format_setting(value)} was read as a number. Put quotes around it: '{key}=\"...\"'")
    if type(value) is hint and hint in (int, float) and limits.is_inside(value):
        return value
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST
    if hint in (int, float) and is_number and (hint is float or value == int(value)):
        limits.check_most(key, value)
        limits.check(key, hint(value))
        return hint(value)
    kind = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[hint]
    raise BadValue(f"{key}={shortened(format_setting(value))} is not {kind}{or_null}.")
