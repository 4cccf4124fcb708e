"""Data sets of Hugging Face `datasets`: saved to disk, files, or a name on the hub. Their code is not run."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from moe_cli.config.data import HubConfig, is_local
from moe_cli.data.corpus_files import CorpusFile, CorpusSource
from moe_cli.data.dataset import source
from moe_cli.data.documents import Document, document
from moe_cli.data.file_list import DataFiles, find_files, fingerprints
from moe_cli.errors import DataError

# The reader of the library for each ending of a name.
_READERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv", ".txt": "text", ".arrow": "arrow"}


def list_hub(data: HubConfig, outputs: Path | None = None) -> CorpusSource:
    """Returns the data set as one source of documents, which is read again each time.

    Streamed data are downloaded again.

    Raises:
        DataError: the data set is empty or missing, or the library is not installed.
    """
    path = data.path or ""
    found = find_files(path, outputs=outputs) if is_local(path) else None
    local = [path, data.revision] if found is None else fingerprints(found.paths)
    state = [local, data.subset, data.split, data.max_bytes, data.max_documents]
    _library()
    if found is not None:
        _check_local(data, found)
    return CorpusSource([CorpusFile(Path(path), Path(path).name, partial(_documents, data))], state)


def _check_local(data: HubConfig, found: DataFiles) -> None:
    """Raises DataError for settings that a local folder or file does not have, and for a folder with other files."""
    path = Path(data.path or "")
    is_single_table = path.is_file() or (path / "state.json").is_file()
    saved = is_single_table or (path / "dataset_dict.json").is_file()
    if found.left_out and not saved:
        raise DataError(
            f"{source(data)} holds files that are not data, and the library datasets would read them.\n"
            f"{found.notes[0]}. "
            "Give a folder of its own, or use data=text."
        )
    settings = {
        "revision": data.revision,
        "subset": data.subset if saved else None,
        "split": data.split if is_single_table and data.split != "train" else None,
    }
    for name, value in settings.items():
        if value is not None:
            raise DataError(f"data.{name}={value} has no effect: {source(data)} has no {name}s. Leave it out.")


def _documents(data: HubConfig) -> Iterator[Document]:
    """Yields the documents in the order of the data set, up to data.max_documents and data.max_bytes."""
    num_bytes = 0
    for number, text in enumerate(_texts(data)):
        num_bytes += len(text.encode(errors="surrogatepass"))
        if number == data.max_documents or (num_bytes > (data.max_bytes or num_bytes) and number):
            return
        yield document(text)


def _texts(data: HubConfig) -> Iterator[str]:
    try:
        rows = _open_split(data)
        columns = rows.column_names
        if columns is None:  # of streamed data: known after the first row
            columns = list(next(iter(rows), {}))
        if data.field not in columns:
            known = ", ".join(map(repr, columns))[:200]
            raise DataError(f"{source(data)} has no column {data.field!r}: it has {known}. Choose one: data.field=NAME")
        for row in rows.select_columns([data.field]):
            text = row[data.field]
            if text is not None and not isinstance(text, str):
                raise DataError(
                    f"{source(data)}: column {data.field!r} is {type(text).__name__}, not text. "
                    "Choose another: data.field=NAME"
                )
            yield text or ""
    except DataError:
        raise
    except Exception as error:  # files, the network and the library all raise their own errors
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(f"{source(data)} cannot be read: {lines[0][:300]}") from None


def _open_split(data: HubConfig) -> Any:
    """Returns the rows of one split."""
    datasets = _library()
    path = data.path or ""
    if is_local(path) and any((Path(path) / name).is_file() for name in ("state.json", "dataset_dict.json")):
        rows = datasets.load_from_disk(path)
        if isinstance(rows, dict):
            if data.split not in rows:
                raise DataError(
                    f"{source(data)} has no split {data.split!r}: it has {', '.join(rows)}. Add: data.split=NAME"
                )
            rows = rows[data.split]
        return rows.to_iterable_dataset() if data.streaming else rows
    kind, files = _reader(data)
    return datasets.load_dataset(
        kind, data.subset, split=data.split, streaming=data.streaming, revision=data.revision, **files
    )


def _reader(data: HubConfig) -> tuple[str, dict[str, Any]]:
    """Returns what to load: a name on the hub or a folder, or the reader of a single file with that file."""
    path = data.path or ""
    if not is_local(path) or Path(path).is_dir():
        return path, {}
    kind = _READERS.get(Path(path).suffix.lower())
    if kind is None:
        raise DataError(
            f"{source(data)} is not a data set: its name ends in none of {', '.join(_READERS)}. Try data=text"
        )
    return kind, {"data_files": {data.split: path}}


def _library() -> Any:
    try:
        import datasets
    except ImportError:
        raise DataError(
            "data=hf needs the library datasets, which is not installed. pip install 'moe-cli[hf]'"
        ) from None
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    return datasets
