"""Configurations to start from (a saved file, or that of a run), and the settings of conf/ that lead to them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_cli.config.build import flatten_dict, names_of
from moe_cli.config.folders import GROUPS, is_text
from moe_cli.config.schema import RunConfig
from moe_cli.config.training import BUDGET_KEYS
from moe_cli.config.yaml_file import load_yaml
from moe_cli.errors import ConfigError

if TYPE_CHECKING:
    from moe_cli.config.compose import Composer

CONFIG_SUFFIXES = (".yaml", ".yml", ".json")


def split_path(arguments: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Returns the saved configuration among the arguments, and the settings. A path of data becomes `data.path`.

    Raises:
        ConfigError: two paths of one kind, or a path that does not exist.
    """
    paths = [word for word in arguments if "=" not in word and _is_path(word)]
    if missing := [path for path in paths if not Path(path).exists()]:
        raise ConfigError(f"there is no file {missing[0]}. Write a setting as key=value, such as expert=8")
    files = [path for path in paths if path.endswith(CONFIG_SUFFIXES) and Path(path).is_file()]
    data = [path for path in paths if path not in files]
    for several in (files, data):
        if len(several) > 1:
            raise ConfigError(f"{' and '.join(several[:2])} are two files: give one, or the folder of several texts.")
    quoted = [path.replace("\\", "\\\\").replace('"', '\\"') for path in data]
    settings = [word for word in arguments if word not in paths]
    return Path(files[0]) if files else None, [*(f'data.path="{path}"' for path in quoted), *settings]


def _is_path(word: str) -> bool:
    named = Path(word).suffix != "" and word not in names_of(RunConfig)
    return word[:1] not in "+~-" and (named or "/" in word or Path(word).exists())


def read_start_config(file: Path) -> dict[str, Any]:
    """Returns the settings in a file that `moe config` has printed, or in a part of one.

    Raises:
        ConfigError: the file cannot be read, or does not contain settings.
    """
    content = load_yaml(file, is_text)
    if not isinstance(content, dict) or not content or not all(isinstance(key, str) for key in content):
        raise ConfigError(f"{file} is not a configuration. Save one with: moe config expert=8 > {file}")
    return _settings(content)


def _settings(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a tree as settings: `model.name` becomes the choice `model`, and a group without a value is left out."""
    flat = {key: value for key, value in flatten_dict(tree).items() if not key.startswith("plugins.")}
    choices = {key.removesuffix(".name"): value for key, value in flat.items() if key.removesuffix(".name") in GROUPS}
    values = {key: value for key, value in flat.items() if key not in GROUPS and not key.endswith(".name")}
    return {key: value for key, value in choices.items() if value is not None} | values


def apply_changes(composer: "Composer", config: RunConfig, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that lead to a configuration, with the changes in place of their values.

    A changed choice of a group replaces all settings of the group, and one training budget replaces another.
    """
    if "experiment" in changes:
        raise ConfigError("experiment= gives a configuration to start from, as the saved one does: give one.")
    replaced = [f"{group}." for group in GROUPS if group in changes]
    if any(changes.get(name) is not None for name in BUDGET_KEYS):
        replaced += BUDGET_KEYS
    settings = fewest_settings(composer, config)
    return {key: value for key, value in settings.items() if not key.startswith(tuple(replaced))} | dict(changes)


def fewest_settings(composer: "Composer", config: RunConfig) -> dict[str, Any]:
    """Returns the choices of a resolved configuration, and its settings that do not follow from them.

    A derived value, such as the width of experts, is left out, so that it follows changes of other settings. The
    configuration is complete and valid. `report.baseline.overrides_for` does this for the settings in a report, which
    may be of another version, around choices that stay.
    """
    settings = _settings(config.to_dict())
    default = flatten_dict(composer.tree({key: value for key, value in settings.items() if key in GROUPS}))
    for key in sorted(settings, key=GROUPS.__contains__):  # groups last
        fewer = {name: value for name, value in settings.items() if name != key}
        if (key in default and settings[key] == default[key]) or _leads_to(composer, fewer, config):
            settings = fewer
    return settings


def _leads_to(composer: "Composer", settings: Mapping[str, Any], config: RunConfig) -> bool:
    try:
        return composer.point(settings).config == config
    except ConfigError:
        return False
