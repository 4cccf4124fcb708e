"""moe report --plot: one column against another, in the terminal."""

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from moe_cli.report.table import ReportTable

PlotOption = Annotated[
    str | None,
    typer.Option(
        "--plot", metavar="Y:X[:SERIES]", help="Draw it: val_bpb:expert, val_loss:sparsity, val_bpb:active_flops:k."
    ),
]


def print_plot(table: "ReportTable", title: str, request: str, form: str) -> None:
    """The chart as wide as the terminal. Raises ConfigError for columns that are not there, or another format."""
    from moe_cli.cli.console import Terminal, text_width
    from moe_cli.cli.text_table import print_lines
    from moe_cli.errors import ConfigError
    from moe_cli.report.render.charts import chart_lines, make_chart

    if form != "table":
        raise ConfigError(f"--plot draws in the terminal; --format {form} has no effect on it. Leave one out.")
    console = Terminal(highlight=False, emoji=False, markup=False)
    print_lines(console, chart_lines(make_chart(table, request), title, text_width(console), ascii_only=ascii_only()))


def ascii_only() -> bool:
    """Whether lines and blocks would not be seen: by the encoding of the output, or in the C locale."""
    try:
        "┤─│".encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return True
    locale = next((value for name in ("LC_ALL", "LC_CTYPE", "LANG") if (value := os.environ.get(name))), "")
    return locale in ("C", "POSIX")
