"""Run folders: one per run, plain files that are the truth.

    config.json   config.yaml   the configuration, for programs and for people
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

A folder may be copied, moved, deleted or synchronised at any time. A process that writes in it holds a lock on `.lock`, which
the operating system releases however the process ends.
"""

import errno
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from moe_cli.config.schema import RunConfig, digest_of, from_dict
from moe_cli.errors import ConfigError
from moe_cli.files.checksums import read_sealed
from moe_cli.files.reading import note_unreadable, read_json, read_lines, time_in
from moe_cli.files.writing import (
    delete_abandoned,
    guard,
    make_folder,
    mark_outputs,
    new_folder,
    rename,
    write_json,
    write_text,
)
from moe_cli.runs.locks import is_locked, lock

PENDING, RUNNING, COMPLETED, FAILED, INTERRUPTED = "pending", "running", "completed", "failed", "interrupted"
PRUNED = "pruned"  # stopped early, because other runs do better
STATUSES = (PENDING, RUNNING, COMPLETED, FAILED, PRUNED, INTERRUPTED)
# A running run on another machine that has been silent for this long is taken for dead.
HEARTBEAT_TIMEOUT = 120.0
LATEST_BYTES = 16_384
# A run folder has such a name until its first files are in it.
MAKING = ".making-"
# What a rename to a name that is taken ends with.
TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)
# The digest of its configuration in the id of a run.
_DIGEST = re.compile(r"-([0-9a-f]{8})(?:-\d+)?$")


def outputs_folder(option: Path | None = None) -> Path:
    """Returns the folder of all runs: the option, else $MOE_OUTPUTS, else ./outputs.

    Raises ConfigError if it is a file.
    """
    folder = Path(os.path.expanduser(option or os.environ.get("MOE_OUTPUTS") or "outputs")).absolute()
    nearest = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not nearest.is_dir():
        raise ConfigError(f"{nearest} is not a folder, and runs are kept in one. Choose another: --outputs DIR")
    return guard(folder)


@dataclass(frozen=True)
class Run:
    """A run folder, read only."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def sweep(self) -> str:
        """Returns the folder it lies in: `runs`, or the name of a sweep."""
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
        """Returns config.json; empty if it cannot be read. A mismatch with the run's id is noted."""
        values = read_json(self.path / "config.json") or {}
        self.fits(values)
        return values

    @property
    def digest_in_id(self) -> str | None:
        """Returns the digest of its configuration that its id ends with; None if the folder was named otherwise."""
        found = _DIGEST.search(self.id)
        return found[1] if found else None

    def fits(self, values: dict[str, Any]) -> bool:
        """Returns whether a configuration has the digest in the run's id. A mismatch is recorded."""
        named = self.digest_in_id
        if not named or not values or digest_of(values) == named:
            return True
        try:
            digest = from_dict(values).digest
        except (ConfigError, TypeError, AttributeError, ArithmeticError, LookupError) as error:
            note_unreadable(self.path, f"has a config.json that is no configuration: {str(error)[:120]}", "changed")
            return False
        if digest == named:  # a setting that came later is not in the file
            return True
        why = f"has a config.json that was changed: its id says {named}, its configuration is {digest}"
        note_unreadable(self.path, why, "changed")
        return False

    def meta(self) -> dict[str, Any]:
        return read_json(self.path / "meta.json") or {}

    def summary(self) -> dict[str, Any] | None:
        """Returns the results, or None while the run is not complete."""
        return read_sealed(self.path / "summary.json")

    def status(self) -> dict[str, Any]:
        """Returns status.json with the effective `status`: completed with a summary, running while a process lives."""
        return self.effective_status(read_json(self.path / "status.json") or {}, self.summary() is not None)

    def effective_status(self, status: dict[str, Any], complete: bool) -> dict[str, Any]:
        """Returns the effective status for a status.json that was read. `complete` is whether a summary exists."""
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
        return abs(time.time() - (time_in(status.get("heartbeat")) or 0.0)) < HEARTBEAT_TIMEOUT

    def checkpoints(self) -> list[Path]:
        """Folders of whole checkpoints, newest first."""
        return sorted((self.path / "checkpoints").glob("step_" + 8 * "[0-9]"), reverse=True)

    def kept(self) -> str:
        """Returns the checkpoint that a stopped run continues from, as part of a sentence."""
        folders = self.checkpoints()
        if not folders:
            return "no checkpoint was written yet: it will start again"
        return f"the checkpoint of step {int(folders[0].name.removeprefix('step_')):,} is kept"

    def metrics(self) -> list[dict[str, Any]]:
        return list(self.read_metrics())

    def read_metrics(self) -> Iterator[dict[str, Any]]:
        """Yields the records; there may be millions."""
        return read_lines(self.path / "metrics.jsonl")

    def latest_metrics(self) -> list[dict[str, Any]]:
        """Returns the newest records, from the end of the file alone: for displays that look often."""
        return list(read_lines(self.path / "metrics.jsonl", last_bytes=LATEST_BYTES))

    def routing(self) -> list[dict[str, Any]]:
        return list(self.read_routing())

    def read_routing(self) -> Iterator[dict[str, Any]]:
        """Yields the records one after the other."""
        return read_lines(self.path / "routing.jsonl")


def create_run(outputs: Path, sweep: str, config: RunConfig) -> Run:
    """Returns a new folder with the configuration in it; a taken name gets -2, -3, ..."""
    folder = make_sweep_folder(outputs, sweep)
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
        _init_folder(making, config)
        try:
            rename(making, path)
        except OSError as error:
            if error.errno not in TAKEN:
                raise
            return None
    return Run(path)


def open_or_create_run(outputs: Path, sweep: str, config: RunConfig) -> Run:
    """Returns the one folder of this configuration in a sweep; made if it is not there, mended if it is half made.

    A run that is not complete takes over how it is to be carried out now: device, threads, how often it writes.
    """
    path = make_sweep_folder(outputs, sweep) / config.run_id
    if not path.is_dir() and (made := _make_run(path, config)):
        return made
    run = Run(make_folder(path))
    if not (read_json(path / "config.json") and read_json(path / "status.json")):
        _init_folder(path, config)
    elif run.config_dict() != config.to_dict() and run.summary() is None and not is_locked(path):
        _write_config(path, config)
    return run


def rewrite_config(run: Run, config: RunConfig) -> None:
    """Gives a run another way to be carried out. Raises RunBusy while it is at work."""
    with lock(run.path):
        _write_config(run.path, config)


def make_sweep_folder(outputs: Path, sweep: str) -> Path:
    """Returns the folder of a sweep, or of `runs`, marked as outputs as the folder around it is. Raises MoeError."""
    for folder in (outputs, outputs / sweep):
        mark_outputs(make_folder(folder))
    return outputs / sweep


def _init_folder(path: Path, config: RunConfig) -> None:
    _write_config(path, config)
    write_json(path / "status.json", {"status": PENDING, "created": time.time()})


def _write_config(path: Path, config: RunConfig) -> None:
    write_text(path / "config.yaml", yaml.safe_dump(config.to_dict(), sort_keys=False))
    write_json(path / "config.json", config.to_dict())
