"""Output of moe runs ledger: how often each validation set was compared on."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from moe_cli.cli.console import CommandConsole, print_lines, table_width
from moe_cli.cli.echo import echo
from moe_cli.formatting import sanitise
from moe_cli.report.ledger import ValidationUse, data_name
from moe_cli.report.render.terminal import TextColumn, table_lines


def ledger_records(uses: Sequence[ValidationUse]) -> list[dict[str, Any]]:
    """Returns a JSON object for each validation set."""
    return [{**asdict(use), "sweeps": list(use.sweeps)} for use in uses]


def print_ledger(uses: Sequence[ValidationUse]) -> None:
    """Prints a line for each validation set, the most used first."""
    console = CommandConsole()
    if not uses:
        echo("no verdicts were read yet. See: moe report SWEEP")
        return
    columns = [
        TextColumn("validation set of", [data_name(use) for use in uses], align_left=True),
        TextColumn("comparisons", [f"{use.comparisons:,}" for use in uses]),
        TextColumn("looks", [f"{use.looks:,}" for use in uses]),
        TextColumn("verdicts read", [f"{use.verdicts:,}" for use in uses]),
        TextColumn(
            "sweeps", [sanitise(", ".join(use.sweeps)) for use in uses], align_left=True, min_width=12, drop_order=1
        ),
    ]
    print_lines(console, table_lines(columns, table_width(console)))
