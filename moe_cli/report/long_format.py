"""Run folders -> long frames: a row for every measure of every step, and for every expert of every layer."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from moe_cli.errors import RunNotFound
from moe_cli.files.reading import whole_number_in
from moe_cli.metrics import BY_KEY, LAYER_METRICS
from moe_cli.report.curves import measured_value, read_values, tokens_at, tokens_per_step
from moe_cli.report.expert_usage import counts_in
from moe_cli.report.frame import frame_of
from moe_cli.runs.folder import Run
from moe_cli.runs.lookup import list_runs_by_age

Source = str | Path | Run | Iterable[str | Path | Run]

CURVE_DTYPES = {"run": "str", "sweep": "str", "step": "Int64", "tokens": "Int64", "metric": "str", "value": "float64"}
# What a layer's record says of the whole layer; the same in the rows of all its experts.
LAYER_UNITS = {**{key: BY_KEY[key].unit for key in LAYER_METRICS}, "saturation": BY_KEY["router_saturation"].unit}
ROUTING_DTYPES = {
    "run": "str", "sweep": "str", "step": "Int64", "tokens": "Int64", "whole_split": "bool", "layer": "Int64",
    "expert": "Int64", "share": "float64", "assignments": "float64",
    "kept_assignments": "float64", **dict.fromkeys(LAYER_UNITS, "float64"),
}  # fmt: skip
UNITS = {"step": "optimizer steps", "tokens": "training tokens"}


def load_curves(source: Source) -> pd.DataFrame:
    """Returns one row per run, step and metric of metrics.jsonl: run, sweep, step, tokens, metric, value.

    `metric` is the key in the file (`train/loss`, `val/bpb`, `moe/layer_03/max_violation`, `lr`, `seconds`);
    docs/reference/metrics.md has the unit of each. `tokens` counts the training tokens up to the step. A value that was
    not finite is NaN. If a step has a metric twice, the later value is used.

    Args:
        source: a folder with runs at or below it, a run, or several of these, such as the column `path` of `load_runs`.

    Raises:
        RunNotFound: the folder does not exist.
    """
    columns: dict[str, list[Any]] = {name: [] for name in CURVE_DTYPES}
    for run in runs_in(source):
        points = _points(run)
        per_step = tokens_per_step(run)
        columns["run"] += [run.id] * len(points)
        columns["sweep"] += [run.sweep] * len(points)
        for (step, metric), (tokens, value) in points.items():
            columns["step"].append(step)
            columns["tokens"].append(tokens_at(tokens, step, per_step))
            columns["metric"].append(metric)
            columns["value"].append(value)
    return frame_of(columns, CURVE_DTYPES, UNITS)


def load_routing(source: Source) -> pd.DataFrame:
    """Returns one row per run, evaluation, sparse layer and expert of routing.jsonl.

    Columns: run, sweep, step, tokens (training tokens up to the step), whole_split (False: an estimate on part of the
    validation split), layer and expert (from 0); share (of the layer's assignments that the expert gets; even is 1 /
    E), assignments and kept_assignments (before and after drops). The metrics of the whole layer are repeated in the
    rows of all its experts: max_violation, load_cv, routing_entropy, mean_routing_entropy, dropped_fraction,
    dead_experts, token_specialisation, domain_specialisation, null_fraction, and saturation, which is known when the
    run is complete.

    Args:
        source: see `load_curves`.

    Raises:
        RunNotFound: the folder does not exist.
    """
    columns: dict[str, list[Any]] = {name: [] for name in ROUTING_DTYPES}
    for run in runs_in(source):
        records = _latest_records(run)
        per_step = tokens_per_step(run)
        for (step, whole, layer), record in records.items():
            _add_layer(columns, run, _RecordKey(step, whole, layer, tokens_at(None, step, per_step)), record)
    units = {
        **UNITS,
        "share": "share of assignments",
        "assignments": "assignments",
        "kept_assignments": "assignments",
        **LAYER_UNITS,
    }
    return frame_of(columns, ROUTING_DTYPES, units)


def runs_in(source: Source) -> list[Run]:
    """Returns the runs a caller means, each once. Raises RunNotFound: a folder that is not there."""
    if isinstance(source, str | Path | Run):
        source = [source]
    runs: dict[Path, Run] = {}
    for value in source:
        if isinstance(value, Run):
            runs[value.path] = value
            continue
        folder = Path(value).expanduser().absolute()
        if not folder.is_dir():
            raise RunNotFound(f"no folder {folder}. Runs are made by: moe train")
        runs.update((run.path, run) for run in list_runs_by_age(folder))
    return list(runs.values())


def _points(run: Run) -> dict[tuple[int, str], tuple[int | None, float]]:
    """Returns step and metric -> tokens and value."""
    points: dict[tuple[int, str], tuple[int | None, float]] = {}
    for step, tokens, metric, value in read_values(run):
        points[step, metric] = (tokens, value)
    return points


def _latest_records(run: Run) -> dict[tuple[int, bool, int], Mapping[str, Any]]:
    """Returns the records by step, whole split or not, and layer. The later of two records with one key is kept."""
    records: dict[tuple[int, bool, int], Mapping[str, Any]] = {}
    used = ("tokens_per_expert", "kept_per_expert", *LAYER_UNITS)
    for record in run.read_routing():
        step, layer = whole_number_in(record.get("step")), whole_number_in(record.get("layer"))
        if step is not None and layer is not None and counts_in(record.get("tokens_per_expert")):
            few = {key: record[key] for key in used if key in record}
            records[step, record.get("whole_split") is True, layer] = few
    # The saturation at each step is known at the end only, and recorded there.
    final = {layer: record.get("saturation") for (_, whole, layer), record in records.items() if whole}
    for (step, whole, layer), found in records.items():
        saturations = final.get(layer)
        known = saturations.get(str(step)) if isinstance(saturations, dict) else None
        records[step, whole, layer] = {**found, "saturation": None if whole else known}
    return records


@dataclass(frozen=True)
class _RecordKey:
    """The evaluation and the layer of a record."""

    step: int
    whole_split: bool
    layer: int
    tokens: int | None


def _add_layer(columns: dict[str, list[Any]], run: Run, place: _RecordKey, record: Mapping[str, Any]) -> None:
    assignments = counts_in(record["tokens_per_expert"])
    kept = counts_in(record.get("kept_per_expert"))
    total = math.fsum(assignments)
    size = len(assignments)
    same = {
        "run": run.id,
        "sweep": run.sweep,
        "step": place.step,
        "tokens": place.tokens,
        "whole_split": place.whole_split,
        "layer": place.layer,
        **{name: measured_value(record.get(name)) for name in LAYER_UNITS},
    }
    for name, value in same.items():
        columns[name] += [value] * size
    columns["expert"] += range(size)
    columns["share"] += [count / total if total else math.nan for count in assignments]
    columns["assignments"] += assignments
    columns["kept_assignments"] += kept if len(kept) == size else [math.nan] * size
