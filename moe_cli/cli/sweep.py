"""moe sweep."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from moe_cli.cli.options import ConfigDir, Outputs

if TYPE_CHECKING:
    from rich.console import Console

    from moe_cli.forecast import Plan
    from moe_cli.store import Run
    from moe_cli.sweeps.executors import Progress
    from moe_cli.sweeps.plan import SweepPlan

Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="NAME|SETTING=VALUE,VALUE", help="A sweep of conf/sweep, or settings with several values."),
]


def sweep(
    words: Words = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Seeds 0 to N-1 for every configuration.", show_default=False)
    ] = None,
    jobs: Annotated[int | None, typer.Option("-j", "--jobs", min=1, help="Runs at a time.", show_default=False)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print every point with its cost and stop.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed points again.")] = False,
    name: Annotated[
        str | None, typer.Option(help="Folder under outputs/ [default: NAME or 'sweep'].", show_default=False)
    ] = None,
    outputs: Outputs = None,
    config_dir: ConfigDir = None,
) -> None:
    """Train every combination of settings. Example: moe sweep expert=1,8 k=1,2 --seeds 3"""
    from rich.console import Console

    from moe_cli.cli.board import SweepDisplay
    from moe_cli.forecast import make_plans, measure_flops
    from moe_cli.machine import pick_device
    from moe_cli.store import outputs_folder
    from moe_cli.sweeps.executors import default_workers, run_local, threads_per_run, to_do
    from moe_cli.sweeps.plan import plan_sweep

    folder = outputs_folder(outputs)
    console = Console()
    planned = plan_sweep(words or [], seeds=seeds, name=name, config_dir=config_dir).pinned(folder)
    jobs = min(jobs or default_workers(), len(planned.points))
    configs = [point.config for point in planned.points]
    plans = make_plans(configs, folder, threads_per_run(jobs), measure_flops())
    if dry_run:
        _print_head(console, planned, plans, planned.existing(folder), jobs, retry_failed)
        _print_points(console, planned, plans, planned.existing(folder))
        return
    for device in {point.config.train.device for point in planned.points} - {"auto", "cpu"}:
        pick_device(device)
    runs = planned.open(folder)
    _print_head(console, planned, plans, runs, jobs, retry_failed)
    todo = to_do(runs, retry_failed)
    try:
        with SweepDisplay(console, planned, runs) as display:
            progress = run_local(todo, folder, jobs, display)
    except KeyboardInterrupt:
        console.print("stopped; what was running is saved. The same command continues.")
        raise typer.Exit(130) from None
    _print_end(console, planned, runs, progress)


def _print_head(
    console: "Console", planned: "SweepPlan", plans: "list[Plan]", runs: "list[Run]", jobs: int, retry: bool
) -> None:
    from rich.markup import escape

    from moe_cli.numbers import duration
    from moe_cli.store import FAILED
    from moe_cli.sweeps.executors import to_do

    say = _printer(console)
    if planned.question:
        say(f"[bold]{escape(planned.name)}[/]: {escape(planned.question)}")
    todo = to_do(runs, retry)
    failed = sum(run.status()["status"] == FAILED for run in runs) if not retry else 0
    done = len(runs) - len(todo) - failed
    seeds = f" x {planned.num_seeds} seeds = {len(runs)} runs" if planned.num_seeds > 1 else ""
    failed_text = f", [yellow]{failed} failed before (--retry-failed runs them again)[/]" if failed else ""
    say(f"{planned.num_configurations} configurations{seeds}: {done} done before, {len(todo)} to go{failed_text}")
    for point in planned.left_out:
        say(f"  [dim]left out[/]  {escape(point.label)}: {escape(point.reason.splitlines()[0])}")
    for note in planned.notes:
        say(f"  [dim]note[/]      {escape(note)}")
    if planned.num_repeats:
        say(f"  [dim]once[/]      {planned.num_repeats} points come to a configuration that is already there")
    if todo:
        waiting = {run.path for run in todo}
        seconds = sum(plan.seconds for plan, run in zip(plans, runs, strict=True) if run.path in waiting) / jobs
        say(f"about {duration(seconds)} on {jobs} {'worker' if jobs == 1 else 'workers'}; "
            "stop any time, the same command continues")  # fmt: skip


def _printer(console: "Console") -> Any:
    return lambda text: console.print(text, highlight=False, soft_wrap=True)


def _print_points(console: "Console", planned: "SweepPlan", plans: "list[Plan]", runs: "list[Run]") -> None:
    from rich import box
    from rich.table import Table

    from moe_cli.numbers import count, duration

    table = Table(box=box.SIMPLE_HEAD, header_style="dim", pad_edge=False)
    table.add_column("point", overflow="fold")
    for column in ("params", "active", "tokens", "FLOPs", "time", "status"):
        table.add_column(column, justify="right", no_wrap=True)
    for point, plan, run in zip(planned.points, plans, runs, strict=True):
        tokens = plan.tokens
        table.add_row(
            point.label, count(plan.cost.num_params), count(plan.cost.num_active_params),
            "-" if tokens is None else count(tokens), "-" if tokens is None else count(tokens * plan.cost.flops_per_token),
            duration(plan.seconds), run.status()["status"] if run.path.exists() else "new",
        )  # fmt: skip
    console.print(table)


def _print_end(console: "Console", planned: "SweepPlan", runs: "list[Run]", progress: "Progress") -> None:
    from rich.markup import escape

    from moe_cli.cli.board import reason_of
    from moe_cli.glance import glance

    done = sum(run.summary() is not None for run in runs)
    say = _printer(console)
    say(f"{done} of {len(runs)} runs complete. See: moe report {escape(planned.name)}")
    if done < len(runs):
        first = next(run for run in runs if run.summary() is None)
        say(f"[red]{len(runs) - done} failed[/], the first because: {escape(reason_of(glance(first)))}")
        say(f"See: moe runs ls {escape(planned.name)} --status failed   Run them again with --retry-failed.")
        raise typer.Exit(3)
