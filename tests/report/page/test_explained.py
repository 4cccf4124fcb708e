"""The page of an explained text: nothing of the text is markup, nothing asks a network, nothing of another's is replaced."""

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from moe_cli.cli.app import app
from moe_cli.store import Run
from tests.report.page.pages import HOSTILE, content_of

TEXT = f"ba né\n{HOSTILE} \u202edone"


def write(finished: Run, file: Path, *words: object) -> Any:
    words = ("explain", "latest", *words, "--html", file, "--outputs", finished.path.parents[1])
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def page(finished: Run, tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("page") / "explained.html"
    result = write(finished, file, TEXT, "--layer", 2, "eval.capacity=0.5")
    assert result.exit_code == 0, result.output
    assert str(file) in result.stdout
    return file.read_text(encoding="utf-8")


def test_every_token_of_the_text_is_in_the_page_once(page: str) -> None:
    """In order: as many tokens as bytes, whose characters are the text but for marks; the layer asked for is shown first."""
    content = content_of(page)
    assert len(TEXT.encode()) == len(content["tokens"])
    marks = {"␣": " ", "\\n": "\n", "\\x1b": "\x1b", "\\u202e": "\u202e", "\\\\": "\\"}
    said = "".join(marks.get(token, token) for token in content["tokens"] if not re.fullmatch(r"\+[2-4]", token))
    assert TEXT == said
    assert 1 == content["chosen"]
    assert [place for place, char in enumerate(TEXT.encode()) if char == ord("\n")] == content["breaks"]
    for layer in content["layers"]:
        assert len(TEXT.encode()) == len(layer["choices"])
        assert all(2 == len(choices) for choices in layer["choices"])


class Tags(HTMLParser):
    """The elements of a page and their attributes, as a browser sees them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_text_is_never_markup(page: str) -> None:
    """The page has its own two script elements and no image; the text stands nowhere as it was typed."""
    tags = Tags()
    tags.feed(page)
    assert [{"type": "application/json", "id": "content"}, {}] == [
        attrs for tag, attrs in tags.found if tag == "script"
    ]
    assert "img" not in [tag for tag, _ in tags.found]
    assert not [name for _, attrs in tags.found for name in attrs if name.startswith("on")]
    data = page.split('id="content">')[1].split("</script>")[0]
    assert not {"<", ">", "&"} & set(data)
    assert "window.stolen" not in page
    assert "\x1b" not in page
    assert "\u202e" not in page


def test_a_run_of_any_name(finished: Run, tmp_path: Path) -> None:
    """A folder's name is text too, and turns nothing around on a terminal."""
    folder = tmp_path / "<b>x\u202e\x1b[2J"
    shutil.copytree(finished.path, folder)
    words = ["explain", str(folder), "ba", "--outputs", str(finished.path.parents[1])]
    shown = CliRunner().invoke(app, words).stdout
    assert shown.startswith("<b>x??[2J   step 6")
    assert shown.replace("\n", "").isprintable()
    assert 0 == CliRunner().invoke(app, [*words, "--html", str(tmp_path / "a.html")]).exit_code
    assert "<b>" not in (tmp_path / "a.html").read_text(encoding="utf-8")


def test_the_page_needs_no_network(page: str) -> None:
    """Its policy allows nothing but its own script and style, and it names no address but SVG's."""
    assert "default-src 'none'; script-src 'sha256-" in page
    assert ["http://www.w3.org/2000/svg"] == re.findall(r"https?://[^\"'\s<]+", page)
    assert {"style", "script"}.isdisjoint(re.findall(r"<(\w+)[^>]* (?:src|href)=\"(?!#)", page))


def test_without_scripts_the_text_is_there_too(page: str) -> None:
    """The lines of the terminal, escaped."""
    plain = page.split("<noscript>")[1].split("</noscript>")[0]
    assert "Under each token its experts" in plain
    assert "1 is a fair share" in plain
    assert "&lt;" in plain


def test_only_a_page_of_this_command_is_replaced(finished: Run, tmp_path: Path) -> None:
    """Its own is; a page of moe report or anything else is left as it is."""
    file = tmp_path / "a.html"
    assert 0 == write(finished, file, "ba").exit_code
    first = file.read_text(encoding="utf-8")
    assert 0 == write(finished, file, "baba").exit_code
    assert first != file.read_text(encoding="utf-8")
    for other in ("mine", first.replace('content="moe explain', 'content="moe report')):
        file.write_text(other, encoding="utf-8")
        result = write(finished, file, "ba")
        said = f"error: {file} is there and was not made by moe explain: it is left as it is. Name another file, or remove it.\n"
        assert (2, said) == (result.exit_code, result.stderr)
        assert other == file.read_text(encoding="utf-8")
