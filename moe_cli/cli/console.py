"""The console of the commands, and its width."""

import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text
from rich.theme import Theme

from moe_cli.cli.echo import READABLE, end_unread, is_harmless, is_screen, shown
from moe_cli.report.render.line_wrap import wrap_lines

# Limits of the width of a console: narrower ones are unreadable, and in wider ones lines are only padded.
MIN_WIDTH, MAX_WIDTH = 20, 1000
PIPED_WIDTH = 120


class CommandConsole(Console):
    """Rich's console with sanitised text, with cursor codes on screens only, and with an exit code for a closed pipe.

    Args:
        unread: the exit code after the reader has closed the pipe: 0 for commands that only print.
        options: the options of `Console`.
    """

    def __init__(self, *, unread: int = 0, **options: Any) -> None:
        self._unread = unread
        if os.environ.get("FORCE_COLOR") and not is_screen(sys.stderr if options.get("stderr") else sys.stdout):
            options.setdefault("color_system", "standard")
        super().__init__(**{"_environ": _environment(), **options})
        if self.color_system in ("256", "truecolor"):
            styles = {name: f"color({number})" for name, number in READABLE.items()}
            self.push_theme(Theme({**styles, "bold green": f"bold {styles['green']}"}))

    @property
    def is_terminal(self) -> bool:
        return is_screen(self.file) if self._force_terminal is None else self._force_terminal

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or is_harmless(segment.text):
                yield segment
            else:
                yield Segment(shown(segment.text), segment.style)

    def on_broken_pipe(self) -> None:
        self.quiet = True
        end_unread(self._unread)


def text_width(console: Console) -> int:
    """Returns the width of the output: that of the screen or of COLUMNS, or 120 if the output is piped."""
    return console.width if console.is_terminal or "COLUMNS" in _environment() else PIPED_WIDTH


def table_width(console: Console) -> int | None:
    """Returns the width of a table: that of the screen, or no limit if the output is piped."""
    return console.width if console.is_terminal else None


def _environment() -> Mapping[str, str]:
    """Returns the environment with a COLUMNS and LINES that can be written in, or without them."""
    found = dict(os.environ)
    for name in ("COLUMNS", "LINES"):
        value = found.pop(name, "")
        if value.isascii() and value.isdigit() and int(value[:9]) > 0:
            found[name] = str(min(MAX_WIDTH, max(MIN_WIDTH, int(value[:9]))))
    return found


# A line that is a command, after an indent or a label.
_COMMAND = re.compile(r"(?P<before> *(?:next +)?)moe \S")
# A word of a shell, with its quoted parts.
_WORD = re.compile(r"(?:'[^']*'|\"[^\"]*\"|[^\s'\"])+")


def print_lines(console: Console, lines: Sequence[Text]) -> None:
    """Prints each text on one line, however long; on a screen a command is continued between its words."""
    if console.is_terminal:
        lines = [part for line in lines for part in continued_command(line, console.width)]
    if console.is_terminal or console.color_system is not None:
        console.print(Text("\n").join(lines), soft_wrap=True, highlight=False)
    else:
        console.file.write("".join(f"{shown(line.plain)}\n" for line in lines))


def print_fitted(lines_of: Callable[[int], Sequence[Text]]) -> None:
    """Prints the lines that a function returns for the width of the output."""
    console = CommandConsole()
    print_lines(console, lines_of(text_width(console)))


def print_styled(
    console: Console, lines: Iterable[tuple[str, str]], width: int | None = None, continued: str = ""
) -> None:
    """Prints (style, line) pairs; with a width, a longer line goes on after the text `continued`."""
    wrapped = [
        Text(part, style)
        for style, line in lines
        for part in ([line] if width is None else wrap_lines(line, width, continued=continued))
    ]
    print_lines(console, wrapped)


def continued_command(line: Text, width: int) -> list[Text]:
    """Returns a command as lines that end in a backslash between its words, so that it can be read and pasted."""
    command = _COMMAND.match(line.plain)
    if command is None or line.cell_len <= width:
        return [line]
    indent = Text(" " * (len(command["before"]) + 2))
    parts: list[Text] = []
    start, end = 0, len(command["before"])
    for word in _WORD.finditer(line.plain, end):
        offset = len(indent) if parts else 0
        if offset + word.end() - start > width - 2 and end > start + len(command["before"]) * (not parts):
            parts.append((indent if parts else Text()) + line[start:end] + Text(" \\"))
            start = word.start()
        end = word.end()
    return [*parts, (indent if parts else Text()) + line[start:end]]
