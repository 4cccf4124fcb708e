"""The base of the config dataclasses. conf/ has the defaults; a range is given with its field.

A field is declared as `d_ff: int = setting(at_least=1)`. If it is not given, its value is that of the file of conf/
that belongs to the class: conf/GROUP/NAME.yaml, or a part of conf/config.yaml. Where that value is null, `resolve`
computes the value from the other settings.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from moe_cli.config.bounds import MAX_NUMBER, MAX_WHOLE, check_most
from moe_cli.config.ranges import check_above, check_at_least, check_between, check_fraction
from moe_cli.errors import ConfigError
from moe_cli.formatting import sanitise
from moe_cli.plugins import plugin_of


class _FromConf:
    def __repr__(self) -> str:
        return "(as conf/ says)"


FROM_CONF = _FromConf()
_NUMBERS = (int, float)
AnySettings = TypeVar("AnySettings", bound="Settings")


@dataclass(frozen=True)
class Limits:
    """The range of a number; null is always allowed here. `fraction`: at least 0 and below 1."""

    at_least: float | None = None
    above: float | None = None
    between: tuple[float, float] | None = None
    fraction: bool = False
    at_most: float | None = None

    @cached_property
    def has_range(self) -> bool:
        return self != Limits()

    @cached_property
    def interval(self) -> tuple[float, float]:
        """Returns an open interval inside the range, for a quick test. `check` decides on values outside it."""
        low, high = self.between or (self.at_least, self.at_most or MAX_NUMBER)
        low = 0 if self.fraction else -MAX_NUMBER if low is None else low
        low = self.above if self.above is not None else math.nextafter(low, -math.inf)
        return low, (1.0 if self.fraction else math.nextafter(high, math.inf))

    def check(self, key: str, value: Any) -> None:
        """Raises BadValue where the value of the setting `key` is outside."""
        if value is None or self.is_inside(value):
            return
        if isinstance(value, tuple):
            for item in value:
                self.check(key, item)
            return
        if self.between is not None:
            check_between(key, value, *self.between)
        if self.fraction:
            check_fraction(key, value)
        if self.above is not None:
            check_above(key, value, self.above)
        if self.at_least is not None:
            check_at_least(key, value, self.at_least)
        if isinstance(value, int | float) and not isinstance(value, bool):
            self.check_most(key, value)

    def is_inside(self, value: Any) -> bool:
        """Returns whether the value is a number inside `interval`, which takes a fraction of the time of `check`."""
        low, high = self.interval
        return type(value) in _NUMBERS and low < value < high

    def check_most(self, key: str, value: float) -> None:
        """Raises BadValue where a number is larger than any value of the setting; every number has such a bound."""
        check_most(key, value, self.at_most or (MAX_WHOLE if isinstance(value, int) else MAX_NUMBER))


def setting(
    *,
    at_least: float | None = None,
    above: float | None = None,
    between: tuple[float, float] | None = None,
    fraction: bool = False,
    at_most: float | None = None,
) -> Any:
    """Declares a field of a config dataclass. Its default is in conf/, its range is given here."""
    return dataclasses.field(
        default=FROM_CONF, metadata={"limits": Limits(at_least, above, between, fraction, at_most)}
    )


@cache
def limits_of(cls: Any) -> dict[str, Limits]:
    """Returns the ranges of the settings of a config dataclass."""
    return {field.name: field.metadata["limits"] for field in dataclasses.fields(cls) if "limits" in field.metadata}


@cache
def fields_of(cls: Any) -> dict[str, Any]:
    """Returns the fields of a config dataclass with their defaults."""
    return {field.name: field.default for field in dataclasses.fields(cls)}


class Settings:
    """Base of the config dataclasses. `group` is the group of conf/ that the class belongs to; "" is the whole."""

    group: ClassVar[str]

    def __post_init__(self) -> None:
        self._take_defaults()
        self.check_whole()

    @classmethod
    def of_checked(cls: type[AnySettings], values: Mapping[str, Any]) -> AnySettings:
        """Returns the settings with these values, whose ranges are checked already. Raises ConfigError as `check`."""
        kind: Any = cls
        new = object.__new__(cls)
        new.__dict__.update(fields_of(kind), **values)
        new._take_defaults()
        new.check()
        return new

    def _take_defaults(self) -> None:
        values = self.__dict__
        if FROM_CONF in values.values():
            cls: Any = type(self)
            defaults = defaults_of(cls, values.get("name", ""))
            values.update((name, defaults[name]) for name, value in values.items() if value is FROM_CONF)

    def check_whole(self) -> None:
        """Raises ConfigError where a setting is out of its range, or settings do not go together."""
        cls: Any = type(self)
        prefix, values = f"{self.group}." if self.group else "", self.__dict__
        for name, limits in limits_of(cls).items():
            value = values[name]
            if type(value) in _NUMBERS or limits.has_range:
                limits.check(prefix + name, value)
        self.check()

    def check(self) -> None:
        """Raises ConfigError where settings do not go together."""

    @classmethod
    def from_conf(cls, name: str) -> dict[str, Any]:
        """Returns the settings of the variant `name`, from its file of conf/; without a name, from conf/config.yaml."""
        return read_choice(cls.group, name) if name else dict(read_conf("config")[cls.group])


class PluginSettings:
    """First base of settings that a plug-in brings, whose defaults are in the plug-in's own yaml."""

    group: ClassVar[str]

    @classmethod
    def from_conf(cls, name: str) -> dict[str, Any]:
        plugin = plugin_of(cls)
        if plugin is None:
            raise ConfigError(
                f"{cls.__name__} has no defaults: make moe_cli.plugins.Plugin(config={cls.__name__}, ...)."
            )
        return merge_bases(cls.group, parse_conf(plugin.conf_text(), f"{cls.group}={name}"))


def parse_conf(text: str, origin: str) -> dict[str, Any]:
    """Returns the settings in the yaml of a plug-in. Raises ConfigError where it is not yaml, or has no settings."""
    import yaml

    try:
        content = _loader()(text).get_single_data()
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin}: the plug-in's yaml cannot be read: {_yaml_problem(error)}.") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{origin}: the plug-in's yaml holds no settings.")
    return content


def _yaml_problem(error: Exception) -> str:
    """Returns the problem and the line where it was found."""
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    line = f"line {mark.line + 1}: " if mark else ""
    return sanitise(f"{line}{problem or str(error).splitlines()[0]}")


def replace_unchecked(config: AnySettings, **changes: Any) -> AnySettings:
    """Returns the configuration with other values, as `dataclasses.replace`, but checks nothing: `check_whole` does."""
    old = config.__dict__
    if all(old[name] is value for name, value in changes.items()):
        return config
    cls: Any = type(config)
    new: AnySettings = object.__new__(cls)
    values, declared = new.__dict__, fields_of(cls)
    values.update(old, **changes)
    if len(values) > len(declared):  # cached properties
        for name in values.keys() - declared.keys():
            del values[name]
    return new


def replace_group(config: AnySettings, group: str, **changes: Any) -> AnySettings:
    """Returns the configuration with other values in one of its groups, unchecked as by `replace_unchecked`."""
    return replace_unchecked(config, **{group: replace_unchecked(getattr(config, group), **changes)})


@cache
def defaults_of(cls: Any, name: str) -> Mapping[str, Any]:
    """Returns the default of every setting of a class, as its fields have them.

    Raises ConfigError where conf/ lacks one.
    """
    values = cls.from_conf(name)
    missing = limits_of(cls).keys() - values.keys()
    if missing:
        where = f"{cls.group}={name}: the plug-in's yaml" if plugin_of(cls) else f"conf/{cls.group}/{name}.yaml"
        raise ConfigError(f"{where} lacks {', '.join(sorted(missing))}.")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def default_of(config: Settings, name: str) -> Any:
    """Returns the default of a setting of a configuration; None where its class has no such setting."""
    cls: Any = type(config)
    return defaults_of(cls, getattr(config, "name", "")).get(name)


def packaged_conf() -> Path:
    """Returns the conf/ folder that came with the program: inside the wheel, or next to the package in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise ConfigError(f"the program's own conf/ folder is missing next to {package}. Install it again.")


def read_choice(group: str, name: str) -> dict[str, Any]:
    """Returns the settings of conf/GROUP/NAME.yaml, and those of the files of its group that its `defaults` name."""
    return merge_bases(group, read_conf(f"{group}/{name}"))


def merge_bases(group: str, values: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings of a file, and those of the files of its group that its `defaults` name."""
    merged: dict[str, Any] = {}
    for base in values.pop("defaults", ["_self_"]):
        merged |= values if base == "_self_" else read_choice(group, base)
    return merged


def read_conf(name: str) -> dict[str, Any]:
    """Returns the content of a file of the packaged conf/."""
    content: dict[str, Any] = _loader()((packaged_conf() / f"{name}.yaml").read_bytes()).get_single_data()
    return content


@cache
def _loader() -> Callable[..., Any]:
    """Returns the quickest safe loader of YAML, imported at the first file: `moe --help` reads none."""
    import yaml

    loader: Callable[..., Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return loader
