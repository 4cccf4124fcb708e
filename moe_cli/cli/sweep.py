"""moe sweep."""

from pathlib import Path
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

    from moe_cli.cli.sweepplan import Ahead, print_head, print_points, statuses
    from moe_cli.forecast import make_plans, measure_flops
    from moe_cli.store import outputs_folder
    from moe_cli.sweeps.driver import Listed, drive, to_do
    from moe_cli.sweeps.local import LocalPool, default_workers, threads_per_run
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
    plans = make_plans(configs, folder, threads_per_run(jobs), measure_flops())
    if not dry_run:
        check_devices(configs)
    runs = planned.existing(folder) if dry_run else planned.open(folder)
    ahead = Ahead(planned, plans, statuses(runs), jobs, retry_failed)
    print_head(console, ahead)
    if dry_run:
        return print_points(console, ahead)
    try:
        with SweepDisplay(console, planned, runs) as display:
            progress = drive(Listed(to_do(runs, retry_failed)), LocalPool(folder, jobs), display)
    except KeyboardInterrupt:
        console.print("stopped; what was running is saved. The same command continues.")
        raise typer.Exit(130) from None
    _print_end(console, planned, runs, progress)


def _printer(console: "Console") -> Any:
    return lambda text: console.print(text, highlight=False, soft_wrap=True)


class SweepDisplay:
    """A redrawn panel on a terminal; a line for each finished run otherwise."""

    def __init__(self, console: "Console", planned: "SweepPlan", runs: "list[Run]") -> None:
        import time

        from rich.live import Live

        self.console = console
        self.labels = {run.path: point.label for run, point in zip(runs, planned.points, strict=True)}
        self.total = len(runs)
        self.before = 0
        self.started = time.monotonic()
        self.live = Live(console=console, refresh_per_second=2, transient=True) if console.is_terminal else None
        self.seen: set[Path] = set()

    def __enter__(self) -> "SweepDisplay":
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.live:
            self.live.stop()

    def __call__(self, progress: "Progress") -> None:
        for run in [*progress.finished, *progress.failed]:
            if run.path not in self.seen:
                self.seen.add(run.path)
                self._print(run)
        if self.live:
            self.live.update(self._panel(progress))

    def _print(self, run: "Run") -> None:
        from rich.markup import escape

        from moe_cli.numbers import count

        label, summary = escape(self.labels[run.path]), run.summary()
        if summary:
            text = f"[green]done[/]    {label}   {summary['val_bpb']:.3f} bits/byte   {count(summary['tokens_per_second'])} tok/s"
        else:
            text = f"[red]failed[/]  {label}   {escape(str(run.status().get('reason')))}"
        self.console.print(text, highlight=False, soft_wrap=True)

    def _panel(self, progress: "Progress") -> Any:
        import time

        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        from moe_cli.numbers import duration

        ended = len(progress.finished) + len(progress.failed)
        to_go = progress.waiting + len(progress.running)
        shares = {run: _share(run) for run in progress.running}
        done = ended + sum(shares.values())
        elapsed = time.monotonic() - self.started
        left = duration(elapsed * (ended + to_go - done) / done) + " left" if done > 0.05 else ""
        completed = self.total - to_go
        head = Table.grid(padding=(0, 2))
        head.add_row(
            f"{completed}/{self.total}", ProgressBar(total=self.total, completed=completed + sum(shares.values()), width=24),
            f"{len(progress.running)} running", f"{len(progress.failed)} failed" if progress.failed else "", left,
        )  # fmt: skip
        rows = [
            Text(f"  {self.labels[run.path]:<32} {_step(run)}", no_wrap=True, overflow="ellipsis") for run in shares
        ]
        return Group(head, *rows)


def _share(run: "Run") -> float:
    status = run.status()
    return status["step"] / status["steps"] if status.get("step") and status.get("steps") else 0.0


def _step(run: "Run") -> str:
    records = run.latest_metrics()
    if not records:
        return "starting"
    # A loss that is not finite was written as null.
    losses = [record["val/loss_estimate"] for record in records if record.get("val/loss_estimate") is not None]
    return f"step {records[-1].get('step')}" + (f"   val {losses[-1]:.3f}" if losses else "")


def _print_end(console: "Console", planned: "SweepPlan", runs: "list[Run]", progress: "Progress") -> None:
    from rich.markup import escape

    done = sum(run.summary() is not None for run in runs)
    say = _printer(console)
    say(f"{done} of {len(runs)} runs complete. See: moe report {escape(planned.name)}")
    if done < len(runs):
        first = next(run for run in runs if run.summary() is None)
        say(f"[red]{len(runs) - done} failed[/], the first because: {escape(str(first.status().get('reason')))}")
        say("Run them again with --retry-failed.")
        raise typer.Exit(3)
