"""Results in a notebook: the figures of the terminal, and no markup from names of runs."""

import re
from html import unescape
from pathlib import Path

from rich.text import Text

from moe_cli.report.load import rows_below
from moe_cli.report.recommend.recommendation import make_recommendation
from moe_cli.report.render.notebook import lines_html
from moe_cli.report.render.tables import report_lines
from moe_cli.report.table import ReportQuery, build_table
from tests.report.folders import complete, sweep_of_three_seeds

HOSTILE = "<script>alert(1)</script>&amp;"


def test_the_table_of_a_notebook_has_the_figures_of_the_terminal(tmp_path: Path) -> None:
    """Every cell, heading and caption of the terminal's table is in the HTML table, in the same order."""
    sweep_of_three_seeds(tmp_path)
    table = build_table(rows_below(tmp_path), ReportQuery())
    page = table._repr_html_()
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", page)]
    shown = [line.plain.split() for line in report_lines(table, "report", 1000, curves=False)]
    for row in rows:
        assert " ".join(map(unescape, row)).split() in shown


def test_hostile_text_is_escaped(tmp_path: Path) -> None:
    """Names of corpora and settings are text in the table, the recommendation and lines of a terminal."""
    for expert in (1, 8):
        complete(
            tmp_path, 2.0 - expert / 100, expert=expert, results={"corpus": HOSTILE}, data__path=HOSTILE, data="text"
        )
    rows = rows_below(tmp_path)
    pages = [
        build_table(rows, ReportQuery(columns=("corpus", "val_bpb")))._repr_html_(),
        make_recommendation(rows)._repr_html_(),
        lines_html([Text(HOSTILE, "bold red")]),
    ]
    for page in pages:
        assert "<script" not in page
        assert "&lt;script&gt;" in page
