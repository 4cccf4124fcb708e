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

from moe_cli.config.data import MovieLensConfig, TextFilesConfig
from moe_cli.data import documents as module
from moe_cli.data.corpora import Corpus
from moe_cli.data.documents import NotText, read_documents
from moe_cli.data.load import load_data
from moe_cli.errors import DataError
from tests.data.test_corpora import load, write
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
    content = [
        '{"text": "one\\ntwo", "id": 1}',
        "",
        '{"text": ""}',
        '{"text": null}',
        '{"text": "a\\u0000b"}',
        '{"text": "\\ud800"}',
        '{"id": 2, "text": "three €"}',
    ]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(content).encode())
    assert ["one\ntwo", None, None, None, None, "three €"] == texts(path)
    lines(path, *({"text": words(200, number)} for number in range(20)), {"text": " "})
    corpus = load(path, tmp_path / "cache")
    assert (20, 1) == (corpus.meta["num_documents"], corpus.meta["num_skipped"])
    assert sorted(words(200, number) for number in range(20)) == sorted(text_of(corpus).split("\0")[:-1])


def test_the_field_is_chosen(tmp_path: Path) -> None:
    """data.field names where the text is; it makes another corpus; without records it is refused."""
    path = lines(tmp_path / "a.jsonl", *({"text": "no", "body": words(300, number)} for number in range(9)))
    assert text_of(load(path, tmp_path / "cache", field="body")).startswith(words(300, 0))
    write(tmp_path, {"b.txt": words(3000)})
    with pytest.raises(
        DataError, match=r"data.field=body has no effect.*b.txt has no .json, .jsonl, .ndjson, .parquet"
    ):
        load(tmp_path / "b.txt", tmp_path / "cache", field="body")


@given(
    records=st.lists(st.fixed_dictionaries({"text": st.text(min_size=1), "id": st.integers()}), max_size=6),
    size=st.integers(1, 40),
    indent=st.none() | st.integers(0, 2),
    escaped=st.booleans(),
)
def test_a_json_list_is_its_records(
    tmp_path_factory: pytest.TempPathFactory,
    records: list[dict[str, Any]],
    size: int,
    indent: int | None,
    escaped: bool,
) -> None:
    """However it is written and in whatever pieces it is read, a list is the same documents as a record a line."""
    path = tmp_path_factory.getbasetemp() / "list.json"
    path.write_text(json.dumps(records, indent=indent, ensure_ascii=escaped), encoding="utf-8", newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_BYTES", size)
        found = texts(path)
    assert texts(lines(path.with_suffix(".jsonl"), *records)) == found
    assert not records or found == texts(lines(path, *records))


@pytest.mark.parametrize("suffix", ["", *PACKERS])
def test_a_json_list_is_a_corpus(tmp_path: Path, suffix: str) -> None:
    """Packed or not it is the corpus of its records, and data.field chooses where the text is."""
    records = [{"body": words(300, number), "id": number} for number in range(9)]
    (tmp_path / f"a.json{suffix}").write_bytes(PACKERS.get(suffix, bytes)(json.dumps(records).encode()))
    lines(tmp_path / "b.jsonl", *records)
    found, expected = (load(tmp_path / name, tmp_path / "c", field="body") for name in (f"a.json{suffix}", "b.jsonl"))
    assert expected.meta["sha256"] == found.meta["sha256"]
    assert 9 == found.meta["num_documents"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{\n "name": "x",\n "on": true\n}',
            "is neither a list of records nor one record per line; other JSON is not read.",
        ),
        ('"text"', ", line 1 has no field 'text': it is no record. Choose one: data.field=NAME"),
        ('["a", "b"]', ", record 1 has no field 'text': it is no record. Choose one: data.field=NAME"),
        ('[{"text": "a"}, {"id": 1}]', ", record 2 has no field 'text': it has 'id'. Choose one: data.field=NAME"),
        ('[{"text": "a"}, {"text": nul}]', ", record 2 of the list is not JSON: Expecting value, column 26."),
        ('[{"text": "a"}, {"text": "b', ", record 2 of the list is not JSON: Unterminated string"),
        ('[{"text": "a"}', " is not one complete JSON list: it ends, or goes on, after record 1."),
        ('[{"text": "a"}]\n[{"text": "b"}]', " is not one complete JSON list: it ends, or goes on, after record 1."),
        ("[" * 100_000, ", record 1 of the list is not JSON"),
    ],
)
@pytest.mark.parametrize("size", [7, 2**20])
def test_json_that_is_no_list_of_records_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, message: str, size: int
) -> None:
    """Nothing of its syntax is learned as text: a DataError that names the file, of at most three lines."""
    monkeypatch.setattr(module, "CHUNK_BYTES", size)
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(DataError) as error:
        load(path, tmp_path / "cache")
    assert message.partition(", column")[0] in str(error.value)
    assert str(path) in str(error.value)
    assert len(str(error.value).splitlines()) <= 3


def test_a_long_json_list_is_read_in_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that is longer than many pieces is not tried again at each of them."""
    failed: list[int] = []
    decode = json.JSONDecoder.raw_decode

    def counted(self: json.JSONDecoder, text: str, place: int = 0) -> Any:
        try:
            return decode(self, text, place)
        except ValueError:
            failed.append(len(text))
            raise

    monkeypatch.setattr(json.JSONDecoder, "raw_decode", counted)
    monkeypatch.setattr(module, "CHUNK_BYTES", 100)
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"text": words(50_000)}, *({"text": "x" * 30} for _ in range(2000))]))
    assert 2001 == len(texts(path))
    assert len([size for size in failed if size > 400]) <= 8
    assert max(failed) <= 3 * 50_100


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "u.data"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32"])
def test_other_encodings_are_named(tmp_path: Path, name: str, encoding: str) -> None:
    """By the mark that they begin with, with the command that converts them."""
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    (tmp_path / name).write_bytes((mark + '[{"text": "' + words(300) + '"}]\n').encode(encoding))
    data = MovieLensConfig(path=str(tmp_path)) if name == "u.data" else TextFilesConfig(path=str(tmp_path / name))
    with pytest.raises(DataError) as error:
        load_data(data, 16, tmp_path / "outputs")
    known = encoding.upper().removesuffix("-BE")
    assert f"is {known} text, not UTF-8. Convert it: iconv -f {known} -t UTF-8" in str(error.value)


@pytest.mark.parametrize("outer", PACKERS)
@pytest.mark.parametrize("inner", PACKERS)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json"])
def test_what_is_packed_twice_is_named(tmp_path: Path, name: str, inner: str, outer: str) -> None:
    """It is no text after it was unpacked once, and the error says what it is then."""
    path = tmp_path / f"{name}{outer}"
    path.write_bytes(PACKERS[outer](PACKERS[inner](b'[{"text": "a"}]\n')))
    with pytest.raises(
        DataError, match=f"holds a {inner} file within {outer}: it is compressed twice. Unpack it once."
    ):
        load(path, tmp_path / "cache")


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_packed_file_without_its_ending_is_named(tmp_path: Path, suffix: str) -> None:
    """By its first bytes, with the ending that it should have."""
    (tmp_path / "a.txt").write_bytes(PACKERS[suffix](words(300).encode()))
    with pytest.raises(
        DataError, match=f"is a {suffix} file by its first bytes, not text. Give it a name that ends in"
    ):
        load(tmp_path / "a.txt", tmp_path / "cache")


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
    with pytest.raises(DataError, match="has no text: no record has any"):
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
    assert (9, 2) == (corpus.meta["num_documents"], corpus.meta["num_skipped"])
    with pytest.raises(DataError, match=r"a.parquet has no column 'text': it has 'body', 'id'"):
        load(path, tmp_path / "cache")
    with pytest.raises(DataError, match=r"a.parquet: column 'id' is int64, not text"):
        load(path, tmp_path / "cache", field="id")
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataError, match=r"a.parquet cannot be read as Parquet"):
        load(path, tmp_path / "cache", field="body")


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary"])
def test_every_type_of_text_in_parquet(tmp_path: Path, kind: str) -> None:
    """As pandas, polars and pyarrow write it."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    if not hasattr(pyarrow, kind):
        pytest.skip(f"this pyarrow has no {kind}")
    content = [words(300, number) for number in range(3)]
    column = pyarrow.array(content)
    column = column.dictionary_encode() if kind == "dictionary" else column.cast(getattr(pyarrow, kind)())
    parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    assert content == texts(tmp_path / "a.parquet")


def test_packed_parquet_is_named(tmp_path: Path) -> None:
    """It is packed within, and not read when it is packed around."""
    pytest.importorskip("pyarrow")
    (tmp_path / "a.parquet.gz").write_bytes(gzip.compress(b"PAR1"))
    with pytest.raises(DataError, match=r"a.parquet.gz is compressed Parquet, which is not read. Unpack it"):
        load(tmp_path / "a.parquet.gz", tmp_path / "cache")


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
def test_a_pattern_selects_the_files_it_matches(tmp_path: Path, pattern: str, expected: list[str]) -> None:
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
        "from moe_cli.config.data import TextFilesConfig\n"
        "from moe_cli.data.corpora import load_corpus\n"
        "data = int(re.search(r'VmData:\\s*(\\d+)', Path('/proc/self/status').read_text())[1]) * 1024\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (data + 100_000_000, -1))\n"
        "corpus = load_corpus(TextFilesConfig(path=sys.argv[1], tokenizer='chars'), 16, Path(sys.argv[2]))\n"
        "print(corpus.meta['num_bytes'])\n"
    )
    block = words(1_000_000).encode()
    path = tmp_path / "long.txt"
    path.write_bytes(block * 200)
    command = [sys.executable, "-c", code, str(path), str(tmp_path / "cache")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "200000000\n" == result.stdout, result.stderr
