"""Output of `moe train`: progress, redrawn on a terminal or plain lines when piped, and a summary."""

import math
import os
import shlex
import time
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from moe_cli.cli.progress import max_violation_style
from moe_cli.cli.train_preview import print_rows
from moe_cli.config.loggers import loggers_of
from moe_cli.files.reading import time_in
from moe_cli.formatting import bars, count, duration, format_bytes, or_dash, percent, plural
from moe_cli.metrics import format_references, format_task_metrics, target_name
from moe_cli.moe.max_violation import max_violation
from moe_cli.plugins import file_options
from moe_cli.runs.folder import Run
from moe_cli.training.evaluate import Evaluation
from moe_cli.training.state import StepReport

MAX_LAYER_BARS = 8


class TrainProgress:
    """Shows each step: a redrawn panel on a terminal, a line at each evaluation otherwise."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live = Live(console=console, refresh_per_second=8, transient=True) if console.is_terminal else None
        self._shown = 0.0
        self._printed: Evaluation | None = None
        self._started: tuple[float, float] | None = None

    def __enter__(self) -> "TrainProgress":
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, view: StepReport) -> None:
        now = time.monotonic()
        self._started = self._started or (now, view.progress)
        if self._live:
            if now - self._shown > 0.12:
                self._shown = now
                self._live.update(self._panel(view, now))
        elif view.val is not None and view.val is not self._printed:
            self._printed = view.val
            self.console.print(self._line(view, now), highlight=False, soft_wrap=True)

    def _left(self, view: StepReport, now: float) -> str:
        assert self._started is not None
        began, at = self._started
        done = view.progress - at
        return duration((now - began) * (1 - view.progress) / done) + " left" if done > 0 else ""

    def _line(self, view: StepReport, now: float) -> str:
        worst = max((max_violation(load.tolist()) for load in view.load), default=None)
        total = f"/{view.total_steps}" if view.total_steps else ""
        parts = [f"step {view.state.step}{total}", f"train {view.loss:z.3f}", _val(view.val)]
        parts += [f"{count(view.state.tokens / view.state.seconds)} tok/s"]
        if worst is not None:
            parts.append(f"MaxVio {percent(worst, signed=True)}")
        return "  ".join([*parts, self._left(view, now)])

    def _panel(self, view: StepReport, now: float) -> Group:
        head = Table.grid(padding=(0, 2))
        total = f"/{view.total_steps}" if view.total_steps else ""
        width = max(8, min(30, self.console.width - 55))
        head.add_row(
            f"step {view.state.step:>4}{total}",
            ProgressBar(total=1, completed=view.progress, width=width),
            f"{100 * view.progress:3.0f} %",
            f"{count(view.state.tokens / view.state.seconds)} tok/s",
            self._left(view, now),
        )
        aux = "".join(f"   {name} {loss:z.3f}" for name, loss in view.aux_losses.items())
        rows: list[Any] = [head, Text(f"  train {view.loss:z.3f}   {_val(view.val)}{aux}   lr x{view.lr_factor:z.2f}")]
        if view.load:
            rows.append(self._load(view))
        return Group(*rows)

    def _load(self, view: StepReport) -> Text:
        worst = max(max_violation(load.tolist()) for load in view.load)
        shown = view.load[:MAX_LAYER_BARS]
        room = max(4, (self.console.width - 24) // len(shown) - 5)
        layers = "  ".join(f"L{i + 1} {bars(load.tolist(), min(room, 32))}" for i, load in enumerate(shown))
        violation = percent(worst, signed=True), max_violation_style(worst)
        return Text.assemble("  load  ", layers, "  MaxVio ", violation, no_wrap=True, overflow="crop")


def _val(val: Evaluation | None) -> str:
    if val is None:
        return "val -"
    pieces = format_task_metrics(val.measures)
    if val.bits_per_byte is not None or not pieces:
        pieces.insert(0, f"{or_dash(val.bits_per_byte)} bits/byte")
    return f"val {val.loss:z.3f} ({', '.join(pieces)})"


def _size(summary: dict[str, Any], unit: str) -> str:
    """Returns the size of the validation split: bytes, or where they are unknown its tokens or images."""
    if summary["val_bytes"] is None:
        return f"{count(summary['val_tokens'])} {unit}s"
    return format_bytes(summary["val_bytes"])


def _whole_time(run: Run) -> str:
    """Returns the time from the start to the end, evaluations included; nothing for a run of several starts."""
    status = run.status()
    started, ended = time_in(status.get("started")), time_in(status.get("heartbeat"))
    if started is None or ended is None or ended < started or status.get("starts") != 1:
        return ""
    return f" in {duration(ended - started)}"


def print_summary(console: Console, run: Run) -> None:
    """Prints the results, the reference lines, and commands to try next."""
    from moe_cli.report.baseline import dense_baseline_command
    from moe_cli.report.render.line_wrap import pack

    summary = run.summary()
    assert summary is not None
    pieces = [
        f"done{_whole_time(run)}",
        f"training {duration(summary['seconds'])}",
        plural(summary["steps"], "step"),
        f"{count(summary['tokens'])} tokens",
        f"{count(summary['tokens_per_second'])} tok/s",
        *([f"back end {summary['dispatch']}"] if summary.get("dispatch") else []),
    ]
    text = "\n".join(pack(pieces, console.width, indent="  ")) if console.is_terminal else "   ".join(pieces)
    console.print(f"[green]done[/]{text.removeprefix('done')}", highlight=False, soft_wrap=True)
    unit = target_name(run.config_dict())
    found = [f"{summary['val_loss']:z.3f} nats/{unit}", *format_task_metrics(summary, "val_")]
    if summary["val_bpb"] is not None or len(found) == 1:
        found.insert(1, f"{or_dash(summary['val_bpb'])} bits/byte")
        perplexity = summary["val_perplexity"] or math.inf  # too large for a float: written as null
        found.append(f"perplexity {perplexity:z.2f}")
    rows = [("validation", "   ".join([*found, f"(whole split, {_size(summary, unit)})"]))]
    if summary["bigram_bpb"] is not None and summary["val_bpb"] is not None:
        rows.append(
            ("reference", f"bigram {summary['bigram_bpb']:z.3f}   gzip -9 {summary['gzip_bpb']:z.3f} bits/byte")
        )
    if known_results := format_references(summary):
        rows.append(("reference", "   ".join(known_results)))
    if summary["max_violation"] is not None:
        rows.append(
            (
                "experts",
                f"MaxVio {percent(summary['max_violation'], signed=True)}   entropy {summary['routing_entropy']:z.2f}  "
                f" dropped {percent(summary['dropped_fraction'])}   dead {percent(summary['dead_experts'])}",
            )
        )
    if summary["capacity_val_loss"] is not None:
        rows.append(
            (
                "capacity",
                f"validation with capacity {summary['capacity']:g}, drop={summary['capacity_val_drop']}: "
                f"{summary['capacity_val_loss']:z.3f} nats/{unit}",
            )
        )
    events = [
        (summary.get("skipped_steps"), "steps skipped"),
        (summary.get("rewinds"), "rewinds"),
        (summary.get("loss_spikes"), "loss spikes"),
    ]
    if any(number for number, _ in events):
        rows.append(("events", "   ".join(f"{number} {name}" for number, name in events if number)))
    prompt = ' --prompt "def "' if run.config().data.name in ("python", "torch_sources", "corpora_mix") else ""
    samples = [] if summary["val_bytes"] is None else [f"moe sample latest{prompt}"]
    commands = [*(line + file_options() for line in (*samples, dense_baseline_command(run.config()))), "moe report"]
    if "tensorboard" in loggers_of(run.config().log):
        commands.append(f"tensorboard --logdir {shlex.quote(os.path.relpath(run.path.parent.parent))}")
    rows += [("" if number else "next", line) for number, line in enumerate(commands)]
    print_rows(console, rows)
