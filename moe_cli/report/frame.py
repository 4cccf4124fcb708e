"""Rows of the report to and from pandas frames: for Python users only, the report itself uses no frame."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from moe_cli.formatting import as_utf8, is_utf8
from moe_cli.report.load import DTYPES, UNITS, WHOLE_OR_LIST, rows_from_values
from moe_cli.report.run_row import RunRow, column_names

# Columns that lead to folders.
PATHS = ("path", "baseline_path")


def to_frame(rows: Sequence[RunRow]) -> pd.DataFrame:
    """Returns one row per run; see `load_runs`."""
    made = {name: _series(name, [row.get(name) for row in rows]) for name in column_names(rows)}
    frame = pd.DataFrame(made)
    frame.attrs["units"] = {**UNITS, "created": "seconds since 1970"}
    return frame


def from_frame(frame: pd.DataFrame) -> list[RunRow]:
    """Returns the runs of a frame of `load_runs`, or of a part of it."""
    columns = python_lists(frame)
    return rows_from_values([dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)])


def python_lists(frame: pd.DataFrame) -> dict[str, list[Any]]:
    """Returns the columns as lists of Python values, with None for missing values."""
    bare = pd.DataFrame(frame)  # without attrs: pandas would copy them deeply for every column
    return {
        str(name): [
            None if missing else value
            for value, missing in zip(column.astype(object).tolist(), column.isna().tolist(), strict=True)
        ]
        for name, column in bare.items()
    }


def _series(name: str, values: list[Any]) -> "pd.Series[Any]":
    dtype = DTYPES.get(name) or _dtype(values)
    if dtype == WHOLE_OR_LIST:
        dtype = "object" if any(isinstance(value, str) for value in values) else "Int64"
    return text_series(name, values) if dtype == "str" else pd.Series(values, dtype=dtype)


def _dtype(values: Sequence[Any]) -> str:
    """Returns the narrowest type of all values."""
    kinds = {type(value) for value in values if value is not None}
    names = {bool: "boolean", int: "Int64", float: "float64", str: "str"}
    return names.get(kinds.pop(), "object") if len(kinds) == 1 else "object"


def text_series(name: str, values: Sequence[str | None]) -> "pd.Series[Any]":
    """Returns a column of text, which pandas keeps as UTF-8.

    Paths that are not UTF-8 stay Python's, so that they lead to files.
    """
    if all(value is None or is_utf8(value) for value in set(values)):
        return pd.Series(values, dtype="str")
    if name in PATHS:
        return pd.Series(values, dtype="object")
    return pd.Series([None if value is None else as_utf8(value) for value in values], dtype="str")


def frame_of(columns: Mapping[str, list[Any]], dtypes: Mapping[str, str], units: Mapping[str, str]) -> pd.DataFrame:
    """Returns a frame of columns with these types and units."""
    frame = pd.DataFrame(
        {
            name: text_series(name, values) if dtypes[name] == "str" else pd.Series(values, dtype=dtypes[name])
            for name, values in columns.items()
        }
    )
    frame.attrs["units"] = dict(units)
    return frame
