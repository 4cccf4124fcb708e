"""Options and arguments that several commands share, and how they print."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moe_cli.cli.echo import echo, echo_data, echo_wrapped
from moe_cli.config.bounds import JOBS, SEEDS
from moe_cli.formatting import format_bytes, is_utf8, sanitise

if TYPE_CHECKING:
    from moe_cli.runs.folder import Run

# Headings of options in the help of commands.
FOLDERS, CONFIGURATIONS, EXECUTION, SEARCH = "Folders", "Configurations", "Execution", "Search"
EXISTING_RUNS, ROWS_AND_COLUMNS, OUTPUT, SAMPLING = "Runs that exist", "Rows and columns", "Output", "Sampling"
# The last line of a command that was stopped.
STOPPED = "stopped. The same command continues, each run from its last checkpoint if it has one."


def option(panel: str, *names: str, metavar: str | None = None, **others: Any) -> Any:
    """Returns an option under a heading. Its default is shown only if `show_default` is given."""
    return typer.Option(*names, rich_help_panel=panel, metavar=metavar, **{"show_default": False, **others})


Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="SETTING=VALUE", help="Settings, such as expert=8 k=2. List them: moe config"),
]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run id, its beginning, a folder, or 'latest'.")]
Checkpoint = Annotated[str, typer.Option(metavar="WHICH", help="latest, best or a step.")]
Outputs = Annotated[
    Path | None,
    option(FOLDERS, metavar="DIR", help="Folder of runs [default: $MOE_OUTPUTS, else ./outputs]."),
]
ConfigDir = Annotated[
    Path | None,
    option(
        FOLDERS, metavar="DIR", help="Your conf/ folder, searched before the packaged one; none: ignore ./conf too."
    ),
]


def _use_plugins(paths: list[Path] | None) -> list[Path] | None:
    """Makes files of --plugin known, with a note: they are programs, which run when the command needs a plug-in."""
    if paths:
        from moe_cli.plugins import use_files

        use_files(paths)
        print_notes((f"--plugin lets this command run the code of {' and '.join(str(path) for path in paths)}.",))
    return paths


PluginFiles = Annotated[
    list[Path] | None,
    option(
        FOLDERS,
        "--plugin",
        metavar="FILE.py",
        callback=_use_plugins,
        help="A Python file with a router or another plug-in of yours; its code is run. Repeatable.",
    ),
]
ForceMemory = Annotated[
    bool, typer.Option("--force-memory", help="Start even if far more memory is needed than available.")
]
Sweeps = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SWEEP",
        help="Sweeps, runs, beginnings of ids, patterns, folders or tables (.csv, .tsv, .jsonl). None: all runs.",
    ),
]
Where = Annotated[
    str | None,
    option(
        ROWS_AND_COLUMNS,
        metavar="CONDITION",
        help="Take only runs and rows for which this holds: 'expert >= 8 and router == \"topk\"'.",
    ),
]
Baseline = Annotated[
    str | None,
    option(
        ROWS_AND_COLUMNS,
        metavar="SETTINGS",
        help="Take differences to the configurations with these settings: balance=none.",
    ),
]
PRICE = "Price tag"
LossLaw = Annotated[
    str | None,
    option(
        PRICE,
        metavar="L_INF,EXPONENT",
        help="Compute multipliers by a known law of the baseline: irreducible loss and exponent, as 1.6,0.0941.",
    ),
]
Machine = Annotated[
    list[Path] | None,
    option(
        PRICE,
        "--machine",
        metavar="FILE",
        help="Take relative speeds from another machine: its 'moe bench optimizer --json'. Repeatable.",
    ),
]
Seeds = Annotated[int | None, option(CONFIGURATIONS, min=1, max=SEEDS, help="Seeds 0 to N-1 for every configuration.")]
Jobs = Annotated[int | None, option(EXECUTION, "-j", "--jobs", min=1, max=JOBS, help="Runs at a time.")]
WherePoints = Annotated[
    list[str] | None,
    option(
        CONFIGURATIONS,
        metavar="CONDITION",
        help="Only points that meet this condition, such as 'k <= expert'. May be repeated.",
    ),
]
BaselineBudgets = Annotated[
    str | None,
    option(
        CONFIGURATIONS,
        metavar="A,B",
        help="Train the baseline at these multiples of the budget too, for the price tag: 1.5,2.",
    ),
]
RetryFailed = Annotated[bool, option(EXISTING_RUNS, "--retry-failed", help="Run failed runs again.")]
ExecutorName = Annotated[
    str | None, option(EXECUTION, metavar="NAME", help="Executor: local, ray or slurm.  [default: local]")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


@contextmanager
def interruptible(print_stopped: Callable[[], None]) -> Iterator[None]:
    """Ends the command with exit code 130 when a signal stops it, after `print_stopped`."""
    from moe_cli.training.signals import interrupt_on_signals

    with interrupt_on_signals():
        try:
            yield
        except KeyboardInterrupt:
            print_stopped()
            raise typer.Exit(130) from None


def numbers(text: str) -> list[float | str]:
    """Returns the parts of A,B,... as numbers; a part that is none stays a text, for the error on it."""
    parts: list[float | str] = []
    for part in text.split(","):
        try:
            parts.append(float(part))
        except ValueError:
            parts.append(part)
    return parts


def check_text(name: str, text: str) -> None:
    """Raises ConfigError for a text of the user that is empty or not UTF-8."""
    from moe_cli.errors import ConfigError

    if not text:
        raise ConfigError(f"{name} is empty: give at least one character.")
    if not is_utf8(text):
        raise ConfigError(f"{name} is not UTF-8 text.")


def print_json(content: Any) -> None:
    """Prints one JSON document on standard output."""
    import json

    from moe_cli.files.writing import json_safe

    echo_data(json.dumps(json_safe(content), indent=2))


def print_written(files: Sequence[Path]) -> None:
    """Prints the path and size of each file."""
    for path in (file.expanduser() for file in files):
        echo(f"{sanitise(str(path))}   {format_bytes(path.stat().st_size)}")


def print_notes(notes: tuple[str, ...]) -> None:
    """Prints notes on standard error, so that they never mix with results."""
    for note in notes:
        echo_wrapped(f"note: {sanitise(note)}", fg="yellow")


def trained_run(outputs: Path, name: str) -> "Run":
    """Returns the run that a name denotes; for `latest`, the newest run with a checkpoint.

    Raises:
        RunNotFound: the name denotes no run, or several.
    """
    from moe_cli.runs.lookup import find_run, list_runs_by_age

    found = find_run(outputs, name)
    if name != "latest" or found.checkpoints():
        return found
    run = next((run for run in reversed(list_runs_by_age(outputs)) if run.checkpoints()), None)
    if run is None:
        return found
    print_notes((f"{found.id}, the newest run, has no checkpoint. {run.id} is used.",))
    return run
