"""The three shells: reads the command line that a shell gives, prints words as it takes them, and installs its script.

bash: one argument, the line up to the cursor. zsh and fish: the words after the program, then the current one.
"""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from moe_cli.cli.completion import Candidate, complete

SHELLS = ("bash", "zsh", "fish")
SCRIPTS = Path(__file__).with_name("shells")
# Characters that bash reads as more than themselves.
_SPECIAL = re.compile(r"([\s'\"\\`$&|;<>()*?\[\]{}!#])")
_WORD = re.compile(r"""(?:[^\s'"\\]|\\.|'[^']*'|"(?:[^"\\]|\\.)*")+""", re.S)
_PART = re.compile(r"""\\(.)|'([^']*)'|"((?:[^"\\]|\\.)*)"|(.)""", re.S)


def print_completions(shell: str, arguments: Sequence[str]) -> None:
    """Prints the words that could stand at the cursor, one a line; none with characters that move a cursor.

    Importing what commands print with would take longer than the completion.
    """
    if shell == "bash":
        lines = bash_lines(arguments[0] if arguments else "", os.environ.get("_MOE_BREAKS", ""))
    elif shell == "zsh":
        lines = [zsh_line(candidate) for candidate in complete(arguments[:-1], arguments[-1])]
    elif shell == "fish":
        lines = fish_lines(complete(arguments[:-1], arguments[-1]))
    else:
        lines = []
    sys.stdout.write("".join(f"{line}\n" for line in lines if line.replace("\t", "").isprintable()))


def bash_lines(line: str, breaks: str) -> list[str]:
    """Returns what bash puts in place of the text after the last word break; a space ends a complete word.

    An open quote has no completions: bash would add it to them.
    """
    arguments, end = [], 0
    for match in _WORD.finditer(line):
        arguments.append(match[0])
        end = match.end()
    if re.search("['\"]", _WORD.sub("", line)):
        return []
    current = "" if line[end:] or not arguments else arguments.pop()
    typed = max((current.rfind(mark) + 1 for mark in breaks if mark in "=:"), default=0)
    found = complete([unquoted(word) for word in arguments[1:]], unquoted(current))
    start = len(unquoted(current[:typed]))
    return [_SPECIAL.sub(r"\\\1", candidate.text[start:]) + " " * candidate.is_complete for candidate in found]


def unquoted(word: str) -> str:
    """Returns a word of a shell without its quotes and backslashes."""
    return "".join(next((part for part in match.groups() if part is not None), "") for match in _PART.finditer(word))


def zsh_line(candidate: Candidate) -> str:
    """Returns `complete` or `partial`, then the word and its help as zsh's _describe takes them."""
    text = candidate.text.replace("\\", "\\\\").replace(":", "\\:")
    help = " ".join(candidate.help.split())
    return f"{'complete' if candidate.is_complete else 'partial'}\t{text}{':' if help else ''}{help}"


def fish_lines(found: Sequence[Candidate]) -> list[str]:
    """Returns words with their help. A list that goes on is given with and without a comma, or fish would end it."""
    lines = [f"{candidate.text}\t{' '.join(candidate.help.split())}" for candidate in found]
    goes_on = len(found) == 1 and not found[0].is_complete and found[0].text[-1] not in "=./"
    return [*lines, f"{found[0].text},\t"] if goes_on else lines


def script(shell: str) -> str:
    """Returns the completion script of a shell."""
    return (SCRIPTS / f"moe.{shell}").read_text(encoding="utf-8")


def detect_shell() -> str | None:
    """Returns the shell that runs the program, else the user's own; None if there is no script for it."""
    import shellingham

    try:
        name: str = shellingham.detect_shell()[0]
    except shellingham.ShellDetectionFailure:
        name = Path(os.environ.get("SHELL", "")).name
    return name if name in SHELLS else None


def install(shell: str) -> list[Path]:
    """Writes the script where the shell finds it. Returns the files that were written or changed."""
    home = Path.home()
    if shell == "fish":
        config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
        return [_write(config / "fish/completions/moe.fish", shell)]
    if shell == "zsh":
        file, settings = home / ".zfunc/_moe", Path(os.environ.get("ZDOTDIR") or home) / ".zshrc"
        line = "fpath=(~/.zfunc $fpath); autoload -Uz compinit; compinit"
    else:
        file, settings = home / ".bash_completions/moe.sh", home / ".bashrc"
        line = f"source '{file}'"
    written = [_write(file, shell)]
    text = settings.read_text(encoding="utf-8") if settings.is_file() else ""
    if line not in text.splitlines():
        settings.write_text(f"{text.rstrip()}\n{line}\n".lstrip(), encoding="utf-8")
        written.append(settings)
    return written


def _write(path: Path, shell: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(script(shell), encoding="utf-8")
    return path
