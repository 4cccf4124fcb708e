"""Formats an explained text as sentences and as lines for a terminal: tokens in columns, their experts below them.

Colour only repeats the expert's number. Layers and experts are counted from 1.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.text import Text

from moe_cli.config.ranges import format_setting
from moe_cli.config.routers import null_experts
from moe_cli.formatting import percent, plural, sanitise
from moe_cli.metrics import BY_KEY, LOAD_DESCRIPTION, LOAD_RANGE
from moe_cli.report.render.expert_usage import ASCII_SHADES, SHADES, heat_map
from moe_cli.report.render.terminal import PALETTE, plain_table, wrap

if TYPE_CHECKING:
    from moe_cli.config.schema import RunConfig
    from moe_cli.config.training import EvalConfig
    from moe_cli.report.html.explain_page import PageContent
    from moe_cli.training.explain import Assignment, Explanation, LayerAssignments, TextToken

# The number of a token's strongest experts to show: with all layers side by side, and with one layer alone.
EXPERTS_PER_TOKEN_ALL, EXPERTS_PER_TOKEN_ONE_LAYER = 2, 8
GAP = " "
# The text of the token between documents.
SEPARATOR = "sep"
SHOWN = ("max_violation", "routing_entropy", "dropped_fraction")
RULES = {
    "soft": "No expert is chosen: all process mixtures of all tokens, and a weight is a share of the output.",
    "expert_choice": "Each expert chooses its tokens with the highest scores: a token may have many experts, or none.",
    "relu": "All experts with a score above zero are used; their weights need not sum to 1.",
    "hash": "A fixed table assigns experts to tokens; only the weights can be learned.",
    "random": "Experts are drawn at random, here from a fixed seed.",
}
# Routers with which a token may have more or fewer than K experts.
UNEVEN = ("soft", "expert_choice", "relu")


@dataclass(frozen=True)
class ExplainResult:
    """The explanation of a text, with the model and the settings.

    Attributes:
        tokenizer: the name of the tokenizer.
        shown: the requested layer, from 0; None means all.
    """

    run: str
    step: int
    config: "RunConfig"
    policy: "EvalConfig"
    tokenizer: str
    found: "Explanation"
    shown: int | None = None

    @property
    def router(self) -> str:
        assert self.config.router is not None
        return self.config.router.name

    @property
    def k(self) -> int | tuple[int, ...]:
        return self.policy.k or self.config.k or 1

    @property
    def layers(self) -> "tuple[LayerAssignments, ...]":
        return self.found.layers if self.shown is None else self.found.layers[self.shown : self.shown + 1]

    def _repr_html_(self) -> str:
        """Returns the lines of `moe explain` for a notebook."""
        from moe_cli.report.render.notebook import TERMINAL_WIDTH, lines_html

        return lines_html(explained_lines(self, TERMINAL_WIDTH))


def explained_lines(result: ExplainResult, width: int, ascii_only: bool = False, most: int | None = None) -> list[Text]:
    """Returns the lines of the report: title, method, the text with its experts, load, metrics and legend.

    Args:
        most: tokens to show, from the first; None means all.
    """
    lines = [*wrap(title(result), width, "bold")]
    reading = "Under each token its experts, the strongest first, and the weight of each output."
    for sentence in [*sentences(result), reading]:
        lines += wrap(sentence, width, "dim")
    lines += _text(result, width, ascii_only, most)
    rows = [(f"L{layer.layer + 1}", layer.load) for layer in result.layers]
    lines += [Text(), Text("load of this text: 1 is a fair share", "dim")]
    lines += heat_map(rows, 2.0, width, ASCII_SHADES if ascii_only else SHADES, "{:.2f}")
    lines += [Text(), *plain_table(*metric_rows(result), width), Text()]
    for sentence in legend(result):
        lines += wrap(sentence, width, "dim")
    return lines


def title(result: ExplainResult) -> str:
    number, size = len(result.found.layers), len(result.found.layers[0].load)
    layers = f"{plural(number, 'sparse layer')} of {plural(size, 'expert')}"
    tokens = f"{len(result.found.tokens):,} token{'s' if len(result.found.tokens) > 1 else ''}"
    return f"{sanitise(result.run)}   step {result.step:,}   {tokens} ({result.tokenizer})   {layers}"


def sentences(result: ExplainResult) -> list[str]:
    """Returns sentences on how the text was processed, and on how to read the output."""
    model, window = result.config.model, result.found.window
    passes = -(-len(result.found.tokens) // window)
    seen = "itself and those before it" if model.causal else "the whole text, unmasked"
    lines = [
        f"{'One forward pass' if passes == 1 else f'{passes} forward passes'} of this checkpoint as at evaluation "
        f"({_routed(result)}). It shows the choices of the router, not their causes. Each token saw {seen}."
    ]
    if passes > 1:
        lines.append(
            f"The text is longer than the context of {window}: {passes} windows, each read without the others."
        )
    if not result.found.tokens[0].part:
        lines.append(
            f"In training, documents were kept separate: {SEPARATOR} stands before the text, as before each of them."
        )
    if result.router in RULES:
        lines.append(RULES[result.router])
    lines += _layers(result)
    if any(not choice.kept for layer in result.layers for choices in layer.choices for choice in choices):
        lines.append("x marks a dropped assignment: the expert was full, and the token gets no output of it.")
    return lines


def _routed(result: ExplainResult) -> str:
    """Returns the routing rule, the number of experts and their capacity, in words."""
    capacity = result.policy.capacity
    if result.router == "soft":
        return "router soft"
    if result.router == "expert_choice":  # without eval.capacity, the capacity is that of training
        limit = f"capacity {capacity or result.config.capacity or 1:g}"
        return f"router expert_choice, k={format_setting(result.k)} on average, {limit}"
    limit = "dropless" if capacity is None else f"capacity {capacity:g}"
    return (
        f"router {result.router}, k={format_setting(result.k)}{' aimed at' if result.router == 'relu' else ''}, {limit}"
    )


def _layers(result: ExplainResult) -> list[str]:
    """Returns the parts of the model that are not shown: shared, null and other layers' experts."""
    model, found = result.config.model, result.found
    lines = []
    dense = model.num_layers - len(found.layers)
    if dense:
        names = ", ".join(f"L{layer.layer + 1} is layer {layer.block + 1}" for layer in result.layers)
        lines.append(
            f"{names} of {model.num_layers}; {dense} of these {'is' if dense == 1 else 'are'} dense: one network for "
            "all tokens."
        )
    if model.shared_experts:
        several = model.shared_experts > 1
        lines.append(
            f"In addition {model.shared_experts} shared expert{'s' if several else ''} of each layer "
            f"answer{'' if several else 's'} for every token: never chosen, not shown."
        )
    nulls = null_experts(result.config.router)
    if nulls:
        last = len(found.layers[0].load)
        lines.append(f"E{last + 1} to E{last + nulls} compute nothing (null experts).")
    return lines


def metric_rows(result: ExplainResult) -> tuple[list[str], list[list[str]]]:
    """Returns a row of metrics for each layer shown, under their labels."""
    rows = [
        [f"L{layer.layer + 1}"]
        + [
            f"{layer.measures[name]:.2f}"
            if name == "routing_entropy"
            else percent(layer.measures[name], signed=name == "max_violation")
            for name in SHOWN
        ]
        for layer in result.layers
    ]
    return ["layer", *(BY_KEY[name].label for name in SHOWN)], rows


def legend(result: ExplainResult) -> list[str]:
    """Returns the definitions of the metrics, and the values of E and K that bound them in this run."""
    lines = [f"load, {LOAD_RANGE}: {LOAD_DESCRIPTION}."]
    lines += [f"{BY_KEY[name].label}, {BY_KEY[name].range}: {BY_KEY[name].description}." for name in SHOWN]
    size, k = len(result.found.layers[0].load), result.k
    here = f"Here E is {size}" + ("" if result.router in UNEVEN else _shares(size, k))
    whole = f"For the whole split: moe eval {sanitise(result.run)}"
    return [*lines, f"{here}. A text this short is uneven by chance. {whole}"]


def _shares(size: int, k: int | tuple[int, ...]) -> str:
    if isinstance(k, tuple):
        return f", K is {min(k)} to {max(k)} by layer, and E / K is {size / max(k):g} to {size / min(k):g}"
    return f", K is {k} and E / K is {size / k:g}"


def page_content(result: ExplainResult, made: str) -> "PageContent":
    """Returns the content of the page; `made` is the line on the program and the time."""
    from moe_cli.report.html.explain_page import PageContent, PageLayer

    reading = (
        "Under each token its strongest expert in the selected layer. The pointer or the arrow keys show the experts "
        "of all layers."
    )
    headings, rows = metric_rows(replace(result, shown=None))
    layers = tuple(
        PageLayer(
            f"L{layer.layer + 1}",
            layer.load,
            [[(choice.expert, choice.weight, choice.kept) for choice in choices] for choices in layer.choices],
        )
        for layer in result.found.layers
    )
    return PageContent(
        above=[title(result), *sentences(result), reading],
        generated=made,
        window=result.found.window,
        layer=result.shown or 0,
        texts=[token.text for token in result.found.tokens],
        shown_texts=[format_token(token) for token in result.found.tokens],
        layers=layers,
        headings=headings,
        rows=rows,
        legend=legend(result),
    )


def format_token(token: "TextToken", ascii_only: bool = False) -> str:
    """Returns the token as it can be shown: a space as a mark, what has no width or moves a cursor as an escape."""
    if not token.part:
        return SEPARATOR
    if not token.text:
        return f"+{token.part}"
    if token.text == " ":
        return "SP" if ascii_only else "␣"
    return "".join(map(_escaped, token.text))


def _escaped(char: str) -> str:
    if char == "\\" or not char.isprintable() or unicodedata.combining(char) or not cell_len(char):
        return char.encode("unicode_escape").decode()
    return char


def format_weight(weight: float) -> str:
    """Formats a weight with three characters: .62, 1.0, 12."""
    return f"{weight:.0f}" if weight >= 9.95 else f"{weight:.1f}" if weight >= 0.995 else f"{weight:.2f}"[1:]


@dataclass(frozen=True)
class _Column:
    """A token with as many experts of each layer as are shown."""

    head: str
    choices: "tuple[tuple[Assignment, ...], ...]"

    @property
    def width(self) -> int:
        cells = [
            text for layer in self.choices for choice in layer for text in (name(choice), format_weight(choice.weight))
        ]
        return max(map(cell_len, (self.head, "-", *cells)))


def name(choice: "Assignment") -> str:
    return f"{choice.expert + 1}{'' if choice.kept else 'x'}"


def colour(expert: int) -> str:
    return f"bold #ffffff on {PALETTE[expert % len(PALETTE)]}"


def _text(result: ExplainResult, width: int, ascii_only: bool, most_tokens: int | None) -> list[Text]:
    """Returns the tokens in blocks as wide as the terminal; each window begins on a new line."""
    most = EXPERTS_PER_TOKEN_ALL if result.shown is None else EXPERTS_PER_TOKEN_ONE_LAYER
    columns = [
        _Column(format_token(token, ascii_only), tuple(layer.choices[place][:most] for layer in result.layers))
        for place, token in enumerate(result.found.tokens[:most_tokens])
    ]
    labels = [f"L{layer.layer + 1}" for layer in result.layers]
    room = width - max(map(len, labels)) - 1
    lines = []
    for first in range(0, len(columns), result.found.window):
        if len(columns) > result.found.window:
            lines += [Text(), Text(f"window {first // result.found.window + 1}", "dim")]
        for block in _blocks(columns[first : first + result.found.window], room):
            lines += [Text(), *_block(block, labels)]
    if len(columns) < len(result.found.tokens):
        lines += [Text(), *wrap(f"The first {len(columns):,} of {len(result.found.tokens):,} tokens.", width, "dim")]
    left = max(len(choices) for layer in result.layers for choices in layer.choices) - most
    if left > 0:
        more = "--layer 1 shows more" if result.shown is None else "--json has all"
        lines += [Text(), *wrap(f"Up to {left} weaker experts per token are left out: {more}.", width, "dim")]
    return lines


def _blocks(columns: Sequence[_Column], room: int) -> list[list[_Column]]:
    blocks: list[list[_Column]] = []
    used = room
    for column in columns:
        used += column.width + len(GAP)
        if used > room:
            blocks.append([])
            used = column.width + len(GAP)
        blocks[-1].append(column)
    return blocks


def _block(columns: Sequence[_Column], labels: Sequence[str]) -> list[Text]:
    margin = max(map(len, labels))
    lines = [_row("", margin, [(_right(column.head, column.width), "bold") for column in columns])]
    for layer, label in enumerate(labels):
        rows = max(1, max(len(column.choices[layer]) for column in columns))
        for row in range(rows):
            names, weights = [], []
            for column in columns:
                choices = column.choices[layer]
                choice = choices[row] if row < len(choices) else None
                text = name(choice) if choice else "-" if row == 0 else ""
                style = colour(choice.expert) if choice and choice.kept else "strike" if choice else ""
                names.append((_right(text, column.width), style))
                weights.append((_right(format_weight(choice.weight) if choice else "", column.width), ""))
            lines += [_row(label if row == 0 else "", margin, names), _row("", margin, weights)]
    return lines


def _row(label: str, margin: int, cells: Sequence[tuple[str, str]]) -> Text:
    line = Text.assemble((f"{label:<{margin}}", "dim"), no_wrap=True)
    for text, style in cells:
        line.append(GAP)
        line.append(text, style)
    line.rstrip()
    return line


def _right(text: str, width: int) -> str:
    return " " * (width - cell_len(text)) + text
