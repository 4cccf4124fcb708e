"""The answer: which configuration to use for these data and this budget, how sure that is, what it costs, what to run next."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from moe_cli.errors import MoeError
from moe_cli.glance import validation_curve
from moe_cli.measures import target_of
from moe_cli.numbers import count, printable
from moe_cli.report.alike import check_across, same_kind, sort_out
from moe_cli.report.fold import DENSE, Row, applies, fold, is_baseline, rows_of, score, settings_of, varying
from moe_cli.report.longframes import load_curves
from moe_cli.report.nextsweep import NextSweep, next_sweep
from moe_cli.report.scaling.sentence import scaling_sentence
from moe_cli.report.stats import CONFIDENCE, mean_and_interval, t_quantile
from moe_cli.report.verdicts import BETTER, CANNOT_TELL, WORSE, Paired, more_seeds, paired
from moe_cli.store import COMPLETED, FAILED, Run

SHOWN = ("expert", "k", "capacity", "router", "balance")


@dataclass(frozen=True)
class Comparison:
    """One configuration against another: share of its score, negative is better; interval of 95 %, over paired seeds.

    Attributes:
        told: whether the configuration itself is told better than a dense model.
    """

    name: str
    difference: float
    interval: float | None
    seeds: int
    verdict: str
    more_seeds: int | None
    told: bool = False


@dataclass(frozen=True)
class EqualTime:
    """The recommended against the dense configuration at one time of training, when neither is done.

    Attributes:
        difference: of the estimates then, a share of dense's, negative is better; mean over seeds, with its interval.
        at: which share of the dense model's training that is: up to its last estimate.
    """

    difference: float
    interval: float | None
    seeds: int
    at: float


@dataclass(frozen=True)
class Recommendation:
    """What to use, and why.

    Attributes:
        context: the data, the budget and the model that this holds for.
        settings: expert, k, capacity, router and balance of the recommended configuration.
        reason: better: it is told from dense; dense: nothing is; one seed: too few to tell; untested: there is no dense model; single: nothing to
            compare it with.
        score: its mean bits per byte (nats per token, image and so on where there are no bytes).
        gain: against the dense model of the same settings; None without one, and for the dense model itself.
        runner_up: against it, the next best; None if there is none.
        comparisons: configurations that were compared with dense; the verdicts allow for their number.
        weights, speed, memory: times those of the dense model; None where not known.
        equal_time: how it stands when both are stopped at the dense model's last estimate; None if not known.
        flops: training FLOPs per token, times those of the cheapest configuration compared.
        alone: configurations that no dense model with their settings and seeds stands beside.
        not_tried: what was the same in all runs, and so not compared.
        failed: configurations that failed, with the reason.
        left_out: runs that were not compared, for each aspect in which they differ.
        scaling: what a scaling fit adds, in one sentence; None where the runs support no law.
        next: the sweep to run; None where this version cannot make the settings.
        next_seconds: about how long it takes, one run after the other; None if not known.
    """

    context: str
    settings: Mapping[str, Any]
    label: str
    reason: str
    score: float
    unit: str
    seeds: int
    gain: Comparison | None
    runner_up: Comparison | None
    comparisons: int
    weights: float | None
    speed: float | None
    memory: float | None
    equal_time: EqualTime | None
    equal_params: bool
    flops: float
    alone: int
    not_tried: tuple[str, ...]
    failed: tuple[str, ...]
    left_out: Mapping[str, int]
    scaling: str | None
    next: str | None
    next_seconds: float | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "settings": dict(self.settings), "left_out": dict(self.left_out)}


def recommend(
    frame: pd.DataFrame,
    across: Collection[str] = (),
    elsewhere: pd.DataFrame | None = None,
) -> Recommendation:
    """What a frame of `load_runs` says to use.

    Args:
        across: aspects in which runs may differ and are ranked all the same: data, tokenizer, validation, budget, code.
        elsewhere: dense runs that may serve as baselines.

    Raises:
        MoeError: no run is complete.
        ConfigError: `across` names no aspect.
    """
    free = check_across(across)
    runs = [run for run in rows_of(frame) if run["expert"] is None or _countable(run)]
    complete = [run for run in runs if run["status"] == COMPLETED and score(run) is not None and _countable(run)]
    if not complete:
        raise MoeError(f"no run of {len(frame)} is complete: nothing can be recommended. See: moe report --runs")
    sorted_out = sort_out(complete, free)
    own = frame[frame["path"].isin([run["path"] for run in sorted_out.rows])]
    dense_runs = _alike(elsewhere, sorted_out.rows[0], free)
    rows = [row for row in rows_of(fold(own, elsewhere=dense_runs)) if score(row) is not None]
    known = {run["path"]: run for run in (*sorted_out.rows, *([] if dense_runs is None else rows_of(dense_runs)))}
    rows.sort(key=_rank(rows))
    names = varying(rows, settings_of([str(name) for name in frame.columns]))
    best, runner_up = _first_two(rows, known, names)
    beside = [*rows, *([] if dense_runs is None else rows_of(fold(dense_runs)))]
    dense = next((row for row in beside if is_baseline(row, DENSE) and _held(best) in row["paths"]), None)
    gain = _to_baseline(best, "dense")
    second = _against(best, runner_up, known, names) if runner_up else None
    asked = [each.more_seeds for each in (gain, second) if each and each.more_seeds]
    following = next_sweep(best, rows, [runner_up["expert"]] if runner_up else [], min(asked, default=None))
    flops = [row["flops_per_token"] for row in rows if row["flops_per_token"]]
    return Recommendation(
        context=_context(best), settings={name: best[name] for name in SHOWN},
        label=label(best, names), reason=_reason(rows, best), score=score(best) or 0.0,
        unit=f"nats/{target_of(best.get('task.name'))}" if best["val_bpb"] is None else "bits/byte", seeds=len(best["seeds"]), gain=gain,
        runner_up=second, comparisons=sum(row["verdict"] is not None for row in rows),
        weights=_ratio(best, dense, "params"), speed=_ratio(best, dense, "tokens_per_second"),
        memory=_ratio(best, dense, "peak_memory_bytes"), equal_time=_equal_time(best, dense, known),
        equal_params=dense is not None and abs((_ratio(best, dense, "active_params") or 1) - 1) < 0.02,
        flops=best["flops_per_token"] / min(flops) if flops and best["flops_per_token"] else 1.0,
        alone=sum(row["verdict"] is None and not is_baseline(row, DENSE) for row in rows),
        not_tried=_not_tried(rows, names, best), failed=_failed(runs, names), left_out=sorted_out.left_out,
        scaling=scaling_sentence(own, best["paths"]),
        next=following.command if following else None, next_seconds=_time(following, rows) if following else None,
    )  # fmt: skip


def _countable(run: Row) -> bool:
    """Whether a run says how many experts it has, as strangers' files may not."""
    return isinstance(run["expert"], int) and run["expert"] >= 1


def _alike(elsewhere: pd.DataFrame | None, run: Row, free: Collection[str]) -> pd.DataFrame | None:
    """The dense runs from elsewhere that may be held against this run."""
    if elsewhere is None:
        return None
    fitting = [row["path"] for row in rows_of(elsewhere)
               if row["status"] == COMPLETED and score(row) is not None and same_kind(row, run, free)]  # fmt: skip
    return elsewhere[elsewhere["path"].isin(fitting)]


def _held(row: Row) -> str | None:
    """The folder of a run of its baseline; of its own where it is one."""
    path: str | None = row["baseline_path"] or (row["paths"][0] if is_baseline(row, DENSE) else None)
    return path


def _rank(rows: Sequence[Row]) -> Callable[[Row], tuple[bool, float]]:
    """The lowest first: by the difference to dense, which is paired by seed, where one dense model stands beside all.

    Means over different seeds would rank seeds, not configurations.
    """
    bases = {next((index for index, row in enumerate(rows) if _held(each) in row["paths"]), None) for each in rows}
    shared = len(bases) == 1 and None not in bases

    def rank(row: Row) -> tuple[bool, float]:
        if shared and row["vs_dense"] is not None:
            return (False, row["vs_dense"])
        return (shared, score(row) or 0.0)

    return rank


def _first_two(rows: Sequence[Row], known: Mapping[str, Row], names: Collection[str]) -> tuple[Row, Row | None]:
    """The recommended configuration, and the next best that is not dense.

    If the next best is told better than the first on the seeds both have, and than dense, it is the first.
    """
    best = _choose(rows)
    others = [row for row in rows if row is not best and not is_baseline(row, DENSE)]
    runner_up = others[0] if others else None
    if runner_up is not None and runner_up["verdict"] == BETTER == best["verdict"]:
        found = _against(best, runner_up, known, names)
        if found is not None and found.verdict == BETTER:
            return runner_up, best
    return best, runner_up


def _context(row: Row) -> str:
    """python (29845f), 1.23M tokens, gpt of 4 layers x 96."""
    data = printable(str(row["corpus"] or row.get("data.name") or "data"))
    digest = f" ({printable(str(row['corpus_sha256']))[:6]})" if row["corpus_sha256"] else ""
    tokens = [f"{count(row['tokens'])} tokens"] if row["tokens"] else []
    shape = f" of {row.get('model.num_layers')} layers x {row.get('model.d_model')}" if row.get("model.d_model") else ""
    return ", ".join([f"{data}{digest}", *tokens, f"{printable(str(row.get('model.name') or 'model'))}{shape}"])


def _choose(rows: Sequence[Row]) -> Row:
    """The lowest that is told better than dense; else the dense model, if it was compared; else the lowest."""
    better = [row for row in rows if row["verdict"] == BETTER]
    compared = {row["baseline_path"] for row in rows if row["verdict"] is not None}
    dense = [row for row in rows if is_baseline(row, DENSE) and compared & set(row["paths"])]
    return (better or ([] if _one_seed(rows) else dense) or list(rows))[0]


def _one_seed(rows: Sequence[Row]) -> bool:
    """Whether no comparison with dense has a second seed."""
    seeds = [row["vs_dense_seeds"] for row in rows if row["verdict"] is not None]
    return bool(seeds) and max(seeds) == 1


def _reason(rows: Sequence[Row], best: Row) -> str:
    if len(rows) == 1 and best["verdict"] is None:
        return "single"
    if best["verdict"] == BETTER:
        return "better"
    if _one_seed(rows):
        return "one seed"
    compared = any(row["verdict"] is not None for row in rows)
    return "dense" if is_baseline(best, DENSE) and compared else "untested"


def _to_baseline(row: Row, name: str) -> Comparison | None:
    """What the table says of the row's difference to its baseline, under the name of either."""
    if row["verdict"] is None:
        return None
    return Comparison(
        name,
        row["vs_dense"],
        row["vs_dense_interval"],
        row["vs_dense_seeds"],
        row["verdict"],
        row["more_seeds"],
        row["verdict"] == BETTER,
    )


def _against(best: Row, other: Row, known: Mapping[str, Row], names: Collection[str]) -> Comparison | None:
    """The other configuration against the best, paired by seed.

    Where the best is the other's baseline, the comparison of the table, which allows for all of them; else one on its own.
    """
    if other["baseline_path"] in best["paths"]:
        return _to_baseline(other, label(other, names))
    sample = paired(_seeds(other, known), _seeds(best, known))
    if sample is None:
        return None
    half = _half_width(sample)
    told = half is not None and abs(sample.mean) > half
    verdict = (BETTER if sample.mean < 0 else WORSE) if told else CANNOT_TELL
    more = None if told else more_seeds(sample)
    return Comparison(label(other, names), sample.mean, half, sample.seeds, verdict, more, other["verdict"] == BETTER)


def _half_width(sample: Paired) -> float | None:
    if sample.deviation is None:
        return None
    return float(t_quantile((1 + CONFIDENCE) / 2, sample.seeds - 1) * sample.deviation / sample.seeds**0.5)


def _seeds(row: Row, known: Mapping[str, Row]) -> dict[int, float]:
    runs = [known[path] for path in row["paths"] if path in known]
    return {run["seed"]: score(run) or 0.0 for run in runs if run["seed"] is not None}


def label(row: Row, names: Collection[str]) -> str:
    """expert=16 k=2, and what else tells it apart."""
    from moe_cli.config.parse import show

    main = ["expert=1"] if row["expert"] == 1 else [f"expert={row['expert']}", f"k={row['k']}"]
    others = [f"{name}={show(row[name])}" for name in names
              if name not in ("expert", "k") and row[name] is not None and row.get(name) is not None]  # fmt: skip
    return printable(" ".join([*main, *others]))


def _ratio(best: Row, dense: Row | None, name: str) -> float | None:
    if dense is None or dense is best or not dense.get(name) or not best.get(name):
        return None
    return float(best[name] / dense[name])


def _equal_time(best: Row, dense: Row | None, known: Mapping[str, Row]) -> EqualTime | None:
    """Estimates on the same part of the validation split at the seconds of the dense model's last estimate, paired by seed."""
    if dense is None or dense is best:
        return None
    own, others = (
        {known[path]["seed"]: known[path] for path in row["paths"] if path in known} for row in (best, dense)
    )
    differences, shares = [], []
    for seed in sorted(own.keys() & others.keys() - {None}):
        mine, theirs = _curve(own[seed]["path"]), _curve(others[seed]["path"])
        at = _at(mine, theirs[-1][0]) if theirs else None
        if at is not None and theirs[-1][1]:
            differences.append(at / theirs[-1][1] - 1)
            shares.append(min(1.0, theirs[-1][0] / others[seed]["seconds"]) if others[seed]["seconds"] else 1.0)
    if not differences:
        return None
    found = mean_and_interval(differences)
    return EqualTime(found.mean, found.half_width, len(differences), sum(shares) / len(shares))


def _curve(path: str) -> list[tuple[float, float]]:
    """(seconds of training, estimate) at every evaluation whose time is between two records."""
    frame = load_curves([path]).dropna(subset=["value"])
    times = _points(frame, "seconds")
    placed = [(_at(times, step), value) for step, value in validation_curve(Run(Path(path))).points]
    return [(second, value) for second, value in placed if second is not None]


def _points(frame: pd.DataFrame, metric: str) -> list[tuple[float, float]]:
    chosen = frame[frame["metric"] == metric].sort_values("step")
    return list(zip(chosen["step"].astype(float), chosen["value"], strict=True))


def _at(points: Sequence[tuple[float, float]], x: float) -> float | None:
    """Straight between points; None outside."""
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 <= x <= x1:
            return y1 if x1 == x0 else y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return None


def _not_tried(rows: Sequence[Row], names: Collection[str], best: Row) -> tuple[str, ...]:
    sparse = [row for row in rows if row["expert"] != 1]
    if not sparse:
        return ("any experts",)
    lacking = []
    chosen = best
    best = best if best["expert"] != 1 else sparse[0]
    if chosen is best and best["expert"] == max(row["expert"] for row in sparse):
        lacking.append(f"more than {best['expert']} experts")
    for name in ("k", "capacity", "router", "balance", "balance.weight", "model.d_expert", "optim.lr"):
        if (
            name not in names
            and name in best
            and applies(name, best)
            and (best[name] is not None or name == "capacity")
        ):
            value = "dropless" if name == "capacity" and best[name] is None else printable(str(best[name]))
            lacking.append(f"other {name} than {value}" if value != "dropless" else "a capacity")
    return tuple(lacking[:5])


def _failed(runs: Sequence[Row], names: Collection[str]) -> tuple[str, ...]:
    found = {}
    for run in runs:
        if run["status"] == FAILED and _countable(run):
            reason = (run["reason"] or "see traceback.txt").strip().splitlines()[0]
            found[label(run, [name for name in names if name in run])] = printable(reason)
    return tuple(f"{name}: {reason}" for name, reason in found.items())


def _time(following: NextSweep, rows: Sequence[Row]) -> float | None:
    """Of runs like those there are: configurations x seeds that are not done yet."""
    seconds = [row["seconds"] for row in rows if row.get("seconds")]
    if not seconds:
        return None
    done = sum(min(following.seeds, len(row["seeds"])) for row in rows
               if row["expert"] in following.experts and (row["expert"] == 1 or row["k"] == following.k))  # fmt: skip
    return float(max(1, following.seeds * len(following.experts) - done) * sum(seconds) / len(seconds))
