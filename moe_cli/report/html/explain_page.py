"""An explained text as one page for a browser."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from moe_cli.report.html.page import PageTemplate, render

GENERATOR = "moe explain"
SCRIPTS = ("svg.js", "interaction.js", "experts.js", "page_shell.js", "explain.js")


@dataclass(frozen=True)
class PageLayer:
    """The name of a sparse layer, the load of its experts, and (expert, weight, kept) of the choices of each token."""

    name: str
    load: Sequence[float]
    choices: Sequence[Sequence[tuple[int, float, bool]]]


@dataclass(frozen=True)
class PageContent:
    """The content of the page.

    Attributes:
        above: the lines above the text.
        generated: the line on the program and the time.
        window: the number of tokens of one forward pass.
        layer: the layer that is shown first, from 0.
        texts, shown_texts: the text of each token, and as it is shown.
        headings, rows: the table of routing metrics.
        legend: the definitions of the metrics.
    """

    above: Sequence[str]
    generated: str
    window: int
    layer: int
    texts: Sequence[str]
    shown_texts: Sequence[str]
    layers: Sequence[PageLayer]
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    legend: Sequence[str]

    def to_json(self) -> dict[str, object]:
        """Returns the JSON object that explain.js reads."""
        weights = [
            [
                [(expert, round(100 * round(weight, 2)), kept) for expert, weight, kept in choices]
                for choices in layer.choices
            ]
            for layer in self.layers
        ]
        stride = 1 + max((weight for layer in weights for choices in layer for _, weight, _ in choices), default=0)
        return {
            "title": "Where the tokens of a text go",
            "above": self.above,
            "generated": self.generated,
            "window": self.window,
            "chosen": self.layer,
            "tokens": self.shown_texts,
            "breaks": [place for place, text in enumerate(self.texts) if text.endswith("\n")],
            "spaces": [place for place, text in enumerate(self.texts) if text.endswith(" ")],
            "layers": [
                {"name": layer.name, "load": layer.load, "choices": packed(choices, stride)}
                for layer, choices in zip(self.layers, weights, strict=True)
            ],
            "stride": stride,
            "headings": self.headings,
            "rows": self.rows,
            "legend": self.legend,
        }


def explain_page(content: PageContent, title: str, plain: str, program: str) -> str:
    """Returns the page. `plain` is the text for browsers without scripts."""
    template = PageTemplate(
        title, plain, f"{GENERATOR}, {program}", SCRIPTS, ("page.css", "explain.css"), ("text", "text")
    )
    return render(content.to_json(), template)


def packed(choices: Sequence[Iterable[tuple[int, int, bool]]], stride: int) -> str:
    """Encodes (expert, hundredths of weight, kept) of all tokens in a fifth of the size of JSON.

    Commas separate tokens, spaces separate assignments. Each assignment is expert * stride + hundredths to base 36,
    after a minus sign if it was dropped.
    """
    return ",".join(
        " ".join(f"{'' if kept else '-'}{np.base_repr(expert * stride + weight, 36)}" for expert, weight, kept in token)
        for token in choices
    )
