"""The answer: which configuration to use for these data and this budget, how sure that is, what it costs, what to run next."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import pandas as pd

from moe_cli.errors import MoeError
from moe_cli.numbers import printable
from moe_cli.report.alike import check_across, sort_out
from moe_cli.report.fold import DENSE, Row, fold, is_baseline, rows_of, score, settings_of, varying
from moe_cli.report.longframes import load_curves
from moe_cli.report.nextsweep import next_sweep
from moe_cli.report.scaling.sentence import scaling_sentence
from moe_cli.report.verdicts import BETTER, CANNOT_TELL, WORSE, Paired, more_seeds, paired
from moe_cli.store import COMPLETED, FAILED

SHOWN = ("expert", "k", "capacity", "router", "balance")


@dataclass(frozen=True)
class Comparison:
    """One configuration against another: share of its score, negative is better; interval of 95 %, over paired seeds."""

    name: str
    difference: float
    interval: float | None
    seeds: int
    verdict: str
    more_seeds: int | None


@dataclass(frozen=True)
class Recommendation:
    """What to use, and why.

    Attributes:
        settings: expert, k, capacity, router and balance of the recommended configuration.
        reason: better: it is told from dense; dense: nothing is; one seed: too few to tell; untested: there is no dense model; single: nothing to
            compare it with.
        score: its mean bits per byte (nats per token where bytes are not known).
        gain: against the dense model of the same settings; None without one, and for the dense model itself.
        runner_up: against it, the next best; None if there is none.
        comparisons: configurations that were compared with dense; the verdicts allow for their number.
        weights, speed, memory: times those of the dense model; None where not known.
        equal_time: its difference to dense when both are stopped at the dense model's last evaluation; None if not known.
        not_tried: what was the same in all runs, and so not compared.
        failed: configurations that failed, with the reason.
        left_out: runs that were not compared, for each aspect in which they differ.
        scaling: what a scaling fit adds, in one sentence; None where the runs support no law.
        next: the sweep to run.
        next_seconds: about how long it takes, one run after the other; None if not known.
    """

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
    equal_time: float | None
    equal_params: bool
    not_tried: tuple[str, ...]
    failed: tuple[str, ...]
    left_out: Mapping[str, int]
    scaling: str | None
    next: str
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
    runs = rows_of(frame)
    complete = [run for run in runs if run["status"] == COMPLETED and score(run) is not None]
    if not complete:
        raise MoeError(f"none of {len(runs)} runs is complete: nothing can be recommended. See: moe report --runs")
    sorted_out = sort_out(complete, free)
    paths = {run["path"] for run in sorted_out.rows}
    folded = rows_of(fold(frame[frame["path"].isin(paths)], elsewhere=elsewhere))
    rows = sorted((row for row in folded if score(row) is not None), key=lambda row: score(row) or 0.0)
    best = _choose(rows)
    names = varying(rows, settings_of([str(name) for name in frame.columns]))
    dense = next(
        (row for row in rows if is_baseline(row, DENSE) and row["run"] in (best["baseline"], best["run"])), None
    )
    compared = sum(row["verdict"] is not None for row in rows)
    runner_up = next((row for row in rows if row is not best and not is_baseline(row, DENSE)), None)
    gain = _gain(best)
    second = _against(best, runner_up, complete, names) if runner_up else None
    asked = [each.more_seeds for each in (gain, second) if each and each.more_seeds]
    command = next_sweep(best, rows, [runner_up["expert"]] if runner_up else [], min(asked, default=None))
    return Recommendation(
        settings={name: best[name] for name in SHOWN},
        label=label(best, names), reason=_reason(rows, best), score=score(best) or 0.0,
        unit="nats/token" if best["val_bpb"] is None else "bits/byte", seeds=len(best["seeds"]), gain=gain,
        runner_up=second, comparisons=compared,
        weights=_ratio(best, dense, "params"), speed=_ratio(best, dense, "tokens_per_second"),
        memory=_ratio(best, dense, "peak_memory_bytes"), equal_time=_equal_time(best, dense, complete),
        equal_params=dense is not None and abs((_ratio(best, dense, "active_params") or 1) - 1) < 0.02,
        not_tried=_not_tried(rows, names, best), failed=_failed(runs, names), left_out=sorted_out.left_out,
        scaling=scaling_sentence(frame[frame["path"].isin(paths)], best["runs"]), next=command, next_seconds=_time(command, rows),
    )  # fmt: skip


def _choose(rows: Sequence[Row]) -> Row:
    """The lowest that is told better than dense; else the dense model; where there is none, the lowest."""
    better = [row for row in rows if row["verdict"] == BETTER]
    dense = [row for row in rows if is_baseline(row, DENSE)]
    return (better or ([] if _one_seed(rows) else dense) or list(rows))[0]


def _one_seed(rows: Sequence[Row]) -> bool:
    """Whether no comparison with dense has a second seed."""
    seeds = [row["vs_dense_seeds"] for row in rows if row["verdict"] is not None]
    return bool(seeds) and max(seeds) == 1


def _reason(rows: Sequence[Row], best: Row) -> str:
    if len(rows) == 1:
        return "single"
    if best["verdict"] == BETTER:
        return "better"
    if _one_seed(rows):
        return "one seed"
    return "dense" if is_baseline(best, DENSE) else "untested"


def _gain(best: Row) -> Comparison | None:
    if best["verdict"] is None:
        return None
    return Comparison(
        "dense",
        best["vs_dense"],
        best["vs_dense_interval"],
        best["vs_dense_seeds"],
        best["verdict"],
        best["more_seeds"],
    )


def _against(best: Row, other: Row, runs: Sequence[Row], names: Sequence[str]) -> Comparison | None:
    """The other configuration against the best, paired by seed, one comparison on its own."""
    sample = paired(_seeds(other, runs), _seeds(best, runs))
    if sample is None:
        return None
    half = _half_width(sample)
    told = half is not None and abs(sample.mean) > half
    verdict = (BETTER if sample.mean < 0 else WORSE) if told else CANNOT_TELL
    return Comparison(
        label(other, names), sample.mean, half, sample.seeds, verdict, None if told else more_seeds(sample)
    )


def _half_width(sample: Paired) -> float | None:
    from moe_cli.report.stats import CONFIDENCE, t_quantile

    if sample.deviation is None:
        return None
    return float(t_quantile((1 + CONFIDENCE) / 2, sample.seeds - 1) * sample.deviation / sample.seeds**0.5)


def _seeds(row: Row, runs: Sequence[Row]) -> dict[int, float]:
    return {run["seed"]: score(run) or 0.0 for run in runs if run["run"] in row["runs"] and run["seed"] is not None}


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


def _equal_time(best: Row, dense: Row | None, runs: Sequence[Row]) -> float | None:
    """Estimates on the same part of the validation split, at the seconds of the dense model's last evaluation; mean over seeds."""
    if dense is None or dense is best:
        return None
    paths = {run["run"]: run["path"] for run in runs}
    mine, theirs = ([_curve(paths[run]) for run in row["runs"] if run in paths] for row in (best, dense))
    found = []
    for own, other in zip(mine, theirs, strict=False):
        at = _at(own, other[-1][0]) if other else None
        if at is not None and other[-1][1]:
            found.append(at / other[-1][1] - 1)
    return sum(found) / len(found) if found else None


def _curve(path: str) -> list[tuple[float, float]]:
    """(seconds of training, estimate) at every evaluation whose time is between two records."""
    frame = load_curves([path]).dropna(subset=["value"])
    times = _points(frame, "seconds")
    values = _points(frame, "val/bpb_estimate") or _points(frame, "val/loss_estimate")
    placed = [(_at(times, step), value) for step, value in values]
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
        if name not in names and name in best and (best[name] is not None or name == "capacity"):
            value = "dropless" if name == "capacity" and best[name] is None else printable(str(best[name]))
            lacking.append(f"other {name} than {value}" if value != "dropless" else "a capacity")
    return tuple(lacking[:5])


def _failed(runs: Sequence[Row], names: Collection[str]) -> tuple[str, ...]:
    found = {}
    for run in runs:
        if run["status"] == FAILED and run["expert"] is not None:
            reason = (run["reason"] or "see traceback.txt").strip().splitlines()[0]
            found[label(run, [name for name in names if name in run])] = printable(reason)
    return tuple(f"{name}: {reason}" for name, reason in found.items())


def _time(command: str, rows: Sequence[Row]) -> float | None:
    """Of runs like those there are: configurations x seeds that are not done yet."""
    seconds = [row["seconds"] for row in rows if row.get("seconds")]
    if not seconds:
        return None
    words = dict(word.split("=", 1) for word in command.split() if "=" in word)
    experts, k = words["expert"].split(","), words["k"].split(",")
    k = k[1:] or k  # before the last stands that of the dense model
    wanted = int(command.split("--seeds ")[1].split()[0])
    done = sum(min(wanted, len(row["seeds"])) for row in rows
               if str(row["expert"]) in experts and (row["expert"] == 1 or str(row["k"]) in k))  # fmt: skip
    configurations = len(k) * len(set(experts) - {"1"}) + ("1" in experts)
    return float(max(1, wanted * configurations - done) * sum(seconds) / len(seconds))
