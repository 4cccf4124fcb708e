"""Run folders: one per run, plain files that are the truth.

    config.json   config.yaml   what was asked, for machines and for people
    status.json                 pending, running, completed, failed, pruned or interrupted; pid, host, heartbeat, step,
                                how many times it was started
    meta.json                   where it ran: code, packages, hardware, corpus
    metrics.jsonl               a record per line as training goes; a torn last line is ignored
    routing.jsonl               per layer, how often each expert was chosen at each evaluation
    summary.json                the results; there only when the run is complete
    log.txt   traceback.txt     what a sweep's worker printed; what went wrong
    loggers.json   tensorboard/   wandb/   with log=...: what loggers call the run; what they write
    slurm.json                  the Slurm job that has been sent for it, while there is one
    checkpoints/                see training/checkpoint.py

A folder may be copied, moved, deleted or synchronised at any time. Whoever writes in it holds a lock on `.lock`, which
the operating system releases however the process ends.
"""

import errno
import fcntl
import json
import math
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from moe_cli.config.schema import RunConfig, digest_of, from_dict
from moe_cli.errors import ConfigError, RunBusy, RunNotFound
from moe_cli.files.checksums import Mark, damage, mark, read_sealed, sealed
from moe_cli.files.reading import note_unreadable, time_in
from moe_cli.files.reading import read_json as read_json
from moe_cli.files.reading import read_lines as read_lines
from moe_cli.files.writing import (
    TEMPORARY,
    append,
    delete_abandoned,
    guard,
    hold,
    is_held,
    make_folder,
    mark_outputs,
    new_folder,
    rename,
    write_text,
)
from moe_cli.formatting import print_line

PENDING, RUNNING, COMPLETED, FAILED, INTERRUPTED = "pending", "running", "completed", "failed", "interrupted"
PRUNED = "pruned"  # stopped for good, because others do better
STATUSES = (PENDING, RUNNING, COMPLETED, FAILED, PRUNED, INTERRUPTED)
# A running run on another machine that has been silent for this long is taken for dead.
SILENCE_SECONDS = 120.0
LATEST_BYTES = 16_384
# A run folder has such a name until its first files are in it.
MAKING = ".making-"
# What a rename to a name that is taken ends with.
TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)
# What a run adds to as it goes.
RECORDS = ("metrics.jsonl", "routing.jsonl")
# The digest of its configuration in the id of a run.
_DIGEST = re.compile(r"-([0-9a-f]{8})(?:-\d+)?$")


def outputs_folder(option: Path | None = None) -> Path:
    """Where runs are kept: the option, else $MOE_OUTPUTS, else ./outputs. Links below it are not written through."""
    return guard(Path(os.path.expanduser(option or os.environ.get("MOE_OUTPUTS") or "outputs")).absolute())


def write_json(path: Path, content: Any) -> None:
    """Writes the whole file or leaves the old one."""
    write_text(path, json.dumps(finite(content), indent=1) + "\n")


def finite(value: Any) -> Any:
    """The value with every NaN and infinity, which JSON does not have, as null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


@dataclass(frozen=True)
class Run:
    """A run folder, read only."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def group(self) -> str:
        """The folder it lies in: `runs`, or the name of a sweep."""
        return self.path.parent.name

    def config(self) -> RunConfig:
        """Raises ConfigError when config.json is damaged or of another version."""
        values = self.config_dict()
        if not values:
            raise ConfigError(f"{self.path / 'config.json'} cannot be read: the run folder is damaged.")
        try:
            return from_dict(values)
        except ConfigError as error:
            raise ConfigError(f"{self.path / 'config.json'}: {error}") from None

    def config_dict(self) -> dict[str, Any]:
        """config.json; empty where it cannot be read. That it does not fit the run's id is noted."""
        values = read_json(self.path / "config.json") or {}
        self.fits(values)
        return values

    def fits(self, values: dict[str, Any]) -> bool:
        """Whether a configuration is the one that the run's id names; that it is another one is noted."""
        named = _DIGEST.search(self.id)
        if not named or not values or digest_of(values) == named[1]:
            return True
        try:
            digest = from_dict(values).digest
        except (ConfigError, TypeError, AttributeError, ArithmeticError, LookupError) as error:
            note_unreadable(self.path, f"has a config.json that is no configuration: {str(error)[:120]}", "changed")
            return False
        if digest == named[1]:  # a setting that came later is not in the file
            return True
        why = f"has a config.json that was changed: its id says {named[1]}, its configuration is {digest}"
        note_unreadable(self.path, why, "changed")
        return False

    def meta(self) -> dict[str, Any]:
        return read_json(self.path / "meta.json") or {}

    def summary(self) -> dict[str, Any] | None:
        """The results, or None while the run is not complete."""
        return read_sealed(self.path / "summary.json")

    def status(self) -> dict[str, Any]:
        """status.json, with `status` as it really is: completed with a summary, and running while its process lives."""
        return self.really(read_json(self.path / "status.json") or {}, self.summary() is not None)

    def really(self, status: dict[str, Any], complete: bool) -> dict[str, Any]:
        """The same for a status.json that was read, given whether there is a summary."""
        if complete:
            return {**status, "status": COMPLETED}
        said = status.get("status")
        if said not in STATUSES:  # half made, or edited by hand
            return {**status, "status": PENDING}
        if said == COMPLETED:
            reason = f"summary.json cannot be read. Make it again: moe train --resume {self.id}"
            return {**status, "status": INTERRUPTED, "reason": reason}
        if said == RUNNING and not self._alive(status):
            return {**status, "status": INTERRUPTED}
        return status

    def _alive(self, status: Mapping[str, Any]) -> bool:
        if status.get("host") == socket.gethostname():
            return is_locked(self.path)
        # Either way: a clock that was wrong may have left a heartbeat in the future.
        return abs(time.time() - (time_in(status.get("heartbeat")) or 0.0)) < SILENCE_SECONDS

    def checkpoints(self) -> list[Path]:
        """Folders of whole checkpoints, newest first."""
        return sorted((self.path / "checkpoints").glob("step_" + 8 * "[0-9]"), reverse=True)

    def kept(self) -> str:
        """What a run that stopped can go on from, as part of a sentence."""
        folders = self.checkpoints()
        if not folders:
            return "no checkpoint was written yet: it will start again"
        return f"the checkpoint of step {int(folders[0].name.removeprefix('step_')):,} is kept"

    def metrics(self) -> list[dict[str, Any]]:
        return list(self.read_metrics())

    def read_metrics(self) -> Iterator[dict[str, Any]]:
        """The records one after the other, of which there may be millions."""
        return read_lines(self.path / "metrics.jsonl")

    def latest_metrics(self) -> list[dict[str, Any]]:
        """The newest records, from the end of the file alone: for displays that look often."""
        return list(read_lines(self.path / "metrics.jsonl", last_bytes=LATEST_BYTES))

    def routing(self) -> list[dict[str, Any]]:
        return list(self.read_routing())

    def read_routing(self) -> Iterator[dict[str, Any]]:
        """The records one after the other."""
        return read_lines(self.path / "routing.jsonl")


def create_run(outputs: Path, group: str, config: RunConfig) -> Run:
    """A new folder with the configuration in it; a taken name gets -2, -3, ..."""
    folder = make_group(outputs, group)
    delete_abandoned(folder, f"{MAKING}*")
    number = 1
    while (run := _make_run(folder / (config.run_id if number == 1 else f"{config.run_id}-{number}"), config)) is None:
        number += 1
    return run


def _make_run(path: Path, config: RunConfig) -> Run | None:
    """Makes a run folder that has its files from the first moment; None when something of that name is there.

    An empty folder gives way: a process that was killed between making and filling one had left it.
    """
    with new_folder(path.parent, MAKING) as making:
        _fill(making, config)
        try:
            rename(making, path)
        except OSError as error:
            if error.errno not in TAKEN:
                raise
            return None
    return Run(path)


def open_or_create_run(outputs: Path, group: str, config: RunConfig) -> Run:
    """The one folder of this configuration in a sweep; made if it is not there, mended if it is half made.

    A run that is not complete takes over how it is to be carried out now: device, threads, how often it writes.
    """
    path = make_group(outputs, group) / config.run_id
    if not path.is_dir() and (made := _make_run(path, config)):
        return made
    run = Run(make_folder(path))
    if not (read_json(path / "config.json") and read_json(path / "status.json")):
        _fill(path, config)
    elif run.config_dict() != config.to_dict() and run.summary() is None and not is_locked(path):
        _write_config(path, config)
    return run


def rewrite_config(run: Run, config: RunConfig) -> None:
    """Gives a run another way to be carried out. Raises RunBusy while it is at work."""
    with lock(run.path):
        _write_config(run.path, config)


def make_group(outputs: Path, group: str) -> Path:
    """The folder of a sweep, or of `runs`, marked as outputs as the folder around it is. Raises MoeError."""
    for folder in (outputs, outputs / group):
        mark_outputs(make_folder(folder))
    return outputs / group


def _fill(path: Path, config: RunConfig) -> None:
    _write_config(path, config)
    write_json(path / "status.json", {"status": PENDING, "created": time.time()})


def _write_config(path: Path, config: RunConfig) -> None:
    write_text(path / "config.yaml", yaml.safe_dump(config.to_dict(), sort_keys=False))
    write_json(path / "config.json", config.to_dict())


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Holds the run folder for writing.

    Raises:
        RunBusy: another process holds it.
    """
    with ExitStack() as held:
        for attempt in range(20):
            try:
                held.enter_context(hold(path / ".lock", fcntl.LOCK_EX | fcntl.LOCK_NB))
                break
            except BlockingIOError:
                if attempt == 19:
                    raise RunBusy(f"{path.name} is being written by another process: wait for it or stop it.") from None
                time.sleep(0.05)  # a reader asking `is_locked` holds it for an instant
        delete_abandoned(path, f".*{TEMPORARY}")
        yield


def is_locked(path: Path) -> bool:
    """Whether a living process holds the folder for writing."""
    return is_held(path / ".lock", fcntl.LOCK_SH)


def break_lock(path: Path) -> None:
    """Lets the folder be written although a machine that is gone still holds it, as network file systems may have it.

    The lock is on the file that was there; another takes its name.
    """
    write_text(path / ".lock", "")


class Recorder:
    """Writes a run's files. Use it while holding `lock`."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._marks: dict[str, Mark] = {}
        self._status = {**(read_json(run.path / "status.json") or {}), "pid": os.getpid(), "host": socket.gethostname()}

    def status(self, status: str, **fields: Any) -> None:
        """Sets the status; also the heartbeat that tells other machines that this one lives."""
        self._status.update(status=status, heartbeat=time.time(), **fields)
        write_json(self.run.path / "status.json", self._status)

    def metrics(self, record: Mapping[str, Any]) -> None:
        self._append("metrics.jsonl", record)

    def routing(self, record: Mapping[str, Any]) -> None:
        self._append("routing.jsonl", record)

    def _append(self, name: str, record: Mapping[str, Any]) -> None:
        with append(self.run.path / name) as file:
            file.write(json.dumps(finite(record)).encode() + b"\n")

    def mark(self) -> dict[str, Mark]:
        """How far the records have come, once they are on the disk: for the checkpoint that counts on them."""
        self._marks = {name: mark(self.run.path / name, self._marks.get(name, Mark())) for name in RECORDS}
        return self._marks

    def check(self, marks: Any, step: int) -> None:
        """Holds the records against the marks of the checkpoint of a step. What is gone is said, here and with the results."""
        known = marks if isinstance(marks, dict) else {}
        found = [damage(self.run.path / name, known.get(name), step) for name in RECORDS]
        if any(found):
            self._status["damage"] = "; ".join(filter(None, found))
            print_line(f"note: {self.run.id} goes on, but {self._status['damage']}.")

    def rewind(self, step: int) -> None:
        """Forgets what was recorded after `step`, and the evaluation at the end: they are about to be done again."""
        self._marks = {}
        for name in RECORDS:
            path = self.run.path / name
            if path.exists():
                kept = (each for each in read_lines(path) if not each.get("whole_split") and _step(each) <= step)
                write_text(path, "".join(json.dumps(record) + "\n" for record in kept))

    def meta(self, content: Mapping[str, Any]) -> None:
        write_json(self.run.path / "meta.json", content)

    def complete(self, summary: Mapping[str, Any]) -> None:
        """Writes the results last of all: their presence means that the run is complete."""
        self.status(COMPLETED, reason=self._status.get("damage"))
        write_json(self.run.path / "summary.json", sealed(finite(summary)))


def _step(record: Mapping[str, Any]) -> float:
    """The step of a record; 0 where it has none."""
    step = record.get("step", 0)
    return step if isinstance(step, int | float) else 0


class Onlooker(Recorder):
    """Writes nothing: of the processes of one training, the first one writes."""

    def status(self, status: str, **fields: Any) -> None: ...

    def _append(self, name: str, record: Mapping[str, Any]) -> None: ...

    def mark(self) -> dict[str, Mark]:
        return {}

    def check(self, marks: Any, step: int) -> None: ...

    def rewind(self, step: int) -> None: ...

    def meta(self, content: Mapping[str, Any]) -> None: ...

    def complete(self, summary: Mapping[str, Any]) -> None: ...


def open_runs(path: Path) -> list[Run]:
    """Every run at or below a folder: a run folder, a sweep's folder or the outputs folder. Oldest first."""
    return sorted(run_folders(path), key=lambda run: (_created(run), run.id))


def run_folders(path: Path) -> list[Run]:
    """The same in no order, without opening a file. What lies in folders whose names begin with a dot is left out."""
    if is_run(path):
        return [Run(path)]
    runs, groups = _runs_in(path)
    return runs + [run for group in groups for run in _runs_in(group)[0]]


def _runs_in(path: Path) -> tuple[list[Run], list[Path]]:
    """The run folders of a folder, and its other folders; what cannot be looked into is noted."""
    runs, others = [], []
    try:
        entries = [entry for entry in os.scandir(path) if not entry.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return [], []
    except OSError as error:
        note_unreadable(path, f"cannot be listed: {error.strerror}")
        return [], []
    for entry in entries:
        try:
            if not entry.is_dir():
                continue
        except OSError as error:
            note_unreadable(entry.path, f"cannot be looked into: {error.strerror}")
            continue
        if is_run(entry.path):
            runs.append(Run(path / entry.name))
        else:
            others.append(path / entry.name)
    return runs, others


def is_run(folder: Path | str) -> bool:
    """Whether it is the folder of a run: it has a config.json, of whatever kind and state."""
    try:
        os.lstat(os.path.join(folder, "config.json"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError as error:
        note_unreadable(folder, f"cannot be looked into: {error.strerror}")
        return False
    return True


def _created(run: Run) -> float:
    status = read_json(run.path / "status.json") or {}
    return time_in(status.get("created")) or 0.0


def sweep_folder(name: str) -> str:
    """The folder of a named sweep: paper/switch_table1 is kept in paper-switch_table1."""
    return name.replace("/", "-")


def spellings(name: str) -> list[str]:
    """The name as it is typed, as the folder of a sweep, and as a run in such a folder: paper/x, paper-x, paper-x/RUN."""
    sweep, slash, last = name.rpartition("/")
    return list(dict.fromkeys((name, sweep_folder(name), f"{sweep_folder(sweep)}{slash}{last}")))


def find_run(outputs: Path, name: str) -> Run:
    """The run a user means: a folder, `latest`, a run id or the beginning of just one.

    Raises:
        RunNotFound: none, or more than one.
    """
    for folder in (Path(os.path.expanduser(name)), *(outputs / each for each in spellings(name))):
        if is_run(folder):
            return Run(folder.absolute())
    runs = open_runs(outputs) if outputs.is_dir() else []
    if not runs:
        raise RunNotFound(f"no run '{name}': there are no runs in {outputs}. Make one: moe train")
    if name == "latest":
        return runs[-1]
    found = [run for run in runs if run.id == name] or [run for run in runs if run.id.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(f"{run.group}/{run.id}" for run in found[:4]) + (", ..." if len(found) > 4 else "")
        raise RunNotFound(f"'{name}' could be {len(found)} runs: {listed}. Give more of the name.")
    raise RunNotFound(f"no run '{name}' in {outputs}. The newest is {runs[-1].id}; 'latest' means it.")
