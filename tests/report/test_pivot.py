"""`moe report --pivot`: two settings as axes, one configuration in each cell."""

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from moe_cli.cli.app import app
from moe_cli.report.intervals import mean_and_interval
from tests.report.folders import complete
from tests.report.html.pages import HOSTILE, content_of, page_of
from tests.runner import CliRunner


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense model and four of five sparse ones, two seeds each."""
    folder = tmp_path_factory.mktemp("pivot")
    for seed in range(2):
        complete(folder, 1.83 + 0.01 * seed, "sparsity", expert=1, seed=seed)
        for expert, k, val_bpb in ((8, 2, 1.77), (8, 4, 1.76), (16, 2, 1.71), (32, 4, 1.74)):
            results = {"tokens_per_second": 20_000.0 + 100 * k + 7 * seed}
            complete(folder, val_bpb + 0.008 * seed * k, "sparsity", results, expert=expert, k=k, seed=seed)
    return folder


def report(outputs: Path, *words: str, columns: int = 120) -> Result:
    return CliRunner().invoke(app, ["report", *words, "--outputs", str(outputs)], env={"COLUMNS": str(columns)})


def cells_of(outputs: Path, *words: str) -> dict[tuple[Any, Any], Any]:
    """Returns the cells of the JSON export by the values of both axes."""
    content = json.loads(report(outputs, *words, "--format", "json").stdout)
    rows, columns = ([axis["value"] for axis in content[name]] for name in ("rows", "columns"))
    return {(rows[cell["row"]], columns[cell["column"]]): cell for cell in content["cells"]}


def test_a_cell_has_the_mean_and_interval_of_its_row_in_the_report(outputs: Path) -> None:
    """The pivot table holds what the table of the report does; the lowest loss is marked; nothing else is there."""
    table = json.loads(report(outputs, "--format", "json").stdout)
    expected = {
        (row["expert"], None if row["expert"] == 1 else row["k"]): (
            row["val_bpb"],
            row["val_bpb_interval"],
            row["val_bpb"] == min(other["val_bpb"] for other in table),
        )
        for row in table
    }
    found = cells_of(outputs, "--pivot", "expert:k")
    assert expected == {place: (cell["value"], cell["interval"], cell["best"]) for place, cell in found.items()}
    assert {(k, expert) for expert, k in expected} == set(cells_of(outputs, "--pivot", "k:expert"))


def test_other_columns_have_the_interval_over_seeds(outputs: Path) -> None:
    """--value takes any column by name or heading; the best is the highest where higher is better."""
    found = cells_of(outputs, "--pivot", "expert:k", "--value", "tok/s")
    expected = mean_and_interval([20_400.0, 20_407.0])
    assert (expected.mean, expected.half_width) == (found[8, 4]["value"], found[8, 4]["interval"])
    assert [(1, None)] == [place for place, cell in found.items() if cell["best"]]
    assert 0 == cells_of(outputs, "--pivot", "expert:k", "--value", "vs_baseline")[1, None]["value"]


@pytest.mark.parametrize("columns", [24, 60, 80, 200])
def test_every_cell_is_shown_at_each_width(outputs: Path, columns: int) -> None:
    """A narrow terminal loses intervals and then stacks the columns; it never loses a mean or exceeds its width."""
    text = report(outputs, "--pivot", "expert:k", columns=columns).stdout
    table = text[text.index("\nexpert ") : text.index("\n* lowest")]
    assert columns >= max(map(len, table.splitlines()))
    means = [f"{cell['value']:.3f}" for cell in cells_of(outputs, "--pivot", "expert:k").values()]
    assert sorted(means) == sorted(re.findall(r"\b1\.\d{3}\b", table))
    assert [columns < 60, columns >= 60] == ["1.718 *" in table, "1.718 +- 0.102 *" in table]


def test_formats_hold_the_same_means(outputs: Path, tmp_path: Path) -> None:
    """csv to full precision, md and latex as text with the best bold; a file holds what the terminal prints."""
    cells = cells_of(outputs, "--pivot", "expert:k")
    rows = list(csv.DictReader(io.StringIO(report(outputs, "--pivot", "expert:k", "--format", "csv").stdout)))
    found = {
        (int(row["expert"]), int(name[2:])): (float(row[name]), float(row[f"{name} interval"]))
        for row in rows
        for name in ("k=2", "k=4")
        if row[name]
    }
    assert {place: (cell["value"], cell["interval"]) for place, cell in cells.items() if place[1]} == found
    text = {form: report(outputs, "--pivot", "expert:k", "--format", form).stdout for form in ("md", "latex", "json")}
    assert ["| 16 |  | **1.718 +- 0.102** |  |"] == [line for line in text["md"].splitlines() if "**" in line]
    assert 1 == text["latex"].count(r"\textbf{$1.718 \pm 0.102$}")
    assert {4} == {line.count("&") + 1 for line in text["latex"].splitlines() if line.endswith(r"\\")}
    files = [tmp_path / f"p.{ending}" for ending in ("md", "tex", "json")]
    report(outputs, "--pivot", "expert:k", *(word for file in files for word in ("-o", str(file))))
    assert [form.rstrip() for form in text.values()] == [file.read_text().rstrip() for file in files]


def test_configurations_are_never_mixed_in_a_cell(tmp_path: Path) -> None:
    """A setting that differs within a cell is an error with its name; one that differs between cells is named."""
    for expert, k in ((8, 2), (16, 2), (8, 4)):
        for lr in (0.001, 0.002):
            complete(tmp_path, 1.7 + lr, expert=expert, k=k, optim__lr=lr, train__steps=500 if k == 2 else 600)
    refused = report(tmp_path, "--pivot", "expert:k")
    assert (2, "") == (refused.exit_code, refused.stdout)
    assert (
        "error: --pivot expert:k: 3 cells have up to 2 configurations. They differ in optim.lr.\n"
        "Choose one, as in --where 'optim.lr == 0.001', or put optim.lr on an axis.\n"
    ) == refused.stderr
    chosen = report(tmp_path, "--pivot", "expert:k", "--where", "optim.lr == 0.001")
    assert "cells also differ in train.steps" in chosen.stdout
    assert ["1.701 *", "1.701 *"] == re.findall(r"1\.701 \*", chosen.stdout)  # one budget has a single cell


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--pivot", "expert"], "give two settings as ROWS:COLUMNS, such as expert:k."),
        (["--pivot", "expert:expert"], "both axes are expert."),
        (["--pivot", "exprt:k"], "exprt is no column. Did you mean 'expert'?"),
        (["--pivot", "expert:router"], "router does not vary."),
        (["--pivot", "expert:val_bpb"], "val_bpb is no setting that distinguishes configurations."),
        (["--pivot", "expert:seed"], "seed is no setting that distinguishes configurations."),
        (["--pivot", "expert:k", "--where", "k == 2 and expert > 1"], "Only expert varies: a pivot table needs two"),
        (["--pivot", "expert:k", "--value", "verdict"], "--value verdict has no number in any row."),
        (["--value", "val_bpb"], "Add its axes: --pivot expert:k"),
        (["--pivot", "expert:k", "--runs"], "--runs has no effect on a pivot table"),
        (["--pivot", "expert:k", "--sort", "k"], "--sort has no effect on a pivot table"),
        (["--pivot", "expert:k", "-o", "x.png"], "It can be .html, .csv, .json, .md, .tex."),
    ],
)
def test_errors_name_the_axes_that_vary(outputs: Path, words: list[str], message: str) -> None:
    """Wrong axes and options without effect: at most three lines, with the possible axes."""
    result = report(outputs, *words)
    assert (2, "", True) == (result.exit_code, result.stdout, message in result.stderr)
    assert 3 >= len(result.stderr.splitlines())
    if len(words) == 2 and words[0] == "--pivot":
        assert "Settings that vary: expert, k" in result.stderr


def test_the_page_has_a_heat_map_of_plain_text(tmp_path: Path) -> None:
    """The best cell has the strongest colour, an empty one is null, and names from files stay text."""
    for expert, k in ((8, 2), (16, 2), (8, 4)):
        complete(tmp_path, 1.9 - expert / 100, expert=expert, k=k)
    run = complete(tmp_path, 1.5, expert=16, k=1)
    config = json.loads((run.path / "config.json").read_text())
    (run.path / "config.json").write_text(json.dumps({**config, "k": HOSTILE}))
    page = page_of(tmp_path, tmp_path / "page.html", "--pivot", "expert:k")
    heat = next(each["heat_map"] for each in content_of(page)["sections"] if each["id"] == "pivot")
    assert 3 == len(heat["columns"])
    shades = {
        (row["name"], place): cell and cell["shade"] for row in heat["rows"] for place, cell in enumerate(row["cells"])
    }
    assert [0, None] == [shades["16", 2], shades["16", 1]]
    assert "<img" not in page
