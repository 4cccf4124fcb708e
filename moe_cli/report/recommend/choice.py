"""Choice of the recommended configuration. The text, the table and the page use this decision."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from moe_cli.config.ranges import format_setting
from moe_cli.formatting import percent, sanitise
from moe_cli.report.configuration import Configuration, group_comparable
from moe_cli.report.looks import UNCOUNTED, Look
from moe_cli.report.pareto import tolerance
from moe_cli.report.run_row import DENSE, Record, Settings, is_baseline
from moe_cli.report.significance import (
    BETTER,
    INCONCLUSIVE,
    WORSE,
    additional_seeds_needed,
    decided_pairs,
    paired,
)

# Routing has collapsed if more than this fraction of the experts is dead, because their parameters are unused. One dead
# expert in one layer of one seed is below it in all but the smallest models.
MAX_DEAD_EXPERTS = 0.05
# Or if the load of the most loaded expert, scaled from even load (0) to every token (1), is above this value: with 8
# experts and k=2 it then gets 81 % of the tokens. MaxVio is scaled because its maximum, experts / k - 1, varies.
MAX_IMBALANCE = 0.75
# Configurations that tie and whose losses differ by less than this are ranked by their cost.
SAME_LOSS = 0.005
# With one seed nothing is tested: configurations that differ by less than this count as a tie.
ONE_SEED_TIE = 0.01


@dataclass(frozen=True)
class Known:
    """Verdicts that are already known when two configurations are compared.

    Attributes:
        differing: the pairs of configurations that differ, where verdicts are corrected for all pairs. A configuration
            is identified by the path of its first run.
        pairs: the number of pairs in the correction. None means that verdicts are on differences to a baseline, and
            each pair is tested separately.
        look: the number of this look at the verdicts.
    """

    differing: frozenset[frozenset[str]] = frozenset()
    pairs: int | None = None
    look: Look = UNCOUNTED


@dataclass(frozen=True)
class Comparison:
    """One configuration against another: share of its score, negative is better; its interval, over paired seeds.

    Attributes:
        better_than_baseline: whether the verdict on the configuration itself, against its baseline, is better.
    """

    name: str
    difference: float
    interval: float | None
    seeds: int
    verdict: str
    more_seeds: int | None
    better_than_baseline: bool = False


@dataclass(frozen=True)
class Choice:
    """The recommended configuration.

    Attributes:
        reason: the reason of the recommendation:
            better: it is better than its baseline; baseline: no configuration is better than the baseline;
            tie: it is not better, but routing has collapsed in the configuration that it ties with;
            worse: all are worse than a baseline that is not among them; one seed: too few seeds for a verdict;
            untested: no baseline was run; single: no other configuration to compare it with.
        runner_up: the next best that is no baseline.
        ties: those of equal data and budget that are not distinguishable from the recommended one, the lowest first.
        passed_over: the lowest, if another one that ties with it is recommended.
        because: the reason why it was passed over: "health" or "cost".
        known: the known verdicts that `compare` uses.
    """

    row: Configuration
    reason: str
    runner_up: Configuration | None
    ties: tuple[Configuration, ...]
    passed_over: Configuration | None
    because: str
    known: Known


def choose(
    rows: Sequence[Configuration], baseline: Settings = DENSE, pairs: bool = False, look: Look = UNCOUNTED
) -> Choice:
    """Chooses the recommended one of complete configurations with a score.

    The first choice is the lowest whose verdict against its baseline is better, else the baseline, else the lowest. If
    its routing has collapsed, and a configuration that ties with it has healthy routing, that one is chosen. Last, the
    cheapest of those that tie with it and are within SAME_LOSS of it is chosen.

    Args:
        pairs: the verdicts are on differences to the lowest, not to a baseline.
        look: the number of this look at the verdicts, which determines their error rate.
    """
    known = _test_all_pairs(rows, look) if pairs else Known(look=look)
    ranked = sorted(rows, key=_rank(rows, baseline))
    compared = _compared_with(rows)
    standing = [] if pairs else [row for row in ranked if row.verdict == BETTER or not compared.isdisjoint(row.paths)]
    one_seed = has_one_seed(rows)
    pool = ranked if one_seed or not standing else standing
    first = pool[0]
    if len(pool) > 1 and first.verdict == BETTER == pool[1].verdict:
        other = compare(first, pool[1], known)
        first = pool[1] if other is not None and other.verdict == BETTER else first
    reason = _reason(rows, first, baseline, one_seed, pairs)
    row, because = first, ""
    if is_collapsed(first):
        healthy = [tie for tie in _ties(first, ranked, known) if not is_collapsed(tie)]
        if healthy:
            row, because = next((other for other in healthy if other.verdict == BETTER), healthy[0]), "health"
            reason = "tie" if reason in ("better", "baseline") and row.verdict != BETTER else reason
    if reason in ("better", "untested"):
        cheapest = _cheapest(row, [other for other in pool if other is not row], known)
        row, because = (row, because) if cheapest is row else (cheapest, because or "cost")
    others = [other for other in ranked if other is not row and (pairs or not is_baseline(other, baseline))]
    return Choice(
        row,
        reason,
        others[0] if others else None,
        tuple(_ties(row, ranked, known)),
        first if row is not first else None,
        because,
        known,
    )


def is_collapsed(row: Configuration) -> bool:
    """Returns whether the routing of a configuration has collapsed, see MAX_DEAD_EXPERTS and MAX_IMBALANCE."""
    return (row.results.dead_experts or 0.0) > MAX_DEAD_EXPERTS or (_imbalance(row) or 0.0) > MAX_IMBALANCE


def _imbalance(row: Configuration) -> float | None:
    """Returns the load of the most loaded expert between an even load, 0, and all tokens, 1; None for a dense model."""
    largest = _max_possible_violation(row)
    return None if row.results.max_violation is None or largest is None else row.results.max_violation / largest


def _max_possible_violation(row: Configuration) -> float | None:
    """Returns MaxVio when every token chooses the same experts; None for a dense model."""
    k = row.mean_k
    return row.expert / k - 1 if k and row.expert and row.expert > k else None


def health_text(row: Configuration) -> str:
    """Returns a description such as: 25 % dead experts, MaxVio 2.93 of at most 3."""
    parts = [f"{percent(row.results.dead_experts)} dead experts"] if row.results.dead_experts else []
    largest = _max_possible_violation(row)
    if row.results.max_violation is not None and largest is not None:
        parts.append(f"MaxVio {row.results.max_violation:.2f} of at most {largest:.3g}")
    return ", ".join(parts)


def has_one_seed(rows: Sequence[Configuration]) -> bool:
    """Returns whether no comparison has a second seed; without comparisons, whether no configuration has one."""
    compared = [row.shared_seeds or 0 for row in rows if row.verdict is not None]
    return max(compared or [len(row.seeds) for row in rows], default=0) <= 1


def baseline_path(row: Configuration, baseline: Settings) -> str | None:
    """Returns the folder of a run of its baseline; of its own where it is one."""
    return row.baseline_path or (row.path if is_baseline(row, baseline) else None)


def _compared_with(rows: Sequence[Configuration]) -> set[str | None]:
    """Returns the folders of the baselines of verdicts."""
    return {row.baseline_path for row in rows if row.verdict is not None}


def _rank(rows: Sequence[Configuration], baseline: Settings) -> Callable[[Configuration], tuple[bool, float]]:
    """Returns a sort key, the lowest first: by the difference to a common baseline, paired by seed, if there is one.

    Means over different seeds would rank seeds, not configurations.
    """
    by_path: dict[str | None, int] = {path: index for index, row in enumerate(rows) for path in row.paths}
    bases = {by_path.get(baseline_path(row, baseline)) for row in rows}
    shared = len(bases) == 1 and None not in bases

    def rank(row: Configuration) -> tuple[bool, float]:
        if shared and row.vs_baseline is not None:
            return (False, row.vs_baseline)
        return (shared, row.primary_loss or 0.0)

    return rank


def _reason(rows: Sequence[Configuration], best: Configuration, baseline: Settings, one_seed: bool, pairs: bool) -> str:
    if len(rows) == 1 and best.verdict is None:
        return "single"
    if one_seed:
        return "one seed"
    if pairs:
        return "untested"
    if best.verdict in (BETTER, WORSE):
        return "better" if best.verdict == BETTER else "worse"
    return "baseline" if is_baseline(best, baseline) and not _compared_with(rows).isdisjoint(best.paths) else "untested"


def _ties(best: Configuration, ranked: Sequence[Configuration], known: Known) -> list[Configuration]:
    """Returns the configurations of equal data and budget that are not distinguishable from the best."""
    return [
        row
        for row in ranked
        if row is not best and row.comparison_key == best.comparison_key and _is_tie(best, row, known)
    ]


def _is_tie(best: Configuration, row: Configuration, known: Known) -> bool:
    found = compare(best, row, known)
    if found is None:
        return False
    return abs(found.difference) < ONE_SEED_TIE if found.seeds == 1 else found.verdict == INCONCLUSIVE


def _cheapest(best: Configuration, others: Sequence[Configuration], known: Known) -> Configuration:
    """Returns the cheapest of those that tie with the best and are within SAME_LOSS of it.

    Cheaper means fewer FLOPs, or fewer parameters at equal FLOPs.
    """
    cheapest = best
    for row in others:
        found = compare(best, row, known)
        close = found is not None and found.verdict == INCONCLUSIVE and abs(found.difference) < SAME_LOSS
        if close and row.comparison_key == best.comparison_key and not is_collapsed(row) and _is_cheaper(row, cheapest):
            cheapest = row
    return cheapest


def _is_cheaper(one: Configuration, other: Configuration) -> bool:
    same = tolerance("flops_per_token")
    for a, b in (
        (one.results.flops_per_token, other.results.flops_per_token),
        (one.results.params, other.results.params),
    ):
        if not a or not b:
            return False
        if a * same < b or b * same < a:
            return a < b
    return False


def comparison_with_baseline(row: Configuration, name: str) -> Comparison | None:
    """Returns the table's comparison of the row with its baseline, under the given name; None without a verdict."""
    if row.verdict is None or row.vs_baseline is None or row.shared_seeds is None:
        return None
    return Comparison(
        name,
        row.vs_baseline,
        row.vs_baseline_interval,
        row.shared_seeds,
        row.verdict,
        row.more_seeds,
        row.verdict == BETTER,
    )


def compare(best: Configuration, other: Configuration, known: Known, names: Collection[str] = ()) -> Comparison | None:
    """Returns the other configuration against the best, paired by seed.

    If the best is the baseline of the other, this is the comparison of the table, whose verdict is corrected for all
    comparisons. Without a baseline the verdict is corrected for all pairs. Otherwise it is on this pair alone.
    """
    if other.baseline_path in best.paths:
        return comparison_with_baseline(other, label(other, names))
    sample = paired(other.losses, best.losses)
    if sample is None:
        return None
    half = sample.half_width(known.look.error_rate)
    if known.pairs is not None and best.comparison_key == other.comparison_key:
        decided = frozenset((best.path, other.path)) in known.differing
    else:
        decided = half is not None and abs(sample.mean) > half
    verdict = (BETTER if sample.mean < 0 else WORSE) if decided else INCONCLUSIVE
    more = None if decided else additional_seeds_needed(sample, max(1, known.pairs or 1), known.look.next_error_rate)
    return Comparison(label(other, names), sample.mean, half, sample.seeds, verdict, more, other.verdict == BETTER)


def _test_all_pairs(rows: Sequence[Configuration], look: Look) -> Known:
    """Tests every pair of configurations that may be ranked together, as the table does without a baseline."""
    groups = [[rows[place] for place in group] for group in group_comparable(rows).values()]
    decided, tested = decided_pairs([[row.losses for row in group] for group in groups], look.error_rate)
    differing = (frozenset((groups[group][one].path, groups[group][other].path)) for group, one, other in decided)
    return Known(frozenset(differing), tested, look)


def label(row: Record, names: Collection[str]) -> str:
    """Returns a label: expert=16 k=2, and other settings that differ."""
    main = ["expert=1"] if row.expert == 1 else [f"expert={row.expert}", f"k={format_setting(row.get('k'))}"]
    others = [
        f"{name}={format_setting(row.get(name))}"
        for name in names
        if name not in ("expert", "k") and row.get(name) is not None
    ]
    return sanitise(" ".join([*main, *others]))
