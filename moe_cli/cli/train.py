"""moe train."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moe_cli.cli.options import AsJson, ConfigDir, Outputs, Overrides, print_json, print_notes

if TYPE_CHECKING:
    from moe_cli.config.schema import RunConfig
    from moe_cli.store import Run

Resume = Annotated[str | None, typer.Option(metavar="RUN", help="Go on with an interrupted run.", show_default=False)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")]


def train(
    overrides: Overrides = None,
    resume: Resume = None,
    dry_run: DryRun = False,
    outputs: Outputs = None,
    config_dir: ConfigDir = None,
    as_json: AsJson = False,
) -> None:
    """Train one model and evaluate it. Example: moe train expert=8 k=2"""
    from moe_cli.store import create_run, outputs_folder

    folder = outputs_folder(outputs)
    run = None if resume is None else _to_resume(resume, bool(overrides or config_dir), folder)
    config = run.config() if run else _new_config(overrides or [], config_dir)

    from rich.console import Console

    from moe_cli.cli.live import Display, print_plan, print_summary
    from moe_cli.forecast import make_plans, measure_flops, pin_upcycle
    from moe_cli.memory import keep_freed_memory
    from moe_cli.run import pick_device, pick_threads, run_one

    console = Console(stderr=as_json)
    if run is None:
        config = pin_upcycle(config, folder)
    plan = make_plans([config], folder, pick_threads(config), measure_flops())[0]
    if dry_run:
        print_plan(console, plan, None)
        return
    pick_device(config.train.device)  # before a folder is made
    keep_freed_memory()
    run = run or create_run(folder, "runs", config)
    print_plan(console, plan, str(run.path))
    try:
        with Display(console) as display:
            run_one(run, folder, display)
    except KeyboardInterrupt:
        pass  # what the last checkpoint holds is saved
    if run.summary() is None:
        console.print(
            f"stopped; everything is saved. Go on with: moe train --resume {run.id}", highlight=False, soft_wrap=True
        )
        raise typer.Exit(130)
    if as_json:
        print_json(run.summary())
    else:
        print_summary(console, run)


def _new_config(overrides: list[str], config_dir: Path | None) -> "RunConfig":
    from moe_cli.config.load import load_config

    resolved = load_config(overrides, "train", config_dir)
    print_notes(resolved.notes)
    return resolved.config


def _to_resume(name: str, others: bool, outputs: Path) -> "Run":
    from moe_cli.errors import ConfigError
    from moe_cli.store import COMPLETED, find_run

    if others:
        raise ConfigError("--resume takes the settings from the run itself. Leave the others out.")
    run = find_run(outputs, name)
    if run.status()["status"] == COMPLETED:
        raise ConfigError(f"{run.id} is complete: there is nothing to resume. See: moe report")
    if not run.checkpoints():
        print_notes((f"{run.id} was stopped before its first checkpoint: it starts again.",))
    return run
