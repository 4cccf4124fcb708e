"""moe sweep."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moe_cli.cli.options import ConfigDir, Outputs

if TYPE_CHECKING:
    from rich.console import Console

    from moe_cli.forecast import Plan
    from moe_cli.store import Run
    from moe_cli.sweeps.driver import Progress
    from moe_cli.sweeps.plan import SweepPlan

Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="NAME|SETTING=VALUE,VALUE", help="A sweep of conf/sweep, or settings with several values."),
]

STOPPING = "stopping: what runs is being saved. Ctrl-C again ends it at once."
Seeds = Annotated[int | None, typer.Option(min=1, help="Seeds 0 to N-1 for every configuration.", show_default=False)]
Jobs = Annotated[int | None, typer.Option("-j", "--jobs", min=1, help="Runs at a time.", show_default=False)]
Name = Annotated[str | None, typer.Option(help="Folder under outputs/ [default: NAME or 'sweep'].", show_default=False)]
Force = Annotated[
    bool, typer.Option("--force", help="Run every point from the start; what there is goes to the trash.")
]
RerunOn = Annotated[
    str | None, typer.Option(metavar="code", help="Run points again that other code has made.", show_default=False)
]
Timeout = Annotated[
    str | None, typer.Option(metavar="DURATION", help="A run may take no longer: 30s, 10m, 2h.", show_default=False)
]
Retries = Annotated[int, typer.Option(min=0, help="Start a run that failed so many times more.", show_default=False)]
FailFast = Annotated[bool, typer.Option("--fail-fast", help="Stop when the first run fails.")]


def sweep(  # noqa: PLR0913  (an argument for each option)
    words: Words = None,
    seeds: Seeds = None,
    jobs: Jobs = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print every point with its cost and stop.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed points again.")] = False,
    force: Force = False,
    rerun_on: RerunOn = None,
    timeout: Timeout = None,
    retries: Retries = 0,
    fail_fast: FailFast = False,
    name: Name = None,
    outputs: Outputs = None,
    config_dir: ConfigDir = None,
) -> None:
    """Train every combination of settings. Example: moe sweep expert=1,8 k=1,2 --seeds 3"""
    from rich.console import Console

    from moe_cli.forecast import make_plans, measure_flops
    from moe_cli.store import outputs_folder
    from moe_cli.sweeps.again import discard, outdated
    from moe_cli.sweeps.driver import Listed, Rules, drive, to_do
    from moe_cli.sweeps.local import LocalPool, threads_per_run
    from moe_cli.sweeps.plan import plan_sweep

    _check_again(force, rerun_on, retry_failed)
    rules = Rules(_seconds(timeout), retries, fail_fast)
    folder = outputs_folder(outputs)
    console = Console()
    planned = plan_sweep(words or [], seeds=seeds, name=name, config_dir=config_dir).pinned(folder)
    configs = [point.config for point in planned.points]
    plans = make_plans(configs, folder, 1, measure_flops())
    jobs = min(jobs or _default_jobs(plans), len(configs))
    plans = [plan.on(threads_per_run(jobs)) for plan in plans]
    old = outdated(planned.existing(folder), force=force, code=rerun_on is not None)
    if dry_run:
        _print_head(console, planned, plans, planned.existing(folder), jobs, retry_failed)
        _print_again(console, old, "would be run again from the start")
        _print_points(console, planned, plans, planned.existing(folder))
        return
    _check_devices(plans)
    discard(old, folder)
    runs = planned.open(folder)
    _print_head(console, planned, plans, runs, jobs, retry_failed)
    _print_again(console, old, "moved to the trash, to be run again")
    todo = to_do(runs, retry_failed)
    _print_too_large(console, [plan for plan, run in zip(plans, runs, strict=True) if run in todo])
    with SweepDisplay(console, planned, runs) as display, _interruptible(console):
        progress = drive(Listed(todo), LocalPool(folder, jobs), display, rules, lambda: console.print(STOPPING))
    _print_end(console, planned, runs, progress)


@contextmanager
def _interruptible(console: "Console") -> Iterator[None]:
    """Ctrl-C within it ends the command with a line and exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        console.print("stopped; what was running is saved. The same command continues.")
        raise typer.Exit(130) from None


def _check_devices(plans: "list[Plan]") -> None:
    """Raises MoeError when a device that is asked for by name is not there."""
    from moe_cli.machine import pick_device

    for device in {plan.config.train.device for plan in plans} - {"auto", "cpu"}:
        pick_device(device)


def _check_again(force: bool, rerun_on: str | None, retry_failed: bool) -> None:
    """Raises ConfigError for what is unknown or has no effect."""
    from moe_cli.errors import ConfigError

    if rerun_on not in (None, "code"):
        raise ConfigError(f"--rerun-on {rerun_on}: no such choice. There is: code.")
    if force and (rerun_on or retry_failed):
        other = "--rerun-on" if rerun_on else "--retry-failed"
        raise ConfigError(f"--force runs every point again: {other} has no effect beside it. Leave it out.")


def _seconds(text: str | None) -> float | None:
    from moe_cli.errors import ConfigError
    from moe_cli.numbers import parse_duration

    seconds = parse_duration(text) if text is not None else None
    if text is not None and seconds is None:
        raise ConfigError(f"--timeout {text} is not a time. Give a number with a unit: 30s, 10m, 2h or 1h30m.")
    return seconds


def _default_jobs(plans: "list[Plan]") -> int:
    """As many as the machine bears; runs on GPUs take those."""
    from moe_cli.forecast import memory_bytes
    from moe_cli.machine import visible_gpus
    from moe_cli.sweeps.local import default_workers

    on_gpus = any(plan.config.train.device in ("auto", "cuda") for plan in plans)
    procs = max(plan.config.launch.procs for plan in plans)
    needs = [memory_bytes(plan.cost) for plan in plans]
    return default_workers(needs, len(visible_gpus()) if on_gpus else 0, procs)


def _print_again(console: "Console", runs: "list[Run]", what: str) -> None:
    if runs:
        _printer(console)(f"  [dim]again[/]     {len(runs)} {what}")


def _print_too_large(console: "Console", plans: "list[Plan]") -> None:
    """Says which runs are not expected to find the memory they take: they start all the same, each alone."""
    from moe_cli.forecast import memory_bytes
    from moe_cli.machine import available_memory_bytes
    from moe_cli.numbers import count

    available = available_memory_bytes()
    needs = [memory_bytes(plan.cost) for plan in plans]
    if available is not None and max(needs, default=0) > available:
        large = sum(need > available for need in needs)
        _printer(console)(
            f"  [yellow]memory[/]    {large} of {len(plans)} runs may need up to {count(max(needs))}B, "
            f"{count(available)}B are free: each of them runs alone"
        )


def _print_head(
    console: "Console", planned: "SweepPlan", plans: "list[Plan]", runs: "list[Run]", jobs: int, retry: bool
) -> None:
    from rich.markup import escape

    from moe_cli.numbers import duration
    from moe_cli.store import FAILED
    from moe_cli.sweeps.driver import to_do

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
        for run in [*progress.finished, *progress.failed, *progress.pruned]:
            if run.path not in self.seen:
                self.seen.add(run.path)
                self._print(run)
        if self.live:
            self.live.update(self._panel(progress))

    def _print(self, run: "Run") -> None:
        from rich.markup import escape

        from moe_cli.numbers import count
        from moe_cli.store import PRUNED

        label, summary = escape(self.labels[run.path]), run.summary()
        if summary:
            text = f"[green]done[/]    {label}   {summary['val_bpb']:.3f} bits/byte   {count(summary['tokens_per_second'])} tok/s"
        elif run.status()["status"] == PRUNED:
            text = f"[dim]pruned[/]  {label}   {escape(str(run.status().get('reason')))}"
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

        ended = len(progress.finished) + len(progress.failed) + len(progress.pruned)
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

    from moe_cli.store import COMPLETED, FAILED, PRUNED

    statuses = [run.status()["status"] for run in runs]
    done, failed, pruned = (statuses.count(status) for status in (COMPLETED, FAILED, PRUNED))
    say = _printer(console)
    also = f", {pruned} pruned" if pruned else ""
    say(f"{done} of {len(runs)} runs complete{also}. See: moe report {escape(planned.name)}")
    if failed:
        first = runs[statuses.index(FAILED)]
        say(f"[red]{failed} failed[/], the first because: {escape(str(first.status().get('reason')))}")
    if left := len(runs) - done - failed - pruned:
        say(f"{left} not done; the same command continues.")
    if failed:
        say("Run them again with --retry-failed.")
    if failed or left:
        raise typer.Exit(3)
