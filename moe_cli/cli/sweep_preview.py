"""What moe sweep prints before it starts: which points, what is done, what is left out and why, costs and times."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from moe_cli.config.executors import Executor
    from moe_cli.execution.estimate import RunEstimate
    from moe_cli.runs.folder import Run
    from moe_cli.sweeps.plan import SweepPlan

HEADINGS = ("params", "active", "tokens", "FLOPs", "time", "status")
GAP = "  "
HANGING = " " * 12
NEW = "new"
# A point's name has at least so much room in a terminal.
NARROWEST = 20


def statuses(runs: Sequence["Run"], again: Sequence["Run"] = ()) -> list[str]:
    """What each run says of itself; a run without a folder is new, and one that is done again from the start."""
    return [NEW if run in again or not run.path.exists() else str(run.status()["status"]) for run in runs]


@dataclass(frozen=True)
class Ahead:
    """A sweep before it starts: its points with their costs and what became of them so far.

    Attributes:
        jobs: runs at a time, as they were asked for; None: as many as there is room for.
        executor: who carries them out.
        again: how many points are run once more from the start.
    """

    planned: "SweepPlan"
    plans: "Sequence[RunEstimate]"
    status: Sequence[str]
    jobs: int | None
    retry_failed: bool
    executor: "Executor"
    again: int = 0

    def waits(self, status: str) -> bool:
        """Whether a run of this status is to be carried out now."""
        from moe_cli.runs.folder import COMPLETED, FAILED, PRUNED

        return status not in (COMPLETED, PRUNED) and (self.retry_failed or status != FAILED)

    @property
    def at_once(self) -> int | None:
        """Runs at a time; None: as many as a cluster has room for."""
        from moe_cli.sweeps.executors.make import at_once

        most = at_once(self.executor, self.jobs, self.plans)
        return None if most is None else min(most, len(self.plans))

    @property
    def to_go(self) -> "list[RunEstimate]":
        return [plan for plan, status in zip(self.plans, self.status, strict=True) if self.waits(status)]


def print_head(console: "Console", ahead: Ahead) -> None:
    """The question, how many runs, and whatever asks for a look."""
    from rich.markup import escape

    for style, text in head(ahead):
        lines = _folded(text, console.width, HANGING) if console.is_terminal else [text]
        for line in lines:
            console.print(f"[{style}]{escape(line)}[/]" if style else escape(line), highlight=False, soft_wrap=True)


def head(ahead: Ahead) -> list[tuple[str, str]]:
    """Lines, each with its style."""
    from moe_cli.formatting import plural
    from moe_cli.runs.folder import COMPLETED, FAILED, PRUNED

    planned, counted, to_go = ahead.planned, Counter(ahead.status), ahead.to_go
    runs = len(ahead.status)
    lines = [("bold", f"{planned.name}: {planned.question}")] if planned.question else []
    seeds = f" x {planned.num_seeds} seeds = {plural(runs, 'run')}" if planned.num_seeds > 1 else ""
    failed = 0 if ahead.retry_failed else counted[FAILED]
    lost = f", {failed} failed before (--retry-failed runs them again)" if failed else ""
    pruned = f"{counted[PRUNED]} pruned before, " if counted[PRUNED] else ""
    done = f"{counted[COMPLETED]} done before, {pruned}{len(to_go)} to go{lost}"
    lines.append(("yellow" if failed else "", f"{plural(planned.num_configurations, 'configuration')}{seeds}: {done}"))
    lines += remarks(ahead)
    if to_go:
        lines.append(("", f"about {_expected(ahead)}; stop any time, the same command continues"))
    return lines


def remarks(ahead: Ahead) -> list[tuple[str, str]]:
    """What was left out or set aside, and what asks for a look: lines, each with its style."""
    from moe_cli.formatting import plural
    from moe_cli.metrics import unequal_flops

    planned, to_go = ahead.planned, ahead.to_go
    lines = [("dim", f"  left out  {point.label}: {point.reason.splitlines()[0]}") for point in planned.left_out]
    if planned.num_excluded:
        lines.append(("dim", f"  where     leaves out {planned.num_excluded} more"))
    lines += [("dim", f"  note      {note}") for note in planned.notes]
    costs = [(plan.cost.num_active_params, plan.tokens, plan.cost.flops_per_token) for plan in ahead.plans]
    can_match = any(not plan.config.dense and plan.config.match != "flops" for plan in ahead.plans)
    if note := unequal_flops(costs, can_match=can_match):
        lines.append(("dim", f"  FLOPs     {note}"))
    if planned.num_repeats:
        lines.append(
            ("dim", f"  once      {plural(planned.num_repeats, 'point')} left out: the same configuration as another")
        )
    if ahead.again:
        lines.append(("dim", f"  again     {ahead.again} from the start; what there was goes to the trash"))
    if crowd := _crowd(ahead):
        lines.append(("yellow", f"  crowded   {crowd}"))
    if ahead.executor.name == "local" and to_go and (large := _too_large(to_go)):
        lines.append(("yellow", f"  memory    {large}"))
    return lines


def _expected(ahead: Ahead) -> str:
    from moe_cli.formatting import duration, plural

    seconds, workers, name = sum(plan.seconds for plan in ahead.to_go), ahead.at_once, ahead.executor.name
    if workers is None:
        return f"{duration(seconds)} of work at this machine's speed, as many runs at a time as {name} has room for"
    where = "" if name == "local" else f" of {name}, each as fast as this machine"
    return f"{duration(seconds / workers)} on {plural(workers, 'worker')}{where}"


def _crowd(ahead: Ahead) -> str:
    """More threads at a time than cores; or on a cluster another number of them than cores reserved for a run."""
    from moe_cli.execution.machine import count_cores
    from moe_cli.formatting import plural

    threads, executor = max((plan.threads for plan in ahead.plans), default=1), ahead.executor
    if executor.name == "local":
        wanted = (ahead.at_once or 1) * threads
        return (
            f"{wanted} threads on {plural(count_cores(), 'core')}: slower. Fewer: -j" if wanted > count_cores() else ""
        )
    if threads > executor.cpus:
        return f"{threads} threads on {plural(executor.cpus, 'core')} of each run: slower. Reserve more: executor.cpus={threads}"
    if threads < executor.cpus and not executor.gpus and not getattr(executor, "gres", None):
        return f"{executor.cpus} cores reserved for each run, of which it uses {threads}. To use all: train.threads={executor.cpus}"
    return ""


def _too_large(plans: "Sequence[RunEstimate]") -> str:
    """Which runs are not expected to find the memory they take: they start all the same, each alone."""
    from moe_cli.execution.machine import available_memory_bytes
    from moe_cli.execution.memory import memory_bytes
    from moe_cli.formatting import count

    available = available_memory_bytes()
    needs = [memory_bytes(plan.cost) for plan in plans]
    large = sum(need > available for need in needs) if available is not None else 0
    return (
        f"{large} of {len(plans)} runs may need up to {count(max(needs))}B, {count(available or 0)}B are free: "
        "each of them runs alone"
        if large
        else ""
    )


def print_points(console: "Console", ahead: Ahead) -> None:
    """Every point on a line, or more where a terminal is narrow; then the sums."""
    lines = point_lines(ahead, console.width if console.is_terminal else None)
    console.out("\n".join(lines), highlight=False)


def point_lines(ahead: Ahead, width: int | None) -> list[str]:
    """An aligned table; with a width, names that have no room go on in the lines below."""
    from moe_cli.formatting import plural

    names = ["point", *(point.label for point in ahead.planned.points)]
    rows = [HEADINGS, *(_cells(plan, status) for plan, status in zip(ahead.plans, ahead.status, strict=True))]
    sums = [("total", ahead.plans)]
    if len(ahead.to_go) < len(ahead.plans):
        sums.append(("to go", ahead.to_go))
    for what, plans in sums:
        names.append(f"{what}: {plural(len(plans), 'run')}")
        rows.append(_sums(plans))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    room = max(map(len, names))
    if width is not None:
        room = min(room, max(NARROWEST, width - sum(widths) - len(GAP) * len(widths)))
    lines = []
    for name, row in zip(names, rows, strict=True):
        first, *rest = _folded(name, room)
        cells = [cell.rjust(size) for cell, size in zip(row, widths, strict=True)]
        lines += [GAP.join([first.ljust(room), *cells]).rstrip(), *rest]
    return lines


def _folded(text: str, room: int, indent: str = " ") -> list[str]:
    if len(text) <= room:
        return [text]
    from textwrap import wrap

    return wrap(text, room, subsequent_indent=indent, break_on_hyphens=False)


def _cells(plan: "RunEstimate", status: str) -> tuple[str, ...]:
    from moe_cli.formatting import count

    return (count(plan.cost.num_params), count(plan.cost.num_active_params), *_sums([plan])[2:5], status)


def _sums(plans: "Sequence[RunEstimate]") -> tuple[str, ...]:
    """Tokens, FLOPs and time; a run whose budget is a time has neither of the first two."""
    from moe_cli.formatting import count, duration

    known = [(plan.tokens, plan.cost.flops_per_token) for plan in plans if plan.tokens is not None]
    tokens = count(sum(tokens for tokens, _ in known)) if known else "-"
    flops = count(sum(tokens * each for tokens, each in known)) if known else "-"
    return ("", "", tokens, flops, duration(sum(plan.seconds for plan in plans)), "")
