"""The answer: which configuration to use for these data and this budget, how sure that is, what it costs, what to run next."""

import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from moe_cli.config.build import show
from moe_cli.errors import MoeError
from moe_cli.formatting import count, plural, printable
from moe_cli.metrics import EQUAL, target_of
from moe_cli.report.aggregate import (
    Row,
    applies,
    fold,
    is_baseline,
    is_countable,
    is_undefined,
    rows_of,
    score,
    settings_of,
    varying,
)
from moe_cli.report.baseline import baseline_name, sweep_baseline
from moe_cli.report.comparability import CODE, check_across, same_kind, sort_out
from moe_cli.report.intervals import mean_and_interval
from moe_cli.report.long_format import drawn_curves
from moe_cli.report.recommend.choice import (
    Comparison,
    against,
    baseline_path,
    choose,
    health_text,
    is_collapsed,
    label,
    to_baseline,
)
from moe_cli.report.recommend.looks import Look, look_at
from moe_cli.report.recommend.next_sweep import next_sweep
from moe_cli.report.scaling.sentence import scaling_sentence
from moe_cli.runs.curves import validation_curve
from moe_cli.runs.folder import COMPLETED, FAILED, Run

SHOWN = ("expert", "k", "capacity", "router", "balance")


@dataclass(frozen=True)
class EqualTime:
    """The recommended configuration against its baseline at one time of training, when neither is done.

    Attributes:
        difference: of the estimates then, a share of the baseline's, negative is better; mean over seeds, with its interval.
        at: which share of the baseline's training that is: up to its last estimate.
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
        baseline: the settings of what configurations are compared with.
        settings: expert, k, capacity, router and balance of the recommended configuration.
        reason: see `Choice`.
        score: its mean bits per byte (nats per token, image and so on where there are no bytes).
        is_baseline: whether it has the settings of the baseline.
        gain: against its baseline; None without one, and for the baseline itself.
        runner_up: against it, the next best; None if there is none.
        ties: the configurations that are not distinguishable from it.
        passed_over: the lowest, against it, where it is not recommended: for its health or its cost, as `because` says.
        health: what its routing is like, where it has collapsed; else "". Of what is passed over: `passed_over_health`.
        comparisons: configurations that were compared; the verdicts allow for their number.
        pairs: pairs that the verdicts allow for where there is no baseline, and all are compared with the lowest; None
            with a baseline.
        weights, speed, memory: times those of the baseline; None where not known.
        equal_time: how it stands when both are stopped at the baseline's last estimate; None if not known.
        flops: training FLOPs per token, times those of the cheapest configuration compared.
        alone: configurations without a baseline of their settings and seeds.
        undefined: configurations whose baseline has a loss of 0, so that no difference is relative to it.
        not_tried: what was the same in all runs, and so not compared.
        failed: configurations that failed, with the reason.
        left_out: runs that were not compared, for each aspect in which they differ.
        scaling: what a scaling fit adds, in one sentence; None where the runs support no law.
        next: the sweep to run; None where this version cannot make the settings.
        next_seconds: about how long it takes, one run after the other; None if not known.
        look: how many times these verdicts have been read with more seeds each time, this time included.
    """

    context: str
    baseline: Mapping[str, Any]
    settings: Mapping[str, Any]
    label: str
    reason: str
    score: float
    unit: str
    seeds: int
    is_baseline: bool
    gain: Comparison | None
    runner_up: Comparison | None
    ties: tuple[str, ...]
    passed_over: Comparison | None
    passed_over_health: str
    because: str
    health: str
    comparisons: int
    pairs: int | None
    weights: float | None
    speed: float | None
    memory: float | None
    equal_time: EqualTime | None
    equal_params: bool
    flops: float
    alone: int
    undefined: int
    not_tried: tuple[str, ...]
    failed: tuple[str, ...]
    left_out: Mapping[str, int]
    scaling: str | None
    next: str | None
    next_seconds: float | None
    look: Look

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        plain = {name: dict(getattr(self, name)) for name in ("baseline", "settings", "left_out")}
        return {**asdict(replace(self, look=Look(self.look.number))), **plain, "look": self.look.number}


def recommend(
    frame: pd.DataFrame,
    across: Collection[str] = (),
    elsewhere: pd.DataFrame | None = None,
    baseline: Mapping[str, Any] | None = None,
) -> Recommendation:
    """What a frame of `load_runs` says to use.

    Args:
        across: aspects in which runs may differ and are ranked all the same: data, tokenizer, validation, eval_context,
            budget, code.
        elsewhere: runs that may serve as baselines.
        baseline: the settings of what configurations are compared with; None: what the sweep declares, else the dense model.

    Raises:
        MoeError: no run is complete.
        ConfigError: `across` names no aspect.
    """
    found = _compare(frame, across, elsewhere, baseline)
    choice = choose(found.rows, found.runs, found.baseline, found.pairs is not None)
    best, base = choice.row, _base_row(found, choice.row)
    gain = to_baseline(best, baseline_name(found.baseline)) if found.pairs is None else None
    second = against(best, choice.runner_up, choice.known, found.names) if choice.runner_up else None
    wanted = [each.more_seeds for each in (gain, second) if each and each.more_seeds]
    following = next_sweep(choice, found.rows, found.names, found.baseline, min(wanted, default=None),
                           _options(found, baseline))  # fmt: skip
    flops = [row["flops_per_token"] for row in found.rows if row["flops_per_token"]]
    passed, alone = choice.passed_over, [row for row in found.rows if row["verdict"] is None]
    return Recommendation(
        context=_context(best), baseline=found.baseline, settings={name: best[name] for name in SHOWN},
        label=label(best, found.names), reason=choice.reason, score=score(best) or 0.0,
        unit=f"nats/{target_of(best.get('task.name'))}" if best["val_bpb"] is None else "bits/byte", seeds=len(best["seeds"]),
        is_baseline=is_baseline(best, found.baseline),
        gain=gain, runner_up=second, ties=tuple(label(row, found.names) for row in choice.ties),
        passed_over=against(best, passed, choice.known, found.names) if passed else None,
        passed_over_health=health_text(passed) if passed and is_collapsed(passed) else "", because=choice.because,
        health=health_text(best) if is_collapsed(best) else "",
        comparisons=len(found.rows) - len(alone), pairs=found.pairs,
        weights=_ratio(best, base, "params"), speed=_ratio(best, base, "tokens_per_second"),
        memory=_ratio(best, base, "peak_memory_bytes"), equal_time=_equal_time(best, base, found.runs),
        equal_params=base is not None and 1 / EQUAL <= (_ratio(best, base, "active_params") or 1) <= EQUAL,
        flops=best["flops_per_token"] / min(flops) if flops and best["flops_per_token"] else 1.0,
        alone=0 if found.pairs is not None
        else sum(not is_baseline(row, found.baseline) and row["baseline_path"] is None for row in alone),
        undefined=sum(map(is_undefined, found.rows)),
        not_tried=_not_tried(found.rows, found.names, best), failed=_failed(rows_of(frame), found.names),
        left_out=found.left_out, scaling=scaling_sentence(found.frame, best["paths"]),
        next=following.command if following else None, next_seconds=following.seconds if following else None,
        look=look_at(found.rows, found.baseline if found.pairs is None else None),
    )  # fmt: skip


def _options(found: "_Compared", typed: Mapping[str, Any] | None) -> list[str]:
    """What the next sweep needs besides its settings: the baseline that was typed, and all runs made by one code."""
    settings = shlex.join(f"{name}={show(value)}" for name, value in (typed or {}).items())
    return [*(["--baseline", settings] if typed else []), *(["--rerun-stale"] if CODE in found.left_out else [])]


@dataclass(frozen=True)
class _Compared:
    """Attributes:
    frame: the runs that are alike; left_out: how many are not, for each aspect.
    rows: their configurations; names: the settings that vary; pairs: see `aggregate`.
    outside: the baselines from elsewhere, as rows.
    runs: all of these runs, by path.
    """

    frame: pd.DataFrame
    left_out: Mapping[str, int]
    rows: list[Row]
    names: list[str]
    pairs: int | None
    outside: list[Row]
    runs: dict[str, Row]
    baseline: Mapping[str, Any]


def _compare(
    frame: pd.DataFrame, across: Collection[str], elsewhere: pd.DataFrame | None, baseline: Mapping[str, Any] | None
) -> _Compared:
    """The complete runs that are alike, folded and compared with the baseline. Raises what `recommend` does."""
    free = check_across(across)
    complete = [
        run for run in rows_of(frame) if is_countable(run) and run["status"] == COMPLETED and score(run) is not None
    ]
    if not complete:
        raise MoeError(f"no run of {len(frame)} is complete: nothing can be recommended. See: moe report --runs")
    alike = sort_out(complete, free)
    own = frame[frame["path"].isin([run["path"] for run in alike.rows])]
    base = sweep_baseline(own) if baseline is None else baseline
    others = _alike(elsewhere, alike.rows[0], free, base)
    folded = fold(own, elsewhere=others, baseline=base)
    rows = [row for row in rows_of(folded) if score(row) is not None]
    runs = {run["path"]: run for run in (*alike.rows, *([] if others is None else rows_of(others)))}
    outside = [] if others is None else rows_of(fold(others, baseline=base))
    names = varying(rows, settings_of([str(name) for name in frame.columns]))
    return _Compared(own, alike.left_out, rows, names, folded.attrs["pairs"], outside, runs, base)


def _base_row(found: _Compared, best: Row) -> Row | None:
    """The row of the baseline of the best, or the best itself where it is one; None without one."""
    path = baseline_path(best, found.baseline)
    return next(
        (row for row in (*found.rows, *found.outside) if is_baseline(row, found.baseline) and path in row["paths"]),
        None,
    )


def _alike(
    elsewhere: pd.DataFrame | None, run: Row, free: Collection[str], baseline: Mapping[str, Any]
) -> pd.DataFrame | None:
    """The baselines from elsewhere that may be held against this run."""
    if elsewhere is None:
        return None
    fitting = [row["path"] for row in rows_of(elsewhere)
               if row["status"] == COMPLETED and score(row) is not None and is_baseline(row, baseline)
               and is_countable(row) and same_kind(row, run, free)]  # fmt: skip
    return elsewhere[elsewhere["path"].isin(fitting)]


def _context(row: Row) -> str:
    """python (29845f), 1.23M tokens, gpt of 4 layers x 96."""
    data = printable(str(row["corpus"] or row.get("data.name") or "data"))
    digest = f" ({printable(str(row['corpus_sha256']))[:6]})" if row["corpus_sha256"] else ""
    tokens = [f"{count(row['tokens'])} tokens"] if row["tokens"] else []
    layers, width = row.get("model.num_layers"), row.get("model.d_model")
    shape = f" of {plural(int(layers), 'layer')} x {width}" if layers and width else ""
    return ", ".join([f"{data}{digest}", *tokens, f"{printable(str(row.get('model.name') or 'model'))}{shape}"])


def _ratio(best: Row, base: Row | None, name: str) -> float | None:
    if base is None or base is best or not base.get(name) or not best.get(name):
        return None
    return float(best[name] / base[name])


def _equal_time(best: Row, base: Row | None, known: Mapping[str, Row]) -> EqualTime | None:
    """Estimates on the same part of the validation split at the seconds of the baseline's last estimate, paired by seed."""
    if base is None or base is best:
        return None
    own, others = ({known[path]["seed"]: known[path] for path in row["paths"] if path in known} for row in (best, base))
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
    frame = drawn_curves([Run(Path(path))], ["seconds"]).dropna(subset=["value"])
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
        if run["status"] == FAILED and is_countable(run):
            reason = (run["reason"] or "see traceback.txt").strip().splitlines()[0]
            found[label(run, [name for name in names if name in run])] = printable(reason)
    return tuple(f"{name}: {reason}" for name, reason in found.items())
