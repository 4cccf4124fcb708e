"""The `moe` command: its sub-commands, and errors turned into one to three lines and an exit code.

Exit codes: 0 done, 1 the work failed, 2 wrong request, 3 some runs of a sweep failed or a search has no result,
130 interrupted.
"""

import errno
import os
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Annotated, Any

import typer

from moe_cli import __version__
from moe_cli.cli.bench import bench
from moe_cli.cli.config import config
from moe_cli.cli.decide import decide
from moe_cli.cli.doctor import doctor
from moe_cli.cli.echo import echo, echo_error, end_unread, flush_streams, prepare_streams
from moe_cli.cli.evaluate import evaluate
from moe_cli.cli.explain import explain
from moe_cli.cli.export import export
from moe_cli.cli.help import HelpCommand, HelpGroup
from moe_cli.cli.import_model import import_model
from moe_cli.cli.plan import plan
from moe_cli.cli.recommend import recommend
from moe_cli.cli.report import report
from moe_cli.cli.reproduce import reproduce
from moe_cli.cli.runs.app import runs
from moe_cli.cli.sample import sample
from moe_cli.cli.scaling import scaling
from moe_cli.cli.sweep import sweep
from moe_cli.cli.train import train
from moe_cli.config.bounds import shortened
from moe_cli.distributed.launch import hard_exit, is_distributed, launched_by_moe, rank
from moe_cli.errors import ConfigError, LostProcess, MoeError, TrainingError
from moe_cli.execution.runtime_tuning import configure_libraries
from moe_cli.files.reading import forget_notes, noted
from moe_cli.files.writing import is_full, write_failure_hint
from moe_cli.formatting import sanitise
from moe_cli.plugins import blame

# At most this many unreadable files are named.
MAX_UNREADABLE_SHOWN = 12

# The error for wrong options of a command, which typer does not export.
UsageError: type[Exception] = typer.BadParameter.__bases__[0]
# Errors of the system about a path that was given: exit code 2.
ERRORS_OF_PATHS = (
    errno.ENAMETOOLONG,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ENOENT,
    errno.EEXIST,
    errno.ELOOP,
)


class Group(HelpGroup):
    """Prints errors in one to three lines. A group, and not main(), does so that tests of the app see them too."""

    # The arguments of the command line.
    arguments: tuple[str, ...] = ()

    def make_context(self, info_name: Any, args: list[str], *others: Any, **options: Any) -> Any:
        self.arguments = tuple(args)
        try:
            return super().make_context(info_name, args, *others, **options)
        except UsageError as error:
            _print_usage(error, self.arguments)
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
            _print_usage(error, self.arguments)
            raise typer.Exit(2) from None
        except MoeError as error:
            if not _is_reported_by_another_rank(error):
                echo_error(f"error of process {rank()}" if rank() else "error", str(error))
            raise typer.Exit(1 if isinstance(error, TrainingError) else 2) from None
        except KeyboardInterrupt:
            echo("interrupted.", err=True)
            raise typer.Exit(130) from None
        except OSError as error:
            raise typer.Exit(_print_system(error)) from None
        except Exception as error:
            if sentence := blame(error):
                echo_error("error", f"{sentence}.")
                raise typer.Exit(1) from None
            raise


def _print_system(error: OSError) -> int:
    """Prints an error of the system and returns the exit code; nothing where the reader has gone, such as `head`."""
    if isinstance(error, BrokenPipeError):
        end_unread(0)
    where = f": {sanitise(shortened(os.fsdecode(error.filename)))}" if error.filename else ""
    echo(f"error: {error.strerror or error}{where}", err=True)
    if is_full(error):
        echo(f"{write_failure_hint(error)}, then the same command.", err=True)
    return 2 if error.errno in ERRORS_OF_PATHS else 1


# Messages of the parser of options, and what is printed instead.
PARSER_WORDS = (
    (r"^Invalid value for '([^']+)': Value error, ", r"\1: "),
    (r"^Invalid value for '([^']+)': Input should be a valid integer.*", r"\1 takes a whole number."),
    (r"^Invalid value for '([^']+)': Input should be a valid number.*", r"\1 takes a number."),
    (r" \(Possible options: --help\)$", ""),
)


# What other commands do, by the options that are typed for it.
OPTIONS_ELSEWHERE = {
    "--recommend": "A configuration is chosen by a command of its own: moe recommend",
    "--html": "A page is written by: moe report -o FILE.html",
    "--resume": "A stopped run continues with: moe train --resume RUN",
}


def _print_usage(error: Any, arguments: Sequence[str]) -> None:
    """Prints the error of an option or an argument; for a command without arguments, its help."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return
    if hint := _option_hint(error, arguments):
        return echo_error("error", hint)
    message = " ".join(error.format_message().split())
    for pattern, replacement in PARSER_WORDS:
        message = re.sub(pattern, replacement, message)
    echo_error("error", shortened(message, 400))
    command = "moe" if error.ctx is None else error.ctx.command_path.replace("python -m moe_cli", "moe")
    echo(f"See: {command} -h", err=True)


def _option_hint(error: Any, arguments: Sequence[str]) -> str | None:
    """Returns what to type instead of an option of Hydra, or of a setting with dashes; None for other errors."""
    if type(error).__name__ != "NoSuchOption":
        return None
    option = str(error.option_name)
    if option in OPTIONS_ELSEWHERE:
        return f"no option {option} here. {OPTIONS_ELSEWHERE[option]}"
    if not error.ctx or not any("SETTING=VALUE" in str(param.metavar) for param in error.ctx.command.params):
        return None
    from moe_cli.config.foreign_names import explain_option

    index, typed = next(
        ((i, word) for i, word in enumerate(arguments) if word.startswith(option)), (len(arguments), option)
    )
    name, equals, value = typed.partition("=")
    following = (
        arguments[index + 1] if index + 1 < len(arguments) and not arguments[index + 1].startswith("-") else "VALUE"
    )
    if name in ("-m", "--multirun"):
        following = " ".join(word for word in arguments[1:] if not word.startswith("-")) or "expert=1,8"
    return explain_option(name, value if equals else following) or explain_option(option)


def _check_folder() -> None:
    """Raises ConfigError where the working directory is gone."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise ConfigError("the working directory was deleted. Go to one that exists: cd ~") from None


def _name_unreadable() -> None:
    """Names each file that the command met and could not use, on standard error."""
    lines = noted()
    more = (
        [f"unreadable: {len(lines) - MAX_UNREADABLE_SHOWN:,} more files"] if len(lines) > MAX_UNREADABLE_SHOWN else []
    )
    with suppress(BrokenPipeError, ValueError):  # there is no reader, or standard error is closed
        for line in lines[:MAX_UNREADABLE_SHOWN] + more:
            echo(line, fg="yellow", err=True)


def _is_reported_by_another_rank(error: MoeError) -> bool:
    """Returns whether another process of this training reports the error. Rank 0 reports, and then ends the others."""
    if rank():
        time.sleep(2)
    return not str(error) or (isinstance(error, LostProcess) and (launched_by_moe() or rank() > 0))


HELP = """Train, sweep and compare sparse mixtures of experts.

Examples:
    moe train expert=8 k=2
    moe sweep sparsity
    moe report
"""
app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=HELP,
)


def _version(value: bool) -> None:
    if value:
        echo(f"moe {__version__}")
        raise typer.Exit


def _completion_script(value: bool) -> None:
    if value:
        from moe_cli.cli.shell_completion import script

        echo(script(_shell()), nl=False)
        raise typer.Exit


def _install_completion(value: bool) -> None:
    if value:
        from moe_cli.cli.shell_completion import install

        shell = _shell()
        for path in install(shell):
            echo(f"written: {sanitise(str(path))}")
        echo(f"Completion works in every {shell} that is started from now on.")
        raise typer.Exit


def _shell() -> str:
    """Returns the shell to complete in. Raises BadParameter for one without completion."""
    from moe_cli.cli.shell_completion import SHELLS, detect_shell

    shell = detect_shell()
    if shell is None:
        raise typer.BadParameter(f"run it in the shell to complete in: {', '.join(SHELLS)}.")
    return shell


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
    install_completion: Annotated[
        bool,
        typer.Option(
            "--install-completion",
            help="Install completion for this shell: bash, zsh or fish.",
            callback=_install_completion,
            is_eager=True,
        ),
    ] = False,
    show_completion: Annotated[
        bool,
        typer.Option(
            "--show-completion",
            help="Print the completion script of this shell.",
            callback=_completion_script,
            is_eager=True,
        ),
    ] = False,
) -> None:
    # The docstring would replace the help.
    return


# The commands whose names Python keeps for itself.
KEYWORDS = {"evaluate": "eval", "import_model": "import"}
# The commands under the headings of `moe --help`.
PANELS: dict[str, tuple[Callable[..., None], ...]] = {
    "Train": (train, sweep, decide, reproduce),
    "Compare": (report, recommend, scaling),
    "Use a trained model": (evaluate, sample, explain, export, import_model),
    "Before training": (config, plan),
    "Runs and this machine": (doctor,),
}
for panel, commands in PANELS.items():
    for command in commands:
        name = KEYWORDS.get(command.__name__, command.__name__)
        app.command(name, cls=HelpCommand, rich_help_panel=panel)(command)
app.add_typer(runs, name="runs", rich_help_panel="Runs and this machine")
app.add_typer(bench, name="bench", rich_help_panel="Runs and this machine")


def main() -> None:
    configure_libraries()
    prepare_streams()
    try:
        app()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        code = code or flush_streams()
        if is_distributed():
            hard_exit(code)
        raise SystemExit(code) from None
