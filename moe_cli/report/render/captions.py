"""The lines above and below the table: the comparison, its baseline, and warnings."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from rich.text import Text

from moe_cli.config.tasks import CAUSAL_MODELS
from moe_cli.formatting import count, duration, first_line, listed, plural, sanitise
from moe_cli.metrics import eval_windows, format_references, sees_later_tokens, target_name_of_task, unequal_flops
from moe_cli.report.baseline import ambiguity, baseline_command, baseline_name
from moe_cli.report.columns import truncate_left
from moe_cli.report.comparability import count_code_versions
from moe_cli.report.configuration import Configuration
from moe_cli.report.equal_time import MAX_RUNS, NO_CURVE
from moe_cli.report.intervals import t_quantile
from moe_cli.report.looks import looks_sentence
from moe_cli.report.render.line_wrap import pack
from moe_cli.report.render.terminal import wrap
from moe_cli.report.run_row import DENSE, is_baseline
from moe_cli.report.significance import BETTER, INCONCLUSIVE, WORSE
from moe_cli.report.table import ReportTable
from moe_cli.report.table_file import is_table_row
from moe_cli.report.tuning_record import tuned_settings, tuning_sentences
from moe_cli.runs.folder import FAILED, PRUNED

# With more runs their code versions are not read.
MAX_RUNS_FOR_CODE_VERSIONS = 1000
UNDEFINED = "its loss is 0: differences relative to it are undefined"
# How much wider an interval is with 2 seeds than with 3, at equal standard deviation.
WIDER_WITH_2_SEEDS = t_quantile(0.975, 1) / 2**0.5 / (t_quantile(0.975, 2) / 3**0.5)
NOT_RUN = "was not run with the same settings, seeds, budget and evaluation context"
EXPERT_SETTINGS = ("expert", "k", "router", "balance", "capacity")
CONSTANTS = (*EXPERT_SETTINGS, "model.num_layers", "model.d_model", "optim.name", "optim.lr")


def header_lines(table: ReportTable, title: str, width: int) -> list[Text]:
    """Returns the lines above a table: title, number of rows, data, budget, size and baseline."""
    rows = [row for row in table.rows if row.is_complete]
    pieces = [_size(table, rows)]
    corpora = {row.corpus_sha256: row.corpus for row in rows}
    if len(corpora) > 1:
        pieces.append(f"{len(corpora)} corpora")
    elif any(corpora.values()):
        pieces.append(f"{truncate_left(sanitise(str(rows[0].corpus)))} corpus")
    if any(row.results.tokens for row in rows):
        pieces.append(_span((row.results.tokens for row in rows), count) + " tokens")
    if any(row.results.active_params for row in rows):
        pieces.append("active parameters " + _span((row.results.active_params for row in rows), count))
    lines = [Text(line) for line in pack([truncate_left(sanitise(title)), *pieces], width, "   ", "  ")]
    lines[0].stylize("bold", 0, len(truncate_left(sanitise(title))))
    return lines + _baseline(table, rows, width)


def _size(table: ReportTable, rows: Sequence[Configuration]) -> str:
    if table.by_run or (table.rows and not rows):
        return plural(len(table.rows), "run") + ("" if rows else ", none with results")
    size = plural(len(rows), "configuration")
    seeds = sorted({len(row.seeds) for row in rows})
    if len(seeds) > 1:
        return f"{size}, {seeds[0]} to {seeds[-1]} seeds"
    return size + (f", {plural(seeds[0], 'seed')}" if seeds else "") + (" each" if len(rows) > 1 else "")


def _baseline(table: ReportTable, rows: Sequence[Configuration], width: int) -> list[Text]:
    dense = table.baseline == DENSE
    name = "expert=1 (dense)" if dense else baseline_name(table.baseline)
    others = [row for row in rows if not is_baseline(row, table.baseline)]
    without, undefined = (
        [row for row in others if row.baseline_path is None],
        [row for row in others if row.is_undefined],
    )
    if table.pairs is not None:
        can_train = not is_table_row(rows[0].runs[0])
        also = ", or with a dense model:" if dense and others and can_train else ""
        missing = _pairs_for(rows, table, name)
        lines = wrap(
            f"baseline   none: {missing}differences are to the lowest. Compare with another: --baseline "
            f"SETTING=VALUE{also}",
            width,
        )
        return lines + ([Text("  " + sanitise(baseline_command(rows[0])))] if also else [])
    lines = []
    if len(without) < len(others):
        equal = [name for name in table.aggregate.baselines.shared if name in table.varying]
        at = f", compared at equal {', '.join(equal)}" if equal else ""
        lines += wrap(f"baseline   {sanitise(name)}{at}", width)
    if undefined:
        which = "" if len(undefined) == len(others) else f" for {len(undefined)} of {len(others)}"
        lines += wrap(f"{UNDEFINED}{which}", width, "yellow")
    if table.aggregate.baselines.ambiguous:
        lines += wrap(
            f"baseline   {name} {ambiguity(table.aggregate.baselines.ambiguous)} --baseline SETTING=VALUE",
            width,
            "yellow",
        )
    elif without:
        which = "" if len(without) == len(others) else f" for {len(without)} of {len(others)}"
        if not dense:
            missing = f"baseline   none{which}: {sanitise(name)} {NOT_RUN}"
            return lines + wrap(missing, width, "yellow")
        how_many = plural(len(without), "sparse configuration")
        if len(without) < len(others):
            how_many = f"{len(without)} of {plural(len(others), 'sparse configuration')}"
        has = "has" if len(without) == 1 else "have"
        missing = f"baseline   {how_many} {has} no dense model to compare with."
        if is_table_row(without[0].runs[0]):
            return lines + wrap(f"{missing} It has expert=1 and the same other settings.", width, "yellow")
        lines += wrap(f"{missing} Train it:", width, "yellow")
        lines.append(Text("  " + sanitise(baseline_command(without[0])), "yellow"))
    return lines


def _pairs_for(rows: Sequence[Configuration], table: ReportTable, name: str) -> str:
    """Returns the reason why a declared baseline cannot be used and the lowest is used instead."""
    if table.baseline == DENSE:
        return ""
    all_fit = all(is_baseline(row, table.baseline) for row in rows)
    return f"{sanitise(name)} {'fits every configuration' if all_fit else NOT_RUN}, so "


def footer_lines(table: ReportTable, width: int) -> list[Text]:
    """Returns the lines below a table: its notation, the settings that all rows share, and warnings."""
    rows = [row for row in table.rows if row.is_complete]
    lines = _limits_of_ranking(table, rows, width)
    if any(row.val_loss_interval is not None for row in rows):
        few = any(len(row.seeds) == 2 for row in rows if row.val_loss_interval is not None)
        wide = f" ({WIDER_WITH_2_SEEDS:.1f} times as wide with 2 seeds as with 3)" if few else ""
        lines += wrap(f"intervals: 95 % over seeds{wide}; {differences(table)}", width, "dim")
        lines += (
            wrap(_verdict_summary(rows, table), width, "dim")
            if any(row.vs_baseline_interval is not None for row in rows)
            else []
        )
    elif rows and not table.by_run:
        more = "" if is_table_row(rows[0].runs[0]) else " More seeds: moe sweep ... --seeds 3"
        lines += wrap(f"only one seed: no intervals.{more}", width, "dim")
    for sentence in tuning_sentences(path for row in rows for path in row.paths):
        lines += wrap(sentence, width, "dim")
    if (text := _equal_time(rows, table)) is not None:
        lines += wrap(text, width, "dim")
    if (text := _price(rows, table)) is not None:
        lines += wrap(text, width, "dim")
    if len({(row.corpus_sha256, row.settings.get("task.name")) for row in rows}) == 1 and (
        known := format_references(rows[0].others)
    ):
        lines += [Text(line, "dim") for line in pack([f"reference: {known[0]}", *known[1:]], width, ", ", "  ")]
    costs = [(row.results.active_params, row.results.tokens, row.results.flops_per_token) for row in rows]
    can_match = any(not row.is_dense and row.settings.get("match") != "flops" for row in rows)
    if note := unequal_flops(costs, can_match=can_match):
        lines += wrap(note, width, "dim")
    lines += _limited(rows, width)
    shared = _constants(table, rows)
    if shared:
        lines += [
            Text(line, "dim") for line in pack([f"the same for all: {shared[0]}", *shared[1:]], width, ", ", "  ")
        ]
    return lines + _warnings(table, rows, width)


def differences(table: ReportTable) -> str:
    """Returns the sentence on the baseline of the differences and on their pairing by seed."""
    to = "the lowest" if table.pairs is not None else "the dense model" if table.baseline == DENSE else "the baseline"
    return f"differences to {to} are paired by seed"


def _verdict_summary(rows: Sequence[Configuration], table: ReportTable) -> str:
    """Returns the number of comparisons, their verdicts, and the effect of repeated looks."""
    found = [row.verdict for row in rows if row.verdict]
    counted = ", ".join(f"{found.count(word)} {word}" for word in (BETTER, WORSE, INCONCLUSIVE) if word in found)
    comparisons, allowing = table.aggregate.comparisons, ""
    if table.pairs:
        allowing = (
            f"; verdicts allow for all {plural(table.pairs, 'pair')} (Holm), because the lowest was chosen by its "
            "result"
        )
    elif comparisons > 1:
        allowing = f"; verdicts allow for {comparisons} comparisons (Holm)"
    if any(
        row.verdict == INCONCLUSIVE
        and row.vs_baseline_interval is not None
        and row.vs_baseline is not None
        and abs(row.vs_baseline) > row.vs_baseline_interval
        for row in rows
    ):
        allowing += ", intervals do not: one can exclude 0 where the verdict is 'inconclusive'"
    text = f"{plural(len(found), 'configuration')} compared: {counted}{allowing}"
    if any(row.more_seeds for row in rows) or table.look.number > 1:
        text += f". {looks_sentence(table.look)}"
    return text


def _equal_time(rows: Sequence[Configuration], table: ReportTable) -> str | None:
    """Returns how the configurations stand at equal training time, and how many runs have no value; None if unknown."""
    if rows and table.aggregate.curves is None:
        return f"equal time: not computed for more than {MAX_RUNS} runs"
    found = [row.at_equal_time for row in rows if row.at_equal_time and not row.is_own_baseline]
    known = [comparison for comparison in found if comparison.difference is not None]
    missing: Counter[str] = Counter()
    for comparison in found:
        missing.update(comparison.missing)
    if not known and not set(missing) - {NO_CURVE}:
        return None
    if known and all(comparison.is_budget for comparison in known):
        return "equal time: all runs trained for the same time (train.minutes)"
    without = ", ".join(f"{number} {reason}" for reason, number in sorted(missing.items()))
    without = f"no value for {plural(missing.total(), 'run')} ({without})" if missing else ""
    if not known:
        return f"equal time: {without}"
    undecided = sum(comparison.is_undecided for comparison in known)
    ahead = sum((comparison.difference or 0.0) < 0 for comparison in known if not comparison.is_undecided)
    counts = ((ahead, "ahead"), (len(known) - ahead - undecided, "behind"), (undecided, "undecided"))
    standing = ", ".join(f"{number} {word}" for number, word in counts if number)
    to = "the shortest run" if table.pairs is not None else "the dense model" if table.baseline == DENSE else "baseline"
    how = "paired by seed" if any(comparison.interval is not None for comparison in known) else "one seed"
    time = _span((comparison.seconds for comparison in known), duration)
    return f"equal time (training time of {to}, {time}): {standing}, {how}{'; ' + without if without else ''}"


def _price(rows: Sequence[Configuration], table: ReportTable) -> str | None:
    """Returns where the price tags come from; None without one."""
    found = [row.price for row in rows if row.price and row.price.multiplier.is_known and not row.is_own_baseline]
    if not found:
        return None
    base = "the dense model" if table.baseline == DENSE else "the baseline"
    pricing = table.aggregate.pricer.pricing
    budgets = sorted({f"{place:.3g}" for price in found for place in price.budgets}, key=float)
    if pricing.law is not None:
        source = f"by the stated law of the loss, {pricing.law.irreducible:g} + a / C^{pricing.law.exponent:g}"
    elif len(budgets) > 1:
        source = f"from its runs at {', '.join(budgets[:6])} times the tokens"
    else:
        source = "a bound, because it has runs at one budget only; for more: --baseline-budgets 1.5,2"
    needed = f"times the tokens that {base} needs for this loss, {source}"
    text = f"speedup = compute x ({needed}) * speed x (share of that model's tokens/s"
    if pricing.steps is not None:
        text += f", from {', '.join(map(sanitise, pricing.steps.files))}"
    unknown = sum(price.relative_speed.value is None for price in found)
    why = "no such step in the file" if pricing.steps is not None else "another machine"
    return text + ")" + (f"; no relative speed for {plural(unknown, 'row')} ({why})" if unknown else "")


def _constants(table: ReportTable, rows: Sequence[Configuration]) -> list[str]:
    """Settings that matter and are equal wherever they apply."""
    shared = []
    hidden = {column.name for column in table.columns} | set(table.varying)
    for name in CONSTANTS:
        subjects = [row for row in rows if not row.is_dense] if name in EXPERT_SETTINGS else rows
        values = {row.settings.get(name) for row in subjects}
        known = name == "capacity" and any(name in row.settings for row in subjects)
        if name in hidden or len(values) != 1 or (values == {None} and not known):
            continue
        shared.append(_constant(name, subjects, hidden))
    contexts = [row.results.eval_context for row in rows if row.results.eval_context]
    return [*shared, f"validation context {_span(contexts, '{:.1f}'.format)}"] if contexts else shared


def _constant(name: str, rows: Sequence[Configuration], hidden: set[str]) -> str:
    settings = rows[0].settings
    value = settings.get(name)
    if name == "capacity" and value is None:
        return "dropless"
    text = f"{name.rpartition('.')[2] if not name.endswith('.name') else name.split('.')[0]} {sanitise(str(value))}"
    if name == "optim.lr" and len(rows) > 1 and not tuned_settings(path for row in rows for path in row.paths):
        text += " (not tuned)"
    for detail in [setting for setting in settings if setting.startswith("balance.")] if name == "balance" else ():
        weight = settings[detail]
        if isinstance(weight, int | float) and detail not in hidden:
            text += f" {weight:g}"
    return text


def _limits_of_ranking(table: ReportTable, rows: Sequence[Configuration], width: int) -> list[Text]:
    """Returns lines on what is ranked apart: tasks, data, budgets. They explain the marks, so they follow the table."""
    lines = []
    data = {row.corpus_sha256: row.corpus for row in rows if row.corpus_sha256}  # imported models may have no results
    targets = sorted({target_name_of_task(row.settings.get("task.name")) for row in rows})
    if len(targets) > 1:
        lines += wrap(
            f"different tasks: nats per {', '.join(targets)} do not compare. They are ranked within one task only.",
            width,
            "yellow",
        )
    if len(data) > 1:
        names = sorted(f"{sanitise(str(name))} {sanitise(str(digest))[:6]}" for digest, name in data.items())
        lines += wrap(f"different data: {listed(names, 4)}. They are ranked within one corpus only.", width, "yellow")
    else:
        lines += _unlike(table, [row for row in rows if row.primary_loss is not None], width)
    return lines


def _warnings(table: ReportTable, rows: Sequence[Configuration], width: int) -> list[Text]:
    """Returns warnings on runs that are stale, failed or without results."""
    lines: list[Text] = []
    paths = [path for row in rows for path in row.paths]
    versions = count_code_versions(paths) if 1 < len(paths) <= MAX_RUNS_FOR_CODE_VERSIONS else 1
    if versions > 1:
        lines += wrap(
            f"runs come from {versions} versions of the code: the comparison may be unfair. moe recommend compares "
            "runs of one version only",
            width,
            "yellow",
        )
    precisions = Counter(
        str(run.others["precision"]) for row in rows for run in row.runs if run.others.get("precision")
    )
    if len(precisions) > 1:
        counted = ", ".join(f"{sanitise(name)} {number}" for name, number in sorted(precisions.items()))
        lines += wrap(
            f"runs differ in precision ({counted}): the comparison may be unfair. Set train.precision for all",
            width,
            "yellow",
        )
    replaced = sum(row.num_replaced for row in rows)
    if replaced:
        lines += wrap(
            f"{plural(replaced, 'run')} not counted: the same configuration and seed was run again", width, "yellow"
        )
    failed = [row for row in table.unfinished if row.status == FAILED]
    if failed:
        reason = first_line(failed[0].reason, "see traceback.txt in its folder")
        first = f"{truncate_left(sanitise(failed[0].run))}: {sanitise(reason)}"
        lines += wrap(f"{len(failed)} failed, the first {first}", width, "red")
    pruned = sum(row.status == PRUNED for row in table.unfinished)
    if pruned:
        lines += wrap(f"{plural(pruned, 'run')} pruned: stopped by the search, so in no row with results", width, "dim")
    others = [row.status for row in table.unfinished if row.status not in (FAILED, PRUNED)]
    if others:
        counted = ", ".join(f"{others.count(status)} {sanitise(status)}" for status in sorted(set(others)))
        seen = "" if table.by_run or not rows else "; to see them: moe report --runs"
        lines += wrap(f"without results yet: {counted}{seen}", width, "yellow")
    return lines


def _unlike(table: ReportTable, rows: Sequence[Configuration], width: int) -> list[Text]:
    """Returns the reasons why rows of the same data are not ranked together: budgets, units, validation context."""
    lines = []
    if len({row.comparison_key[1:] for row in rows}) > 1:
        steps = ""
        if "model.context_length" in table.varying:
            steps = ". At several values of model.context_length, equal steps are not equal tokens: set train.tokens"
        lines += wrap(f"different budgets: rows are ranked within one budget only{steps}", width, "yellow")
    units: dict[object, set[object]] = {}
    for row in rows:
        (data, unit, *_), _ = row.comparison_key
        units.setdefault(data, set()).add(unit)
    if any(len(found) > 1 for found in units.values()):
        lines += wrap(
            "different units of the loss: bits per byte, or nats per token of a tokenizer. Rows are ranked within one "
            "unit only",
            width,
            "yellow",
        )
    if len({eval_windows(row.settings) for row in rows}) > 1:
        lines += wrap(
            "different evaluation contexts: rows are ranked within one only. To compare them, set the same "
            "eval.context_length and eval.stride",
            width,
            "yellow",
        )
    return lines


def _limited(rows: Sequence[Configuration], width: int) -> list[Text]:
    """Returns lines on how a capacity dropped assignments at evaluation; empty if none did."""
    rules = {
        rule
        for row in rows
        if row.results.capacity_val_loss is not None and (rule := row.others.get("capacity_val_drop"))
    }
    lines = []
    if rules == {"causal"}:
        lines += wrap(
            "loss @ capacity: at the capacity of training, counted over each sequence; no later token takes the place "
            "of an earlier one (drop=causal)",
            width,
            "dim",
        )
    elif rules:
        lines += wrap(
            f"loss @ capacity: at the capacity of training, drop={', '.join(sorted(map(str, rules)))}", width, "dim"
        )
    seen = {
        str(drop)
        for row in rows
        if row.settings.get("model.name") in CAUSAL_MODELS and (drop := row.settings.get("eval.drop"))
    }
    for drop in sorted(seen - {"causal"}):
        lines += wrap(f"val loss: {sees_later_tokens(drop)}", width, "yellow")
    return lines


def importance(found: Mapping[str, Mapping[str, Mapping[str, float]]], width: int) -> list[Text]:
    """Returns the importance of each setting for each objective of each search: importance: optim.lr 0.71, k 0.18."""
    lines = []
    for name, objectives in found.items():
        for objective, shares in objectives.items():
            which = (f" in {truncate_left(sanitise(name))}" if len(found) > 1 else "") + (
                f" for {objective}" if len(objectives) > 1 else ""
            )
            pieces = [f"{sanitise(key)} {share:.2f}" for key, share in shares.items()]
            lines += [
                Text(line, "dim") for line in pack([f"importance{which}: {pieces[0]}", *pieces[1:]], width, ", ", "  ")
            ]
    return lines


def hidden_columns_note(headings: Sequence[str], width: int) -> list[Text]:
    """Returns the line that names the columns for which a terminal is too narrow."""
    if not headings:
        return []
    return wrap(f"hidden columns: {', '.join(headings)} (use --columns or a wider terminal)", width, "dim")


def _span(values: Iterable[float | None], write: Callable[[float], str]) -> str:
    there = [value for value in values if value is not None]
    least, most = write(min(there)), write(max(there))
    return least if least == most else f"{least} to {most}"
