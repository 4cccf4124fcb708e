"""Which configuration is recommended. The memo, the marks of the table and the page all follow this one decision."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from moe_cli.formatting import percent, printable
from moe_cli.report.aggregate import DENSE, Row, comparable, is_baseline, score
from moe_cli.report.intervals import CONFIDENCE, t_quantile
from moe_cli.report.pairs import decided_pairs
from moe_cli.report.pareto import tolerance
from moe_cli.report.significance import BETTER, INCONCLUSIVE, WORSE, Paired, more_seeds, paired

# Routing has collapsed when more than this share of the experts is dead: weights are paid for that no token uses. One
# dead expert in one layer of one seed is below it in all but the smallest models.
MAX_DEAD_EXPERTS = 0.05
# Or when the most loaded expert is this far on the way from an even load (0) to every token (1): with 8 experts and k=2
# it then gets 81 % of the tokens. MaxVio alone does not say so, because its largest value is experts / k - 1.
MAX_IMBALANCE = 0.75
# Configurations that tie and whose losses differ by less than this are ranked by their cost.
SAME_LOSS = 0.005
# With one seed nothing is tested: configurations that differ by less than this count as a tie.
ONE_SEED_TIE = 0.01

Runs = Mapping[str, Row]


@dataclass(frozen=True)
class Known:
    """What configurations are compared by.

    Attributes:
        runs: the runs of the configurations, by path.
        differing: the pairs of configurations that differ, by the paths of their first runs, where verdicts allow for
            all pairs.
        pairs: how many pairs that is; None: verdicts are on differences to a baseline, and a pair is tested on its own.
    """

    runs: Runs
    differing: frozenset[frozenset[str]] = frozenset()
    pairs: int | None = None


@dataclass(frozen=True)
class Comparison:
    """One configuration against another: share of its score, negative is better; interval of 95 %, over paired seeds.

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
        reason: why it is recommended:
            better: it is better than its baseline; baseline: no configuration is better than the baseline;
            tie: it is not better, but routing has collapsed in what it ties with;
            worse: all are worse than a baseline that is not among them; one seed: too few to tell;
            untested: no baseline was run; single: there is nothing to compare it with.
        runner_up: the next best that is no baseline.
        ties: those of equal data and budget that are not distinguishable from the recommended one, the lowest first.
        passed_over: the lowest, where another that ties with it is recommended.
        because: why it was passed over: "health" or "cost".
        known: what `against` compares by.
    """

    row: Row
    reason: str
    runner_up: Row | None
    ties: tuple[Row, ...] = ()
    passed_over: Row | None = None
    because: str = ""
    known: Known = field(default_factory=lambda: Known({}))


def choose(rows: Sequence[Row], runs: Runs, baseline: Mapping[str, Any] = DENSE, pairs: bool = False) -> Choice:
    """The decision for complete configurations with a score.

    First comes the lowest whose verdict against its baseline is better; else the baseline; else the lowest. If routing
    has collapsed in it and another ties with it in which it has not, that one is recommended; then the cheapest of those that tie with it
    and are within SAME_LOSS of it.

    Args:
        runs: the runs of the rows, by path.
        pairs: the verdicts are on differences to the lowest, not to a baseline.
    """
    known = _all_pairs(rows, runs) if pairs else Known(runs)
    ranked = sorted(rows, key=_rank(rows, baseline))
    standing = [] if pairs else [row for row in ranked if row["verdict"] == BETTER or _was_compared_with(row, rows)]
    one_seed = has_one_seed(rows)
    pool = ranked if one_seed or not standing else standing
    first = pool[0]
    if len(pool) > 1 and first["verdict"] == BETTER == pool[1]["verdict"] and _verdict(first, pool[1], known) == BETTER:
        first = pool[1]
    reason = _reason(rows, first, baseline, one_seed, pairs)
    row, because = first, ""
    if is_collapsed(first):
        healthy = [each for each in _ties(first, ranked, known) if not is_collapsed(each)]
        if healthy:
            row, because = next((each for each in healthy if each["verdict"] == BETTER), healthy[0]), "health"
            reason = "tie" if reason in ("better", "baseline") and row["verdict"] != BETTER else reason
    if reason in ("better", "untested"):
        cheapest = _cheapest(row, [each for each in pool if each is not row], known)
        row, because = (row, because) if cheapest is row else (cheapest, because or "cost")
    others = [each for each in ranked if each is not row and (pairs or not is_baseline(each, baseline))]
    return Choice(row, reason, others[0] if others else None, tuple(_ties(row, ranked, known)),
                  first if row is not first else None, because, known)  # fmt: skip


def is_collapsed(row: Row) -> bool:
    """Whether the routing of a configuration has collapsed, see MAX_DEAD_EXPERTS and MAX_IMBALANCE."""
    return (row.get("dead_experts") or 0.0) > MAX_DEAD_EXPERTS or (_imbalance(row) or 0.0) > MAX_IMBALANCE


def _imbalance(row: Row) -> float | None:
    """The load of the most loaded expert between an even load, 0, and all tokens, 1; None for a dense model."""
    if row.get("max_violation") is None or not row["k"] or row["expert"] <= row["k"]:
        return None
    return float(row["max_violation"] / (row["expert"] / row["k"] - 1))


def health_text(row: Row) -> str:
    """25 % dead experts, MaxVio 2.93 of at most 3."""
    parts = [f"{percent(row['dead_experts'])} dead experts"] if row.get("dead_experts") is not None else []
    if _imbalance(row) is not None:
        parts.append(f"MaxVio {row['max_violation']:.2f} of at most {row['expert'] / row['k'] - 1:.3g}")
    return ", ".join(parts)


def has_one_seed(rows: Sequence[Row]) -> bool:
    """Whether no comparison has a second seed; without comparisons, whether no configuration has one."""
    compared = [row["shared_seeds"] for row in rows if row["verdict"] is not None]
    return max(compared or [len(row["seeds"]) for row in rows], default=0) <= 1


def baseline_path(row: Row, baseline: Mapping[str, Any]) -> str | None:
    """The folder of a run of its baseline; of its own where it is one."""
    path: str | None = row["baseline_path"] or (row["paths"][0] if is_baseline(row, baseline) else None)
    return path


def _was_compared_with(row: Row, rows: Sequence[Row]) -> bool:
    return any(each["verdict"] is not None and each["baseline_path"] in row["paths"] for each in rows)


def _rank(rows: Sequence[Row], baseline: Mapping[str, Any]) -> Callable[[Row], tuple[bool, float]]:
    """The lowest first: by the difference to the baseline, which is paired by seed, where one baseline serves for all.

    Means over different seeds would rank seeds, not configurations.
    """
    bases = {
        next((index for index, row in enumerate(rows) if baseline_path(each, baseline) in row["paths"]), None)
        for each in rows
    }
    shared = len(bases) == 1 and None not in bases

    def rank(row: Row) -> tuple[bool, float]:
        if shared and row["vs_baseline"] is not None:
            return (False, row["vs_baseline"])
        return (shared, score(row) or 0.0)

    return rank


def _reason(rows: Sequence[Row], best: Row, baseline: Mapping[str, Any], one_seed: bool, pairs: bool) -> str:
    if len(rows) == 1 and best["verdict"] is None:
        return "single"
    if one_seed:
        return "one seed"
    if pairs:
        return "untested"
    if best["verdict"] in (BETTER, WORSE):
        return "better" if best["verdict"] == BETTER else "worse"
    return "baseline" if is_baseline(best, baseline) and _was_compared_with(best, rows) else "untested"


def _ties(best: Row, ranked: Sequence[Row], known: Known) -> list[Row]:
    """The configurations of equal data and budget that are not distinguishable from the best."""
    return [
        row for row in ranked if row is not best and comparable(row) == comparable(best) and _is_tie(best, row, known)
    ]


def _is_tie(best: Row, row: Row, known: Known) -> bool:
    found = against(best, row, known)
    if found is None:
        return False
    return abs(found.difference) < ONE_SEED_TIE if found.seeds == 1 else found.verdict == INCONCLUSIVE


def _cheapest(best: Row, others: Sequence[Row], known: Known) -> Row:
    """The cheapest of those that tie with the best and are within SAME_LOSS of it: fewer FLOPs, else fewer parameters."""
    chosen = best
    for row in others:
        found = against(best, row, known)
        close = found is not None and found.verdict == INCONCLUSIVE and abs(found.difference) < SAME_LOSS
        if close and comparable(row) == comparable(best) and not is_collapsed(row) and _is_cheaper(row, chosen):
            chosen = row
    return chosen


def _is_cheaper(one: Row, other: Row) -> bool:
    same = tolerance("flops_per_token")
    for name in ("flops_per_token", "params"):
        if not one.get(name) or not other.get(name):
            return False
        if one[name] * same < other[name] or other[name] * same < one[name]:
            return bool(one[name] < other[name])
    return False


def _verdict(best: Row, other: Row, known: Known) -> str | None:
    found = against(best, other, known)
    return found.verdict if found else None


def to_baseline(row: Row, name: str) -> Comparison | None:
    """What the table says of the row's difference to its baseline, under the name of either."""
    if row["verdict"] is None:
        return None
    return Comparison(
        name, row["vs_baseline"], row["vs_baseline_interval"], row["shared_seeds"], row["verdict"], row["more_seeds"],
        row["verdict"] == BETTER,
    )  # fmt: skip


def against(best: Row, other: Row, known: Known, names: Collection[str] = ()) -> Comparison | None:
    """The other configuration against the best, paired by seed.

    Where the best is the other's baseline, the comparison of the table, which allows for all of them. Without a baseline
    the verdict allows for all pairs; else it is on this pair alone.
    """
    if other["baseline_path"] in best["paths"]:
        return to_baseline(other, label(other, names))
    sample = paired(_scores(other, known.runs), _scores(best, known.runs))
    if sample is None:
        return None
    half = _half_width(sample)
    if known.pairs is not None and comparable(best) == comparable(other):
        decided = frozenset((best["path"], other["path"])) in known.differing
    else:
        decided = half is not None and abs(sample.mean) > half
    verdict = (BETTER if sample.mean < 0 else WORSE) if decided else INCONCLUSIVE
    more = None if decided else more_seeds(sample, max(1, known.pairs or 1))
    return Comparison(label(other, names), sample.mean, half, sample.seeds, verdict, more, other["verdict"] == BETTER)


def _all_pairs(rows: Sequence[Row], runs: Runs) -> Known:
    """Tests every pair of configurations that may be ranked together, as the table does without a baseline."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in sorted(rows, key=lambda row: score(row) or 0.0):
        groups.setdefault(comparable(row), []).append(row)
    kinds = list(groups.values())
    decided, tested = decided_pairs([[_scores(row, runs) for row in group] for group in kinds])
    differing = (frozenset((kinds[kind][one]["path"], kinds[kind][other]["path"])) for kind, one, other in decided)
    return Known(runs, frozenset(differing), tested)


def _half_width(sample: Paired) -> float | None:
    if sample.deviation is None:
        return None
    return float(t_quantile((1 + CONFIDENCE) / 2, sample.seeds - 1) * sample.deviation / sample.seeds**0.5)


def _scores(row: Row, runs: Runs) -> dict[int, float]:
    found = [runs[path] for path in row["paths"] if path in runs]
    return {run["seed"]: value for run in found if run["seed"] is not None and (value := score(run)) is not None}


def label(row: Row, names: Collection[str]) -> str:
    """expert=16 k=2, and what else tells it apart."""
    from moe_cli.config.build import show

    main = ["expert=1"] if row["expert"] == 1 else [f"expert={row['expert']}", f"k={row['k']}"]
    others = [f"{name}={show(row[name])}" for name in names
              if name not in ("expert", "k") and row.get(name) is not None]  # fmt: skip
    return printable(" ".join([*main, *others]))
