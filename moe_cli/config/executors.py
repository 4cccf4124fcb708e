"""Who carries the runs of a sweep out. No part of a run: its folder, name and results are the same whoever does."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from moe_cli.config.build import build, did_you_mean, show
from moe_cli.config.compose import Composer
from moe_cli.config.folders import is_text
from moe_cli.config.ranges import above, at_least
from moe_cli.config.words import parse_overrides
from moe_cli.config.yaml_file import read_yaml_text
from moe_cli.errors import ConfigError

_TIME = re.compile(r"(\d+-)?\d+(:\d\d){0,2}")
_MEMORY = re.compile(r"\d+[KMGT]?")


@dataclass(frozen=True)
class LocalExecutor:
    """This machine; `-j` says how many runs at a time."""

    name: Literal["local"] = "local"


@dataclass(frozen=True)
class RayExecutor:
    """Attributes:
    address: None, Ray is started on this machine; `auto`, the cluster it belongs to; HOST:PORT of a head.
    cpus: cores of a run; train.threads says how many it uses.
    gpus: GPUs of a run, parts too; None: one where the cluster has any.
    """

    name: Literal["ray"] = "ray"
    address: str | None = None
    cpus: int = 1
    gpus: float | None = None

    def __post_init__(self) -> None:
        at_least("executor.cpus", self.cpus, 1)
        at_least("executor.gpus", self.gpus, 0)
        if self.address is not None and self.address != "auto" and not re.fullmatch(r"[^\s/]+:\d+", self.address):
            raise ConfigError(f"executor.address={self.address} is not null, auto or HOST:PORT, such as 10.0.0.1:6379.")
        if self.gpus is not None and self.gpus > 1 and self.gpus != int(self.gpus):
            raise ConfigError(f"executor.gpus={show(self.gpus)}: a part of a GPU, or whole ones.")


@dataclass(frozen=True)
class SlurmExecutor:
    """What `sbatch` is asked for; None leaves a thing to the cluster.

    Attributes:
        gpus, gres: GPUs of a run, in one of two ways.
        cpus: cores of a run; train.threads says how many it uses.
        time: the longest a job goes on, as sbatch writes it. A run that needs longer goes on in another job.
        array_parallelism: runs at a time.
        requeue: taken from a node, a job queues again.
        save_seconds: a job is asked to save so long before its time is up.
        setup: lines of shell that come before a run.
    """

    name: Literal["slurm"] = "slurm"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gpus: int | None = None
    gres: str | None = None
    cpus: int = 1
    mem: str | None = None
    time: str | None = None
    array_parallelism: int | None = None
    requeue: bool = True
    save_seconds: int = 60
    setup: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        at_least("executor.cpus", self.cpus, 1)
        at_least("executor.gpus", self.gpus, 0)
        at_least("executor.array_parallelism", self.array_parallelism, 1)
        above("executor.save_seconds", self.save_seconds, 0)
        if self.gpus is not None and self.gres is not None:
            raise ConfigError(f"executor.gpus={self.gpus} and executor.gres={self.gres} both choose GPUs: give one.")
        if self.time is not None and not _TIME.fullmatch(self.time):
            raise ConfigError(
                f"executor.time={self.time} is not a time: minutes, or H:MM:SS, or D-HH:MM:SS, in quotes."
            )
        if self.mem is not None and not _MEMORY.fullmatch(self.mem):
            raise ConfigError(f"executor.mem={self.mem} is not an amount of memory, such as 16G.")


Executor = LocalExecutor | RayExecutor | SlurmExecutor
_SETTINGS = {
    kind.name: {each.name: None for each in fields(kind)} for kind in (LocalExecutor, RayExecutor, SlurmExecutor)
}


@dataclass(frozen=True)
class _Held:
    """What a file and the words on the line come to."""

    executor: Executor


def is_executor_word(word: str) -> bool:
    """Whether a word of `moe sweep` says who carries it out: executor=ray, executor.cpus=4."""
    return word.startswith(("executor=", "executor."))


def split_executor(
    words: Sequence[str], name: str | None = None, config_dir: Path | None = None
) -> tuple[Executor, list[str]]:
    """Who carries a sweep out, and the words that are about the sweep itself. Raises ConfigError as `load_executor`."""
    own = [word for word in words if is_executor_word(word)]
    return load_executor(own, name, config_dir), [word for word in words if word not in own]


def load_executor(words: Sequence[str], name: str | None = None, config_dir: Path | None = None) -> Executor:
    """The executor that `--executor NAME` and words such as `executor.cpus=4` describe; local without any.

    Raises:
        ConfigError: no such executor or setting, or a value out of range.
    """
    axes = parse_overrides(words, _Held)
    for axis in axes:
        if len(axis.values) > 1:
            raise ConfigError(f"{axis.key} has several values here; a sweep has one executor.")
    values: dict[str, Any] = {axis.key: axis.values[0] for axis in axes}
    chosen = values.pop("executor", None)
    if name is not None and chosen is not None and name != chosen:
        raise ConfigError(f"executor={show(chosen)} and --executor {name} both choose: give one.")
    settings = _file(Composer(config_dir), str(name or chosen or "local"))
    for key, value in values.items():
        setting = key.removeprefix("executor.")
        if setting == "name":
            raise ConfigError(f"'{key}' follows from the choice. Write: executor={show(value)}")
        settings[setting] = value
    _refuse_unknown(settings)
    held: _Held = build(_Held, {"executor": settings})
    return held.executor


def _file(composer: Composer, name: str) -> dict[str, Any]:
    """conf/executor/NAME.yaml: `name` and settings of that kind of executor."""
    choices = composer.choices("executor")
    if name not in choices:
        raise ConfigError(
            f"no executor '{name}'.{did_you_mean(name, choices)} There are: {', '.join(choices)}."
            f"{composer.misnamed('executor', name)}"
        )
    file = next(path for folder in composer.folders if (path := folder / "executor" / f"{name}.yaml").is_file())
    try:
        content = yaml.safe_load(read_yaml_text(file, lambda key: is_text(key, _Held), "executor"))
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{file}: {str(error).splitlines()[0]}") from None
    if not isinstance(content, dict) or content.get("name") not in _SETTINGS:
        raise ConfigError(
            f"{file} must hold 'name: local', 'name: ray' or 'name: slurm', and settings of that executor."
        )
    return content


def _refuse_unknown(settings: dict[str, Any]) -> None:
    """Raises ConfigError for a setting that the executor does not have."""
    name = settings["name"]
    for setting in settings:
        if setting in _SETTINGS[name]:
            continue
        other = next((other for other, known in _SETTINGS.items() if setting in known), None)
        hint = f" It belongs to executor={other}." if other else did_you_mean(setting, _SETTINGS[name])
        listed = ", ".join(key for key in _SETTINGS[name] if key != "name")
        hint = hint or (f" There are: {listed}." if listed else "")
        raise ConfigError(f"no setting 'executor.{setting}' with executor={name}.{hint}")
