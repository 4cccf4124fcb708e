"""moe report."""

import os
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from moe_cli.cli.options import Outputs, print_notes
from moe_cli.cli.recommend import Across, Recommend, check_options, print_recommendation

if TYPE_CHECKING:
    from moe_cli.report.view import View

PIPED_WIDTH = 120


class Format(StrEnum):
    """How a report is printed."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    MD = "md"


Selection = Annotated[
    list[str] | None,
    typer.Argument(metavar="SELECTION", help="Sweeps, run ids, their beginnings, patterns or folders. None: all runs."),
]
FormatOption = Annotated[Format, typer.Option("--format", help="How to print it.")]
Filter = Annotated[
    str | None,
    typer.Option("--filter", metavar="CONDITION", help="Rows to show, such as 'expert >= 8 and router == \"topk\"'."),
]
Sort = Annotated[str | None, typer.Option(metavar="COLUMN", help="Order of the rows; -COLUMN: the largest first.")]
Columns = Annotated[str | None, typer.Option(metavar="A,B,C", help="Columns to show, such as k,val_bpb,train.steps.")]
ByRun = Annotated[bool, typer.Option("--runs", help="A row per run: seeds are not folded, unfinished runs are shown.")]


def report(  # noqa: PLR0913  (an argument for each option)
    selection: Selection = None,
    form: FormatOption = Format.TABLE,
    condition: Filter = None,
    sort: Sort = None,
    columns: Columns = None,
    by_run: ByRun = False,
    recommend: Recommend = False,
    across: Across = None,
    outputs: Outputs = None,
) -> None:
    """Compare runs, seeds folded to mean and interval. Example: moe report sparsity --filter 'expert >= 8'"""
    from moe_cli.report.frame import dense_runs_elsewhere, load_selection
    from moe_cli.report.searched import searched
    from moe_cli.report.tables import csv_text, json_text, markdown_text
    from moe_cli.report.view import Question, make_view
    from moe_cli.store import outputs_folder

    folder = outputs_folder(outputs)
    frame = load_selection(folder, selection or [])
    elsewhere = dense_runs_elsewhere(folder, frame) if selection else None
    if recommend or across is not None:
        check_options(recommend, form, {"--filter": condition, "--sort": sort, "--columns": columns, "--runs": by_run})
        print_recommendation(frame, elsewhere, across, form is Format.JSON, terminal_width())
        return
    names = tuple(name.strip() for name in (columns or "").split(",") if name.strip())
    view = make_view(frame, Question(condition, sort, names, by_run), elsewhere)
    if form is Format.JSON:
        found, notes = searched(frame["path"])
        typer.echo(json_text(view, found))
        print_notes(notes)
        return
    if form is not Format.TABLE:
        write = {Format.CSV: csv_text, Format.MD: markdown_text}[form]
        typer.echo(write(view).rstrip("\n"))
        return
    groups = list(dict.fromkeys(frame["group"]))
    _print_table(
        view, " ".join(selection or []) or (groups[0] if len(groups) == 1 else "all runs"), list(frame["path"])
    )


def _print_table(view: "View", title: str, paths: list[str]) -> None:
    from rich.console import Console

    from moe_cli.report.captions import importance
    from moe_cli.report.searched import searched
    from moe_cli.report.tables import table_lines

    console = Console(highlight=False, emoji=False, markup=False)
    width = terminal_width()
    found, notes = searched(paths)
    for line in [*table_lines(view, title, width), *importance(found, width)]:
        console.print(line, soft_wrap=True)
    print_notes(notes)


def terminal_width() -> int:
    from rich.console import Console

    console = Console()
    return console.width if console.is_terminal or os.environ.get("COLUMNS") else PIPED_WIDTH
