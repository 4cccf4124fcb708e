"""moe scaling."""

from pathlib import Path
from typing import Annotated

import typer

import moe_cli
from moe_cli.cli.options import AsJson, Outputs, Sweeps, Where, print_json, print_written
from moe_cli.errors import ConfigError

Law = Annotated[str, typer.Option(metavar="LAW", help="clark, krajewski, abnar, ludziejewski, or auto: the best fit.")]
Predict = Annotated[
    list[str] | None,
    typer.Option(metavar="SETTINGS", help="Predict the loss at settings such as 'expert=64 k=2'. Repeatable."),
]
Validate = Annotated[bool, typer.Option("--validate", help="Predict the largest configurations from the others.")]
Page = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE.html", help="Write an HTML page with the report and the law."),
]


def scaling(
    sweeps: Sweeps = None,
    law: Law = "auto",
    predict: Predict = None,
    validate: Validate = False,
    where: Where = None,
    as_json: AsJson = False,
    page: Page = None,
    outputs: Outputs = None,
) -> None:
    """Fit a scaling law to runs of several sizes.

    Examples:
        moe scaling isoflop
        moe scaling isoflop --predict 'expert=64 k=2'
    """
    from moe_cli.cli.console import Terminal, print_lines, text_width
    from moe_cli.report.load import load_selection, title_of
    from moe_cli.report.scaling.analysis import analyse, analysis_record
    from moe_cli.report.scaling.settings import points_of
    from moe_cli.report.scaling.text import analysis_lines
    from moe_cli.report.table import select_runs
    from moe_cli.runs.folder import outputs_folder

    if page and (as_json or page.suffix.lower() != ".html"):
        raise ConfigError("--output writes a page: give the name of a .html file, without --json.")
    runs = load_selection(outputs_folder(outputs), sweeps or [])
    selected, title = select_runs(runs, where), title_of(runs, sweeps or [])
    found = analyse(
        selected, law, {" ".join(text.split()): points_of(text, selected) for text in predict or ()}, validate
    )
    if page:
        from moe_cli.report.export import check_files, export
        from moe_cli.report.html.page_data import Source
        from moe_cli.report.table import ReportQuery, build_table

        check_files([page])
        source = Source(selected, (), title, f"moe {moe_cli.__version__}")
        export([page], build_table(selected, ReportQuery()), source, found)
        print_written([page])
    elif as_json:
        print_json(analysis_record(found))
    else:
        console = Terminal(highlight=False, emoji=False, markup=False)
        print_lines(console, analysis_lines(found, title, text_width(console)))
