"""An explained text as one page for a browser; its content is `moe_cli.cli.explain_output.page_content`."""

from collections.abc import Iterable, Sequence

import numpy as np

from moe_cli.report.html import Parts, assembled

GENERATOR = "moe explain"
SCRIPTS = ("draw.js", "experts.js", "frame.js", "explained.js")


def explained_page(content: dict[str, object], title: str, plain: str, program: str) -> str:
    """The page; `plain` is what is shown where scripts are switched off."""
    parts = Parts(title, plain, f"{GENERATOR}, {program}", SCRIPTS, ("page.css", "explained.css"), ("text", "text"))
    return assembled(content, parts)


def packed(choices: Sequence[Iterable[tuple[int, int, bool]]], stride: int) -> str:
    """The (expert, hundredths of weight, kept) of all tokens, in a fifth of the room that JSON takes.

    Commas stand between tokens, spaces between assignments; each is expert * stride + hundredths to base 36, after a minus
    if it was dropped.
    """
    return ",".join(
        " ".join(f"{'' if kept else '-'}{np.base_repr(expert * stride + weight, 36)}" for expert, weight, kept in token)
        for token in choices
    )
