"""Options and arguments that several commands share, and how they print."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moe_cli.cli.terminal import echo, echo_data
from moe_cli.formatting import printable

if TYPE_CHECKING:
    pass

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


def print_json(content: Any) -> None:
    """One JSON document on standard output, for programs."""
    import json

    from moe_cli.files.writing import json_safe

    echo_data(json.dumps(json_safe(content), indent=2))


def print_notes(notes: tuple[str, ...]) -> None:
    """What was set aside, on standard error, so that it never mixes with results."""
    for note in notes:
        echo(f"note: {printable(note)}", fg="yellow", err=True)
