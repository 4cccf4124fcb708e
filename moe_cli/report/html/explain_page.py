"""An explained text as one page for a browser; its content is `moe_cli.cli.explain_output.page_content`."""

from collections.abc import Iterable, Sequence

import numpy as np

from moe_cli.report.html.page import PageTemplate, render

GENERATOR = "moe explain"
SCRIPTS = ("svg.js", "interaction.js", "experts.js", "page_shell.js", "explain.js")


def explain_page(content: dict[str, object], title: str, plain: str, program: str) -> str:
    """Returns the page. `plain` is the text for browsers without scripts."""
    template = PageTemplate(
        title, plain, f"{GENERATOR}, {program}", SCRIPTS, ("page.css", "explain.css"), ("text", "text")
    )
    return render(content, template)


def packed(choices: Sequence[Iterable[tuple[int, int, bool]]], stride: int) -> str:
    """Encodes (expert, hundredths of weight, kept) of all tokens in a fifth of the size of JSON.

    Commas separate tokens, spaces separate assignments. Each assignment is expert * stride + hundredths to base 36,
    after a minus sign if it was dropped.
    """
    return ",".join(
        " ".join(f"{'' if kept else '-'}{np.base_repr(expert * stride + weight, 36)}" for expert, weight, kept in token)
        for token in choices
    )
