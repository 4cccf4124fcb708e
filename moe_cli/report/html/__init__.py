"""One page for a browser: a report as a single HTML file that needs no network.

Charts are SVG, drawn by 800 lines of our own; why no plotting library does it stands in .github/CONTRIBUTING.md.

Nothing of a run is ever markup: it stands as JSON in a script element that no browser executes, without a single `<`, and
the page puts it on the screen as text. A content security policy allows only the page's own script and style, by hash.
"""

import html
import re
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from json import dumps

from moe_cli.formatting import printable
from moe_cli.report.html.content import Source, page_content
from moe_cli.report.html.sections import Section
from moe_cli.report.render.tables import table_lines
from moe_cli.report.view import View

__all__ = ["Section", "Source", "page_text"]

GENERATOR = "moe report"
SCRIPTS = (
    "draw.js",
    "table.js",
    "curves.js",
    "scatter.js",
    "experts.js",
    "told.js",
    "frame.js",
    "main.js",
)
# What is shown where scripts are switched off.
PLAIN_WIDTH = 120


def page_text(view: View, source: Source, sections: Sequence[Section] = ()) -> str:
    """The page of a view.

    Args:
        sections: what else to show, written beforehand; those with `first` stand before the table.
    """
    plain = "\n".join(line.plain for line in table_lines(view, source.title, PLAIN_WIDTH, curves=False))
    content = page_content(view, source, sections)
    return assembled(content, Parts(source.title, plain, f"{GENERATOR}, {source.program}", SCRIPTS))


@dataclass(frozen=True)
class Parts:
    """What a page is made of beside its content.

    Attributes:
        plain: what is shown where scripts are switched off.
        scripts, styles: files of parts/, in order.
        first: the anchor that the keyboard skips to, and what is there.
    """

    title: str
    plain: str
    generator: str
    scripts: tuple[str, ...]
    styles: tuple[str, ...] = ("page.css",)
    first: tuple[str, str] = ("rows", "table")


def assembled(content: object, of: Parts) -> str:
    """One file that asks nothing of a network."""
    style = "".join(map(_part, of.styles))
    script = '(() => {\n"use strict";\n' + "".join(map(_part, of.scripts)) + "})();\n"
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {
        "policy": policy, "generator": html.escape(of.generator), "title": html.escape(printable(of.title)), "style": style,
        "anchor": of.first[0], "what": of.first[1], "plain": html.escape(of.plain), "content": as_script_data(content),
        "script": script,
    }  # fmt: skip
    # In one pass: what stands in a part is never looked at again.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _part("page.html"))


def as_script_data(content: object) -> str:
    """JSON that can stand inside a script element whatever it says: no `<`, `>` or `&`, and ASCII alone."""
    text = dumps(content, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _part(name: str) -> str:
    return files("moe_cli.report.html").joinpath("parts", name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return "sha256-" + b64encode(sha256(text.encode()).digest()).decode()
