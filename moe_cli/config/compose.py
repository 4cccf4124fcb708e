"""conf/ and overrides -> RunConfig. Only this file, hydra_loader.py and overrides.py use Hydra.

Hydra provides the grammar and the composition; the orchestration is our own. Overrides of groups (`router=switch`) are
composed, once per choice of groups. Overrides of values (`expert=8`) are then applied to the composed tree, as Hydra
does too. This takes a hundredth of the time.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from moe_cli.config.axes import Axis, Glob, repeated_keys, single_values
from moe_cli.config.balances import METHODS, combine
from moe_cli.config.build import build, did_you_mean, flatten_dict, names_of
from moe_cli.config.folders import GROUPS, find_user_conf
from moe_cli.config.foreign_names import unknown_setting
from moe_cli.config.hydra_loader import hydra_loader
from moe_cli.config.overrides import parse_overrides
from moe_cli.config.ranges import format_setting
from moe_cli.config.resolve import Resolved, resolve
from moe_cli.config.run_config_json import from_dict
from moe_cli.config.schema import RunConfig
from moe_cli.config.settings import packaged_conf, read_choice
from moe_cli.config.start_config import apply_changes, read_start_config, split_path
from moe_cli.config.tasks import MODELS, PROBE_SELECTS, PROBES, model_use, what_follows
from moe_cli.config.training import is_execution
from moe_cli.errors import BadValue, ConfigError
from moe_cli.plugins import describe, names, origin_of, refuse_built_in

if TYPE_CHECKING:
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

# Parts of messages that are removed: Hydra's hint on its own command line, and OmegaConf's position in its tree.
_ADDED = re.compile(
    r"\nTo append to your (config|default list) use \+[^\n]*\Z"
    r"|\n    full_key: [^\n]*(\n    reference_type=[^\n]*)?\n    object_type=[^\n]*\Z"
)
COMPOSITION_ERRORS = (HydraException, OmegaConfBaseException, YAMLError, OSError, UnicodeError)


@dataclass
class _Base:
    """The composed tree of a choice of groups, before values are set. Shared: only `built` ever changes.

    Attributes:
        known: the settings that values may be given to.
        plain: whether nothing in it refers to something else or is missing.
        built: the dataclasses of its groups, as they are made.
        selected: the choices that the given ones select: those of a model's task and data, and others.
    """

    tree: dict[str, Any]
    known: frozenset[str]
    plain: bool
    built: dict[str, Any]
    selected: dict[str, str]


# Results of the packaged conf/ alone. All composers of a process share them, because its files do not change.
_PACKAGED: dict[Path, tuple[Any, Any, Any]] = {}


class Composer:
    """Composes conf/, with the user's own folder before the packaged one."""

    def __init__(self, config_dir: Path | None = None) -> None:
        self.user = find_user_conf(config_dir)
        self.folders = [folder for folder in (self.user.folder, packaged_conf()) if folder]
        # Files of the user's folder that were composed, relative to it.
        self.used: dict[str, None] = {}
        own = cache(self._compose), cache(self._base), cache(self._choices)
        shared = own if self.user.folder else _PACKAGED.setdefault(packaged_conf(), own)
        self.compose: Callable[..., dict[str, Any]] = shared[0]
        self.base: Callable[..., _Base] = shared[1]
        self.choices: Callable[[str], list[str]] = shared[2]

    @cached_property
    def loader(self) -> "ConfigLoaderImpl":
        return hydra_loader(self.folders)

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on ./conf: that it is not used, or the files of it that were."""
        if self.user.note:
            return (self.user.note,)
        if self.user.is_named or not self.used:
            return ()
        return (f"./conf is used: {', '.join(self.used)}. To leave it out: --config-dir none",)

    def remember(self, path: str) -> None:
        """Records that a file of the user was composed, by its path within conf/."""
        if self.user.folder is not None and (self.user.folder / path).is_file():
            self.used[path] = None

    def _choices(self, group: str) -> list[str]:
        """Returns the files of a group; those that begin with `_` are bases of others."""
        folders = {path.parent.name for folder in self.folders for path in (folder / group).glob("*/*.yaml")}
        options = [*self.loader.get_group_options(group)]
        options += [
            f"{name}/{option}"
            for name in sorted(folders)
            for option in self.loader.get_group_options(f"{group}/{name}")
        ]
        return [option for option in options if not option.rpartition("/")[2].startswith("_")]

    def choices_with_plugins(self, group: str) -> list[str]:
        """Returns the choices of a group and the names of its plug-ins, for a list: nothing is imported."""
        choices = self.choices(group)
        return [*choices, *(name for name in names(group) if name not in choices)]

    def describe(self, group: str, choice: str) -> str:
        """Returns the first comment of the choice's file, which describes its use."""
        for folder in self.folders:
            file = folder / group / f"{choice}.yaml"
            if file.is_file():
                return first_comment(file)
        return describe(group, choice)

    def _compose(self, *choices: str) -> dict[str, Any]:
        """Returns the tree of these choices, interpolations as they are written.

        Shared: to be copied before it is changed.
        """
        try:
            tree = self.loader.load_configuration("config", list(choices), RunMode.RUN, from_shell=False)
        except Exception as error:
            # Of files of the user's own Hydra may raise anything.
            if self.user.folder is None and not isinstance(error, COMPOSITION_ERRORS):
                raise
            text, folder = shorten_error(error), self.user.folder
            raise ConfigError(f"{folder}: {text}" if folder and str(folder) not in text else text) from None
        self._check_whole(tree)
        OmegaConf.set_struct(tree, False)
        tree.pop("hydra")
        if "experiment" in tree:
            raise ConfigError(
                "an experiment's file must begin with the line '# @package _global_': without it, it sets nothing."
            )
        return OmegaConf.to_container(tree)  # type: ignore[return-value]

    def _check_whole(self, tree: Any) -> None:
        """Raises ConfigError if a config.yaml of the user, which replaces ours, lacks a part."""
        groups = (*GROUPS[:-1], "eval", "launch")
        names = [field.name for field in fields(RunConfig)]
        missing = [name for name in names if name not in tree or (name in groups and not OmegaConf.is_dict(tree[name]))]
        if missing:
            raise ConfigError(
                f"{self.folders[0] / 'config.yaml'} lacks {', '.join(missing[:4])}{', ...' if missing[4:] else ''}: "
                f"it replaces {packaged_conf() / 'config.yaml'}.\nBegin with a copy of that, or rename it to "
                "experiment/NAME.yaml, with '# @package _global_' as its first line, and add experiment=NAME."
            )

    def expanded(self, axis: Axis) -> Axis:
        """Returns the axis with the choices of its glob as values.

        Raises:
            ConfigError: the key is not a group, or the glob matches nothing.
        """
        glob = axis.values[0] if axis.values else None
        if not isinstance(glob, Glob):
            return axis
        if axis.key not in GROUPS:
            raise ConfigError(f"'{axis}' chooses among files, and only groups have them: {', '.join(GROUPS)}.")
        choices = self.choices(axis.key)
        found = [choice for choice in choices if _like(choice, glob.include) and not _like(choice, glob.exclude)]
        if not found:
            raise ConfigError(f"'{axis}' finds none of: {', '.join(choices)}.")
        return Axis(axis.key, tuple(found))

    def point(self, values: Mapping[str, Any]) -> Resolved:
        """Returns the configuration at one value per key.

        Raises:
            ConfigError: an unknown key or choice, or an invalid value.
        """
        try:
            return self._point(values)
        except ConfigError as error:
            if self.used and len(values) > len(choices := {key: values[key] for key in values if key in GROUPS}):
                self.point(choices)  # raises if the files are at fault, not the values
                raise
            if not self.used:
                raise
            folder = self.folders[0] if self.user.is_named else "./conf"
            raise type(error)(f"{error}\nUsed from {folder}: {', '.join(self.used)}") from None

    def _point(self, values: Mapping[str, Any]) -> Resolved:
        base, tree = self._tree_with_values(values)
        if not base.plain or any(isinstance(value, str) and _refers(value) for value in values.values()):
            return resolve(build(RunConfig, _interpolated(tree)), user_keys=frozenset(values))
        untouched = {name for name, value in tree.items() if isinstance(value, dict) and value is base.tree[name]}
        config: RunConfig = build(
            RunConfig,
            {name: base.built.get(name, value) if name in untouched else value for name, value in tree.items()},
        )
        base.built.update((name, getattr(config, name)) for name in untouched - base.built.keys())
        return resolve(config, user_keys=frozenset(values))

    def tree(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the settings that `point` starts from: as given, nothing derived. Raises ConfigError as it does."""
        return self._tree_with_values(values)[1]

    def _tree_with_values(self, values: Mapping[str, Any]) -> tuple[_Base, dict[str, Any]]:
        groups = {key: value for key, value in values.items() if key in GROUPS}
        for group, choice in groups.items():
            for part in _parts(group, choice):
                self._check_choice(group, part)
        if "data.path" in values and "data" not in groups:
            groups |= self._own_data(groups)
        base = self.base(*_group_overrides(groups))
        tree = dict(base.tree)
        for key, value in values.items():
            if key not in groups:
                self._set(base, tree, key, value)
        return base, tree

    def _own_data(self, groups: Mapping[str, Any]) -> dict[str, str]:
        """Returns the choice of data that `data.path` alone selects; none where the data have a path."""
        tree = self.base(*_group_overrides(groups)).tree
        use = model_use(str(tree["model"].get("name")))
        return {"data": use.own_data} if use and "path" not in tree["data"] else {}

    def selection(self, values: Mapping[str, Any]) -> str:
        """Returns a line on the choices that the given choices select, such as the task of a model; "" if none."""
        groups = {key: value for key, value in values.items() if key in GROUPS}
        own = self._own_data(groups) if "data.path" in values and "data" not in groups else {}
        selected = {**own, **self.base(*_group_overrides({**groups, **own})).selected}
        selecting = [f"{group}={groups[group]}" for group in ("model", "task", "data") if group in groups]
        selecting = selecting or (["data.path"] if own else [])
        listed = [f"{group}={selected[group]}" for group in GROUPS if group in selected]
        return f"{' '.join(selecting)} selects {' '.join(listed)}." if selecting and listed else ""

    def _base(self, *choices: str) -> _Base:
        groups = dict(choice.split("=", 1) for choice in choices)
        tree = self._grouped(groups)
        names = {group: str(tree[group].get("name")) for group in ("model", "task", "data")}
        follows = {
            group: name for group, name in what_follows(**names, explicit=groups).items() if name != names[group]
        }
        follows |= self._selected(tree, follows, groups)
        if follows:
            tree = self._grouped({**groups, **follows})
        return _Base(
            tree,
            frozenset(leaf for leaf in flatten_dict(tree) if not leaf.endswith(".name")),
            not _refers(repr(tree)),
            {},
            follows,
        )

    def _selected(self, tree: dict[str, Any], follows: Mapping[str, str], choices: Mapping[str, str]) -> dict[str, str]:
        """Returns the choices that the model and the data select, except those given or made by an experiment."""
        plain, model = self.compose(), follows.get("model", str(tree["model"].get("name")))
        selects = MODELS[model].selects if model in MODELS else {}
        if follows.get("data", tree["data"].get("name")) in PROBES:
            selects = {**selects, **PROBE_SELECTS}
        if "router" in selects and choices.get("router", selects["router"]) != selects["router"]:
            return {}  # the balance goes with that router
        return {
            group: choice for group, choice in selects.items() if group not in choices and tree[group] == plain[group]
        }

    def _grouped(self, groups: dict[str, str]) -> dict[str, Any]:
        """Returns the tree of these choices; `balance` may combine several: a+b."""
        parts = _parts("balance", groups.get("balance"))
        trees = []
        for part in parts:
            selection = {**groups, "balance": part} if "balance" in groups else groups
            choices = sorted(f"{group}={choice}" for group, choice in selection.items())
            trees.append(deepcopy(self.compose(*choices)))
            self._remember_files(choices)
        tree = trees[0]
        if len(parts) > 1:
            methods = {str(tree["balance"].get("name")): tree["balance"] for tree in trees}
            if len(methods) < len(parts):
                raise ConfigError(f"balance={groups['balance']} names a method twice.")
            tree["balance"] = combine(methods)
        return tree

    def _remember_files(self, choices: list[str]) -> None:
        if self.user.folder is not None:
            for default in self.loader.compute_defaults_list("config", choices, RunMode.RUN).defaults:
                self.remember(f"{default.config_path}.yaml")

    def _check_choice(self, group: str, choice: Any) -> None:
        choices = self.choices(group)
        if choice is None and group == "experiment":
            return
        if (packaged_conf() / group / f"{choice}.yaml").is_file():
            refuse_built_in(group, choice)
        if choice not in choices and not (isinstance(choice, str) and origin_of(group, choice)):
            choices = self.choices_with_plugins(group)
            listed = ", ".join(choices) if choices else "none"
            if group == "data" and os.path.exists(os.path.expanduser(str(choice))):
                raise BadValue(f"data={choice}: no such choice. To read own text: data.path={choice}")
            raise BadValue(
                f"{group}={format_setting(choice)}: no such choice.{did_you_mean(format_setting(choice), choices)} "
                f"There are: {listed}.{self.misnamed(group, format_setting(choice))}"
            )

    def misnamed(self, group: str, name: str) -> str:
        """Returns a hint where the file exists and ends in .yml; "" elsewhere."""
        files = (folder / group / f"{name}.yml" for folder in self.folders)
        file = next((file for file in files if os.path.isfile(file)), None)  # a name may be too long for a file
        return f"\nFiles of conf/ end in .yaml: rename {file}" if file else ""

    def _set(self, base: _Base, tree: dict[str, Any], key: str, value: Any) -> None:
        """Gives a setting its value; the groups on the way are copied, for `tree` shares them with the base."""
        group, _, setting = key.partition(".")
        if group in GROUPS and setting == "name":
            raise ConfigError(f"'{key}' follows from the choice of the group. Write: {group}={format_setting(value)}")
        if key not in base.known:
            known = [leaf for leaf in flatten_dict(base.tree) if leaf in base.known]
            within = [leaf for leaf in known if leaf.startswith(key + ".")]
            if within:
                raise ConfigError(f"'{key}' is a group of settings. Set one of them, such as {within[0]}=...")
            self._refuse_unknown(base.tree, key, known)
        *path, last = key.split(".")
        for name in path:
            tree[name] = dict(tree[name])
            tree = tree[name]
        tree[last] = value

    def _settings_of(self, group: str, choice: str) -> Iterable[str]:
        """Returns the settings of a choice by their dotted names; without Hydra where no folder of a user counts."""
        tree = self.compose(f"{group}={choice}") if self.user.folder else {group: read_choice(group, choice)}
        return flatten_dict(tree)

    def _default_first(self, group: str) -> list[str]:
        default = self.compose()[group].get("name")
        return sorted(self.choices(group), key=lambda choice: choice != default)

    def _refuse_unknown(self, tree: dict[str, Any], key: str, known: list[str]) -> None:
        group, _, setting = key.partition(".")
        name = tree[group].get("name") if isinstance(tree.get(group), dict) else None
        several = [leaf for leaf in known if leaf.startswith(f"{group}.") and leaf.endswith(f".{setting}")]
        method = setting.partition(".")[0]
        if group == "balance" and name and method in METHODS and method not in name.split("+"):
            other = "z" if method == "switch" else "switch"
            raise ConfigError(f"no setting '{key}' with balance={name}. Combine the methods: balance={other}+{method}")
        if name and "+" in name and several:
            raise ConfigError(f"no setting '{key}' with {group}={name}. Each method has its own: {', '.join(several)}")
        choices = self._default_first(group) if name else []
        if having := [choice for choice in choices if key in self._settings_of(group, choice)]:
            raise ConfigError(f"no setting '{key}' with {group}={name}. It belongs to {group}={', '.join(having)}.")
        if group == "executor":
            raise ConfigError(f"'{key}' is a setting of the executor of a sweep, not of a run. Use it with: moe sweep")
        kind = ConfigError if key in names_of(RunConfig) else BadValue  # another choice of its group has it
        raise kind(unknown_setting(key, [*known, *GROUPS]))


def first_comment(file: Path) -> str:
    """Returns the first comment of a file, which describes it; "" if there is none."""
    lines = file.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    return next((line[1:].strip() for line in lines if line.startswith("#") and "@package" not in line), "")


def _group_overrides(groups: Mapping[str, Any]) -> list[str]:
    return sorted(f"{group}={choice}" for group, choice in groups.items() if choice is not None)


def _like(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _refers(text: str) -> bool:
    """Returns whether a serialised tree contains `${...}` or `???`, a missing value."""
    return "${" in text or "???" in text


def _parts(group: str, choice: Any) -> list[Any]:
    """Returns the choices that one word names: `balance=switch+z` names two."""
    return choice.split("+") if group == "balance" and isinstance(choice, str) else [choice]


def _interpolated(tree: dict[str, Any]) -> dict[str, Any]:
    """Returns the tree with `${...}` resolved. A missing value (`???`) is an error."""
    try:
        return OmegaConf.to_container(  # type: ignore[return-value]
            OmegaConf.create(tree), resolve=True, throw_on_missing=True
        )
    except OmegaConfBaseException as error:
        raise ConfigError(shorten_error(error)) from None


def shorten_error(error: BaseException) -> str:
    """Returns the message of Hydra or OmegaConf, in at most three lines and without their hints."""
    cause = error.__cause__ or error
    text = _ADDED.sub("", str(error) or str(cause))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "\n".join(lines[:3]) or type(cause).__name__


def load_config(
    overrides: Sequence[str], command: str = "train", config_dir: Path | None = None, like: RunConfig | None = None
) -> Resolved:
    """Returns the configuration that `moe train OVERRIDES` would run.

    Args:
        overrides: settings, and at most one path: that of a saved configuration (.yaml, .json) or of own data.
        like: the configuration to start from, which the settings change.

    Raises:
        ConfigError: an override is wrong, or the configuration is invalid.
    """
    composer = Composer(config_dir)
    file, overrides = split_path(overrides)
    if file and like:
        raise ConfigError(f"{file} and --like both give the configuration to start from: give one.")
    settings = single_values(parse_overrides(overrides), command)
    if file:
        like = composer.point(read_start_config(file)).config
    values = apply_changes(composer, like, settings) if like else settings
    resolved = composer.point(values)
    notes = [f"{key} is given more than once: the last one holds." for key in repeated_keys(overrides)]
    if selection := composer.selection(settings):
        notes.append(selection)
    return Resolved(resolved.config, (*composer.notes, *notes, *resolved.notes))


def non_default_settings(values: Mapping[str, Any], config_dir: Path | None = None) -> dict[str, Any]:
    """Returns the settings of a configuration that differ from the defaults, by their dotted names."""
    default = flatten_dict(load_config([], "config", config_dir).config.to_dict())
    flat = flatten_dict(values)
    return {key: value for key, value in flat.items() if key not in default or default[key] != value}


def execution_settings(overrides: Sequence[str]) -> dict[str, Any]:
    """Returns the settings that may change when a run is resumed: those of `is_execution`.

    Raises:
        ConfigError: another setting is among the overrides.
    """
    settings = single_values(parse_overrides(overrides), "train --resume")
    for key in settings:
        if not is_execution(key):
            raise ConfigError(
                f"--resume takes {key} from the run itself: leave it out.\nWhat may change is how it is carried out: "
                "launch.num_processes and its like, train.threads, train.device, log."
            )
    return settings


def with_execution_settings(config: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    """Returns the configuration with other execution settings. Raises ConfigError for an invalid value."""
    values = config.to_dict()
    for key, value in settings.items():
        group, _, name = key.rpartition(".")
        (values[group] if group else values)[name] = value
    return from_dict(values)
