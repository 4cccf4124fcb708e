"""Printed text cannot control the terminal, and every command has an exit code with any kind of stream."""

import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.color import Color
from rich.live import Live
from rich.table import Table
from rich.text import Text

from moe_cli.cli import echo as echo_module
from moe_cli.cli.app import app
from moe_cli.cli.console import CommandConsole, continued_command, print_lines, text_width
from moe_cli.cli.echo import READABLE, echo, echo_data, is_screen, screen_lines, shown
from tests.report.folders import complete
from tests.runner import CliRunner

PACKAGE = Path(echo_module.__file__).parents[1]
# A title, a cleared screen, a colour in one byte (C1), and writing turned around.
HOSTILE = "\x1b]0;title\x07\x1b[2J\x9b31m\u202e\u2066"


class Screen(io.StringIO):
    """A terminal that keeps what it is sent."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """Runs of somebody else, with such characters in every text that a report shows, and in the name of a folder."""
    for seed in range(2):
        for expert in (1, 8):
            results = {f"x{HOSTILE}y": 1.0 + seed + expert, "corpus": HOSTILE, "dispatch": HOSTILE}
            run = complete(tmp_path, 1.7 + expert, "z", expert=expert, seed=seed, results=results)
    run.path.rename(run.path.with_name(f"evil{HOSTILE}"))
    return tmp_path


def test_one_place_prints() -> None:
    """Commands print through `echo` and `CommandConsole`; what lies below them prints a line that is made harmless, or nothing."""
    own = {PACKAGE / "cli" / name for name in ("echo.py", "console.py", "shell_completion.py")}
    found = [
        f"{path.relative_to(PACKAGE)}: {line.strip()}"
        for path in PACKAGE.rglob("*.py")
        if path not in (*own, PACKAGE / "formatting.py", PACKAGE / "report/render/notebook.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(
            r"typer\.s?echo\(|(?<![\w\"])Console\(|(?<!def )(?<![\w.])print\(|stdout\.write\((?!line\))",
            line,
        )
    ]
    assert [] == found


@given(st.text())
def test_shown_text_is_printable_and_as_long(text: str) -> None:
    """Lines and tabs stay, each character that a terminal would act on becomes one '?', the others stay as they are."""
    result = shown(text)
    assert len(text) == len(result)
    assert re.sub(r"[\n\t]", "", result).isprintable()
    assert all(new in (old, "?") for old, new in zip(text, result, strict=True))


def test_console_sends_only_its_own_codes() -> None:
    """Text, markup, tables and redrawn panels keep their styles and cursor codes, and none of the text's."""
    screen = Screen()
    console = CommandConsole(file=screen, width=60, force_terminal=True, color_system="standard")
    table = Table(HOSTILE)
    table.add_row(Text(HOSTILE, "red"))
    with Live(table, console=console, auto_refresh=False) as live:
        live.update(Text(HOSTILE), refresh=True)
        console.print(table, f"[red]{HOSTILE}[/]")
    print_lines(console, [Text(HOSTILE, "bold")])
    assert "\x1b[31m" in screen.getvalue()
    assert "\x1b[?25l" in screen.getvalue()
    assert re.findall(r"\x1b\]|\x07|\x1b\[2J|\x9b|\u202e|\u2066", screen.getvalue()) == []


COMMANDS = [
    ["report", "z"],
    ["report", "z", "--runs"],
    ["report", "z", "--format", "csv"],
    ["report", "z", "--format", "md"],
    ["report", "z", "--format", "latex"],
    ["report", "z", "--format", "json"],
    ["report", "z", "--columns", f"run,x{HOSTILE}y"],
    ["recommend", "z"],
    ["report", "z", "--plot", "val_bpb:expert"],
    ["report", HOSTILE],
    ["report", "--where", f"{HOSTILE} > 1"],
    ["report", "z", f"--{HOSTILE}"],
    ["runs", "ls"],
    ["runs", "ls", "--json"],
    ["runs", "show", f"evil{HOSTILE}"],
    ["runs", "diff", HOSTILE, "latest"],
    ["runs", "clean"],
    [HOSTILE],
]


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words).split(HOSTILE)[0])
def test_no_command_passes_codes_on(words: list[str], hostile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names, columns and texts of other people's runs are harmless on a screen, in every format and in errors."""
    monkeypatch.setattr(echo_module, "is_screen", lambda stream: True)
    monkeypatch.setenv("MOE_OUTPUTS", str(hostile))
    result = CliRunner().invoke(app, words)
    assert result.exit_code in (0, 2)
    text = re.sub(r"\x1b\[[\d;]*m", "", result.output)
    assert [] == [line for line in text.split("\n") if not line.replace("\t", "").isprintable()]


def test_data_for_programs_are_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """`echo_data` writes data byte for byte where the output is no terminal."""
    echo_data(f"a,{HOSTILE}")
    assert f"a,{HOSTILE}\n" == capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"TERM": "xterm"}, True),
        ({"TERM": "dumb"}, False),
        ({"TERM": "unknown"}, False),
        ({"TERM": "xterm", "TTY_COMPATIBLE": "0"}, False),
        ({}, True),
    ],
)
def test_screens_move_their_cursor(settings: dict[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal that cannot is written to as a file is; a file is no screen whatever is set."""
    for name in ("TERM", "TTY_COMPATIBLE", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert expected == is_screen(Screen())
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.setenv(name, "1")
        assert not is_screen(io.StringIO())
        assert not CommandConsole(file=io.StringIO()).is_terminal


def test_forced_colours_bring_no_cursor_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    """FORCE_COLOR colours the lines of a log file; panels are not drawn in it, and NO_COLOR wins."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    log = io.StringIO()
    console = CommandConsole(file=log)
    console.print("[red]failed[/]")
    print_lines(console, [Text("best", "green")])
    assert "\x1b[31mfailed\x1b[0m\n\x1b[32mbest\x1b[0m\n" == log.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    CommandConsole(file=(plain := io.StringIO())).print("[red]failed[/]")
    assert "failed\n" == plain.getvalue()


@pytest.mark.parametrize(
    ("columns", "width"),
    [("0", 120), ("-5", 120), ("", 120), ("wide", 120), ("1", 20), ("100", 100), ("9" * 30, 1000), ("²", 120)],
)
def test_a_width_that_cannot_be_is_none(columns: str, width: int) -> None:
    """COLUMNS counts where lines of it can be read."""
    with pytest.MonkeyPatch.context() as patch:  # pytest itself fails on some of these
        patch.setenv("COLUMNS", columns)
        found = text_width(CommandConsole(file=io.StringIO()))
    assert width == found


def test_closed_streams_are_no_screens() -> None:
    """A closed stream and a missing stream are no screens."""
    closed = io.StringIO()
    closed.close()
    assert (False, False) == (is_screen(closed), is_screen(None))


def test_characters_that_are_not_there_have_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """In ASCII a bar is one character still."""
    echo_module.prepare_streams()
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="moe")
    monkeypatch.setattr(sys, "stdout", stream)
    echo("▁▄█ … │ ü \udc80")
    stream.flush()
    assert b"_:# . | ? ?\n" == stream.buffer.getvalue()  # type: ignore[attr-defined]


def run(words: str, redirect: str, **environment: str) -> tuple[int, str]:
    """The exit code and standard error of a command in a shell; the code is that of `moe`, not of its reader."""
    command = f'{sys.executable} -m moe_cli {words} {redirect}; exit "${{PIPESTATUS[0]}}"'
    done = subprocess.run(
        ["bash", "-c", command], env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True, check=False
    )
    return done.returncode, done.stderr


READING = ["config", "report z --format csv", "runs ls", "--help", "train --help"]


@pytest.mark.slow
@pytest.mark.parametrize("words", READING)
def test_a_reader_that_goes_is_no_error(words: str, tmp_path: Path) -> None:
    """`| head -1` and `| true` end every command that only prints with 0 and without a word."""
    complete(tmp_path, 1.7, "z", expert=8)
    for redirect in ("| head -1", "| true", ">&-"):
        assert (0, "") == run(words, redirect, MOE_OUTPUTS=str(tmp_path)), redirect


@pytest.mark.slow
@pytest.mark.parametrize("words", READING)
def test_a_full_disk_is_an_error(words: str, tmp_path: Path) -> None:
    """A full disk ends a command with exit code 1 and at most two lines."""
    complete(tmp_path, 1.7, "z", expert=8)
    code, message = run(words, "> /dev/full", MOE_OUTPUTS=str(tmp_path))
    assert (1, "error: No space left on device") == (code, message.splitlines()[0])
    assert len(message.splitlines()) <= 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"COLUMNS": "0"},
        {"COLUMNS": "1"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=str,
)
def test_every_environment_prints(environment: dict[str, str], hostile: Path) -> None:
    """No encoding and no width breaks a table."""
    for words in ("report z", "runs ls", "plan expert=8"):
        assert (0, "") == run(words, "> /dev/null", MOE_OUTPUTS=str(hostile), **environment)


def test_a_training_without_a_reader_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where printing is not all the work, the exit code says that it was not done."""

    def gone(*arguments: Any) -> None:
        raise BrokenPipeError

    for unread in (0, 130):
        console = CommandConsole(file=io.StringIO(), unread=unread)
        monkeypatch.setattr(console, "_write_buffer", gone)
        with pytest.raises(SystemExit) as end:
            console.print("a line")
        assert unread == end.value.code


def test_a_screen_breaks_a_line_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """A note longer than the screen is broken at a space, and further lines are indented; a pipe gets it whole."""
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("TERM", "xterm")
    note = "note: results differ in the last digit/s of a --long-option"
    assert [note] == screen_lines(note, io.StringIO())
    assert ["note: results differ in the", "  last digit/s of a", "  --long-option"] == screen_lines(note, Screen())


@pytest.mark.parametrize("name", READABLE)
def test_colours_are_readable_on_black_and_on_white(name: str) -> None:
    """Contrast of WCAG 2.1, 4.5 after rounding; the console and plain lines use the same colours."""

    def luminance(number: int) -> float:
        shares = [part / 255 for part in Color.from_ansi(number).get_truecolor()]
        linear = [each / 12.92 if each <= 0.03928 else ((each + 0.055) / 1.055) ** 2.4 for each in shares]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    value = luminance(READABLE[name])
    assert min(1.05 / (value + 0.05), (value + 0.05) / 0.05) > 4.45
    console = CommandConsole(color_system="256", force_terminal=True)
    assert READABLE[name] == (console.get_style(name).color or Color.default()).number


@given(st.lists(st.sampled_from(["expert=8", "k=1,2", "--seeds", "5", "--where 'expert == 1 or k != 1'", "a" * 30])))
def test_a_command_is_continued_between_its_words(words: list[str]) -> None:
    """A shell reads the same words; every line fits if its words do; a sentence stays as it is."""
    line = "  next         " + " ".join(["moe sweep", *words])
    parts = [part.plain for part in continued_command(Text(line), 60)]
    read = [word for word in shlex.split("\n".join(parts)) if word.strip()]
    assert shlex.split(line) == read
    assert all(len(part) <= 60 for part in parts)
    assert all(part.endswith(" \\") for part in parts[:-1])
    assert [Text("word " * 30)] == continued_command(Text("word " * 30), 60)
