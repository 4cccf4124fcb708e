"""Run folders -> rows of the report: one `RunRow` per run."""

import gc
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_cli.config.build import SCALARS, flatten_dict
from moe_cli.config.identity import digest_of_text, identity_text
from moe_cli.config.ranges import format_setting
from moe_cli.errors import RunNotFound
from moe_cli.files.checksums import read_sealed
from moe_cli.files.reading import number_in, parse_object, read_json, read_parsed
from moe_cli.formatting import as_utf8, is_utf8
from moe_cli.metrics import BY_KEY
from moe_cli.report.run_row import (
    EXECUTION,
    IDENTITY,
    RESULTS,
    SETTINGS,
    Results,
    RunRow,
    Value,
    is_list,
    is_setting,
)
from moe_cli.report.tuning_record import is_trial_folder
from moe_cli.runs.folder import FAILED, Run
from moe_cli.runs.lookup import find_runs, list_runs
from moe_cli.runs.tags import parse_tags

if TYPE_CHECKING:
    import pandas as pd

UNITS = {key: BY_KEY[key].unit for key in RESULTS}
# The type of a column of whole numbers that may also have the text of a list of them: k for each layer, [1,2].
WHOLE_OR_LIST = "Int64 or list"
# The types of columns, whatever files hold; of all others it follows from the values.
DTYPES = {
    **dict.fromkeys(
        ("run", "sweep", "status", "reason", "path", "router", "balance", "corpus", "corpus_sha256"), "str"
    ),
    **dict.fromkeys(("expert", "seed"), "Int64"),
    "k": WHOLE_OR_LIST,
    **{key: "Int64" if BY_KEY[key].whole else "float64" for key in RESULTS},
    **dict.fromkeys(("capacity", "created"), "float64"),
    "tags": "object",
}


# Entries of summary.json that repeat the configuration or the identity of the run.
_IN_CONFIG = frozenset((*IDENTITY, *SETTINGS))


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
    """Returns the runs a user means by names of sweeps, runs or folders, patterns, `latest`, or files of tables.

    Without names, all runs but the trials of tuned sweeps, whose losses were used to choose.

    Raises:
        RunNotFound: a name that means no run, or no runs at all.
        ConfigError: a table cannot be read (`table_file.read_table`).
    """
    from moe_cli.report.table_file import is_table_file, read_table

    tables = [name for name in names if is_table_file(name)]
    names = [name for name in names if name not in tables]
    rows = [row for name in tables for row in rows_from_values(read_table(name))]
    if tables and not names:
        return rows
    every = list_runs(outputs)
    if not names:
        return rows + read_rows(_without_trials(_find_runs(outputs, None, every)))
    if len(names) < 2:
        return rows + read_rows(_find_runs(outputs, next(iter(names), None), every))
    selected = [run for name in names for run in _find_runs(outputs, name, every)]
    return rows + read_rows(list({os.path.realpath(run.path): run for run in selected}.values()))


def _without_trials(runs: Sequence[Run]) -> list[Run]:
    """Returns the runs without those of trial folders; all of them if there are no others."""
    trials = {folder for folder in {run.path.parent for run in runs} if is_trial_folder(folder)}
    return [run for run in runs if run.path.parent not in trials] or list(runs)


def _find_runs(outputs: Path, name: str | None, every: Sequence[Run]) -> list[Run]:
    """Returns the runs of a name, as `find_runs`. Raises RunNotFound with a hint where the name is that of a file."""
    from moe_cli.report.table_file import explain_file_name

    try:
        return find_runs(outputs, name, every)
    except RunNotFound:
        if name and (problem := explain_file_name(name)):
            raise RunNotFound(problem) from None
        raise


def title_of(runs: Sequence[RunRow], names: Collection[str]) -> str:
    """Returns the title of a report on these runs: the names given, or the only sweep."""
    groups = list(dict.fromkeys(run.sweep for run in runs))
    return " ".join(names) or (groups[0] if len(groups) == 1 else "all runs")


def read_rows(runs: Sequence[Run]) -> list[RunRow]:
    """Returns one row per run, oldest first."""
    with without_garbage_collection():
        configs = _Configs()
        rows = _rows([_read(run, configs) for run in runs])
        return sorted(rows, key=lambda row: (row.created or 0.0, row.run))


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Millions of small objects are made that all stay: collecting garbage would take a third of the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


@dataclass
class _Parts:
    """The files of a run, before the types of columns are known.

    Attributes:
        identity: run, sweep, path, status, reason, created and tags.
        config: the values of config.json without the seed. Runs that differ in the seed alone may share it.
        results: the values of summary.json that are fields of `Results`.
        others: its other values.
    """

    identity: tuple[Any, ...]
    config: dict[str, Value]
    seed: Value
    results: dict[str, Value]
    others: dict[str, Value]


@dataclass(frozen=True)
class _Config:
    """A config.json, of any seed.

    `text` has the text before and after the seed from which the digest is computed; None if it has no digest.
    """

    content: dict[str, Any]
    values: dict[str, Value]
    text: tuple[str, str] | None

    def digest(self, seed: Value) -> str | None:
        return None if self.text is None else digest_of_text(f"{self.text[0]}{seed}{self.text[1]}")


class _Configs:
    """Reads config.json files. Files that differ in the seed alone are parsed once, because most runs are such."""

    def __init__(self) -> None:
        self._known: dict[tuple[bytes, bytes], _Config] = {}

    def read(self, run: Run) -> tuple[_Config | None, Value]:
        """Returns the configuration of a run, and its seed; None if config.json cannot be read.

        A configuration that does not fit the id of the run is noted.
        """
        found = read_parsed(f"{run.path}/config.json", self._parse)
        if not found or not found[0].content:
            return None, None
        config, seed = found
        if run.digest_in_id not in (None, config.digest(seed)):
            run.fits({**config.content, "seed": seed})
        return config, seed if type(seed) in SCALARS else str(seed)

    def _parse(self, file: bytes) -> tuple[_Config, Value]:
        parts = _around_seed(file)
        if parts and (known := self._known.get((parts[0], parts[2]))):
            return known, int(parts[1])
        content = parse_object(file)
        config, seed = _config(content), content.get("seed")
        if parts and seed == int(parts[1]):
            self._known[parts[0], parts[2]] = config
        return config, seed


def _around_seed(content: bytes) -> tuple[bytes, bytes, bytes] | None:
    """Returns the content of a config.json before its seed, the digits of the seed, and the rest.

    None means that the seed stands in another form, or possibly twice.
    """
    before, found, rest = content.partition(b'\n "seed": ')
    digits, comma, after = rest.partition(b",\n")
    simple = found and comma and digits.isdigit() and len(digits) < 19 and (digits == b"0" or digits[:1] != b"0")
    if not simple or b"\\" in content or content.count(b'"seed"') != 1:
        return None
    return before, digits, after


def _config(content: dict[str, Any]) -> _Config:
    values = flat_settings(content)
    values.pop("seed", None)
    if values.get("expert") == 1:
        values["capacity"] = values["router"] = values["balance"] = None
    text = identity_text(content)
    parts = text.split(f'"seed": {content.get("seed")}') if text else []
    return _Config(content, values, (f'{parts[0]}"seed": ', parts[1]) if len(parts) == 2 else None)


def _read(run: Run, configs: _Configs) -> _Parts:
    """Returns the content of the files of a run."""
    folder = str(run.path)  # path objects would take a tenth of the time
    config, seed = configs.read(run)
    results = read_sealed(f"{folder}/summary.json")
    status = run.effective_status(read_json(f"{folder}/status.json") or {}, results is not None)
    tags = parse_tags(read_json(f"{folder}/tags.json"))
    return _parts(run, config.values if config else None, seed, results or {}, status, tags)


def make_row(run: Run, config: Mapping[str, Any], results: Mapping[str, Any], status: Mapping[str, Any]) -> RunRow:
    """Returns the row of one run from the content of its files."""
    read = _config(dict(config)) if config else None
    return _rows([_parts(run, read.values if read else None, config.get("seed"), results, status, ())])[0]


def _parts(
    run: Run,
    config: dict[str, Value] | None,
    seed: Value,
    results: Mapping[str, Any],
    status: Mapping[str, Any],
    tags: tuple[str, ...],
) -> _Parts:
    state, reason = status.get("status"), status.get("reason")
    if config is None:
        state, reason, results = FAILED, "config.json cannot be read", {}
    identity = (
        run.id,
        run.sweep,
        str(run.path),
        _whole_text(str(state)),
        None if reason is None else _whole_text(str(reason)),
        number_in(status.get("created")),
        tags,
    )
    if not SCALARS.issuperset(map(type, results.values())):
        results = {key: value for key, value in results.items() if type(value) in SCALARS}
    measured, others = _result_names(tuple(results))
    return _Parts(
        identity,
        config or {},
        seed,
        {name: results[name] for name in measured},
        {name: results[name] for name in others},
    )


@lru_cache(maxsize=64)
def _result_names(keys: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the keys of summary.json that are results, and its other keys without those of `_IN_CONFIG`."""
    return (
        tuple(key for key in keys if key in RESULTS),
        tuple(key for key in keys if key not in RESULTS and key not in _IN_CONFIG),
    )


def flat_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a config.json by dotted names; `router` and `balance` are the names of the choices."""
    flat = flatten_dict(config)
    if not SCALARS.issuperset(map(type, flat.values())):
        flat = {name: value if type(value) in SCALARS else format_setting(value) for name, value in flat.items()}
    for group in ("router", "balance"):
        flat[group] = flat.pop(f"{group}.name", None)
    return flat


def rows_from_values(read: Sequence[dict[str, Any]]) -> list[RunRow]:
    """Returns the rows of runs from their columns, as a frame has them."""
    parts = []
    for values in read:
        run, sweep, path, status, reason, created, tags = (values.get(entry.name) for entry in fields(RunRow)[:7])
        identity = (run, sweep, path, status, reason, created, tuple(tags or ()))
        others = {name: value for name, value in values.items() if name not in IDENTITY and name != "seed"}
        config = {name: value for name, value in others.items() if name not in RESULTS}
        results = {name: value for name, value in others.items() if name in RESULTS}
        parts.append(_Parts(identity, config, values.get("seed"), results, {}))
    return _rows(parts)


def _rows(read: Sequence[_Parts]) -> list[RunRow]:
    """Returns the rows of runs, each column with values of one type wherever they have one in common."""
    configs = list({id(parts.config): parts.config for parts in read}.values())
    split = {id(config): _split(values) for config, values in zip(configs, _typed(configs), strict=True)}
    rows = []
    typed = zip(_typed([parts.results for parts in read]), _typed([parts.others for parts in read]), strict=True)
    for parts, (measured, rest) in zip(read, typed, strict=True):
        settings, execution, own = split[id(parts.config)]
        run, sweep, folder, status, reason, created, tags = parts.identity
        settings = {**settings, "seed": _whole(parts.seed)} if settings else {}
        found, others = Results.from_dict(measured), {**own, **rest}
        rows.append(RunRow(run, sweep, folder, status, reason, created, tags, settings, execution, found, others))
    return rows


def _split(config: dict[str, Value]) -> tuple[dict[str, Value], dict[str, Value], dict[str, Value]]:
    """Returns the settings, the execution settings and the other entries of a configuration."""
    settings = {name: value for name, value in config.items() if is_setting(name)}
    execution = {name: value for name, value in config.items() if name in EXECUTION}
    others = {name: value for name, value in config.items() if name not in settings and name not in execution}
    return settings, execution, others


def _typed(records: Sequence[dict[str, Value]]) -> list[dict[str, Any]]:
    """Returns the records with the values of each column in the type of that column."""
    # Most records have the same names, so work that depends on names alone is done once per set of names.
    groups: dict[tuple[str, ...], list[int]] = {}
    for place, values in enumerate(records):
        groups.setdefault(tuple(values), []).append(place)
    groups.pop((), None)
    columns: dict[str, list[list[Any]]] = {}
    for names, places in groups.items():
        values_of = zip(*(records[place].values() for place in places), strict=True)
        for name, column in zip(names, values_of, strict=True):
            columns.setdefault(name, []).append(list(column))
    for name, parts in columns.items():
        _unify(DTYPES.get(name), parts)
    parts_of = {name: iter(parts) for name, parts in columns.items()}
    result: list[dict[str, Any]] = [{} for _ in records]
    for names, places in groups.items():
        written = [as_utf8(name) for name in names]
        for place, row in zip(places, zip(*(next(parts_of[name]) for name in names), strict=True), strict=True):
            result[place] = dict(zip(written, row, strict=True))
    return result


def _unify(dtype: str | None, parts: Sequence[list[Any]]) -> None:
    """Converts the values of one column, in place, to the type of the column. Values of other types become None."""
    kinds = {kind for part in parts for kind in set(map(type, part))} - {type(None)}
    dtype = dtype or _common_type(kinds)
    for part in parts:
        if dtype == "float64" and kinds - {float}:
            part[:] = map(number_in, part)
        elif dtype == "Int64" and (kinds - {int} or max(map(abs, filter(None, part)), default=0) >= 2**63):
            part[:] = map(_whole, part)
        elif dtype == WHOLE_OR_LIST and kinds - {int}:
            part[:] = [value if is_list(value) else _whole(value) for value in part]
        elif dtype == "str" and (kinds - {str} or not "".join(filter(None, part)).isascii()):
            part[:] = [None if value is None else _whole_text(str(value)) for value in part]


def _common_type(kinds: set[type]) -> str:
    """Returns the type of a column with values of these types; empty if they have none in common."""
    if not kinds:
        return ""
    return "Int64" if kinds == {int} else "float64" if kinds <= {int, float} else "str" if kinds == {str} else ""


def _whole_text(text: str) -> str:
    """Returns the text with halves of characters, which JSON may hold, as '?'."""
    return text if is_utf8(text) else text.encode("utf-8", "replace").decode()


def _whole(value: Any) -> int | None:
    number = number_in(value)
    return int(value) if number is not None and number == int(number) and abs(number) < 2**63 else None
