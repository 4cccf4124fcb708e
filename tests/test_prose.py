"""Code, configuration, and documents are in plain technical English."""

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from tests.sources import package_nodes

ROOT = Path(__file__).parents[1]
BANNED = re.compile(
    r"\b(nobody|strangers?|whoever|told|anew|heeds?|beside|so many|of which|for good|by turns|stands for)\b",
    re.IGNORECASE,
)
QUESTION = re.compile(r'^[ \t]*"""(What|Who|Which|Whose)\b', re.MULTILINE)
PATTERNS = (
    "moe_cli/**/*.py",
    "moe_cli/**/*.js",
    "moe_cli/**/*.html",
    "conf/**/*.yaml",
    "docs/**/*.md",
    ".github/*.md",
    "tests/**/*.py",
)
# A name that a test makes up is data.
DATA = 'composer.describe("router", "nobody")'


@cache
def texts() -> dict[str, str]:
    """Returns the text of every file of the package, conf/, the documents, and the other tests."""
    files = [ROOT / "README.md", *(path for pattern in PATTERNS for path in sorted(ROOT.glob(pattern)))]
    return {
        str(path.relative_to(ROOT)): path.read_text(encoding="utf-8").replace(DATA, "")
        for path in files
        if path != Path(__file__)
    }


def lines_with(pattern: re.Pattern[str]) -> Iterator[str]:
    """Yields the lines that the pattern is in, with their file and number."""
    for name, text in texts().items():
        if pattern.search(text):
            for number, line in enumerate(text.splitlines(), start=1):
                if pattern.search(line):
                    yield f"{name}:{number} {line.strip()}"


def test_no_line_has_a_banned_word() -> None:
    """Words that name no person or thing of the field, and phrases that need to be read twice."""
    assert [] == list(lines_with(BANNED))


def test_no_docstring_opens_with_a_question_word() -> None:
    """A docstring begins with a verb or with the noun that it describes."""
    assert [] == list(lines_with(QUESTION))


# Words of prose that name no quantity of the field: a name says what it holds.
BANNED_NAMES = {"told", "said", "asked", "given", "held", "beside", "elsewhere", "chosen", "each", "words", "of"}


def _names(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Yields the names that a file gives to variables, parameters, attributes, functions, classes, and imports."""
    for node in nodes:
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.ExceptHandler(name=str(name)) | ast.alias(asname=str(name)):
                yield name
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)) | ast.MatchMapping(rest=str(name)):
                yield name


def test_names_say_what_they_hold() -> None:
    """No name of the package is a banned word."""
    assert set() == {
        (file, name)
        for file, nodes in package_nodes().items()
        for name in _names(nodes)
        if name.strip("_") in BANNED_NAMES
    }
