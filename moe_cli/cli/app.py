"""The `moe` command: its sub-commands, and errors turned into one to three lines and an exit code.

Exit codes: 0 done, 1 the work failed, 2 wrong request, 3 some runs of a sweep failed or a search has no result, 130 interrupted.
"""

import errno
import os
import time
from contextlib import suppress
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from moe_cli import __version__
from moe_cli.cli.bench import bench
from moe_cli.cli.config import config
from moe_cli.cli.evaluate import evaluate
from moe_cli.cli.explain import explain
from moe_cli.cli.plan import plan
from moe_cli.cli.recommend import recommend
from moe_cli.cli.report import report
from moe_cli.cli.runs.app import runs
from moe_cli.cli.sample import sample
from moe_cli.cli.scaling import scaling
from moe_cli.cli.sweep import sweep
from moe_cli.cli.terminal import echo, end_unread, flush_streams, prepare_streams
from moe_cli.cli.train import train
from moe_cli.config.bounds import shortened
from moe_cli.distributed.launch import by_us, launched, leave, rank
from moe_cli.errors import ConfigError, LostProcess, MoeError, TrainingError
from moe_cli.execution.runtime_tuning import limit_thread_spinning
from moe_cli.files.reading import forget_notes, noted
from moe_cli.files.writing import is_full, way_on
from moe_cli.formatting import printable

# Files that a command could not use are named up to so many.
SHOWN_UNREADABLE = 12

# Of typer, which names it nowhere: what is wrong with the options of a command.
UsageError: type[Exception] = typer.BadParameter.__bases__[0]
# Errors of the system that another path mends: it is none that can be read or written.
ASKED_FOR = (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.ENOENT,
             errno.EEXIST, errno.ELOOP)  # fmt: skip


class Group(TyperGroup):
    """Prints what went wrong in the user's words. Here and not in main(), so that tests of the app see it too."""

    def make_context(self, *words: Any, **options: Any) -> Any:
        try:
            return super().make_context(*words, **options)
        except UsageError as error:
            _print_usage(error)
            raise typer.Exit(2) from None
        except OSError as error:  # of the help
            raise typer.Exit(_print_system(error)) from None

    def invoke(self, ctx: Any) -> Any:
        forget_notes()
        try:
            return self._invoke(ctx)
        finally:
            _name_unreadable()

    def _invoke(self, ctx: Any) -> Any:
        try:
            _check_folder()
            return super().invoke(ctx)
        except UsageError as error:
            _print_usage(error)
            raise typer.Exit(2) from None
        except MoeError as error:
            if not _told_elsewhere(error):
                echo(f"error{f' of process {rank()}' if rank() else ''}: ", fg="red", err=True, nl=False)
                echo(str(error), err=True)
            raise typer.Exit(1 if isinstance(error, TrainingError) else 2) from None
        except KeyboardInterrupt:
            echo("interrupted.", err=True)
            raise typer.Exit(130) from None
        except OSError as error:
            raise typer.Exit(_print_system(error)) from None


def _print_system(error: OSError) -> int:
    """What the system says of a file, and the exit code; of a reader that has gone, such as `head`, nothing."""
    if isinstance(error, BrokenPipeError):
        end_unread(0)
    where = f": {printable(shortened(os.fsdecode(error.filename)))}" if error.filename else ""
    echo(f"error: {error.strerror or error}{where}", err=True)
    if is_full(error):
        echo(f"{way_on(error)}, then the same command.", err=True)
    return 2 if error.errno in ASKED_FOR else 1


def _print_usage(error: Any) -> None:
    """What is wrong with an option or an argument, and where the others stand; of a command without any, its help."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return
    message = " ".join(error.format_message().split())
    echo(f"error: {shortened(message, 400)}", err=True)
    command = "moe" if error.ctx is None else error.ctx.command_path.replace("python -m moe_cli", "moe")
    echo(f"See: {command} -h", err=True)


def _check_folder() -> None:
    """Raises ConfigError where the working directory is gone."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise ConfigError("the working directory was deleted. Go to one that exists: cd ~") from None


def _name_unreadable() -> None:
    """Names each file that the command met and could not use, on standard error."""
    lines = noted()
    more = [f"unreadable: {len(lines) - SHOWN_UNREADABLE:,} more files"] if len(lines) > SHOWN_UNREADABLE else []
    with suppress(BrokenPipeError, ValueError):  # there is no reader, or standard error is closed
        for line in lines[:SHOWN_UNREADABLE] + more:
            echo(line, fg="yellow", err=True)


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


for command in (train, evaluate, sample, explain, sweep, report, recommend, scaling, plan, config):
    app.command("eval" if command is evaluate else command.__name__)(command)
app.add_typer(runs, name="runs")
app.add_typer(bench, name="bench")


def main() -> None:
    limit_thread_spinning()
    prepare_streams()
    try:
        app()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        code = code or flush_streams()
        if launched():
            leave(code)
        raise SystemExit(code) from None
