"""train() and sweep() for Python: what the commands do, at the same speed and with the same notes.

A training runs in a process of its own, as those of a sweep do: how long threads spin is settled when torch is loaded, and in
a notebook it is loaded already. Notes go to the logger `moe_cli` at level WARNING, which Python prints on standard error.
"""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_cli.cli import search as search_lines
from moe_cli.cli.console import Terminal
from moe_cli.cli.sweep_preview import remarks
from moe_cli.cli.views import SearchView, SweepView, describe
from moe_cli.config.bounds import JOBS, RETRIES
from moe_cli.config.compose import load_config
from moe_cli.config.executors import split_executor
from moe_cli.config.ranges import above, between
from moe_cli.errors import ConfigError, DiskFull, MoeError, RunBusy, TrainingError
from moe_cli.execution.forecast import cautions, check_memory, make_plans, measure_flops, pin_upcycle
from moe_cli.execution.machine import check_devices, visible_gpus
from moe_cli.execution.run import FULL, PARENT, STOPPED
from moe_cli.files.writing import append
from moe_cli.runs.folder import FAILED, INTERRUPTED, Run, is_locked, open_or_create_run, outputs_folder
from moe_cli.sweeps.rerun import discard, outdated
from moe_cli.sweeps.run_sweep import Execution, PreparedSearch, PreparedSweep, View, prepare, run_sweep
from moe_cli.sweeps.scheduler import Rules, explain
from moe_cli.sweeps.search_space import SearchOptions, SearchPlan, plan_words

if TYPE_CHECKING:
    import pandas as pd

LOGGER = logging.getLogger("moe_cli")


def train(
    overrides: Sequence[str] = (),
    *,
    outputs: Path | None = None,
    force: bool = False,
    force_memory: bool = False,
    progress: bool = False,
) -> Run:
    """Trains one configuration, as `moe train` does, and gives its run.

    Args:
        overrides: settings such as "expert=8", "k=2".
        outputs: where runs are kept; None: $MOE_OUTPUTS or ./outputs.
        force: train from the start; what there is goes to the trash. Otherwise a complete run of this configuration is
            given as it is, and an interrupted one goes on.
        force_memory: train even what needs far more memory than there is.
        progress: print what `moe train` prints; otherwise the output goes to log.txt in the run's folder.

    Raises:
        MoeError: a setting or the data are wrong, or training failed.
        KeyboardInterrupt: the run has saved a checkpoint; `moe train --resume` continues it.
    """
    _check_list("overrides", overrides)
    folder = outputs_folder(outputs)
    resolved = load_config(overrides)
    config = pin_upcycle(resolved.config, folder)
    run = Run(folder / "runs" / config.run_id)
    if run.summary() is not None and not force:
        LOGGER.warning("%s is complete, and is not trained again. To do that: force=True", run.id)
        return run
    check_devices([config])
    plan = make_plans([config], folder, measure_flops())[0]
    check_memory([plan], force_memory)
    device = "cuda" if config.train.device != "cpu" and visible_gpus() else "cpu"
    for note in resolved.notes if progress else (*resolved.notes, *cautions(plan, device)):
        LOGGER.warning(note)
    discard(outdated([run], force=force, code=False), folder)
    run = open_or_create_run(folder, "runs", config)
    if progress:
        words = ["-m", "moe_cli", "train", "--resume", str(run.path), "--outputs", str(folder)]
        code = _run([*words, *(["--force-memory"] if force_memory else [])], None)
    else:
        code = _run(["-m", "moe_cli.execution.run", str(run.path), str(folder)], run.path / "log.txt")
    if run.summary() is None:
        raise _failure(run, code)
    return run


def _run(words: Sequence[str], log: Path | None) -> int:
    """Runs `python WORDS` and gives its exit code; what it prints goes to the log, or where this process prints."""
    command = [sys.executable, *words]
    if log is not None:
        environment = {**os.environ, PARENT: str(os.getpid())}
        with append(log) as file:
            return _finished(
                subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=environment
                )
            )
    if sys.stdout.isatty():
        return _finished(subprocess.Popen(command))
    # A notebook has a stream of its own, which a child does not write to.
    return _finished(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))


def _finished(process: "subprocess.Popen[Any]") -> int:
    """Its exit code. On KeyboardInterrupt the process is asked to save, and waited for."""
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
    """Why a run is not complete, by its folder: `moe train` and a worker have other exit codes for the same end."""
    if is_locked(run.path):
        return RunBusy(f"{run.id} is being written by another process: wait for it or stop it.")
    if code == STOPPED:
        return TrainingError(f"{run.id} was stopped; {run.kept()}. Go on with: moe train --resume {run.id}")
    status = run.status()
    if code < 0 or status["status"] not in (FAILED, INTERRUPTED):
        explain(run, code)
        status = run.status()
    # The kind of an end that is no failure stands nowhere but in its exit code.
    kind = DiskFull if code == FULL else TrainingError
    return kind(f"{run.id}: {status.get('reason')}\nSee: moe runs show {run.id}")


def sweep(  # noqa: PLR0913  (an argument for each option)
    words: Sequence[str],
    *,
    seeds: int | None = None,
    where: Sequence[str] = (),
    name: str | None = None,
    baseline: str | None = None,
    workers: int | None = None,
    executor: str | None = None,
    outputs: Path | None = None,
    retry_failed: bool = False,
    force: bool = False,
    rerun_on_code: bool = False,
    force_memory: bool = False,
    timeout: float | None = None,
    retries: int = 0,
    fail_fast: bool = False,
    search: str | None = None,
    trials: int | None = None,
    objective: str | None = None,
    prune: str | None = None,
    search_seed: int | None = None,
    progress: bool = False,
) -> "pd.DataFrame":
    """Carries out `moe sweep WORDS` and gives one row a run, as `load_runs` does.

    Args:
        workers: runs at a time; None: what this machine bears, or what the executor's cluster gives.
        executor: "local", "ray" or "slurm"; None: what the word `executor=...` names, else this machine.
        where: conditions that hold of every point, such as "k <= expert".
        baseline: settings of what the report's differences are taken to, such as "balance=none".
        force, rerun_on_code: run points again, all or those of other code; what there is goes to outputs/.trash.
        force_memory, timeout, retries, fail_fast: see `Execution` and `Rules`.
        search: "tpe" or "random" searches the settings; the options after it are for that.
        progress: print what `moe sweep` prints.

    Raises:
        MoeError: a word is wrong, or no point can be run. A run that fails is a row with status `failed`.
    """
    from moe_cli.report.load import load_runs

    _check_list("words", words)
    _check_list("where", where)
    between("workers", 1 if workers is None else workers, 1, JOBS)
    between("retries", retries, 0, RETRIES)
    above("timeout", timeout, 0)
    folder = outputs_folder(outputs)
    chosen, words = split_executor(words, executor)
    rules = Rules(timeout, retries, fail_fast)
    execution = Execution(chosen, workers, rules, retry_failed, force, rerun_on_code, force_memory)
    options = SearchOptions(search, trials, objective, prune, search_seed)
    plan = plan_words(words, options, baseline=baseline, seeds=seeds, name=name, where=where)
    _check_again(execution, searched := isinstance(plan, SearchPlan))
    shown: View = SearchView(Terminal()) if searched else SweepView(Terminal())
    run_sweep(prepare(plan, folder, execution), shown if progress else Notes())
    return load_runs(folder / plan.name)


def _check_list(name: str, given: Sequence[str]) -> None:
    """Raises ConfigError for one text, of which every letter would be taken for a word."""
    if isinstance(given, str):
        raise ConfigError(f"{name}={given!r} is one text. Give a list: {name}={given.split()!r}")


def _check_again(execution: Execution, is_search: bool) -> None:
    """Raises ConfigError for an argument that has no effect."""
    if is_search and (execution.force or execution.rerun_on_code):
        raise ConfigError("force and rerun_on_code are for sweeps; a search keeps what it has found: name another.")
    if execution.force and (execution.rerun_on_code or execution.retry_failed):
        other = "rerun_on_code" if execution.rerun_on_code else "retry_failed"
        raise ConfigError(f"force runs every point again: {other} has no effect. Leave it out.")


class Notes(View):
    """Gives the notes of a sweep or a search to the logger, and shows nothing else."""

    def begin(self, prepared: PreparedSweep | PreparedSearch, feed: object, pool: object) -> None:
        if isinstance(prepared, PreparedSearch):
            notes = search_lines.notes(prepared.plan, prepared.preview)
        else:
            notes = [" ".join(line.split()) for _, line in remarks(describe(prepared))]
        for note in notes:
            LOGGER.warning(note)
