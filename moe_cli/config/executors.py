"""Executors of the runs of a sweep. Not part of a run: its folder, name and results do not depend on the executor."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from moe_cli.config.build import build, did_you_mean
from moe_cli.config.compose import Composer
from moe_cli.config.folders import is_text
from moe_cli.config.overrides import parse_overrides
from moe_cli.config.ranges import format_setting
from moe_cli.config.settings import PluginSettings, Settings, parse_conf, setting
from moe_cli.config.yaml_file import load_yaml
from moe_cli.errors import ConfigError
from moe_cli.plugins import find

_TIME = re.compile(r"(\d+-)?\d+(:\d\d){0,2}")
_MEMORY = re.compile(r"\d+[KMGT]?")


@dataclass(frozen=True)
class _Executor(Settings):
    group: ClassVar[str] = "executor"


@dataclass(frozen=True)
class LocalExecutor(_Executor):
    """This machine; `-j` sets the number of parallel runs."""

    name: Literal["local"] = "local"


@dataclass(frozen=True)
class RayExecutor(_Executor):
    """A Ray cluster, or Ray on this machine."""

    name: Literal["ray"] = "ray"
    address: str | None = setting()
    cpus: int = setting(at_least=1, at_most=2**16)
    gpus: float | None = setting(at_least=0, at_most=2**16)

    def check(self) -> None:
        if self.address is not None and self.address != "auto" and not re.fullmatch(r"[^\s/]+:\d+", self.address):
            raise ConfigError(f"executor.address={self.address} is not null, auto or HOST:PORT, such as 10.0.0.1:6379.")
        if self.gpus is not None and self.gpus > 1 and self.gpus != int(self.gpus):
            raise ConfigError(
                f"executor.gpus={format_setting(self.gpus)} must be a fraction of one GPU or a whole number."
            )


@dataclass(frozen=True)
class SlurmExecutor(_Executor):
    """Options of `sbatch`; None leaves one to the cluster. `gpus` and `gres` are two ways to ask for GPUs."""

    name: Literal["slurm"] = "slurm"
    partition: str | None = setting()
    account: str | None = setting()
    qos: str | None = setting()
    constraint: str | None = setting()
    gpus: int | None = setting(at_least=0, at_most=2**16)
    gres: str | None = setting()
    cpus: int = setting(at_least=1, at_most=2**16)
    mem: str | None = setting()
    time: str | None = setting()
    array_parallelism: int | None = setting(at_least=1, at_most=10**6)
    requeue: bool = setting()
    save_seconds: int = setting(above=0, at_most=10**7)
    setup: tuple[str, ...] = setting()

    def check(self) -> None:
        if self.gpus is not None and self.gres is not None:
            raise ConfigError(f"executor.gpus={self.gpus} and executor.gres={self.gres} both choose GPUs: give one.")
        if self.time is not None and not _TIME.fullmatch(self.time):
            raise ConfigError(
                f"executor.time={self.time} is not a time: minutes, or H:MM:SS, or D-HH:MM:SS, in quotes."
            )
        if self.mem is not None and not _MEMORY.fullmatch(self.mem):
            raise ConfigError(f"executor.mem={self.mem} is not an amount of memory, such as 16G.")


@dataclass(frozen=True)
class PluginExecutor(PluginSettings, _Executor):
    """Base of the settings of an executor that a plug-in brings."""

    name: str = ""


Executor = LocalExecutor | RayExecutor | SlurmExecutor | PluginExecutor
_SETTINGS = {
    kind.name: {field.name: None for field in fields(kind)} for kind in (LocalExecutor, RayExecutor, SlurmExecutor)
}


def _settings_of(name: Any) -> dict[str, None]:
    """Returns the settings of a kind of executor; none of an unknown one."""
    if name not in _SETTINGS and (plugin := find("executor", name)) and plugin.config is not None:
        return {field.name: None for field in fields(plugin.config)}
    return _SETTINGS.get(name, {})


@dataclass(frozen=True)
class _ExecutorSettings:
    """The settings of a file with those of the command line."""

    executor: Executor


def split_executor(
    overrides: Sequence[str], name: str | None = None, config_dir: Path | None = None
) -> tuple[Executor, list[str]]:
    """Returns the executor, and the overrides of the sweep itself. Raises ConfigError as `load_executor`."""
    own = [word for word in overrides if word.startswith(("executor=", "executor."))]
    return load_executor(own, name, config_dir), [word for word in overrides if word not in own]


def load_executor(overrides: Sequence[str], name: str | None = None, config_dir: Path | None = None) -> Executor:
    """Returns the executor that `--executor NAME` and overrides such as `executor.cpus=4` describe; local without any.

    Raises:
        ConfigError: no such executor or setting, or a value out of range.
    """
    axes = parse_overrides(overrides, _ExecutorSettings)
    for axis in axes:
        if len(axis.values) > 1:
            raise ConfigError(f"{axis.key} has several values here; a sweep has one executor.")
    values: dict[str, Any] = {axis.key: axis.values[0] for axis in axes}
    choice = values.pop("executor", None)
    if name is not None and choice is not None and name != choice:
        raise ConfigError(f"executor={format_setting(choice)} and --executor {name} both name an executor: give one.")
    settings = _file(Composer(config_dir), str(name or choice or "local"))
    for key, value in values.items():
        setting = key.removeprefix("executor.")
        if setting == "name":
            raise ConfigError(f"'{key}' follows from the choice. Write: executor={format_setting(value)}")
        settings[setting] = value
    _refuse_unknown(settings)
    settings_of_executor: _ExecutorSettings = build(_ExecutorSettings, {"executor": settings})
    return settings_of_executor.executor


def _file(composer: Composer, name: str) -> dict[str, Any]:
    """Reads conf/executor/NAME.yaml: `name` and settings of that kind of executor."""
    choices = composer.choices("executor")
    if name not in choices:
        if plugin := find("executor", name):
            return {**parse_conf(plugin.conf_text(), f"executor={name}"), "name": name}
        choices = composer.choices_with_plugins("executor")
        raise ConfigError(
            f"no executor '{name}'.{did_you_mean(name, choices)} There are: {', '.join(choices)}."
            f"{composer.misnamed('executor', name)}"
        )
    file = next(path for folder in composer.folders if (path := folder / "executor" / f"{name}.yaml").is_file())
    content = load_yaml(file, lambda key: is_text(key, _ExecutorSettings), "executor")
    if not isinstance(content, dict) or not _settings_of(content.get("name")):
        raise ConfigError(
            f"{file} must hold 'name: local', 'name: ray' or 'name: slurm', and settings of that executor."
        )
    return content


def _refuse_unknown(settings: dict[str, Any]) -> None:
    """Raises ConfigError for a setting that the executor does not have."""
    name = settings["name"]
    own = _settings_of(name)
    for key in settings:
        if key in own:
            continue
        other = next((other for other, known in _SETTINGS.items() if key in known), None)
        hint = f" It belongs to executor={other}." if other else did_you_mean(key, own)
        listed = ", ".join(setting for setting in own if setting != "name")
        hint = hint or (f" There are: {listed}." if listed else "")
        raise ConfigError(f"no setting 'executor.{key}' with executor={name}.{hint}")
