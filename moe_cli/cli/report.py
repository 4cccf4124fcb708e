"""moe report."""

import os
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import moe_cli
from moe_cli.cli.echo import echo, echo_data
from moe_cli.cli.options import (
    OUTPUT,
    ROWS_AND_COLUMNS,
    Baseline,
    LossLaw,
    Machine,
    Outputs,
    PluginFiles,
    Sweeps,
    Where,
    option,
    print_notes,
    print_written,
)
from moe_cli.errors import ConfigError
from moe_cli.formatting import sanitise

if TYPE_CHECKING:
    from moe_cli.report.html.page_data import Source
    from moe_cli.report.pivot import Pivot
    from moe_cli.report.run_row import RunRow
    from moe_cli.report.table import ReportTable


# The files that --to sends unless -o names others.
SENT = (".html", ".csv", ".json")


class Format(StrEnum):
    """The format of a printed report."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    MD = "md"
    LATEX = "latex"


FormatOption = Annotated[Format | None, option(OUTPUT, "--format", help="How to print it.  [default: table]")]
Sort = Annotated[
    str | None,
    option(ROWS_AND_COLUMNS, metavar="COLUMN", help="Sort rows by a column; -COLUMN: the largest value first."),
]
Columns = Annotated[
    str | None,
    option(
        ROWS_AND_COLUMNS,
        metavar="A,B,C",
        help="Show these columns, by name or heading: k,val_bpb,MaxVio,train.steps.",
    ),
]
ByRun = Annotated[
    bool,
    option(ROWS_AND_COLUMNS, "--runs", help="Show a row per run: without means over seeds, also unfinished runs."),
]
Plot = Annotated[
    str | None,
    option(
        OUTPUT,
        metavar="Y:X[:SERIES]",
        help="Draw a chart: val_bpb:expert, val_loss:sparsity, val_bpb:active_flops:k.",
    ),
]
PivotAxes = Annotated[
    str | None,
    option(
        OUTPUT,
        "--pivot",
        metavar="ROWS:COLUMNS",
        help="Show a table of two settings: expert:k. A cell is one configuration.",
    ),
]
PivotValue = Annotated[
    str | None,
    option(OUTPUT, "--value", metavar="COLUMN", help="The column in the cells of --pivot.  [default: the loss]"),
]
Files = Annotated[
    list[Path] | None,
    option(
        OUTPUT,
        "--output",
        "-o",
        metavar="FILE",
        help="Write a file instead: .html (a page without network), .csv, .json, .md, .tex, .png or .svg. Repeatable.",
    ),
]
To = Annotated[
    str | None,
    option(
        OUTPUT,
        "--to",
        metavar="TRACKER",
        help="Keep the report (.html, .csv and .json, or the files of -o) as an artifact of mlflow or wandb.",
    ),
]


def report(  # noqa: PLR0913  (an argument for each option)
    sweeps: Sweeps = None,
    form: FormatOption = None,
    where: Where = None,
    sort: Sort = None,
    columns: Columns = None,
    by_run: ByRun = False,
    baseline: Baseline = None,
    loss_law: LossLaw = None,
    machine: Machine = None,
    plot: Plot = None,
    pivot: PivotAxes = None,
    value: PivotValue = None,
    files: Files = None,
    to: To = None,
    plugin: PluginFiles = None,
    outputs: Outputs = None,
) -> None:
    """Compare runs: means over seeds with intervals.

    Examples:
        moe report
        moe report sparsity --where 'expert >= 8'
    """
    from moe_cli.report.baseline import find_baseline
    from moe_cli.report.load import load_selection, title_of, without_garbage_collection
    from moe_cli.report.looks import remember
    from moe_cli.report.price import read_pricing
    from moe_cli.report.table import ReportQuery, build_table
    from moe_cli.runs.folder import outputs_folder

    _check_ways(files, to, form, plot)
    _check_pivot(pivot, value, "--runs" if by_run else "--columns" if columns else "--sort" if sort else None, plot)
    if files:
        from moe_cli.report.export import ENDINGS, PIVOT_ENDINGS, check_files

        check_files(files, ENDINGS if pivot is None else PIVOT_ENDINGS)
        _check_inputs_are_kept(files, sweeps or [])
    pricing = read_pricing(loss_law, machine or [])
    with without_garbage_collection():
        folder = outputs_folder(outputs)
        runs = load_selection(folder, sweeps or [])
        title = title_of(runs, sweeps or [])
        base, extra = find_baseline(baseline, folder, runs, whole=not sweeps)
        names = tuple(name.strip() for name in (columns or "").split(",") if name.strip())
        table = build_table(runs, ReportQuery(where, sort, names, by_run, plot), extra, base, pricing)
        if where is not None and not (table.all_rows or table.unfinished):
            raise ConfigError(f"no run matches --where '{where}'.")
        found = None
        if pivot is not None:
            from moe_cli.report.pivot import make_pivot

            found = make_pivot(table, pivot, value)
        if files or to:
            from moe_cli.report.html.page_data import Source

            source = Source(runs, extra, title, f"moe {moe_cli.__version__}")
            _write(files, table, source, found, to, folder)
        elif found:
            _print_pivot(found, table, title, form or Format.TABLE)
        elif plot:
            return _print_chart(table, title, plot)
        else:
            _print(table, title, form or Format.TABLE, [run.path for run in runs])
        remember(table.look)
        if not (files or to or found) and form in (None, Format.TABLE):
            _print_ledger(folder, runs)


def _print_ledger(outputs: Path, runs: "list[RunRow]") -> None:
    """Prints a line for each validation set of the runs on which several sweeps made many comparisons."""
    from moe_cli.cli.console import print_fitted
    from moe_cli.report.ledger import ledger_sentences, read_ledger
    from moe_cli.report.render.terminal import wrap

    sentences = ledger_sentences(read_ledger(outputs, runs), runs)
    if sentences:
        print_fitted(lambda width: [line for sentence in sentences for line in wrap(sentence, width, "dim")])


def _check_ways(files: list[Path] | None, to: str | None, form: Format | None, plot: str | None) -> None:
    """Raises ConfigError for several ways to show one report."""
    if (files and (form or plot)) or (plot and form not in (None, Format.TABLE)):
        raise ConfigError("--output, --format and --plot are three ways to show a report: give one of them.")
    if to is not None:
        from moe_cli.loggers.report_artifact import check_tracker

        if form or plot:
            raise ConfigError("--to sends files, and --format and --plot print the report: give one of them.")
        check_tracker(to)


def _check_pivot(pivot: str | None, value: str | None, other: str | None, plot: str | None) -> None:
    """Raises ConfigError for options that a pivot table does not have; `other` is one of them that was given."""
    if pivot is None and value is not None:
        raise ConfigError("--value is the column in the cells of a pivot table. Add its axes: --pivot expert:k")
    if pivot is not None and (other or plot):
        other = other or "--plot"
        raise ConfigError(f"{other} has no effect on a pivot table: leave out {other} or --pivot.")


def _write(
    files: list[Path] | None,
    table: "ReportTable",
    source: "Source",
    pivot: "Pivot | None",
    to: str | None,
    outputs: Path,
) -> None:
    """Writes the files of the report, or those of `SENT` for a while, and sends them to a tracker."""
    from moe_cli.decisions.terms import DECISION_FILE
    from moe_cli.report.export import export

    decided = [path for path in {Path(run.path).parent for run in source.runs} if (path / DECISION_FILE).is_file()]
    answer = []
    if decided:
        from moe_cli.decisions.page import decision_sections  # knows Hydra, which takes as long as a report

        answer = decision_sections(decided)
    with TemporaryDirectory() as temporary:
        made = files or [Path(temporary) / f"report{ending}" for ending in SENT]
        export(made, table, source, pivot=pivot, answer=answer)
        if files:
            print_written(files)
        if to:
            from moe_cli.loggers.report_artifact import send_report

            echo(f"{', '.join(file.name for file in made)} sent to {send_report(to, made, source.title, outputs)}")


def _check_inputs_are_kept(files: list[Path], names: list[str]) -> None:
    """Raises ConfigError for an output that is also a table to be read: the report has less than the runs."""
    from moe_cli.report.table_file import is_table_file

    tables = {os.path.realpath(Path(name).expanduser()) for name in names if is_table_file(name)}
    for file in files:
        if os.path.realpath(file.expanduser()) in tables:
            raise ConfigError(f"--output {sanitise(str(file))} is the table that is read. Name another file.")


def _print(table: "ReportTable", title: str, form: Format, paths: list[str]) -> None:
    from moe_cli.report.importance import load_importances
    from moe_cli.report.render.latex import latex_text
    from moe_cli.report.render.tables import csv_text, json_text, markdown_text

    if form is Format.TABLE:
        _print_table(table, title, paths)
        return
    if form is Format.JSON:
        found, notes = load_importances(paths)
        echo_data(json_text(table, found))
        print_notes(notes)
        return
    write = {Format.CSV: csv_text, Format.MD: markdown_text, Format.LATEX: latex_text}[form]
    echo_data(write(table).rstrip("\n"))


def _print_table(table: "ReportTable", title: str, paths: list[str]) -> None:
    from moe_cli.cli.console import print_fitted
    from moe_cli.cli.echo import ascii_only
    from moe_cli.report.importance import load_importances
    from moe_cli.report.render.captions import importance
    from moe_cli.report.render.tables import report_lines

    found, notes = load_importances(paths)
    print_fitted(lambda width: [*report_lines(table, title, width, not ascii_only()), *importance(found, width)])
    print_notes(notes)


def _print_pivot(pivot: "Pivot", table: "ReportTable", title: str, form: Format) -> None:
    from moe_cli.cli.console import print_fitted
    from moe_cli.report.render.pivot import pivot_lines, pivot_text

    if form is not Format.TABLE:
        return echo_data(pivot_text(pivot, form.value).rstrip("\n"))
    print_fitted(lambda width: pivot_lines(pivot, table, title, width))


def _print_chart(table: "ReportTable", title: str, request: str) -> None:
    from moe_cli.cli.console import print_fitted
    from moe_cli.cli.echo import ascii_only
    from moe_cli.report.render.terminal_chart import chart_lines, make_chart

    chart = make_chart(table, request)
    print_fitted(lambda width: chart_lines(chart, title, width, ascii_only=ascii_only()))
