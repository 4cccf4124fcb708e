"""conf/claim/NAME.yaml -> Claim. The parts that say what is run are those of a sweep file (config/sweep_file.py)."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from moe_cli.claims.predicates import Bound, Crossing, Equal, Explains, Order, Predicate, SameArgmin, Scale, Trend
from moe_cli.claims.records import Claim, Published, PublishedFigure, Region, Source
from moe_cli.config.build import check_choice, did_you_mean, names_of
from moe_cli.config.compose import Composer
from moe_cli.config.expressions import Expression, parse_expression
from moe_cli.config.folders import GROUPS
from moe_cli.config.ranges import format_setting
from moe_cli.config.schema import RunConfig
from moe_cli.config.search_block import known_parts
from moe_cli.config.sweep_file import CLAIM, DEFAULT_PRESET, SweepFile, load_sweep_file
from moe_cli.errors import ConfigError
from moe_cli.metrics import BY_KEY, COMPARISON, DERIVED, TRAINING
from moe_cli.report.price import SPEEDUP_RATIOS

MIN_SEEDS = 3
SIZES = ("params", "active_params", "non_embedding_params", "active_non_embedding_params")
# The metric that is recorded for every evaluation, so that it can be read at a fraction of the training.
METRIC_AT = "router_saturation"
# Metrics of one run, alone or against the dense model of its seed.
METRICS = (
    *(key for key, metric in BY_KEY.items() if metric.kind not in (TRAINING, DERIVED, COMPARISON)),
    *SPEEDUP_RATIOS,
)
_QUANTITY = re.compile(r"\s*([+-]?[0-9.]+(?:e[+-]?[0-9]+)?)\s*(%|nats)?\s*", re.IGNORECASE)


def load_claim(composer: Composer, name: str, preset: str = DEFAULT_PRESET) -> Claim:
    """Returns the claim of conf/claim/NAME.yaml. Raises ConfigError for an unknown name or a wrong part."""
    file = load_sweep_file(composer, name, preset, CLAIM)
    try:
        return parse_claim(file)
    except ConfigError as error:
        raise ConfigError(f"claim {name}: {error}") from None


def parse_claim(file: SweepFile) -> Claim:
    """Returns the claim of a file. Raises ConfigError for a part that is missing or wrong."""
    for part in ("source", "published", "predicate"):
        if part not in file.claim:
            raise ConfigError(f"the part {part} is missing.")
    if not file.question:
        raise ConfigError("the first line must be a comment with the claim in one sentence.")
    if file.seeds < MIN_SEEDS:
        raise ConfigError(f"seeds: {file.seeds} are too few for intervals: at least {MIN_SEEDS}.")
    return Claim(
        file.name,
        file.question,
        _source(file.claim["source"]),
        _published(file.claim["published"]),
        _texts("differences", file.claim.get("differences", [])),
        _predicates(file.claim["predicate"]),
        file.seeds,
        file.presets,
    )


def _source(content: Any) -> Source:
    parts = known_parts(content, ("title", "arxiv", "url", "place"), "source")
    if "title" not in parts or not ("arxiv" in parts or "url" in parts):
        raise ConfigError("source must hold a title, and an arxiv id or a url.")
    texts = {name: _text(f"source.{name}", value) for name, value in parts.items()}
    if (identifier := texts.get("arxiv")) and not re.fullmatch(r"\d{4}\.\d{4,5}", identifier):
        raise ConfigError(f"source.arxiv: {identifier} is no arXiv id. Write it in quotes, as in: '2101.03961'")
    if (url := texts.get("url")) and not url.startswith("https://"):
        raise ConfigError(f"source.url: {url} must begin with https://")
    return Source(**texts)


def _published(content: Any) -> Published:
    parts = known_parts(content, ("setting", "figures"), "published")
    if "setting" not in parts:
        raise ConfigError("published must say in which setting: the model, the data and the budget.")
    figures = parts.get("figures", {})
    if not isinstance(figures, dict):
        raise ConfigError("published.figures must hold names with numbers, as in: figures: {perplexity: 8.2}")
    for name, value in figures.items():
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ConfigError(f"published.figures: {name} must be a number or a text, not: {format_setting(value)}")
    return Published(
        _text("published.setting", parts["setting"]),
        tuple(PublishedFigure(str(name), value) for name, value in figures.items()),
    )


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{key} must be a text, not: {format_setting(value)}")
    return " ".join(value.split())


def _texts(key: str, content: Any) -> tuple[str, ...]:
    if not isinstance(content, list):
        raise ConfigError(f"{key} must be a list of texts.")
    return tuple(_text(key, value) for value in content)


def _predicates(content: Any) -> tuple[Predicate, ...]:
    """Returns the predicate, or those that `all` lists."""
    if isinstance(content, dict) and list(content) == ["all"]:
        parts = content["all"]
        if not isinstance(parts, list) or not parts:
            raise ConfigError("predicate: all must be a list of predicates.")
        return tuple(map(_predicate, parts))
    return (_predicate(content),)


class _Parts:
    """The parts of one predicate as they are written, read one by one.

    Args:
        kind: the name of the predicate.
    """

    def __init__(self, kind: str, values: Mapping[str, Any]) -> None:
        self.kind, self.values = kind, values

    def required(self, name: str) -> Any:
        if name not in self.values:
            raise ConfigError(f"predicate {self.kind}: {name} is missing.")
        return self.values[name]

    def condition(self, name: str) -> Expression:
        return self.parse_condition(name, self.required(name))

    def parse_condition(self, name: str, text: Any) -> Expression:
        if not isinstance(text, str):
            raise ConfigError(
                f"predicate {self.kind}: {name} must be a condition on settings, as in: {name}: expert == 8"
            )
        condition = parse_expression(text)
        condition.check({*names_of(RunConfig), *GROUPS}, "setting")
        return condition

    def where(self) -> Expression:
        """Returns the condition of `where`; without it, one that always holds."""
        return self.condition("where") if "where" in self.values else parse_expression("true")

    def setting(self, name: str) -> str:
        value, known = self.required(name), names_of(RunConfig)
        if value not in known:
            raise ConfigError(f"predicate {self.kind}: no setting '{value}'.{did_you_mean(str(value), known)}")
        return str(value)

    def metric(self, name: str, known: tuple[str, ...]) -> str:
        value = self.required(name)
        if value not in known:
            raise ConfigError(f"predicate {self.kind}: no metric '{value}' here.{did_you_mean(str(value), known)}")
        return str(value)

    def label(self, text: str) -> str:
        """Returns the label of the file, else this one."""
        return _text(f"predicate {self.kind}: label", self.values.get("label", text))

    def scale(self, *, absolute: bool = False, margin: float | None = 0.0, effects: float = -float("inf")) -> Scale:
        """Returns the metric with margin, effect and noise.

        Args:
            absolute: whether percentages are refused.
            margin: the margin where the file has none; None means that it must.
            effects: the least effect.
        """
        metric = self.metric("metric", METRICS)
        units = {}
        numbers = {}
        for name in ("margin", "noise", "effect"):
            if name in self.values:
                numbers[name], units[name] = self.quantity(name, metric)
        if "noise" not in numbers or numbers["noise"] <= 0:
            raise ConfigError(
                f"predicate {self.kind}: noise, the expected standard deviation over seeds, must be a number above 0."
            )
        if margin is None and numbers.get("margin", 0.0) <= 0:
            raise ConfigError(f"predicate {self.kind}: margin must be above 0, as in: margin: 1 %")
        is_relative = units["noise"]
        if any(units[name] != is_relative and numbers[name] != 0 for name in units):
            raise ConfigError(f"predicate {self.kind}: margin, noise and effect must all be in %, or none of them.")
        if absolute and is_relative:
            raise ConfigError(f"predicate {self.kind}: margin, noise and effect are plain numbers here, not in %.")
        effect = numbers.get("effect")
        if effect is not None and effect < effects:
            raise ConfigError(f"predicate {self.kind}: effect must be at least {effects:g} here.")
        return Scale(metric, is_relative, numbers.get("margin", margin or 0.0), numbers["noise"], effect)

    def quantity(self, name: str, metric: str) -> tuple[float, bool]:
        """Returns a number, and whether it is relative: `1 %`, `0.03 nats`, 0.2."""
        value = self.values[name]
        match = None if isinstance(value, bool) else _QUANTITY.fullmatch(str(value))
        if match is None:
            raise ConfigError(
                f"predicate {self.kind}: {name}: {format_setting(value)} is no quantity. Write 1 %, 0.03 nats or 0.2"
            )
        if (match[2] or "").lower() == "nats" and not BY_KEY[metric].unit.startswith("nats"):
            raise ConfigError(f"predicate {self.kind}: {name}: {metric} is not in nats, but in {BY_KEY[metric].unit}.")
        try:
            number = float(match[1])
        except ValueError:
            raise ConfigError(f"predicate {self.kind}: {name}: {format_setting(value)} is no number.") from None
        return (number / 100, True) if match[2] == "%" else (number, False)


def _compared(parts: _Parts, scale: Scale) -> Scale:
    """Returns the scale. Raises ConfigError if neither direction of the metric is better."""
    if not scale.sign:
        raise ConfigError(
            f"predicate {parts.kind}: neither higher nor lower {scale.metric} is better. Write higher and lower in "
            "place of better and worse."
        )
    return scale


def _order(parts: _Parts) -> Order:
    scale, is_ranked = parts.scale(), bool(parts.values.keys() & {"better", "worse"})
    if is_ranked and (others := [name for name in ("higher", "lower") if name in parts.values]):
        raise ConfigError(f"predicate order: {others[0]} has no effect with better and worse: leave it out.")
    if is_ranked:
        scale = _compared(parts, scale)
    names = ("better", "worse") if is_ranked else ("higher", "lower")
    first, second = map(parts.condition, names)
    label = f"{BY_KEY[scale.metric].label}, {first.text} against {second.text}"
    return Order(parts.label(label), scale, first, second, scale.sign > 0 if is_ranked else True)


def _equal(parts: _Parts) -> Equal:
    scale, first, second = parts.scale(margin=None), parts.condition("first"), parts.condition("second")
    label = f"{BY_KEY[scale.metric].label}, {first.text} against {second.text}"
    return Equal(parts.label(label), scale, first, second)


def _bound(parts: _Parts) -> Bound:
    scale, limits = parts.scale(absolute=True), {}
    for name in ("above", "below"):
        if name in parts.values:
            limits[name], _ = parts.quantity(name, scale.metric)
    if not limits:
        raise ConfigError("predicate bound: above or below is missing.")
    if "margin" in parts.values:
        raise ConfigError("predicate bound: margin has no effect. Write the limit into above or below.")
    if len(limits) == 2 and limits["above"] >= limits["below"]:
        raise ConfigError("predicate bound: no number is above {above:g} and below {below:g}.".format(**limits))
    at = parts.values.get("at")
    if at is not None and scale.metric != METRIC_AT:
        raise ConfigError(f"predicate bound: only {METRIC_AT} can be read at a fraction of the training.")
    if at is not None and (isinstance(at, bool) or not isinstance(at, int | float) or not 0 < at < 1):
        raise ConfigError(f"predicate bound: at={format_setting(at)} is not a fraction of the training, such as 0.1")
    where = parts.where()
    place = "" if at is None else f" at {at:.3g} of the training"
    condition = f", {where.text}" if "where" in parts.values else ""
    label = f"{BY_KEY[scale.metric].label}{place}{condition}"
    return Bound(parts.label(label), scale, where, Region(limits.get("above"), limits.get("below")), at)


def _trend(parts: _Parts) -> Trend:
    scale, along, where = parts.scale(), parts.setting("along"), parts.where()
    direction = check_choice("predicate trend: direction", parts.required("direction"), ["falls", "rises"])
    label = f"{BY_KEY[scale.metric].label} for each doubling of {along}"
    return Trend(parts.label(label), scale, along, where, direction == "rises")


def _explains(parts: _Parts) -> Explains:
    scale = parts.scale(absolute=True)
    by, rather_than = parts.metric("by", SIZES), parts.metric("rather_than", SIZES)
    label = f"R^2 of {BY_KEY[scale.metric].label} on log {by}, minus that on log {rather_than}"
    return Explains(parts.label(label), scale, by, rather_than, parts.where())


def _crossing(parts: _Parts) -> Crossing:
    scale, along = _compared(parts, parts.scale(effects=0.0)), parts.setting("along")
    first, last = parts.condition("first"), parts.condition("last")
    label = f"{BY_KEY[scale.metric].label}, {first.text} against {last.text}"
    return Crossing(parts.label(label), scale, along, first, last)


def _same_argmin(parts: _Parts) -> SameArgmin:
    scale, setting = _compared(parts, parts.scale(margin=None, effects=0.0)), parts.setting("setting")
    conditions = parts.required("across")
    if not isinstance(conditions, list) or len(conditions) < 2:
        raise ConfigError("predicate same_argmin: across must be a list of at least two conditions.")
    across = tuple(parts.parse_condition("across", text) for text in conditions)
    return SameArgmin(parts.label(f"{BY_KEY[scale.metric].label} at the best {setting}"), scale, setting, across)


_SCALE = ("label", "metric", "margin", "noise", "effect")
# The parts of each predicate, and the function that reads them.
PREDICATES: dict[str, tuple[tuple[str, ...], Callable[[_Parts], Predicate]]] = {
    "order": (("better", "worse", "higher", "lower"), _order),
    "equal": (("first", "second"), _equal),
    "bound": (("where", "above", "below", "at"), _bound),
    "trend": (("along", "direction", "where"), _trend),
    "explains": (("by", "rather_than", "where"), _explains),
    "same_argmin": (("setting", "across"), _same_argmin),
    "crossing": (("along", "first", "last"), _crossing),
}


def _predicate(content: Any) -> Predicate:
    if not isinstance(content, dict) or len(content) != 1:
        raise ConfigError(f"predicate must hold all, or one of: {', '.join(PREDICATES)}.")
    kind, values = next(iter(content.items()))
    if kind not in PREDICATES:
        raise ConfigError(
            f"no predicate '{kind}'.{did_you_mean(str(kind), PREDICATES)} There are: {', '.join(PREDICATES)}, or all."
        )
    names, read = PREDICATES[kind]
    return read(_Parts(kind, known_parts(values, (*_SCALE, *names), f"the predicate {kind}")))
