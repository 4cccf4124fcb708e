"""The page as a file: its content, its size, and the escape of foreign text."""

import html
import json
import os
import re
from base64 import b64encode
from hashlib import sha256
from importlib.resources import files
from pathlib import Path

import pytest

from moe_cli.report.html.downsample import downsampled, rounded
from moe_cli.report.html.page import as_script_data
from moe_cli.report.pareto import tolerance
from moe_cli.report.report_file import write_file
from tests.report.folders import complete, edit_summary
from tests.report.html.pages import HOSTILE, content_of, curves_and_experts, page_of, report, sweep


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four configurations of three seeds in `o`, and their page."""
    folder = tmp_path_factory.mktemp("swept")
    sweep(folder / "o")
    page_of(folder / "o", folder / "page.html")
    return folder


def test_the_page_holds_the_table(swept: Path) -> None:
    """The rows, their columns as the terminal writes them, their runs by seed, curves, experts and the recommendation."""
    content = content_of((swept / "page.html").read_text())
    assert ["expert=16", "expert=8", "expert=4", "expert=1 (dense)"] == [row["label"] for row in content["rows"]]
    assert [0, 1, 2] == [run["seed"] for run in content["rows"][0]["runs"]]
    text = report(swept / "o", "--format", "md").stdout
    for row in content["rows"]:
        assert [] == [cell for cell in row["cells"] if cell not in text], text
    assert [True, False, False, False] == [row["best"] for row in content["rows"]]
    answer = next(each for each in content["sections"] if each["id"] == "answer")
    assert answer["lines"][0].endswith(": use expert=16 k=2 (topk, switch, dropless).")
    assert 12 == len(
        {(each["row"], tuple(each["value"])) for each in content["curves"]["series"] if each["metric"] == 0}
    )
    assert {3} == {len([e for e in content["experts"] if e["row"] == row]) for row in (0, 1, 2)}
    layer = content["experts"][0]["layers"][1]
    assert 16 == len(layer["load"]) == len(layer["pairs"]) == len(layer["tokens"])
    assert ["code", "prose"] == sorted(name for name, _ in layer["domains"])


def test_the_answer_comes_before_the_costs(swept: Path) -> None:
    """A phone shows score, difference and verdict next to the settings; named columns keep their order."""
    content = content_of((swept / "page.html").read_text())
    names = [column["name"] for column in content["columns"]]
    assert ["expert", "val_bpb", "vs_baseline", "verdict", "params"] == names[:5]
    report(swept / "o", "--columns", "params,val_bpb", "-o", str(swept / "named.html"))
    named = content_of((swept / "named.html").read_text())
    assert ["params", "val_bpb"] == [column["name"] for column in named["columns"]]


def test_the_legend_leaves_out_what_most_rows_have(tmp_path: Path) -> None:
    """With many varying settings a chip names the experts and what is unusual; short labels tell all rows apart."""
    for index, settings in enumerate(
        ({}, {"optim.lr": 0.1}, {"optim.warmup_fraction": 0.5}, {"optim.weight_decay": 0.3})
    ):
        complete(tmp_path / "o", 2.0 + index / 10, expert=4 if index else 8, **settings)
    page_of(tmp_path / "o", tmp_path / "page.html")
    rows = content_of((tmp_path / "page.html").read_text())["rows"]
    short = [row["short_label"] for row in rows]
    assert len(set(short)) == len(rows)
    assert all(len(name) < len(row["label"]) for name, row in zip(short, rows, strict=True))


def test_sparsity_intervals_and_front_are_there_to_be_drawn(swept: Path) -> None:
    """For each row sparsity 1 - k / E, FLOPs, the half-width of the interval, and whether it is on the front."""
    rows = content_of((swept / "page.html").read_text())["rows"]
    assert [1 - 2 / 16, 1 - 2 / 8, 1 - 2 / 4, 0] == [row["values"]["sparsity"] for row in rows]
    assert [6e6 + 1e4 * expert for expert in (16, 8, 4, 1)] == [row["values"]["flops_per_token"] for row in rows]
    assert all(row["interval"]["val_bpb"] > 0 for row in rows)
    assert [True] * 4 == [row["pareto"] for row in rows]  # sparser is better, and slower


def test_any_setting_that_varies_in_number_can_be_drawn(tmp_path: Path) -> None:
    """expert, k, capacity and optim.lr are quantities with the values of the rows that have them; a router's name is none."""
    sweep(tmp_path / "o", seeds=1, experts=(1, 4))
    complete(tmp_path / "o", 1.9, "sparsity", expert=8, k=1, optim__lr=0.5, capacity=1.25)
    complete(tmp_path / "o", 1.9, "sparsity", expert=8, k=2, router="sigmoid")
    content = content_of(page_of(tmp_path / "o", tmp_path / "page.html"))
    names = [each["name"] for each in content["quantities"]]
    assert {"expert", "k", "capacity", "optim.lr"} < {*names}
    assert "router" not in names
    by_expert = {
        row["values"]["expert"]: row["values"] for row in content["rows"] if row["settings"].get("router") != "sigmoid"
    }
    assert (None, 2, 1) == tuple(by_expert[expert]["k"] for expert in (1, 4, 8))
    assert (None, None, 1.25) == tuple(by_expert[expert]["capacity"] for expert in (1, 4, 8))
    assert 0.5 == by_expert[8]["optim.lr"] != by_expert[4]["optim.lr"]
    assert {True} == {set(names) == set(row["values"]) for row in content["rows"]}


def test_tolerances_of_the_front_are_in_the_page(swept: Path) -> None:
    """The note below the charts has the factors within which values count as equal, those of the table's front."""
    text = (swept / "page.html").read_text()
    content = content_of(text)
    flops, noise = (round(100 * tolerance(name) - 100) for name in ("flops_per_token", "seconds"))
    assert f"FLOPs within {flops} %, and speed, memory and time within {noise} %, count as equal." in text
    # FLOPs within 1 % are equal, so of the front by FLOPs only the lowest loss is left.
    assert [[0]] == content["fronts"]["flops_per_token|val_bpb"]


def test_a_row_alone_in_its_budget_is_on_no_front(tmp_path: Path) -> None:
    """Table and charts mark only rows that have another row of the same data and budget."""
    for expert, steps, val_bpb in ((1, 500, 1.9), (8, 500, 1.7), (8, 900, 1.5)):
        complete(tmp_path / "o", val_bpb, expert=expert, train__steps=steps)
    page_of(tmp_path / "o", tmp_path / "page.html")
    content = content_of((tmp_path / "page.html").read_text())
    alone = [row["index"] for row in content["rows"] if row["settings"]["train.steps"] == 900]
    assert [False] == [content["rows"][index]["pareto"] for index in alone]
    marked = {index for fronts in content["fronts"].values() for front in fronts for index in front}
    assert marked
    assert marked.isdisjoint(alone)


def test_the_heading_is_not_said_twice(swept: Path) -> None:
    """The lines above the table are those of the terminal, without the title that stands over the page."""
    content = content_of((swept / "page.html").read_text())
    assert "sparsity" == content["title"]
    assert content["above"][0].startswith("4 configurations, 3 seeds each   ")
    assert "baseline   expert=1 (dense)" == content["above"][1]


def _brightness(colour: str) -> float:
    """Relative luminance of #rgb or #rrggbb, WCAG 2.1."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * each for each in colour[1:])
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrast(one: str, other: str) -> float:
    low, high = sorted((_brightness(one), _brightness(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_have_contrast(theme: str) -> None:
    """Text and numbers in heat maps have 4.5 to 1 against what is behind them, lines and edges of controls 3 to 1 (WCAG 2.1)."""
    style = files("moe_cli.report.html").joinpath("assets", "page.css").read_text()
    block = re.search(rf'data-theme="{theme}"\] \{{(.*?)\}}', style, flags=re.S)
    assert block
    colours = dict(re.findall(r"--(\w+): (#\w+)", block[1]))
    for ground in ("paper", "raised"):
        for name in ("ink", "quiet", "accent", "good", "care", "wrong"):
            assert _contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
        assert _contrast(colours["edge"], colours[ground]) >= 3, ground
    assert all(_contrast(colours[f"t{shade}"], colours[f"h{shade}"]) >= 4.5 for shade in range(9))
    assert all(_contrast(colours[f"c{line}"], colours["paper"]) >= 4.5 for line in range(10))
    assert abs(_contrast("#000", "#ffffff") - 21) < 1e-9


def test_no_foreign_text_is_markup(tmp_path: Path) -> None:
    """Names, tags, reasons, settings and tokens that look like markup stand as text in JSON without a single bracket."""
    runs = sweep(tmp_path / "o", seeds=2, experts=(1, 4))
    for run in runs:
        config = json.loads((run.path / "config.json").read_text())
        config["router"] = {"name": HOSTILE} if config["expert"] > 1 else None
        (run.path / "config.json").write_text(json.dumps(config))
        (run.path / "tags.json").write_text(json.dumps({"tags": [HOSTILE]}))
        edit_summary(run.path, corpus=HOSTILE)
    page = page_of(tmp_path / "o", tmp_path / "page.html")
    assert "window.stolen" in page
    assert 2 == page.count("<script") == page.count("</script>")
    assert "<img" not in page
    data = page.split('id="content">')[1].split("</script>")[0]
    assert not set("<>&") & set(data)
    assert data.isascii()
    assert "\x1b" not in page
    assert any(
        HOSTILE.replace("\x1b", "?") in tag
        for row in content_of(page)["rows"]
        for run in row["runs"]
        for tag in run["tags"]
    )


def test_only_the_pages_own_script_may_run(tmp_path: Path) -> None:
    """The policy names the one script and the one style by their hashes and allows no network."""
    sweep(tmp_path / "o", seeds=1, experts=(1, 4))
    page = page_of(tmp_path / "o", tmp_path / "page.html")
    policy = html.unescape(re.search(r'Content-Security-Policy" content="(.*?)"', page)[1])  # type: ignore[index]
    script, style = page.split("<script>")[1].split("</script>")[0], page.split("<style>")[1].split("</style>")[0]
    for kind, text in (("script", script), ("style", style)):
        assert f"{kind}-src 'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" in policy
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", page)


@pytest.mark.slow
def test_a_page_of_a_hundred_runs_is_below_two_megabytes(tmp_path: Path) -> None:
    """A hundred runs of 32 experts, long curves and eight layers."""
    for seed in range(100):
        run = complete(
            tmp_path / "o", 2.0 - seed / 1000, "sparsity", expert=32, k=4, seed=seed, optim__lr=0.01 + seed / 9999
        )
        curves_and_experts(run, 2.0, 32, steps=20_000, layers=8)
    page = page_of(tmp_path / "o", tmp_path / "page.html")
    assert len(page.encode()) < 2_000_000
    assert 100 == len(content_of(page)["rows"])


@pytest.mark.parametrize("words", [(), ("--runs",), ("--where", "expert > 1"), ("--columns", "k,val_bpb,seconds")])
def test_pages_of_other_views(tmp_path: Path, words: tuple[str, ...]) -> None:
    """A row per run, no rows at all, columns of choice: all are pages, and hold what the terminal shows."""
    sweep(tmp_path / "o", seeds=2, experts=(1, 4))
    result = report(tmp_path / "o", *words, "-o", tmp_path / "page.html")
    if "--where" in words:
        assert result.exit_code in (0, 2)
        return
    content = content_of((tmp_path / "page.html").read_text())
    assert (4 if "--runs" in words else 2) == len(content["rows"])
    if "--columns" in words:
        assert ["k", "val_bpb", "seconds"] == [column["name"] for column in content["columns"]][:3]


def test_a_damaged_run_costs_itself_alone(tmp_path: Path) -> None:
    """Torn and hostile files of a run leave the page of the others whole, its numbers finite."""
    runs = sweep(tmp_path / "o")
    (runs[3].path / "routing.jsonl").write_text('{"layer": "x", "tokens_per_expert": [1e999, null]}\n{"step":')
    (runs[4].path / "metrics.jsonl").write_text('{"step": 10, "val/bpb": NaN}\n[]\n"x"\n')
    (runs[5].path / "summary.json").write_text('{"val_bpb": Infinity, "val_loss": 1e999}')
    content = content_of(page_of(tmp_path / "o", tmp_path / "page.html"))
    assert 4 <= len(content["rows"])


def test_only_a_page_of_ours_is_replaced(tmp_path: Path) -> None:
    """A foreign file stays and is an error, an earlier page is replaced, and a folder is no file."""
    sweep(tmp_path / "o", seeds=1, experts=(1, 4))
    (tmp_path / "mine.html").write_text("<p>mine")
    result = report(tmp_path / "o", "-o", tmp_path / "mine.html")
    assert (2, "<p>mine") == (result.exit_code, (tmp_path / "mine.html").read_text())
    assert "was not made by moe report: it is left as it is" in result.stderr
    page_of(tmp_path / "o", tmp_path / "page.html")
    page_of(tmp_path / "o", tmp_path / "page.html")
    (tmp_path / "folder.html").mkdir()
    for place, message in (("folder.html", "is not a file"), ("no/page.html", "no folder")):
        result = report(tmp_path / "o", "-o", tmp_path / place)
        assert (2, True) == (result.exit_code, message in result.stderr)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the rename fails the old file is there and no other; links are followed; the usual permissions hold."""
    file = tmp_path / "page.html"
    write_file(file, "old")
    assert 0o666 & ~0o022 == file.stat().st_mode & 0o777
    (tmp_path / "link.html").symlink_to(file)
    write_file(tmp_path / "link.html", "new")
    assert ("new", True) == (file.read_text(), (tmp_path / "link.html").is_symlink())

    def full(*paths: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(Exception, match="No space left on device"):
        write_file(file, "newer")
    assert ("new", ["link.html", "page.html"]) == (file.read_text(), sorted(path.name for path in tmp_path.iterdir()))


def test_script_data_cannot_end_a_script() -> None:
    """No bracket and no ampersand, whatever is said; read back it is the same."""
    content = {"a": HOSTILE, "b": ["</SCRIPT>", "<!--", "\u2028é"]}
    assert not set("<>&\u2028") & set(as_script_data(content))
    assert content == json.loads(as_script_data(content))
    with pytest.raises(ValueError, match="not JSON compliant"):
        as_script_data({"a": float("nan")})


def test_thinned_curves_keep_their_end_and_mean() -> None:
    """Thinned curves have at most the given number of points: the last is exact, the others are means of neighbours."""
    steps, values = list(range(1, 1001)), [float(step) for step in range(1, 1001)]
    at, means = downsampled(steps, values, 10)
    assert list(range(100, 1001, 100)) == at
    assert [50.5 + 100 * place for place in range(9)] == means[:9]
    assert 1000.0 == means[9]
    assert (steps, values) == downsampled(steps, values, 1000)
    assert [1.2346, 12, None, None] == [rounded(1.23456789), rounded(12.0), rounded(float("inf")), rounded(None)]
