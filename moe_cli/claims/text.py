"""Claims as text: the list, a claim before its runs with its power, and its result."""

import math
import re
from collections.abc import Iterable, Sequence

from rich.text import Text

from moe_cli.claims.power import Power
from moe_cli.claims.predicates import RELATIVE
from moe_cli.claims.records import CONTRADICTED, HOLDS, Claim, Published, Source
from moe_cli.claims.result import ClaimResult, FigureResult, PartResult
from moe_cli.formatting import duration, plural
from moe_cli.report.looks import OVERALL_ERROR_RATE, percent_of_rate
from moe_cli.report.render.terminal import TextColumn, table_lines, wrap

LABEL_WIDTH = 11
MIN_SENTENCE_WIDTH = 24
_THREAD = re.compile(r"https://github\.com/[^/]+/([^/]+)/(?:issues|pull)/(\d+)")
NOT_TRIED = "not tried"
STYLES = {HOLDS: "green", CONTRADICTED: "red"}


def list_lines(claims: Sequence[Claim], verdicts: Sequence[str | None], width: int) -> list[Text]:
    """Returns a table of all claims with their last verdicts; None means not tried."""
    shown = [verdict or NOT_TRIED for verdict in verdicts]
    columns = [
        TextColumn("claim", [claim.name for claim in claims], align_left=True),
        TextColumn("verdict", shown, align_left=True, styles=[STYLES.get(verdict, "") for verdict in shown]),
        TextColumn("source", [short_source(claim.source) for claim in claims], drop_order=1, align_left=True),
        TextColumn(
            "sentence",
            [claim.sentence for claim in claims],
            drop_order=2,
            align_left=True,
            min_width=MIN_SENTENCE_WIDTH,
        ),
    ]
    note = "Try one: moe reproduce NAME --dry-run"
    return [*table_lines(columns, width), Text(""), Text(note, "dim")]


def short_source(source: Source) -> str:
    """Returns arXiv:2101.03961, nanochat#798 for a page of GitHub, or the address without its scheme."""
    if source.arxiv:
        return f"arXiv:{source.arxiv}"
    thread = _THREAD.fullmatch(source.url)
    return f"{thread[1]}#{thread[2]}" if thread else source.url.removeprefix("https://")


def source_text(source: Source) -> str:
    """Returns the title, where to find it, and the place in it."""
    address = source.url or short_source(source)
    return ", ".join([f"{source.title} ({address})", *([source.place] if source.place else [])])


def published_text(published: Published) -> str:
    """Returns the published figures and their setting."""
    figures = "; ".join(f"{figure.name}: {figure.value}" for figure in published.figures)
    return f"{figures}. In: {published.setting}" if figures else published.setting


def claim_lines(claim: Claim, power: Sequence[Power], width: int) -> list[Text]:
    """Returns source, published figures and power of a claim, before its runs."""
    lines = _labelled("source", [source_text(claim.source)], width)
    lines += _labelled("published", [published_text(claim.published)], width)
    for number, found in enumerate(power):
        style = "yellow" if found.is_enough is False else ""
        lines += _labelled("power" if number == 0 else "", [power_text(found)], width, style)
    return lines


def power_text(power: Power) -> str:
    """Returns what the seeds of a predicate can decide; first of all that they cannot decide the claim."""
    size = abs_value(power.detectable, power.unit)
    origin = "over the seeds so far" if power.is_measured else "over seeds, as the claim's file states"
    noise = f"(standard deviation {abs_value(power.noise, power.unit)} {origin})"
    found = f"{plural(power.seeds, 'seed')} decide from {size} beyond the limit {noise}"
    if power.distance is None:
        return f"{power.label}: {found}. No effect is published."
    claimed = f"the claim is {abs_value(max(0.0, power.distance), power.unit)} beyond it"
    if power.is_enough:
        return f"{power.label}: {found}; {claimed}."
    enough = f"{power.needed} seeds would do: --seeds {power.needed}" if power.needed else "no number of seeds would do"
    return f"{power.label}: cannot decide within its budget: {found}, {claimed}. {enough}."


def result_lines(result: ClaimResult, width: int) -> list[Text]:
    """Returns the verdict, measured figures next to published ones, differences, budget, and what would settle it."""
    style = f"bold {STYLES.get(result.verdict, '')}".strip()
    lines = wrap(f"{result.verdict.capitalize()}: {result.sentence}", width, style)
    for part in result.parts:
        lines += [Text(""), *_hanging("  ", [f"{part.label}: {part.verdict}"], width)]
        lines += _hanging("    ", [figure_text(figure, part) for figure in part.figures], width)
    lines.append(Text(""))
    lines += _labelled("differs", result.differences, width)
    lines += _labelled("budget", [budget_text(result)], width)
    lines += _labelled("error rate", [error_text(len(result.parts), result.look, result.error_rate)], width)
    return lines + _labelled("next", result.settle, width)


def figure_text(figure: FigureResult, part: PartResult) -> str:
    """Returns a measured figure with its interval, the region of the claim, and the published effect."""
    prefix = "" if figure.label == part.label else f"{figure.label}: "
    effect = published_effect(figure, part)
    published = "" if effect is None else f"; published {value_text(effect, figure.unit, part.kind)}"
    return f"{prefix}{measured_text(figure, part.kind)}; claimed {claimed_text(figure, part.kind)}{published}"


def published_effect(figure: FigureResult, part: PartResult) -> float | None:
    """Returns the published value of a figure: of a crossing, that at the largest value of its setting."""
    return part.published_effect if figure.label == part.figures[-1].label else None


def measured_text(figure: FigureResult, kind: str) -> str:
    """Returns the mean with its 95 % interval: -1.62 % (-1.94 % to -1.30 %), 3 seeds."""
    if figure.mean is None:
        return "not measured"
    width = (figure.high or 0.0) - (figure.low or 0.0)
    mean, low, high = (
        None if value is None else value_text(value, figure.unit, kind, width)
        for value in (figure.mean, figure.low, figure.high)
    )
    interval = "" if low is None or high is None else f" ({low} to {high})"
    return f"measured {mean}{interval}, {plural(figure.seeds, 'seed')}"


def claimed_text(figure: FigureResult, kind: str) -> str:
    """Returns the region of the claim: below -0.50 %."""
    low, high = figure.claimed_above, figure.claimed_below
    if low is None:
        return f"below {value_text(high or 0.0, figure.unit, kind)}"
    low_text = value_text(low, figure.unit, kind)
    return f"above {low_text}" if high is None else f"{low_text} to {value_text(high, figure.unit, kind)}"


def value_text(value: float, unit: str, kind: str, interval: float = 0.0) -> str:
    """Returns a value with its unit: -1.62 %. Differences and slopes have a sign; what a `bound` measures has none.

    Args:
        interval: the width of the value's interval; at least two of its digits are shown.
    """
    sign = "-" if kind == "bound" else "+"
    scale, decimals, suffix = (100, 2, " %") if unit == RELATIVE else (1, 3, _with_unit(unit))
    if interval > 0:
        decimals = max(decimals, 1 - math.floor(math.log10(scale * interval)))
    return f"{scale * value:{sign}z.{decimals}f}{suffix}"


def abs_value(value: float, unit: str) -> str:
    """Returns a size with its unit, with two significant digits."""
    if unit == RELATIVE:
        return f"{100 * value:.2g} %"
    return f"{value:.2g}{_with_unit(unit)}"


def _with_unit(unit: str) -> str:
    """Returns a short unit after a space; a longer one says less than the label."""
    return f" {unit}" if unit in ("nats", "bits per byte") else ""


def budget_text(result: ClaimResult) -> str:
    budget = result.budget
    failed = f", {budget.failed} failed" if budget.failed else ""
    seeds = f"seeds {result.seeds[0]} to {result.seeds[-1]}" if len(result.seeds) > 1 else f"seed {result.seeds[0]}"
    runs = f"{budget.complete} of {plural(budget.planned, 'run')} complete{failed}"
    return f"{runs}, {duration(budget.seconds)} of training, {seeds}"


def error_text(num_parts: int, look: int, error_rate: float) -> str:
    """Returns how often a verdict is wrong: at this look, and over all looks."""
    rate = percent_of_rate(error_rate)
    if look > 1:
        rate += f" at look {look}, to which seeds were added, and {percent_of_rate(OVERALL_ERROR_RATE)} over all looks"
    parts = f", corrected for {num_parts} parts" if num_parts > 1 else ""
    intervals = "; the intervals shown are 95 %, not corrected" if parts or look > 1 else ""
    return f"a wrong verdict in at most {rate}{parts}{intervals}"


def _labelled(label: str, sentences: Iterable[str], width: int, style: str = "") -> list[Text]:
    return _hanging(f"{label:<{LABEL_WIDTH}}", sentences, width, style)


def _hanging(start: str, sentences: Iterable[str], width: int, style: str = "") -> list[Text]:
    """Returns sentences after the start of a line, each below the first; a command stays on one line."""
    lines: list[Text] = []
    for sentence in sentences:
        is_command = sentence.startswith("moe ")
        for part in [Text(sentence)] if is_command else wrap(sentence, width - len(start)):
            lines.append(Text((" " * len(start) if lines else start) + part.plain.strip(), style))
    return lines
