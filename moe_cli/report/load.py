"""Run folders -> a pandas frame with one row per run."""

import gc
import math
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from moe_cli.config.build import did_you_mean
from moe_cli.errors import RunNotFound
from moe_cli.files.checksums import read_sealed
from moe_cli.formatting import as_utf8, is_utf8
from moe_cli.metrics import BY_KEY, LOSS, ROUTING, SIZE, SPEED, TEXT_REFERENCE, keys_of
from moe_cli.report.run_cache import (
    FEWEST,
    FILES,
    PER_FILE,
    Column,
    Index,
    encode,
    join,
    read_index,
    settled,
    stamps_of,
    write_index,
)
from moe_cli.runs.folder import FAILED, INTERRUPTED, RUNNING, Run, is_run, open_runs, read_json, run_folders, spellings
from moe_cli.runs.status import find_folder
from moe_cli.runs.tags import tags_in

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
    runs = run_folders(folder)
    nested = any(run.path.parent != folder for run in runs) and not is_run(folder)
    return runs_frame(runs, folder if nested else folder.parent, keep=nested)


def load_selection(outputs: Path, names: Collection[str] = ()) -> pd.DataFrame:
    """The runs a user means by names of sweeps, run ids, their beginnings or patterns, `latest`, or folders.

    Raises:
        RunNotFound: a name that means no run, or no runs at all.
    """
    found = run_folders(outputs) if outputs.is_dir() else []
    if "latest" in names:
        found = open_runs(outputs)
    chosen = [run for name in names for run in _named(name, found, outputs)] if names else found
    if not chosen:
        raise RunNotFound(f"no runs in {outputs}. Make one: moe train")
    if names:
        chosen = list({run.path.resolve(): run for run in chosen}.values())
    return runs_frame(chosen, outputs, keep=not names)


def _named(name: str, runs: list[Run], outputs: Path) -> list[Run]:
    found = [run for run in runs if run.group in spellings(name)] or [run for run in runs if run.id == name]
    if name == "latest":
        found = found or runs[-1:]
    for fits in (str.startswith, fnmatchcase):
        found = found or [run for run in runs
                          if any(fits(each, text) for each in (run.id, f"{run.group}/{run.id}") for text in spellings(name))]  # fmt: skip
    if not found and (folder := find_folder(outputs, name)):
        found = open_runs(folder)
    if found:
        return found
    if not runs:
        raise RunNotFound(f"no runs in {outputs}. Make one: moe train")
    hint = did_you_mean(name, [*dict.fromkeys(run.group for run in runs), *(run.id for run in runs)])
    raise RunNotFound(f"no sweep, run or folder '{name}' in {outputs}.{hint} Without a name: all runs.")


def runs_frame(runs: Sequence[Run], outputs: Path | None = None, keep: bool = False) -> pd.DataFrame:
    """One row per run, oldest first; see `load_runs`.

    Args:
        outputs: what is known of them from the index of this folder is not read again; None: everything is read.
        keep: the runs are all there are in this folder, and what was read goes into its index.
    """
    collecting = gc.isenabled()
    gc.disable()  # of millions of small objects that all stay: a third of the time
    try:
        columns = _columns(runs, outputs, keep)
        order = _oldest_first(columns, runs)
        return _frame(columns, [runs[place] for place in order], np.array(order, dtype=np.int64))
    finally:
        if collecting:
            gc.enable()


def _columns(runs: Sequence[Run], outputs: Path | None, keep: bool) -> dict[str, Column]:
    """What the folders say, run after run, from the index where it still holds."""
    index = read_index(outputs) if outputs is not None else None
    if index is None and not (outputs is not None and keep and len(runs) >= FEWEST):
        return encode([_read(run)[0] for run in runs])
    stamps = stamps_of(runs)  # before reading: what changes meanwhile is read again the next time
    keys = [f"{run.group}/{run.id}" if run.path.parent.parent == outputs else str(run.path) for run in runs]
    known = {key: place for place, key in enumerate(index.keys)} if index else {}
    places = np.array([known.get(key, -1) for key in keys], dtype=np.int64)
    held = places >= 0
    if index:
        held[held] = (index.stamps[places[held]] == stamps[held]).all(axis=1)
    missing: list[int] = np.flatnonzero(~held).tolist()
    read = [_read(runs[place]) for place in missing]
    fresh = [row for row, _ in read]
    old = {name: column.take(places[held]) for name, column in index.columns.items()} if index else {}
    joined = join(old, encode(fresh), (int(held.sum()), len(fresh)))
    back = np.empty(len(runs), dtype=np.int64)
    back[[*np.flatnonzero(held).tolist(), *missing]] = np.arange(len(runs))
    columns = {name: Column(column.values, column.codes[back]) for name, column in joined.items()}
    if keep and outputs is not None:
        lasting = held.copy()
        # What is there and could not be read may be read the next time.
        there = stamps.reshape(len(runs), len(FILES), PER_FILE)[missing, :, 0] != -1
        whole = [not any(here and not known for here, known in zip(seen, known_files, strict=True))
                 for seen, (_, known_files) in zip(there, read, strict=True)]  # fmt: skip
        lasting[missing] = [good and not _at_work(row) for good, row in zip(whole, fresh, strict=True)]
        lasting &= settled(stamps)
        if (lasting & ~held).sum() >= FEWEST:
            chosen = np.flatnonzero(lasting)
            kept = {name: column.take(chosen) for name, column in columns.items()}
            write_index(outputs, Index([keys[place] for place in chosen], stamps[chosen], kept))
    return columns


def _at_work(row: Mapping[str, Any]) -> bool:
    """Whether the status may change without a file doing so: a run that says it is running is asked, every time."""
    return row["status"] in (RUNNING, INTERRUPTED)


def _oldest_first(columns: Mapping[str, Column], runs: Sequence[Run]) -> list[int]:
    column = columns.get("created", Column([], np.full(len(runs), -1)))
    times = [float(value) if isinstance(value, int | float) else 0.0 for value in column.values] + [0.0]
    created = [times[code] for code in column.codes]
    return sorted(range(len(runs)), key=lambda place: (created[place], runs[place].id))


def _frame(columns: dict[str, Column], runs: Sequence[Run], order: "np.ndarray") -> pd.DataFrame:
    there = [name for name, column in columns.items() if (column.codes >= 0).any()]
    names = dict.fromkeys([*IDENTITY, *SETTINGS, *UNITS, *CORPUS, *there])
    where = {
        "run": [run.id for run in runs],
        "group": [run.group for run in runs],
        "path": [str(run.path) for run in runs],
    }
    nothing = Column([], np.full(len(runs), -1, dtype=np.int32))
    made = {}
    # Settings stand last, so that what was measured is seen first.
    for name in sorted(names, key=lambda name: name in ("drop", "match") or "." in name):
        if name in where:
            made[name] = text_series(name, where[name])
            continue
        column = columns.get(name, nothing)
        # The last value is that of runs without such an entry, whose place is -1.
        made[as_utf8(name)] = _series(name, [*column.values, None]).take(column.codes[order]).reset_index(drop=True)
    if "tags" in made:  # a list of its own for every row
        made["tags"] = pd.Series([list(tags) if tags else [] for tags in made["tags"]], dtype="object")
    frame = pd.DataFrame(made)
    frame.attrs["units"] = {**UNITS, "created": "seconds since 1970"}
    return frame


def _read(run: Run) -> tuple[dict[str, Any], tuple[bool, ...]]:
    """What a folder says, but for where it lies; and which of FILES were read whole."""
    folder = str(run.path)  # of ten thousand runs, path objects would take a tenth of the time
    files = [(read_sealed if name == "summary.json" else read_json)(f"{folder}/{name}") for name in FILES]
    config, results, said, tags = files
    status = run.really(said or {}, results is not None)
    state, reason = str(status.get("status")), status.get("reason")
    try:
        settings = flatten(config or {})
    except RecursionError:
        config, settings = None, {}
    if not config:
        state, reason, results = FAILED, "config.json cannot be read", {}
    if "data.val_fraction" in settings:  # of runs from before there was one
        settings.setdefault("data.test_fraction", 0.0)
    if settings.get("expert") == 1:
        settings["capacity"] = settings["router"] = settings["balance"] = None
    measured = {key: value for key, value in (results or {}).items() if _is_scalar(value)}
    identity = {"status": state, "reason": reason if _is_scalar(reason) else str(reason)}
    identity.update(created=_number(status.get("created")), tags=list(tags_in(tags)))
    fits = not config or run.fits(config)
    return {**settings, **measured, **identity}, tuple(content is not None and fits for content in files)


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
