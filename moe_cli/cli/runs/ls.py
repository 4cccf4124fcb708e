"""Output of moe runs ls: a row per run, with the settings in which the runs differ."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from moe_cli.cli.console import CommandConsole, print_lines, table_width
from moe_cli.cli.runs.settings import DifferingSettings
from moe_cli.formatting import age, count, percent
from moe_cli.report.columns import heading_of
from moe_cli.report.render.terminal import TextColumn, hidden_headings, table_lines, wrap
from moe_cli.runs.status import RunStatus

STYLES = {"failed": "red", "interrupted": "yellow", "pending": "dim"}
# The order in which columns leave a narrow terminal, highest first. Settings leave last, from the right.
SETTINGS_ORDER, AGE_ORDER, OTHER_ORDER = 1, 90, 100


def status_record(status: RunStatus) -> dict[str, Any]:
    """Returns a run as a record of `moe runs ls --json`."""
    return {
        **status.record(),
        "val_bpb": status.val_bpb,
        "val_loss": status.val_loss,
        "tokens_per_second": status.tokens_per_second,
        "max_violation": status.max_violation,
        "dead_experts": status.dead_experts,
    }


def print_list(statuses: Sequence[RunStatus]) -> None:
    """Prints a table of runs. On a narrow terminal the least important columns are left out."""
    console, now = CommandConsole(), time.time()
    several_sweeps = len({status.run.sweep for status in statuses}) > 1

    def texts(write: Callable[[RunStatus], str]) -> list[str]:
        return [write(status) for status in statuses]

    def numbers(name: str, write: Callable[[float], str]) -> list[str]:
        values = [getattr(status, name) for status in statuses]
        return ["-" if value is None else write(value) for value in values]

    styles = [STYLES.get(status.status, "") for status in statuses]
    sweeps = texts(lambda status: status.run.sweep)
    reasons = texts(lambda status: (status.reason or "").split("\n")[0])
    tags = texts(lambda status: ",".join(status.tags))
    columns = [
        TextColumn("run", texts(lambda status: status.run.id), align_left=True),
        TextColumn("sweep", sweeps, 0 if several_sweeps else OTHER_ORDER, align_left=True, min_width=8),
        TextColumn("status", texts(lambda status: status.status), align_left=True, styles=styles),
        *_settings_columns(statuses),
        TextColumn("done", texts(lambda status: f"{100 * status.progress:.0f} %" if status.steps else "-")),
        TextColumn("bits/byte", numbers("val_bpb", "{:.3f}".format)),
        TextColumn("age", texts(lambda status: age(now - status.created) if status.created else "-"), AGE_ORDER),
        *([TextColumn("tags", tags, AGE_ORDER + 1, align_left=True, min_width=12)] if any(tags) else []),
        TextColumn("val loss", numbers("val_loss", "{:.3f}".format), OTHER_ORDER + 2),
        TextColumn("tok/s", numbers("tokens_per_second", count), OTHER_ORDER + 3),
        TextColumn("MaxVio", numbers("max_violation", lambda value: percent(value, signed=True)), OTHER_ORDER + 4),
        TextColumn("dead", numbers("dead_experts", percent), OTHER_ORDER + 5),
        TextColumn(
            "step", texts(lambda status: f"{status.step:,}" if status.steps or status.step else "-"), OTHER_ORDER + 6
        ),
        TextColumn("reason", reasons, OTHER_ORDER + 1, align_left=True, min_width=16),
    ]
    width = table_width(console)
    print_lines(console, table_lines(columns, width))
    if width is not None and (hidden := hidden_headings(columns, width)):
        print_lines(console, wrap(f"hidden columns: {', '.join(hidden)} (a wider terminal shows them)", width, "dim"))


def _settings_columns(statuses: Sequence[RunStatus]) -> list[TextColumn]:
    """Returns a column for each setting in which the runs differ, the most important first."""
    runs = [status.run for status in statuses]
    found = DifferingSettings(runs)
    return [
        TextColumn(heading_of(name), [found.text(run, name) for run in runs], SETTINGS_ORDER + index)
        for index, name in enumerate(found.names)
    ]
