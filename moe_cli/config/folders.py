"""The folders that settings come from: conf/ of the program, and before it one of the user."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_cli.config.build import names_of, names_of_variants, takes_text
from moe_cli.config.schema import RunConfig
from moe_cli.config.settings import packaged_conf
from moe_cli.config.training import TrainConfig
from moe_cli.config.yaml_file import load_yaml
from moe_cli.errors import ConfigError
from moe_cli.plugins import origin_of

GROUPS = ("model", "task", "router", "balance", "data", "optim", "train", "experiment")
# The value of --config-dir that excludes ./conf.
NO_FOLDER = Path("none")
_HOW_TO_USE = "To use it: --config-dir conf"


def is_text(key: str, settings: type = RunConfig) -> bool:
    """Returns whether the value of a key is text, not a number: a setting of type text, or the choice of a file."""
    return key in (*GROUPS, "preset", "executor") or takes_text(settings, key)


@dataclass(frozen=True)
class UserConf:
    """The user's own folder of conf/ files.

    Attributes:
        folder: None means that the folder does not exist or is not used.
        is_named: whether --config-dir names it; otherwise it is ./conf.
        note: the reason why ./conf is not used.
    """

    folder: Path | None = None
    is_named: bool = False
    note: str | None = None


def find_user_conf(config_dir: Path | None) -> UserConf:
    """Returns `config_dir`; without it ./conf, if it has groups of this program and files that match them.

    Raises:
        ConfigError: `config_dir` is not a folder.
    """
    if config_dir == NO_FOLDER:
        return UserConf()
    if config_dir is not None:
        if not config_dir.is_dir():
            raise ConfigError(f"--config-dir {config_dir} is not a folder.")
        return UserConf(config_dir.resolve(), is_named=True)
    here = Path.cwd() / "conf"
    if here.resolve() == packaged_conf() or not any(
        (here / group).is_dir() for group in (*GROUPS, "sweep", "decide", "claim", "executor")
    ):
        return UserConf()
    if (here / "config.yaml").exists():
        return UserConf(
            note=f"./conf is not used: it has a config.yaml, so it belongs to another program. {_HOW_TO_USE}"
        )
    if foreign := _foreign_file(here):
        return UserConf(note=f"./conf is not used: {foreign} is not a file of this program. {_HOW_TO_USE}")
    return UserConf(here)


def _foreign_file(folder: Path) -> str | None:
    """Returns a file in one of the groups that is not a choice of that group."""
    settings = {field.name for field in dataclasses.fields(TrainConfig)} | {"defaults"}
    for group in GROUPS[:-1]:
        names = names_of_variants(RunConfig, group)
        for file in sorted((folder / group).rglob("*.yaml")):
            try:
                content = load_yaml(file, lambda key: False)
            except ConfigError:
                continue  # the composition reports the error
            known = isinstance(content, Mapping) and (
                set(content) <= settings
                if group == "train"
                else "defaults" in content or (name := str(content.get("name"))) in names or origin_of(group, name)
            )
            if not known or _of_others(group, content):
                return f"{group}/{file.relative_to(folder / group).as_posix()}"
    return None


def _of_others(group: str, content: Mapping[Any, Any]) -> bool:
    """Returns whether a file names code to be run, or mostly unknown settings, which is more than a typing error."""
    known = {name.split(".")[1] for name in names_of(RunConfig) if name.startswith(f"{group}.")} | {"defaults"}
    unknown = [key for key in content if key not in known]
    return "_target_" in content or 1 < len(unknown) > len(content) / 2
