"""The report as a single HTML file that needs no network.

Charts are SVG, drawn by scripts of our own; .github/CONTRIBUTING.md gives the reason against a plotting library.

Run data is never markup. It is JSON in a script element that no browser executes, without a single `<`, and the page
displays it as text. A content security policy allows only the page's own script and style, by hash.
"""

import html
import re
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from json import dumps

from moe_cli.formatting import sanitise
from moe_cli.report.html.page_data import Source, page_content
from moe_cli.report.html.section import Section
from moe_cli.report.render.tables import report_lines
from moe_cli.report.table import ReportTable

GENERATOR = "moe report"
SCRIPTS = (
    "svg.js",
    "interaction.js",
    "table.js",
    "curves.js",
    "scatter.js",
    "experts.js",
    "static_section.js",
    "page_shell.js",
    "report.js",
)
# What is shown where scripts are switched off.
PLAIN_WIDTH = 120


def page_text(table: ReportTable, source: Source, sections: Sequence[Section]) -> str:
    """Returns the page of a report.

    Args:
        sections: further sections; those with `before_table` are placed before the table.
    """
    plain = "\n".join(line.plain for line in report_lines(table, source.title, PLAIN_WIDTH, curves=False))
    content = page_content(table, source, sections)
    return render(content, PageTemplate(source.title, plain, f"{GENERATOR}, {source.program}", SCRIPTS))


@dataclass(frozen=True)
class PageTemplate:
    """The parts of a page other than its content.

    Attributes:
        plain: the text for browsers without scripts.
        scripts, styles: files of assets/, in order.
        first: the anchor of the keyboard's skip link, and its label.
    """

    title: str
    plain: str
    generator: str
    scripts: tuple[str, ...]
    styles: tuple[str, ...] = ("page.css",)
    first: tuple[str, str] = ("rows", "table")


def render(content: object, template: PageTemplate) -> str:
    """Returns a single file that needs no network."""
    style = "".join(map(_asset, template.styles))
    script = '(() => {\n"use strict";\n' + "".join(map(_asset, template.scripts)) + "})();\n"
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {
        "policy": policy,
        "generator": html.escape(template.generator),
        "title": html.escape(sanitise(template.title)),
        "style": style,
        "anchor": template.first[0],
        "what": template.first[1],
        "plain": html.escape(template.plain),
        "content": as_script_data(content),
        "script": script,
    }
    # In one pass, so that placeholders inside a part are not replaced.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _asset("page.html"))


def as_script_data(content: object) -> str:
    """Returns JSON that is safe inside a script element: no `<`, `>` or `&`, and only ASCII."""
    text = dumps(content, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _asset(name: str) -> str:
    return files("moe_cli.report.html").joinpath("assets", name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return "sha256-" + b64encode(sha256(text.encode()).digest()).decode()
