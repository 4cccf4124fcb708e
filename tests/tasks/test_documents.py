"""Files of every kind -> the documents in them."""

import bz2
import gzip
import json
import lzma
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_cli.errors import DataError
from moe_cli.tasks import documents as module
from moe_cli.tasks.corpora import Corpus
from moe_cli.tasks.documents import NotText, read_documents
from tests.tasks.test_corpora import load, write
from tests.tiny import words

PACKERS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}


def texts(path: Path, field: str | None = None) -> list[str | None]:
    return [None if document is None else "".join(document) for document in read_documents(path, field)]


def lines(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def text_of(corpus: Corpus) -> str:
    assert corpus.tokenizer is not None
    return corpus.tokenizer.decode([*corpus.train, *corpus.val])


@given(text=st.text().filter(lambda text: text.strip() and "\0" not in text), size=st.integers(1, 7))
def test_a_text_is_read_in_pieces(tmp_path_factory: pytest.TempPathFactory, text: str, size: int) -> None:
    """However small the pieces, and with a mark at the beginning or not, they are the text."""
    path = tmp_path_factory.getbasetemp() / "pieces.txt"
    path.write_bytes(b"\xef\xbb\xbf" * (size == 3) + text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_BYTES", size)
        assert [text.removeprefix("\ufeff") if size >= 3 else text] == texts(path) or size == 3


@pytest.mark.parametrize("size", [3, 4, 5, 2**20])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"abcdefg\0h", "is not text: byte 7 is zero"),
        (b"abcdef\xff", "is not UTF-8 text: byte 6 is 0xff"),
        ("abcé€".encode() + b"\xe2\x82", "is not UTF-8 text: byte 8 is 0xe2"),
        ("abcé€".encode() + b"\xe2\x82x", "is not UTF-8 text: byte 8 is 0xe2"),
        (b"\xef\xbb\xbfabcdef\xff", "is not UTF-8 text: byte 9 is 0xff"),
        (b" \n\n  \t ", "is empty"),
    ],
)
def test_the_wrong_byte_is_named_wherever_pieces_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, content: bytes, message: str
) -> None:
    """The position is that in the file, also of a character cut in two by pieces or by the end."""
    monkeypatch.setattr(module, "CHUNK_BYTES", size)
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(NotText) as error:
        texts(tmp_path / "a.txt")
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_packed_text_is_the_text(tmp_path: Path, suffix: str) -> None:
    """Packed or not, the same corpus; a packed table of records too."""
    plain, packed = tmp_path / "a.txt", tmp_path / f"b.txt{suffix}"
    plain.write_text(words(3000))
    packed.write_bytes(PACKERS[suffix](plain.read_bytes()))
    first, second = load(plain, tmp_path / "cache"), load(packed, tmp_path / "cache")
    assert first.meta["sha256"] == second.meta["sha256"]
    assert first.train.tolist() == second.train.tolist()
    table = tmp_path / f"c.JSONL{suffix.upper()}"
    table.write_bytes(PACKERS[suffix](b'{"text": "one"}\n{"text": "two"}'))
    assert ["one", "two"] == texts(table)


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("damage", ["cut", "other", "middle"])
def test_a_damaged_file_is_named(tmp_path: Path, suffix: str, damage: str) -> None:
    """Cut short, not packed at all, or with bytes changed: a DataError that says how far it could be read."""
    path, whole = tmp_path / f"a.txt{suffix}", PACKERS[suffix](words(300_000).encode())
    middle = len(whole) // 2
    changed = {
        "cut": whole[:middle],
        "other": b"plain text",
        "middle": whole[:middle] + b"\0" * 99 + whole[middle + 99 :],
    }
    path.write_bytes(changed[damage])
    with pytest.raises(
        DataError, match=rf"a\.txt{suffix} is damaged: it cannot be unpacked after [\d,]+ bytes of text"
    ):
        load(path, tmp_path / "cache")


def test_records_are_documents(tmp_path: Path) -> None:
    """Each line is one, in order; blank lines count for nothing; records without text are left out and counted."""
    path = tmp_path / "a.jsonl"
    content = ['{"text": "one\\ntwo", "id": 1}', "", '{"text": ""}', '{"text": null}', '{"text": "a\\u0000b"}',
               '{"text": "\\ud800"}', '{"id": 2, "text": "three €"}']  # fmt: skip
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(content).encode())
    assert ["one\ntwo", None, None, None, None, "three €"] == texts(path)
    lines(path, *({"text": words(200, number)} for number in range(20)), {"text": " "})
    corpus = load(path, tmp_path / "cache")
    assert (20, 1) == (corpus.meta["num_documents"], corpus.meta["num_left_out"])
    assert sorted(words(200, number) for number in range(20)) == sorted(text_of(corpus).split("\0")[:-1])


def test_the_field_is_chosen(tmp_path: Path) -> None:
    """data.field names where the text is; it makes another corpus; without records it is refused."""
    path = lines(tmp_path / "a.jsonl", *({"text": "no", "body": words(300, number)} for number in range(9)))
    assert text_of(load(path, tmp_path / "cache", field="body")).startswith(words(300, 0))
    write(tmp_path, {"b.txt": words(3000)})
    with pytest.raises(
        DataError, match=r"data.field=body has no effect: data.path=.*b.txt has no .json, .jsonl, .ndjson, .parquet"
    ):
        load(tmp_path / "b.txt", tmp_path / "cache", field="body")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "a"', "line 2 is not JSON: Expecting ',' delimiter, column 13. Each line is one record."),
        (b"[" * 100_000, "line 2 is not JSON"),
        (b'{"text": ' + b"9" * 6000 + b"}", "line 2 is not JSON"),
        (b'{"text": "\xff"}', "line 2 is not UTF-8 text: byte 10 of the line is 0xff."),
        (b'{"body": "a", "id": 3}', "line 2 has no field 'text': it has 'body', 'id'. Choose one: data.field=NAME"),
        (b'["a"]', "line 2 has no field 'text': it is no record. Choose one: data.field=NAME"),
        (b'{"text": 3}', "line 2: field 'text' is int, not text. Choose another: data.field=NAME"),
    ],
)
def test_a_wrong_record_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    """A DataError with file and line."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n' + line + b"\n")
    with pytest.raises(DataError) as error:
        load(path, tmp_path / "cache")
    assert f"{path}, {message}" in str(error.value)


def test_records_without_any_text_are_refused(tmp_path: Path) -> None:
    """A table in which every field is empty holds no text."""
    with pytest.raises(DataError, match="holds no text: no record has any"):
        load(lines(tmp_path / "a.jsonl", {"text": ""}, {"text": " "}), tmp_path / "cache")


@pytest.mark.parametrize(("name", "package"), [("a.parquet", "pyarrow"), ("a.txt.zst", "zstandard")])
def test_what_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    """Without the package that reads it, a file is refused with the command that installs it."""
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / name).write_bytes(b"x" * 100)
    with pytest.raises(DataError, match=rf"{name}: .* {package}, which is not installed. pip install {package}"):
        load(tmp_path / name, tmp_path / "cache")


def test_parquet(tmp_path: Path) -> None:
    """A column of text is the documents; a wrong column, a column of numbers and a damaged file are named."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    content = [words(300, number) for number in range(9)]
    table = pyarrow.table({"body": [*content, None, ""], "id": list(range(11))})
    parquet.write_table(table, path, row_group_size=4)
    assert [*content, None, None] == texts(path, "body")
    corpus = load(path, tmp_path / "cache", field="body")
    assert (9, 2) == (corpus.meta["num_documents"], corpus.meta["num_left_out"])
    with pytest.raises(DataError, match=r"a.parquet has no column 'text': it has 'body', 'id'"):
        load(path, tmp_path / "cache")
    with pytest.raises(DataError, match=r"a.parquet: column 'id' is int64, not text"):
        load(path, tmp_path / "cache", field="id")
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataError, match=r"a.parquet cannot be read as Parquet"):
        load(path, tmp_path / "cache", field="body")


def test_zstd(tmp_path: Path) -> None:
    """One frame or several are the text; a file cut short is damaged, not short."""
    zstandard = pytest.importorskip("zstandard")
    path, content = tmp_path / "a.txt.zst", words(300_000)
    pack = zstandard.ZstdCompressor().compress
    path.write_bytes(pack(content[:1000].encode()) + pack(content[1000:].encode()))
    assert [content] == texts(path)
    whole = path.read_bytes()
    for damaged in (whole[:-100], b"plain text", whole[:2000] + b"\0" * 99 + whole[2099:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"a.txt.zst is damaged: it cannot be unpacked"):
            texts(path)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.txt", ["a", "b"]),
        ("sub/*", ["c", "d"]),
        ("**/*.txt", ["a", "b", "c"]),
        ("[ab].txt", ["a", "b"]),
        ("?.md", ["e"]),
    ],
)
def test_a_pattern_stands_for_the_files_it_matches(tmp_path: Path, pattern: str, expected: list[str]) -> None:
    """* and ? within a folder, ** over folders, without what begins with a dot."""
    names = {"a": "a.txt", "b": "b.txt", "c": "sub/c.txt", "d": "sub/d.md", "e": "e.md", "f": ".hidden.txt"}
    folder = write(tmp_path / "text", {name: f"{letter} " + words(400) for letter, name in names.items()})
    found = text_of(load(folder / pattern, tmp_path / "cache")).strip("\0").split("\0")
    assert expected == sorted(text[0] for text in found)


def test_a_pattern_without_a_match_is_named(tmp_path: Path) -> None:
    """Nothing matches: a DataError that shows the pattern."""
    with pytest.raises(DataError, match=r"data.path=.*\*\.log matches no file"):
        load(tmp_path / "*.log", tmp_path / "cache")


@pytest.mark.slow
def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    """A text of 200 MB becomes a corpus where no more than 100 MB of memory can be had."""
    code = (
        "import re, resource, sys; from pathlib import Path\n"
        "from moe_cli.config.data import TextData\n"
        "from moe_cli.tasks.corpora import load_corpus\n"
        "data = int(re.search(r'VmData:\\s*(\\d+)', Path('/proc/self/status').read_text())[1]) * 1024\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (data + 100_000_000, -1))\n"
        "corpus = load_corpus(TextData(path=sys.argv[1], tokenizer='chars'), 16, Path(sys.argv[2]))\n"
        "print(corpus.meta['num_bytes'])\n"
    )
    block = words(1_000_000).encode()
    path = tmp_path / "long.txt"
    path.write_bytes(block * 200)
    command = [sys.executable, "-c", code, str(path), str(tmp_path / "cache")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "200000000\n" == result.stdout, result.stderr
