"""Runs -> configurations: means over seeds with intervals, differences to the baseline, verdicts, Pareto front."""

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter

from moe_cli.config.expressions import Expression
from moe_cli.metrics import BY_KEY
from moe_cli.report.baseline_runs import Baselines, Key, SeedRuns, find_baselines, group_seeds, in_order_of_seed
from moe_cli.report.configuration import JSON_KEYS, Configuration, group_comparable, losses_by_seed
from moe_cli.report.equal_time import MAX_RUNS, TimedCurves, compare_at_equal_time, shortest_times
from moe_cli.report.intervals import mean_and_interval, paired_difference
from moe_cli.report.looks import UNCOUNTED, Compared, Look, look_at
from moe_cli.report.pareto import pareto_front
from moe_cli.report.price import Price, Pricer, Pricing, Ratio
from moe_cli.report.run_row import (
    CORPUS,
    DENSE,
    RESULTS,
    Results,
    RunRow,
    Settings,
    Value,
    column_names,
    is_baseline,
    matches,
    settings_of,
)
from moe_cli.report.significance import (
    INCONCLUSIVE,
    PairedSample,
    additional_seeds_needed,
    compare_with_first,
    paired,
    verdicts,
)
from moe_cli.runs.folder import DONE

# The Pareto front compares these too, and the direction in which each is better.
COSTS = {key: BY_KEY[key].direction for key in ("flops_per_token", "tokens_per_second", "peak_memory_bytes")}
_results_of = attrgetter(*RESULTS)


@dataclass(frozen=True)
class Aggregate:
    """Configurations, and the comparisons that their verdicts are based on.

    Attributes:
        pairs: the number of pairs that the verdicts are corrected for; None with a baseline.
        curves: the curves over training time; None where there are too many runs to read theirs.
        look: the number of this look at the verdicts, which determines their error rate.
    """

    configurations: list[Configuration]
    columns: list[str]
    baselines: Baselines
    pairs: int | None
    curves: TimedCurves | None
    pricer: Pricer
    look: Look

    @property
    def comparisons(self) -> int:
        return sum(configuration.verdict is not None for configuration in self.configurations)

    def single_runs(self, configuration: Configuration) -> list[Configuration]:
        """Returns each run of a configuration as a separate configuration, with its difference to the baseline."""
        rows = [_aggregate([run], self.baselines)[0] for run in configuration.runs]
        return [_add_costs(row, self.baselines, self.curves, self.pricer) for row in rows]


def aggregate_seeds(
    runs: Sequence[RunRow],
    by_run: bool = False,
    extra_baselines: Sequence[RunRow] = (),
    baseline: Settings = DENSE,
    conditions: Collection[Expression] = (),
    pricing: Pricing | None = None,
    other_budgets: Sequence[RunRow] = (),
) -> Aggregate:
    """Aggregates runs that differ in the seed alone into one configuration.

    Runs are one configuration when every setting but the seed is equal, and the data too. Of two runs with one seed the
    newer is used. Runs without results are separate configurations. With `by_run`, every run is one. The baseline of a
    configuration has the settings of `baseline`, and otherwise those of the configuration. If no configuration is its
    baseline, or all are, each is compared with the one of the lowest loss.

    Args:
        extra_baselines: runs that may serve as baselines, but are in no configuration.
        conditions: runs that do not fulfil all of these may serve as baselines, but are in no configuration.
        pricing: how price tags are determined; None means by the runs alone.
        other_budgets: more runs of the baseline, at any budget, for price tags alone.
    """
    columns = column_names(runs)
    settings = settings_of(columns)
    baselines = find_baselines(runs, extra_baselines, baseline, settings)
    pricer = Pricer([*other_budgets, *extra_baselines, *runs], baseline, baselines.shared, pricing)
    runs = [run for run in runs if matches(conditions, run)]
    curves = TimedCurves() if len(runs) <= MAX_RUNS else None
    if by_run:
        rows = [_add_costs(_aggregate([run], baselines)[0], baselines, curves, pricer) for run in runs]
        return Aggregate(rows, _all_columns(columns, settings), baselines, None, curves, pricer, UNCOUNTED)
    replaced: Counter[Key] = Counter()
    groups = group_seeds(runs, settings, replaced)
    made = []
    for key, seeds in groups.items():
        row, sample = _aggregate(in_order_of_seed(seeds), baselines)
        made.append((replace(row, num_replaced=replaced[key]) if replaced[key] else row, sample))
    made += [_aggregate([run], baselines) for run in runs if run.status not in DONE]
    tested = [Compared(row.runs, row.shared_seeds or 0) for row, sample in made if sample is not None]
    look = look_at(tested, baseline)
    rows = _add_verdicts([row for row, _ in made], [sample for _, sample in made], look)
    rows = _add_pareto(rows)
    pairs = None
    one_kind = len({is_baseline(row, baseline) for row in rows if row.primary_loss is not None}) == 1
    if one_kind and not any(row.baseline_path is not None and not row.is_own_baseline for row in rows):
        rows, pairs, look = _compare_with_lowest(rows)
    if pairs is None:
        rows = [_add_costs(row, baselines, curves, pricer) for row in rows]
    elif curves is not None:
        rows = _add_equal_time_to_lowest(rows, curves)
    return Aggregate(rows, _all_columns(columns, settings), baselines, pairs, curves, pricer, look)


def _all_columns(columns: Sequence[str], settings: Sequence[str]) -> list[str]:
    """Returns the columns of configurations: the most important first, settings last."""
    last = ["reason", "sweep", "created", "path", "paths", "baseline", "baseline_path", *CORPUS]
    placed = {*settings, *last}
    return list(dict.fromkeys([*JSON_KEYS, *(name for name in columns if name not in placed), *last, *settings]))


def _aggregate(runs: Sequence[RunRow], baselines: Baselines) -> tuple[Configuration, PairedSample | None]:
    """Returns a configuration without verdict, and the paired differences that its verdict rests on."""
    first = runs[0]
    done = [run for run in runs if run.status in DONE]
    if len(done) == 1 == len(runs):
        results, execution, others = first.results, first.execution, first.others
    else:
        measured = zip(*(_results_of(run.results) for run in done), strict=True) if done else []
        results = Results(*(_mean(values) for values in measured))  # type: ignore[arg-type]
        execution = _mean_record([run.execution for run in done], first.execution)
        corpus = {name: first.others.get(name) for name in CORPUS}
        others = {**_mean_record([run.others for run in done], first.others), **corpus}
    row = Configuration(
        tuple(runs),
        first.settings,
        execution,
        results,
        others,
        _half_width([run.results.val_loss for run in done]),
        _half_width([run.results.val_bpb for run in done]),
    )
    baseline = baselines.find(first) if done else None
    return _compare_with_baseline(row, done, baseline) if baseline else (row, None)


def _mean_record(records: Sequence[Settings], first: Settings) -> Settings:
    """Returns the mean of each entry over these records, also of entries that only `first` has."""
    if records and all(record is first or record == first for record in records):
        return first
    names = dict.fromkeys(name for record in (first, *records) for name in record)
    return {name: _mean([record.get(name) for record in records]) for name in names}


def _compare_with_baseline(
    row: Configuration, runs: Sequence[RunRow], baseline: SeedRuns
) -> tuple[Configuration, PairedSample | None]:
    own, other = losses_by_seed(runs), losses_by_seed(baseline.values())
    shared = own.keys() & other.keys()
    if not shared:
        return row, None
    first = next(baseline[run.seed] for run in runs if run.seed in shared)
    difference, sample = paired_difference(own, other), paired(own, other)
    is_own = first.path in row.paths  # a difference of 0 to itself is not a measurement
    row = replace(
        row,
        shared_seeds=len(shared),
        baseline=first.run,
        baseline_path=first.path,
        vs_baseline=difference.mean if difference else None,
        vs_baseline_interval=difference.half_width if difference and not is_own else None,
    )
    return row, None if is_own else sample


def _add_verdicts(
    rows: Sequence[Configuration], samples: Sequence[PairedSample | None], look: Look
) -> list[Configuration]:
    """Returns the rows with verdicts on their differences to the baseline, and with the intervals of this look."""
    tested = [sample for sample in samples if sample is not None]
    found = iter(verdicts(tested, look.error_rate))
    result = []
    for row, sample in zip(rows, samples, strict=True):
        if sample is None:
            result.append(row)
            continue
        verdict = next(found)
        more = additional_seeds_needed(sample, len(tested), look.next_error_rate) if verdict == INCONCLUSIVE else None
        interval = sample.half_width(look.error_rate) if look.number > 1 else row.vs_baseline_interval
        result.append(replace(row, verdict=verdict, more_seeds=more, vs_baseline_interval=interval))
    return result


def _add_pareto(rows: Sequence[Configuration]) -> list[Configuration]:
    """Returns the rows with their Pareto marks, which are set where a row is comparable with others."""
    result = list(rows)
    for group in group_comparable(rows).values():
        marks = pareto_front([rows[place] for place in group], COSTS)
        for place, mark in zip(group, marks, strict=True) if len(group) > 1 else ():
            result[place] = replace(rows[place], pareto=mark)
    return result


def _compare_with_lowest(rows: Sequence[Configuration]) -> tuple[list[Configuration], int | None, Look]:
    """Compares every configuration with the lowest comparable one.

    Also returns the number of pairs tested, None if nothing can be compared, and the number of this look at them. The
    lowest of an earlier look may be another one, so every member of a pair counts, the lowest too.
    """
    result = list(rows)
    groups = [group for group in group_comparable(rows).values() if len(group) > 1]
    losses = [[rows[place].losses for place in group] for group in groups]
    shared = [[len(group[0].keys() & other.keys()) for other in group[1:]] for group in losses]
    compared = [
        Compared(rows[place].runs, seeds)
        for group, counts in zip(groups, shared, strict=True)
        for place, seeds in zip(group, [max(counts), *counts], strict=True)
    ]
    look = look_at(compared, None)
    found, pairs = compare_with_first(losses, look.error_rate, look.next_error_rate)
    if not any(difference is not None for differences in found for difference in differences):
        return result, None, UNCOUNTED
    for group, differences in zip(groups, found, strict=True):
        if not any(differences):
            continue
        first = rows[group[0]]
        result[group[0]] = replace(
            first,
            baseline=first.run,
            baseline_path=first.path,
            vs_baseline=0.0,
            vs_baseline_interval=None,
            shared_seeds=len(first.losses),
        )
        for place, difference in zip(group, differences, strict=True):
            if difference is not None:
                result[place] = replace(
                    rows[place],
                    baseline=first.run,
                    baseline_path=first.path,
                    vs_baseline=difference.estimate.mean,
                    vs_baseline_interval=difference.estimate.half_width,
                    shared_seeds=difference.sample.seeds,
                    verdict=difference.verdict,
                    more_seeds=difference.more_seeds,
                )
    return result, pairs, look


def _add_costs(row: Configuration, baselines: Baselines, curves: TimedCurves | None, pricer: Pricer) -> Configuration:
    """Returns the row with its comparison at the end of the baseline's training, and its price tag."""
    if row.baseline_path is None or (baseline := baselines.find(row.runs[0])) is None:
        return row
    equal_time = compare_at_equal_time(row.runs, baseline, curves) if curves is not None else None
    if row.is_own_baseline:  # a difference of 0 to itself is not a measurement
        equal_time = replace(equal_time, interval=None) if equal_time else None
        return replace(row, at_equal_time=equal_time, price=Price(Ratio(1.0), Ratio(1.0), (), len(row.seeds)))
    price = pricer.price([run for run in row.runs if run.status in DONE], baseline)
    return replace(row, at_equal_time=equal_time, price=price)


def _add_equal_time_to_lowest(rows: Sequence[Configuration], curves: TimedCurves) -> list[Configuration]:
    """Returns the rows with their comparison with the lowest at the end of the shortest run of each seed."""
    result = list(rows)
    for group in group_comparable(rows).values():
        first = rows[group[0]]
        if first.baseline_path is None:
            continue
        reference: SeedRuns = {run.seed: run for run in first.runs}
        ends = shortest_times((run for place in group for run in rows[place].runs), reference, curves)
        for place in group:
            found = compare_at_equal_time(rows[place].runs, reference, curves, ends)
            if found and place == group[0]:
                found = replace(found, interval=None)
            result[place] = replace(rows[place], at_equal_time=found)
    return result


def _half_width(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean_and_interval(known).half_width if known else None


def _mean(values: Sequence[Value]) -> Value:
    """Returns the mean; the value itself where all are equal, so that counts stay whole; None for unequal text."""
    if values and values.count(values[0]) == len(values):  # the usual case, and quick
        return values[0]
    known = [value for value in values if value is not None]
    if len(set(known)) == 1:
        return known[0]
    numbers = [value for value in known if isinstance(value, int | float)]
    return math.fsum(numbers) / len(numbers) if numbers and len(numbers) == len(known) else None
