"""Run folders: one per run, with plain files that hold its whole state.

    config.json   config.yaml   the configuration, for programs and for readers
    status.json                 pending, running, completed, failed, pruned, interrupted or imported; pid, host,
                                heartbeat, step, number of starts
    meta.json                   code, packages, hardware and data of the run
    metrics.jsonl               a record per line, appended during training; a torn last line is ignored
    routing.jsonl               per layer, how often each expert was chosen at each evaluation
    summary.json                the results of a complete run
    tags.json                   the tags of the run
    log.txt   traceback.txt     the output of a sweep's worker; the traceback of a failure
    loggers.json   tensorboard/   wandb/   with log=...: the loggers' ids of the run, and their files
    slurm.json                  the Slurm job of the run, while it exists
    checkpoints/                see training/checkpoint.py

A folder may be copied, moved, deleted or synchronised at any time. A writing process locks the file `.lock`. The
operating system releases the lock when the process ends.
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

from moe_cli.config.identity import digest_of
from moe_cli.config.run_config_json import from_dict
from moe_cli.config.schema import RunConfig
from moe_cli.config.yaml_file import format_yaml
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
from moe_cli.plugins import not_imported
from moe_cli.runs.locks import is_locked, lock

PENDING, RUNNING, COMPLETED, FAILED, INTERRUPTED = "pending", "running", "completed", "failed", "interrupted"
PRUNED = "pruned"  # stopped early, because other runs do better
IMPORTED = "imported"  # a model of another program, whose training is unknown
STATUSES = (PENDING, RUNNING, COMPLETED, FAILED, PRUNED, INTERRUPTED, IMPORTED)
# With a model that can be evaluated, and nothing left to train.
DONE = (COMPLETED, IMPORTED)
# A run on another machine without a heartbeat for this long counts as interrupted.
HEARTBEAT_TIMEOUT = 120.0
LATEST_BYTES = 16_384
# The prefix of a run folder's name until its first files are written.
MAKING = ".making-"
# Prefixes of the names of folders among the checkpoints: while one is written, and of one with wrong checksums.
SAVING, DAMAGED = ".saving-", "damaged-"
# The errors of a rename to an existing name.
TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)
# The digest of the configuration in a run's id.
_DIGEST = re.compile(r"-([0-9a-f]{8})(?:-\d+)?$")


def outputs_folder(option: Path | None = None) -> Path:
    """Returns the folder of all runs: the option, else $MOE_OUTPUTS, else ./outputs.

    Raises ConfigError if it is a file.
    """
    folder = Path(os.path.expanduser(option or os.environ.get("MOE_OUTPUTS") or "outputs")).absolute()
    nearest = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not nearest.is_dir():
        raise ConfigError(f"{nearest} is not a folder. Choose a folder for the runs: --outputs DIR")
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
        """Returns the name of the sweep, which is that of the parent folder; `runs` for a single run."""
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
        """Returns config.json; empty if it cannot be read. Notes a mismatch with the run's id."""
        values = read_json(self.path / "config.json") or {}
        self.fits(values)
        return values

    @property
    def digest_in_id(self) -> str | None:
        """Returns the digest of its configuration that its id ends with; None if the folder was named otherwise."""
        found = _DIGEST.search(self.id)
        return found[1] if found else None

    def fits(self, values: dict[str, Any]) -> bool:
        """Returns whether a configuration has the digest in the run's id. Notes a mismatch."""
        named = self.digest_in_id
        if not named or not values or digest_of(values) == named:
            return True
        try:
            with not_imported():
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
        """Returns status.json with the effective `status`, which depends on the summary and on living processes."""
        return self.effective_status(read_json(self.path / "status.json") or {}, self.summary() is not None)

    def effective_status(self, status: dict[str, Any], complete: bool) -> dict[str, Any]:
        """Returns the effective status for a status.json that was read. `complete` is whether a summary exists."""
        if status.get("status") == IMPORTED:
            return status
        if complete:
            return {**status, "status": COMPLETED}
        recorded = status.get("status")
        if recorded not in STATUSES:  # incomplete, or edited by hand
            return {**status, "status": PENDING}
        if recorded == COMPLETED:
            reason = f"summary.json cannot be read. Make it again: moe train --resume {self.id}"
            return {**status, "status": INTERRUPTED, "reason": reason}
        if recorded == RUNNING and not self._alive(status):
            return {**status, "status": INTERRUPTED}
        return status

    def _alive(self, status: Mapping[str, Any]) -> bool:
        if status.get("host") == socket.gethostname():
            return is_locked(self.path)
        # abs: the heartbeat is in the future if a clock was wrong.
        return abs(time.time() - (time_in(status.get("heartbeat")) or 0.0)) < HEARTBEAT_TIMEOUT

    def checkpoints(self) -> list[Path]:
        """Returns the folders of complete checkpoints, newest first."""
        return sorted((self.path / "checkpoints").glob("step_" + 8 * "[0-9]"), reverse=True)

    def checkpoint(self, step: int) -> Path:
        """Returns the folder of the checkpoint of a step."""
        return self.path / "checkpoints" / f"step_{step:08d}"

    def checkpoint_step(self) -> int | None:
        """Returns the step of the newest checkpoint, from which a stopped run continues; None if it has none."""
        folders = self.checkpoints()
        return step_of_checkpoint(folders[0]) if folders else None

    def kept(self) -> str:
        """Returns the checkpoint that a stopped run continues from, as part of a sentence."""
        step = self.checkpoint_step()
        if step is None:
            return "no checkpoint was written yet: it will start again"
        return f"the checkpoint of step {step:,} is kept"

    def metrics(self) -> list[dict[str, Any]]:
        return list(self.read_metrics())

    def read_metrics(self) -> Iterator[dict[str, Any]]:
        """Yields the records of metrics.jsonl, possibly millions."""
        return read_lines(self.path / "metrics.jsonl")

    def latest_metrics(self) -> list[dict[str, Any]]:
        """Returns the newest records, read from the end of the file, for displays that poll."""
        return list(read_lines(self.path / "metrics.jsonl", last_bytes=LATEST_BYTES))

    def routing(self) -> list[dict[str, Any]]:
        return list(self.read_routing())

    def read_routing(self) -> Iterator[dict[str, Any]]:
        """Yields the records of routing.jsonl."""
        return read_lines(self.path / "routing.jsonl")


def step_of_checkpoint(folder: Path) -> int:
    """Returns the step of the folder of a checkpoint."""
    return int(folder.name.removeprefix("step_"))


def create_run(outputs: Path, sweep: str, config: RunConfig) -> Run:
    """Creates a run folder. If its name exists, it gets the suffix -2, -3, ..."""
    folder = make_sweep_folder(outputs, sweep)
    delete_abandoned(folder, f"{MAKING}*")
    number = 1
    while (run := _make_run(folder / (config.run_id if number == 1 else f"{config.run_id}-{number}"), config)) is None:
        number += 1
    return run


def _make_run(path: Path, config: RunConfig) -> Run | None:
    """Creates a run folder together with its files; returns None if the path exists.

    An empty folder is replaced, because a killed process may have left it.
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
    """Returns the run folder of a configuration in a sweep. Creates it, or completes it, if necessary.

    A run that is not complete takes over the execution settings: device, threads, checkpoint interval.
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
    """Replaces the execution settings of a run. Raises RunBusy while a process executes it."""
    with lock(run.path):
        _write_config(run.path, config)


def make_sweep_folder(outputs: Path, sweep: str) -> Path:
    """Creates the folder of a sweep, or `runs`, and marks it and the outputs folder as outputs. Raises MoeError."""
    for folder in (outputs, outputs / sweep):
        mark_outputs(make_folder(folder))
    return outputs / sweep


def _init_folder(path: Path, config: RunConfig) -> None:
    _write_config(path, config)
    write_json(path / "status.json", {"status": PENDING, "created": time.time()})


def _write_config(path: Path, config: RunConfig) -> None:
    write_text(path / "config.yaml", format_yaml(config.to_dict()))
    write_json(path / "config.json", config.to_dict())
