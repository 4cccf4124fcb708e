"""A study of routing as tables: for a terminal of any width, and for a page. Layers and experts are counted from 1."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from moe_cli.formatting import count, percent, plural, sanitise
from moe_cli.moe.routing_study import NUM_RANDOM_ROUTERS, LayerStudy, RoutingStudy
from moe_cli.report.render.expert_usage import ASCII_SHADES, MOST_DOMAINS, SHADES, heat_map
from moe_cli.report.render.terminal import plain_table, wrap

# Caches whose hits are listed, as shares of all experts.
CACHE_SHARES = (0.25, 0.5, 0.75)
# The pairs of experts of a layer in a table.
SHOWN_PAIRS = 3


@dataclass(frozen=True)
class StudyTable:
    """One measure of all layers.

    Attributes:
        note: how to read it.
        num_left: the first columns, which are set to the left.
    """

    id: str
    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str
    num_left: int = 1


def study_title(study: RoutingStudy) -> str:
    tokens = f"{study.num_tokens:,} tokens" + (f" of {plural(len(study.domain_tokens), 'domain')}")
    return f"{sanitise(study.run)}   step {study.step:,}   {sanitise(study.data)}, {study.split}   {tokens}"


def study_sentences(study: RoutingStudy) -> list[str]:
    """Returns the results of the whole model, and the limits of the study."""
    bits = "" if study.bits_per_byte is None else f", {study.bits_per_byte:.4f} bits/byte"
    experts = "expert" if study.top_k == 1 else "experts"
    return [
        f"{study.loss:.4f} nats per target{bits}; {study.top_k:.3g} {experts} per token. In brackets: the same "
        "measure under its control.",
        *study.notes,
    ]


def routing_study_lines(study: RoutingStudy, layer: int | None, width: int, ascii_only: bool = False) -> list[Text]:
    """Returns the load by domain of a layer (from 1; None: the most specialised), and the tables of all layers."""
    shown = _most_specialised(study) if layer is None else study.layers[layer - 1]
    lines = [*wrap(study_title(study), width, "bold")]
    for sentence in study_sentences(study):
        lines += wrap(sentence, width, "dim")
    largest = sorted(shown.load_by_domain.items(), key=lambda item: -max(item[1]))[:MOST_DOMAINS]
    left = f", the {len(largest)} most one-sided domains" if len(largest) < len(shown.load_by_domain) else ""
    why = ", the most specialised layer" if layer is None and len(study.layers) > 1 else ""
    lines += [Text(), *wrap(f"L{shown.layer + 1} load by domain: 1 is a fair share{left}{why}", width, "dim")]
    lines += heat_map(largest, 2.0, width, ASCII_SHADES if ascii_only else SHADES, "{:.2f}")
    for table in study_tables(study):
        lines += [Text(), *wrap(table.title, width, "dim")]
        lines += plain_table(table.headings, table.rows, width, table.num_left)
        lines += wrap(table.note, width, "dim")
    return lines


def _most_specialised(study: RoutingStudy) -> LayerStudy:
    def measured(layer: LayerStudy) -> float:
        return layer.specialisation.measured if layer.specialisation else 0.0

    return max(study.layers, key=measured)


def study_tables(study: RoutingStudy) -> list[StudyTable]:
    """Returns the tables of all measures that this study has, with a row for each layer."""
    tables = (_specialisation(study), _repeats(study), _caches(study), _co_activation(study), _saturation(study))
    return [table for table in tables if table is not None]


def _name(layer: LayerStudy) -> str:
    return f"L{layer.layer + 1}"


def _specialisation(study: RoutingStudy) -> StudyTable | None:
    rows, units = [], 0
    for layer in study.layers:
        found = layer.specialisation
        if found is None:
            return None
        units, random = found.num_units, found.random
        rows.append(
            (
                _name(layer),
                f"{found.measured:.3f}",
                f"{found.shuffled.mean:.3f}-{found.shuffled.high:.3f}",
                f"{found.shuffled.excess:+.3f}",
                f"{found.p_value:.3f}",
                f"{random.low:.3f}-{random.high:.3f}" if random else "-",
                f"{random.excess:+.3f}" if random else "-",
                percent(layer.max_violation, True)
                + (f" ({percent(found.random_max_violation, True)})" if found.random_max_violation is not None else ""),
            )
        )
    headings = ("layer", "spec.", "shuffled", "excess", "p", "random", "excess", "MaxVio (random)")
    note = (
        f"shuffled: mean and 97.5 % limit with the labels of {units:,} documents or groups shuffled, which p is of. "
        f"random: smallest and largest of {NUM_RANDOM_ROUTERS} random routers on the same hidden states, at about "
        "the same load. What they reach is geometry of the hidden states, not a choice of the router."
    )
    return StudyTable(
        "specialisation", "specialisation by domain: 0 independent, 1 determined", headings, tuple(rows), note
    )


def _pair(value: float | None, control: float | None) -> str:
    if value is None:
        return "-"
    return percent(value) + ("" if control is None else f" ({percent(control)})")


def _repeats(study: RoutingStudy) -> StudyTable:
    distances = [found.distance for found in study.layers[0].locality.repeats]
    return StudyTable(
        "repeats",
        "assignments that repeat an expert of the last n tokens (tokens shuffled)",
        ("layer", *(f"n={distance}" for distance in distances)),
        tuple(
            (_name(layer), *(_pair(found.share, found.shuffled) for found in layer.locality.repeats))
            for layer in study.layers
        ),
        "Shuffled tokens repeat by the load alone; what is above that is locality in time.",
    )


def cache_sizes(num_experts: int, top_k: float) -> list[int]:
    """Returns the sizes of the caches that are listed: K, and a quarter, half and three quarters of the experts."""
    sizes = {max(1, round(top_k)), *(round(share * num_experts) for share in CACHE_SHARES)}
    return sorted(size for size in sizes if round(top_k) <= size < num_experts)


def _caches(study: RoutingStudy) -> StudyTable | None:
    sizes = cache_sizes(len(study.layers[0].load), study.top_k)
    if not sizes:
        return None
    return StudyTable(
        "caches",
        "hits of a cache of the c most recently used experts of a layer (tokens shuffled)",
        ("layer", *(f"c={size}" for size in sizes)),
        tuple(
            (
                _name(layer),
                *(_pair(layer.locality.hit_rates[c - 1], layer.locality.shuffled_hit_rates[c - 1]) for c in sizes),
            )
            for layer in study.layers
        ),
        "The rest is loaded when experts are offloaded. Texts follow one another, and the cache stays.",
    )


def _co_activation(study: RoutingStudy) -> StudyTable | None:
    rows = []
    for layer in study.layers:
        if layer.co_activation is None:
            return None
        pairs = [
            f"E{pair.experts[0] + 1}+E{pair.experts[1] + 1} {count(pair.tokens)} ({count(pair.expected)})"
            for pair in layer.co_activation.pairs[:SHOWN_PAIRS]
        ]
        rows.append((_name(layer), "  ".join(pairs) or "-", percent(layer.co_activation.dependence)))
    return StudyTable(
        "co-activation",
        "experts chosen together: tokens (tokens, were the experts of a token independent)",
        ("layer", "pairs most above", "dependence"),
        tuple(rows),
        "dependence: the share of pairs that would have to change to make the experts of a token independent.",
        num_left=2,
    )


def _saturation(study: RoutingStudy) -> StudyTable | None:
    names = [found.earlier for found in study.layers[0].saturation]
    if not names:
        return None
    return StudyTable(
        "saturation",
        "choices that an earlier checkpoint already makes (independent routers of these loads)",
        ("layer", *names),
        tuple(
            (_name(layer), *(_pair(found.share, found.by_chance) for found in layer.saturation))
            for layer in study.layers
        ),
        "On the same tokens, evenly spread over the split.",
    )


def load_rows(study: RoutingStudy) -> Sequence[tuple[str, ...]]:
    """Returns a row for each layer and domain: its tokens, its loss where it is known, and the load of each expert."""
    return [
        (
            _name(layer),
            name,
            f"{study.domain_tokens[name]:,}",
            f"{study.domain_losses[name]:.4f}" if name in study.domain_losses else "-",
            *(f"{value:.2f}" for value in load),
        )
        for layer in study.layers
        for name, load in layer.load_by_domain.items()
    ]
