"""A view as a Parquet file: every column of the frame to full precision. Asks for pyarrow when it is used."""

import io

import pandas as pd

from moe_cli.errors import ConfigError
from moe_cli.report.load import plain
from moe_cli.report.view import View


def parquet_bytes(view: View) -> bytes:
    """The frame, or the columns asked for. Raises ConfigError when pyarrow is not installed."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ConfigError("Parquet needs pyarrow, which is not installed: pip install 'moe-cli[parquet]'") from None
    frame = view.frame[list(view.names)] if view.names else view.frame
    columns = {name: _column(frame[name], values) for name, values in plain(frame).items()}
    table = pa.table({name: pa.array(values) for name, values in columns.items()})
    units = {name: str(unit) for name, unit in frame.attrs.get("units", {}).items() if name in columns}
    table = table.replace_schema_metadata({f"unit.{name}": unit for name, unit in units.items()})
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


def _column(series: "pd.Series", values: list[object]) -> list[object]:
    """The values, as text where they are not all of one kind: a column of a file has one type."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} and len(kinds) == 2:
        return [None if value is None else float(value) for value in values]  # type: ignore[arg-type]
    if kinds == {int} and any(abs(value) >= 2**63 for value in values if isinstance(value, int)):
        return [None if value is None else float(value) for value in values]  # type: ignore[arg-type]
    if len(kinds) > 1:
        return [None if value is None else str(value) for value in values]
    if kinds == {list}:
        return [
            [str(item) for item in value] if series.name != "seeds" else value
            for value in values
            if isinstance(value, list)
        ]
    return values
