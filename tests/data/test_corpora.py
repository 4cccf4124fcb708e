"""Files -> token files: what is read, refused, cached, split and counted."""

import gzip
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_cli.config.data import TextFilesConfig
from moe_cli.data import cached, corpora, corpus_builder
from moe_cli.data.corpora import Corpus, load_corpus
from moe_cli.errors import DataError
from moe_cli.files.writing import rename
from tests.tiny import words


def load(path: Path, cache: Path, context_length: int = 16, **options: Any) -> Corpus:
    return load_corpus(TextFilesConfig(path=str(path), **options), context_length, cache)


def write(folder: Path, texts: dict[str, str]) -> Path:
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def many(folder: Path, count: int = 30) -> Path:
    """A folder of documents of some hundred bytes each."""
    return write(folder, {f"d{number:02}.txt": words(200 + 7 * number, number) for number in range(count)})


@pytest.mark.parametrize("tokenizer", ["bytes", "chars"])
@pytest.mark.parametrize("fraction", [0.03, 0.1, 0.5])
@pytest.mark.parametrize("eval_split", ["val", "test"])
def test_every_token_held_out_has_its_domain(tmp_path: Path, tokenizer: Any, fraction: float, eval_split: str) -> None:
    """Each file is in a domain and a letter of its own: letters tell domains, wherever the split falls."""
    texts = {f"{letter}/text.txt": letter * (30 + 7 * number) for number, letter in enumerate("abcdefgh€jklm")}
    shares = {"val_fraction": fraction, "test_fraction": 0.2 if eval_split == "test" else 0.0}
    corpus = load(write(tmp_path / "texts", texts), tmp_path, tokenizer=tokenizer, **shares)
    corpus = corpus.with_test_split() if eval_split == "test" else corpus  # type: ignore[assignment]
    names = [corpus.meta["domains"][place] for place in corpus.domain_ids_at(np.arange(len(corpus.val)))]
    home = {token: letter for letter in "abcdefgh€jklm" for token in corpus.tokenizer.encode(letter).tolist()}
    expected: list[str] = []
    for token in corpus.val.tolist():
        # A separator belongs to the text before it.
        expected.append(home.get(token, expected[-1] if expected else names[0]))
    assert expected == names


@pytest.mark.parametrize("tokenizer", ["bytes", "chars"])
def test_one_file_is_cut_at_the_share(tmp_path: Path, tokenizer: Any) -> None:
    """Validation is exactly the last tenth of a single document, and training ends a gap before it."""
    text = "é" + words(4999)
    path = write(tmp_path, {"a.txt": text}) / "a.txt"
    corpus = load(path, tmp_path / "cache", tokenizer=tokenizer)
    tokens = corpus.tokenizer.encode(text)
    cut = int(len(tokens) * 0.9)
    assert tokens[cut:].tolist() == corpus.val.tolist()
    gap = cut - len(corpus.train)
    assert tokens[: cut - gap].tolist() == corpus.train.tolist()
    assert 0 < gap <= cut // 100
    assert (["a.txt"], 1) == (corpus.meta["domains"], corpus.meta["num_documents"])
    assert len(text.encode()) == corpus.meta["num_bytes"]


def test_whole_documents_go_to_validation(tmp_path: Path) -> None:
    """No document straddles the split: each lies whole in one part, and none is lost."""
    folder = many(tmp_path / "text")
    corpus = load(folder, tmp_path / "cache")
    train, val = (corpus.tokenizer.decode(tokens.tolist()) for tokens in (corpus.train, corpus.val))
    assert train.endswith("\0")
    assert val.endswith("\0")
    assert sorted(path.read_text() for path in folder.iterdir()) == sorted((train + val).split("\0")[:-1])
    assert 0.05 < len(val) / len(train + val) < 0.2


def test_documents_of_the_test_split_begin_where_they_do(tmp_path: Path) -> None:
    """`document_starts` gives the first token and the places after separators, also in the test split."""
    corpus = load(many(tmp_path / "text"), tmp_path / "cache", val_fraction=0.2, test_fraction=0.3)
    tested = corpus.with_test_split()
    for each in (corpus, tested):
        expected = [0, *(place + 1 for place, token in enumerate(each.val.tolist()) if token == 0)]
        assert expected[:-1] == each.document_starts(each.val).tolist()
        assert len(expected) > 3
    assert (
        len(corpus.document_starts(corpus.train))
        + len(corpus.document_starts(corpus.val))
        + len(tested.document_starts(tested.val))
        == 30
    )


@pytest.mark.parametrize("tokenizer", ["bytes", "chars"])
@pytest.mark.parametrize("cut", [False, True])
def test_files_split_by_their_names(tmp_path: Path, tokenizer: Any, cut: bool) -> None:
    """Folders train, valid and test are the splits, with the domains below them; without valid the end of train is it."""
    texts = {
        "train/law/a.txt": "a" * 300,
        "train/b.txt": "b" * 200,
        "test/law/c.txt": "c" * 50,
        "test/d.txt": "d" * 40,
        **({} if cut else {"valid/e.txt": "e" * 60}),
    }
    corpus = load(write(tmp_path / "text", texts), tmp_path / "cache", tokenizer=tokenizer)
    tested = corpus.with_test_split()
    train, val, test = (corpus.tokenizer.decode(split.tolist()) for split in (corpus.train, corpus.val, tested.val))
    assert {"c", "d", "\0"} == {*test}
    assert len(test) == 92
    assert {*train, *val, *test} == {*"abcde\0"} - ({"e"} if cut else set())
    assert {*train} == {"a", "b", "\0"}
    assert val == ((train + val)[-len(val) :] if cut else "e" * 60 + "\0")
    assert (51 if cut else 61) == len(val)
    assert [".", "law"] == corpus.meta["domains"]
    names = [tested.meta["domains"][place] for place in tested.domain_ids_at(np.arange(len(tested.val)))]
    assert {("c", "law"), ("d", ".")} == {pair for pair in zip(test, names, strict=True) if pair[0] != "\0"}
    assert any("split by the names of files and folders" in remark for remark in corpus.notes())


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [([900], "It has only one document."), ([900, 900], "Raise data.val_fraction to hold some out.")],
)
def test_a_domain_without_validation_is_said(tmp_path: Path, sizes: list[int], reason: str) -> None:
    """And whether another share would help."""
    texts = {f"large/{number}.txt": words(size, number) for number, size in enumerate(sizes)}
    folder = write(tmp_path / "text", texts | {f"small/{number}.txt": words(50, number) for number in range(40)})
    data_notes = load(folder, tmp_path / "cache").notes()
    assert f"Nothing of large is held out, so it has no validation loss. {reason}" in data_notes


def test_a_file_outside_the_splits_is_noted(tmp_path: Path) -> None:
    """With a file that is named as no split, all is one text, and that is said."""
    texts = {"train.txt": words(900), "test.txt": words(900, 1), "README.md": words(90, 2)}
    data_notes = load(write(tmp_path / "text", texts), tmp_path / "cache").notes()
    assert any(note.startswith("test.txt ") and "README.md" in note for note in data_notes)


def test_a_test_of_one_character_is_refused(tmp_path: Path) -> None:
    """With how much each split has."""
    folder = write(tmp_path / "text", {"train/a.txt": words(500), "test/a.txt": "a"})
    (folder / "train" / "b.txt").write_text(words(500, 1))
    corpus = load(folder, tmp_path / "cache")  # the separator counts
    assert 2 == corpus.meta["test_tokens"]
    cut = write(tmp_path / "one", {"a.txt": "abcdefghij"}) / "a.txt"
    with pytest.raises(
        DataError, match=r"holds only 8 for training, 1 for validation, 1 for a test, in bytes. Give more"
    ):
        load(cut, tmp_path / "cache", test_fraction=0.1)


@pytest.mark.parametrize("key", ["test_fraction", "val_fraction"])
def test_a_share_to_hold_out_that_names_hold_out(tmp_path: Path, key: str) -> None:
    """A share is refused where folders say what is held out."""
    folder = write(tmp_path, {"train/a.txt": words(500), "val/b.txt": words(500)})
    with pytest.raises(DataError, match=rf"data.{key}=0.3 has no effect: file names in data.path"):
        load(folder, tmp_path / "cache", **{key: 0.3})


def test_without_a_test_split_there_is_nothing_to_be_judged_by(tmp_path: Path) -> None:
    """It says so, and how to have one."""
    with pytest.raises(DataError, match="has no test split"):
        load(many(tmp_path / "text"), tmp_path / "cache").with_test_split()


def test_two_large_documents_are_cut_within_one(tmp_path: Path) -> None:
    """Where no end of a document is near the share, the text is cut there, with a gap."""
    corpus = load(write(tmp_path / "text", {"a": words(5000), "b": words(5000, 1)}), tmp_path / "cache")
    total = 2 * 5001
    assert total - int(total * 0.9) == len(corpus.val)
    assert len(corpus.train) < int(total * 0.9)


def test_documents_know_where_they_begin_and_their_domain(tmp_path: Path) -> None:
    """The table of documents points at the start of each and at the sub-folder it lies in."""
    texts = {"a/x.txt": "alpha " * 50, "a/deep/y.txt": "beta " * 50, "b/z.txt": "gamma " * 50, "top.txt": "delta " * 50}
    folder = write(tmp_path / "text", texts)
    corpus = load(folder, tmp_path / "cache", val_fraction=0.5)
    assert [".", "a", "b"] == corpus.meta["domains"]
    corpus = load(folder, tmp_path / "cache", val_fraction=0.25, test_fraction=0.25)
    everything = corpus.tokenizer.decode([*corpus.train, *corpus.val, *corpus.with_test_split().val])
    found = {
        everything[start:].split("\0")[0]: corpus.meta["domains"][domain]
        for start, domain in zip(corpus.starts, corpus.domain_ids, strict=True)
    }
    assert {text: name.split("/")[0] if "/" in name else "." for name, text in texts.items()} == found


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n\t", "is empty"),
        (b"abc\0def", "byte 3 is zero"),
        (b"abc\xff" * 9, "byte 3 is 0xff"),
        (b"\xef\xbb\xbfabc\xe9" * 9, "byte 6 is 0xe9"),
        (b"\xef\xbb\xbf", "is empty"),
        (b"a", "holds only 1"),
        (b"abc" * 9, "leaves 24 bytes .* and 3 .* 65"),
    ],
)
def test_a_file_that_is_no_text_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    """Empty, binary, of another encoding (at which byte) or shorter than a context: a DataError naming the file."""
    path = tmp_path / "file.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load(path, tmp_path / "cache", context_length=64)
    assert f"data.path={path}" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "does not exist"),
        ({}, "folder without files"),
        ({".hidden/a.txt": b"abc", ".b": b"abc"}, "folder without files"),
        ({"a": b"", "b": b"\0"}, "has no text: its 2 files"),
    ],
)
def test_a_folder_without_text_is_refused(tmp_path: Path, files: dict[str, bytes] | None, message: str) -> None:
    """A path that is missing, or a folder with no file of text in it, is a DataError naming it."""
    folder = tmp_path / "text"
    if files is not None:
        folder.mkdir()
        for name, content in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load(folder, tmp_path / "cache")
    assert f"data.path={folder}" in str(caught.value)


def test_files_that_are_no_text_are_left_out_of_a_folder(tmp_path: Path) -> None:
    """A picture among the texts of a folder is counted and passed over."""
    folder = many(tmp_path / "text", 5)
    (folder / "picture.png").write_bytes(b"\x89PNG\0")
    (folder / "empty.txt").write_bytes(b"")
    corpus = load(folder, tmp_path / "cache")
    assert (5, 2) == (corpus.meta["num_documents"], corpus.meta["num_skipped"])


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    """With and without a mark a file gives the same corpus."""
    for name, encoding in (("with", "utf-8-sig"), ("without", "utf-8")):
        (tmp_path / name).write_text(words(3000), encoding=encoding)
    first, second = (load(tmp_path / name, tmp_path / "cache") for name in ("with", "without"))
    assert first.meta["sha256"] == second.meta["sha256"]
    assert first.train.tolist() == second.train.tolist()


def test_a_cache_that_cannot_be_written_is_an_error_of_ours(tmp_path: Path, text_file: Path) -> None:
    """A file in the way of the cache gives a DataError that names the folder."""
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write the token files to"):
        load(text_file, tmp_path / "file" / "cache")


def test_a_corpus_is_built_once(tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second load reads the token files of the first."""
    first = load(text_file, tmp_path)
    monkeypatch.setattr(corpora, "build", lambda *arguments: pytest.fail("built again"))
    second = load(text_file, tmp_path)
    assert (first.folder, first.meta) == (second.folder, second.meta)


@pytest.mark.parametrize("change", ["content", "new file", "tokenizer", "val_fraction"])
def test_a_corpus_is_built_again_when_something_changes(tmp_path: Path, change: str) -> None:
    """Other text, another file or another option gives other token files."""
    folder = many(tmp_path / "text", 5)
    first = load(folder, tmp_path / "cache")
    if change == "content":
        (folder / "d00.txt").write_text("something else" * 20)
    if change == "new file":
        write(folder, {"d99.txt": words(500)})
    options = {"tokenizer": {"tokenizer": "chars"}, "val_fraction": {"val_fraction": 0.3}}.get(change, {})
    second = load(folder, tmp_path / "cache", **options)
    assert first.folder != second.folder
    assert (first.meta["sha256"] == second.meta["sha256"]) == bool(options)


def test_the_hash_is_of_the_text_alone(tmp_path: Path) -> None:
    """The same files elsewhere, with other times, are the same corpus in the same order."""
    first = many(tmp_path / "first", 5)
    second = Path(shutil.copytree(first, tmp_path / "second"))
    for path in second.iterdir():
        os.utime(path, (1, 1))
    one, two = (load(folder, tmp_path / "cache") for folder in (first, second))
    assert one.folder != two.folder
    assert one.meta["sha256"] == two.meta["sha256"]
    assert one.train.tolist() == two.train.tolist()


def test_a_build_that_comes_second_takes_the_first(
    tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When another process finishes the same corpus during a build, its files are used and the own ones thrown away."""
    write = corpus_builder._write

    def overtaken(*arguments: Any) -> Any:
        monkeypatch.setattr(corpus_builder, "_write", write)
        load(text_file, tmp_path)
        (folder,) = (path for path in tmp_path.iterdir() if not path.name.startswith("."))
        (folder / "first").touch()
        return write(*arguments)

    monkeypatch.setattr(corpus_builder, "_write", overtaken)
    corpus = load(text_file, tmp_path)
    assert [corpus.folder] == list(tmp_path.iterdir())
    assert (corpus.folder / "first").exists()


def test_a_corpus_appears_whole(tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the last file is written, nothing stands where another process would look."""
    seen = []

    def look(source: Path, target: Path) -> None:
        seen.extend(path.name for path in tmp_path.iterdir())
        rename(source, target)

    monkeypatch.setattr(cached, "rename", look)
    corpus = load(text_file, tmp_path)
    assert [True] == [name.startswith(".building-") for name in seen]
    names = sorted(path.name for path in corpus.folder.iterdir())
    assert [
        "checksums.bin",
        "checksums.json",
        "domains.bin",
        "meta.json",
        "starts.bin",
        "train_0000.bin",
        "val_0000.bin",
    ] == names


def test_processes_that_start_at_once_see_one_whole_corpus(tmp_path: Path) -> None:
    """Three processes build the same corpus at the same moment: all see the same tokens, one folder remains."""
    path = write(tmp_path, {"text.txt": words(100_000)}) / "text.txt"
    code = (
        "import sys; from pathlib import Path\n"
        "from moe_cli.config.data import TextFilesConfig\n"
        "from moe_cli.data.corpora import load_corpus\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "corpus = load_corpus(TextFilesConfig(path=sys.argv[1]), 16, Path(sys.argv[2]))\n"
        "print(corpus.meta['sha256'], sum(corpus.train), sum(corpus.val))\n"
    )
    command = [sys.executable, "-c", code, str(path), str(tmp_path / "cache")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(3)]  # type: ignore[call-overload]
    for process in processes:
        assert "ready\n" == process.stdout.readline()
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    said = {process.communicate()[0] for process in processes}
    corpus = load(path, tmp_path / "cache")
    assert {f"{corpus.meta['sha256']} {sum(corpus.train)} {sum(corpus.val)}\n"} == said
    assert [corpus.folder] == list((tmp_path / "cache").iterdir())


def test_files_that_are_no_text_are_named_as_what_they_are(tmp_path: Path) -> None:
    """Among texts, a file that is packed twice, and one in UTF-16, are left out, each with its name and the reason."""
    folder = write(tmp_path / "mine", {"a.txt": words(2000)})
    (folder / "b.txt.gz").write_bytes(gzip.compress(gzip.compress(b"text")))
    (folder / "c.txt").write_text(words(20), encoding="utf-16")
    lines = load(folder, tmp_path / "cache").notes()
    assert any(line.startswith("skipped: b.txt.gz holds a .gz file within .gz") for line in lines)
    assert any(line.startswith("skipped: c.txt is UTF-16 text, not UTF-8.") for line in lines)
    (folder / "a.txt").unlink()
    (folder / "c.txt").unlink()
    with pytest.raises(DataError, match=r"b.txt.gz holds a .gz file within .gz"):
        load(folder, tmp_path / "cache")
