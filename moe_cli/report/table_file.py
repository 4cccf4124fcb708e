"""Runs of other programs, from a table: a CSV, TSV or JSON Lines file with a row per run.

Columns are found by name, in any case: those of `load_runs` and their headings, the names of papers and other libraries
(`config.foreign_names.OTHER_NAMES`) and `RESULT_NAMES`. Any other column is a setting of the table, `table.NAME`,
unless it is text that follows from the other settings, such as a name of each configuration, or a number that never
occurs twice although seeds do, such as a measurement.
"""

import csv
import io
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moe_cli.config.bounds import MAX_WHOLE
from moe_cli.config.foreign_names import OTHER_NAMES
from moe_cli.errors import ConfigError
from moe_cli.files.reading import MAX_BYTES, Unreadable, number_in, parse_object, read_bytes
from moe_cli.formatting import as_utf8, plural, sanitise
from moe_cli.metrics import METRICS
from moe_cli.report.configuration import JSON_KEYS
from moe_cli.report.run_row import CORPUS, EXECUTION, RESULTS, TOP_LEVEL, RunRow, Value, is_list, is_setting
from moe_cli.runs.folder import COMPLETED, FAILED

ENDINGS = (".csv", ".tsv", ".jsonl")
MAX_TABLE_BYTES = 16 * MAX_BYTES
# Names of results and sizes in papers and the exports of trackers.
RESULT_NAMES = {
    "loss": "val_loss",
    "validation_loss": "val_loss",
    "valid_loss": "val_loss",
    "eval_loss": "val_loss",
    "test_loss": "val_loss",
    "final_loss": "val_loss",
    "bpb": "val_bpb",
    "training_loss": "train_loss",
    "parameters": "params",
    "num_params": "params",
    "total_params": "params",
    "n_params": "params",
    "activated_params": "active_params",
    "active_parameters": "active_params",
    "num_tokens": "tokens",
    "train_tokens": "tokens",
    "training_tokens": "tokens",
    "runtime": "seconds",
    "tokens_per_sec": "tokens_per_second",
    "random_seed": "seed",
    "name": "run",
    "run_name": "run",
    "id": "run",
    "run_id": "run",
    "state": "status",
    "group": "sweep",
}
# States in which a run of another program has ended well.
ENDED_WELL = frozenset(("", "completed", "complete", "finished", "success", "succeeded", "done", "ok"))
_LOSSES = ("val_bpb", "val_loss")
# Columns of whole numbers that are settings, with the least value of each.
_WHOLE = {"expert": 1, "k": 1, "seed": 0}
_OWN = frozenset((*RESULTS, *TOP_LEVEL, *EXECUTION, *CORPUS, "run", "sweep", "status", "reason", "seed", "created"))
_HEADINGS = {metric.label.lower(): metric.key for metric in METRICS if metric.key in RESULTS}
# Columns in which runs of one configuration may differ.
_MEASURED = frozenset((*RESULTS, "run", "path", "status", "reason", "created", "seed")) - {"tokens", "params"}
_PREFIX = "table."
# Columns of our own exports that the report computes again.
_COMPUTED = frozenset((*JSON_KEYS, "path", "paths", "tags", "baseline", "baseline_path")) - _OWN


def is_table_file(name: str) -> bool:
    """Returns whether a name on the command line denotes a table: an existing file with one of `ENDINGS`."""
    path = Path(name).expanduser()
    return path.suffix.lower() in ENDINGS and path.is_file()


def explain_file_name(name: str) -> str:
    """Returns why a name that looks like a file is no table; "" for any other name."""
    path = Path(name).expanduser()
    if path.is_file():
        return f"{sanitise(name)} is not a table: its name must end in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}."
    is_missing = path.suffix.lower() in ENDINGS and not path.exists()
    return f"there is no file {sanitise(name)}." if is_missing else ""


def is_table_row(run: RunRow) -> bool:
    """Returns whether a run comes from a table, so that `moe` cannot make others like it."""
    return os.path.splitext(os.path.dirname(run.path))[1].lower() in ENDINGS


def read_table(name: str) -> list[dict[str, Any]]:
    """Returns the values of each run in a table, for `rows_from_values`, in the order of the file.

    A run without a loss, or in another state than `ENDED_WELL`, has failed. Without a column of experts all runs are
    dense. Without a column of seeds, runs with equal settings are numbered in the order of the file.

    Raises:
        ConfigError: the file cannot be read, has no rows, no loss or no run that ended well, or two of its columns mean
            the same.
    """
    path = Path(name).expanduser().absolute()
    shown = sanitise(name)
    try:
        content = read_bytes(path, MAX_TABLE_BYTES)
        records = _json_lines(content) if path.suffix.lower() == ".jsonl" else _delimited(content)
    except FileNotFoundError:
        raise ConfigError(f"no file {shown}") from None
    except Unreadable as problem:
        raise ConfigError(f"{shown} {problem}") from None
    if any(" " in str(record.get("seeds") or "") for record in records):
        raise ConfigError(
            f"{shown} has means over seeds. Write a row for each run instead: moe report --runs -o {shown}"
        )
    columns = list(dict.fromkeys(column for record in records for column in record))
    meanings = _meanings(shown, columns)
    if not records or not set(_LOSSES) & set(meanings.values()):
        found = f"its columns: {sanitise(', '.join(columns)[:200])}" if records else "it has no rows"
        raise ConfigError(
            f"{shown} has no column with a loss; {found}.\n"
            "Name one loss or val_loss (nats per token), or val_bpb (bits per byte)."
        )
    rows = [{meanings[column]: value for column, value in record.items() if column in meanings} for record in records]
    bare = _no_settings(rows)
    for line, row in enumerate(rows, 1):
        _check_whole_numbers(shown, line, row)
    runs = [
        _run(path, line, {bare.get(name, name): value for name, value in row.items()})
        for line, row in enumerate(rows, 1)
    ]
    if not any(run["status"] == COMPLETED for run in runs):
        first = sanitise(runs[0]["reason"])
        raise ConfigError(
            f"{shown} has {plural(len(runs), 'run')}, and none has ended well; the first: {first}.\n"
            "A run has ended well if its status is completed, finished, success or ok, or left out, and it has a loss."
        )
    _set_sizes(runs)
    return runs if "seed" in meanings.values() else _numbered(runs)


def _delimited(content: bytes) -> list[dict[str, Value]]:
    """Returns the rows of a table with a heading. The delimiter is the comma, semicolon or tab of its first line."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Unreadable("is not UTF-8 text") from None
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    try:
        lines = [line for line in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True) if line]
    except csv.Error as error:
        raise Unreadable(f"is not a whole table: {error}") from None
    if not lines:
        return []
    heading = [column.strip() for column in lines[0]]
    for number, line in enumerate(lines[1:], 2):
        if len(line) != len(heading):
            raise Unreadable(f"has {plural(len(line), 'value')} in row {number}, and {plural(len(heading), 'column')}")
    twice = [column for column, times in Counter(heading).items() if times > 1]
    if twice:
        raise Unreadable(f"has the column '{sanitise(twice[0])}' twice")
    return [dict(zip(heading, map(_value, line), strict=True)) for line in lines[1:]]


def _json_lines(content: bytes) -> list[dict[str, Value]]:
    """Returns the objects of the lines. Values that are lists or objects are left out."""
    records = []
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = parse_object(line)
        except Unreadable as problem:
            raise Unreadable(f"line {number} {problem}") from None
        records.append({key: value for key, value in record.items() if not isinstance(value, list | dict)})
    return records


def _value(text: str) -> Value:
    """Returns a cell as a number, a truth value, text, or None if it is empty or not a number."""
    text = text.strip()
    if text.lower() in ("", "nan", "null", "na", "n/a"):
        return None
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return int(text) if len(text) < 19 else float(text)
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else None


def _meanings(shown: str, columns: Sequence[str]) -> dict[str, str]:
    """Returns the column of a run that each column of the table is. Raises ConfigError if two are the same."""
    meanings: dict[str, str] = {}
    for column in columns:
        meaning = meaning_of(column)
        if meaning.removeprefix(_PREFIX) in _COMPUTED or not column:
            continue
        if meaning in meanings.values():
            other = next(name for name, found in meanings.items() if found == meaning)
            raise ConfigError(
                f"{shown}: the columns '{sanitise(other)}' and '{sanitise(column)}' are both {meaning}. "
                "Rename or remove one."
            )
        meanings[column] = meaning
    return meanings


def meaning_of(column: str) -> str:
    """Returns the column of a run that a column of a table is."""
    lower = column.strip().lower()
    name = lower.replace(" ", "_").replace("-", "_").replace("/", "_")
    if lower in _HEADINGS:
        return _HEADINGS[lower]
    if name in _OWN or ("." in name and name not in RESULT_NAMES):
        return name
    known = RESULT_NAMES.get(name) or OTHER_NAMES.get(name, "")
    return known if known and " " not in known else f"{_PREFIX}{as_utf8(name)}"


def _check_whole_numbers(shown: str, line: int, row: Mapping[str, Value]) -> None:
    """Raises ConfigError for experts, k or a seed that is no whole number, and for more chosen experts than there are.

    Such a value would not be a setting.
    """
    for name, least in _WHOLE.items():
        value = row.get(name)
        number = number_in(value)
        if name == "k" and is_list(value):  # a k for each layer
            continue
        if value is not None and (number is None or number != int(number) or not least <= number <= MAX_WHOLE):
            shown_value = sanitise(str(value))[:40]
            raise ConfigError(f"{shown} row {line}: {name}={shown_value} is not a whole number of at least {least}.")
    expert, k = (number_in(row.get(name)) for name in ("expert", "k"))
    if expert is not None and k is not None and k > expert > 1:
        raise ConfigError(f"{shown} row {line}: k={k:g} is more than expert={expert:g}, the experts that there are.")


def _problem_of_loss(values: Mapping[str, Value]) -> str:
    """Returns why a run has no loss: "" where it has one, which is a finite number of at least 0."""
    losses = {name: values[name] for name in _LOSSES if values.get(name) is not None}
    for name, value in losses.items():
        number = number_in(value)
        if number is None:
            return f"its {name} is not a number: {sanitise(str(value))[:40]}"
        if number < 0:
            return f"its {name} is negative: {number:g}"
    return "" if losses else "it has no loss"


def _run(path: Path, line: int, values: Mapping[str, Value]) -> dict[str, Any]:
    """Returns the values of the run in a line, with what every run has."""
    state = str(values.get("status") or "").lower()
    problem = f"its status is {state}" if state not in ENDED_WELL else _problem_of_loss(values)
    reason = values.get("reason") or problem
    ended_well = not problem
    expert = values.get("expert", 1)
    return {
        **values,
        "run": str(values.get("run") or f"row {line}"),
        "sweep": str(values.get("sweep") or path.stem),
        "path": str(path / str(line)),  # where no folder can be
        "status": COMPLETED if ended_well else FAILED,
        "reason": None if ended_well else str(reason),
        "expert": expert,
        "k": values.get("k", 1 if expert == 1 else None),
        "corpus": values.get("corpus") or path.stem,
        **_sizes(values, dense=expert == 1),
    }


def _sizes(values: Mapping[str, Value], dense: bool) -> dict[str, float | None]:
    """Returns the sizes of a model that follow from others.

    All parameters of a dense model are active, and each active one costs 6 FLOPs per token (arXiv:2001.08361, 2.1).
    """
    params = number_in(values.get("params"))
    active = number_in(values.get("active_params"))
    active = params if active is None and dense else active
    flops = number_in(values.get("flops_per_token"))
    return {
        "params": active if params is None and dense else params,
        "active_params": active,
        "flops_per_token": 6 * active if flops is None and active is not None else flops,
    }


def _no_settings(rows: Sequence[Mapping[str, Value]]) -> dict[str, str]:
    """Returns the columns `table.NAME` that are no settings (see the module), each with its bare name."""
    columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}
    text = {name for name, values in columns.items() if any(isinstance(value, str) for value in values)}
    seeds = columns.get("seed", [])
    repeated = len(set(seeds)) < len(seeds)
    measured = {
        name
        for name, values in columns.items()
        if repeated and name not in text and len(set(values)) == len(values) > 2 and name.startswith(_PREFIX)
    }
    others = [name for name in columns if name not in text | measured | _MEASURED]
    settings = [tuple(values) for values in zip(*(columns[name] for name in others), strict=True)] or [()] * len(rows)
    labels = {
        name
        for name in text
        if name.startswith(_PREFIX) and len(set(settings)) == len(set(zip(settings, columns[name], strict=True))) > 1
    }
    return {name: name.removeprefix(_PREFIX) for name in measured | labels}


def _set_sizes(runs: Sequence[dict[str, Any]]) -> None:
    """Makes a size a setting, `table.SIZE`, if runs of otherwise equal settings differ in it."""
    for size in ("active_params", "tokens", "params"):
        if len({_settings(run) for run in runs}) < len({(_settings(run), run.get(size)) for run in runs}):
            for run in runs:
                run[f"{_PREFIX}{size}"] = run.get(size)


def _settings(run: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple((name, value) for name, value in sorted(run.items()) if is_setting(name) and name != "seed")


def _numbered(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the runs with seeds 0, 1, ... for those of equal settings."""
    seen: Counter[tuple[tuple[str, Any], ...]] = Counter()
    numbered = []
    for run in runs:
        settings = _settings(run)
        numbered.append({**run, "seed": seen[settings]})
        seen[settings] += 1
    return numbered
