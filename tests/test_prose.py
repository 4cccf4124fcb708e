"""Code, configuration, and documents are in plain technical English."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
BANNED = re.compile(
    r"\b(nobody|strangers?|whoever|told|anew|heeds?|beside|so many|of which|for good|by turns|stands for)\b",
    re.IGNORECASE,
)
QUESTION = re.compile(r'^\s*"""(What|Who|Which|Whose)\b')
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


def lines() -> list[tuple[str, str]]:
    """Returns every line of the package, conf/, the documents, and the other tests, with its file and number."""
    files = [ROOT / "README.md", *(path for pattern in PATTERNS for path in sorted(ROOT.glob(pattern)))]
    return [
        (f"{path.relative_to(ROOT)}:{number}", line)
        for path in files
        if path != Path(__file__)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
    ]


def test_no_line_has_a_banned_word() -> None:
    """Words that name no person or thing of the field, and phrases that need to be read twice."""
    assert [] == [f"{where} {line.strip()}" for where, line in lines() if BANNED.search(line.replace(DATA, ""))]


def test_no_docstring_opens_with_a_question_word() -> None:
    """A docstring begins with a verb or with the noun that it describes."""
    assert [] == [f"{where} {line.strip()}" for where, line in lines() if QUESTION.match(line)]


# Words of prose that name no quantity of the field: a name says what it holds.
BANNED_NAMES = {"told", "said", "asked", "given", "held", "beside", "elsewhere", "chosen", "each", "words", "of"}


def _names(tree: ast.AST) -> Iterator[str]:
    """Yields the names that a file gives to variables, parameters, attributes, functions, classes, and imports."""
    for node in ast.walk(tree):
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
    files = sorted(ROOT.glob("moe_cli/**/*.py"))
    trees = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text("utf-8")) for path in files}
    assert set() == {
        (file, name) for file, tree in trees.items() for name in _names(tree) if name.strip("_") in BANNED_NAMES
    }
