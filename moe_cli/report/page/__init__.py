"""One page for a browser: a report as a single HTML file that needs no network.

Charts are SVG, drawn by 800 lines of our own; why no plotting library does it stands in .github/CONTRIBUTING.md.

Nothing of a run is ever markup: it stands as JSON in a script element that no browser executes, without a single `<`, and
the page puts it on the screen as text. A content security policy allows only the page's own script and style, by hash.
"""

import html
import re
from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from importlib.resources import files
from json import dumps

from moe_cli.numbers import printable
from moe_cli.report.page.content import Source, page_content
from moe_cli.report.page.sections import Section
from moe_cli.report.tables import table_lines
from moe_cli.report.view import View

__all__ = ["Section", "Source", "page_text"]

GENERATOR = "moe report"
SCRIPTS = (
    "draw.js",
    "table.js",
    "curves.js",
    "scatter.js",
    "parallel.js",
    "experts.js",
    "differ.js",
    "told.js",
    "main.js",
)
# What is shown where scripts are switched off.
PLAIN_WIDTH = 120


def page_text(view: View, source: Source, sections: Sequence[Section] = ()) -> str:
    """The page of a view.

    Args:
        sections: what else to show, written beforehand; those with `first` stand before the table.
    """
    content = page_content(view, source, sections)
    style = _part("page.css")
    script = '(() => {\n"use strict";\n' + "".join(map(_part, SCRIPTS)) + "})();\n"
    plain = "\n".join(line.plain for line in table_lines(view, source.title, PLAIN_WIDTH, curves=False))
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {
        "policy": policy, "generator": f"{GENERATOR}, {source.program}", "title": html.escape(printable(source.title)),
        "style": style, "plain": html.escape(plain), "content": as_script_data(content), "script": script,
    }  # fmt: skip
    # In one pass: what stands in a part is never looked at again.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _part("page.html"))


def as_script_data(content: object) -> str:
    """JSON that can stand inside a script element whatever it says: no `<`, `>` or `&`, and ASCII alone."""
    text = dumps(content, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _part(name: str) -> str:
    return files("moe_cli.report.page").joinpath("parts", name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return "sha256-" + b64encode(sha256(text.encode()).digest()).decode()
