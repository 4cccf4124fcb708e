"""A recommendation in a few lines that can be pasted into a memo."""

from moe_cli.numbers import duration, percent, plural, printable
from moe_cli.report.recommend import Comparison, Recommendation
from moe_cli.report.verdicts import BETTER, CANNOT_TELL, WORSE

# So many times the FLOPs of the cheapest are said.
DEARER = 1.1


def memo(found: Recommendation) -> list[str]:
    """The lines of `moe report --recommend`."""
    lines = [*_headline(found), *_cost(found)]
    if found.alone and found.comparisons:
        lines.append(
            f"{found.alone} configuration{'s were' if found.alone > 1 else ' was'} compared with no dense model: none has its settings and seeds."
        )
    lines += [found.scaling] if found.scaling else []
    lines += [f"Not tried: {', '.join(found.not_tried)}."] if found.not_tried else []
    if found.comparisons > 1 and found.reason != "one seed":
        lines.append(f"{found.comparisons} configurations were compared with dense; verdicts allow for that (Holm, 5 % for all together), "
                     "an interval is 95 % for its own comparison. The best of several looks better than it is: run it again with other seeds.")  # fmt: skip
    if found.failed:
        lines.append(
            f"Failed: {'; '.join(found.failed[:3])}"
            + (f" and {len(found.failed) - 3} more" if len(found.failed) > 3 else "")
            + "."
        )
    for aspect, number in found.left_out.items():
        lines.append(f"Left out: {plural(number, 'run')} of other {aspect}; to rank them too: --across {aspect}")
    about = f"   (about {duration(found.next_seconds)}, one at a time)" if found.next_seconds else ""
    if found.next is None:
        return [*lines, "No command is given for a next sweep: this version of moe cannot make these settings."]
    return [*lines, f"To be surer: {found.next}{about}"]


def _headline(found: Recommendation) -> list[str]:
    settings = found.settings
    with_ = ", ".join(printable(str(settings[name])) for name in ("router", "balance") if settings[name])
    capacity = "dropless" if settings["capacity"] is None else f"capacity {settings['capacity']:g}"
    name = f"{found.label} ({with_}, {capacity})" if settings["expert"] != 1 else "the dense model (expert=1)"
    at = f"{found.score:.3f} {found.unit}, {plural(found.seeds, 'seed')}"
    on = f"On {found.context}: "
    if found.reason == "single":
        return [f"{on}nothing to recommend yet, only {name} was run ({at})."]
    if found.reason == "better" and found.gain:
        equal = " of equal active parameters" if found.equal_params else ""
        first = f"It beats the dense model{equal} by {_amount(found.gain)} of its {found.unit} ({plural(found.gain.seeds, 'seed')}, paired)"
        return [f"{on}use {name}.", first + _second(found.runner_up)]
    if found.reason == "one seed":
        against = f", {_amount(found.gain, signed=True)} against dense" if found.gain else ""
        return [f"{on}one seed tells nothing for sure. Lowest of what was run: {name} ({at}{against})."]
    if found.reason == "dense":
        return [f"{on}use {name}: no other configuration is better beyond doubt ({at})." + _nearest(found.runner_up)]
    if found.gain is None:
        return [
            f"{on}lowest of what was run is {name} ({at}). Whether experts pay is not known: no dense model was run with its settings and seeds."
        ]
    beside = "worse than" if found.gain.verdict == WORSE else "not told from"
    return [f"{on}lowest of what was run is {name} ({at}), {beside} dense."]


def _second(other: Comparison | None) -> str:
    if other is None:
        return "."
    text = f"; the runner-up, {other.name}, is {_amount(other)} {'behind' if other.difference > 0 else 'ahead'} on the seeds both have"
    if other.verdict == BETTER and not other.told:
        return text + ", but is not told better than a dense model of its own settings."
    if other.verdict != CANNOT_TELL:
        return text + "."
    return (
        text
        + ", which "
        + (f"{other.seeds} seeds cannot tell" if other.seeds > 1 else "one seed cannot tell")
        + _decide(other, " between the two")
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
    return f"{text}: cannot tell with {plural(other.seeds, 'seed')}{_decide(other)}."


def _decide(other: Comparison, what: str = "") -> str:
    return f"; about {other.more_seeds} more would decide{what}" if other.more_seeds else ""


def _amount(each: Comparison, signed: bool = False) -> str:
    value = 100 * each.difference
    text = f"{value:+.1f} %" if signed else f"{abs(value):.1f} %"
    return text if each.interval is None else f"{text} +- {100 * each.interval:.1f}"


def _cost(found: Recommendation) -> list[str]:
    parts = [f"{value:.{1 if value >= 1.95 else 2}f}x the {name}" for value, name in
             ((found.weights, "weights"), (found.memory, "memory"), (found.speed, "training speed")) if value]  # fmt: skip
    if not parts:
        return []
    text = f"It costs {', '.join(parts)} of dense, as measured"
    if found.flops > DEARER:
        text += f", and {found.flops:.1f}x the FLOPs per token of the cheapest configuration compared"
    lines = [text + "."]
    equal = found.equal_time
    if equal is not None:
        spread = "" if equal.interval is None else f" +- {100 * equal.interval:.1f}"
        lines.append(
            f"In the time of the dense model's last estimate, {100 * equal.at:.0f} % of its training, it is {percent(abs(equal.difference))}{spread} "
            f"{'ahead' if equal.difference < 0 else 'behind'} ({plural(equal.seeds, 'seed')}, paired), its learning rate not yet at the end."
        )
    return lines
