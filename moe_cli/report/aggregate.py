"""Which runs are one configuration, what tells configurations apart, and which one each is measured against."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import pandas as pd

from moe_cli.config.data import HELD_OUT
from moe_cli.config.expressions import Expression, all_hold
from moe_cli.config.launch import LaunchConfig
from moe_cli.config.resolve import SPARSE_ONLY, concerns
from moe_cli.config.schema import EXECUTION_KEYS
from moe_cli.metrics import eval_windows
from moe_cli.report.intervals import mean_and_interval, paired_difference
from moe_cli.report.load import CORPUS, IDENTITY, SETTINGS, UNITS, plain, text_series
from moe_cli.report.pairs import compare_with_first
from moe_cli.report.pareto import as_cost, on_front, tolerance
from moe_cli.report.significance import INCONCLUSIVE, Paired, more_seeds, paired, verdicts
from moe_cli.runs.folder import COMPLETED

RESULTS = ("params", "active_params", "flops_per_token", "val_loss", "val_bpb", "tokens_per_second",
           "max_violation", "dropped_fraction", "dead_experts")  # fmt: skip
PLAIN_KEYS = ("run", "runs", "status", "expert", "k", "capacity", "router", "balance", "seed", "seeds", *RESULTS,
              "val_loss_interval", "val_bpb_interval", "vs_baseline", "vs_baseline_interval",
              "shared_seeds", "verdict", "more_seeds", "pareto")  # fmt: skip
# What a run is of: it comes first, before any number.
KINDS = ("model.name", "task.name", "data.name")
TOP_LEVEL = ("expert", "k", "capacity", "drop", "renormalise_after_drop", "router", "balance", "match")
EXECUTION = frozenset((*(f"train.{key}" for key in EXECUTION_KEYS),
                       *(f"launch.{entry.name}" for entry in fields(LaunchConfig))))  # fmt: skip
# What may differ between the runs of one configuration before anything is measured.
OF_RUNS = EXECUTION | {*IDENTITY, "seed"}
# Settings that others bring along: they tell configurations apart only where those others are equal.
FOLLOWS: dict[str, tuple[str, ...]] = {
    "drop": ("capacity",),
    "renormalise_after_drop": ("capacity",),
    **{f"{group}.name": () for group in ("model", "task", "data")},
    **{f"{group}.": (f"{group}.name",) for group in ("model", "task", "data")},
    "model.d_expert": ("model.name", "model.d_ff", "match"),
    "eval.context_length": ("model.context_length",),
    "eval.stride": ("model.context_length", "eval.context_length"),
    "router.": ("router", "k"),
    "balance.": ("balance",),
    "optim.name": (),
    "optim.schedule": ("optim.name",),
    "optim.": ("optim.name", "optim.schedule"),
}

Row = dict[str, Any]
# What the Pareto front compares besides the score; 1: the larger value is better.
COSTS = {"flops_per_token": -1, "tokens_per_second": 1, "peak_memory_bytes": -1}
# What differences are taken to, unless a sweep says otherwise.
DENSE: Mapping[str, Any] = {"expert": 1}


def settings_of(columns: Iterable[str]) -> list[str]:
    """The columns that decide what is learned, seed apart: those that matter most first."""
    columns = list(columns)
    dotted = [name for name in columns if "." in name and name not in EXECUTION and name not in KINDS]
    return [name for name in (*KINDS, *TOP_LEVEL) if name in columns] + dotted


def applies(setting: str, row: Row) -> bool:
    """Whether a setting means anything in this configuration."""
    if setting == "model.d_expert" and row.get("match") in ("active", "total", "flops", "model_flops"):
        return False
    if row.get("expert") != 1:
        return True
    return not concerns(setting, SPARSE_ONLY)


def rows_of(frame: pd.DataFrame) -> list[Row]:
    columns = plain(frame)
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def fold(
    frame: pd.DataFrame,
    by_run: bool = False,
    elsewhere: pd.DataFrame | None = None,
    baseline: Mapping[str, Any] = DENSE,
    conditions: Collection[Expression] = (),
) -> pd.DataFrame:
    """One row per configuration: means over seeds, 95 % intervals, and the difference to the baseline.

    Runs are one configuration when every setting but the seed is equal, and the data too; of two runs with one seed
    the newer counts. Runs without results are rows of their own. With `by_run`, every run is a row. Runs
    `elsewhere`, and runs for which not all `conditions` hold, may serve as baselines, but are in no row. The baseline of a row has the
    settings of `baseline`, and for the rest those of the row. Where
    no row is its baseline or all are, each is compared with the lowest.

    `attrs` of the result: `comparisons`, how many rows have a verdict; `pairs`, how many pairs of configurations the
    verdicts allow for, None with a baseline; `ambiguous`, the configurations among which a baseline cannot be chosen;
    `replaced`, see `_replaced`.
    """
    runs = rows_of(frame)
    settings = settings_of(frame.columns)
    others = [] if elsewhere is None else rows_of(elsewhere)
    shared = shared_with(baseline, settings)
    bases, ambiguous = baselines_of(runs, others, baseline, settings)
    runs = [run for run in runs if all_hold(conditions, run)]
    groups = _group(runs, settings)
    if by_run:
        rows = [_folded([run], settings, shared, bases) for run in runs]
    else:
        rows = [_folded(_by_seed(seeds), settings, shared, bases) for seeds in groups.values()]
        rows += [_folded([run], settings, shared, bases) for run in runs if run["status"] != COMPLETED]
    pairs = None
    if not by_run:
        _judge(rows)
        one_kind = len({is_baseline(row, baseline) for row in rows if score(row) is not None}) == 1
        compared = any(row["baseline_path"] is not None and not measures_itself(row) for row in rows)
        pairs = _judge_pairs(rows) if one_kind and not compared else None
    for row in rows:
        del row["_paired"], row["_scores"]
    folded = _frame(rows, frame)
    folded.attrs.update(pairs=pairs, ambiguous=ambiguous)
    folded.attrs["comparisons"] = sum(row["verdict"] is not None for row in rows)
    folded.attrs["replaced"] = {} if by_run else _replaced(runs, groups, settings)
    return folded


def _judge(rows: list[Row]) -> None:
    """Adds the verdict on each row's difference to the baseline, and whether the row is on the Pareto front."""
    compared = [row for row in rows if row["_paired"] is not None]
    differences: list[Paired] = [row["_paired"] for row in compared]
    for row, difference, verdict in zip(compared, differences, verdicts(differences), strict=True):
        row["verdict"] = verdict
        row["more_seeds"] = more_seeds(difference, len(compared)) if verdict == INCONCLUSIVE else None
    scored = [row for row in rows if score(row) is not None]
    sizes = Counter(comparable(row) for row in scored)
    for row, mark in zip(scored, front_of(scored, COSTS), strict=True):
        row["pareto"] = mark if sizes[comparable(row)] > 1 else None


def _judge_pairs(rows: list[Row]) -> int | None:
    """Compares every row with the lowest of those it is comparable with.

    Returns the number of pairs tested, None where nothing can be compared.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in sorted((row for row in rows if score(row) is not None), key=lambda row: score(row) or 0.0):
        groups.setdefault(comparable(row), []).append(row)
    ranked = [group for group in groups.values() if len(group) > 1]
    found, pairs = compare_with_first([[row["_scores"] for row in group] for group in ranked])
    for group, differences in zip(ranked, found, strict=True):
        first = group[0]
        if not any(differences):
            continue
        first.update(baseline=first["run"], baseline_path=first["path"], vs_baseline=0.0, vs_baseline_interval=None,
                     shared_seeds=len(first["_scores"]))  # fmt: skip
        for row, each in zip(group, differences, strict=True):
            if each is not None:
                row.update(
                    baseline=first["run"], baseline_path=first["path"], vs_baseline=each.estimate.mean,
                    vs_baseline_interval=each.estimate.half_width, shared_seeds=each.sample.seeds,
                    verdict=each.verdict, more_seeds=each.more_seeds,
                )  # fmt: skip
    return pairs if any(each is not None for differences in found for each in differences) else None


def front_of(rows: Sequence[Row], costs: Mapping[str, int]) -> list[bool]:
    """Whether each row, of those that have a score, is on the Pareto front of its comparable rows in score and costs.

    Args:
        costs: columns, and whether the larger (1) or the smaller value (-1) is better.
    """
    marks = [False] * len(rows)
    groups: dict[tuple[Any, ...], list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault(comparable(row), []).append(place)
    for places in groups.values():
        points = [
            (score(rows[place]), *(as_cost(rows[place].get(name), costs[name]) for name in costs)) for place in places
        ]
        for place, mark in zip(places, on_front(points, [1.0, *map(tolerance, costs)]), strict=True):
            marks[place] = mark
    return marks


def _group(runs: Iterable[Row], settings: Collection[str]) -> dict[tuple[Any, ...], dict[int, Row]]:
    """The complete runs by what they share, and by seed; of two runs with one seed, the newer."""
    groups: dict[tuple[Any, ...], dict[int, Row]] = {}
    for run in sorted((run for run in runs if run["status"] == COMPLETED), key=lambda run: run["created"] or 0):
        groups.setdefault(_key(run, settings), {})[run["seed"]] = run
    return groups


def baselines_of(
    runs: Iterable[Row], elsewhere: Iterable[Row], baseline: Mapping[str, Any], settings: list[str]
) -> tuple[dict[tuple[Any, ...], dict[int, Row]], list[Row]]:
    """The runs of the baseline, by what a configuration shares with it, and by seed.

    Where configurations of `runs` and of `elsewhere` fit, those of `runs` count, and of one configuration their seeds
    before those of `elsewhere`. Where several fit, none is chosen: they are the second result. A dense model shares
    with a baseline of several experts what concerns it.
    """
    own, others = (
        [_as_far_as_it_applies(run) for run in each if is_baseline(run, baseline)] for each in (runs, elsewhere)
    )
    preferred, candidates = _group(own, settings), _group([*others, *own], settings)
    for configuration, seeds in preferred.items():
        candidates[configuration] |= seeds
    shared = shared_with(baseline, settings)
    fitting: dict[tuple[Any, ...], dict[tuple[Any, ...], dict[int, Row]]] = {}
    for configuration, seeds in candidates.items():
        fitting.setdefault(_key(next(iter(seeds.values())), shared), {})[configuration] = seeds
    bases, ambiguous = {}, []
    for key, found in fitting.items():
        chosen = [each for each in found if each in preferred] or list(found)
        if len(chosen) == 1:
            bases[key] = found[chosen[0]]
        elif chosen[0] in preferred:
            ambiguous += [next(iter(found[each].values())) for each in chosen]
    if "expert" in baseline:
        for_dense = [(_key(_as_dense(next(iter(seeds.values()))), shared), seeds) for seeds in bases.values()]
        number = Counter(key for key, _ in for_dense)
        bases = {**{key: seeds for key, seeds in for_dense if number[key] == 1}, **bases}
    return bases, ambiguous


def base_of(
    run: Row, bases: Mapping[tuple[Any, ...], dict[int, Row]], shared: Collection[str]
) -> dict[int, Row] | None:
    """The runs of the baseline of a run's configuration, by seed; None where losses may not be ranked together."""
    found = bases.get(_key(_as_far_as_it_applies(run), shared))
    return found if found and comparable(next(iter(found.values()))) == comparable(run) else None


def _replaced(
    runs: Iterable[Row], groups: Mapping[tuple[Any, ...], dict[int, Row]], settings: Collection[str]
) -> dict[str, int]:
    """How many runs of a configuration count no more, as their seed was run again; by the folder of its first run."""
    counting = {run["path"] for seeds in groups.values() for run in seeds.values()}
    again = [run for run in runs if run["status"] == COMPLETED and run["path"] not in counting]
    return dict(Counter(_by_seed(groups[_key(run, settings)])[0]["path"] for run in again))


def _key(run: Row, settings: Collection[str]) -> tuple[Any, ...]:
    return (*(run.get(name) for name in settings), run["corpus_sha256"])


def _as_far_as_it_applies(run: Row) -> Row:
    """Without the settings that mean nothing in it, of which a baseline may have others."""
    return {name: value if applies(name, run) else None for name, value in run.items()}


def _as_dense(run: Row) -> Row:
    """With the settings alone that a dense model has too."""
    return {name: value if applies(name, {"expert": 1}) else None for name, value in run.items()}


def _by_seed(seeds: dict[int, Row]) -> list[Row]:
    return sorted(seeds.values(), key=lambda run: (run["seed"] is None, run["seed"]))


def shared_with_dense(settings: Collection[str]) -> list[str]:
    """What a model must share with a dense one to be compared with it."""
    return [name for name in settings if name != "expert" and applies(name, {"expert": 1})]


def shared_with(baseline: Mapping[str, Any], settings: Collection[str]) -> list[str]:
    """What a configuration must share with its baseline: all that the baseline does not say, nor bring along."""
    said = set(baseline) | ({"balance"} if "router" in baseline else set())  # not every router has a balance
    shared = shared_with_dense(settings) if baseline.get("expert") == 1 else list(settings)
    return [name for name in shared if not said & {name, name.partition(".")[0], *_parents(name)}]


def is_baseline(run: Row, baseline: Mapping[str, Any]) -> bool:
    """Whether a run has the settings of the baseline; a choice of a group goes by its name."""
    return all(run.get(name, run.get(f"{name}.name")) == value for name, value in baseline.items())


def _folded(
    runs: list[Row], settings: list[str], shared: list[str], bases: dict[tuple[Any, ...], dict[int, Row]]
) -> Row:
    first = runs[0]
    row: Row = {
        **{name: first[name] for name in (*IDENTITY, *CORPUS, *SETTINGS, *settings)},
        "runs": [run["run"] for run in runs],
        "paths": [run["path"] for run in runs],
        "seeds": [run["seed"] for run in runs if run["seed"] is not None],
        "seed": first["seed"] if len(runs) == 1 else None,
        "tags": list(dict.fromkeys(tag for run in runs for tag in run["tags"])),
    }
    done = [run for run in runs if run["status"] == COMPLETED]
    for name in first.keys() - row.keys():
        row[name] = _mean([run[name] for run in done if run[name] is not None])
    for name in ("val_loss", "val_bpb"):
        values = [run[name] for run in done if run[name] is not None]
        row[f"{name}_interval"] = mean_and_interval(values).half_width if values else None
    row.update(
        dict.fromkeys(
            (
                "vs_baseline",
                "vs_baseline_interval",
                "shared_seeds",
                "baseline",
                "baseline_path",
                "verdict",
                "more_seeds",
                "pareto",
                "_paired",
                "_scores",
            )
        )
    )
    row["_scores"] = _scores({run["seed"]: run for run in done})
    baseline = base_of(first, bases, shared) if done else None
    if baseline:
        _compare(row, done, baseline)
    return row


def _compare(row: Row, runs: list[Row], baseline: dict[int, Row]) -> None:
    own, other = _scores({run["seed"]: run for run in runs}), _scores(baseline)
    shared = own.keys() & other.keys()
    if not shared:
        return
    held = next(baseline[run["seed"]] for run in runs if run["seed"] in shared)
    row["shared_seeds"], row["baseline"], row["baseline_path"] = len(shared), held["run"], held["path"]
    difference, sample = paired_difference(own, other), paired(own, other)
    if difference is None or sample is None:
        return
    row["vs_baseline"] = difference.mean
    # A baseline is its own, and that it differs from itself by 0 is no measurement.
    row["vs_baseline_interval"] = None if measures_itself(row) else difference.half_width
    row["_paired"] = None if measures_itself(row) else sample


def is_countable(run: Row) -> bool:
    """Whether a run says how many experts it has; files that were not made here may not."""
    return isinstance(run["expert"], int) and run["expert"] >= 1


def is_undefined(row: Row) -> bool:
    """Whether the row has a baseline, and no difference to it: that of a loss to 0, relative to 0."""
    return row["baseline_path"] is not None and row["vs_baseline"] is None


def measures_itself(row: Row) -> bool:
    """Whether the row is its own baseline; by its folder, for one id may stand in several."""
    return row["baseline_path"] in row["paths"]


def score(row: Row) -> float | None:
    """What is to be low: bits per byte or, where nobody knows the bytes of the data, nats per token."""
    result: float | None = row["val_loss"] if row["val_bpb"] is None else row["val_bpb"]
    return result


def _scores(runs: dict[int, Row]) -> dict[int, float]:
    return {seed: value for seed, run in runs.items() if seed is not None and (value := score(run)) is not None}


def _mean(values: list[Any]) -> Any:
    """The mean, or the value itself where all are equal, so that counts stay whole; of unequal text, nothing."""
    if len(set(values)) == 1:
        return values[0]
    numbers = all(isinstance(value, int | float) for value in values)
    return mean_and_interval(values).mean if values and numbers else None


def _frame(rows: list[Row], runs: pd.DataFrame) -> pd.DataFrame:
    settings = settings_of(runs.columns)
    last = ["reason", "group", "created", "path", "paths", "baseline", "baseline_path", "corpus", "corpus_sha256"]
    others = [str(name) for name in runs.columns if name not in settings and name not in last]
    names = dict.fromkeys([*PLAIN_KEYS, *others, *last, *settings])
    frame = pd.DataFrame({name: _series(name, [row[name] for row in rows], runs) for name in names})
    frame.attrs["units"] = {**runs.attrs.get("units", {}), "val_loss_interval": UNITS["val_loss"],
                            "val_bpb_interval": UNITS["val_bpb"], "vs_baseline": "share of the baseline's bits per byte",
                            "vs_baseline_interval": "share of the baseline's bits per byte"}  # fmt: skip
    return frame


def _series(name: str, values: list[Any], runs: pd.DataFrame) -> "pd.Series[Any]":
    dtype = _dtype(name, runs)
    return text_series(name, values) if dtype == "str" else pd.Series(values, dtype=dtype)


_ADDED = {
    "baseline": "str",
    "baseline_path": "str",
    "verdict": "str",
    "shared_seeds": "Int64",
    "more_seeds": "Int64",
    "pareto": "boolean",
}


def _dtype(name: str, runs: pd.DataFrame) -> Any:
    if name in ("runs", "paths", "seeds"):
        return "object"
    if name not in runs:
        return _ADDED.get(name, "float64")
    # The mean of whole numbers need not be whole.
    measured = name not in SETTINGS and name not in settings_of([name])
    return "object" if measured and runs[name].dtype == "Int64" else runs[name].dtype


def varying(rows: Collection[Row], settings: Iterable[str]) -> list[str]:
    """The settings that tell these configurations apart, in order.

    A setting counts only where it applies, and one that others bring along (a weight by the balancing loss it belongs
    to) only when configurations equal in those others still differ in it.
    """
    chosen = []
    for name in settings:
        parents = _parents(name)
        values: dict[tuple[Any, ...], set[Any]] = {}
        for row in rows:
            if applies(name, row):
                values.setdefault(tuple(row.get(parent) for parent in parents), set()).add(row[name])
        if any(len(alternatives) > 1 for alternatives in values.values()):
            chosen.append(name)
    return chosen


def _parents(name: str) -> tuple[str, ...]:
    """The settings that bring this one along."""
    group = name.partition(".")[0] + "." if "." in name else ""
    return FOLLOWS[name] if name in FOLLOWS else FOLLOWS.get(group, ())


def comparable(row: Row) -> tuple[Any, ...]:
    """What rows share when their losses may be ranked: the data, what was asked, from which context, and how much training
    was paid for.
    """
    corpus = row["corpus_sha256"] or (row.get("data.name"), row.get("data.path"))
    asked = (row.get("task.name") or "causal_lm", eval_windows(row))
    data = (corpus, *asked, *(row.get(name) for name in HELD_OUT))
    for budget in ("train.flops", "train.minutes"):
        if row.get(budget) is not None:
            return (data, budget, row[budget])
    return (data, "tokens", row["tokens"])


def best_rows(rows: Collection[Row]) -> list[Row]:
    """The row of the lowest score in every comparable group of at least two."""
    groups: dict[tuple[Any, ...], list[tuple[float, Row]]] = {}
    for row in rows:
        if (value := score(row)) is not None:
            groups.setdefault(comparable(row), []).append((value, row))
    return [min(group, key=lambda pair: pair[0])[1] for group in groups.values() if len(group) > 1]
