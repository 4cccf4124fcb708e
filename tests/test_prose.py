"""Code, configuration, and documents are in plain technical English."""

import re
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
