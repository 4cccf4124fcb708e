"""A recommendation in a few lines that can be pasted into a memo."""

from moe_cli.numbers import duration, percent, printable
from moe_cli.report.recommend import Comparison, Recommendation
from moe_cli.report.verdicts import BETTER, CANNOT_TELL, WORSE


def memo(found: Recommendation) -> list[str]:
    """The lines of `moe report --recommend`."""
    lines = [*_headline(found), *_cost(found)]
    lines += [found.scaling] if found.scaling else []
    lines += [f"Not tried: {', '.join(found.not_tried)}."] if found.not_tried else []
    if found.comparisons > 1:
        lines.append(f"{found.comparisons} configurations were compared with dense; verdicts allow for that (Holm, 5 % for all together), "
                     "intervals are 95 % each. The best of several looks better than it is: run it again with other seeds.")  # fmt: skip
    if found.failed:
        lines.append(
            f"Failed: {'; '.join(found.failed[:3])}"
            + (f" and {len(found.failed) - 3} more" if len(found.failed) > 3 else "")
            + "."
        )
    for aspect, number in found.left_out.items():
        lines.append(
            f"Left out: {number} run{'s' if number > 1 else ''} of other {aspect}; to rank them too: --across {aspect}"
        )
    about = f"   (about {duration(found.next_seconds)}, one at a time)" if found.next_seconds else ""
    return [*lines, f"To be surer: {found.next}{about}"]


def _headline(found: Recommendation) -> list[str]:
    settings = found.settings
    with_ = ", ".join(printable(str(settings[name])) for name in ("router", "balance") if settings[name])
    capacity = "dropless" if settings["capacity"] is None else f"capacity {settings['capacity']:g}"
    name = f"{found.label} ({with_}, {capacity})" if settings["expert"] != 1 else "the dense model (expert=1)"
    at = f"{found.score:.3f} {found.unit}, {_seeds_text(found.seeds)}"
    if found.reason == "single":
        return [f"Nothing to recommend yet: only {name} was run ({at})."]
    if found.reason == "better" and found.gain:
        equal = " of equal active parameters" if found.equal_params else ""
        first = f"It beats the dense model{equal} by {_amount(found.gain)} of its {found.unit} ({_seeds_text(found.gain.seeds)}, paired)"
        return [f"Use {name}.", first + _second(found.runner_up)]
    if found.reason == "one seed":
        against = f", {_amount(found.gain, signed=True)} against dense" if found.gain else ""
        return [f"One seed tells nothing for sure. Lowest of what was run: {name} ({at}{against})."]
    if found.reason == "dense":
        return [f"Use {name}: no other configuration is better beyond doubt ({at})." + _nearest(found.runner_up)]
    if found.gain is None:
        return [
            f"Lowest of what was run: {name} ({at}). Whether experts pay is not known: no dense model was run with its settings and seeds."
        ]
    return [f"Lowest of what was run: {name} ({at}), not told from dense."]


def _second(other: Comparison | None) -> str:
    if other is None:
        return "."
    text = f"; the runner-up, {other.name}, is {percent(abs(other.difference))} {'behind' if other.difference > 0 else 'ahead'}"
    if other.verdict == BETTER:
        return text + ", but is not told better than a dense model of its own settings."
    if other.verdict != CANNOT_TELL:
        return text + "."
    return (
        text
        + ", which "
        + (f"{other.seeds} seeds cannot tell" if other.seeds > 1 else "one seed cannot tell")
        + _decide(other)
        + "."
    )


def _nearest(other: Comparison | None) -> str:
    if other is None:
        return ""
    text = f" The nearest, {other.name}, differs by {_amount(other, signed=True)}"
    if other.verdict != CANNOT_TELL:
        return (
            f"{text}: {other.verdict}."
            if other.verdict == WORSE
            else f"{text}, not beyond doubt among so many comparisons."
        )
    return f"{text}: cannot tell with {_seeds_text(other.seeds)}{_decide(other)}."


def _decide(other: Comparison) -> str:
    return f"; about {other.more_seeds} more would decide" if other.more_seeds else ""


def _amount(each: Comparison, signed: bool = False) -> str:
    value = 100 * each.difference
    text = f"{value:+.1f} %" if signed else f"{abs(value):.1f} %"
    return text if each.interval is None else f"{text} +- {100 * each.interval:.1f}"


def _seeds_text(seeds: int) -> str:
    return f"{seeds} seed{'' if seeds == 1 else 's'}"


def _cost(found: Recommendation) -> list[str]:
    parts = [f"{value:.{1 if value >= 1.95 else 2}f}x the {name}" for value, name in
             ((found.weights, "weights"), (found.memory, "memory"), (found.speed, "training speed")) if value]  # fmt: skip
    if not parts:
        return []
    text = f"It costs {', '.join(parts)} of dense, as measured"
    if found.equal_time is not None:
        ahead = "ahead" if found.equal_time < 0 else "behind"
        text += f"; stopped after the dense model's time, its learning rate not yet at the end, it is {percent(abs(found.equal_time))} {ahead}"
    return [text + "."]
