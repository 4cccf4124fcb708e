"""An explained text in words and as lines for a terminal: its tokens in columns, the experts of each below it.

Colour only repeats the expert's number. Layers and experts are counted from 1.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.text import Text

from moe_cli.config.routers import null_experts
from moe_cli.formatting import percent, plural, printable
from moe_cli.metrics import BY_KEY, LOAD_DESCRIPTION, LOAD_RANGE
from moe_cli.report.render.expert_usage import ASCII_SHADES, SHADES, heat_map
from moe_cli.report.scaling.lines import prose, table

if TYPE_CHECKING:
    from moe_cli.config.schema import EvalConfig, RunConfig
    from moe_cli.training.explain import Assignment, Explanation, LayerAssignments, TextToken

# White is readable on all of them, and they on a light ground: c0 to c9 of report/html/parts/page.css.
PALETTE = (
    "#0b62b5", "#b54708", "#1a7f4b", "#8a3ffc", "#b3261e", "#00757d", "#a2296b", "#6b6200", "#3f51b5", "#5b6570",
)  # fmt: skip
# Experts of a token that are shown, the strongest: of all layers side by side, and of one layer alone.
OF_EACH, OF_ONE = 2, 8
GAP = " "
# What stands for the token between documents.
SEPARATOR = "sep"
SHOWN = ("max_violation", "routing_entropy", "dropped_fraction")
RULES = {
    "soft": "Nothing is chosen: every expert works on mixtures of all tokens, and a weight is its share in the answer.",
    "expert_choice": "Each expert takes the tokens that suit it best: a token may have many, or none.",
    "relu": "As many experts answer as have a score above zero; weights need not sum to 1.",
    "hash": "A fixed table says who answers for a token; only the weights can be learned.",
    "random": "Experts are drawn at random, here from a fixed seed.",
}
# Those in which a token has not exactly K experts.
UNEVEN = ("soft", "expert_choice", "relu")


@dataclass(frozen=True)
class Explained:
    """A text explained, and by what.

    Attributes:
        tokenizer: its name.
        shown: the layer asked for, from 0; None: all.
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
    def k(self) -> int:
        return self.policy.k or self.config.k or 1

    @property
    def layers(self) -> "tuple[LayerAssignments, ...]":
        return self.found.layers if self.shown is None else self.found.layers[self.shown : self.shown + 1]


def explained_lines(said: Explained, width: int, ascii_only: bool = False, most: int | None = None) -> list[Text]:
    """What was done, the text with its experts (of the first `most` tokens; None: of all), what that measures."""
    lines = [*prose(title(said), width, "bold")]
    reading = "Under each token its experts, the strongest first, and the weight of each one's answer."
    for sentence in [*sentences(said), reading]:
        lines += prose(sentence, width, "dim")
    lines += _text(said, width, ascii_only, most)
    rows = [(f"L{each.layer + 1}", each.load) for each in said.layers]
    lines += [Text(), Text("load of this text: 1 is a fair share", "dim")]
    lines += heat_map(rows, 2.0, width, ASCII_SHADES if ascii_only else SHADES, "{:.2f}")
    lines += [Text(), *table(*measures(said), width), Text()]
    for sentence in legend(said):
        lines += prose(sentence, width, "dim")
    return lines


def title(said: Explained) -> str:
    number, size = len(said.found.layers), len(said.found.layers[0].load)
    layers = f"{plural(number, 'sparse layer')} of {plural(size, 'expert')}"
    tokens = f"{len(said.found.tokens):,} token{'s' if len(said.found.tokens) > 1 else ''}"
    return f"{printable(said.run)}   step {said.step:,}   {tokens} ({said.tokenizer})   {layers}"


def sentences(said: Explained) -> list[str]:
    """What was done with the text, and how to read what is shown of it."""
    model, window = said.config.model, said.found.window
    passes = -(-len(said.found.tokens) // window)
    seen = "itself and those before it" if model.causal else "the whole text, of which nothing was masked"
    lines = [
        f"{'One forward pass' if passes == 1 else f'{passes} forward passes'} of this checkpoint as at evaluation "
        f"({_routed(said)}): what the router did, not why. Each token saw {seen}."
    ]
    if passes > 1:
        lines.append(
            f"The text is longer than the context of {window}: {passes} windows, each read without the others."
        )
    if not said.found.tokens[0].part:
        lines.append(
            f"In training documents were kept apart: {SEPARATOR} stands before the text, as before each of them."
        )
    if said.router in RULES:
        lines.append(RULES[said.router])
    lines += _layers(said)
    if any(not choice.kept for layer in said.layers for choices in layer.choices for choice in choices):
        lines.append("An expert with an x had no room: dropped, the token goes on without its answer.")
    return lines


def _routed(said: Explained) -> str:
    """By which rule, and how many experts and how much room there are."""
    capacity = said.policy.capacity
    if said.router == "soft":
        return "router soft"
    if said.router == "expert_choice":  # where nothing else is said the experts have the room they had in training
        return f"router expert_choice, k={said.k} on average, capacity {capacity or said.config.capacity or 1:g}"
    limit = "dropless" if capacity is None else f"room for {capacity:g} of a fair share in each expert"
    return f"router {said.router}, k={said.k}{' aimed at' if said.router == 'relu' else ''}, {limit}"


def _layers(said: Explained) -> list[str]:
    """What stands in the model beside the experts that are shown."""
    model, found = said.config.model, said.found
    lines = []
    dense = model.num_layers - len(found.layers)
    if dense:
        names = ", ".join(f"L{each.layer + 1} is layer {each.block + 1}" for each in said.layers)
        lines.append(
            f"{names} of {model.num_layers}; {dense} of these {'is' if dense == 1 else 'are'} dense: one network for all tokens."
        )
    if model.shared_experts:
        several = model.shared_experts > 1
        lines.append(
            f"Beside them {model.shared_experts} shared expert{'s' if several else ''} of each layer "
            f"answer{'' if several else 's'} for every token: never chosen, not shown."
        )
    nulls = null_experts(said.config.router)
    if nulls:
        last = len(found.layers[0].load)
        lines.append(f"E{last + 1} to E{last + nulls} compute nothing (null experts).")
    return lines


def measures(said: Explained) -> tuple[list[str], list[list[str]]]:
    """A row of metrics for each layer shown, under their labels."""
    rows = [
        [f"L{each.layer + 1}"]
        + [percent(each.measures[name]) if name == "dropped_fraction" else f"{each.measures[name]:.2f}" for name in SHOWN]
        for each in said.layers
    ]  # fmt: skip
    return ["layer", *(BY_KEY[name].label for name in SHOWN)], rows


def legend(said: Explained) -> list[str]:
    """What the measures mean, with what their ends are here."""
    lines = [f"load, {LOAD_RANGE}: {LOAD_DESCRIPTION}."]
    lines += [f"{BY_KEY[name].label}, {BY_KEY[name].range}: {BY_KEY[name].description}." for name in SHOWN]
    size, k = len(said.found.layers[0].load), said.k
    here = f"Here E is {size}" + (f", K is {k} and E / K is {size / k:g}" if said.router not in UNEVEN else "")
    return [*lines, f"{here}. Few tokens are uneven by chance alone; the whole split: moe eval {printable(said.run)}"]


def page_content(said: Explained, made: str) -> dict[str, object]:
    """What the script of `moe_cli.report.html.explained` reads."""
    from moe_cli.report.html.explained import packed

    reading = "Under each token its strongest expert in the layer chosen here; pointing at it, or arrow keys, tell all."
    tokens, (headings, rows) = said.found.tokens, measures(replace(said, shown=None))
    weights = [[[(choice.expert, round(100 * round(choice.weight, 2)), choice.kept) for choice in choices]
                for choices in layer.choices] for layer in said.found.layers]  # fmt: skip
    stride = 1 + max((weight for layer in weights for choices in layer for _, weight, _ in choices), default=0)
    return {
        "title": "Where the tokens of a text go", "above": [title(said), *sentences(said), reading], "made": made, "window": said.found.window, "chosen": said.shown or 0,
        "tokens": [spelled(token) for token in tokens],
        "breaks": [place for place, token in enumerate(tokens) if token.text.endswith("\n")],
        "spaces": [place for place, token in enumerate(tokens) if token.text.endswith(" ")],
        "layers": [
            {"name": f"L{layer.layer + 1}", "load": layer.load, "choices": packed(choices, stride)}
            for layer, choices in zip(said.found.layers, weights, strict=True)
        ],
        "stride": stride,
        "headings": headings, "rows": rows, "legend": legend(said),
    }  # fmt: skip


def spelled(token: "TextToken", ascii_only: bool = False) -> str:
    """The token as it can be shown: a space as a mark, what has no width or moves a cursor as an escape."""
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


def written(weight: float) -> str:
    """Three characters: .62, 1.0, 12."""
    return f"{weight:.0f}" if weight >= 9.95 else f"{weight:.1f}" if weight >= 0.995 else f"{weight:.2f}"[1:]


@dataclass(frozen=True)
class _Column:
    """A token with as many experts of each layer as are shown."""

    head: str
    choices: "tuple[tuple[Assignment, ...], ...]"

    @property
    def width(self) -> int:
        cells = [text for layer in self.choices for choice in layer for text in (name(choice), written(choice.weight))]
        return max(map(cell_len, (self.head, "-", *cells)))


def name(choice: "Assignment") -> str:
    return f"{choice.expert + 1}{'' if choice.kept else 'x'}"


def colour(expert: int) -> str:
    return f"bold #ffffff on {PALETTE[expert % len(PALETTE)]}"


def _text(said: Explained, width: int, ascii_only: bool, most_tokens: int | None) -> list[Text]:
    """The tokens in blocks as wide as the terminal; each window begins anew."""
    most = OF_EACH if said.shown is None else OF_ONE
    columns = [
        _Column(spelled(token, ascii_only), tuple(layer.choices[place][:most] for layer in said.layers))
        for place, token in enumerate(said.found.tokens[:most_tokens])
    ]
    labels = [f"L{layer.layer + 1}" for layer in said.layers]
    room = width - max(map(len, labels)) - 1
    lines = []
    for first in range(0, len(columns), said.found.window):
        if len(columns) > said.found.window:
            lines += [Text(), Text(f"window {first // said.found.window + 1}", "dim")]
        for block in _blocks(columns[first : first + said.found.window], room):
            lines += [Text(), *_block(block, labels)]
    if len(columns) < len(said.found.tokens):
        lines += [Text(), *prose(f"The first {len(columns):,} of {len(said.found.tokens):,} tokens.", width, "dim")]
    left = max(len(choices) for layer in said.layers for choices in layer.choices) - most
    if left > 0:
        more = "--layer 1 shows more" if said.shown is None else "--json has all"
        lines += [Text(), *prose(f"Of each token up to {left} weaker experts are left out: {more}.", width, "dim")]
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
                weights.append((_right(written(choice.weight) if choice else "", column.width), ""))
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
