"""Output of moe runs restore and clean: the trash, and what can be deleted."""

import re
import time
from collections.abc import Sequence
from typing import Any

from moe_cli.cli.console import Terminal, print_lines
from moe_cli.cli.terminal import echo
from moe_cli.errors import ConfigError, MoeError
from moe_cli.formatting import age, count
from moe_cli.report.render.terminal import TextColumn, table_lines
from moe_cli.runs.cleanup import DAY, Reclaimable, delete_reclaimable, size_of
from moe_cli.runs.trash import TrashedRun

KINDS = {
    "trash": ("the trash", ""),
    "unfinished": ("half-made folders", ""),
    "checkpoints": ("older checkpoints of complete runs", "--checkpoints"),
    "cache": ("cached data that no run uses", "--cache"),
}
UNITS = {"d": DAY, "h": DAY / 24, "m": DAY / 1440}


def parse_age(text: str) -> float:
    """Seconds in 30d, 12h or 5m. Raises ConfigError for anything else."""
    match = re.fullmatch(r"(\d{1,6})([dhm])", text.strip())
    if not match:
        raise ConfigError(f"--older-than {text}: give days or hours, such as 30d or 12h; 0d means all.")
    return int(match[1]) * UNITS[match[2]]


def trash_records(trash: Sequence[TrashedRun]) -> list[dict[str, Any]]:
    return [
        {
            "run": each.id,
            "from": each.origin or None,
            "removed": each.removed,
            "path": str(each.path),
            "bytes": size_of(each.path),
        }
        for each in trash
    ]


def print_trash(trash: Sequence[TrashedRun]) -> None:
    """Prints a line for each removed run, the latest last."""
    console = Terminal()
    if not trash:
        echo("the trash is empty.")
        return
    now = time.time()
    columns = [
        TextColumn("removed", [f"{age(now - each.removed)} ago" for each in trash]),
        TextColumn("from", [each.origin or "?" for each in trash], align_left=True, min_width=20),
        TextColumn("size", [f"{count(size_of(each.path))}B" for each in trash]),
        TextColumn("name in the trash", [each.path.name for each in trash], align_left=True, drop_order=1),
    ]
    print_lines(console, table_lines(columns, console.width if console.is_terminal else None))
    if console.is_terminal:
        echo("Bring one back: moe runs restore RUN      Free all: moe runs clean --older-than 0d --yes")


def delete_all(waste: Sequence[Reclaimable]) -> list[Reclaimable]:
    """Deletes the items, and returns those that were not in use. Raises MoeError after all others were deleted."""
    freed, errors = [], []
    for each in waste:
        try:
            if delete_reclaimable(each) or not each.path.exists():
                freed.append(each)
        except MoeError as error:
            errors.append(error)
    if errors:
        raise MoeError(f"{errors[0]}\n{len(errors)} of {len(waste)} could not be freed.")
    return freed


def print_reclaimable(
    waste: Sequence[Reclaimable], chosen: Sequence[Reclaimable], freed: Sequence[Reclaimable] | None
) -> None:
    """Prints by kind what can be deleted, or what was deleted."""
    console = Terminal()
    if freed is not None:
        total = sum(each.num_bytes for each in freed)
        echo(f"freed {count(total)}B: " + (_counted(freed) if freed else "there was nothing to free") + ".")
        if len(freed) < len(chosen):
            echo(f"{len(chosen) - len(freed)} left alone: in use.")
        return
    if not waste:
        echo("nothing can be freed.")
        return
    kinds = [kind for kind in KINDS if any(each.kind == kind for each in waste)]
    sums = [sum(each.num_bytes for each in waste if each.kind == kind) for kind in kinds]
    columns = [
        TextColumn("what", [KINDS[kind][0] for kind in kinds], align_left=True, min_width=16),
        TextColumn("number", [str(sum(each.kind == kind for each in waste)) for kind in kinds]),
        TextColumn("size", [f"{count(size)}B" for size in sums]),
        TextColumn("with", [KINDS[kind][1] or "-" for kind in kinds], align_left=True),
    ]
    print_lines(console, table_lines(columns, console.width if console.is_terminal else None))
    total = sum(each.num_bytes for each in chosen)
    if chosen:
        echo(f"nothing was deleted. With --yes, permanently: {_counted(chosen)}, {count(total)}B.")
    else:
        echo("nothing was freed. Add the option of what you do not need, and --yes.")


def _counted(waste: Sequence[Reclaimable]) -> str:
    kinds = [kind for kind in KINDS if any(each.kind == kind for each in waste)]
    return ", ".join(f"{KINDS[kind][0]} ({sum(each.kind == kind for each in waste)})" for kind in kinds)
