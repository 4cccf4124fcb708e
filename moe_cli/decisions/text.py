"""A decision as text: the answer in five lines, then its certificate."""

from collections.abc import Sequence

from rich.text import Text

from moe_cli.decisions.certificate import Certificate, Gain
from moe_cli.decisions.plan import DENSE_NAME, FLOPS, TIME, TOKENS
from moe_cli.decisions.terms import EQUAL, Comparison, Interval
from moe_cli.formatting import duration, plural, sanitise
from moe_cli.report.recommend.text import price_sentence
from moe_cli.report.render.terminal import plain_table, wrap
from moe_cli.report.significance import BETTER, INCONCLUSIVE

LABEL_WIDTH = 12
BY_NAMES = {TOKENS: "tokens", TIME: "time", FLOPS: "FLOPs"}
COST_NAMES = {
    "params": "weights",
    "peak_memory_bytes": "memory",
    "tokens_per_second": "tokens/s",
    "flops_per_token": "FLOPs per token",
}
MAX_NAMED = 4
MORE_BUDGETS = "For a value in place of a bound: the same command with --baseline-budgets 1.5,2 and a larger budget."
# Columns that are set to the left, by the last heading of a table.
NUM_LEFT = {"rates and losses": 3, "behind the leader, and why": 3}


def certificate_lines(found: Certificate, width: int) -> list[Text]:
    """Returns the answer in five sentences, and the certificate below it; commands stay on one line."""
    lines: list[Text] = []
    for number, sentence in enumerate(answer_sentences(found)):
        lines += wrap(sentence, width, "bold" if number == 0 else "", "" if number == 0 else "  ")
    lines.append(Text(""))
    for label, sentences in certificate_parts(found):
        for number, sentence in enumerate(sentences):
            indent = f"{label if number == 0 else '':<{LABEL_WIDTH}}"
            if sentence.startswith("moe "):
                lines.append(Text(indent + sentence))
            else:
                lines += _hanging(indent, sentence, width)
    for title, headings, rows in tables(found):
        lines += [Text(""), Text(title, "dim"), *plain_table(headings, rows, width, NUM_LEFT.get(headings[-1], 1))]
    return lines


def _hanging(indent: str, sentence: str, width: int) -> list[Text]:
    """Returns a sentence on as many lines as it takes, all of them below its beginning."""
    parts = wrap(sentence, width - len(indent))
    return [
        Text(f"{indent if number == 0 else ' ' * len(indent)}{part.plain.strip()}") for number, part in enumerate(parts)
    ]


def answer_sentences(found: Certificate) -> list[str]:
    """Returns the answer: what to use, its gain, its cost, the guarantee, and what was not tried."""
    decision = found.decision
    guarantee = f"A wrong better, worse or equal among all claims: at most {percent(found.alpha)} each, over all looks."
    return [
        _headline(found),
        _gain_sentence(found),
        _cost_sentence(found),
        guarantee if decision.comparisons else "Nothing is claimed.",
        f"Not tried: {'; '.join(found.not_tried)}.",
    ]


def configuration(name: str) -> str:
    """Returns the name of a candidate in a sentence."""
    return "the dense model (expert=1)" if name == DENSE_NAME else sanitise(name)


def _headline(found: Certificate) -> str:
    decision = found.decision
    if decision.winner is None:
        return f"No answer: {decision.reason}"
    use = f"Use {configuration(decision.winner)}."
    equals = [name for group in decision.classes if decision.winner in group for name in group]
    equals = [name for name in equals if name != decision.winner]
    if decision.verdict == EQUAL and equals:
        cheapest = "cheaper of the two" if len(equals) == 1 else f"cheapest of the {len(equals) + 1}"
        return f"{use} It equals {_listed(equals)} within {percent(found.within)} and is the {cheapest}."
    if decision.verdict == BETTER:
        beaten = [
            _other(comparison, decision.winner)
            for comparison in decision.comparisons
            if decision.winner in _pair(comparison)
        ]
        return f"{use} It is better than {_listed(beaten)}." if beaten else f"{use} {decision.reason}"
    open_names = [name for claim in decision.comparisons if claim.verdict == INCONCLUSIVE for name in _pair(claim)]
    names = list(dict.fromkeys(open_names)) or [decision.winner]
    return (
        f"Undecided between {_listed(names)}: this takes a larger budget. "
        f"{configuration(decision.winner)} led before the confirmation."
    )


def is_open(found: Certificate) -> bool:
    """Returns whether a candidate led, and nothing is claimed of it."""
    return found.decision.verdict == INCONCLUSIVE


def _pair(comparison: Comparison) -> tuple[str, str]:
    return comparison.one, comparison.other


def _other(comparison: Comparison, name: str) -> str:
    return comparison.other if comparison.one == name else comparison.one


def _listed(names: Sequence[str]) -> str:
    named = [configuration(name) for name in names[:MAX_NAMED]]
    named += [f"{len(names) - MAX_NAMED} more"] if len(names) > MAX_NAMED else []
    return named[0] if len(named) == 1 else f"{', '.join(named[:-1])} and {named[-1]}"


def _gain_sentence(found: Certificate) -> str:
    if found.decision.winner == found.decision.baseline:
        return "No configuration with experts is shown to be better than the dense model."
    if not found.gains:
        return "Its gain over the dense model is unknown: the confirmation has no runs of both."
    subject = f"{configuration(found.decision.winner or '')} against dense" if is_open(found) else "Against dense"
    return f"{subject}, on {_seeds(found.seeds)}: {', '.join(map(_gain, found.gains))}."


def _seeds(seeds: Sequence[int]) -> str:
    if len(seeds) < 2:
        return f"fresh seed {seeds[0]}" if seeds else "fresh seeds"
    if seeds[-1] - seeds[0] == len(seeds) - 1:
        return f"fresh seeds {seeds[0]} to {seeds[-1]}"
    return f"{len(seeds)} fresh seeds of {seeds[0]} to {seeds[-1]}"


def _gain(gain: Gain) -> str:
    at = f"at equal {BY_NAMES[gain.by]}"
    if gain.difference is None:
        return f"unknown {at} ({gain.missing})"
    return f"{difference(Interval(gain.difference, gain.low, gain.high, gain.seeds))} {at}"


def difference(found: Interval) -> str:
    """Returns a relative difference with its interval: -2.7 % +- 0.6; (-3.1 to -2.0) where it is not symmetric."""
    text = f"{100 * found.mean:+.1f} %"
    if found.low is None or found.high is None:
        return text
    below, above = found.mean - found.low, found.high - found.mean
    if abs(below - above) < 0.0005:
        return f"{text} +- {100 * above:.1f}"
    return f"{text} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"


def percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _cost_sentence(found: Certificate) -> str:
    if not found.cost_ratios:
        return "Cost: that of the dense model." if found.decision.winner == DENSE_NAME else "Cost: unknown."
    parts = [
        f"{ratio(found.cost_ratios[name])} the {COST_NAMES[name]}" for name in COST_NAMES if name in found.cost_ratios
    ]
    return f"Cost: {', '.join(parts)} of dense, as measured."


def ratio(value: float) -> str:
    return f"{value:.{1 if value >= 1.95 else 2}f}x"


def certificate_parts(found: Certificate) -> list[tuple[str, list[str]]]:
    """Returns the parts of the certificate: label and sentences. A command is a sentence that begins with `moe`."""
    decision = found.decision
    later = [gain for gain in found.gains if not gain.is_final and gain.difference is not None]
    parts = [
        ("question", [f"{found.question or found.name} On {found.context}."]),
        ("verdict", [f"{decision.verdict}: {decision.reason}"]),
        ("equal", [f"{_listed(group)} within {percent(found.within)}" for group in decision.classes if len(group) > 1]),
        (
            "note",
            [
                f"At equal {' and '.join(BY_NAMES[gain.by] for gain in later)}, losses are read from the curves where "
                "the shorter run ended; the learning rate of the longer one had not yet fallen. Intervals there are "
                "95 %."
            ]
            if later
            else [],
        ),
        ("speedup", _speedup(found)),
        ("guarantee", list(decision.guarantee)),
        ("limits", list(decision.unused)),
        ("spent", [_spent(found)]),
        ("train", [found.train] if found.train and not is_open(found) else []),
        ("again", [found.repeat]),
        ("see", [f"moe report {found.name}", f"moe report {found.name} -o {found.name}.html"]),
    ]
    return [(label, sentences) for label, sentences in parts if sentences]


def _speedup(found: Certificate) -> list[str]:
    """Returns the sentences on the price tag, with what would make a bound a value; empty if it is unknown."""
    if found.price is None or not found.price.multiplier.is_known:
        return []
    more = [] if len(found.price.budgets) > 1 else [MORE_BUDGETS]
    text = price_sentence(found.price, is_dense=True)
    return [text[0].upper() + text[1:], *more]


def _spent(found: Certificate) -> str:
    limits = [f"{found.limits.minutes:g} min"] if found.limits.minutes is not None else []
    limits += [f"{found.limits.runs} runs"] if found.limits.runs is not None else []
    within = f" of {' and '.join(limits)}" if limits else ""
    return f"{plural(found.decision.runs, 'run')}, {duration(found.wall_seconds)} of wall clock{within}"


def tables(found: Certificate) -> list[tuple[str, list[str], list[list[str]]]]:
    """Returns the tables of the certificate: title, headings, rows. Empty tables are left out."""
    decision = found.decision
    losses = [
        [
            sanitise(loss.name),
            f"{loss.mean:.3f}{'' if loss.half_width is None else f' +- {loss.half_width:.3f}'}",
            str(loss.seeds),
        ]
        for loss in decision.losses
    ]
    claims = [
        [
            f"{sanitise(claim.one)} against {sanitise(claim.other)}",
            difference(claim.difference),
            str(claim.difference.seeds),
            claim.verdict,
        ]
        for claim in decision.comparisons
    ]
    rates = [
        [
            sanitise(rate.name),
            f"x{rate.multiplier:.3g}{', at the edge' if rate.is_at_edge else ''}",
            "  ".join(
                f"x{multiplier:g} {'failed' if loss is None else f'{loss:.3f}'}" for multiplier, loss in rate.losses
            ),
        ]
        for rate in decision.rates
    ]
    dropped = [
        [
            sanitise(entry.name),
            entry.stage,
            entry.reason if entry.difference is None else f"{difference(entry.difference)}, {entry.reason}",
        ]
        for entry in decision.dropped
    ]
    return [
        table
        for table in (
            ("confirmation: loss on fresh seeds", ["candidate", found.unit, "seeds"], losses),
            (
                "claims: intervals hold for all claims and looks at once",
                ["pair", "difference", "seeds", "verdict"],
                claims,
            ),
            ("learning rates, times that of the settings", ["candidate", "best", "rates and losses"], rates),
            ("dropped, in order of time", ["candidate", "stage", "behind the leader, and why"], dropped),
        )
        if table[2]
    ]
