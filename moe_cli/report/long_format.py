"""Run folders -> long frames: a row for every measure of every step, and for every expert of every layer."""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from moe_cli.errors import RunNotFound
from moe_cli.report.load import text_series
from moe_cli.runs.folder import Run, open_runs
from moe_cli.runs.status import Thinning

Source = str | Path | Run | Iterable[str | Path | Run]

CURVE_DTYPES = {"run": "str", "group": "str", "step": "Int64", "tokens": "Int64", "metric": "str", "value": "float64"}
# What a layer's record says of the whole layer; the same in the rows of all its experts.
LAYER_UNITS = {
    "max_violation": "share above the mean load",
    "load_cv": "standard deviation over mean load",
    "routing_entropy": "share of the most possible",
    "mean_routing_entropy": "share of the most possible",
    "dropped_fraction": "share of assignments",
    "dead_experts": "share of experts",
    "token_specialisation": "share of the most possible",
    "domain_specialisation": "share of the most possible",
    "null_fraction": "share of assignments",
    "saturation": "share of the final choices",
}
ROUTING_DTYPES = {
    "run": "str", "group": "str", "step": "Int64", "tokens": "Int64", "whole_split": "bool", "layer": "Int64",
    "expert": "Int64", "load": "float64", "asked": "float64", "kept": "float64", **dict.fromkeys(LAYER_UNITS, "float64"),
}  # fmt: skip
UNITS = {"step": "optimizer steps", "tokens": "training tokens"}


def load_curves(source: Source) -> pd.DataFrame:
    """One row per run, step and metric of metrics.jsonl: run, group, step, tokens, metric, value.

    `metric` is the key in the file (`train/loss`, `val/bpb`, `moe/layer_03/max_violation`, `lr`, `seconds`);
    the README's table of measures has the unit of each. `tokens` are those seen by then. A value that was not finite
    is NaN. Of a step and metric that stand there twice the later counts.

    Args:
        source: a folder with runs at or below it, a run, or several of these, such as the column `path` of `load_runs`.

    Raises:
        RunNotFound: there is no such folder.
    """
    return _curves(runs_in(source), None)


def drawn_curves(runs: Iterable[Run], metrics: Collection[str]) -> pd.DataFrame:
    """The same of some metrics, thinned as it is read: see `moe_cli.runs.status.Thinning`."""
    return _curves(runs, frozenset(metrics))


def _curves(runs: Iterable[Run], thinned: frozenset[str] | None) -> pd.DataFrame:
    columns: dict[str, list[Any]] = {name: [] for name in CURVE_DTYPES}
    for run in runs:
        points = _points(run) if thinned is None else _few_points(run, thinned)
        per_step = _tokens_per_step(run)
        columns["run"] += [run.id] * len(points)
        columns["group"] += [run.group] * len(points)
        for (step, metric), (tokens, value) in points.items():
            columns["step"].append(step)
            columns["tokens"].append(_tokens(tokens, step, per_step))
            columns["metric"].append(metric)
            columns["value"].append(value)
    return _frame(columns, CURVE_DTYPES, UNITS)


def load_routing(source: Source) -> pd.DataFrame:
    """One row per run, evaluation, sparse layer and expert of routing.jsonl.

    Columns: run, group, step, tokens (of training by then), whole_split (False: an estimate on part of the validation
    split), layer and expert (from 0); load (the expert's share of the layer's assignments; even is 1 / E), asked and kept
    (assignments, before and after drops); and what was measured of the layer as a whole, the same in the rows of all its
    experts: max_violation, load_cv, routing_entropy, mean_routing_entropy, dropped_fraction, dead_experts,
    token_specialisation, domain_specialisation, null_fraction, and saturation, known when the run is complete.

    Args:
        source: see `load_curves`.

    Raises:
        RunNotFound: there is no such folder.
    """
    columns: dict[str, list[Any]] = {name: [] for name in ROUTING_DTYPES}
    for run in runs_in(source):
        looks = _looks(run)
        per_step = _tokens_per_step(run)
        for (step, whole, layer), record in looks.items():
            _add_layer(columns, run, _Place(step, whole, layer, _tokens(None, step, per_step)), record)
    units = {**UNITS, "load": "share of assignments", "asked": "assignments", "kept": "assignments", **LAYER_UNITS}
    return _frame(columns, ROUTING_DTYPES, units)


def runs_in(source: Source) -> list[Run]:
    """The runs a caller means, each once. Raises RunNotFound: a folder that is not there."""
    if isinstance(source, str | Path | Run):
        source = [source]
    runs: dict[Path, Run] = {}
    for each in source:
        if isinstance(each, Run):
            runs[each.path] = each
            continue
        folder = Path(each).expanduser().absolute()
        if not folder.is_dir():
            raise RunNotFound(f"no folder {folder}. Runs are made by: moe train")
        runs.update((run.path, run) for run in open_runs(folder))
    return list(runs.values())


def _points(run: Run) -> dict[tuple[int, str], tuple[int | None, float]]:
    """Step and metric -> tokens and value."""
    points: dict[tuple[int, str], tuple[int | None, float]] = {}
    for step, tokens, metric, value in _values(run):
        points[step, metric] = (tokens, value)
    return points


def _few_points(run: Run, metrics: frozenset[str]) -> dict[tuple[int, str], tuple[int | None, float]]:
    """The same of some metrics, thinned."""
    curves = {metric: Thinning() for metric in metrics}
    for step, tokens, metric, value in _values(run, metrics):
        curves[metric].add(step, value, tokens)
    return {(int(step), metric): (tokens, value) for metric, curve in curves.items()
            for step, (value, tokens) in sorted(curve.points.items())}  # fmt: skip


def _values(run: Run, metrics: Collection[str] | None = None) -> Iterator[tuple[int, int | None, str, float]]:
    """Step, tokens, metric and value of each measure of each record."""
    for record in run.read_metrics():
        step, tokens = _whole(record.get("step")), _whole(record.get("tokens"))
        if step is None:
            continue
        for metric, given in record.items():
            if metric not in ("step", "tokens") and (metrics is None or metric in metrics):
                value = _value(given)
                if value is not None:
                    yield step, tokens, metric, value


def _looks(run: Run) -> dict[tuple[int, bool, int], Mapping[str, Any]]:
    """Step, whole split or not, and layer -> what was recorded; of two such records the later."""
    looks: dict[tuple[int, bool, int], Mapping[str, Any]] = {}
    used = ("tokens_per_expert", "kept_per_expert", *LAYER_UNITS)
    for record in run.read_routing():
        step, layer = _whole(record.get("step")), _whole(record.get("layer"))
        if step is not None and layer is not None and _counts(record.get("tokens_per_expert")):
            few = {key: record[key] for key in used if key in record}
            looks[step, record.get("whole_split") is True, layer] = few
    # How much of the final choices was there at a step is known at the end, and written there.
    final = {layer: record.get("saturation") for (_, whole, layer), record in looks.items() if whole}
    for (step, whole, layer), found in looks.items():
        settled = final.get(layer)
        known = settled.get(str(step)) if isinstance(settled, dict) else None
        looks[step, whole, layer] = {**found, "saturation": None if whole else known}
    return looks


@dataclass(frozen=True)
class _Place:
    """Where a record was taken."""

    step: int
    whole_split: bool
    layer: int
    tokens: int | None


def _add_layer(columns: dict[str, list[Any]], run: Run, place: _Place, record: Mapping[str, Any]) -> None:
    asked = _counts(record["tokens_per_expert"])
    kept = _counts(record.get("kept_per_expert"))
    total = math.fsum(asked)
    size = len(asked)
    same = {"run": run.id, "group": run.group, "step": place.step, "tokens": place.tokens,
            "whole_split": place.whole_split, "layer": place.layer,
            **{name: _value(record.get(name)) for name in LAYER_UNITS}}  # fmt: skip
    for name, value in same.items():
        columns[name] += [value] * size
    columns["expert"] += range(size)
    columns["load"] += [count / total if total else math.nan for count in asked]
    columns["asked"] += asked
    columns["kept"] += kept if len(kept) == size else [math.nan] * size


def _counts(values: Any) -> list[float]:
    """Counts of assignments; empty where they are not all counts."""
    if not isinstance(values, list):
        return []
    counts = [_value(value) for value in values]
    return (
        []
        if any(count is None or not 0 <= count < math.inf for count in counts)
        else [count or 0.0 for count in counts]
    )


def _tokens_per_step(run: Run) -> int | None:
    """See RunConfig.tokens_per_step; None where config.json does not say."""
    config = run.config_dict()
    train, model = config.get("train"), config.get("model")
    if not isinstance(train, dict) or not isinstance(model, dict):
        return None
    factors = [
        _whole(train.get("batch_size")),
        _whole(train.get("grad_accumulation", 1)),
        _whole(model.get("context_length")),
    ]
    known = [factor for factor in factors if factor is not None]
    return math.prod(known) if len(known) == len(factors) else None


def _tokens(recorded: int | None, step: int, per_step: int | None) -> int | None:
    tokens = step * per_step if recorded is None and per_step is not None else recorded
    return None if tokens is None or tokens >= 2**63 else tokens


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63 else None


def _value(given: Any) -> float | None:
    """A measure: NaN for null, which stands for what was not finite; None for what is no number."""
    if given is None:
        return math.nan
    if isinstance(given, bool) or not isinstance(given, int | float):
        return None
    try:
        value = float(given)
    except OverflowError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def _frame(columns: Mapping[str, list[Any]], dtypes: Mapping[str, str], units: Mapping[str, str]) -> pd.DataFrame:
    frame = pd.DataFrame(
        {
            name: text_series(name, values) if dtypes[name] == "str" else pd.Series(values, dtype=dtypes[name])
            for name, values in columns.items()
        }
    )
    frame.attrs["units"] = dict(units)
    return frame
