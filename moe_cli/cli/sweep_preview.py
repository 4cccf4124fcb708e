"""The plan that moe sweep prints before it starts: points, completed and excluded runs, costs, times."""

from collections import Counter
from collections.abc import Sequence

from rich.console import Console

from moe_cli.cli.console import print_styled, table_width
from moe_cli.config.executors import LocalExecutor, PluginExecutor
from moe_cli.execution.estimate import RunEstimate
from moe_cli.execution.machine import available_memory_bytes, count_cores
from moe_cli.execution.memory import memory_bytes
from moe_cli.execution.precision import planned_precision
from moe_cli.formatting import count, duration, format_bytes, plural
from moe_cli.metrics import unequal_flops
from moe_cli.report.learning_rate import MAX_EXTENSIONS, MULTIPLIERS
from moe_cli.report.render.line_wrap import wrap_lines
from moe_cli.report.render.terminal import GAP, plain_table
from moe_cli.runs.folder import COMPLETED, FAILED, PRUNED
from moe_cli.sweeps.run_sweep import PlannedRun, Prepared, PreparedSweep

HEADINGS = ("params", "active", "tokens", "FLOPs", "time", "status")
CONTINUATION_INDENT = " " * 12


def print_head(console: Console, prepared: PreparedSweep) -> None:
    """Prints a note on ./conf, the question, the number of runs, and warnings."""
    print_styled(console, summary_lines(prepared), table_width(console), CONTINUATION_INDENT)


def summary_lines(prepared: PreparedSweep) -> list[tuple[str, str]]:
    """Returns (style, line) of the summary."""
    plan, pending, runs = prepared.plan, prepared.pending, len(prepared.runs)
    counted = Counter(planned.status for planned in prepared.runs)
    lines = [("yellow", f"note: {note}") for note in plan.conf_notes]
    lines += [("bold", f"{plan.name}: {plan.question}")] if plan.question else []
    seeds = f" x {plan.num_seeds} seeds = {plural(runs, 'run')}" if plan.num_seeds > 1 else ""
    failed = 0 if prepared.execution.retry_failed else counted[FAILED]
    lost = f", {failed} failed before (--retry-failed runs them again)" if failed else ""
    pruned = f"{counted[PRUNED]} pruned before, " if counted[PRUNED] else ""
    partly = sum(run.checkpoint_step > 0 for run in pending)
    resumed = f" ({partly} from a checkpoint)" if partly else ""
    done = f"{counted[COMPLETED]} done before, {pruned}{len(pending)} to go{resumed}{lost}"
    lines.append(("yellow" if failed else "", f"{plural(plan.num_configurations, 'configuration')}{seeds}: {done}"))
    lines += data_notes(prepared)
    if pending:
        lines.append(("", f"about {_expected(prepared)}; stop any time, the same command continues"))
    return lines


def data_notes(prepared: PreparedSweep) -> list[tuple[str, str]]:
    """Returns (style, line) of exclusions, of settings without effect, and of warnings."""
    plan, estimates = prepared.plan, prepared.estimates
    lines = [("dim", f"  left out  {point.label}: {point.reason.splitlines()[0]}") for point in plan.left_out]
    if plan.num_excluded:
        lines.append(("dim", f"  where     leaves out {plural(plan.num_excluded, 'combination')}"))
    lines += [("dim", f"  note      {note}") for note in plan.notes]
    costs = [
        (estimate.cost.num_active_params, estimate.tokens, estimate.cost.flops_per_token) for estimate in estimates
    ]
    can_match = any(not planned.config.dense and planned.config.match != "flops" for planned in prepared.runs)
    if note := unequal_flops(costs, can_match=can_match):
        lines.append(("dim", f"  FLOPs     {note}"))
    precisions = Counter(planned_precision(planned.config) for planned in prepared.runs)
    if len(precisions) > 1:
        counted = ", ".join(f"{name} for {plural(number, 'run')}" for name, number in precisions.items())
        lines.append(("yellow", f"  precision {counted}; for a fair comparison set train.precision"))
    if plan.num_repeats:
        lines.append(
            ("dim", f"  left out  {plural(plan.num_repeats, 'point')}: same configuration as an earlier point")
        )
    if again := len(prepared.restarted):
        lines.append(("dim", f"  again     {again} from the start; the old folders go to the trash"))
    if crowd := _oversubscription_warning(prepared):
        lines.append(("yellow", f"  crowded   {crowd}"))
    local = prepared.execution.executor.name == "local"
    if local and (large := _memory_warning([planned.estimate for planned in prepared.pending])):
        lines.append(("yellow", f"  memory    {large}"))
    return lines


def _expected(prepared: PreparedSweep) -> str:
    seconds = sum(run.seconds_left for run in prepared.pending)
    workers, name = prepared.max_parallel, prepared.execution.executor.name
    if workers is None:
        return f"{duration(seconds)} of work at this machine's speed, as many runs at a time as {name} has room for"
    where = "" if name == "local" else f" of {name}, each as fast as this machine"
    return f"{duration(seconds / workers)} on {plural(workers, 'worker')}{where}"


def _oversubscription_warning(prepared: PreparedSweep) -> str:
    """Returns a warning if runs use more threads than cores, or on a cluster another number than the reserved cores."""
    threads = max((estimate.threads for estimate in prepared.estimates), default=1)
    executor = prepared.execution.executor
    if isinstance(executor, PluginExecutor):
        return ""  # whose cores are not known here
    if isinstance(executor, LocalExecutor):
        wanted = (prepared.max_parallel or 1) * threads
        return (
            f"{wanted} threads on {plural(count_cores(), 'core')}: slower. Fewer: -j" if wanted > count_cores() else ""
        )
    if threads > executor.cpus:
        cores = plural(executor.cpus, "core")
        return f"{threads} threads on {cores} of each run: slower. Reserve more: executor.cpus={threads}"
    if threads < executor.cpus and not executor.gpus and not getattr(executor, "gres", None):
        reserved = executor.cpus
        return f"{reserved} cores reserved for each run, and it uses {threads}. To use all: train.threads={reserved}"
    return ""


def _memory_warning(estimates: Sequence[RunEstimate]) -> str:
    """Returns a warning for runs that need more memory than is free; each of them runs alone."""
    available = available_memory_bytes()
    needs = [memory_bytes(estimate.cost) for estimate in estimates]
    large = sum(need > available for need in needs) if available is not None else 0
    return (
        f"{large} of {len(estimates)} runs may need up to {format_bytes(max(needs))}, "
        f"{format_bytes(available or 0)} are free: "
        "each of them runs alone"
        if large
        else ""
    )


def print_points(console: Console, prepared: PreparedSweep) -> None:
    """Prints every point on a line, or several lines on a narrow terminal, then the sums."""
    lines = point_lines(prepared, table_width(console))
    console.out("\n".join(lines), highlight=False)


def print_tuning_price(console: Console, prepared: Sequence[Prepared]) -> None:
    """Prints the price of trials and comparison together: the least, and the most with every further trial."""
    if len(prepared) == 1:
        return
    trials, comparison = ([estimate.seconds for estimate in part.estimates] for part in prepared)
    factor = MAX_EXTENSIONS / len(MULTIPLIERS)
    runs, seconds = len(trials) + len(comparison), sum(trials) + sum(comparison)
    most = f"{plural(runs + round(factor * len(trials)), 'run')}, {duration(seconds + factor * sum(trials))}"
    console.out(
        f"trials and comparison: {plural(runs, 'run')}, {duration(seconds)} of work; at most {most}, while best rates "
        f"stay at the edge",
        highlight=False,
    )


def point_lines(prepared: PreparedSweep, width: int | None) -> list[str]:
    """Returns the lines of an aligned table; with a width, long labels are wrapped."""
    sums = {"total": prepared.estimates}
    if len(prepared.pending) < len(prepared.runs):
        sums["to go"] = [planned.estimate for planned in prepared.pending]
    rows = [(planned.label, _cells(planned)) for planned in prepared.runs]
    rows += [(f"{name}: {plural(len(estimates), 'run')}", _totals(estimates)) for name, estimates in sums.items()]
    columns = zip(HEADINGS, *(cells for _, cells in rows), strict=True)
    numbers_width = sum(len(GAP) + max(map(len, column)) for column in columns)
    table: list[tuple[str, ...]] = []
    for label, cells in rows:
        lines = [label] if width is None else wrap_lines(label, width - numbers_width, continued=" ")
        table += [(lines[0], *cells), *((line, *[""] * len(cells)) for line in lines[1:])]
    return [line.plain for line in plain_table(["point", *HEADINGS], table, None)]


def _cells(planned: PlannedRun) -> tuple[str, ...]:
    cost = planned.estimate.cost
    return (count(cost.num_params), count(cost.num_active_params), *_totals([planned.estimate])[2:5], planned.status)


def _totals(estimates: Sequence[RunEstimate]) -> tuple[str, ...]:
    """Returns tokens, FLOPs and time; a run with a time budget has only a time."""
    known = [(estimate.tokens, estimate.cost.flops_per_token) for estimate in estimates if estimate.tokens is not None]
    tokens = count(sum(tokens for tokens, _ in known)) if known else "-"
    flops = count(sum(tokens * cost for tokens, cost in known)) if known else "-"
    return ("", "", tokens, flops, duration(sum(estimate.seconds for estimate in estimates)), "")
