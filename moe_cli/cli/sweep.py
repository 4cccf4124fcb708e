"""moe sweep."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from moe_cli.cli.options import ConfigDir, Outputs, check_devices
from moe_cli.cli.search import Objective, Prune, Sampler, SearchSeed, Trials, search

if TYPE_CHECKING:
    from rich.console import Console

    from moe_cli.store import Run
    from moe_cli.sweeps.driver import Progress
    from moe_cli.sweeps.plan import SweepPlan

Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="NAME|SETTING=VALUE,VALUE", help="A sweep of conf/sweep, or settings with several values."),
]
Seeds = Annotated[int | None, typer.Option(min=1, help="Seeds 0 to N-1 for every configuration.", show_default=False)]
Where = Annotated[
    list[str] | None,
    typer.Option(metavar="CONDITION", help="Only points of which this holds, such as 'k <= expert'. May be repeated."),
]
Name = Annotated[
    str | None, typer.Option(help="Folder under outputs/ [default: NAME, 'sweep' or 'search'].", show_default=False)
]


def sweep(  # noqa: PLR0913  (an argument for each option)
    words: Words = None,
    seeds: Seeds = None,
    jobs: Annotated[int | None, typer.Option("-j", "--jobs", min=1, help="Runs at a time.", show_default=False)] = None,
    where: Where = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print every point with its cost and stop.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed points again.")] = False,
    sampler: Sampler = None,
    trials: Trials = None,
    objective: Objective = None,
    prune: Prune = None,
    search_seed: SearchSeed = None,
    name: Name = None,
    outputs: Outputs = None,
    config_dir: ConfigDir = None,
) -> None:
    """Train every combination of settings, or search them. Example: moe sweep expert=1,8 k=1,2 --seeds 3"""
    from rich.console import Console

    from moe_cli.cli.board import SweepDisplay
    from moe_cli.cli.sweepplan import Ahead, print_head, print_points, statuses
    from moe_cli.forecast import make_plans, measure_flops
    from moe_cli.store import outputs_folder
    from moe_cli.sweeps.driver import Listed, drive, to_do
    from moe_cli.sweeps.local import LocalPool, default_workers
    from moe_cli.sweeps.plan import plan_sweep
    from moe_cli.sweeps.space import SearchOptions, plan_if_search

    folder, console = outputs_folder(outputs), Console()
    given: Any = {"seeds": seeds, "name": name, "where": where or (), "config_dir": config_dir}
    options = SearchOptions(sampler, trials, objective, prune, search_seed)
    if asked := plan_if_search(words or [], options, **given):
        return search(console, asked, folder, jobs, dry_run=dry_run, retry_failed=retry_failed)
    planned = plan_sweep(words or [], **given).pinned(folder)
    jobs = min(jobs or default_workers(), len(planned.points))
    configs = [point.config for point in planned.points]
    plans = make_plans(configs, folder, measure_flops())
    if not dry_run:
        check_devices(configs)
    runs = planned.existing(folder) if dry_run else planned.open(folder)
    ahead = Ahead(planned, plans, statuses(runs), jobs, retry_failed)
    print_head(console, ahead)
    if dry_run:
        return print_points(console, ahead)
    try:
        todo = to_do(runs, retry_failed)
        with SweepDisplay(console, planned, runs, todo) as display:
            progress = drive(Listed(todo), LocalPool(folder, jobs), display)
    except KeyboardInterrupt:
        console.print("stopped; what was running is saved. The same command continues.")
        raise typer.Exit(130) from None
    _print_end(console, planned, runs, progress)


def _printer(console: "Console") -> Any:
    return lambda text: console.print(text, highlight=False, soft_wrap=True)


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
