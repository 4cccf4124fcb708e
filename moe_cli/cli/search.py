"""Output of a search: its plan, progress and result."""

import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.markup import escape
from rich.text import Text

from moe_cli.cli.console import print_styled
from moe_cli.cli.progress import LivePanel, bar_line, one_line
from moe_cli.formatting import count, duration, plural
from moe_cli.metrics import BY_KEY
from moe_cli.report.importance import MIN_TRIALS, importance_lines, importances, load_study
from moe_cli.report.pareto import tolerance
from moe_cli.report.render.terminal import TextColumn, table_lines
from moe_cli.runs.curves import validation_curve
from moe_cli.runs.folder import Run
from moe_cli.sweeps.scheduler import Progress
from moe_cli.sweeps.search import SearchFeed, check_identity, counted_trials
from moe_cli.sweeps.search_estimate import SearchEstimate
from moe_cli.sweeps.search_space import SearchPlan, format_domain

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


def print_head(console: Console, plan: SearchPlan, estimate: SearchEstimate, folder: Path, jobs: int | None) -> None:
    print_styled(console, summary_lines(plan, estimate, folder, jobs))


def summary_lines(plan: SearchPlan, estimate: SearchEstimate, folder: Path, jobs: int | None) -> list[tuple[str, str]]:
    """Returns (style, line) of the plan, with the expected time of `jobs` parallel runs if their number is known."""
    study = load_study(folder / plan.name)
    if study:
        check_identity(plan, study, folder / plan.name)
    trials = counted_trials(study.get_trials(deepcopy=False)) if study else []
    done = sum(trial.state.is_finished() for trial in trials)
    lines = [("yellow", f"note: {note}") for note in plan.conf_notes]
    lines += [("bold", f"{plan.name}: {plan.question}")] if plan.question else []
    seeds = f" x {len(plan.seeds)} seeds" if len(plan.seeds) > 1 else ""
    to_go = max(0, plan.trials - done)
    lines.append(
        ("", f"{plan.sampler} search: {plural(plan.trials, 'trial')}{seeds}: {done} done before, {to_go} to go")
    )
    size = plan.size
    lines += [
        ("", f"  {'space' if not index else '':<10} {key}={format_domain(domain)}")
        for index, (key, domain) in enumerate(plan.space.items())
    ]
    lines.append(
        (
            "",
            f"  {'size':<10} {'infinite' if size is None else plural(size, 'configuration')}"
            + (f", about {100 * estimate.possible:z.0f} % possible" if estimate.possible < 1 else ""),
        )
    )
    if plan.fixed:
        lines.append(("", f"  {'settings':<10} {' '.join(plan.trial_overrides({}))}"))
    sides = [f"{name} ({'higher' if BY_KEY[name].direction > 0 else 'lower'} is better)" for name in plan.objectives]
    lines.append(("", f"  {'objective':<10} {', '.join(sides)}"))
    if plan.prune:
        lines.append(("", f"  {'pruning':<10} {plan.prune}, with {plural(estimate.evaluations, 'evaluation')} per run"))
    lines += [("dim", f"  {'note':<10} {note}") for note in notes(plan, estimate)]
    if to_go:
        seconds = duration(estimate.seconds * to_go * len(plan.seeds) / (jobs or 1))
        on = f"on {plural(jobs, 'worker')}" if jobs else "of work at this machine's speed"
        most = "at most " if plan.prune else ""
        lines.append(("", f"{most}about {seconds} {on}; stop any time, the same command continues"))
    return lines


def notes(plan: SearchPlan, estimate: SearchEstimate) -> list[str]:
    """Returns notes on a search before it starts."""
    notes = list(estimate.notes)
    if plan.size is not None and plan.size <= plan.trials:
        notes.append(
            f"{plan.size:,} configurations are no more than {plural(plan.trials, 'trial')}: "
            "without --sampler, each runs once"
        )
    if plan.prune and len(plan.seeds) > 1:
        notes.append("runs are pruned at their first seed; only those that are not pruned get the other seeds")
    return notes


def format_result(value: float) -> str:
    return f"{value:z.3f}" if abs(value) < 100 else count(value)


class SearchDisplay(LivePanel):
    """Shows a search: a panel that is redrawn on a terminal, and a line for each run that has ended."""

    def __init__(self, console: Console, feed: SearchFeed) -> None:
        super().__init__(console, {})
        self.feed = feed
        self.started = time.monotonic()
        self.seen: set[Path] = set()

    def __call__(self, progress: Progress) -> None:
        for run in [*progress.finished, *progress.failed, *progress.pruned]:
            if run.path not in self.seen:
                self.seen.add(run.path)
                self.print(self._line(run))
        if self.due():
            self.draw(self._panel(progress))

    def _line(self, run: Run) -> str:
        label, summary = escape(self.feed.labels[run.path]), run.summary()
        if summary:
            results = [(name, summary.get(name)) for name in self.feed.plan.objectives]
            shown = "   ".join(f"{name} {'-' if value is None else format_result(value)}" for name, value in results)
            return f"[green]done[/]    {label}   {shown}"
        status = run.status()
        style, word = ("yellow", "pruned") if status["status"] == "pruned" else ("red", "failed")
        return f"[{style}]{word}[/]  {label}   [dim]{escape(str(status.get('reason')))}[/]"

    def _panel(self, progress: Progress) -> Group:
        trials = self.feed.trials()
        done, wanted = sum(trial.state.is_finished() for trial in trials), self.feed.plan.trials
        mine = len(progress.finished) + len(progress.failed) + len(progress.pruned)
        elapsed = time.monotonic() - self.started
        counts = {
            "running": len(progress.running),
            "pruned": len(progress.pruned),
            "failed": len(progress.failed),
        }
        texts = {name: Text(f"{number} {name}") for name, number in counts.items() if number}
        if mine:
            texts["left"] = Text(duration(elapsed / mine * (wanted - done) * len(self.feed.plan.seeds)) + " left")
        head = bar_line(f"{done}/{wanted} trials", done / wanted, texts, ("pruned", "running"), self.console.width)
        plan = self.feed.plan
        rows = [(_step(run), self.feed.labels[run.path], "") for run in progress.running]
        rows += [(f"best {_results(plan, best)}", plan.label(best.params), "bold") for best in self.feed.best()[:3]]
        return Group(head, *(one_line(f"  {state:<26}  {label}", style) for state, label, style in rows))


def _step(run: Run) -> str:
    records = run.latest_metrics()
    if not records:
        return "starting"
    curve = validation_curve(run, newest=True)
    name = "bpb" if curve.result == "val_bpb" else "loss"
    return f"step {records[-1].get('step')}" + (f"   {name} {curve.values[-1]:z.3f}" if curve.points else "")


def _results(plan: SearchPlan, trial: "FrozenTrial") -> str:
    return "   ".join(
        f"{name} {format_result(value)}" for name, value in zip(plan.objectives, trial.values, strict=True)
    )


def print_end(console: Console, feed: SearchFeed) -> bool:
    """Prints the result. Returns whether all trials have ended and one has a result; single trials may fail."""

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    states = [trial.state.name for trial in feed.trials()]
    completed, pruned, failed = (states.count(state) for state in ("COMPLETE", "PRUNED", "FAIL"))
    say(
        f"{len(states)} of {plural(feed.plan.trials, 'trial')}: {completed} completed, {pruned} pruned, {failed} failed"
    )
    if feed.stop_reason:
        say(f"[yellow]stopped early:[/] {escape(feed.stop_reason)}")
    for line in _front(feed) if len(feed.plan.objectives) > 1 else _best(feed):
        say(escape(line))
    lines = importance_lines(importances(feed.study))
    for line in lines or [f"importance: needs {MIN_TRIALS} completed trials of different settings"]:
        say(f"[dim]{escape(line)}[/]")
    say(f"See: moe report {escape(feed.plan.name)}")
    if failed:
        first = next(trial for trial in feed.trials() if trial.state.name == "FAIL")
        say(f"[red]{failed} failed[/]. Reason of the first: {escape(str(first.user_attrs.get('reason')))}")
        say("Retry them with --retry-failed.")
    return completed > 0 and completed + pruned + failed >= feed.plan.trials


def _best(feed: SearchFeed) -> list[str]:
    lines = []
    for trial in feed.best()[:1]:
        lines.append(f"best     trial {trial.number}   {_results(feed.plan, trial)}")
        lines.append(f"  {_command(feed.plan, trial)}")
    return lines


def _front(feed: SearchFeed) -> list[str]:
    """Returns the trials of the Pareto front as an aligned table, and the command of the first."""
    plan, trials = feed.plan, feed.best()
    if not trials:
        return []
    rows = [
        [
            *(format_result(value) for name, value in zip(plan.objectives, trial.values, strict=True)),
            plan.label(trial.params),
        ]
        for trial in trials
    ]
    columns = zip([*plan.objectives, "settings"], zip(*rows, strict=True), strict=True)
    lines = [
        line.plain
        for line in table_lines([TextColumn(*column, align_left=column[0] == "settings") for column in columns], None)
    ]
    commands = [f"  {_command(plan, trial)}" for trial in trials[:1]]
    return [
        f"Pareto front: {plural(len(trials), 'trial')} that no other trial beats" + _equal(plan.objectives),
        *lines,
        "first trial:",
        *commands,
    ]


def _equal(objectives: Sequence[str]) -> str:
    """Returns the tolerances of the objectives: (equal: tokens_per_second within 10 %)."""
    close = [f"{name} within {100 * (tolerance(name) - 1):z.0f} %" for name in objectives if tolerance(name) > 1]
    return f" (equal: {', '.join(close)})" if close else ""


def _command(plan: SearchPlan, trial: "FrozenTrial") -> str:
    return "moe train " + " ".join(map(shlex.quote, plan.trial_overrides(trial.params)))
