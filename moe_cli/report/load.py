"""Run folders -> rows of the report: one `RunRow` per run."""

import gc
import math
import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_cli.config.build import SCALARS, flatten_dict
from moe_cli.errors import RunNotFound
from moe_cli.files.checksums import read_sealed
from moe_cli.files.reading import read_json
from moe_cli.formatting import as_utf8, is_utf8
from moe_cli.metrics import BY_KEY
from moe_cli.report.run_row import (
    EXECUTION,
    IDENTITY,
    RESULTS,
    Results,
    RunRow,
    is_setting,
)
from moe_cli.runs.folder import FAILED, Run
from moe_cli.runs.lookup import find_runs, list_runs
from moe_cli.runs.tags import parse_tags

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

UNITS = {key: BY_KEY[key].unit for key in RESULTS}
# The types of columns, whatever files hold; of all others it follows from the values.
DTYPES = {
    **dict.fromkeys(
        ("run", "sweep", "status", "reason", "path", "router", "balance", "corpus", "corpus_sha256"), "str"
    ),
    **dict.fromkeys(("expert", "k", "seed"), "Int64"),
    **{key: "Int64" if BY_KEY[key].whole else "float64" for key in RESULTS},
    **dict.fromkeys(("capacity", "created"), "float64"),
    "tags": "object",
}


def load_runs(path: str | Path) -> "pd.DataFrame":
    """Returns one row per run at or below a folder, oldest first; without runs, no rows.

    Columns: `run`, `sweep`, `status`, `reason` (of a failure), `created`, `path`, `tags` (a list), the keys of
    summary.json, and every other setting by its dotted name (`model.d_model`); `router` and `balance` are names. Runs
    that are not complete have settings but no results. Units are in `frame.attrs["units"]`.

    Raises:
        RunNotFound: the folder does not exist.
    """
    from moe_cli.report.frame import to_frame

    return to_frame(rows_below(path))


def rows_below(path: str | Path) -> list[RunRow]:
    """Returns the runs at or below a folder, oldest first. Raises RunNotFound if the folder does not exist."""
    folder = Path(path).expanduser().absolute()
    if not folder.is_dir():
        raise RunNotFound(f"no folder {folder}. Runs are made by: moe train")
    return read_rows(list_runs(folder))


def load_selection(outputs: Path, names: Collection[str] = ()) -> list[RunRow]:
    """Returns the runs a user means by names of sweeps, run ids, their beginnings or patterns, `latest`, or folders.

    Raises:
        RunNotFound: a name that means no run, or no runs at all.
    """
    every = list_runs(outputs)
    if len(names) < 2:
        return read_rows(find_runs(outputs, next(iter(names), None), every))
    chosen = [run for name in names for run in find_runs(outputs, name, every)]
    return read_rows(list({os.path.realpath(run.path): run for run in chosen}.values()))


def title_of(runs: Sequence[RunRow], names: Collection[str]) -> str:
    """Returns the title of a report on these runs: the names given, or the only sweep."""
    groups = list(dict.fromkeys(run.sweep for run in runs))
    return " ".join(names) or (groups[0] if len(groups) == 1 else "all runs")


def read_rows(runs: Sequence[Run]) -> list[RunRow]:
    """Returns one row per run, oldest first."""
    with without_garbage_collection():
        rows = rows_from_values([_read(run) for run in runs])
        return sorted(rows, key=lambda row: (row.created or 0.0, row.run))


@contextmanager
def without_garbage_collection() -> "Iterator[None]":
    """Millions of small objects are made that all stay: collecting garbage would take a third of the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _read(run: Run) -> dict[str, Any]:
    """Returns the settings, results and status of a run, by column."""
    folder = str(run.path)  # path objects would take a tenth of the time
    config = read_json(f"{folder}/config.json")
    results = read_sealed(f"{folder}/summary.json")
    status = run.effective_status(read_json(f"{folder}/status.json") or {}, results is not None)
    if config:
        run.fits(config)
    values = run_values(run, config or {}, results or {}, status)
    values["tags"] = parse_tags(read_json(f"{folder}/tags.json"))
    return values


def make_row(run: Run, config: Mapping[str, Any], results: Mapping[str, Any], status: Mapping[str, Any]) -> RunRow:
    """Returns the row of one run from the content of its files."""
    return rows_from_values([run_values(run, config, results, status)])[0]


def run_values(
    run: Run, config: Mapping[str, Any], results: Mapping[str, Any], status: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the columns of a run from the content of its files, without its tags."""
    state, reason = str(status.get("status")), status.get("reason")
    try:
        settings = flat_settings(config)
    except RecursionError:
        config, settings = {}, {}
    if not config:
        state, reason, results = FAILED, "config.json cannot be read", {}
    if settings.get("expert") == 1:
        settings["capacity"] = settings["router"] = settings["balance"] = None
    for key, value in results.items():
        if type(value) in SCALARS:
            settings[key] = value
    settings.update(
        run=run.id,
        sweep=run.sweep,
        path=str(run.path),
        status=state,
        reason=reason if type(reason) in SCALARS else str(reason),
        created=status.get("created"),
        tags=(),
    )
    return settings


def flat_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a config.json by dotted names; `router` and `balance` are the names of the choices."""
    flat = flatten_dict(config)
    if not SCALARS.issuperset(map(type, flat.values())):
        flat = {name: value if type(value) in SCALARS else str(value) for name, value in flat.items()}
    for group in ("router", "balance"):
        flat[group] = flat.pop(f"{group}.name", None)
    return flat


def rows_from_values(read: Sequence[dict[str, Any]]) -> list[RunRow]:
    """Rows from the columns of runs, each column with values of one type wherever they have one in common."""
    # Most runs have the same columns, so work that depends on names alone is done once per set of columns.
    members: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for values in read:
        members.setdefault(tuple(values), []).append(values)
    columns: dict[str, list[list[Any]]] = {}
    for names, group in members.items():
        for name, column in zip(names, zip(*(values.values() for values in group), strict=True), strict=True):
            columns.setdefault(name, []).append(list(column))
    for name, parts in columns.items():
        if name not in ("run", "sweep", "path", "tags"):
            _unify(DTYPES.get(name), parts)
    places = dict.fromkeys(columns, 0)
    rows = []
    for names, group in members.items():
        own = [columns[name][places[name]] for name in names]
        for name in names:
            places[name] += 1
        rows += _rows(names, own, len(group))
    order = {id(values): place for place, values in enumerate(chain.from_iterable(members.values()))}
    return [rows[order[id(values)]] for values in read]


def _rows(names: Sequence[str], columns: Sequence[list[Any]], size: int) -> list[RunRow]:
    """Returns the rows of runs that have the same columns."""
    by_name = dict(zip(map(as_utf8, names), columns, strict=True))
    settings = [name for name in by_name if is_setting(name)]
    execution = [name for name in by_name if name in EXECUTION]
    results = [name for name in by_name if name in RESULTS and name not in settings]
    others = by_name.keys() - {*settings, *execution, *results, *IDENTITY}
    parts = [
        _dicts(part, by_name, size) for part in (settings, execution, [name for name in by_name if name in others])
    ]
    measured = [Results(**values) for values in _dicts(results, by_name, size)]
    missing = [None] * size
    identity = zip(*(by_name.get(name, missing) for name in IDENTITY), strict=True)
    return [
        RunRow(run, group, path, status, reason, created, tuple(tags or ()), chosen, how, found, rest)
        for (run, group, status, reason, created, path, tags), chosen, how, rest, found in zip(
            identity, *parts, measured, strict=True
        )
    ]


def _dicts(names: Sequence[str], columns: Mapping[str, list[Any]], size: int) -> list[dict[str, Any]]:
    if not names:
        return [{} for _ in range(size)]
    return [dict(zip(names, values, strict=True)) for values in zip(*(columns[name] for name in names), strict=True)]


def _unify(dtype: str | None, parts: Sequence[list[Any]]) -> None:
    """Converts the values of one column, in place, to the type of the column. Values of other types become None."""
    kinds = {kind for part in parts for kind in set(map(type, part))} - {type(None)}
    if dtype is None:
        dtype = (
            "Int64"
            if kinds == {int}
            else "float64"
            if kinds and kinds <= {int, float}
            else "str"
            if kinds == {str}
            else ""
        )
    for part in parts:
        if dtype == "float64" and kinds - {float}:
            part[:] = [None if math.isnan(number := _number(value)) else number for value in part]
        elif dtype == "Int64" and (kinds - {int} or max(map(abs, filter(None, part)), default=0) >= 2**63):
            part[:] = map(_whole, part)
        elif dtype == "str" and (kinds - {str} or not "".join(filter(None, part)).isascii()):
            part[:] = [None if value is None else _whole_text(str(value)) for value in part]


def _whole_text(text: str) -> str:
    """Returns the text with halves of characters, which JSON may hold, as '?'."""
    return text if is_utf8(text) else text.encode("utf-8", "replace").decode()


def _number(value: Any) -> float:
    """Returns the value as a finite number; NaN for everything else."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return number if math.isfinite(number) and not isinstance(value, bool) else math.nan


def _whole(value: Any) -> int | None:
    number = _number(value)
    return int(value) if number == number and number == int(number) and abs(number) < 2**63 else None
