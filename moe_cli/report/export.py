"""A report as files, each of the kind that its ending names."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moe_cli.errors import ConfigError
from moe_cli.formatting import printable
from moe_cli.report.html import GENERATOR, page_text
from moe_cli.report.html.answers import answer_section, fit_sections
from moe_cli.report.html.content import Source
from moe_cli.report.html.write import check_ours, write_file
from moe_cli.report.importance import searched
from moe_cli.report.render.latex import latex_text
from moe_cli.report.render.tables import csv_text, json_text, markdown_text
from moe_cli.report.view import View

if TYPE_CHECKING:
    import pandas as pd

    from moe_cli.report.scaling.study import Study

ENDINGS = (".html", ".csv", ".json", ".md", ".tex", ".png", ".svg")


def check_files(files: Sequence[Path], endings: Sequence[str] = ENDINGS, command: str = GENERATOR) -> None:
    """Raises ConfigError: an ending that says nothing, a file named twice, or a place where no file can be."""
    paths = [path.expanduser() for path in files]
    for path in paths:
        name = printable(str(path))
        if path.suffix.lower() not in endings:
            raise ConfigError(f"--output {name}: the ending says what to write. It can be {', '.join(endings)}.")
        if path.is_dir() or (path.exists() and not path.is_file()):
            raise ConfigError(f"{name} is not a file: give the name of one.")
        if not path.parent.is_dir():
            raise ConfigError(f"no folder {printable(str(path.parent))}: make it, or name another.")
        if path.suffix.lower() == ".html":
            check_ours(path, command)
    if len(set(paths)) < len(paths):
        raise ConfigError("a file is named twice: give every --output a name of its own.")


def export(files: Sequence[Path], view: View, source: Source, law: "Study | None" = None) -> None:
    """Writes each file whole or leaves the old one; a page with the scaling law, if there is one.

    Raises:
        MoeError: a library is not installed, or a file cannot be written.
    """
    for path in files:
        write_file(path.expanduser(), _content(path.suffix.lower(), view, source, law))


def _content(ending: str, view: View, source: Source, law: "Study | None") -> str | bytes:
    if ending == ".html":
        sections = answer_section(*_chosen(view, source), view.baseline)
        return page_text(view, source, sections + (fit_sections(law, source.title) if law else []))
    if ending in (".png", ".svg"):
        from moe_cli.report.render.figures import figure_bytes

        return figure_bytes(view, ending, source.title)
    if ending == ".json":
        return json_text(view, searched(list(source.frame["path"]))[0]) + "\n"
    return {".csv": csv_text, ".md": markdown_text, ".tex": latex_text}[ending](view)


def _chosen(view: View, source: Source) -> "tuple[pd.DataFrame, pd.DataFrame | None]":
    """The runs of the rows shown, and all others, which may serve as their baselines."""
    import pandas as pd

    shown = source.frame["path"].isin([path for paths in view.frame["paths"] for path in paths])
    hidden = source.frame[~shown]
    if source.elsewhere is None or hidden.empty:
        return source.frame[shown], source.elsewhere if hidden.empty else hidden
    return source.frame[shown], pd.concat([hidden, source.elsewhere])
