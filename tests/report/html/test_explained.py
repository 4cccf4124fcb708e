"""The page of an explained text: nothing of the text is markup, nothing asks a network, nothing of another's is replaced."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from moe_cli.cli.app import app
from moe_cli.report.html.explain_page import packed
from moe_cli.runs.folder import Run
from tests.report.html.pages import HOSTILE, content_of
from tests.runner import CliRunner

TEXT = f"ba né\n{HOSTILE} \u202edone"


def write(finished: Run, file: Path, *words: object) -> Any:
    words = ("explain", "latest", *words, "-o", file, "--outputs", finished.path.parents[1])
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


def choices_of(content: dict[str, Any], layer: int) -> list[list[dict[str, Any]]]:
    """Decodes the choices that the page's script reads, with Python's own base 36."""
    found = []
    for token in content["layers"][layer]["choices"].split(","):
        numbers = [divmod(int(word.lstrip("-"), 36), content["stride"]) for word in token.split()]
        kept = [not word.startswith("-") for word in token.split()]
        found.append(
            [
                {"expert": expert, "weight": weight / 100, "kept": each}
                for (expert, weight), each in zip(numbers, kept, strict=True)
            ]
        )
    return found


def test_the_choices_are_those_of_the_json(page: str, finished: Run) -> None:
    """The page holds every choice of every token, with weights in hundredths, in under four characters on average."""
    words = ["explain", "latest", TEXT, "eval.capacity=0.5", "--json", "--outputs", str(finished.path.parents[1])]
    content = content_of(page)
    for number, layer in enumerate(json.loads(CliRunner().invoke(app, words).stdout)["layers"]):
        expected = [[{**each, "weight": round(each["weight"], 2)} for each in token] for token in layer["choices"]]
        assert expected == choices_of(content, number)
        assert any(not each["kept"] for token in expected for each in token)
        assert len(content["layers"][number]["choices"]) < 4 * sum(map(len, expected))


def test_any_choices_can_be_packed() -> None:
    """None, one dropped at weight zero, weights above one, experts of several digits: each comes back."""
    choices = [[], [(0, 0, False), (0, 0, True)], [(700, 1240, True), (3, 99, False)]]
    stride = 1241
    layers = [{"choices": packed(choices, stride)}]
    found = choices_of({"layers": layers, "stride": stride}, 0)
    assert choices == [
        [(each["expert"], round(100 * each["weight"]), each["kept"]) for each in token] for token in found
    ]


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
    assert 0 == CliRunner().invoke(app, [*words, "-o", str(tmp_path / "a.html")]).exit_code
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


def test_without_scripts_a_long_text_is_cut(finished: Run, tmp_path: Path) -> None:
    """Without scripts the page shows the first 1,024 of 1,030 tokens and says so; its data hold all."""
    assert 0 == write(finished, tmp_path / "a.html", "ab" * 515).exit_code
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    plain = page.split("<noscript>")[1].split("</noscript>")[0]
    assert "The first 1,024 of 1,030 tokens." in plain
    assert 1024 == sum(line.count("a") + line.count("b") for line in plain.splitlines() if set(line) == {" ", "a", "b"})
    assert 1030 == len(content_of(page)["tokens"])


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
