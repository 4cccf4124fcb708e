"""The protocol of a logger, and the code that loggers share."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from moe_cli.config.build import flatten_dict
from moe_cli.config.schema import RunConfig
from moe_cli.files.reading import number_in, read_json
from moe_cli.files.writing import write_json
from moe_cli.runs.folder import Run
from moe_cli.runs.tags import read_tags

DEFAULT_PROJECT = "moe"


@dataclass(frozen=True)
class RunContext:
    """The run that is logged. `outputs` is the folder of all runs and of data that they share."""

    run: Run
    config: RunConfig
    outputs: Path

    def project(self, otherwise: str | None = None) -> str:
        """Returns log_project, else the value of the logger's own environment variable, else `moe`."""
        return self.config.log_project or otherwise or DEFAULT_PROJECT

    def settings(self) -> dict[str, Any]:
        """Returns every setting by its dotted name."""
        return flatten_dict(self.config.to_dict())

    def tags(self) -> tuple[str, ...]:
        return read_tags(self.run)


@dataclass(frozen=True)
class ResumeState:
    """The records of a run when it starts, resumes, or returns to a checkpoint.

    Attributes:
        step: later records are void; -1 means all.
        kept: the records up to it.
        last_logged_steps: the last recorded step of each name, which every logger has received.
    """

    step: int
    kept: Sequence[Mapping[str, Any]]
    last_logged_steps: Mapping[str, int]


class Logger(Protocol):
    """Sends the records of a run to another program. The caller handles its exceptions."""

    def start(self, past: ResumeState) -> None:
        """Starts, or resumes from `past`; called again if a run returns to a checkpoint."""

    def metrics(self, record: Mapping[str, Any]) -> None:
        """Logs a record of metrics.jsonl."""

    def finish(self, status: str, step: int, summary: Mapping[str, Any] | None) -> None:
        """Logs the status and the results of the run, if it has any, and ends. All points are then written or sent."""


def numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """Returns the finite numbers of a record or a summary, without the step."""
    return {key: value for key, value in record.items() if key != "step" and number_in(value) is not None}


class StepDeduplicator:
    """Passes each point once, for loggers that cannot delete points."""

    def __init__(self, last_logged_steps: Mapping[str, int]) -> None:
        self.last_logged_steps = dict(last_logged_steps)

    def new(self, record: Mapping[str, Any]) -> dict[str, float]:
        """Returns the numbers of a record that were not logged at this step yet."""
        step = step_of(record)
        found = {key: value for key, value in numbers(record).items() if step > self.last_logged_steps.get(key, -1)}
        self.last_logged_steps.update(dict.fromkeys(found, step))
        return found


def step_of(record: Mapping[str, Any]) -> int:
    step = record.get("step")
    return step if isinstance(step, int) else 0


def last_steps(records: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Returns the highest step of each name."""
    last: dict[str, int] = {}
    for record in records:
        for key in numbers(record):
            last[key] = max(last.get(key, -1), step_of(record))
    return last


def results(summary: Mapping[str, Any] | None) -> dict[str, float]:
    """Returns the numbers of a summary, under names that differ from those of curves."""
    return {f"summary/{key}": value for key, value in numbers(summary or {}).items()}


def load_external_id(run: Run, name: str) -> str | None:
    """Returns the id that a logger has given to this run, from loggers.json; None means none."""
    found = (read_json(run.path / "loggers.json") or {}).get(name)
    return found if isinstance(found, str) else None


def save_external_id(run: Run, name: str, called: str) -> None:
    write_json(run.path / "loggers.json", {**(read_json(run.path / "loggers.json") or {}), name: called})


class DeduplicatingLogger:
    """Base of loggers that accept each step once and have their own id for a run."""

    name: ClassVar[str]

    def __init__(self, about: RunContext) -> None:
        self.context = about
        self.run: Any = None
        self.once = StepDeduplicator({})

    def open(self, known: str | None) -> str:
        """Sets `run`, new or resumed, and returns its id in the logger; `known` is its earlier id, if it has one."""
        raise NotImplementedError

    def start(self, past: ResumeState) -> None:
        if self.run is not None:
            return
        known = load_external_id(self.context.run, self.name)
        save_external_id(self.context.run, self.name, self.open(known))
        self.once = StepDeduplicator(past.last_logged_steps if known else {})
        for record in past.kept:
            self.metrics(record)

    def metrics(self, record: Mapping[str, Any]) -> None:
        if new := self.once.new(record):
            self.run.log(new, step=step_of(record))
