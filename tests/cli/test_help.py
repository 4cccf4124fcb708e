"""The help of every command: a purpose, two examples that can be read, grouped options, and 80 columns."""

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command

from moe_cli.cli.app import app
from moe_cli.cli.help import parse_help
from moe_cli.config.axes import single_values
from moe_cli.config.build import names_of
from moe_cli.config.compose import Composer
from moe_cli.config.overrides import parse_overrides
from moe_cli.config.schema import RunConfig
from moe_cli.config.sweep_file import list_sweeps
from tests.runner import CliRunner

# The verbs that a purpose begins with.
VERBS = {
    *(
        "Add",
        "Bring",
        "Check",
        "Choose",
        "Compare",
        "Count",
        "Decide",
        "Estimate",
        "Evaluate",
        "Fit",
        "List",
        "Move",
        "Print",
        "Show",
    ),
    *("Time", "Train", "Try", "Watch", "Write"),
}


def commands(command: Any = None, words: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yields every command and group with its words, `moe` first."""
    command = command or get_command(app)
    yield " ".join(("moe", *words)), command
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, (*words, name))


def is_whole(command: Any) -> bool:
    return not getattr(command, "commands", {})


def test_every_command_has_a_purpose() -> None:
    """The first line of a command's help is one imperative sentence that fits in the list of commands."""
    for name, command in commands():
        purpose = parse_help(command.help).purpose
        assert re.fullmatch(r"[^.]{,65}\.", purpose), (name, purpose)
        assert purpose.split()[0].rstrip(",") in VERBS, (name, purpose)


def test_every_command_has_two_examples_that_parse() -> None:
    """The examples of a command are of that command, fit in a line, and name options and settings that exist."""
    composer = Composer()
    for name, command in commands():
        examples = parse_help(command.help).examples
        assert len(examples) >= 2, name
        for example in examples:
            assert example.startswith(name + " ") or example == name, (name, example)
            assert len(example) <= 76, example
            if is_whole(command):
                context = command.make_context(name, shlex.split(example)[len(name.split()) :])
                check_settings(composer, name, context.params)


def check_settings(composer: Composer, name: str, given: dict[str, Any]) -> None:
    """Composes the settings of an example, and finds the sweep that it names."""
    words = given.get("overrides") or []
    explained = [word for word in words if name == "moe config" and "=" not in word]
    assert set(explained) <= set(names_of(RunConfig))
    words = [word for word in words if word not in explained]
    if name in ("moe train", "moe config", "moe plan") and not given.get("resume"):
        composer.point(single_values(parse_overrides(words), name))
    elif name == "moe sweep":
        named = [word for word in words if "=" not in word]
        assert set(named) <= set(list_sweeps(composer))
        parse_overrides([word for word in words if "=" in word])


@pytest.mark.parametrize("columns", [80, 120])
def test_no_line_of_a_help_is_too_long(columns: int) -> None:
    """The help of every command fits in 80 columns, in terminals that are wider too, without a broken word."""
    for name, command in commands():
        text = CliRunner().invoke(app, [*name.split()[1:], "--help"], prog_name="moe", env={"COLUMNS": str(columns)})
        assert [] == [line for line in text.stdout.splitlines() if len(line) > 80], name
        words = {word for param in command.params for word in (getattr(param, "help", "") or "").split()}
        assert words <= set(text.stdout.split()), name


def test_options_stand_under_headings() -> None:
    """A command of more than ten options groups them, and `moe --help` groups the commands."""
    for name, command in commands():
        panels = {param.rich_help_panel for param in command.params if param.param_type_name == "option"}
        assert len(command.params) <= 12 or len(panels) > 1, name
    headings = re.findall(r"^(\S.*):$", CliRunner().invoke(app, ["--help"]).stdout, flags=re.M)
    assert headings == [
        *("Examples", "Train", "Compare", "Use a trained model", "Before training", "Runs and this machine", "Options")
    ]


def test_defaults_are_shown() -> None:
    """An option with a default says which."""
    text = CliRunner().invoke(app, ["sample", "--help"], env={"COLUMNS": "80"}).stdout
    assert "[default: 400]" in text
    assert "<=x" not in text


def test_a_docstring_has_three_parts() -> None:
    """The purpose, further sentences, and the examples are separated; all but the first may be missing."""
    assert ("Do it.", "", []) == parse_help("Do it.")
    assert ("Do it.", "More.", ["moe x", "moe y"]) == parse_help("Do it.\n\nMore.\n\nExamples:\n    moe x\n    moe y\n")
