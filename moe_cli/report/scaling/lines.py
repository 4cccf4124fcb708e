"""A study as lines for a terminal of any width."""

import math
import textwrap
from collections.abc import Sequence

from rich.cells import cell_len
from rich.text import Text

from moe_cli.formatting import count, percent, printable
from moe_cli.report.scaling.answers import MOST, DenseEquivalent, IsoFlop, Prediction, Validation
from moe_cli.report.scaling.fit import Fit
from moe_cli.report.scaling.study import Study

GAP = "  "
# The width with room for throughput.
WITH_SPEED = 90
# Beyond so many times what was run, a prediction is a guess.
FAR = 8.0


def study_lines(result: Study, title: str, width: int) -> list[Text]:
    """The law and its constants, what it says, and how far to trust it."""
    found = result.fit
    lines = [
        Text.assemble((printable(title), "bold"), f"   scaling law {found.law.name}   ", (found.law.source, "dim"))
    ]
    lines += prose(found.law.equation, width)
    lines += prose(_size(result), width, "dim")
    lines += prose(_seeds(found), width, "yellow" if found.seeds.deviation is None else "dim")
    lines += [Text(), *_constants(found, width)]
    lines += _others(found, width)
    if result.equivalents:
        lines += [Text(), *_equivalents(result.equivalents, width)]
    if result.iso_flop:
        lines += [Text(), *_iso_flop(result.iso_flop, width)]
    if result.predictions:
        lines += [Text(), *_predictions(result.predictions, width)]
    if result.validation:
        lines += [Text(), *_validation(result.validation, width)]
    return lines


def prose(sentence: str, width: int, style: str = "") -> list[Text]:
    """A sentence on as many lines as it takes, continued with an indent."""
    wrapped = textwrap.wrap(sentence, max(20, width), subsequent_indent="  ", break_on_hyphens=False)
    return [Text(line, style) for line in wrapped]


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], width: int, text: int = 1) -> list[Text]:
    """Aligned columns, the first `text` to the left; the first is cut where a line would be too long."""
    sizes = [max(map(cell_len, column)) for column in zip(headings, *rows, strict=True)]
    spare = width - sum(sizes[1:]) - len(GAP) * (len(sizes) - 1)
    sizes[0] = max(min(8, sizes[0]), min(sizes[0], spare))
    lines = []
    for number, row in enumerate([headings, *rows]):
        cells = [_cut(row[0], sizes[0]), *row[1:]]
        padded = [_pad(cell, size, index < text) for index, (cell, size) in enumerate(zip(cells, sizes, strict=True))]
        line = Text(GAP.join(padded).rstrip(), "" if number else "dim", no_wrap=True)
        line.truncate(width, overflow="ellipsis")
        lines.append(line)
    return lines


def _cut(text: str, size: int) -> str:
    return text if cell_len(text) <= size else text[: size - 3] + "..."


def _pad(text: str, size: int, left: bool) -> str:
    space = " " * (size - cell_len(text))
    return text + space if left else space + text


def _size(result: Study) -> str:
    points = result.fit.points
    tried = f"; {result.left_out} not complete and left out" if result.left_out else ""
    return (
        f"{len(points)} runs of {points.num_configurations} configurations{tried}. Runs lie {percent(result.fit.scale)} from the "
        f"law (robust), configurations held out {percent(result.fit.held_out)}. Intervals: 95 %, wild bootstrap by configuration."
    )


def _seeds(found: Fit) -> str:
    """Whether the intervals allow for a seed shifting all configurations together."""
    seeds = found.seeds
    if seeds.deviation is None:
        return (
            "One seed was run. How far another seed shifts all losses together is not known, and the intervals leave it out: "
            "fewer than 95 % of runs with other seeds lie inside. Run more: --seeds 3"
        )
    return (
        f"A seed shifts all losses together by {percent(seeds.deviation)} (standard deviation over {len(seeds.seeds)} seeds); "
        "the intervals allow for it."
    )


def _constants(found: Fit, width: int) -> list[Text]:
    rows = [
        (each.name, _number(each.value), f"{_number(each.low)} to {_number(each.high)}") for each in found.constants
    ]
    return table(("constant", "value", "95 % interval"), rows, width)


def _number(value: float) -> str:
    return f"{value:.4g}"


def _others(found: Fit, width: int) -> list[Text]:
    lines = []
    for each in found.rejected:
        why = f"held out {percent(each.held_out)}" if each.held_out is not None else str(each.reason).split("\n")[0]
        lines += prose(
            f"not chosen: {each.law}, {why}" if each.held_out is not None else f"not fitted: {why}", width, "dim"
        )
    return lines


def _times(value: float) -> str:
    return f"> {MOST:,.0f}" if value > MOST or math.isinf(value) else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _equivalents(equivalents: Sequence[DenseEquivalent], width: int) -> list[Text]:
    """Without throughput where nobody measured it, or there is no room."""
    headings = ["equals a dense model of", "x compute", "95 % interval", "x tok/s", "speed-up"]
    rows = [
        [printable(each.label), _times(each.times), f"{_times(each.low)} to {_times(each.high)}", _speed(each.throughput),
         "-" if each.speed_up is None else _times(each.speed_up)]
        for each in equivalents
    ]  # fmt: skip
    known = any(each.throughput is not None for each in equivalents)
    shown = len(headings) if known and width >= WITH_SPEED else 3
    lines = table(headings[:shown], [row[:shown] for row in rows], width)
    note = "x compute: model FLOPs, without the optimizer's, of the dense model with the same loss on the same tokens."
    note += " speed-up: how much sooner it gets there on this machine." if shown > 3 else ""
    return [*lines, *prose(note, width, "dim")]


def _speed(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _iso_flop(curves: Sequence[IsoFlop], width: int) -> list[Text]:
    rows = [
        (f"{count(each.flops)}FLOP", f"{each.expansion:g}", str(len(each.sizes)),
         "-" if each.best is None else count(each.best), "-" if each.best_loss is None else f"{each.best_loss:.3f}")
        for each in curves
    ]  # fmt: skip
    lines = table(("iso-FLOP budget", "expert/k", "sizes", "best active", "loss there"), rows, width)
    reasons = dict.fromkeys(
        f"{count(each.flops)}FLOP, expert/k {each.expansion:g}: {each.why}" for each in curves if each.why
    )
    return lines + [line for reason in reasons for line in prose(reason, width, "yellow")]


def _predictions(predictions: Sequence[Prediction], width: int) -> list[Text]:
    rows = [(printable(each.label), f"{each.loss:.3f}", f"{each.low:.3f} to {each.high:.3f}") for each in predictions]
    lines = table(("predicted, not run", "nats/token", "95 % interval of a run"), rows, width)
    for each in predictions:
        if each.beyond > FAR:
            far = f"{printable(each.label)} lies {each.beyond:.1f} times beyond what was run: a guess."
            lines += prose(far, width, "yellow")
    return lines


def _validation(validation: Validation, width: int) -> list[Text]:
    rows = [
        (printable(each.label), f"{each.measured or 0:.3f}", f"{each.loss:.3f}", percent(each.loss / (each.measured or 1) - 1, True),
         f"{each.low:.3f} to {each.high:.3f}")
        for each in validation.predictions
    ]  # fmt: skip
    lines = table(("largest, held out", "measured", "predicted", "error", "95 % interval"), rows, width)
    total = len(validation.predictions)
    verdict = (
        f"from the {validation.num_fitted} smaller configurations, {validation.law}: error {percent(validation.error)} "
        f"(root mean square), {validation.inside} of {total} inside their interval"
    )
    return [*lines, *prose(verdict, width, "" if validation.inside >= 0.8 * total else "yellow")]
