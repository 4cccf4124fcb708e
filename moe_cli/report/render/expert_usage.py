"""Expert usage of a run as lines for a terminal of any width: heat maps with blocks and numbers as cells.

Blocks and numbers carry all information; colour only repeats it. Layers and experts are counted from 1.
"""

from collections.abc import Sequence

from rich.text import Text

from moe_cli.formatting import listed, or_dash, percent, plural, sanitise, sparkline
from moe_cli.report.expert_usage import ExpertUsage, LayerUsage, TopToken
from moe_cli.report.render.terminal import plain_table, wrap

SHADES, ASCII_SHADES = " ░▒▓█", " .:*#"
CURVE_WIDTH = 24
MOST_DOMAINS = 16
# The width of a cell with a number; one without a number takes one column.
WIDE_CELL = 5


def expert_usage_lines(found: ExpertUsage, layer: int | None, width: int, ascii_only: bool = False) -> list[Text]:
    """Returns the load of every layer over time, then the tables of `layer` (from 1), or of the most uneven layer."""
    size = len(found.layers[0].load)
    shown = max(found.layers, key=lambda layer: layer.max_violation) if layer is None else found.layers[layer - 1]
    source = "whole validation split" if shown.whole_split else "estimate during training"
    layers = f"{plural(len(found.layers), 'sparse layer')} of {plural(size, 'expert')}"
    shades = ASCII_SHADES if ascii_only else SHADES
    return [
        *wrap(f"{sanitise(found.run)}   {layers}   {source}, step {shown.step:,}", width, "bold"),
        Text(),
        *_load(found, width, shades),
        Text(),
        *_measures(found, width),
        *_over_time(found, width, ascii_only),
        *_details(shown, found, layer is None, width, shades),
    ]


def _load(found: ExpertUsage, width: int, shades: str) -> list[Text]:
    rows = [(f"L{layer.layer + 1}", layer.load) for layer in found.layers]
    return [Text("load: 1 is a fair share", "dim"), *heat_map(rows, 2.0, width, shades, "{:.2f}")]


def heat_map(
    rows: Sequence[tuple[str, Sequence[float]]],
    most: float,
    width: int,
    shades: str,
    form: str = "{:.0f}",
    factor: float = 1,
) -> list[Text]:
    """Draws rows of cells under the numbers of experts.

    Each cell is a block, darker for larger values up to `most`, and its number if it fits.
    """
    margin = min(max(len(sanitise(name)) for name, _ in rows), max(4, width // 3))
    size = max(len(cells) for _, cells in rows)
    room = width - margin - 1
    written = [[form.format(factor * cell) for cell in cells] for _, cells in rows]
    cell = max(WIDE_CELL, 2 + max(len(text) for texts in written for text in texts))
    numbers = cell * size <= room
    shown = min(size, room)
    lines = (
        [Text(" " * margin + " " + "".join(f"{f'E{index + 1}':>{cell}}" for index in range(size)), "dim")]
        if numbers
        else []
    )
    for (name, cells), texts in zip(rows, written, strict=True):
        line = Text(f"{sanitise(name)[:margin]:<{margin}} ", no_wrap=True)
        for value, text in list(zip(cells, texts, strict=True))[:shown]:
            style = "yellow" if most and value >= most else "dim" if not value else ""
            shade = _shade(value, most, shades)
            line.append(f" {shade}{text:>{cell - 2}}" if numbers else shade, style)
        lines.append(line)
    if not numbers:
        left = (
            f", E1 to E{shown} of {size}: a wider window shows more"
            if shown < size
            else f", E1 to E{size} from left to right"
        )
        lines += wrap(
            f"'{shades[0]}{shades[1]}{shades[2]}{shades[3]}{shades[4]}' is 0 to {form.format(factor * most)} and "
            f"more{left}",
            width,
            "dim",
        )
    return lines


def _shade(value: float, most: float, shades: str) -> str:
    place = value / most if most else 0.0
    return shades[0] if value == 0 else shades[max(1, min(4, 1 + int(4 * place)))]


def _measures(found: ExpertUsage, width: int) -> list[Text]:
    rows = [
        (
            f"L{layer.layer + 1}",
            percent(layer.max_violation, True),
            _experts(layer.dead),
            _share(layer.dropped),
            or_dash(layer.entropy, 2),
        )
        for layer in found.layers
    ]
    lines = plain_table(("layer", "MaxVio", "dead", "dropped", "entropy"), rows, width)
    if found.dropped and not any(layer.dropped for layer in found.layers):
        lines += wrap(f"evaluated dropless; the capacity of training drops {percent(found.dropped)}", width, "dim")
    return lines


def _share(value: float | None) -> str:
    return "-" if value is None else percent(value)


def _experts(dead: Sequence[int]) -> str:
    return listed([f"E{expert + 1}" for expert in dead], 4, ",") or "none"


def _over_time(found: ExpertUsage, width: int, ascii_only: bool) -> list[Text]:
    """Returns the unevenness of the load and the saturation of the choices at the evaluations of training."""
    room = CURVE_WIDTH if width >= 100 else 12
    rows = []
    for layer in found.layers:
        violation, settled = [y for _, y in layer.max_violation_over_time], [y for _, y in layer.saturation]
        if len(violation) > 1:
            rows.append(
                (
                    f"L{layer.layer + 1}",
                    _curve(violation, room, ascii_only, True),
                    _curve(settled, room, ascii_only, False),
                )
            )
    if not rows:
        return []
    return [
        Text(),
        *plain_table(("layer", "MaxVio in training", "as routed at the end"), rows, width, num_left=3),
        *wrap(
            "as routed at the end: share of choices already equal to the final ones",
            width,
            "dim",
        ),
    ]


def _curve(values: Sequence[float], room: int, ascii_only: bool, signed: bool) -> str:
    if not values:
        return "-"
    drawn = "to" if ascii_only else sparkline(values, room)
    return f"{percent(values[0], signed)} {drawn} {percent(values[-1], signed)}"


def _details(shown: LayerUsage, found: ExpertUsage, is_most_uneven: bool, width: int, shades: str) -> list[Text]:
    name = f"L{shown.layer + 1}"
    lines: list[Text] = []
    if shown.by_domain:
        largest = sorted(shown.by_domain.items(), key=lambda item: -max(item[1]))[:MOST_DOMAINS]
        left = (
            f", the {MOST_DOMAINS} most one-sided of {len(shown.by_domain)}"
            if len(largest) < len(shown.by_domain)
            else ""
        )
        lines += [
            Text(),
            *wrap(
                f"{name} domains{' (classes)' if found.images else ''}: % of the assignments of each{left}",
                width,
                "dim",
            ),
        ]
        most = 2 / len(shown.load)
        lines += heat_map(largest, most, width, shades, factor=100)
    if shown.co_activation and any(
        cell for i, row in enumerate(shown.co_activation) for j, cell in enumerate(row) if i != j
    ):
        lines += [
            Text(),
            *wrap(f"{name} chosen together: % of the row's tokens that also chose the column", width, "dim"),
        ]
        rows = [
            (f"E{i + 1}", [0.0 if i == j else cell for j, cell in enumerate(row)])
            for i, row in enumerate(shown.co_activation)
        ]
        lines += heat_map(rows, max(max(cells) for _, cells in rows), width, shades, factor=100)
    if any(shown.top_tokens):
        lines += [
            Text(),
            *wrap(
                f"{name} {'patches (row:column)' if found.images else 'tokens'} that choose each expert more "
                f"often than by chance, with the share of their choices{_ceiling(shown, found.k)}",
                width,
                "dim",
            ),
        ]
        lines += [_tokens(number, tokens, width) for number, tokens in enumerate(shown.top_tokens)]
    if lines and len(found.layers) > 1:
        why = f"{name} is the most uneven layer. " if is_most_uneven else ""
        lines += [Text(), *wrap(f"{why}Others: --layer 1 to {len(found.layers)}", width, "dim")]
    return lines


def _ceiling(shown: LayerUsage, k: int | None) -> str:
    """Returns the note that no fraction exceeds 1 / k, as a token chooses k experts; empty where that does not hold."""
    tokens = [token for tokens in shown.top_tokens for token in tokens]
    if not k or k == 1 or any(k * token.count > token.total for token in tokens):
        return ""
    return f": at most {percent(1 / k)}, because each token chooses {k} experts"


def _tokens(number: int, tokens: Sequence[TopToken], width: int) -> Text:
    line = f"E{number + 1:<4}"
    for token in tokens:
        piece = f" {spelled(token)} "
        if len(line) + len(piece) > width:
            break
        line += piece
    return Text(line.rstrip() if tokens else line + " -", no_wrap=True)


def spelled(token: TopToken) -> str:
    """Returns a token in quotes, or its id where its text is not recorded, and the share of its choices: 'a' 56 %."""
    text = f"#{token.token}" if token.text is None or "\ufffd" in token.text else sanitise(repr(token.text[:20]))
    return f"{text} {100 * token.count / token.total:.0f} %" if token.total else f"{text} -"
