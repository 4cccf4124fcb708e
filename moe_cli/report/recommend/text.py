"""Formats a recommendation as sentences."""

from moe_cli.formatting import duration, format_half_width, listed, percent, plural, sanitise
from moe_cli.report.baseline import baseline_name
from moe_cli.report.columns import format_ratio
from moe_cli.report.comparability import EVAL_CONTEXT
from moe_cli.report.data_facts import ngram_sentences
from moe_cli.report.looks import looks_sentence, percent_of_rate
from moe_cli.report.price import Price, Ratio
from moe_cli.report.recommend.choice import Comparison
from moe_cli.report.recommend.recommendation import Recommendation
from moe_cli.report.run_row import DENSE, Settings
from moe_cli.report.significance import BETTER, INCONCLUSIVE, WORSE

# The ratio of FLOPs is shown from this value on.
FLOPS_NOTE_RATIO = 1.1
MAX_TIES = 4


def format_recommendation(found: Recommendation) -> list[str]:
    """Returns the lines of `moe recommend`. The last one, where it begins with `moe`, is a command and nothing else."""
    lines = [*_headline(found), *_health(found)]
    lines += [*_ties(found), *_cost(found)] if found.reason != "worse" else []
    if found.num_without_baseline and found.comparisons:
        base = "dense model" if found.baseline == DENSE else f"run with {baseline_name(found.baseline)}"
        lines.append(
            f"Not compared: {plural(found.num_without_baseline, 'configuration')}. No {base} has the same settings "
            "and seeds."
        )
    if found.undefined:
        lines.append(
            f"Not compared: {plural(found.undefined, 'configuration')}. The loss of the baseline, "
            f"{baseline_name(found.baseline)}, is 0, and differences relative to it are undefined."
        )
    lines += [found.scaling] if found.scaling else []
    lines += [f"Not tried: {', '.join(found.not_tried)}."] if found.not_tried else []
    lines += _statistics(found)
    lines += ngram_sentences(found.ngrams, found.tokenizer)
    if found.failed:
        lines.append(f"Failed: {listed([reason.rstrip('. ') for reason in found.failed], 3, '; ')}.")
    for aspect, number in found.left_out.items():
        alike = " (evaluate all alike: eval.context_length, eval.stride)" if aspect == EVAL_CONTEXT else ""
        lines.append(
            f"Left out: {plural(number, 'run')} of other {aspect}{alike}; to rank them too: --allow-different {aspect}"
        )
    if found.next is None:
        return [*lines, "No command is given for a next sweep: this program cannot make such runs."]
    about = f" (about {duration(found.next_seconds)}, one run at a time)" if found.next_seconds else ""
    return [*lines, f"For more certainty, run{about}:", found.next]


def _statistics(found: Recommendation) -> list[str]:
    """Returns sentences on the correction of the verdicts, and on the effect of repeated looks."""
    lines, rate = [], percent_of_rate(found.look.error_rate)
    if (found.pairs or 0) > 1:
        lines.append(
            "Verdicts are on differences to the lowest, which was chosen by its result, and allow for all "
            f"{found.pairs} pairs (Holm, {rate} for all together); an interval is for its own comparison. The lowest "
            "of several looks better than it is: run it again with other seeds."
        )
    elif found.comparisons > 1 and found.reason != "one seed":
        base = "dense" if found.baseline == DENSE else baseline_name(found.baseline)
        lines.append(
            f"{found.comparisons} configurations were compared with {base}; verdicts allow for that (Holm, {rate} for "
            "all together), an interval is for its own comparison. The best of several looks better than it is: run "
            "it again with other seeds."
        )
    if found.look.number:
        lines.append(looks_sentence(found.look))
    return lines


def _health(found: Recommendation) -> list[str]:
    """Returns sentences on why the lowest is not recommended, or on collapsed routing of the recommended one."""
    lines, other = [], found.passed_over
    if other is not None:
        what = (
            f"The lowest, {other.name}, is {_amount(other)} {'ahead' if other.difference < 0 else 'behind'}, not "
            f"significant with {plural(other.seeds, 'seed')}"
        )
        if found.because == "health":
            lines.append(
                f"{what}. It is not recommended, because its routing has collapsed ({found.passed_over_health})."
            )
        else:
            lines.append(f"{what}. It is not recommended, because it costs more.")
    if found.health:
        lines.append(
            f"Its routing has collapsed ({found.health}). No configuration that ties with it is better balanced."
        )
    return lines


def _ties(found: Recommendation) -> list[str]:
    if not found.ties:
        return []
    ties = "Within 1 % of it, with one seed" if found.reason == "one seed" else "Not distinguishable from it"
    return [f"{ties}: {listed(found.ties, MAX_TIES, '; ')}."]


def _configuration_name(label: str, settings: Settings) -> str:
    """Returns `expert=8 k=2 (topk, switch, dropless)`; of runs of a table no router is known."""
    if settings["expert"] == 1:
        return "the dense model (expert=1)"
    details = [sanitise(str(settings[name])) for name in ("router", "balance") if settings[name]]
    if not details:
        return label
    capacity = "dropless" if settings["capacity"] is None else f"capacity {settings['capacity']:g}"
    return f"{label} ({', '.join([*details, capacity])})"


def _headline(found: Recommendation) -> list[str]:
    settings = found.settings
    name = _configuration_name(found.label, settings)
    dense = found.baseline == DENSE
    base = "dense" if dense else baseline_name(found.baseline)
    at = f"{found.score:.3f} {found.unit}, {plural(found.seeds, 'seed')}"
    on = f"On {found.context}: "
    if found.reason == "single":
        return [f"{on}nothing to recommend yet: only {name} was run ({at})."]
    if found.reason == "better" and found.vs_baseline:
        equal = " of equal active parameters" if found.equal_params and dense else ""
        first = (
            f"It beats {'the dense model' if dense else base}{equal} by {_amount(found.vs_baseline)} of its "
            f"{found.unit} ({plural(found.vs_baseline.seeds, 'seed')}, paired)"
        )
        return [f"{on}use {name}.", first + _second(found)]
    if found.reason == "one seed":
        against = f", {_amount(found.vs_baseline, signed=True)} against {base}" if found.vs_baseline else ""
        lowest = "Lowest of the runs" if found.passed_over is None else "Lowest without collapsed routing"
        unknown = "" if found.comparisons else _unknown(found)
        return [f"{on}one seed is not enough for a verdict. {lowest}: {name} ({at}{against}).{unknown}"]
    if found.reason == "worse" and found.vs_baseline:
        use = "the dense model (expert=1)" if dense else f"{base}, the baseline"
        return [
            f"{on}use {use}. The best of the others is {name} ({at}): it is worse by {_amount(found.vs_baseline)} of "
            f"the baseline's {found.unit} ({plural(found.vs_baseline.seeds, 'seed')}, paired)."
        ]
    if found.reason == "baseline":
        what = f"the dense model (expert=1; {at})" if dense else f"{name}, the baseline ({at})"
        return [f"{on}use {what}. No other configuration is significantly better." + _nearest(found.runner_up)]
    if found.reason == "tie":
        return [f"{on}use {name}: it is not distinguishable from {base} ({at})."]
    lead = f"{on}use {name} ({at})" if found.passed_over else f"{on}lowest of the runs is {name} ({at})"
    if found.pairs is not None:
        named = found.passed_over and found.runner_up and found.passed_over.name == found.runner_up.name
        return [f"{lead}." + ("" if named else _nearest(found.runner_up)) + _unknown(found)]
    if found.vs_baseline is None:
        return [f"{lead}." + _unknown(found)]
    return [f"{lead}, not distinguishable from {base}."]


def _unknown(found: Recommendation) -> str:
    if found.undefined:
        return ""
    if found.is_baseline:
        return "" if found.pairs is not None else " No other configuration was run with its settings and seeds."
    if found.baseline != DENSE:
        return (
            f" How it compares with {baseline_name(found.baseline)} is not known: that was not run with its "
            "settings and seeds."
        )
    return " The benefit of experts is unknown: no dense model was run with these settings and seeds."


def _second(found: Recommendation) -> str:
    other = found.runner_up
    if other is None or found.passed_over is not None:
        return "."
    text = (
        f"; the runner-up, {other.name}, is {_amount(other)} {'behind' if other.difference > 0 else 'ahead'} on "
        "the seeds both have"
    )
    if other.verdict == BETTER and not other.better_than_baseline:
        return text + f", but is not shown to be better than {_its_baseline(found)}."
    if other.verdict != INCONCLUSIVE:
        return text + "."
    return text + f", not significant with {plural(other.seeds, 'seed')}" + _decide(other, " between the two") + "."


def _its_baseline(found: Recommendation) -> str:
    return "a dense model of its own settings" if found.baseline == DENSE else "its own baseline"


def _nearest(other: Comparison | None) -> str:
    if other is None:
        return ""
    text = f" The nearest, {other.name}, differs by {_amount(other, signed=True)}"
    if other.verdict != INCONCLUSIVE:
        return (
            f"{text}: {other.verdict}."
            if other.verdict == WORSE
            else f"{text}, but this is not significant after the correction for all comparisons."
        )
    return f"{text}: inconclusive with {plural(other.seeds, 'seed')}{_decide(other)}."


def _decide(other: Comparison, what: str = "") -> str:
    return f"; about {other.more_seeds} more would decide{what}" if other.more_seeds else ""


def _amount(comparison: Comparison, signed: bool = False) -> str:
    value = 100 * comparison.difference
    text = f"{value:+.1f} %" if signed else f"{abs(value):.1f} %"
    return text if comparison.interval is None else f"{text} +- {format_half_width(100 * comparison.interval, 1)}"


def _cost(found: Recommendation) -> list[str]:
    parts = [
        f"{value:.{1 if value >= 1.95 else 2}f}x the {name}"
        for value, name in (
            (found.params_ratio, "weights"),
            (found.memory_ratio, "memory"),
            (found.throughput_ratio, "training speed"),
        )
        if value
    ]
    if not parts:
        return []
    base = "dense" if found.baseline == DENSE else "the baseline"
    text = f"It costs {', '.join(parts)} of {base}, as measured"
    if found.flops_ratio > FLOPS_NOTE_RATIO:
        text += f", and {found.flops_ratio:.1f}x the FLOPs per token of the cheapest configuration compared"
    lines = [text + "."]
    equal = found.equal_time
    if equal is not None and equal.difference is not None and not equal.is_budget:
        spread = "" if equal.interval is None else f" +- {format_half_width(100 * equal.interval, 1)}"
        base = "dense model" if found.baseline == DENSE else "baseline"
        lines.append(
            f"After the training time of the {base} ({duration(equal.seconds or 0.0)}), this model was "
            f"{percent(abs(equal.difference))}{spread} {'ahead' if equal.difference < 0 else 'behind'}"
            f"{': undecided' if equal.is_undecided else ''} ({plural(equal.seeds, 'seed')}, paired). "
            "Its learning rate had not yet fallen. To compare whole trainings of equal time, set train.minutes."
        )
    if found.price is None:
        return lines
    return [*lines, f"Price: {price_sentence(found.price, found.baseline == DENSE, found.machine)}"]


def price_sentence(price: Price, is_dense: bool, machine: str = "") -> str:
    """Returns the sentence on compute multiplier, relative speed and effective speedup against the baseline.

    Args:
        machine: the files that the relative speed is from; "" means the runs.
    """
    base = "dense model" if is_dense else "baseline"
    text = f"for this loss the {base} needs {format_ratio(price.multiplier)} times the tokens"
    if len(price.budgets) == 1:
        text += f" ({base} at one budget only, so a bound)"
    if price.relative_speed.value is not None:
        where = f", by {sanitise(machine)}" if machine else ""
        text += (
            f"; at {price.relative_speed.value:.2f} times its speed{where}, the effective speedup is "
            f"{format_ratio(price.speedup)}{_sooner(price.speedup)}"
        )
    return text + "."


def _sooner(speedup: Ratio) -> str:
    """Returns what the interval of a speedup says about the time to equal loss; empty without an interval."""
    if speedup.low is not None and speedup.low > 1:
        return ": this loss is reached sooner"
    if speedup.high is not None and speedup.high < 1:
        return ": this loss is reached later"
    return ": undecided which is sooner" if speedup.low is not None or speedup.high is not None else ""
