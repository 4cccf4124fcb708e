"""The progress of many runs, redrawn on a terminal or one plain line per change. Used by sweep and runs watch."""

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from moe_cli.formatting import count, duration, format_loss, percent, sanitise
from moe_cli.metrics import loss_unit
from moe_cli.report.intervals import Estimate, mean_and_interval
from moe_cli.report.render.terminal import TextColumn, table_lines
from moe_cli.runs.folder import COMPLETED, FAILED, PRUNED, Run
from moe_cli.runs.status import RunStatus, StatusCache, read_status

if TYPE_CHECKING:
    from moe_cli.sweeps.scheduler import Progress

REDRAW_SECONDS = 0.5
# The least number of failed runs, and of budgets, that have a line, however low the terminal is.
MIN_LINES = 3
# Below this share of a run its speed says nothing yet: the first steps are slow.
MIN_FRACTION_FOR_ETA = 0.05
# The least width next to a label.
MIN_DETAIL_WIDTH = 38
MIN_BAR_WIDTH, MAX_BAR_WIDTH = 6, 40


@dataclass(frozen=True)
class SweepProgress:
    """The states of many runs. `waiting` counts those that are neither running nor ended."""

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
    """The configuration of the lowest loss so far, over its seeds, among those of equal data and budget.

    Attributes:
        loss: bits per byte, or nats per token or image where the bytes are unknown, as `unit` says.
        dense: the loss of the best dense model of the same data and budget; None if there is none.
    """

    label: str
    loss: Estimate
    unit: str
    seeds: int
    load: float | None
    dead: float | None
    dense: float | None
    is_dense: bool


def best_so_far(done: Sequence[RunStatus], labels: Mapping[Path, str]) -> list[BestSoFar]:
    """Returns the best of each comparable group of runs, as in the report; empty before the first result."""
    from moe_cli.report.load import make_row
    from moe_cli.report.run_row import comparison_key

    groups: dict[Any, dict[str, list[RunStatus]]] = {}
    for each in done:
        if _loss(each) is not None:
            group = groups.setdefault(comparison_key(make_row(each.run, each.run.config_dict(), each.results, {})), {})
            group.setdefault(_configuration(each.run), []).append(each)
    return [_best(list(group.values()), labels) for group in groups.values()]


def _best(configurations: Sequence[Sequence[RunStatus]], labels: Mapping[Path, str]) -> BestSoFar:
    means = [mean_and_interval([_loss(each) or 0.0 for each in group]) for group in configurations]
    place = min(range(len(means)), key=lambda place: means[place].mean)
    best, first = configurations[place], configurations[place][0]
    dense = [
        mean.mean for mean, group in zip(means, configurations, strict=True) if group[0].results.get("expert") == 1
    ]
    return BestSoFar(
        _without_seed(labels.get(first.run.path, first.run.id)),
        means[place],
        f"nats/{_target(first.run)}" if first.val_bpb is None else "bits/byte",
        len(best),
        _mean([each.max_violation for each in best]),
        _mean([each.dead_experts for each in best]),
        min(dense, default=None),
        first.results.get("expert") == 1,
    )


def _loss(each: RunStatus) -> float | None:
    return each.val_loss if each.val_bpb is None else each.val_bpb


@cache
def _target(run: Run) -> str:
    """Returns the unit of a run's loss, read once."""
    return loss_unit(run.config_dict())


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


def eta_seconds(standing: SweepProgress, now: float) -> float | None:
    """Estimates the remaining time with as many parallel runs as now, as long as earlier ones; None means unknown."""
    took = [each.last_heartbeat - each.started for each in standing.done if 0 < each.started < each.last_heartbeat]
    whole = {
        each.run: (now - each.started) / each.progress
        for each in standing.running
        if each.started and each.progress > MIN_FRACTION_FOR_ETA
    }
    usual = _mean(took) or _mean(list(whole.values()))
    if usual is None or not standing.running:
        return None
    rest = sum(whole.get(each.run, usual) * (1 - each.progress) for each in standing.running)
    return (rest + usual * standing.waiting) / len(standing.running)


def panel(standing: SweepProgress, labels: Mapping[Path, str], width: int, height: int, now: float) -> Group:
    """Returns at most `height` lines of `width`: counts and bar, running runs, the best so far, and failures."""
    found = best_so_far(standing.done, labels)
    best = found[: max(MIN_LINES, height // 8)]
    failed = list(standing.failed)[-max(MIN_LINES, height // 8) :]
    room = max(1, height - len(failed) - max(1, len(best)) - (len(found) > len(best)) - 5)
    running = list(standing.running)[:room]
    names = [labels.get(each.run.path, each.run.id) for each in (*running, *failed)] + [each.label for each in best]
    size = min(max(map(len, names), default=0), max(16, width - MIN_DETAIL_WIDTH))
    lines: list[Any] = [_head(standing, width, now)]
    lines += _running_lines(running, labels, size, width, now)
    if len(standing.running) > room:
        lines.append(Text(f"           and {len(standing.running) - room} more running", "dim"))
    lines += _best_lines(best, size, width)
    if len(found) > len(best):
        lines.append(
            Text(
                f"           and {len(found) - len(best)} more budgets or data sets: moe report "
                f"{sanitise(standing.done[0].run.sweep)}",
                "dim",
                no_wrap=True,
                overflow="ellipsis",
            )
        )
    lines += _failed_lines(failed, labels, size, width)
    if len(standing.failed) > len(failed):
        lines.append(
            Text(
                f"           and {len(standing.failed) - len(failed)} more failed: moe runs ls "
                f"{sanitise(failed[0].run.sweep)} --status failed",
                "dim",
                no_wrap=True,
                overflow="ellipsis",
            )
        )
    return Group(*lines)


def _head(standing: SweepProgress, width: int, now: float) -> Table:
    ended, left = len(standing.done) + len(standing.failed) + standing.pruned, eta_seconds(standing, now)
    counts = {
        "done": len(standing.done),
        "running": len(standing.running),
        "failed": len(standing.failed),
        "pruned": standing.pruned,
        "waiting": standing.waiting,
    }
    styles = {"failed": "red", "waiting": "dim"}
    texts = {
        name: Text(f"{number} {name}", styles.get(name, ""))
        for name, number in counts.items()
        if number or name in ("done", "running")
    }
    if left is not None:
        texts["left"] = Text(f"{duration(left)} left")
    share = (ended + sum(each.progress for each in standing.running)) / max(1, standing.total)
    return bar_line(
        f" {ended}/{standing.total}", share, texts, ("waiting", "pruned", "running", "done", "failed"), width
    )


def bar_line(first: str, share: float, texts: Mapping[str, Text], leaving: Sequence[str], width: int) -> Table:
    """Returns a bar between its label and some texts.

    On a narrow terminal, texts are dropped in order before the bar.
    """
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
    texts = [labels.get(each.run.path, each.run.id) for each in running]
    loads = [each.max_violation for each in running]
    return table_lines(
        [
            _row_label("running", len(running)),
            _labels(texts, size),
            TextColumn("", [_step(each) for each in running]),
            TextColumn(
                "", ["" if each.val_loss is None else f"val {each.val_loss:z.3f}" for each in running], align_left=True
            ),
            TextColumn(
                "",
                [
                    "" if each.tokens_per_second is None else f"{count(each.tokens_per_second)} tok/s"
                    for each in running
                ],
                drop_order=2,
            ),
            TextColumn("", [_load(load) for load in loads], drop_order=1, styles=[_load_style(load) for load in loads]),
            TextColumn(
                "",
                [_dead(each.dead_experts) for each in running],
                drop_order=3,
                styles=["yellow" if each.dead_experts else "" for each in running],
            ),
            TextColumn(
                "",
                ["" if each.train_loss is None else f"train {each.train_loss:z.3f}" for each in running],
                drop_order=5,
            ),
            TextColumn("", [_left_of(each, now) for each in running], drop_order=4),
        ],
        width,
        header=False,
    )


def _step(each: RunStatus) -> str:
    if not each.step:
        return "starting"
    if each.progress == 1:
        return "evaluating"
    return f"step {each.step:,}" + (f"/{each.steps:,}" if each.steps else "")


def _left_of(each: RunStatus, now: float) -> str:
    if not MIN_FRACTION_FOR_ETA < each.progress < 1 or not each.started:
        return ""
    return duration((now - each.started) / each.progress * (1 - each.progress)) + " left"


def _load(load: float | None) -> str:
    return "" if load is None else f"MaxVio {percent(load, signed=True)}"


def _load_style(load: float | None) -> str:
    return "" if load is None else "red" if load > 2 else "yellow" if load > 1 else ""


def _dead(share: float | None) -> str:
    return "" if share is None else f"dead {percent(share)}"


def _best_lines(best: Sequence[BestSoFar], size: int, width: int) -> list[Text]:
    """Returns a line for each budget and data set."""
    if not best:
        return []
    losses = [f"{each.loss.mean:z.3f}{_spread(each.loss)} {each.unit}" for each in best]
    dense = ["is dense" if each.is_dense else "" if each.dense is None else f"dense {each.dense:z.3f}" for each in best]
    return table_lines(
        [
            _row_label("best", len(best)),
            _labels([each.label for each in best], size),
            TextColumn("", losses, styles=["green"] * len(best)),
            TextColumn("", dense, align_left=True, drop_order=1),
            TextColumn(
                "", [_load(each.load) for each in best], drop_order=2, styles=[_load_style(each.load) for each in best]
            ),
            TextColumn(
                "",
                [_dead(each.dead) for each in best],
                drop_order=3,
                styles=["yellow" if each.dead else "" for each in best],
            ),
            TextColumn("", [f"{each.seeds} seeds" if each.seeds > 1 else "" for each in best], drop_order=4),
        ],
        width,
        header=False,
    )


def _spread(loss: Estimate) -> str:
    return "" if loss.half_width is None else f" +- {loss.half_width:z.3f}"


def _failed_lines(failed: Sequence[RunStatus], labels: Mapping[Path, str], size: int, width: int) -> list[Text]:
    if not failed:
        return []
    texts = [labels.get(each.run.path, each.run.id) for each in failed]
    reasons = [failure_reason(each) for each in failed]
    return table_lines(
        [
            _row_label("failed", len(failed)),
            _labels(texts, size),
            TextColumn("", reasons, align_left=True, min_width=10, styles=["red"] * len(failed)),
        ],
        width,
        header=False,
    )


def failure_reason(each: RunStatus) -> str:
    """Returns why it ended, on one line."""
    return sanitise((each.reason or "no reason is known").strip().split("\n")[0])


def finished_line(each: RunStatus, label: str) -> Text:
    """Returns a run that is done or failed, on one line."""
    if each.status == COMPLETED:
        result = "-" if each.val_loss is None else format_loss(each.val_bpb, each.val_loss, _target(each.run))
        speed = "-" if each.tokens_per_second is None else count(each.tokens_per_second)
        return Text.assemble(("done", "green"), f"    {sanitise(label)}   {result}   {speed} tok/s")
    name, style = ("failed", "red") if each.status == FAILED else ("stopped", "yellow")
    return Text.assemble((name, style), " " * (8 - len(name)), f"{sanitise(label)}   {failure_reason(each)}")


class LivePanel:
    """A panel that is redrawn on a terminal; otherwise nothing but the lines printed."""

    def __init__(self, console: Console, labels: Mapping[Path, str]) -> None:
        self.console = console
        self.labels = dict(labels)
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._drawn = 0.0

    def __enter__(self) -> "LivePanel":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._live.stop()

    def label(self, run: Run) -> str:
        return self.labels.get(run.path, run.id)

    def print(self, line: Text) -> None:
        self.console.print(line, highlight=False, soft_wrap=True)

    def due(self) -> bool:
        """Returns whether it is time to redraw."""
        return self._live is not None and time.monotonic() - self._drawn >= REDRAW_SECONDS

    def draw(self, content: Any) -> None:
        if self._live:
            self._drawn = time.monotonic()
            self._live.update(content, refresh=True)

    def show(self, standing: SweepProgress) -> None:
        self.draw(panel(standing, self.labels, self.console.width, self.console.height, time.time()))


class SweepDisplay:
    """The live panel of a sweep, fed by the scheduler, and a line for each run that ends.

    Args:
        labels: the runs of the sweep with their labels.
        todo: those that are to be carried out.
    """

    def __init__(self, console: Console, labels: Mapping[Run, str], todo: Sequence[Run]) -> None:
        self.board = LivePanel(console, {run.path: label for run, label in labels.items()})
        self.runs = [*labels]
        self._todo = {run.path for run in todo}
        self._before: dict[Path, RunStatus] = {}
        self._ended: dict[Path, RunStatus] = {}
        self._watcher = StatusCache()

    def __enter__(self) -> "SweepDisplay":
        self.board.__enter__()
        self._before = {run.path: read_status(run) for run in self.runs if run.path not in self._todo}
        return self

    def __exit__(self, *exception: object) -> None:
        self.board.__exit__(*exception)

    def __call__(self, progress: "Progress") -> None:
        changed = False
        for run in (*progress.finished, *progress.failed):
            before = self._ended.get(run.path)
            if before is None or (before.status != COMPLETED and run in progress.finished):
                self._ended[run.path] = self._watcher.get(run)
                self.board.print(finished_line(self._ended[run.path], self.board.label(run)))
                changed = True
        if changed or self.board.due():
            self.board.show(self._standing(progress))

    def _standing(self, progress: "Progress") -> SweepProgress:
        running = {run.path for run in progress.running}
        ended = {path: each for path, each in {**self._before, **self._ended}.items() if path not in running}
        pruned = {path for path, each in ended.items() if each.status == PRUNED} | {run.path for run in progress.pruned}
        return SweepProgress(
            done=[each for each in ended.values() if each.status == COMPLETED],
            running=[self._watcher.get(run) for run in progress.running],
            failed=[each for path, each in ended.items() if each.status != COMPLETED and path not in pruned],
            waiting=progress.waiting,
            pruned=len(pruned),
        )
