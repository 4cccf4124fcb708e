"""Progress of many runs for moe sweep and moe runs watch: a live panel, or a plain line per change."""

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from moe_cli.formatting import count, duration, format_loss, percent, sanitise
from moe_cli.metrics import target_name
from moe_cli.report.intervals import Estimate, mean_and_interval
from moe_cli.report.render.terminal import TextColumn, table_lines
from moe_cli.runs.folder import DONE, FAILED, PRUNED, Run
from moe_cli.runs.status import RunStatus, StatusCache, read_status

if TYPE_CHECKING:
    from moe_cli.sweeps.scheduler import Progress

REDRAW_SECONDS = 0.5
# The minimum number of failed runs, and of budgets, that have a line on a low terminal.
MIN_LINES = 3
# No estimate of the time left before this fraction of a run, because the first steps are slow.
MIN_FRACTION_FOR_ETA = 0.05
# The minimum width of the details next to a label.
MIN_DETAIL_WIDTH = 38
MIN_BAR_WIDTH, MAX_BAR_WIDTH = 6, 40


@dataclass(frozen=True)
class SweepProgress:
    """The statuses of many runs. `waiting` counts the runs that have not started or were interrupted."""

    done: Sequence[RunStatus]
    running: Sequence[RunStatus]
    failed: Sequence[RunStatus]
    waiting: int
    pruned: int = 0

    @property
    def total(self) -> int:
        return len(self.done) + len(self.running) + len(self.failed) + self.waiting + self.pruned


@dataclass(frozen=True)
class BestSoFar:
    """The configuration with the lowest mean loss so far, among those of equal data and budget.

    Attributes:
        loss: in bits per byte, or in nats if the bytes are unknown; see `unit`.
        dense: the loss of the best dense model of equal data and budget; None if there is none.
    """

    label: str
    loss: Estimate
    unit: str
    seeds: int
    max_violation: float | None
    dead_experts: float | None
    dense: float | None
    is_dense: bool


def best_so_far(done: Sequence[RunStatus], labels: Mapping[Path, str]) -> list[BestSoFar]:
    """Returns the best of each comparable group of runs, as in the report; empty before the first result."""
    from moe_cli.report.load import make_row

    groups: dict[Any, dict[str, list[RunStatus]]] = {}
    for status in done:
        if _loss(status) is not None:
            group = groups.setdefault(
                make_row(status.run, status.run.config_dict(), status.results, {}).comparison_key, {}
            )
            group.setdefault(_configuration(status.run), []).append(status)
    return [_best(list(group.values()), labels) for group in groups.values()]


def _best(configurations: Sequence[Sequence[RunStatus]], labels: Mapping[Path, str]) -> BestSoFar:
    means = [mean_and_interval([_loss(status) or 0.0 for status in group]) for group in configurations]
    index = min(range(len(means)), key=lambda index: means[index].mean)
    best, first = configurations[index], configurations[index][0]
    dense = [
        mean.mean for mean, group in zip(means, configurations, strict=True) if group[0].results.get("expert") == 1
    ]
    return BestSoFar(
        _without_seed(labels.get(first.run.path, first.run.id)),
        means[index],
        f"nats/{_target(first.run)}" if first.val_bpb is None else "bits/byte",
        len(best),
        _mean([status.max_violation for status in best]),
        _mean([status.dead_experts for status in best]),
        min(dense, default=None),
        first.results.get("expert") == 1,
    )


def _loss(status: RunStatus) -> float | None:
    return status.val_loss if status.val_bpb is None else status.val_bpb


@cache
def _target(run: Run) -> str:
    """Returns the unit of a run's loss, read once."""
    return target_name(run.config_dict())


@cache
def _configuration(run: Run) -> str:
    """Returns a key that is equal for runs of one configuration with different seeds."""
    config = {key: value for key, value in run.config_dict().items() if key not in ("seed", "launch")}
    return json.dumps(config, sort_keys=True)


def _without_seed(label: str) -> str:
    return re.sub(r"\s*\bseed=\d+", "", label).strip() or label


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def eta_seconds(sweep: SweepProgress, now: float) -> float | None:
    """Estimates the time left for as many parallel runs as now, each as long as earlier ones; None if unknown."""
    took = [
        status.last_heartbeat - status.started for status in sweep.done if 0 < status.started < status.last_heartbeat
    ]
    whole = {
        status.run: (now - status.started) / status.progress
        for status in sweep.running
        if status.started and status.progress > MIN_FRACTION_FOR_ETA
    }
    usual = _mean(took) or _mean(list(whole.values()))
    if usual is None or not sweep.running:
        return None
    rest = sum(whole.get(status.run, usual) * (1 - status.progress) for status in sweep.running)
    return (rest + usual * sweep.waiting) / len(sweep.running)


def panel(sweep: SweepProgress, labels: Mapping[Path, str], width: int, height: int, now: float) -> Group:
    """Returns at most `height` lines of `width`: counts and a bar, running runs, the best runs, and failures."""
    found = best_so_far(sweep.done, labels)
    best = found[: max(MIN_LINES, height // 8)]
    failed = list(sweep.failed)[-max(MIN_LINES, height // 8) :]
    room = max(1, height - len(failed) - max(1, len(best)) - (len(found) > len(best)) - 5)
    running = list(sweep.running)[:room]
    names = [labels.get(row.run.path, row.run.id) for row in (*running, *failed)] + [row.label for row in best]
    size = min(max(map(len, names), default=0), max(16, width - MIN_DETAIL_WIDTH))
    lines: list[Any] = [_head(sweep, width, now)]
    lines += _running_lines(running, labels, size, width, now)
    if len(sweep.running) > room:
        lines.append(_more(f"{len(sweep.running) - room} more running"))
    lines += _best_lines(best, size, width)
    if len(found) > len(best):
        lines.append(_more(f"{len(found) - len(best)} more budgets or data sets: moe report {sweep.done[0].run.sweep}"))
    lines += _failed_lines(failed, labels, size, width)
    if len(sweep.failed) > len(failed):
        rest = f"{len(sweep.failed) - len(failed)} more failed"
        lines.append(_more(f"{rest}: moe runs ls {failed[0].run.sweep} --status failed"))
    return Group(*lines)


def one_line(text: str, style: str = "") -> Text:
    """Returns a text that is cut at the width of the terminal."""
    return Text(text, style, no_wrap=True, overflow="ellipsis")


def _more(text: str) -> Text:
    return one_line(f"           and {sanitise(text)}", "dim")


def _head(sweep: SweepProgress, width: int, now: float) -> Table:
    ended, left = len(sweep.done) + len(sweep.failed) + sweep.pruned, eta_seconds(sweep, now)
    counts = {
        "done": len(sweep.done),
        "running": len(sweep.running),
        "failed": len(sweep.failed),
        "pruned": sweep.pruned,
        "waiting": sweep.waiting,
    }
    styles = {"failed": "red", "waiting": "dim"}
    texts = {
        name: Text(f"{number} {name}", styles.get(name, ""))
        for name, number in counts.items()
        if number or name in ("done", "running")
    }
    if left is not None:
        texts["left"] = Text(f"{duration(left)} left")
    share = (ended + sum(status.progress for status in sweep.running)) / max(1, sweep.total)
    return bar_line(f" {ended}/{sweep.total}", share, texts, ("waiting", "pruned", "running", "done", "failed"), width)


def bar_line(first: str, share: float, texts: Mapping[str, Text], leaving: Sequence[str], width: int) -> Table:
    """Returns a bar between a label and some texts. On a narrow terminal, the texts are dropped in order."""
    kept = dict(texts)

    def room() -> int:
        return width - len(first) - 2 - sum(len(text) + 2 for text in kept.values())

    for name in leaving:
        if room() < MIN_BAR_WIDTH:
            kept.pop(name, None)
    line = Table.grid(padding=(0, 2, 0, 0))
    for _ in range(len(kept) + 2):
        line.add_column(no_wrap=True, overflow="ellipsis")
    bar = ProgressBar(total=1, completed=share, width=max(MIN_BAR_WIDTH, min(MAX_BAR_WIDTH, room())))
    line.add_row(first, bar, *kept.values())
    return line


def _row_label(name: str, number: int) -> TextColumn:
    return TextColumn("", [f"  {name:<8}"] + [" " * 10] * (number - 1), align_left=True, styles=["dim"] * number)


def _labels(texts: Sequence[str], size: int) -> TextColumn:
    return TextColumn("", [f"{sanitise(text):<{size}}" for text in texts], align_left=True, min_width=size)


def _running_lines(
    running: Sequence[RunStatus], labels: Mapping[Path, str], size: int, width: int, now: float
) -> list[Text]:
    if not running:
        return []
    texts = [labels.get(status.run.path, status.run.id) for status in running]
    return table_lines(
        [
            _row_label("running", len(running)),
            _labels(texts, size),
            TextColumn("", [_step(status) for status in running]),
            TextColumn(
                "",
                ["" if status.val_loss is None else f"val {status.val_loss:z.3f}" for status in running],
                align_left=True,
            ),
            TextColumn(
                "",
                [
                    "" if status.tokens_per_second is None else f"{count(status.tokens_per_second)} tok/s"
                    for status in running
                ],
                drop_order=2,
            ),
            _max_violation_column(running, drop_order=1),
            _dead_column(running),
            TextColumn(
                "",
                ["" if status.train_loss is None else f"train {status.train_loss:z.3f}" for status in running],
                drop_order=5,
            ),
            TextColumn("", [_left_of(status, now) for status in running], drop_order=4),
        ],
        width,
        header=False,
    )


def _step(status: RunStatus) -> str:
    if not status.step:
        return "starting"
    if status.progress == 1:
        return "evaluating"
    return f"step {status.step:,}" + (f"/{status.steps:,}" if status.steps else "")


def _left_of(status: RunStatus, now: float) -> str:
    if not MIN_FRACTION_FOR_ETA < status.progress < 1 or not status.started:
        return ""
    return duration((now - status.started) / status.progress * (1 - status.progress)) + " left"


def _max_violation_column(rows: Sequence[RunStatus | BestSoFar], drop_order: int) -> TextColumn:
    values = [row.max_violation for row in rows]
    texts = ["" if value is None else f"MaxVio {percent(value, signed=True)}" for value in values]
    styles = ["" if value is None else max_violation_style(value) for value in values]
    return TextColumn("", texts, drop_order=drop_order, styles=styles)


def max_violation_style(value: float) -> str:
    return "red" if value > 2 else "yellow" if value > 1 else ""


def _dead_column(rows: Sequence[RunStatus | BestSoFar]) -> TextColumn:
    texts = ["" if row.dead_experts is None else f"dead {percent(row.dead_experts)}" for row in rows]
    return TextColumn("", texts, drop_order=3, styles=["yellow" if row.dead_experts else "" for row in rows])


def _best_lines(best: Sequence[BestSoFar], size: int, width: int) -> list[Text]:
    """Returns a line for each budget and data set."""
    if not best:
        return []
    losses = [f"{row.loss.mean:z.3f}{_spread(row.loss)} {row.unit}" for row in best]
    dense = ["is dense" if row.is_dense else "" if row.dense is None else f"dense {row.dense:z.3f}" for row in best]
    return table_lines(
        [
            _row_label("best", len(best)),
            _labels([row.label for row in best], size),
            TextColumn("", losses, styles=["green"] * len(best)),
            TextColumn("", dense, align_left=True, drop_order=1),
            _max_violation_column(best, drop_order=2),
            _dead_column(best),
            TextColumn("", [f"{row.seeds} seeds" if row.seeds > 1 else "" for row in best], drop_order=4),
        ],
        width,
        header=False,
    )


def _spread(loss: Estimate) -> str:
    return "" if loss.half_width is None else f" +- {loss.half_width:z.3f}"


def _failed_lines(failed: Sequence[RunStatus], labels: Mapping[Path, str], size: int, width: int) -> list[Text]:
    if not failed:
        return []
    texts = [labels.get(status.run.path, status.run.id) for status in failed]
    reasons = [failure_reason(status) for status in failed]
    return table_lines(
        [
            _row_label("failed", len(failed)),
            _labels(texts, size),
            TextColumn("", reasons, align_left=True, min_width=10, styles=["red"] * len(failed)),
        ],
        width,
        header=False,
    )


def failure_reason(status: RunStatus) -> str:
    """Returns the reason of a failure or stop, on one line."""
    return sanitise((status.reason or "unknown reason").strip().split("\n")[0])


def finished_line(status: RunStatus, label: str) -> Text:
    """Returns the line of a run that has ended."""
    if status.status in DONE:
        result = "-" if status.val_loss is None else format_loss(status.val_bpb, status.val_loss, _target(status.run))
        speed = "-" if status.tokens_per_second is None else count(status.tokens_per_second)
        return Text.assemble(("done", "green"), f"    {sanitise(label)}   {result}   {speed} tok/s")
    name, style = ("failed", "red") if status.status == FAILED else ("stopped", "yellow")
    return Text.assemble((name, style), " " * (8 - len(name)), f"{sanitise(label)}   {failure_reason(status)}")


class LivePanel:
    """A panel that is redrawn on a terminal, with lines above it. Without a terminal only the lines are printed."""

    def __init__(self, console: Console, labels: Mapping[Path, str]) -> None:
        self.console = console
        self.labels = dict(labels)
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._drawn = 0.0

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._live.stop()

    def label(self, run: Run) -> str:
        return self.labels.get(run.path, run.id)

    def print(self, line: Text | str) -> None:
        self.console.print(line, highlight=False, soft_wrap=True)

    def due(self) -> bool:
        """Returns whether the panel is to be redrawn now."""
        return self._live is not None and time.monotonic() - self._drawn >= REDRAW_SECONDS

    def draw(self, content: Any) -> None:
        if self._live:
            self._drawn = time.monotonic()
            self._live.update(content, refresh=True)

    def show(self, sweep: SweepProgress) -> None:
        self.draw(panel(sweep, self.labels, self.console.width, self.console.height, time.time()))


class SweepDisplay(LivePanel):
    """The live panel of a sweep, fed by the scheduler, and a line for each run that ends.

    Args:
        labels: the runs of the sweep with their labels.
        pending: the runs that are to be executed.
    """

    def __init__(self, console: Console, labels: Mapping[Run, str], pending: Sequence[Run]) -> None:
        super().__init__(console, {run.path: label for run, label in labels.items()})
        self.runs = [*labels]
        self._pending = {run.path for run in pending}
        self._before: dict[Path, RunStatus] = {}
        self._ended: dict[Path, RunStatus] = {}
        self._watcher = StatusCache()

    def __enter__(self) -> Self:
        super().__enter__()
        self._before = {run.path: read_status(run) for run in self.runs if run.path not in self._pending}
        return self

    def __call__(self, progress: "Progress") -> None:
        changed = False
        for run in (*progress.finished, *progress.failed):
            before = self._ended.get(run.path)
            if before is None or (before.status not in DONE and run in progress.finished):
                self._ended[run.path] = self._watcher.get(run)
                self.print(finished_line(self._ended[run.path], self.label(run)))
                changed = True
        if changed or self.due():
            self.show(self._sweep_progress(progress))

    def _sweep_progress(self, progress: "Progress") -> SweepProgress:
        running = {run.path for run in progress.running}
        ended = {path: status for path, status in {**self._before, **self._ended}.items() if path not in running}
        pruned = {path for path, status in ended.items() if status.status == PRUNED} | {
            run.path for run in progress.pruned
        }
        return SweepProgress(
            done=[status for status in ended.values() if status.status in DONE],
            running=[self._watcher.get(run) for run in progress.running],
            failed=[status for path, status in ended.items() if status.status not in DONE and path not in pruned],
            waiting=progress.waiting,
            pruned=len(pruned),
        )
