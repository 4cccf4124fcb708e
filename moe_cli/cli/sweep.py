"""moe sweep."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moe_cli.cli.options import ConfigDir, Outputs

if TYPE_CHECKING:
    from rich.console import Console

    from moe_cli.forecast import Plan
    from moe_cli.store import Run
    from moe_cli.sweeps.driver import Pool, Progress
    from moe_cli.sweeps.plan import SweepPlan

Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="NAME|SETTING=VALUE,VALUE", help="A sweep of conf/sweep, or settings with several values."),
]
ExecutorName = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Who runs it: local, ray, slurm [default: local].", show_default=False),
]


def sweep(  # noqa: PLR0913  (an argument for each option)
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
    executor: ExecutorName = None,
    outputs: Outputs = None,
    config_dir: ConfigDir = None,
) -> None:
    """Train every combination of settings. Example: moe sweep expert=1,8 k=1,2 --seeds 3"""
    from rich.console import Console

    from moe_cli.config.executors import LocalExecutor, is_executor_word, load_executor
    from moe_cli.forecast import make_plans, measure_flops
    from moe_cli.store import outputs_folder
    from moe_cli.sweeps.driver import to_do
    from moe_cli.sweeps.local import default_workers, threads_per_run
    from moe_cli.sweeps.plan import plan_sweep
    from moe_cli.sweeps.pools import make_pool

    folder = outputs_folder(outputs)
    console = Console()
    carrier = load_executor([word for word in words or [] if is_executor_word(word)], executor, config_dir)
    words = [word for word in words or [] if not is_executor_word(word)]
    planned = plan_sweep(words, seeds=seeds, name=name, config_dir=config_dir).pinned(folder)
    local = isinstance(carrier, LocalExecutor)
    at_once = min(jobs or default_workers(), len(planned.points))
    plans = make_plans([point.config for point in planned.points], folder, threads_per_run(at_once), measure_flops())
    if dry_run:
        _print_head(console, planned, plans, planned.existing(folder), at_once, retry_failed, carrier.name)
        _print_points(console, planned, plans, planned.existing(folder))
        return
    if local:
        _check_devices(planned)
    runs = planned.open(folder)
    todo = to_do(runs, retry_failed)
    pool = make_pool(carrier, folder, at_once if local else jobs) if todo else None
    at_once = min(pool.workers, len(planned.points)) if pool else at_once
    _print_head(console, planned, plans, runs, at_once, retry_failed, carrier.name)
    if pool:
        _carry_out(console, planned, runs, todo, pool)
    _print_end(console, planned, runs)


def _check_devices(planned: "SweepPlan") -> None:
    """Raises MoeError for a GPU that is asked for by name and is not there."""
    from moe_cli.machine import pick_device

    for device in {point.config.train.device for point in planned.points} - {"auto", "cpu"}:
        pick_device(device)


def _carry_out(console: "Console", planned: "SweepPlan", runs: "list[Run]", todo: "list[Run]", pool: "Pool") -> None:
    from moe_cli.sweeps.driver import Listed, drive

    try:
        with SweepDisplay(console, planned, runs) as display:
            drive(Listed(todo), pool, display)
    except KeyboardInterrupt:
        console.print("stopped; what was running is saved. The same command continues.")
        raise typer.Exit(130) from None


def _print_head(
    console: "Console",
    planned: "SweepPlan",
    plans: "list[Plan]",
    runs: "list[Run]",
    jobs: int,
    retry: bool,
    executor: str,
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
        where = "" if executor == "local" else f" of {executor}, each as fast as this machine"
        say(f"about {duration(seconds)} on {jobs} {'worker' if jobs == 1 else 'workers'}{where}; "
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


def _print_end(console: "Console", planned: "SweepPlan", runs: "list[Run]") -> None:
    from rich.markup import escape

    done = sum(run.summary() is not None for run in runs)
    say = _printer(console)
    say(f"{done} of {len(runs)} runs complete. See: moe report {escape(planned.name)}")
    if done < len(runs):
        first = next(run for run in runs if run.summary() is None)
        say(f"[red]{len(runs) - done} failed[/], the first because: {escape(str(first.status().get('reason')))}")
        say("Run them again with --retry-failed.")
        raise typer.Exit(3)
