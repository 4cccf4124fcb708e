"""Options and arguments that several commands share, and how they print."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moe_cli.numbers import printable

if TYPE_CHECKING:
    from rich.console import Console

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="SETTING=VALUE", help="Settings, such as expert=8 k=2. All of them: moe config"),
]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run id, its beginning, a folder, or 'latest'.")]
Checkpoint = Annotated[str, typer.Option(metavar="WHICH", help="latest, best or a step.")]
Outputs = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Where runs are kept [default: $MOE_OUTPUTS or ./outputs].", show_default=False),
]
ConfigDir = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Your own conf/ folder, looked up before the packaged one; none: not even ./conf.",
        show_default=False,
    ),
]
ForceMemory = Annotated[
    bool, typer.Option("--force-memory", help="Start even what needs far more memory than there is.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def text_width(console: "Console | None" = None) -> int:
    """Columns to write in: those of the terminal, or 120 where the output is piped and nobody says otherwise."""
    if console is None:
        from rich.console import Console

        console = Console()
    return console.width if console.is_terminal or os.environ.get("COLUMNS") else 120


def print_json(content: Any) -> None:
    """One JSON document on standard output, for programs."""
    import json

    from moe_cli.store import finite

    typer.echo(json.dumps(finite(content), indent=2))


def print_notes(notes: tuple[str, ...]) -> None:
    """What was set aside, on standard error, so that it never mixes with results."""
    for note in notes:
        typer.secho(f"note: {printable(note)}", fg="yellow", err=True)
