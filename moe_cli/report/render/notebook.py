"""Results as HTML for a notebook: the table of a report, a recommendation, lines of a terminal. Text is escaped."""

import io
from collections.abc import Sequence
from html import escape

from rich.console import Console
from rich.text import Text

from moe_cli.formatting import sanitise
from moe_cli.report.recommend.recommendation import Recommendation
from moe_cli.report.recommend.text import format_recommendation
from moe_cli.report.render.captions import footer_lines, header_lines
from moe_cli.report.render.tables import IN_BOLD, mark_of
from moe_cli.report.table import ReportTable

# The browser breaks lines of text. Lines of a terminal keep this width.
LINE_WIDTH, TERMINAL_WIDTH = 10_000, 120


def table_html(table: ReportTable) -> str:
    """Returns the table of `moe report`, with all its columns and with its captions."""
    heads = [*((column.heading, column.left) for column in table.columns), ("", True)]
    rows = ["".join(_cell("th", text, left) for text, left in heads)]
    for row in table.rows:
        mark = mark_of(row, table)
        cells = [*((column.write(row), column.left) for column in table.columns), (mark, True)]
        rows.append("".join(_cell("td", text, left, bold=mark in IN_BOLD) for text, left in cells))
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    above, below = (
        "".join(f"<div>{escape(sanitise(line.plain))}</div>" for line in lines)
        for lines in (header_lines(table, "report", LINE_WIDTH), footer_lines(table, LINE_WIDTH))
    )
    return f"<div>{above}<table>{body}</table>{below}</div>"


def _cell(tag: str, text: str, left: bool, bold: bool = False) -> str:
    style = f"text-align: {'left' if left else 'right'}; white-space: nowrap"
    return f'<{tag} style="{style}{"; font-weight: bold" if bold else ""}">{escape(sanitise(text))}</{tag}>'


def recommendation_html(found: Recommendation) -> str:
    """Returns the lines of `moe recommend`: the first in bold, commands as code."""
    first, *others = (escape(sanitise(line)) for line in format_recommendation(found))
    lines = [f"<pre>{line}</pre>" if line.startswith("moe ") else f"<div>{line}</div>" for line in others]
    return f"<div><div><b>{first}</b></div>{''.join(lines)}</div>"


def lines_html(lines: Sequence[Text]) -> str:
    """Returns lines of a terminal with their colours."""
    console = Console(
        record=True,
        file=io.StringIO(),
        width=TERMINAL_WIDTH,
        color_system="truecolor",
        force_terminal=True,
        legacy_windows=False,
    )
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False)
    return console.export_html(inline_styles=True, code_format='<pre style="line-height: 1.25">{code}</pre>')
