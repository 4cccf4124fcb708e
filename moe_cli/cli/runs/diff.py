"""What moe runs diff prints: two runs side by side, and whether they may be compared at all."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rich.text import Text

from moe_cli.cli.config import flat
from moe_cli.cli.console import PIPED_WIDTH, Terminal, print_lines
from moe_cli.cli.runs.show import Load, load_of, violation
from moe_cli.cli.terminal import ascii_only
from moe_cli.cli.text_chart import plot
from moe_cli.config.build import show
from moe_cli.config.data import HELD_OUT
from moe_cli.formatting import BARS, DIGITS, bars, count, percent, printable
from moe_cli.metrics import BY_KEY, LOSS, ROUTING, SIZE, SPEED, eval_windows, keys_of
from moe_cli.report.render.terminal import TextColumn, table_lines
from moe_cli.runs.curves import Curve, number, validation_curves
from moe_cli.runs.folder import Run
from moe_cli.runs.status import RunStatus, read_status

PLOT_HEIGHT = 12
PER_STEP = ("train.batch_size", "train.grad_accumulation", "model.context_length")
# What says how well a model has learned its text: without meaning across texts.
LOSS_METRICS = keys_of(LOSS)
PER_TOKEN = tuple(key for key in LOSS_METRICS if key != "val_bpb")
# In the order in which they are listed; what is without a better side here has a size that was chosen.
SHOWN = keys_of(LOSS, SIZE, SPEED, ROUTING)


@dataclass(frozen=True)
class Measure:
    """One figure of both runs.

    Attributes:
        verdict: `better` or `worse`, of B against A; "" where that has no meaning.
    """

    name: str
    a: float | None
    b: float | None
    verdict: str

    @property
    def difference(self) -> float | None:
        return None if self.a is None or self.b is None else self.b - self.a

    @property
    def relative(self) -> float | None:
        return self.difference / abs(self.a) if self.difference is not None and self.a else None


@dataclass(frozen=True)
class Comparison:
    """Attributes:
    settings: those that differ, with the value of A and of B; None where a run has no such setting.
    caveats: why figures cannot be held against each other; empty: they can.
    """

    a: RunStatus
    b: RunStatus
    settings: dict[str, tuple[Any, Any]]
    measures: list[Measure]
    caveats: list[str]

    def record(self) -> dict[str, Any]:
        """For programs."""
        return {
            "a": self.a.run.id, "b": self.b.run.id, "caveats": self.caveats,
            "settings": {key: {"a": a, "b": b} for key, (a, b) in self.settings.items()},
            "metrics": {each.name: {"a": each.a, "b": each.b, "difference": each.difference, "relative": each.relative,
                                    "b_is": each.verdict or None} for each in self.measures},
            "curves": {name.lower(): [{"tokens": int(x), curve.result: y} for x, y in curve.points]
                       for name, curve in _curves_of(self).items()},
            "tokens_per_expert": {name: {str(layer): load for layer, load in load_of(run).items()}
                                  for name, run in (("a", self.a.run), ("b", self.b.run))},
        }  # fmt: skip


def compare(first: Run, second: Run) -> Comparison:
    """Two runs, of which either may be unfinished: then the newest estimates stand for results."""
    a, b = read_status(first), read_status(second)
    configs = flat(first.config_dict()), flat(second.config_dict())
    names = dict.fromkeys([*configs[0], *configs[1]])
    settings = {key: (configs[0].get(key), configs[1].get(key)) for key in names
                if configs[0].get(key) != configs[1].get(key)}  # fmt: skip
    caveats, meaningless = _caveats(a, b, settings)
    figures = _figures(a), _figures(b)
    measures = []
    for name in SHOWN:
        pair = figures[0].get(name), figures[1].get(name)
        if pair != (None, None):
            measures.append(Measure(name, *pair, "" if name in meaningless else _verdict(name, *pair)))
    return Comparison(a, b, settings, measures, caveats)


def _figures(each: RunStatus) -> Mapping[str, float | None]:
    newest = {"val_bpb": each.val_bpb, "val_loss": each.val_loss, "train_loss": each.train_loss,
              "tokens_per_second": each.tokens_per_second, "max_violation": each.max_violation,
              "dead_experts": each.dead_experts, "steps": float(each.step)}  # fmt: skip
    return {**newest, **{key: number(value) for key, value in each.results.items()}}


def _verdict(name: str, a: float | None, b: float | None) -> str:
    metric = BY_KEY[name]
    if a is None or b is None or a == b or not metric.direction or metric.kind == SIZE:
        return ""
    return "better" if (b - a) * metric.direction > 0 else "worse"


def _caveats(a: RunStatus, b: RunStatus, settings: Mapping[str, Any]) -> tuple[list[str], set[str]]:
    """Why the two cannot be held against each other, and the measures whose difference then means nothing."""
    caveats, meaningless = [], set[str]()
    texts = [_text(each) for each in (a, b)]
    if (None not in texts and texts[0] != texts[1]) or {*HELD_OUT} & {*settings}:
        caveats.append("they learned from different texts: no loss of one says anything about the other")
        meaningless |= set(LOSS_METRICS)
    if "data.tokenizer" in settings or "data.bpe_vocab" in settings:
        caveats.append("their tokens differ: losses per token cannot be compared, bits per byte can")
        meaningless |= set(PER_TOKEN)
    windows = [eval_windows(flat(each.run.config_dict())) for each in (a, b)]
    if windows[0] != windows[1]:
        caveats.append(
            "their validation tokens have unlike contexts: give both the same eval.context_length and eval.stride"
        )
        meaningless |= set(LOSS_METRICS) - {"train_loss"}
    tokens = [number(each.results.get("tokens")) for each in (a, b)]
    if None not in tokens and tokens[0] != tokens[1]:
        caveats.append(
            f"they learned from {count(tokens[0] or 0)} and {count(tokens[1] or 0)} tokens: different budgets"
        )
        meaningless |= set(LOSS_METRICS)
    unfinished = [name for name, each in (("A", a), ("B", b)) if not each.results]
    if unfinished:
        caveats.append(f"{' and '.join(unfinished)} {'is' if len(unfinished) == 1 else 'are'} not complete: "
                       "estimates on part of the validation text stand for results")  # fmt: skip
        meaningless |= set(LOSS_METRICS)
    return caveats, meaningless


def _text(each: RunStatus) -> Any:
    corpus = each.run.meta().get("corpus")
    return each.results.get("corpus_sha256") or (corpus.get("sha256") if isinstance(corpus, dict) else None)


def _curves_of(comparison: Comparison) -> dict[str, Curve]:
    """The curves of A and B in one unit and over tokens, so that batches of different sizes compare."""
    runs = {"A": comparison.a.run, "B": comparison.b.run}
    found = {}
    for (name, run), curve in zip(runs.items(), validation_curves(list(runs.values())), strict=True):
        settings = flat(run.config_dict())
        per_step = math.prod(number(settings.get(key)) or 1.0 for key in PER_STEP)
        found[name] = replace(curve, points=tuple((step * per_step, value) for step, value in curve.points))
    return found


def print_comparison(comparison: Comparison) -> None:
    """Which two, what differs, figures, curves, load."""
    console = Terminal()
    width = console.width if console.is_terminal else PIPED_WIDTH
    lines = []
    for letter, each in (("A", comparison.a), ("B", comparison.b)):
        lines.append(
            Text.assemble((letter, "bold"), f"  {printable(each.run.group)}/{printable(each.run.id)}   {each.status}")
        )
    lines += [Text(f"   not comparable: {caveat}", "yellow") for caveat in comparison.caveats]
    lines += _settings(comparison, width) + _measures(comparison, width)
    lines += _curves(comparison, width) + _loads(comparison, width)
    print_lines(console, lines)


def _settings(comparison: Comparison, width: int) -> list[Text]:
    if not comparison.settings:
        return [Text(), Text("no setting differs", "bold")]
    pairs = comparison.settings
    table = table_lines(
        [TextColumn("settings", list(pairs), align_left=True, min_width=12),
         TextColumn("A", [show(a) for a, _ in pairs.values()], align_left=True, min_width=8),
         TextColumn("B", [show(b) for _, b in pairs.values()], align_left=True, min_width=8)], width,
    )  # fmt: skip
    return [Text(), *table]


def _measures(comparison: Comparison, width: int) -> list[Text]:
    shown = comparison.measures
    if not shown:
        return [Text(), Text("no results yet", "dim")]
    styles = {"better": "green", "worse": "red", "": ""}
    return [Text(), *table_lines(
        [
            TextColumn("results", [each.name for each in shown], align_left=True),
            TextColumn("A", [_written(each.name, each.a) for each in shown]),
            TextColumn("B", [_written(each.name, each.b) for each in shown]),
            TextColumn("B - A", [_written(each.name, each.difference, signed=True) for each in shown]),
            TextColumn("", ["" if each.relative is None else percent(each.relative, signed=True) for each in shown]),
            TextColumn("", [each.verdict and f"B {each.verdict}" for each in shown], align_left=True,
                   styles=[styles[each.verdict] for each in shown]),
        ], width)]  # fmt: skip


def _written(name: str, value: float | None, signed: bool = False) -> str:
    if value is None:
        return "-"
    metric = BY_KEY[name]
    if signed and not value:
        return "0"
    if metric.format == "count":
        return ("+" if signed and value > 0 else "") + count(value)
    # One digit more than in a table: small differences are what is looked for.
    return f"{value:{'+' if signed else ''}.{metric.digits + 1}f}"


def _curves(comparison: Comparison, width: int) -> list[Text]:
    curves = {name: curve for name, curve in _curves_of(comparison).items() if curve.points}
    drawn = plot(
        {name: curve.points for name, curve in curves.items()},
        min(width, 100),
        PLOT_HEIGHT,
        "|" if ascii_only() else "┤",
    )
    if not drawn:
        return []
    end = max(x for curve in curves.values() for x, _ in curve.points)
    units = ", ".join(dict.fromkeys(curve.unit for curve in curves.values()))
    title = Text.assemble(
        (f"validation, {units}", "dim"), ("   over tokens, to ", "dim"), (count(end), "dim"), ("   * both", "dim")
    )
    return [Text(), title, *map(Text, drawn)]


def _loads(comparison: Comparison, width: int) -> list[Text]:
    loads = load_of(comparison.a.run), load_of(comparison.b.run)
    layers = sorted({*loads[0], *loads[1]})
    if not layers:
        return []
    room = max(4, min(32, (width - 24) // 2))

    def drawn(load: Load | None) -> tuple[str, str]:
        if load is None:
            return "dense", "-"
        return bars(load, room, DIGITS if ascii_only() else BARS), percent(violation(load), signed=True)

    first, second = [drawn(loads[0].get(layer)) for layer in layers], [drawn(loads[1].get(layer)) for layer in layers]
    return [Text(), *table_lines(
        [TextColumn("load", [f"L{layer + 1}" for layer in layers], align_left=True),
         TextColumn("A", [bar for bar, _ in first], align_left=True), TextColumn("MaxVio", [worst for _, worst in first]),
         TextColumn("B", [bar for bar, _ in second], align_left=True), TextColumn("MaxVio", [worst for _, worst in second])], width)]  # fmt: skip
