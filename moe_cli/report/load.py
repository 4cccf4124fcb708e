"""Run folders -> a pandas frame with one row per run."""

import gc
import math
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd

from moe_cli.errors import RunNotFound
from moe_cli.files.checksums import read_sealed
from moe_cli.files.reading import read_json
from moe_cli.formatting import as_utf8, is_utf8
from moe_cli.metrics import BY_KEY, LOSS, ROUTING, SIZE, SPEED, TEXT_REFERENCE, keys_of
from moe_cli.runs.folder import FAILED, Run
from moe_cli.runs.lookup import find_runs, list_runs
from moe_cli.runs.tags import parse_tags

# What a run has measured, see `moe_cli.metrics`: columns that every frame has.
UNITS = {key: BY_KEY[key].unit for key in keys_of(SIZE, LOSS, SPEED, ROUTING, TEXT_REFERENCE)}
COUNTS = tuple(key for key in UNITS if BY_KEY[key].whole)
# Columns that lead to folders.
PATHS = ("path", "baseline_path")
IDENTITY = ("run", "group", "status", "reason", "created", "path", "tags")
SETTINGS = ("expert", "k", "capacity", "router", "balance", "seed")
CORPUS = ("corpus", "corpus_sha256")
SCALARS = frozenset({type(None), str, int, float, bool})
DTYPES = {
    **dict.fromkeys(("run", "group", "status", "reason", "path", "router", "balance", *CORPUS), "str"),
    **dict.fromkeys(("expert", "k", "seed", *COUNTS), "Int64"),
    **dict.fromkeys((key for key in UNITS if key not in COUNTS), "float64"),
    **dict.fromkeys(("capacity", "created"), "float64"),
    "tags": "object",
}


def load_runs(path: str | Path) -> pd.DataFrame:
    """One row per run at or below a folder, oldest first; without runs, no rows.

    Columns: `run`, `group`, `status`, `reason` (why it failed), `created`, `path`, `tags` (a list), the keys of summary.json, and every
    other setting by its dotted name (`model.d_model`); `router` and `balance` are names. Runs that are not complete
    have settings but no results. Units are in `frame.attrs["units"]`.

    Raises:
        RunNotFound: there is no such folder.
    """
    folder = Path(path).expanduser().absolute()
    if not folder.is_dir():
        raise RunNotFound(f"no folder {folder}. Runs are made by: moe train")
    return runs_frame(list_runs(folder))


def load_selection(outputs: Path, names: Collection[str] = ()) -> pd.DataFrame:
    """The runs a user means by names of sweeps, run ids, their beginnings or patterns, `latest`, or folders.

    Raises:
        RunNotFound: a name that means no run, or no runs at all.
    """
    every = list_runs(outputs)
    asked: list[str | None] = [*names] if names else [None]
    chosen = [run for name in asked for run in find_runs(outputs, name, every)]
    return runs_frame(list({run.path.resolve(): run for run in chosen}.values()))


def title_of(frame: pd.DataFrame, names: Collection[str]) -> str:
    """The title of a report on these runs: the names given, or the only sweep."""
    groups = frame["group"].unique()
    return " ".join(names) or (str(groups[0]) if len(groups) == 1 else "all runs")


def runs_frame(runs: Sequence[Run]) -> pd.DataFrame:
    """One row per run, oldest first; see `load_runs`."""
    collecting = gc.isenabled()
    gc.disable()  # of millions of small objects that all stay: a third of the time
    try:
        read = sorted(((_read(run), run) for run in runs), key=lambda each: (each[0]["created"] or 0.0, each[1].id))
        return _frame([row for row, _ in read], [run for _, run in read])
    finally:
        if collecting:
            gc.enable()


def _frame(rows: Sequence[Mapping[str, Any]], runs: Sequence[Run]) -> pd.DataFrame:
    where = {
        "run": [run.id for run in runs],
        "group": [run.group for run in runs],
        "path": [str(run.path) for run in runs],
    }
    names = dict.fromkeys([*IDENTITY, *SETTINGS, *UNITS, *CORPUS, *chain.from_iterable(rows)])
    made = {}
    # Settings stand last, so that what was measured is seen first.
    for name in sorted(names, key=lambda name: name in ("drop", "match") or "." in name):
        if name in where:
            made[name] = text_series(name, where[name])
        else:
            made[as_utf8(name)] = _series(name, [row.get(name) for row in rows])
    frame = pd.DataFrame(made)
    frame.attrs["units"] = {**UNITS, "created": "seconds since 1970"}
    return frame


def _read(run: Run) -> dict[str, Any]:
    """The settings, results and status of a run."""
    folder = str(run.path)  # path objects would take a tenth of the time
    config = read_json(f"{folder}/config.json")
    results = read_sealed(f"{folder}/summary.json")
    status = run.effective_status(read_json(f"{folder}/status.json") or {}, results is not None)
    state, reason = str(status.get("status")), status.get("reason")
    try:
        settings = flatten(config or {})
    except RecursionError:
        config, settings = None, {}
    if not config:
        state, reason, results = FAILED, "config.json cannot be read", {}
    else:
        run.fits(config)
    if "data.val_fraction" in settings:  # of runs from before there was one
        settings.setdefault("data.test_fraction", 0.0)
    if settings.get("expert") == 1:
        settings["capacity"] = settings["router"] = settings["balance"] = None
    measured = {key: value for key, value in (results or {}).items() if _is_scalar(value)}
    identity = {"status": state, "reason": reason if _is_scalar(reason) else str(reason)}
    identity.update(created=_number(status.get("created")), tags=list(parse_tags(read_json(f"{folder}/tags.json"))))
    return {**settings, **measured, **identity}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names; the name of the router and of the balancing loss stand for the group."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if type(value) in SCALARS:
            flat[prefix + key] = value
        elif isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = str(value)
    if not prefix:
        for group in ("router", "balance"):
            flat[group] = flat.pop(f"{group}.name", None)
    return flat


def _whole_text(text: str) -> str:
    """The text with halves of characters, which JSON may hold and pandas does not take, as '?'."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _is_scalar(value: Any) -> bool:
    return type(value) in SCALARS


def _series(name: str, values: list[Any]) -> "pd.Series[Any]":
    dtype = DTYPES.get(name) or _dtype(values)
    if dtype == "float64":
        return pd.Series([_number(value) for value in values], dtype=dtype)
    if dtype == "Int64":
        return pd.Series([_whole(value) for value in values], dtype=dtype)
    if dtype == "str":
        return text_series(name, [None if value is None else _whole_text(str(value)) for value in values])
    return pd.Series(values, dtype=dtype)


def text_series(name: str, values: Sequence[str | None]) -> "pd.Series[Any]":
    """A column of text, which pandas keeps as UTF-8; paths that are none stay Python's, so that they lead to the files."""
    if all(value is None or is_utf8(value) for value in set(values)):
        return pd.Series(values, dtype="str")
    if name in PATHS:
        return pd.Series(values, dtype="object")
    return pd.Series([None if value is None else as_utf8(value) for value in values], dtype="str")


def _dtype(values: list[Any]) -> str:
    """What all values that are there have in common."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return "boolean"
    if kinds == {int}:
        return "Int64"
    if kinds and kinds <= {int, float}:
        return "float64"
    return "str" if kinds == {str} else "object"


def _number(value: Any) -> float:
    """The value as a number, NaN when it is none: a result written by a stranger must not stop the report."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return number if math.isfinite(number) and not isinstance(value, bool) else math.nan


def _whole(value: Any) -> int | None:
    number = _number(value)
    return int(value) if number == number and number == int(number) and abs(number) < 2**63 else None


def plain(frame: pd.DataFrame) -> dict[str, list[Any]]:
    """The columns as lists of Python values, with None for whatever is not there."""
    bare = pd.DataFrame(frame)  # without attrs, of which pandas would make a deep copy for every column
    return {
        str(name): [
            None if missing else value
            for value, missing in zip(column.astype(object).tolist(), column.isna().tolist(), strict=True)
        ]
        for name, column in bare.items()
    }
