"""moe train."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moe_cli.cli.echo import end_unread
from moe_cli.cli.options import (
    EXISTING_RUNS,
    AsJson,
    ConfigDir,
    ForceMemory,
    Outputs,
    Overrides,
    PluginFiles,
    interruptible,
    option,
    print_json,
    print_notes,
)

if TYPE_CHECKING:
    from rich.console import Console

    from moe_cli.config.schema import RunConfig
    from moe_cli.runs.folder import Run

Resume = Annotated[str | None, option(EXISTING_RUNS, metavar="RUN", help="Continue an interrupted run.")]
Like = Annotated[
    str | None,
    option(EXISTING_RUNS, metavar="RUN", help="Start from the configuration of a run; settings change it."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")]
Force = Annotated[
    bool, option(EXISTING_RUNS, "--force", help="Train from the start; the old folder goes to the trash.")
]


def train(  # noqa: PLR0913  (an argument for each option)
    overrides: Overrides = None,
    resume: Resume = None,
    like: Like = None,
    dry_run: DryRun = False,
    force: Force = False,
    force_memory: ForceMemory = False,
    outputs: Outputs = None,
    config_dir: ConfigDir = None,
    plugin: PluginFiles = None,
    as_json: AsJson = False,
) -> None:
    """Train one model and evaluate it.

    Examples:
        moe train expert=8 k=2
        moe train expert=16 router=switch train.steps=300
        moe train --resume latest
    """
    from moe_cli.distributed.launch import is_distributed, rank
    from moe_cli.errors import ConfigError
    from moe_cli.runs.folder import outputs_folder

    folder = outputs_folder(outputs)
    if rank():
        return _run_nonzero_rank(folder)
    if dry_run and as_json:
        raise ConfigError("--dry-run prints the plan for people. For programs: moe plan SETTINGS --json")
    if like is not None and resume is not None:
        raise ConfigError("--resume continues a run, and --like starts a new one: give one.")
    run = _restarted_run(folder) if resume is None else _resumed_run(resume, overrides or [], config_dir, folder, force)
    config = run.config() if run else _new_config(overrides or [], config_dir, folder, like, dry_run)

    from moe_cli.cli.console import CommandConsole
    from moe_cli.cli.train_preview import print_estimate
    from moe_cli.execution.estimate import estimate_runs, measure_flops
    from moe_cli.execution.machine import check_devices, pick_device
    from moe_cli.execution.memory import check_memory, memory_warning
    from moe_cli.execution.run import with_launched_world_size
    from moe_cli.execution.trained_model import with_decided_precision
    from moe_cli.execution.upcycling import resolve_upcycle_source
    from moe_cli.execution.warnings import run_warnings

    console = CommandConsole(stderr=as_json, unread=130)
    config = with_launched_world_size(config)
    new = run is None
    if run is None:
        config = resolve_upcycle_source(config, folder)
        if not (dry_run or force or is_distributed()) and _is_complete(console, config, folder, as_json):
            return
    check_devices([config])
    estimate = estimate_runs([config], folder, measure_flops(), build=not dry_run)[0]
    if dry_run:
        print_estimate(console, estimate, None)
        return print_notes(tuple(filter(None, [memory_warning(estimate)])))
    check_memory([estimate], force_memory)
    device = pick_device(config.train.device)  # before a folder is made
    run = run or _open_run(config, folder, force)
    print_notes(_resume_notes(run, is_resume=not new))
    with interruptible(partial(_print_stopped, console, run)):
        if config.launch.num_processes > 1 and not is_distributed():
            return _launch(console, run, config, folder, as_json)
        with _mark_interrupted_if_unread(run):
            precision = with_decided_precision(run, config, device).train.precision
            print_estimate(console, estimate, str(run.path), run.checkpoint_step() or 0, precision)
        print_notes(run_warnings(estimate, device.type))
        _train(console, run, folder, as_json)


def _is_complete(console: "Console", config: "RunConfig", folder: Path, as_json: bool) -> bool:
    """Returns whether a complete run of this configuration exists; if so, its results are printed."""
    from moe_cli.runs.folder import Run

    run = Run(folder / "runs" / config.run_id)
    if run.summary() is None:
        return False
    print_notes((f"{run.id} is already complete. To train it again: --force. Another seed: seed={config.seed + 1}",))
    _print_results(console, run, as_json)
    return True


def _print_results(console: "Console", run: "Run", as_json: bool) -> None:
    from moe_cli.cli.train_progress import print_summary

    if as_json:
        print_json(run.summary())
    else:
        print_summary(console, run)


def _open_run(config: "RunConfig", folder: Path, force: bool) -> "Run":
    """Returns the run of this configuration; with `force`, a new one. Raises RunBusy while the old one is running."""
    from moe_cli.runs.folder import Run, open_or_create_run
    from moe_cli.sweeps.rerun import discard, outdated

    discard(outdated([Run(folder / "runs" / config.run_id)], force=force, code=False), folder)
    return open_or_create_run(folder, "runs", config)


def _resume_notes(run: "Run", is_resume: bool) -> tuple[str, ...]:
    """Returns notes on a run that continues from a checkpoint: the step, and the precision if a new run's differs.

    Args:
        is_resume: whether --resume was given; otherwise the command of the run was repeated.
    """
    from moe_cli.execution.machine import pick_device
    from moe_cli.execution.precision import decide_precision
    from moe_cli.execution.trained_model import with_decided_precision

    step = run.checkpoint_step()
    if step is None:
        return ()
    notes = [
        f"{run.id} continues after step {step:,}." + ("" if is_resume else " To start from the beginning: --force")
    ]
    config = run.config()
    device = pick_device(config.train.device)
    precision = with_decided_precision(run, config, device).train.precision
    here = decide_precision(config, device)
    if precision != here:
        notes.append(f"it continues in {precision}, as it began; a new run would use {here} here.")
    return tuple(notes)


@contextmanager
def _mark_interrupted_if_unread(run: "Run") -> Iterator[None]:
    """Marks a run as interrupted if the reader of the output has gone before the run starts."""
    from moe_cli.runs.folder import INTERRUPTED
    from moe_cli.runs.recorder import Recorder

    try:
        yield
    except (BrokenPipeError, SystemExit):  # rich exits
        Recorder(run).status(INTERRUPTED, reason="stopped at once: its output has no reader")
        end_unread(130)


def _train(console: "Console", run: "Run", folder: Path, as_json: bool) -> None:
    """Trains in this process, as rank 0 if a launcher has started several, and displays the progress."""
    from moe_cli.cli.train_progress import TrainProgress
    from moe_cli.distributed import collectives
    from moe_cli.distributed.launch import is_distributed, launched_by_moe
    from moe_cli.execution.run import run_one
    from moe_cli.execution.runtime_tuning import configure_malloc

    configure_malloc()
    collectives.init_process_group()
    collectives.broadcast_object(str(run.path))
    try:
        with TrainProgress(console) as display:
            run_one(run, folder, display)
    except KeyboardInterrupt:
        pass  # the last checkpoint is saved
    if run.summary() is None and is_distributed():
        if not launched_by_moe():
            _print_stopped(console, run)
    elif run.summary() is None:
        _print_stopped(console, run)
        raise typer.Exit(130)
    else:
        _print_results(console, run, as_json)


def _launch(console: "Console", run: "Run", config: "RunConfig", folder: Path, as_json: bool) -> None:
    """Trains in several processes; rank 0 does the work of `_train`."""
    from moe_cli.execution.run import run_launched

    arguments = ["-m", "moe_cli", "train", "--resume", str(run.path), "--outputs", str(folder), "--force-memory"]
    with suppress(KeyboardInterrupt):
        run_launched(run, [*arguments, *(["--json"] if as_json else [])], config)
    if run.summary() is None:
        _print_stopped(console, run)
        raise typer.Exit(130)


def _print_stopped(console: "Console", run: "Run") -> None:
    text = f"stopped; {run.kept()}. Continue it: moe train --resume {run.id}"
    console.print(text, highlight=False, soft_wrap=True)


def _run_nonzero_rank(outputs: Path) -> None:
    """Trains in a process of another rank than 0, without output."""
    from moe_cli.distributed import collectives
    from moe_cli.execution.run import run_one
    from moe_cli.runs.folder import Run

    collectives.init_process_group()
    run_one(Run(Path(collectives.broadcast_object(None))), outputs)


def _restarted_run(outputs: Path) -> "Run | None":
    """Returns the run of this process's job if the launcher has restarted it after the death of a process."""
    from moe_cli.distributed.launch import job_id, num_restarts
    from moe_cli.runs.lookup import list_runs_by_age

    runs = list_runs_by_age(outputs) if num_restarts() else []
    return next((run for run in reversed(runs) if run.status().get("job") == job_id()), None)


def _new_config(
    overrides: list[str], config_dir: Path | None, folder: Path, like: str | None, dry_run: bool
) -> "RunConfig":
    from moe_cli.cli.foreign_source import with_imported_source
    from moe_cli.config.compose import load_config
    from moe_cli.runs.lookup import find_run

    overrides = with_imported_source(overrides, folder, like=like, may_import=not dry_run)
    start = find_run(folder, like).config() if like is not None else None
    resolved = load_config(overrides, "train", config_dir, start)
    print_notes(resolved.notes)
    return resolved.config


def _resumed_run(name: str, changes: list[str], config_dir: Path | None, outputs: Path, force: bool) -> "Run":
    from moe_cli.config.compose import execution_settings, with_execution_settings
    from moe_cli.errors import ConfigError
    from moe_cli.loggers.logging_recorder import check_loggers
    from moe_cli.runs.folder import COMPLETED, IMPORTED, PENDING, rewrite_config
    from moe_cli.runs.lookup import find_run

    if force:
        raise ConfigError("--resume continues a run, and --force starts it again: give one.")
    if config_dir is not None:
        raise ConfigError("--resume takes the settings from the run. Leave out --config-dir.")
    settings = execution_settings(changes)
    run = find_run(outputs, name)
    status = run.status()["status"]
    if status == IMPORTED:
        raise ConfigError(
            f"{run.id} was imported: it has no training to resume.\n"
            f"A dense model can be trained on: moe train --like {run.id} train.upcycle_from={run.id}"
        )
    if status == COMPLETED:
        raise ConfigError(
            f"{run.id} is complete: there is nothing to resume. See: moe report\n"
            "A longer training is a new run: moe train train.steps=... with its other settings."
        )
    if settings:
        changed = with_execution_settings(run.config(), settings)
        check_loggers(changed.log)
        rewrite_config(run, changed)
    if not run.checkpoints() and status != PENDING:
        print_notes((f"{run.id} was stopped before its first checkpoint, and starts again.",))
    return run
