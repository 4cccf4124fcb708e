"""Reads the documents of a file in pieces: plain text, JSON lines, a JSON list, or Parquet; compressed or not."""

import bz2
import codecs
import gzip
import io
import json
import lzma
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any

from moe_cli.data.bpe import SEPARATOR
from moe_cli.data.file_list import open_file
from moe_cli.errors import DataError

CHUNK_BYTES = 2**20
DEFAULT_FIELD = "text"
RECORDS = (".json", ".jsonl", ".ndjson", ".parquet")
# First bytes of other text encodings. UTF-32 comes first, because its mark begins with that of UTF-16.
_ENCODINGS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
# The number of first bytes that identify an encoding or a format.
HEAD_BYTES = 16
_PACKED = {
    b"\x1f\x8b": ".gz",
    b"\xfd7zXZ\0": ".xz",
    b"BZh": ".bz2",
    b"\x28\xb5\x2f\xfd": ".zst",
    b"PK\x03\x04": ".zip",
    b"PAR1": ".parquet",
}
# The longest token of JSON that may be cut in two: two \uXXXX of one character.
MAX_ESCAPE_LENGTH = 12
_BETWEEN = re.compile(r"[\s,]*")
_NO_RECORDS = (
    "{} is neither a list of records nor one record per line; other JSON is not read.\n"
    "Leave it out: 'data.exclude=[*.json]'. To train on it as text, name it .txt."
)
# One document: its text in pieces, which must be read before the next document; None means a record without text.
Document = Iterator[str] | None


class NotText(Exception):
    """A file is empty or not UTF-8. The message is the reason, to be printed after the file's name."""


def has_records(path: Path) -> bool:
    """Returns whether a file holds records, with the text of each in one field."""
    return _ending(path) in RECORDS


def read_documents(path: Path, field: str | None) -> Iterator[Document]:
    """Yields the documents of a file: its text, or the `field` of each record.

    Raises:
        NotText: the file is empty or not UTF-8. It is raised while the pieces are read.
        DataError: it cannot be read, is damaged, or a record has no such field.
    """
    kind = _ending(path)
    if kind == ".parquet":
        yield from map(document, _parquet(path, field or DEFAULT_FIELD))
    elif kind == ".json":
        yield from map(document, _json(path, field or DEFAULT_FIELD))
    elif has_records(path):
        yield from map(document, _json_lines(path, field or DEFAULT_FIELD))
    else:
        yield _plain(path)


def _ending(path: Path) -> str:
    """Returns the ending of a name, without that of the compression."""
    return (path.with_suffix("") if path.suffix.lower() in _OPENERS else path).suffix.lower()


def document(value: str) -> Document:
    """Returns the document of a text; None if it is blank, or has a separator or lone surrogates."""
    unusable = not value.strip() or SEPARATOR in value or any("\ud800" <= character <= "\udfff" for character in value)
    return None if unusable else iter((value,))


def _plain(path: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    position, blank, head = 0, True, b""
    with _open_unpacked(path) as file:
        while chunk := file.read(CHUNK_BYTES):
            head = head or chunk
            if position == 0 and chunk.startswith(codecs.BOM_UTF8):
                position, chunk = len(codecs.BOM_UTF8), chunk[len(codecs.BOM_UTF8) :]
            blank = blank and not chunk.strip()
            if 0 in chunk:
                problem = f"is not text: byte {position + chunk.index(0)} is zero. Give UTF-8 text."
                raise NotText(other_format(path, head) or problem)
            try:
                yield _decoded(decoder, chunk, position)
            except NotText as error:
                raise NotText(other_format(path, head) or str(error)) from None
            position += len(chunk)
        _decoded(decoder, b"", position)
    if blank:
        raise NotText("is empty. Give a file or folder of text.")


def other_encoding(head: bytes) -> str | None:
    """Returns the text encoding that the first bytes of a file show, and how to convert it; None means unknown."""
    name = next((name for mark, name in _ENCODINGS.items() if head.startswith(mark)), None)
    return f"is {name} text, not UTF-8. Convert it: iconv -f {name} -t UTF-8" if name else None


def other_format(path: Path, head: bytes) -> str | None:
    """Returns the format of a file that is not UTF-8 text, by its first bytes, and a hint; None means unknown."""
    if encoding := other_encoding(head):
        return encoding
    packed = next((ending for mark, ending in _PACKED.items() if head.startswith(mark)), None)
    if packed is None:
        return None
    if path.suffix.lower() in _OPENERS:
        return f"holds a {packed} file within {path.suffix}: it is compressed twice. Unpack it once."
    return f"is a {packed} file by its first bytes, not text. " + (
        "Unpack it." if packed == ".zip" else f"Give it a name that ends in {packed}."
    )


def _decoded(decoder: codecs.IncrementalDecoder, chunk: bytes, position: int) -> str:
    """Decodes a chunk at a position of the file; b"" ends the text."""
    begin = position - len(decoder.getstate()[0])
    try:
        return decoder.decode(chunk, final=not chunk)
    except UnicodeDecodeError as error:
        wrong = error.object[error.start]
        raise NotText(
            f"is not UTF-8 text: byte {begin + error.start} is 0x{wrong:02x}. Convert it, for example with iconv."
        ) from None


def _json(path: Path, field: str) -> Iterator[str]:
    """Yields the records of a JSON list, or one record per line. Raises NotText or DataError if the file is neither."""
    pieces = _plain(path)
    first = next((piece for piece in pieces if piece.strip()), "").lstrip()
    yield from _json_list(path, field, chain([first[1:]], pieces)) if first[:1] == "[" else _json_lines(path, field)


def _json_list(path: Path, field: str, pieces: Iterator[str]) -> Iterator[str]:
    """Yields the records of a list after its bracket. At most one record and one piece are in memory."""
    decode, text, position, number, enough = json.JSONDecoder().raw_decode, "", 0, 0, 0
    for piece in chain(pieces, [None]):
        text, position = text[position:] + (piece or ""), 0
        if piece is not None and len(text) < enough:
            continue
        while (position := _end_of(_BETWEEN, text, position)) < len(text) and text[position] != "]":
            try:
                record, position = decode(text, position)
            except (ValueError, RecursionError) as error:
                if piece is not None and _is_cut(error, text):
                    break
                raise DataError(f"{path}, record {number + 1:,} of the list is not JSON{_reason(error)}.") from None
            number += 1
            yield _field(record, field, f"{path}, record {number:,}")
        enough = 2 * (len(text) - position)  # a long record is not tried again at every piece
    if text[position:].strip() != "]":
        raise DataError(f"{path} is not one complete JSON list: it ends, or goes on, after record {number:,}.")


def _end_of(pattern: re.Pattern[str], text: str, position: int) -> int:
    match = pattern.match(text, position)
    return match.end() if match else position


def _is_cut(error: Exception, text: str) -> bool:
    """Returns whether a JSON error may be due to an incomplete text."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    return error.msg.startswith("Unterminated string") or error.pos > len(text) - MAX_ESCAPE_LENGTH


def _json_lines(path: Path, field: str) -> Iterator[str]:
    with _open_unpacked(path) as file:
        begun = False
        for number, line in enumerate(file, 1):
            head, line = line, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if not line.strip():
                continue
            where, line = f"{path}, line {number}", line.rstrip(b"\r\n")
            try:
                record = json.loads(line.decode())
            except UnicodeDecodeError as error:
                if number == 1 and (problem := other_format(path, head)):
                    raise DataError(f"{path} {problem}") from None
                wrong = f"byte {error.start} of the line is 0x{line[error.start]:02x}"
                raise DataError(f"{where} is not UTF-8 text: {wrong}.") from None
            except (ValueError, RecursionError) as error:  # a number that is too long is a ValueError
                if not begun and _ending(path) == ".json":
                    raise DataError(_NO_RECORDS.format(path)) from None
                raise DataError(f"{where} is not JSON{_reason(error)}. Each line is one record.") from None
            begun = True
            yield _field(record, field, where)


def _reason(error: Exception) -> str:
    return f": {error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""


def _field(record: Any, field: str, where: str) -> str:
    if not isinstance(record, dict) or field not in record:
        known = f"it has {', '.join(map(repr, record))}" if isinstance(record, dict) else "it is no record"
        raise DataError(f"{where} has no field {field!r}: {known[:200]}. Choose one: data.field=NAME")
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
    if path.suffix.lower() in _OPENERS:
        raise DataError(f"{path} is compressed Parquet, which is not read. Unpack it: Parquet is compressed inside.")
    text_types = {
        getattr(pyarrow, name)() for name in ("string", "large_string", "string_view") if hasattr(pyarrow, name)
    }
    try:
        with open_file(path) as opened, pyarrow.parquet.ParquetFile(opened) as file:
            names, kinds = file.schema_arrow.names, file.schema_arrow.types
            if field not in names:
                known = ", ".join(map(repr, names))[:200]
                raise DataError(f"{path} has no column {field!r}: it has {known}. Choose one: data.field=NAME")
            kind = kinds[names.index(field)]
            plain = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
            if plain not in text_types:
                raise DataError(f"{path}: column {field!r} is {kind}, not text. Choose another: data.field=NAME")
            for batch in file.iter_batches(batch_size=1000, columns=[field]):
                for value in batch.column(0).to_pylist():
                    yield value or ""
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {str(error).strip().splitlines()[0]}") from None


@contextmanager
def _open_unpacked(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file and decompresses its bytes. Raises DataError."""
    opener = _OPENERS.get(path.suffix.lower())
    try:
        with ExitStack() as stack:
            raw: Any = stack.enter_context(open_file(path))
            file = stack.enter_context(opener(path, raw)) if opener is not None else raw
            try:
                yield file
            except _decompression_errors() as error:
                if isinstance(error, OSError) and error.errno:
                    raise
                raise DataError(
                    f"{path} is damaged: it cannot be unpacked after {file.tell():,} bytes of text ({error})."
                ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None


def _decompression_errors() -> tuple[type[Exception], ...]:
    """Returns the exceptions that decompressors raise. They include an OSError without an errno."""
    zstandard: Any = sys.modules.get("zstandard")
    return (OSError, EOFError, zlib.error, lzma.LZMAError, *((zstandard.ZstdError,) if zstandard else ()))


class _ZstdFile(io.RawIOBase):
    """Reads one frame or several. The reader of the package does not notice a truncated file."""

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
        """Unpacks the next bytes. Returns False at the end."""
        packed = self._frame.unused_data if self._frame.eof else b""
        if self._frame.eof:
            self._frame, self._begun = self._decompressor.decompressobj(), False
        packed = packed or self._raw.read(2**16)
        if not packed and self._begun:
            raise EOFError("the file is truncated")
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
    ".xz": lambda path, raw: lzma.LZMAFile(raw),  # noqa: SIM115 - the caller closes it
    ".bz2": lambda path, raw: bz2.BZ2File(raw),
    ".zst": _open_zstd,
}
