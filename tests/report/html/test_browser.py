"""The page in headless Chromium without network: sorting, filters, toggles, keyboard, and print."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moe_cli.cli.app import app
from tests.report.folders import complete
from tests.report.html.pages import HOSTILE, page_of, sweep
from tests.report.scaling.test_command import planted
from tests.runner import CliRunner

pytestmark = pytest.mark.slow
playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    sandbox = ["--no-sandbox"] if os.getuid() == 0 else []
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a sweep of four configurations and three seeds, with a run whose name, tags and settings are hostile."""
    folder = tmp_path_factory.mktemp("page")
    for run in sweep(folder / "o")[3:4]:
        config = json.loads((run.path / "config.json").read_text())
        config["router"] = {"name": HOSTILE}
        (run.path / "config.json").write_text(json.dumps(config))
        (run.path / "tags.json").write_text(json.dumps({"tags": [HOSTILE]}))
    page_of(folder / "o", folder / "page.html")
    return folder / "page.html"


@pytest.fixture
def opened(browser: Any, file: Path) -> Iterator[Any]:
    """A function that opens the page in a window; whatever the console says is an error."""
    contexts = []
    said: list[str] = []

    def opened(width: int = 1440, file: Path = file, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url) if not request.url.startswith("file:") else None)
        page.goto(file.as_uri())
        page.wait_for_selector("html[data-ready=yes]")
        return page

    yield opened
    assert [] == said
    for context in contexts:
        context.close()


def column(page: Any, name: str) -> list[str]:
    """Returns the shown cells of a table column, from top to bottom."""
    heads = page.locator("#rows thead th").all_inner_texts()
    place = next(index for index, text in enumerate(heads) if text.rstrip(" ▲▼") == name)
    return [row.locator("td").nth(place).inner_text() for row in page.locator("#rows tbody tr").all()]


def tip(page: Any) -> str:
    """Returns the visible text of the tooltip."""
    assert page.locator("#tooltip").is_visible()
    text: str = page.locator("#tooltip").inner_text()
    return text


def test_every_section_is_there(opened: Any) -> None:
    """Answer, table, curves, trade-offs and experts, each with something in it."""
    page = opened()
    assert ["answer", "table", "curves", "tradeoffs", "experts"] == [
        section.get_attribute("id") for section in page.locator("main > section").all()
    ]
    for chart in ("#curves-chart", "#by-sparsity", "#by-flops", "#by-any"):
        assert page.locator(f"{chart} svg path, {chart} svg circle").count() > 3, chart
    assert page.locator("#by-sparsity .bar").count() > 1
    assert page.locator("#by-any .front").count() >= 1
    assert page.locator("#experts .cell").count() > 16


def test_any_result_and_setting_can_be_drawn(opened: Any) -> None:
    """Loss over the number of experts: one point a row and no front; over FLOPs the marks are those of the chart of FLOPs."""
    page = opened()
    page.locator("#any-x").select_option("expert")
    assert len(json.loads(page.locator("#content").text_content())["rows"]) == page.locator("#by-any .point").count()
    assert 0 == page.locator("#by-any path.front").count()
    page.locator("#any-x").select_option("flops_per_token")
    rings = [page.locator(f"{chart} .ring").count() for chart in ("#by-any", "#by-flops")]
    assert rings[0] == rings[1] == 1


def test_a_heading_sorts(opened: Any) -> None:
    """A heading sorts up, then down, and sets aria-sort; the focus stays."""
    page = opened()
    page.get_by_role("button", name="tok/s").click()
    shown = [float(text.rstrip("k")) for text in column(page, "tok/s")]
    assert sorted(shown) == shown
    assert "ascending" == page.locator("th", has_text="tok/s").get_attribute("aria-sort")
    assert "tokens_per_second" == page.evaluate("document.activeElement.dataset.column")
    page.keyboard.press("Enter")
    shown = [float(text.rstrip("k")) for text in column(page, "tok/s")]
    assert sorted(shown, reverse=True) == shown
    assert "descending" == page.locator("th", has_text="tok/s").get_attribute("aria-sort")


@pytest.mark.parametrize(
    ("words", "experts"),
    [
        ("expert>=8", {"8", "16"}),
        ("dense", {"1"}),
        ("expert=4", {"4"}),
        ("expert!=1 expert<16", {"4", "8"}),
        ("zebra", set()),
    ],
)
def test_words_filter(opened: Any, words: str, experts: set[str]) -> None:
    """Conditions on columns and text anywhere in the row; the charts follow, and the number of rows is said."""
    page = opened()
    page.fill("#words", words)
    assert experts == set(column(page, "expert"))
    rows = page.locator("#rows tbody tr").count()
    assert f"{rows} of 5" in page.locator("#count").inner_text()
    assert rows == page.locator("#by-flops .point").count()


def test_the_legend_toggles(opened: Any) -> None:
    """A press takes a configuration out of all charts, another brings it back; the table's tick does the same."""
    page = opened()
    before = page.locator("#by-flops .point").count()
    name = page.locator("#curves-legend button").first
    name.click()
    assert "false" == page.locator("#curves-legend button").first.get_attribute("aria-pressed")
    assert before - 1 == page.locator("#by-flops .point").count()
    assert before - 1 == page.locator("#curves-chart .line").count()
    page.locator("#curves-legend button").first.click()
    page.locator("#rows tbody input").first.uncheck()
    assert before - 1 == page.locator("#by-flops .point").count()
    page.get_by_role("button", name="Draw none").click()
    assert 0 == page.locator("#by-flops .point").count()
    page.get_by_role("button", name="Draw all").click()
    assert before == page.locator("#by-flops .point").count()


def test_pointing_tells_values(opened: Any) -> None:
    """Over a point of a chart its configuration and numbers are shown, and gone when the pointer leaves."""
    page = opened()
    point = page.locator("#by-flops .point").first
    point.scroll_into_view_if_needed()
    point.hover()
    assert "training FLOP per token" in tip(page)
    page.mouse.move(5, 5)
    assert page.locator("#tooltip").is_hidden()
    page.locator("#curves-chart svg").scroll_into_view_if_needed()
    box = page.locator("#curves-chart svg").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert "over 3 seeds" in tip(page)


def test_charts_are_read_by_keyboard(opened: Any) -> None:
    """Arrow keys walk along a curve and between curves; Escape ends it. The table and every control are reached by Tab."""
    page = opened()
    page.keyboard.press("Tab")
    assert "Skip to the table" == page.evaluate("document.activeElement.textContent")
    page.locator("#curves-chart svg").focus()
    page.keyboard.press("End")
    last = tip(page)
    page.keyboard.press("ArrowLeft")
    assert last != tip(page)
    page.keyboard.press("ArrowDown")
    assert last.splitlines()[0] != tip(page).splitlines()[0]
    page.keyboard.press("Escape")
    assert page.locator("#tooltip").is_hidden()


def test_seeds_open(opened: Any) -> None:
    """The arrow before a row shows its runs with their names."""
    page = opened()
    page.locator("#rows button[data-row='0']").click()
    assert 3 == page.locator("#rows tr.run").count()
    assert "gpt-" in page.locator("#rows tr.run").first.inner_text()
    assert "true" == page.locator("#rows button[data-row='0']").get_attribute("aria-expanded")


def test_other_views_are_pages_too(opened: Any, tmp_path: Path) -> None:
    """A row per run, and one run alone: each opens without an error and shows what it has."""
    runs = sweep(tmp_path / "o", seeds=1, experts=(1, 4))
    for words, rows in ((("--runs",), 2), ((runs[1].id,), 1)):
        page_of(tmp_path / "o", tmp_path / "other.html", *words)
        page = opened(file=tmp_path / "other.html")
        assert rows == page.locator("#rows tbody tr").count()
        assert f"{rows} of {rows}" in page.locator("#count").inner_text()


def test_what_is_hostile_does_nothing(opened: Any) -> None:
    """Markup in names, tags and settings is text, and no script of theirs has run."""
    page = opened()
    page.fill("#words", "window.stolen")
    page.locator("#rows tbody button").first.click() if page.locator("#rows tbody button").count() else None
    assert page.evaluate("window.stolen === undefined")
    assert 0 == page.locator("img").count()
    assert "<img src=x" in page.locator("#main").inner_text()


def test_curves_are_looked_at_closely(opened: Any) -> None:
    """The second half begins where half of training is over; thin lines for each seed are shown when asked for."""
    page = opened()
    page.uncheck("text=each seed") if page.is_checked("text=each seed") else None
    assert 0 == page.locator("#curves-chart .seed").count()
    page.check("text=each seed")
    assert page.locator("#curves-chart .line").count() * 2 < page.locator("#curves-chart .seed").count()
    page.select_option("#curves-part", "half")
    page.select_option("#curves-along", "step")
    chart = page.locator("#curves-chart svg")
    chart.focus()
    page.keyboard.press("Home")
    assert "at 300 steps" in tip(page)  # 50, 100, ... 500: half way lies 275


def test_marks_of_an_axis_have_one_unit(opened: Any) -> None:
    """Marks of an axis share one unit, and no two are alike."""
    page = opened()
    page.select_option("#any-x", "tokens_per_second")
    box = page.locator("#by-any svg text[text-anchor=middle]:not([transform]).quiet").all_text_contents()
    assert box
    assert all(text.endswith("k") for text in box)
    assert len(set(box)) == len(box)


def test_a_scaling_law_is_drawn_and_described(browser: Any, opened: Any, tmp_path: Path) -> None:
    """Points that were measured, lines of the law, a legend that toggles, values by pointer and by keyboard."""
    planted(tmp_path / "o", experts=(1, 2, 4))
    words = ["scaling", "--law", "ludziejewski", "-o", str(tmp_path / "fit.html"), "--outputs", str(tmp_path / "o")]
    assert 0 == CliRunner().invoke(app, words).exit_code
    page = opened(file=tmp_path / "fit.html")
    chart = page.locator("#scaling-chart")
    assert (36, 9) == (chart.locator(".point").count(), chart.locator(".line").count())
    page.locator("#scaling .legend button", has_text="dense").click()
    assert (24, 6) == (chart.locator(".point").count(), chart.locator(".line").count())
    assert "dense" == page.evaluate("document.activeElement.textContent")
    chart.locator("svg").focus()
    page.keyboard.press("ArrowRight")
    assert "training FLOP" in tip(page)
    page.keyboard.press("Escape")
    assert page.locator("#tooltip").is_hidden()
    assert "delta" in page.locator("#scaling pre").inner_text()
    assert 1440 == page.evaluate("document.documentElement.scrollWidth")


CONTRAST = """() => {
  const bright = text => { const [r, g, b] = text.match(/[\\d.]+/g).map(Number).map(v => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = node => { for (; node; node = node.parentElement) { const c = getComputedStyle(node).backgroundColor; if (!/rgba\\(.*, 0\\)/.test(c) && c !== "transparent") return c; } return "rgb(255,255,255)"; };
  const bad = [];
  for (const node of document.querySelectorAll("h1,h2,h3,p,td,th,a,button,label,span,select,input,summary")) {
    if (!node.textContent.trim() || !node.getClientRects().length || node.closest(".unseen, .skip")) continue;
    const a = bright(getComputedStyle(node).color), b = bright(ground(node));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) bad.push(`${ratio.toFixed(2)} ${node.tagName} ${node.className} ${node.textContent.slice(0, 30)}`);
  }
  return bad;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_reader_and_have_contrast(opened: Any, scheme: str) -> None:
    """Light or dark as the system asks, or by the button; all text has a contrast of 4.5 to 1 (WCAG 2.1, 1.4.3)."""
    page = opened(color_scheme=scheme)
    assert scheme == page.evaluate("document.documentElement.dataset.theme")
    page.locator("#rows tbody input").first.uncheck()
    assert [] == page.evaluate(CONTRAST)
    page.locator("#theme").click()
    page.locator("#theme").click()
    assert "dark" == page.evaluate("document.documentElement.dataset.theme")


def test_every_control_has_a_name(opened: Any) -> None:
    """Buttons, fields, lists and charts say what they are to those who do not see them."""
    page = opened()
    unnamed = page.evaluate("""() => [...document.querySelectorAll("button,input,select,svg[role]")].filter(node =>
        !(node.getAttribute("aria-label") || node.textContent.trim() || (node.labels && node.labels.length))).map(node => node.outerHTML.slice(0, 80))""")
    assert [] == unnamed


@pytest.mark.parametrize("width", [360, 390, 768])
def test_a_narrow_window_has_no_sideways_scroll(opened: Any, width: int) -> None:
    """On a phone only the table and wide charts scroll, each in its own frame."""
    page = opened(width)
    assert width == page.evaluate("document.documentElement.scrollWidth")
    assert page.locator("#curves-chart svg").bounding_box()["width"] <= width
    for summary in page.locator("details > summary").all():
        summary.click()
    page.locator("#rows button[data-row='0']").click()
    assert width == page.evaluate("document.documentElement.scrollWidth")


def test_it_prints(opened: Any, tmp_path: Path) -> None:
    """On paper there are no controls, the colours are light, and the table is whole."""
    page = opened(color_scheme="dark")
    page.emulate_media(media="print")
    assert page.locator("#words").is_hidden()
    assert page.locator("nav").is_hidden()
    assert page.locator("#experts-run").is_visible()  # which run is shown
    assert "exact" == page.evaluate("getComputedStyle(document.querySelector('.swatch')).printColorAdjust")
    pdf = page.pdf(format="A4")
    style = "getComputedStyle(document.querySelector({!r})).{}"
    assert "exact" == page.evaluate(style.format(".legend .swatch", "printColorAdjust"))
    assert {"avoid"} == set(
        page.evaluate("[...document.querySelectorAll('h3')].map(each => getComputedStyle(each).breakAfter)")
    )
    assert pdf.startswith(b"%PDF")
    assert len(pdf) > 20_000


def test_an_explained_text_is_read_by_pointing_and_by_keyboard(opened: Any, finished: Any, tmp_path: Path) -> None:
    """Each token shows its expert in the chosen layer; pointing and arrow keys tell all layers; what is in the text stays text."""
    file, text, outputs = tmp_path / "text.html", f"ba né\n{HOSTILE}", str(finished.path.parents[1])
    words = ["explain", "latest", text, "eval.capacity=0.5", "--outputs", outputs]
    found = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert CliRunner().invoke(app, [*words, "-o", str(file)]).exit_code == 0
    page = opened(file=file)
    for layer in (0, 1):
        page.select_option("#layer", str(layer))
        expected = [
            f"{each[0]['expert'] + 1}{'' if each[0]['kept'] else 'x'}" for each in found["layers"][layer]["choices"]
        ]
        assert expected == page.locator(".token small").all_inner_texts()
        tinted = [
            int(name.split("tint k")[1].split()[0]) if "tint" in name else None
            for name in page.locator(".token").evaluate_all("nodes => nodes.map(node => node.className)")
        ]
        assert [None if name.endswith("x") else int(name) - 1 for name in expected] == tinted
    size = len(found["layers"][0]["load"])
    assert [f"E{number + 1}" for number in range(size)] == page.locator("#expert-colours > span").all_inner_texts()
    lines = [
        f"L{number + 1} "
        + ", ".join(
            f"E{each['expert'] + 1} {each['weight']:.2f}{'' if each['kept'] else ' dropped'}"
            for each in layer["choices"][1]
        )
        for number, layer in enumerate(found["layers"])
    ]
    page.locator(".token").nth(1).hover()
    expected_tip = [f"a token 2 of {len(text.encode())}", *lines]
    assert expected_tip == [" ".join(line.split()) for line in tip(page).splitlines()]
    page.mouse.move(0, 0)
    assert not page.locator("#tooltip").is_visible()
    page.keyboard.press("Tab")
    page.focus(".tokens")
    for key in ("ArrowRight", "ArrowRight", "ArrowUp"):
        page.keyboard.press(key)
    assert expected_tip == [" ".join(line.split()) for line in tip(page).splitlines()]
    assert " ".join(expected_tip) == " ".join(page.locator("#live-region").inner_text().split())
    assert page.locator("#layer").input_value() == "0"
    firsts = [choices[0]["expert"] + 1 for choices in found["layers"][0]["choices"]]
    assert firsts == [int(text.rstrip("x")) for text in page.locator(".token small").all_inner_texts()]
    page.keyboard.press("End")
    assert tip(page).startswith(f"}} token {len(text.encode())} of")
    page.keyboard.press("Escape")
    assert not page.locator("#tooltip").is_visible()
    assert page.evaluate("window.stolen") is None
    phone = opened(width=380, file=file)
    assert phone.evaluate("document.documentElement.scrollWidth") <= 380


def test_costs_that_are_nearly_equal_stand_close(opened: Any) -> None:
    """FLOPs within 3 % of each other take less than a third of the width, not all of it."""
    page = opened()
    places = page.evaluate("""[...document.querySelectorAll('#by-flops [data-row] .point')].map(point => {
        const box = point.getBoundingClientRect(); return box.x + box.width / 2; })""")
    width = page.evaluate("document.querySelector('#by-flops svg').getBoundingClientRect().width")
    assert 5 == len(places)
    assert 0 < max(places) - min(places) < width / 3


def test_the_usual_table_fits_a_window_of_1200(opened: Any, tmp_path: Path) -> None:
    """With two settings, wide intervals and verdicts that ask for more seeds, no column is cut off."""
    results = {
        "max_violation": 3.53,
        "dead_experts": 0.031,
        "params": 456_000,
        "active_params": 79_500,
        "flops_per_token": 530_000.0,
        "tokens_per_second": 11_800.0,
    }
    for expert, k, losses in (
        (1, 1, (3.741, 3.765)),
        (4, 2, (3.671, 3.757)),
        (16, 1, (3.762, 3.788)),
        (16, 2, (3.72, 3.746)),
    ):
        for seed, loss in enumerate(losses):
            complete(tmp_path / "o", loss, "sparsity", results, expert=expert, k=k, seed=seed)
    page_of(tmp_path / "o", tmp_path / "page.html")
    page = opened(1200, tmp_path / "page.html")
    assert "seeds" in "".join(column(page, "verdict"))
    assert page.evaluate("(rows => rows.scrollWidth - rows.clientWidth)(document.querySelector('#rows'))") <= 0
