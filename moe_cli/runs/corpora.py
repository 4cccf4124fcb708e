"""Records the data of a sweep, and checks that all its runs learn from the same data."""

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from moe_cli.config.data import CorpusConfig, DataConfig
from moe_cli.errors import DataError
from moe_cli.files.reading import Unreadable, parse_object, read_bytes
from moe_cli.files.writing import hold_where_supported, write_json
from moe_cli.runs.folder import Run

# The file in a sweep's folder with the hash of each data set, by the settings that choose it.
CORPORA_FILE = "corpora.json"
# Settings that change the tokens and splits of a text, but not its hash.
_ENCODING_SETTINGS = ("tokenizer", "bpe_vocab", "packing", "val_fraction", "test_fraction")


def record_corpora(folder: Path, found: Iterable[tuple[DataConfig, Mapping[str, Any]]], replace: bool = False) -> None:
    """Records the data of a sweep's runs.

    The first command of the sweep fixes the data, and every run is checked against it.

    Args:
        found: the data of configurations, with their metadata.
        replace: discard the earlier record.

    Raises:
        DataError: data have changed since the sweep began.
    """
    path, current = folder / CORPORA_FILE, {_key(data): meta for data, meta in found}
    known = {} if replace else _recorded(path)
    if current.keys() <= known.keys():
        return _check(folder, current, known)
    with hold_where_supported(folder / f".{CORPORA_FILE}.lock"):
        known = {} if replace else _recorded(path)
        _check(folder, current, known)
        write_json(path, {**{key: meta["sha256"] for key, meta in current.items()}, **known})
    return None


def check_corpus(run: Run, data: DataConfig, meta: Mapping[str, Any]) -> None:
    """Raises DataError if the sweep of a run started with other data."""
    if os.path.lexists(run.path.parent / CORPORA_FILE):
        record_corpora(run.path.parent, [(data, meta)])


def _recorded(path: Path) -> dict[str, Any]:
    """Returns the record; empty if there is none. Raises DataError if it cannot be read, so that it is kept."""
    try:
        return parse_object(read_bytes(path))
    except FileNotFoundError:
        return {}
    except Unreadable as problem:
        raise DataError(
            f"{path} {problem}, so that the data of the sweep cannot be checked.\n"
            "If the data have not changed, delete the file; else start another sweep: --name NAME"
        ) from None


def _check(folder: Path, current: Mapping[str, Mapping[str, Any]], known: Mapping[str, Any]) -> None:
    for key, meta in current.items():
        if known.get(key, meta["sha256"]) != meta["sha256"]:
            raise DataError(
                f"{meta['source']} has changed since the sweep '{folder.name}' started, and its runs need the same "
                "data.\n"
                "Restore the data, run every point again with --force, or start another sweep: --name NAME"
            )


def _key(data: DataConfig) -> str:
    """Returns the settings that choose the data, as text."""
    values = dataclasses.asdict(data)
    if isinstance(data, CorpusConfig):
        values = {key: value for key, value in values.items() if key not in _ENCODING_SETTINGS}
    return json.dumps(values, sort_keys=True)
