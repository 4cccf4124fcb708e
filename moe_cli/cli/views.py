"""Terminal views of sweeps and searches: before the start, during the runs and at the end."""

from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from moe_cli.cli import search
from moe_cli.cli.progress import SweepDisplay, failure_reason
from moe_cli.cli.sweep_preview import print_head, print_points
from moe_cli.formatting import plural
from moe_cli.runs.folder import COMPLETED, FAILED, PRUNED
from moe_cli.runs.status import read_status
from moe_cli.sweeps.executors.make import max_parallel
from moe_cli.sweeps.run_sweep import PreparedSearch, PreparedSweep, View
from moe_cli.sweeps.scheduler import ListFeed, Observer, Pool, pending_runs

if TYPE_CHECKING:
    from moe_cli.sweeps.search import SearchFeed

STOPPING = "stopping: running runs save a checkpoint. Ctrl-C again kills them."


class TerminalView(View):
    """A view of a sweep in a terminal.

    Attributes:
        complete: whether the sweep ended with all requested runs.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.complete = False

    def stop(self) -> None:
        self.console.print(STOPPING)


class SweepView(TerminalView):
    """Shows the live panel of a sweep, and a line for each run that ends."""

    def preview(self, prepared: Any) -> None:
        """Prints every point with its cost, for --dry-run."""
        print_head(self.console, prepared)
        print_points(self.console, prepared)

    def begin(self, prepared: PreparedSweep, feed: ListFeed, pool: Pool | None) -> None:
        # The capacity of a Ray cluster is known only after the connection.
        if pool is not None and prepared.execution.executor.name == "ray" and pool.workers:
            prepared = replace(prepared, execution=replace(prepared.execution, jobs=pool.workers))
        print_head(self.console, prepared)

    def watch(self, prepared: PreparedSweep, feed: ListFeed) -> AbstractContextManager[Observer]:
        labels = {planned.run: planned.label for planned in prepared.runs}
        return SweepDisplay(self.console, labels, pending_runs([*labels], prepared.execution.retry_failed))

    def end(self, prepared: PreparedSweep, feed: ListFeed) -> None:
        def say(text: str) -> None:
            self.console.print(text, highlight=False, soft_wrap=True)

        runs, name = [planned.run for planned in prepared.runs], escape(prepared.plan.name)
        states = [run.status()["status"] for run in runs]
        done, failed, pruned = (states.count(status) for status in (COMPLETED, FAILED, PRUNED))
        also = f", {pruned} pruned" if pruned else ""
        say(f"{done} of {plural(len(runs), 'run')} complete{also}. See: moe report {name}")
        if failed:
            first = runs[states.index(FAILED)]
            say(f"[red]{failed} failed[/]. Reason of the first: {escape(failure_reason(read_status(first)))}")
            say(f"See: moe runs ls {name} --status failed   Run them again with --retry-failed.")
        if left := len(runs) - done - failed - pruned:
            say(f"{left} not complete; the same command continues.")
        self.complete = not failed and not left


class SearchView(TerminalView):
    """Shows the trials of a search, and a line for each run that ends."""

    def preview(self, prepared: Any) -> None:
        """Prints the search, for --dry-run."""
        jobs = max_parallel(prepared.execution.executor, prepared.execution.jobs, prepared.estimates)
        self._head(prepared, min(jobs, prepared.max_runs) if jobs else None)

    def begin(self, prepared: PreparedSearch, feed: "SearchFeed", pool: Pool | None) -> None:
        self._head(prepared, feed.max_open_runs())

    def _head(self, prepared: PreparedSearch, jobs: int | None) -> None:
        search.print_head(self.console, prepared.plan, prepared.preview, prepared.outputs, jobs)

    def watch(self, prepared: PreparedSearch, feed: "SearchFeed") -> AbstractContextManager[Observer]:
        return search.SearchDisplay(self.console, feed)

    def end(self, prepared: PreparedSearch, feed: "SearchFeed") -> None:
        self.complete = search.print_end(self.console, feed)
