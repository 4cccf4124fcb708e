"""train() for Python, equivalent to `moe train`, at the same speed and with the same notes.

The training runs in a new process, because the spinning of threads must be limited before torch is imported. Notes go
to the logger `moe_cli` at level WARNING, which Python prints on standard error.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moe_cli.api.arguments import LOGGER, check_list
from moe_cli.config.compose import load_config
from moe_cli.errors import DiskFull, MoeError, RunBusy, TrainingError
from moe_cli.exchange.upcycle_source import import_upcycle_source
from moe_cli.execution.estimate import estimate_runs, measure_flops
from moe_cli.execution.machine import check_devices, visible_gpus
from moe_cli.execution.memory import check_memory
from moe_cli.execution.upcycling import resolve_upcycle_source
from moe_cli.execution.warnings import run_warnings
from moe_cli.execution.worker import EXIT_DISK_FULL, EXIT_INTERRUPTED, PARENT_PID_ENV
from moe_cli.files.writing import append
from moe_cli.runs.folder import FAILED, INTERRUPTED, Run, open_or_create_run, outputs_folder
from moe_cli.runs.locks import is_locked
from moe_cli.sweeps.rerun import discard, outdated
from moe_cli.sweeps.scheduler import record_worker_failure


def train(
    overrides: Sequence[str] = (),
    *,
    outputs: Path | None = None,
    force: bool = False,
    force_memory: bool = False,
    progress: bool = False,
) -> Run:
    """Trains one configuration, as `moe train` does, and returns its run.

    Args:
        overrides: settings such as "expert=8", "k=2".
        outputs: the folder of runs; None means $MOE_OUTPUTS or ./outputs.
        force: train from the start; the old folder goes to the trash. Otherwise a complete run of this configuration is
            returned unchanged, and an interrupted one is resumed.
        force_memory: train even if the run needs far more memory than is available.
        progress: print the output of `moe train`; otherwise the output goes to log.txt in the run's folder.

    Raises:
        MoeError: a setting or the data are wrong, or training failed.
        KeyboardInterrupt: the run has saved a checkpoint; `moe train --resume` continues it.
    """
    check_list("overrides", overrides)
    folder = outputs_folder(outputs)
    resolved = load_config(import_upcycle_source(overrides, folder))
    config = resolve_upcycle_source(resolved.config, folder)
    run = Run(folder / "runs" / config.run_id)
    if run.summary() is not None and not force:
        LOGGER.warning("%s is already complete. To train it again: force=True", run.id)
        return run
    check_devices([config])
    estimate = estimate_runs([config], folder, measure_flops())[0]
    check_memory([estimate], force_memory)
    device = "cuda" if config.train.device != "cpu" and visible_gpus() else "cpu"
    for note in resolved.notes if progress else (*resolved.notes, *run_warnings(estimate, device)):
        LOGGER.warning(note)
    discard(outdated([run], force=force, code=False), folder)
    run = open_or_create_run(folder, "runs", config)
    if progress:
        arguments = ["-m", "moe_cli", "train", "--resume", str(run.path), "--outputs", str(folder)]
        code = _run([*arguments, *(["--force-memory"] if force_memory else [])], None)
    else:
        code = _run(["-m", "moe_cli.execution.worker", str(run.path), str(folder)], run.path / "log.txt")
    if run.summary() is None:
        raise _failure(run, code)
    return run


def _run(arguments: Sequence[str], log: Path | None) -> int:
    """Runs `python WORDS` and returns its exit code. Its output goes to the log, or to this process's output."""
    command = [sys.executable, *arguments]
    if log is not None:
        environment = {**os.environ, PARENT_PID_ENV: str(os.getpid())}
        with append(log) as file:
            return _finished(
                subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=environment
                )
            )
    if sys.stdout.isatty():
        return _finished(subprocess.Popen(command))
    # A notebook replaces sys.stdout, to which a child process cannot write.
    return _finished(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))


def _finished(process: "subprocess.Popen[Any]") -> int:
    """Waits for a process and returns its exit code. After KeyboardInterrupt it asks the process to save."""
    with process:
        try:
            for line in process.stdout or ():
                sys.stdout.write(line)
            return process.wait()
        except BaseException:
            process.send_signal(signal.SIGTERM)
            process.wait()
            raise


def _failure(run: Run, code: int) -> MoeError:
    """Returns why a run is not complete, from its folder: `moe train` and a worker have different exit codes."""
    if is_locked(run.path):
        return RunBusy(f"{run.id} is being written by another process: wait for it or stop it.")
    if code == EXIT_INTERRUPTED:
        return TrainingError(f"{run.id} was stopped; {run.kept()}. Continue it: moe train --resume {run.id}")
    status = run.status()
    if code < 0 or status["status"] not in (FAILED, INTERRUPTED):
        record_worker_failure(run, code)
        status = run.status()
    # Only the exit code tells an end without a failure.
    kind = DiskFull if code == EXIT_DISK_FULL else TrainingError
    return kind(f"{run.id}: {status.get('reason')}\nSee: moe runs show {run.id}")
