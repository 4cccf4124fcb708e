"""The settings as documentation: comment, default, type and range, and the JSON schema made of them.

The pages of docs/, the completion of words, `moe config KEY` and `moe config --schema` read them here.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from moe_cli.config.balances import METHODS, CombinedBalance
from moe_cli.config.build import WHOLE_NUMBERS, flatten_dict, options_of
from moe_cli.config.compose import Composer
from moe_cli.config.folders import GROUPS
from moe_cli.config.schema import RunConfig
from moe_cli.config.settings import Limits, PluginSettings, packaged_conf
from moe_cli.plugins import find, names, origin_of

SETTING = re.compile(r"^(?P<indent> *)(?P<key>\w+):(?P<value>[^#]*)(?:#(?P<comment>.*))?$")
TYPE_NAMES = {int: "whole number", float: "number", bool: "true or false", str: "text"}
JSON_TYPES = {int: "integer", float: "number", bool: "boolean", str: "string"}


@dataclasses.dataclass(frozen=True)
class SettingLine:
    """A line of a file of conf/."""

    key: str
    default: str
    comment: str


@dataclasses.dataclass(frozen=True)
class Explanation:
    """A setting in a configuration. `defaults` has the default of each choice of its group, "" for all choices."""

    key: str
    value: Any
    meaning: str
    values: str
    defaults: Mapping[str, str]
    source: str


def read_settings(path: Path) -> list[SettingLine]:
    """Returns the settings of a file, in its order."""
    return _settings_in(path.read_text(encoding="utf-8"))


def _settings_in(text: str) -> list[SettingLine]:
    content = yaml.safe_load(text) or {}
    found, parent = [], ""
    for line in text.splitlines():
        match = SETTING.match(line)
        if not match or (match["key"] in ("defaults", "name") and not match["indent"]):
            continue
        key = match["key"]
        if isinstance(content.get(key), dict) and not match["indent"]:
            parent = key
            continue
        name = f"{parent}.{key}" if match["indent"] else key
        found.append(SettingLine(name, match["value"].strip(), (match["comment"] or "").strip()))
    return found


def read_choice_settings(group: str, name: str) -> list[SettingLine]:
    """Returns the settings of a packaged choice, those of the files that its `defaults` name among them."""
    return _with_bases(group, (packaged_conf() / group / f"{name}.yaml").read_text(encoding="utf-8"))


def _with_bases(group: str, text: str) -> list[SettingLine]:
    bases = (yaml.safe_load(text) or {}).get("defaults", ["_self_"])
    merged: dict[str, SettingLine] = {}
    for base in bases:
        for line in _settings_in(text) if base == "_self_" else read_choice_settings(group, base):
            known = merged.get(line.key)
            merged[line.key] = dataclasses.replace(line, comment=line.comment or (known.comment if known else ""))
    return list(merged.values())


@cache
def settings_by_choice(group: str) -> dict[str, dict[str, SettingLine]]:
    """Returns the settings of each packaged choice of a group; those of `eval`, `launch` and the top level by ""."""
    if group in GROUPS:
        names = [name for name in Composer().choices(group) if (packaged_conf() / group / f"{name}.yaml").is_file()]
        return {name: {line.key: line for line in read_choice_settings(group, name)} for name in names}
    top = read_settings(packaged_conf() / "config.yaml")
    inside = {line.key.removeprefix(f"{group}."): line for line in top if line.key.startswith(f"{group}.")}
    return {"": inside if group else {line.key: line for line in top if "." not in line.key}}


def classes_of(hint: Any) -> tuple[Any, ...]:
    """Returns the dataclasses of a group."""
    return tuple(option for option in options_of(hint) if dataclasses.is_dataclass(option))


def type_text(classes: tuple[Any, ...], key: str, code: Callable[[str], str] = str) -> str:
    """Returns the type and the range of a setting, as its dataclasses declare them.

    Args:
        code: marks a value, as Markdown does.
    """
    for cls in classes:
        for field in dataclasses.fields(cls):
            if field.name == key:
                options = options_of(get_type_hints(cls)[key])
                text = [_option_text(option, code) for option in options if option is not type(None)]
                text[-1] += _range_text(field.metadata.get("limits"))
                return ", ".join([*text, *(["null"] if type(None) in options else [])])
    return ""


def _option_text(option: Any, code: Callable[[str], str]) -> str:
    if get_origin(option) is Literal:
        return ", ".join(code(str(value)) for value in get_args(option))
    return TYPE_NAMES.get(option, "list of whole numbers" if option == WHOLE_NUMBERS else "list")


def _range_text(limits: Limits | None) -> str:
    """Returns a range in words, such as ` from 1 to 10,000`."""
    if limits is None:
        return ""
    low, high = limits.between or (limits.at_least, limits.at_most)
    if limits.fraction:
        return " from 0 to below 1"
    start = f" above {limits.above:g}" if limits.above is not None else f" from {low:g}" if low is not None else ""
    return start + (f" to {int(high) if high == int(high) else high:,}" if high is not None else "")


def explain_setting(composer: Composer, key: str, values: Mapping[str, Any]) -> Explanation:
    """Returns what a setting means, and its value in the configuration of `values`.

    Raises:
        ConfigError: the configuration has no such setting.
    """
    tree = composer.tree(values)
    composer.tree({**values, key: None})  # raises for an unknown setting
    needs_path = tree["data"].get("path", "") is None  # a data set without its path cannot be resolved
    composed = flatten_dict(tree)
    config = composer.point({**values, "data.path": "."} if needs_path else values).config
    *groups, name = key.split(".")
    group = groups[0] if groups else ""
    resolved = flatten_dict(config.to_dict())
    if needs_path:
        resolved["data.path"] = None
    classes = classes_of(get_type_hints(RunConfig)[group]) if group else (RunConfig,)
    lines = {choice: found[name] for choice, found in settings_by_choice(group).items() if name in found}
    choice = ""
    if group in GROUPS:  # a combination has the settings of each method below the method's name
        choice = groups[1] if len(groups) > 1 else str(values.get(group) or tree[group].get("name", "default"))
    if choice not in settings_by_choice(group) and (plugin := find(group, choice)):
        own = {line.key: line for line in _with_bases(group, plugin.conf_text())}
        lines, classes = {choice: own[name]} if name in own else {}, (plugin.config,)
    line = lines.get(choice) or _line_of_choices(lines) or next(iter(lines.values()), SettingLine(name, "", ""))
    defaults = {choice: line.default for choice, line in lines.items()}
    if len(set(defaults.values())) == 1:
        defaults = {"": line.default}
    value = resolved.get(key)
    source = _source(key, values, group, choice)
    if key not in resolved or value != composed.get(key):
        source = "derived from other settings" if key in resolved else "without effect in this configuration"
    return Explanation(key, value, line.comment, type_text(classes, name), defaults, source)


def _line_of_choices(lines: Mapping[str, SettingLine]) -> SettingLine | None:
    """Returns a setting whose comment has a line for each choice, text first; None if all have one comment."""
    if len({line.comment for line in lines.values()}) < 2:
        return None
    names = sorted(lines, key=lambda name: name != "text")
    comment = "\n".join(f"{name}: {lines[name].comment}" for name in names)
    return dataclasses.replace(lines[names[0]], comment=comment)


def _source(key: str, values: Mapping[str, Any], group: str, choice: str) -> str:
    if key in values:
        return "the command line"
    experiment = values.get("experiment")
    if experiment is not None:
        file = packaged_conf() / "experiment" / f"{experiment}.yaml"
        if not file.is_file() or key in {line.key for line in read_settings(file)}:
            return f"experiment={experiment}"
    if choice not in settings_by_choice(group) and (origin := origin_of(group, choice)):
        return f"{group}={choice} of {origin}"
    return f"conf/{group}/{choice}.yaml" if choice else "conf/config.yaml"


def json_schema() -> dict[str, Any]:
    """Returns the JSON schema (draft 2020-12) of a configuration as `moe config` prints it."""
    hints = get_type_hints(RunConfig)
    properties = {}
    for field in dataclasses.fields(RunConfig):
        hint, classes = hints[field.name], classes_of(hints[field.name])
        if classes:
            properties[field.name] = _group_schema(field.name, classes, type(None) in options_of(hint))
        else:
            line = settings_by_choice("")[""][field.name]
            properties[field.name] = _value_schema(hint, field.metadata["limits"], line)
    by_name = {"type": "object", "additionalProperties": {"type": "string"}}
    properties["plugins"] = {
        "type": "object",
        "additionalProperties": by_name,
        "description": "distributions of the plug-ins, by group and name",
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Configuration of a run of moe",
        **_object_schema(properties),
    }


def _object_schema(properties: dict[str, Any], required: tuple[str, ...] = ()) -> dict[str, Any]:
    needed = {"required": list(required)} if required else {}
    return {"type": "object", "additionalProperties": False, **needed, "properties": properties}


def _group_schema(group: str, classes: tuple[Any, ...], optional: bool) -> dict[str, Any]:
    variants = [schema for cls in classes for schema in _class_schemas(group, cls)]
    if optional:
        variants.append({"type": "null"})
    return variants[0] if len(variants) == 1 else {"oneOf": variants}


def _class_schemas(group: str, cls: Any) -> list[dict[str, Any]]:
    """Returns a schema for each name of a class, with the comments and defaults of that choice."""
    if cls is CombinedBalance:
        return [_combination_schema(group)]
    if issubclass(cls, PluginSettings):  # the settings are known to the plug-ins only, which are not imported
        found = names(group)
        return [{"type": "object", "required": ["name"], "properties": {"name": {"enum": found}}}] if found else []
    by_choice = settings_by_choice(group)
    schemas = []
    for name in get_args(get_type_hints(cls).get("name")) or (None,):
        lines = by_choice[name or ("default" if group in GROUPS else "")]
        settings = _settings_schemas(cls, lines)
        name_schema = {"name": {"const": name}} if name else {}
        schemas.append(_object_schema(name_schema | settings, ("name",) if name else ()))
    return schemas


def _combination_schema(group: str) -> dict[str, Any]:
    hints = get_type_hints(CombinedBalance)
    by_choice = settings_by_choice(group)
    methods = {name: _object_schema(_settings_schemas(classes_of(hints[name])[0], by_choice[name])) for name in METHODS}
    name = {"type": "string", "pattern": r"^[a-z_]+(\+[a-z_]+)+$"}
    return _object_schema({"name": name, **methods}, ("name",))


def _settings_schemas(cls: Any, lines: Mapping[str, SettingLine]) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {
        field.name: _value_schema(hints[field.name], field.metadata["limits"], lines.get(field.name))
        for field in dataclasses.fields(cls)
        if "limits" in field.metadata
    }


def _value_schema(hint: Any, limits: Limits, line: SettingLine | None) -> dict[str, Any]:
    options = options_of(hint)
    null = [None] if type(None) in options else []
    kind = next(option for option in options if option is not type(None))
    schema: dict[str, Any] = {"description": line.comment, "default": yaml.safe_load(line.default)} if line else {}
    if get_origin(kind) is Literal:
        return {"enum": [*get_args(kind), *null], **schema}
    if WHOLE_NUMBERS in options:
        items = {"type": "integer", **_range_schema(limits)}
        kinds = [items] if int in options else []
        return {"anyOf": [*kinds, {"type": "array", "items": items}, *({"type": "null"} for _ in null)], **schema}
    if kind not in JSON_TYPES:
        return {"type": "array", "items": {"type": "string"}, **schema}
    types_allowed = [JSON_TYPES[kind], *(["null"] if null else [])]
    return {"type": types_allowed if null else types_allowed[0], **_range_schema(limits), **schema}


def _range_schema(limits: Limits) -> dict[str, float]:
    low, high = limits.between or (limits.at_least, limits.at_most)
    ranges = {
        "minimum": 0 if limits.fraction else low,
        "exclusiveMinimum": limits.above,
        "maximum": high,
        "exclusiveMaximum": 1 if limits.fraction else None,
    }
    return {name: value for name, value in ranges.items() if value is not None}
