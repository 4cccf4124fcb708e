"""The help of commands: purpose, examples as they are typed, arguments, and options under the headings of their panels.

A docstring is the purpose in one line, more sentences if needed, and a part `Examples:`.
"""

import inspect
import re
from typing import Any, NamedTuple

from typer.core import TyperCommand, TyperGroup

ARGUMENTS, OPTIONS = "Arguments", "Options"
# What Typer writes for the type of a value, and what stands there instead.
TYPES = ((r"<(int|integer)( range)?>", "N"), (r"<(float|number)( range)?>", "X"), (r"<str>", "TEXT"), (r"[<>]", ""))
# Notes of Typer that are left out: ranges, which an error names, and `required`, which the usage line shows.
NOTES = (
    (r"default: \((.*?)\)", r"default: \1"),
    (r"(; )?[\d.e+]*(<=|<)?x(<=|>=|<|>)[\d.e+]+", ""),
    (r"(; )?required", ""),
    (r"\s*\[\]$", ""),
)


class HelpText(NamedTuple):
    """The parts of a docstring."""

    purpose: str
    details: str
    examples: list[str]


def parse_help(docstring: str | None) -> HelpText:
    """Returns the parts of a command's docstring; each example is one line."""
    text, _, examples = inspect.cleandoc(docstring or "").partition("Examples:")
    purpose, _, details = text.strip().partition("\n\n")
    return HelpText(
        " ".join(purpose.split()),
        " ".join(details.split()),
        [line.strip() for line in examples.splitlines() if line.strip()],
    )


class _Help:
    """Prints the help of a command or a group. Mixed into the classes of Typer."""

    help: str | None
    get_params: Any

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        pieces: list[str] = super().collect_usage_pieces(ctx)  # type: ignore[misc]
        return [re.sub(r"^\{(.*)\}$", r"\1", piece) for piece in pieces]

    def get_short_help_str(self, limit: int = 0) -> str:
        return parse_help(self.help).purpose

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        text = parse_help(self.help)
        for paragraph in filter(None, (text.purpose, text.details)):
            formatter.write_paragraph()
            with formatter.indentation():
                formatter.write_text(paragraph)
        if text.examples:
            with formatter.section("Examples"):
                for example in text.examples:
                    formatter.write(f"{'':{formatter.current_indent}}{example}\n")

    def format_options(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {ARGUMENTS: [], OPTIONS: []}
        for param in self.get_params(ctx):
            if record := param.get_help_record(ctx):
                is_argument = param.param_type_name == "argument"
                panel = ARGUMENTS if is_argument else param.rich_help_panel or OPTIONS
                name = param.metavar or record[0] if is_argument else _readable(record[0], TYPES)
                panels.setdefault(panel, []).append((name, _readable(record[1], NOTES)))
        if len(panels[OPTIONS]) == 1:  # --help alone stands last
            panels[OPTIONS] = panels.pop(OPTIONS)
        for heading, rows in panels.items():
            _write_rows(formatter, heading, rows)


def _readable(text: str, replacements: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in replacements:
        text = re.sub(pattern, replacement, text)
    return text


def _write_rows(formatter: Any, heading: str, rows: list[tuple[str, str]]) -> None:
    if rows:
        with formatter.section(heading):
            formatter.write_dl(rows)


class HelpCommand(_Help, TyperCommand):
    """A command with this help."""


class HelpGroup(_Help, TyperGroup):
    """A group of commands with this help, its commands under the headings of their panels."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            if not command.hidden:
                heading = command.rich_help_panel or "Commands"
                panels.setdefault(heading, []).append((name, command.get_short_help_str()))
        width = max((len(name) for rows in panels.values() for name, _ in rows), default=0)
        for heading, rows in panels.items():
            _write_rows(formatter, heading, [(f"{name:<{width}}", text) for name, text in rows])
        super().format_options(ctx, formatter)
