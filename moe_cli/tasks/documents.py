"""A file -> the documents in it, a piece at a time: plain text, JSON lines, Parquet, compressed or not."""

import bz2
import codecs
import gzip
import io
import json
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from moe_cli.errors import DataError
from moe_cli.tasks.subwords import SEPARATOR

CHUNK_BYTES = 2**20
DEFAULT_FIELD = "text"
RECORDS = (".jsonl", ".ndjson", ".parquet")
# One document: its text in pieces, to be taken before the next document is; None: a record without text.
Document = Iterator[str] | None


class NotText(Exception):
    """A file is empty or not UTF-8: what is wrong with it, after its name."""


def has_records(path: Path) -> bool:
    """Whether the file is a table of documents, in which one field is the text."""
    return _kind(path) in RECORDS


def read_documents(path: Path, field: str | None) -> Iterator[Document]:
    """The documents of a file: its text, or the `field` of each record.

    Raises:
        NotText: the file is empty or not UTF-8; found while its pieces are taken.
        DataError: it cannot be read, is damaged, or a record has no such field.
    """
    kind = _kind(path)
    if kind == ".parquet":
        yield from map(document, _parquet(path, field or DEFAULT_FIELD))
    elif has_records(path):
        yield from map(document, _json_lines(path, field or DEFAULT_FIELD))
    else:
        yield _plain(path)


def _kind(path: Path) -> str:
    """The last part of the name, that of the compression left out."""
    return (path.with_suffix("") if path.suffix.lower() in _OPENERS else path).suffix.lower()


def document(value: str) -> Document:
    """One that is a text in memory; None where nothing can be learned from it: blank, a separator within, or halves of characters."""
    unfit = not value.strip() or SEPARATOR in value or any("\ud800" <= character <= "\udfff" for character in value)
    return None if unfit else iter((value,))


def _plain(path: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    position, blank = 0, True
    with _opened(path) as file:
        while chunk := file.read(CHUNK_BYTES):
            if position == 0 and chunk.startswith(codecs.BOM_UTF8):
                position, chunk = len(codecs.BOM_UTF8), chunk[len(codecs.BOM_UTF8) :]
            blank = blank and not chunk.strip()
            if 0 in chunk:
                raise NotText(f"is not text: byte {position + chunk.index(0)} is zero. Give UTF-8 text.")
            yield _decoded(decoder, chunk, position)
            position += len(chunk)
        _decoded(decoder, b"", position)
    if blank:
        raise NotText("is empty. Give a file or folder of text.")


def _decoded(decoder: codecs.IncrementalDecoder, chunk: bytes, position: int) -> str:
    """The next piece; b"" ends the text. `position` is that of the chunk in the file."""
    begin = position - len(decoder.getstate()[0])
    try:
        return decoder.decode(chunk, final=not chunk)
    except UnicodeDecodeError as error:
        wrong = error.object[error.start]
        raise NotText(
            f"is not UTF-8 text: byte {begin + error.start} is 0x{wrong:02x}. Convert it, for example with iconv."
        ) from None


def _json_lines(path: Path, field: str) -> Iterator[str]:
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if not line.strip():
                continue
            where, line = f"{path}, line {number}", line.rstrip(b"\r\n")
            try:
                record = json.loads(line.decode())
            except UnicodeDecodeError as error:
                wrong = f"byte {error.start} of the line is 0x{line[error.start]:02x}"
                raise DataError(f"{where} is not UTF-8 text: {wrong}.") from None
            except (ValueError, RecursionError) as error:  # of numbers too long a ValueError
                at = f": {error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
                raise DataError(f"{where} is not JSON{at}. Each line is one record.") from None
            yield _field(record, field, where)


def _field(record: Any, field: str, where: str) -> str:
    if not isinstance(record, dict) or field not in record:
        there = f"it has {', '.join(map(repr, record))}" if isinstance(record, dict) else "it is no record"
        raise DataError(f"{where} has no field {field!r}: {there[:200]}. Choose one: data.field=NAME")
    value = record[field]
    if value is not None and not isinstance(value, str):
        raise DataError(
            f"{where}: field {field!r} is {type(value).__name__}, not text. Choose another: data.field=NAME"
        )
    return value or ""


def _parquet(path: Path, field: str) -> Iterator[str]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"{path}: Parquet is read with pyarrow, which is not installed. pip install pyarrow") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names, kinds = file.schema_arrow.names, file.schema_arrow.types
            if field not in names:
                there = ", ".join(map(repr, names))[:200]
                raise DataError(f"{path} has no column {field!r}: it has {there}. Choose one: data.field=NAME")
            kind = kinds[names.index(field)]
            plain = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
            if plain not in (pyarrow.string(), pyarrow.large_string()):
                raise DataError(f"{path}: column {field!r} is {kind}, not text. Choose another: data.field=NAME")
            for batch in file.iter_batches(batch_size=1000, columns=[field]):
                for value in batch.column(0).to_pylist():
                    yield value or ""
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {str(error).strip().splitlines()[0]}") from None


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked. Raises DataError."""
    opener = _OPENERS.get(path.suffix.lower())
    try:
        with ExitStack() as stack:
            raw: Any = stack.enter_context(open(path, "rb"))
            file = stack.enter_context(opener(path, raw)) if opener is not None else raw
            try:
                yield file
            except _damages() as error:
                if isinstance(error, OSError) and error.errno:
                    raise
                raise DataError(
                    f"{path} is damaged: it cannot be unpacked after {file.tell():,} bytes of text ({error})."
                ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None


def _damages() -> tuple[type[Exception], ...]:
    """What is raised by those who unpack, an OSError without a number among it."""
    zstandard: Any = sys.modules.get("zstandard")
    return (OSError, EOFError, zlib.error, lzma.LZMAError, *((zstandard.ZstdError,) if zstandard else ()))


class _ZstdFile(io.RawIOBase):
    """One frame or several. The package's own reader takes a file that is cut short for a whole one."""

    def __init__(self, raw: IO[bytes], decompressor: Any) -> None:
        self._raw, self._decompressor = raw, decompressor
        self._frame = decompressor.decompressobj()
        self._begun, self._ready, self._position = False, b"", 0

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        while not self._ready and self._feed():
            pass
        size = min(len(buffer), len(self._ready))
        buffer[:size], self._ready = self._ready[:size], self._ready[size:]
        self._position += size
        return size

    def _feed(self) -> bool:
        """Unpacks a little more; False at the end."""
        packed = self._frame.unused_data if self._frame.eof else b""
        if self._frame.eof:
            self._frame, self._begun = self._decompressor.decompressobj(), False
        packed = packed or self._raw.read(2**16)
        if not packed and self._begun:
            raise EOFError("the file ends before its end was marked")
        self._begun = self._begun or bool(packed)
        self._ready = self._frame.decompress(packed) if packed else b""
        return bool(packed)


def _open_zstd(path: Path, raw: IO[bytes]) -> Any:
    try:
        import zstandard
    except ImportError:
        raise DataError(
            f"{path}: zstd is unpacked with zstandard, which is not installed. pip install zstandard"
        ) from None
    return io.BufferedReader(_ZstdFile(raw, zstandard.ZstdDecompressor()))


_OPENERS: dict[str, Callable[[Path, IO[bytes]], Any]] = {
    ".gz": lambda path, raw: gzip.GzipFile(fileobj=raw),
    ".xz": lambda path, raw: lzma.LZMAFile(raw),  # noqa: SIM115 - closed by who asks for it
    ".bz2": lambda path, raw: bz2.BZ2File(raw),
    ".zst": _open_zstd,
}
