"""moe report."""

from collections.abc import Collection, Mapping, Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import moe_cli
from moe_cli.cli.export import Html, To, check_export, export_files, print_written, write_files
from moe_cli.cli.options import Outputs, print_notes
from moe_cli.cli.plot import PlotOption, ascii_only, print_plot
from moe_cli.cli.recommend import Across, Recommend, check_alone, check_options, print_recommendation
from moe_cli.cli.scaling import FitOption, FitRequest, Predict, Validate, check_fit, print_fit
from moe_cli.cli.terminal import echo_data

if TYPE_CHECKING:
    from moe_cli.report.run_row import RunRow, Settings
    from moe_cli.report.table import ReportTable


class Format(StrEnum):
    """How a report is printed."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    MD = "md"
    LATEX = "latex"


Selection = Annotated[
    list[str] | None,
    typer.Argument(metavar="SELECTION", help="Sweeps, run ids, their beginnings, patterns or folders. None: all runs."),
]
FormatOption = Annotated[Format, typer.Option("--format", help="How to print it.")]
Filter = Annotated[
    str | None,
    typer.Option(
        "--filter", metavar="CONDITION", help="Runs and rows to show, such as 'expert >= 8 and router == \"topk\"'."
    ),
]
Sort = Annotated[str | None, typer.Option(metavar="COLUMN", help="Order of the rows; -COLUMN: the largest first.")]
Columns = Annotated[str | None, typer.Option(metavar="A,B,C", help="Columns to show, such as k,val_bpb,train.steps.")]
BaselineOption = Annotated[
    str | None,
    typer.Option(
        "--baseline",
        metavar="SETTINGS",
        help="Take differences to the configurations with these settings, such as balance=none.",
    ),
]
ByRun = Annotated[bool, typer.Option("--runs", help="A row per run: seeds are not folded, unfinished runs are shown.")]


def report(  # noqa: PLR0913  (an argument for each option)
    selection: Selection = None,
    form: FormatOption = Format.TABLE,
    condition: Filter = None,
    sort: Sort = None,
    columns: Columns = None,
    by_run: ByRun = False,
    baseline: BaselineOption = None,
    html: Html = None,
    to: To = None,
    recommend: Recommend = False,
    across: Across = None,
    fit: FitOption = None,
    predict: Predict = None,
    validate: Validate = False,
    plot: PlotOption = None,
    outputs: Outputs = None,
) -> None:
    """Compare runs, seeds folded to mean and interval. Example: moe report sparsity --filter 'expert >= 8'"""
    from moe_cli.cli.console import text_width
    from moe_cli.report.html.page_data import Source
    from moe_cli.report.load import load_selection
    from moe_cli.report.recommend.looks import remember
    from moe_cli.report.table import ReportQuery, build_table
    from moe_cli.runs.folder import outputs_folder

    check_fit(fit, predict, validate)
    request = None if fit is None else FitRequest(fit, tuple(predict or ()), validate, condition)
    files = export_files(html, to)
    shaping = {"--sort": sort, "--columns": columns, "--runs": by_run, "--baseline": baseline}
    _check(files, form, across, {"--plot": plot, "--recommend": recommend, "--fit": fit}, shaping)
    folder = outputs_folder(outputs)
    runs = load_selection(folder, selection or [])
    title = _title(selection or [], list(dict.fromkeys(run.group for run in runs)))
    if request is not None and not files:
        return print_fit(runs, title, request, form.value)
    if recommend or across is not None:
        bases = partial(_baselines, baseline, folder, whole=not selection and condition is None)
        return print_recommendation(runs, condition, across, bases, form is Format.JSON, text_width())
    base, extra = _baselines(baseline, folder, runs, whole=not selection)
    names = tuple(name.strip() for name in (columns or "").split(",") if name.strip())
    table = build_table(runs, ReportQuery(condition, sort, names, by_run), extra, base)
    if files:
        source = Source(runs, extra, title, f"moe {moe_cli.__version__}")
        print_written(write_files(files, table, source, request))
    elif plot is not None:
        return print_plot(table, title, plot, form.value)
    else:
        _print(table, title, form, [run.path for run in runs])
    remember(table.look)


def _baselines(
    text: str | None, outputs: Path, runs: "Sequence[RunRow]", also: Collection[str] = (), *, whole: bool
) -> "tuple[Settings | None, list[RunRow]]":
    """The settings that differences are taken to, None if not given, and other runs that may serve as baselines.

    Raises:
        ConfigError: the settings given fit no configuration, or several.
    """
    from moe_cli.config.baselines import parse_baseline
    from moe_cli.report.baseline import chosen_baseline, extra_baseline_runs

    given = None if text is None else parse_baseline(text)
    extra = [] if whole else extra_baseline_runs(outputs, runs, given, also)
    return None if text is None else chosen_baseline(text, runs, extra), extra


def _check(
    files: Mapping[Path, str],
    form: Format,
    across: str | None,
    answers: Mapping[str, object],
    shaping: Mapping[str, object],
) -> None:
    """Raises ConfigError: an option without effect, such as one that shapes a table where none is made."""
    plot, recommend, fit = (answers[name] for name in ("--plot", "--recommend", "--fit"))
    if files:
        check_export(files, {"--format": form is not Format.TABLE, "--across": across is not None, **answers})
    elif recommend or across is not None:
        without_effect = {name: value for name, value in shaping.items() if name != "--baseline"}
        check_options(bool(recommend), form, {"--fit": fit, **without_effect, "--plot": plot})
    elif fit is not None:
        check_alone("--fit", {**shaping, "--plot": plot})


def _title(selection: list[str], groups: list[str]) -> str:
    return " ".join(selection) or (groups[0] if len(groups) == 1 else "all runs")


def _print(table: "ReportTable", title: str, form: Format, paths: list[str]) -> None:
    from moe_cli.report.importance import searched
    from moe_cli.report.render.latex import latex_text
    from moe_cli.report.render.tables import csv_text, json_text, markdown_text

    if form is Format.TABLE:
        _print_table(table, title, paths)
        return
    if form is Format.JSON:
        found, notes = searched(paths)
        echo_data(json_text(table, found))
        print_notes(notes)
        return
    write = {Format.CSV: csv_text, Format.MD: markdown_text, Format.LATEX: latex_text}[form]
    echo_data(write(table).rstrip("\n"))


def _print_table(table: "ReportTable", title: str, paths: list[str]) -> None:
    from moe_cli.cli.console import Terminal, text_width
    from moe_cli.report.importance import searched
    from moe_cli.report.render.captions import importance
    from moe_cli.report.render.tables import table_lines

    console = Terminal(highlight=False, emoji=False, markup=False)
    width = text_width(console)
    found, notes = searched(paths)
    for line in [*table_lines(table, title, width, not ascii_only()), *importance(found, width)]:
        console.print(line, soft_wrap=True)
    print_notes(notes)
