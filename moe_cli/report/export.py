"""A report as files, each of the kind that its ending names."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moe_cli.errors import ConfigError
from moe_cli.formatting import sanitise
from moe_cli.report.html.page import GENERATOR, page_text
from moe_cli.report.html.page_data import Source
from moe_cli.report.html.pivot import pivot_section
from moe_cli.report.html.recommendation import fit_sections, recommendation_section
from moe_cli.report.html.section import Section
from moe_cli.report.importance import load_importances
from moe_cli.report.pivot import Pivot
from moe_cli.report.render.latex import latex_text
from moe_cli.report.render.pivot import pivot_text
from moe_cli.report.render.tables import csv_text, json_text, markdown_text
from moe_cli.report.report_file import check_overwrite, write_file
from moe_cli.report.run_row import RunRow
from moe_cli.report.table import ReportTable

if TYPE_CHECKING:
    from moe_cli.report.scaling.analysis import Analysis

ENDINGS = (".html", ".csv", ".json", ".md", ".tex", ".png", ".svg")
PIVOT_FORMATS = {".csv": "csv", ".json": "json", ".md": "md", ".tex": "latex"}
PIVOT_ENDINGS = (".html", *PIVOT_FORMATS)


def check_files(files: Sequence[Path], endings: Sequence[str] = ENDINGS, command: str = GENERATOR) -> None:
    """Raises ConfigError: an ending that says nothing, a file named twice, or a place where no file can be."""
    paths = [path.expanduser() for path in files]
    for path in paths:
        name = sanitise(str(path))
        if path.suffix.lower() not in endings:
            raise ConfigError(f"--output {name}: the ending says what to write. It can be {', '.join(endings)}.")
        if path.is_dir() or (path.exists() and not path.is_file()):
            raise ConfigError(f"{name} is not a file: give the name of one.")
        if not path.parent.is_dir():
            raise ConfigError(f"no folder {sanitise(str(path.parent))}: make it, or name another.")
        if path.suffix.lower() == ".html":
            check_overwrite(path, command)
    if len(set(paths)) < len(paths):
        raise ConfigError("a file is named twice: give every --output a name of its own.")


def export(
    files: Sequence[Path],
    table: ReportTable,
    source: Source,
    law: "Analysis | None" = None,
    pivot: Pivot | None = None,
    answer: Sequence[Section] = (),
) -> None:
    """Writes each file atomically. A page includes the scaling law, if one was fitted, and the pivot table.

    Other files have the pivot table instead of the report.

    Args:
        answer: the sections of a page that answer its question; without any, the recommendation does.

    Raises:
        MoeError: a library is not installed, or a file cannot be written.
    """
    for path in files:
        write_file(path.expanduser(), _content(path.suffix.lower(), table, source, law, pivot, answer))


def _content(
    ending: str,
    table: ReportTable,
    source: Source,
    law: "Analysis | None",
    pivot: Pivot | None,
    answer: Sequence[Section],
) -> str | bytes:
    if ending == ".html":
        sections = list(answer) or recommendation_section(
            *_shown_runs(table, source), table.baseline, table.aggregate.pricer.pricing
        )
        sections += [pivot_section(pivot)] if pivot else []
        return page_text(table, source, sections + (fit_sections(law, source.title) if law else []))
    if pivot:
        return pivot_text(pivot, PIVOT_FORMATS[ending])
    if ending in (".png", ".svg"):
        from moe_cli.report.render.matplotlib_figure import figure_bytes

        return figure_bytes(table, ending, source.title)
    if ending == ".json":
        return json_text(table, load_importances([run.path for run in source.runs])[0]) + "\n"
    return {".csv": csv_text, ".md": markdown_text, ".tex": latex_text}[ending](table)


def _shown_runs(table: ReportTable, source: Source) -> tuple[list[RunRow], list[RunRow]]:
    """Returns the runs of the rows shown, and all others, which may serve as their baselines."""
    paths = {run.path for row in table.all_rows for run in row.runs}
    shown = [run for run in source.runs if run.path in paths]
    hidden = [run for run in source.runs if run.path not in paths]
    return shown, [*hidden, *source.extra_baselines]
