"""A report as a LaTeX table, ready for a paper: booktabs, the lowest loss in bold, intervals behind +-."""

import re
from collections.abc import Iterable, Sequence

from moe_cli.formatting import sanitise
from moe_cli.report.columns import PLUS_MINUS, Column
from moe_cli.report.looks import looks_sentence
from moe_cli.report.render.captions import differences, footer_lines
from moe_cli.report.render.tables import columns_within
from moe_cli.report.table import ReportTable

ESCAPES = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "`": r"\textasciigrave{}",
}  # fmt: skip
NEVER_BROKEN = 10**6
# Of a line of text in \small, in the measure of an article of 345 points.
PAPER_WIDTH = 72
NUMBER = re.compile(r"[+-]?\d[\d.,]*(e[+-]?\d+)?[kMGTPEZY]?")
# Columns whose cell is bold in the row of the best configuration.
SCORES = ("val_bpb", "val_loss", "vs_baseline")


def latex_text(table: ReportTable) -> str:
    """Returns a table environment as wide as a page, with as many columns as fit. It needs \\usepackage{booktabs}."""
    columns = table.columns if table.names else _fitting_columns(table)
    missing = [sanitise(column.heading) for column in table.columns if column not in columns]
    rows = []
    for row in table.rows:
        best = any(row is other for other in table.best)
        rows.append([cell(column.write(row), best and column.name in SCORES) for column in columns])
    headings = [(column.heading, "l" if column.left else "r") for column in columns]
    note = [f"% left out: {', '.join(missing)}; --columns has what you ask for"] if missing else []
    return table_environment(_caption(table), headings, rows, note)


def table_environment(
    caption: str, headings: Sequence[tuple[str, str]], rows: Iterable[Sequence[str]], notes: Sequence[str] = ()
) -> str:
    """Returns a table environment of cells in LaTeX; headings are plain text, each with the alignment of its column."""
    lines = [
        "% made by moe report; needs \\usepackage{booktabs}",
        *notes,
        "\\begin{table}",
        "  \\centering\\small",
        f"  \\caption{{{caption}}}",
        "  \\label{tab:moe}",
        "  \\vspace{1ex}",
        f"  \\begin{{tabular}}{{@{{}}{''.join(alignment for _, alignment in headings)}@{{}}}}",
        "    \\toprule",
        "    " + " & ".join(escaped(heading) for heading, _ in headings) + r" \\",
        "    \\midrule",
        *("    " + " & ".join(row) + r" \\" for row in rows),
    ]
    return "\n".join([*lines, "    \\bottomrule", "  \\end{tabular}", "\\end{table}", ""])


def _fitting_columns(table: ReportTable) -> list[Column]:
    """Returns the columns that fit, without the verdict. The caption says that an interval is for one comparison."""
    shown = [column for column in table.columns if column.name != "verdict"]
    return columns_within(shown, table.rows, PAPER_WIDTH)


def _caption(table: ReportTable) -> str:
    shared = [line.plain for line in footer_lines(table, NEVER_BROKEN) if line.plain.startswith("the same for all")]
    intervals = any(row.val_loss_interval is not None for row in table.rows)
    what = f"Means over seeds with 95 % intervals, each for one comparison; {differences(table)}." if intervals else ""
    looks = looks_sentence(table.look) if intervals and table.look.number > 1 else ""
    best = "The lowest loss in bold." if table.best else ""
    also = f"{shared[0][0].upper()}{shared[0][1:]}." if shared else ""
    return " ".join(escaped(part) for part in (what, looks, best, also) if part)


def cell(text: str, best: bool) -> str:
    """Returns a cell: numbers in math, so that minus is a minus; bold where the row is the best."""
    mean, sign, spread = text.partition(PLUS_MINUS)
    number, percent, rest = mean.partition(" %")
    unit = r"\,\%" if percent else ""
    # Only numbers are written in math mode, where nothing is escaped.
    if rest or not NUMBER.fullmatch(number) or (sign and not NUMBER.fullmatch(spread.removeprefix("<"))):
        written = "--" if text == "-" else escaped(text)
    elif sign:
        written = f"${number} \\pm {spread.replace('<', '{<}')}${unit}"
    else:
        written = (f"${number}$" if number[0] in "+-" else number) + unit
    if not best:
        return written
    return f"\\boldmath\\textbf{{{written}}}\\unboldmath" if "$" in written else f"\\textbf{{{written}}}"


def escaped(text: str) -> str:
    """Returns the text with every character that TeX would obey written out."""
    return "".join(ESCAPES.get(character, character) for character in sanitise(text))
