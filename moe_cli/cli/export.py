"""moe report --html and --to: a report as files, each of the kind that its ending names."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moe_cli.cli.terminal import echo
from moe_cli.errors import ConfigError
from moe_cli.formatting import printable

if TYPE_CHECKING:
    from moe_cli.cli.scaling import FitRequest
    from moe_cli.report.html.page_data import Source
    from moe_cli.report.run_row import RunRow
    from moe_cli.report.table import ReportTable

ENDINGS = (".html", ".csv", ".json", ".md", ".tex", ".png", ".svg")
Html = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write one page for a browser, which needs no network. Another's page is never replaced."),
]  # fmt: skip
To = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE", help=f"Write a file, replaced if it is there: {', '.join(ENDINGS)}. May be given several times."
    ),
]


def export_files(html: Path | None, to: Sequence[Path] | None) -> dict[Path, str]:
    """The files that are asked for, each with the ending that says what it is.

    Raises:
        ConfigError: an ending that says nothing, a file named twice, or a place where no file can be.
    """
    files = [(path.expanduser(), path.suffix.lower()) for path in to or ()]
    files += [(html.expanduser(), ".html")] if html else []
    for path, ending in files:
        if ending not in ENDINGS:
            raise ConfigError(
                f"--to {printable(str(path))}: the ending says what to write. It can be {', '.join(ENDINGS)}."
            )
        if path.is_dir() or (path.exists() and not path.is_file()):
            raise ConfigError(f"{printable(str(path))} is not a file: give the name of one.")
        if not path.parent.is_dir():
            raise ConfigError(f"no folder {printable(str(path.parent))}: make it, or name another.")
    found = dict(files)
    if len(found) < len(files):
        raise ConfigError("a file is named twice: give every --to and --html a name of its own.")
    return found


def check_export(files: Mapping[Path, str], others: Mapping[str, object]) -> None:
    """Raises ConfigError: another option that has no effect on files."""
    for name, value in others.items():
        if value and not (name == "--fit" and ".html" in files.values()):
            also = ": only a page shows it. Add --html FILE" if name == "--fit" else ": leave one of them out."
            raise ConfigError(f"{name} has no effect on files{also}")


def write_files(
    files: Mapping[Path, str], table: "ReportTable", source: "Source", request: "FitRequest | None"
) -> list[Path]:
    """Writes each file whole or leaves the old one.

    Raises:
        MoeError: a library is not installed, or a file cannot be written.
    """
    from moe_cli.report.html.atomic_write import check_overwrite, write_file

    for path, ending in files.items():  # before anything is computed
        if ending == ".html":
            check_overwrite(path)
    for path, ending in files.items():
        if ending == ".html":
            content: str | bytes = _page(table, source, request)
        else:
            content = _content(ending, table, [run.path for run in source.runs], source.title)
        write_file(path, content)
    return list(files)


def _content(ending: str, table: "ReportTable", paths: list[str], title: str) -> str | bytes:
    if ending in (".png", ".svg"):
        from moe_cli.report.render.figures import figure_bytes

        return figure_bytes(table, ending, title)
    from moe_cli.report.importance import searched
    from moe_cli.report.render.latex import latex_text
    from moe_cli.report.render.tables import csv_text, json_text, markdown_text

    if ending == ".json":
        return json_text(table, searched(paths)[0]) + "\n"
    return {".csv": csv_text, ".md": markdown_text, ".tex": latex_text}[ending](table)


def _page(table: "ReportTable", source: "Source", request: "FitRequest | None") -> str:
    from moe_cli.cli.scaling import make_study
    from moe_cli.report.html.page import page_text
    from moe_cli.report.html.recommendation import fit_sections, recommendation_section

    sections = recommendation_section(*_shown_runs(table, source), table.baseline)
    if request is not None:
        sections += fit_sections(make_study(source.runs, request), source.title)
    return page_text(table, source, sections)


def _shown_runs(table: "ReportTable", source: "Source") -> "tuple[list[RunRow], list[RunRow]]":
    """The runs of the rows shown, and all others, which may serve as their baselines."""
    paths = {run.path for row in table.all_rows for run in row.runs}
    shown = [run for run in source.runs if run.path in paths]
    hidden = [run for run in source.runs if run.path not in paths]
    return shown, [*hidden, *source.extra_baselines]


def print_written(paths: Collection[Path]) -> None:
    """Where everything is, and how large."""
    for path in paths:
        size = path.stat().st_size
        echo(
            f"{printable(str(path))}   {size / 1e6:.2f} MB"
            if size > 99_999
            else f"{printable(str(path))}   {size / 1e3:.1f} kB"
        )
