"""The protocol of a logger, and the code that loggers share."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from moe_cli.config.build import flatten_dict
from moe_cli.config.schema import RunConfig
from moe_cli.files.reading import read_json
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
    """One way to show a run elsewhere. What fails in it is an exception, which the caller bears."""

    def start(self, past: ResumeState) -> None:
        """Starts, or resumes from `past`; called again if a run returns to a checkpoint."""

    def metrics(self, record: Mapping[str, Any]) -> None:
        """Takes a record of metrics.jsonl."""

    def finish(self, status: str, step: int, summary: Mapping[str, Any] | None) -> None:
        """Ends with the run's status, and its results if it has them; everything is then on its way or written."""


def numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """Returns the finite numbers of a record or a summary, without the step."""
    finite = (-float("inf"), float("inf"))
    return {
        key: value
        for key, value in record.items()
        if key != "step"
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and finite[0] < value < finite[1]
    }


class StepDeduplicator:
    """Filter for loggers that cannot delete a point: every point passes once, the first time."""

    def __init__(self, last_logged_steps: Mapping[str, int]) -> None:
        self.last_logged_steps = dict(last_logged_steps)

    def new(self, record: Mapping[str, Any]) -> dict[str, float]:
        """Returns the numbers of a record at steps that were not logged yet under their names."""
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
    """Returns the numbers of a summary, under names that no curve has."""
    return {f"summary/{key}": value for key, value in numbers(summary or {}).items()}


def load_external_id(run: Run, name: str) -> str | None:
    """Returns the id that a logger gave this run before, from loggers.json."""
    found = (read_json(run.path / "loggers.json") or {}).get(name)
    return found if isinstance(found, str) else None


def save_external_id(run: Run, name: str, called: str) -> None:
    write_json(run.path / "loggers.json", {**(read_json(run.path / "loggers.json") or {}), name: called})


class DeduplicatingLogger:
    """Base of loggers that accept no step twice and have an id of their own for a run."""

    name: ClassVar[str]

    def __init__(self, about: RunContext) -> None:
        self.context = about
        self.run: Any = None
        self.once = StepDeduplicator({})

    def open(self, known: str | None) -> str:
        """Sets `run`, as it was or new; its name there. `known` is the name it had before, if it had one."""
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
