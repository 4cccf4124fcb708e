"""Output to standard output and standard error: sanitised text, and behaviour without a reader.

Text may come from untrusted files, so it must not move a cursor, set a title or reverse the writing direction.
"""

import codecs
import io
import os
import shutil
import sys
from collections.abc import Mapping
from typing import Any, NoReturn, TextIO

import typer

from moe_cli.formatting import BARS
from moe_cli.report.render.line_wrap import wrap_lines

# Colours of the 256 that are readable on black and on white: contrast 4.5, rounded, or more. The usual green, cyan and
# yellow have about 2 on white, blue has 2 on black.
READABLE = {"red": 131, "green": 29, "yellow": 130, "blue": 63, "magenta": 163, "dim": 243}
_SUBSTITUTES = dict(zip(f"{BARS}…─│┤┼┬┴├•", "_.-:=+*#.-||+--|*", strict=True))


def shown(text: str) -> str:
    """Replaces characters that a terminal interprets or hides by '?', except line ends and tabs (see `sanitise`)."""
    if is_harmless(text):
        return text
    return "".join(char if char.isprintable() or char in "\n\t" else "?" for char in text)


def is_harmless(text: str) -> bool:
    return text.isprintable() or text.replace("\n", "").replace("\t", "").isprintable()


def echo(text: str = "", *, nl: bool = True, err: bool = False, **style: Any) -> None:
    """Prints a text, whatever it holds, in a style of `typer.style` where a terminal shows it."""
    text = shown(text)
    name = "dim" if style.pop("dim", False) else style.get("fg")
    if name in READABLE:
        style["fg"] = READABLE[name]
    stream = sys.stderr if err else sys.stdout
    if stream is not None:
        typer.echo(typer.style(text, **style) if style else text, file=stream, nl=nl)


def echo_data(text: str) -> None:
    """Prints a table for programs: byte for byte into a pipe or a file, harmless on a screen."""
    if sys.stdout is not None:
        sys.stdout.write((shown(text) if is_screen(sys.stdout) else text) + "\n")
        sys.stdout.flush()


def is_screen(stream: object) -> bool:
    """Returns whether a stream is a terminal with cursor control.

    A file is none, whatever FORCE_COLOR says of colours.
    """
    if os.environ.get("TERM", "").lower() in ("dumb", "unknown") or os.environ.get("TTY_COMPATIBLE") == "0":
        return False
    try:
        return bool(stream.isatty())  # type: ignore[attr-defined]
    except (AttributeError, ValueError):  # closed
        return False


def echo_wrapped(text: str, **style: Any) -> None:
    """Prints a line on standard error; a terminal gets it broken between words."""
    for line in screen_lines(text, sys.stderr):
        echo(line, err=True, **style)


def echo_error(label: str, text: str) -> None:
    """Prints `error: text` on standard error, the label in red; a terminal gets the lines broken between words."""
    lines = [part for line in f"{label}: {text}".splitlines() for part in screen_lines(line, sys.stderr)]
    echo(f"{label}:", fg="red", err=True, nl=False)
    echo("\n".join(lines).removeprefix(f"{label}:"), err=True)


def screen_lines(text: str, stream: TextIO | None) -> list[str]:
    """Returns a line of text, broken between words where a terminal would break it within one."""
    if not is_screen(stream):
        return [text]
    return wrap_lines(text, shutil.get_terminal_size().columns, break_long_words=False)


def echo_definitions(texts: Mapping[str, str]) -> None:
    """Prints names and their texts in two columns; a terminal gets the texts broken between words."""
    longest = max((len(name) for name in texts), default=0) + 4
    for name, text in texts.items():
        if not is_screen(sys.stdout):
            echo(f"  {name:<{longest - 2}}{text}")
            continue
        columns = shutil.get_terminal_size().columns
        indent = min(longest, columns // 2)
        lines = wrap_lines(text, columns - indent, continued="", break_long_words=False)
        if len(name) + 4 > indent:
            echo(f"  {name}")
            name = ""
        for number, line in enumerate(lines or [""]):
            echo(f"  {'' if number else name:<{indent - 2}}{line}".rstrip())


def ascii_only() -> bool:
    """Returns whether lines and blocks cannot be shown, by the encoding of the output or in the C locale."""
    try:
        "┤─│".encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return True
    locale = next((value for name in ("LC_ALL", "LC_CTYPE", "LANG") if (value := os.environ.get(name))), "")
    return locale in ("C", "POSIX")


def end_unread(code: int) -> NoReturn:
    """Ends the command when its reader, such as `head`, has gone: without a word or a second error at the end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            _drop(stream)
    raise SystemExit(code)


def _drop(stream: TextIO) -> None:
    """Discards the buffered output of the stream."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    except (OSError, ValueError):  # no stream of the system
        pass


def prepare_streams() -> None:
    """Makes standard streams writable: replaces closed ones by the null device, and unencodable characters."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:  # else the next file that is opened would be taken for it
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115
    codecs.register_error("moe", _substitute)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="moe")


def _substitute(error: UnicodeError) -> tuple[str, int]:
    """Replaces each character that an encoding lacks by one character that it has."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    return "".join(_SUBSTITUTES.get(char, "?") for char in lost), error.end


def flush_streams() -> int:
    """Flushes the output. Returns the exit code if that fails: 0 without a reader, 1 after another error."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _drop(sys.stdout)
    except (OSError, ValueError) as error:
        _drop(sys.stdout)
        echo(f"error: standard output: {getattr(error, 'strerror', None) or error}", err=True)
        return 1
    return 0
