"""Output of moe runs restore and clean: the trash, and what can be deleted."""

import re
import time
from collections.abc import Sequence
from typing import Any

from moe_cli.cli.console import CommandConsole, print_lines, table_width
from moe_cli.cli.echo import echo
from moe_cli.errors import ConfigError, MoeError
from moe_cli.formatting import age, format_bytes
from moe_cli.report.render.terminal import TextColumn, table_lines
from moe_cli.runs.cleanup import DAY, Reclaimable, delete_reclaimable, size_of
from moe_cli.runs.trash import TrashedRun

KINDS = {
    "trash": ("the trash", ""),
    "unfinished": ("incomplete folders", ""),
    "checkpoints": ("older checkpoints of complete runs", "--checkpoints"),
    "cache": ("cached data that no run uses", "--cache"),
}
UNITS = {"d": DAY, "h": DAY / 24, "m": DAY / 1440}


def parse_age(text: str) -> float:
    """Parses 30d, 12h or 5m and returns seconds. Raises ConfigError for anything else."""
    match = re.fullmatch(r"(\d{1,6})([dhm])", text.strip())
    if not match:
        raise ConfigError(f"--older-than {text}: give days or hours, such as 30d or 12h; 0d means all.")
    return int(match[1]) * UNITS[match[2]]


def trash_records(trash: Sequence[TrashedRun]) -> list[dict[str, Any]]:
    return [
        {
            "run": run.id,
            "from": run.origin or None,
            "removed": run.removed,
            "path": str(run.path),
            "bytes": size_of(run.path),
        }
        for run in trash
    ]


def print_trash(trash: Sequence[TrashedRun]) -> None:
    """Prints a line for each removed run, the latest last."""
    console = CommandConsole()
    if not trash:
        echo("the trash is empty.")
        return
    now = time.time()
    columns = [
        TextColumn("removed", [f"{age(now - run.removed)} ago" for run in trash]),
        TextColumn("from", [run.origin or "?" for run in trash], align_left=True, min_width=20),
        TextColumn("size", [format_bytes(size_of(run.path)) for run in trash]),
        TextColumn("name in the trash", [run.path.name for run in trash], align_left=True, drop_order=1),
    ]
    print_lines(console, table_lines(columns, table_width(console)))
    if console.is_terminal:
        echo("Restore one: moe runs restore RUN      Delete all: moe runs clean --older-than 0d --yes")


def delete_all(waste: Sequence[Reclaimable]) -> list[Reclaimable]:
    """Deletes the items, and returns those that were not in use. Raises MoeError after all others were deleted."""
    freed, errors = [], []
    for item in waste:
        try:
            if delete_reclaimable(item) or not item.path.exists():
                freed.append(item)
        except MoeError as error:
            errors.append(error)
    if errors:
        raise MoeError(f"{errors[0]}\n{len(errors)} of {len(waste)} could not be deleted.")
    return freed


def print_reclaimable(
    waste: Sequence[Reclaimable], selected: Sequence[Reclaimable], freed: Sequence[Reclaimable] | None
) -> None:
    """Prints by kind what can be deleted, or what was deleted."""
    console = CommandConsole()
    if freed is not None:
        total = sum(item.num_bytes for item in freed)
        echo(f"deleted {format_bytes(total)}: " + (_counted(freed) if freed else "nothing to delete") + ".")
        if len(freed) < len(selected):
            echo(f"{len(selected) - len(freed)} not deleted: in use.")
        return
    if not waste:
        echo("nothing can be deleted.")
        return
    kinds = [kind for kind in KINDS if any(item.kind == kind for item in waste)]
    sums = [sum(item.num_bytes for item in waste if item.kind == kind) for kind in kinds]
    columns = [
        TextColumn("what", [KINDS[kind][0] for kind in kinds], align_left=True, min_width=16),
        TextColumn("number", [str(sum(item.kind == kind for item in waste)) for kind in kinds]),
        TextColumn("size", [format_bytes(size) for size in sums]),
        TextColumn("with", [KINDS[kind][1] or "-" for kind in kinds], align_left=True),
    ]
    print_lines(console, table_lines(columns, table_width(console)))
    total = sum(item.num_bytes for item in selected)
    if selected:
        echo(f"nothing was deleted. With --yes, permanently: {_counted(selected)}, {format_bytes(total)}.")
    else:
        echo("nothing was deleted. Add an option of the table, and --yes.")


def _counted(waste: Sequence[Reclaimable]) -> str:
    kinds = [kind for kind in KINDS if any(item.kind == kind for item in waste)]
    return ", ".join(f"{KINDS[kind][0]} ({sum(item.kind == kind for item in waste)})" for kind in kinds)
