"""Output of `moe decide`: costs before the first run, each stage and each run that ends, and the answer."""

import math
from contextlib import AbstractContextManager
from pathlib import Path

from rich.console import Console, Group
from rich.markup import escape
from rich.text import Text

from moe_cli.cli.console import print_lines, print_styled, text_width
from moe_cli.cli.progress import LivePanel, bar_line, one_line
from moe_cli.cli.views import TerminalView
from moe_cli.decisions.certificate import Certificate, context_of, make_certificate
from moe_cli.decisions.feed import DecisionFeed
from moe_cli.decisions.rehearsal import TYPICAL_DEVIATION, Power, power, rehearse, unused
from moe_cli.decisions.run_decision import PreparedDecision
from moe_cli.decisions.stage_costs import bound_stage_costs
from moe_cli.decisions.terms import DecisionLimit
from moe_cli.decisions.text import BY_NAMES, certificate_lines, percent
from moe_cli.formatting import duration, plural
from moe_cli.report.render.terminal import plain_table, wrap
from moe_cli.runs.folder import Run
from moe_cli.sweeps.scheduler import Observer, Pool, Progress

CONTINUATION_INDENT = " " * 13


def print_certificate(certificate: Certificate, console: Console) -> None:
    print_lines(console, certificate_lines(certificate, text_width(console)))


class DecisionView(TerminalView):
    """Shows a decision in a terminal.

    Attributes:
        certificate: that of the decision, once it has ended.
    """

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.certificate: Certificate | None = None

    def preview(self, prepared: PreparedDecision) -> None:
        """Prints the costs of the stages, for --dry-run."""
        self._print_head(prepared, prepared.limit())

    def begin(self, prepared: PreparedDecision, feed: DecisionFeed, pool: Pool | None) -> None:
        if pool is not None:
            self._print_head(prepared, feed.limit)

    def watch(self, prepared: PreparedDecision, feed: DecisionFeed) -> AbstractContextManager[Observer]:
        return DecisionDisplay(self.console, feed)

    def end(self, prepared: PreparedDecision, feed: DecisionFeed) -> None:
        decision = feed.step.decision
        assert decision is not None, "the feed ends with the decision"
        self.certificate = make_certificate(prepared.plan, decision, feed.results, prepared.limits, prepared.outputs)

    def print_answer(self) -> None:
        """Prints the answer and the certificate."""
        assert self.certificate is not None
        print_lines(self.console, [Text("")])
        print_certificate(self.certificate, self.console)

    def _print_head(self, prepared: PreparedDecision, limit: DecisionLimit) -> None:
        width = text_width(self.console)
        print_styled(self.console, head_lines(prepared, limit), width, CONTINUATION_INDENT)
        print_lines(self.console, cost_lines(prepared, limit, width))


def head_lines(prepared: PreparedDecision, limit: DecisionLimit) -> list[tuple[str, str]]:
    """Returns (style, line) of the question, the candidates, and what the budget can decide."""
    plan = prepared.plan
    lines = [("yellow", f"note: {note}") for note in plan.conf_notes]
    lines.append(("bold", f"{plan.question or plan.name}"))
    others = [name for name in plan.configs if name != "dense"]
    lines.append(("", f"  on         {context_of(plan)}; equal {BY_NAMES[plan.by]} for all"))
    lines.append(("", f"  candidates {len(plan.configs)}: dense, {', '.join(others)}"))
    lines += [("dim", f"  left out   {point.label}: {point.reason.splitlines()[0]}") for point in plan.left_out]
    lines += [("dim", f"  note       {note}") for note in plan.notes]
    lines.append(("", f"  margin     {percent(plan.rules.within)}; wrong claims at most {percent(plan.rules.alpha)}"))
    limits = [f"{prepared.limits.minutes:g} min"] if prepared.limits.minutes is not None else []
    limits += [plural(prepared.limits.runs, "run")] if prepared.limits.runs is not None else []
    lines.append(("", f"  budget     {' and '.join(limits)}, {plural(limit.parallel, 'run')} at a time"))
    rehearsal = rehearse(prepared.candidates, plan.rules, limit)
    found = power(rehearsal, plan.rules)
    if found is not None:
        style = "" if found.difference <= 2 * plan.rules.within else "yellow"
        lines.append((style, f"  power      {_power(found, plan.rules.within)}"))
    lines += [("yellow", f"  skipped    {sentence}") for sentence in unused(rehearsal.decision)]
    return lines


def _power(found: Power, within: float) -> str:
    """Returns the sentence on what the confirmation can decide."""
    equal = "" if found.equality <= within else "not "
    return (
        f"about {plural(found.seeds, 'fresh seed')}: differences from {percent(_rounded(found.difference))} are found, "
        f"and equality within {percent(within)} can {equal}be shown, if differences vary by "
        f"{percent(TYPICAL_DEVIATION)} from seed to seed"
    )


def _rounded(share: float) -> float:
    return float(f"{share:.2g}")


def cost_lines(prepared: PreparedDecision, limit: DecisionLimit, width: int) -> list[Text]:
    """Returns the table of stages: the least and the most that each costs without a limit, and all with it."""
    costs = bound_stage_costs(prepared.candidates, prepared.plan.rules)

    def row(name: str, runs: tuple[int, int], seconds: tuple[float, float]) -> list[str]:
        low, high = (duration(value / limit.parallel) for value in seconds)
        return [f"  {name}", _range(str(runs[0]), str(runs[1])), _range(low, high)]

    rows = [row(cost.stage, (cost.min_runs, cost.max_runs), (cost.min_seconds, cost.max_seconds)) for cost in costs]
    runs = sum(cost.min_runs for cost in costs), sum(cost.max_runs for cost in costs)
    seconds = math.fsum(cost.min_seconds for cost in costs), math.fsum(cost.max_seconds for cost in costs)
    rows.append(row("all stages", runs, seconds))
    head = ["  stage", "runs", f"time on {plural(limit.parallel, 'worker')}"]
    note = "From clear differences to the worst case, without the budget. Stop any time, the same command continues."
    return [*plain_table(head, rows, width), *wrap(note, width, "dim", "  ")]


def _range(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"


class DecisionDisplay(LivePanel):
    """Shows a decision at work: a line for each stage and each run that has ended, and a panel on a terminal."""

    def __init__(self, console: Console, feed: DecisionFeed) -> None:
        super().__init__(console, {})
        self.feed = feed
        self._seen: set[Path] = set()
        self._announced = ""

    def __call__(self, progress: Progress) -> None:
        for run in [*progress.finished, *progress.failed]:
            if run.path not in self._seen:
                self._seen.add(run.path)
                self.print(self._line(run))
        step = self.feed.step
        text = f"{step.stage}: {step.reason}"
        if step.decision is None and text != self._announced:
            self._announced = text
            self.print(f"[bold]{escape(step.stage)}[/]  {escape(step.reason)}")
        if self.due():
            self.draw(self._panel(progress))

    def _line(self, run: Run) -> str:
        label, summary = escape(self.feed.labels.get(run.path, run.id)), run.summary()
        if summary is None:
            reason = str(run.status().get("reason") or "").strip().splitlines() or ["unknown reason"]
            return f"[red]failed[/]  {label}   [dim]{escape(reason[0])}[/]"
        bits, nats = summary.get("val_bpb"), summary.get("val_loss")
        result = f"{bits:.3f} bits/byte" if isinstance(bits, float) else f"{nats:.3f} nats"
        return f"[green]done[/]    {label}   {result}"

    def _panel(self, progress: Progress) -> Group:
        limit, results = self.feed.limit, self.feed.results
        seconds = sum(outcome.seconds for outcome in results.values()) / limit.parallel
        share, texts = 0.0, {"done": Text(f"{len(results)} runs done")}
        if limit.runs is not None:
            share = len(results) / limit.runs
            texts["left"] = Text(f"{max(0, limit.runs - len(results))} runs left")
        if limit.seconds is not None:
            share = max(share, seconds / limit.seconds)
            texts["time"] = Text(f"{duration(max(0.0, limit.seconds - seconds))} left")
        head = bar_line(f" {self.feed.step.stage}", min(1.0, share), texts, ("done",), self.console.width)
        labels = self.feed.labels
        return Group(head, *(one_line(f"  running  {labels.get(run.path, run.id)}") for run in progress.running))
