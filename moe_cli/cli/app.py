"""The `moe` command: its sub-commands, and errors turned into one to three lines and an exit code.

Exit codes: 0 done, 1 the work failed, 2 wrong request, 3 some runs of a sweep failed or a search has no result, 130 interrupted.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from moe_cli import __version__
from moe_cli.cli.bench import bench
from moe_cli.cli.config import config
from moe_cli.cli.evaluate import evaluate
from moe_cli.cli.explain import explain
from moe_cli.cli.plan import plan
from moe_cli.cli.report import report
from moe_cli.cli.runs import runs
from moe_cli.cli.sample import sample
from moe_cli.cli.sweep import sweep
from moe_cli.cli.terminal import echo, end_unread, flush_streams, prepare_streams, shown
from moe_cli.cli.train import train
from moe_cli.errors import LostProcess, MoeError, TrainingError
from moe_cli.launch import by_us, launched, leave, rank
from moe_cli.process import spin_briefly


class Group(TyperGroup):
    """Prints what went wrong in the user's words. Here and not in main(), so that tests of the app see it too."""

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        with _in_the_users_words():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        with _in_the_users_words():
            return super().invoke(ctx)


@contextmanager
def _in_the_users_words() -> Iterator[None]:
    try:
        yield
    except MoeError as error:
        if not _told_elsewhere(error):
            echo(f"error{f' of process {rank()}' if rank() else ''}: ", fg="red", err=True, nl=False)
            echo(str(error), err=True)
        raise typer.Exit(1 if isinstance(error, TrainingError) else 2) from None
    except KeyboardInterrupt:
        echo("interrupted.", err=True)
        raise typer.Exit(130) from None
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        end_unread(0)
    except OSError as error:
        echo(f"error: {error.strerror or error}" + (f": {error.filename}" if error.filename else ""), err=True)
        raise typer.Exit(1) from None
    except Exception as error:
        if isinstance(message := getattr(error, "message", None), str) and hasattr(error, "format_message"):
            error.message = shown(message)  # type: ignore[attr-defined]  # a usage error, with a word as it was typed
        raise


def _told_elsewhere(error: MoeError) -> bool:
    """Whether another process of this training says it: what all meet the first one says; it ends the others then."""
    if rank():
        time.sleep(2)
    return not str(error) or (isinstance(error, LostProcess) and (by_us() or rank() > 0))


app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Experiments with sparse mixtures of experts: train, sweep, report.",
)


def _version(value: bool) -> None:
    if value:
        echo(f"moe {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Experiments with sparse mixtures of experts: train, sweep, report."""


for command in (train, evaluate, sample, explain, sweep, report, plan, config):
    app.command("eval" if command is evaluate else command.__name__)(command)
app.add_typer(runs, name="runs")
app.add_typer(bench, name="bench")


def main() -> None:
    spin_briefly()
    prepare_streams()
    try:
        app()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        code = code or flush_streams()
        if launched():
            leave(code)
        raise SystemExit(code) from None
