"""Token files are whole or absent, are what they always were, and say what went wrong."""

import errno
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_cli.config.data import PackagedCorpusConfig
from moe_cli.data import corpus_builder, documents, shards
from moe_cli.data.corpora import Corpus, load_corpus, texts_of
from moe_cli.data.splits import SPLITS, choose_held_out
from moe_cli.errors import DataError
from tests.data.test_corpora import load, many, write
from tests.tiny import words

BUILD = (
    "import sys; from pathlib import Path\n"
    "from moe_cli.config.data import TextFilesConfig\n"
    "from moe_cli.data.corpora import load_corpus\n"
    "from moe_cli.errors import DataError\n"
    "{before}\n"
    "try:\n    print(load_corpus(TextFilesConfig(path=sys.argv[1]), 16, Path(sys.argv[2])).meta['sha256'])\n"
    "except DataError as error:\n    print(error); sys.exit(2)\n"
)


def at_once(texts: list[str], tokenizer: str, val: float, test: float) -> tuple[list[int], list[int], list[int], str]:
    """The splits and the hash of texts that are all in memory, as corpora were first made."""
    ends = "\0" if len(texts) > 1 else ""
    alphabet = sorted(set("".join(texts) + ends))
    pieces = [
        [alphabet.index(char) for char in text + ends] if tokenizer == "chars" else [*(text + ends).encode()]
        for text in texts
    ]
    numbers: list[list[int]] = [[*range(len(pieces))], [], []]
    missed: list[int] = []
    for part, fraction in ((2, test), (1, val / (1 - test))):
        chosen = choose_held_out([len(pieces[number]) for number in numbers[0]], fraction) if fraction else set()
        if missed or (fraction and not chosen):
            missed.append(part)
            continue
        numbers[part] = [number for place, number in enumerate(numbers[0]) if place in chosen]
        numbers[0] = [number for place, number in enumerate(numbers[0]) if place not in chosen]
    train, held_out, tested = ([token for number in of for token in pieces[number]] for of in numbers)
    if 2 in missed:
        cut = int(len(train) * (1 - test))
        train, tested = train[: cut - min(1024, cut // 100)], train[cut:]
    if 1 in missed:
        cut = int(len(train) * (1 - val / (1 - test)))
        train, held_out = train[: cut - min(1024, cut // 100)], train[cut:]
    return train, held_out, tested, hashlib.sha256("\0".join(texts).encode()).hexdigest()


@given(
    texts=st.lists(st.text(st.sampled_from("ab \né€𝄞"), min_size=8).filter(str.strip), min_size=1, max_size=8),
    tokenizer=st.sampled_from(["bytes", "chars"]),
    fraction=st.sampled_from([0.1, 0.3, 0.5]),
    test=st.sampled_from([0.0, 0.2]),
    shard=st.sampled_from([5, 64, 2**28]),
)
def test_a_corpus_is_what_it_is_in_memory(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], tokenizer: Any, fraction: float, test: float, shard: int
) -> None:
    """Read in pieces of 3 bytes and written in shards, tokens, split and hash are those of all texts at once."""
    folder = write(tmp_path_factory.mktemp("texts"), {f"{number}.txt": text for number, text in enumerate(texts)})
    for number, text in enumerate(texts):
        (folder / f"{number}.txt").write_bytes(text.encode())
    names = sorted((f"{n}.txt" for n in range(len(texts))), key=lambda name: hashlib.sha256(name.encode()).digest())
    expected = at_once([texts[int(name.split(".")[0])] for name in names], tokenizer, fraction, test)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "CHUNK_BYTES", 3)
        patch.setattr(shards, "SHARD_TOKENS", shard)
        try:
            options = {"tokenizer": tokenizer, "val_fraction": fraction, "test_fraction": test}
            corpus = load(folder, folder / ".cache", 1, **options)
        except DataError:
            assert min(map(len, expected[: 3 if test else 2])) < 2
            return
    tested = replace(corpus, eval_split="test").val.tolist()
    assert expected == (corpus.train.tolist(), corpus.val.tolist(), tested, corpus.meta["sha256"])
    assert all(size <= shard for name in SPLITS for _, _, size in corpus.meta[f"{name}_shards"])


def test_the_standard_library_is_a_corpus(tmp_path: Path) -> None:
    """data=python is there without a download: tokens, split and hash are those of all its files at once.

    It has megabytes, prose and code apart, a small validation split, and no tests.
    """
    data = PackagedCorpusConfig(name="python", val_fraction=0.02)
    texts = []
    for file in texts_of(data).files:
        raw = file.path.read_bytes()
        if raw.strip() and b"\0" not in raw:
            try:
                texts.append(raw.decode("utf-8-sig"))
            except UnicodeDecodeError:
                continue
    pieces = [(text + "\0").encode() for text in texts]
    chosen = choose_held_out([len(piece) for piece in pieces], 0.02)
    train, val = (
        b"".join(piece for number, piece in enumerate(pieces) if (number in chosen) == wanted)
        for wanted in (False, True)
    )
    corpus = load_corpus(data, 128, tmp_path)
    assert hashlib.sha256("\0".join(texts).encode()).hexdigest() == corpus.meta["sha256"]
    assert (train, val) == (np.asarray(corpus.train).tobytes(), np.asarray(corpus.val).tobytes())
    assert {"docs", "modules", "json", "email"} <= set(corpus.meta["domains"])
    assert not {"test", "idle_test", "encodings", "site-packages"} & set(corpus.meta["domains"])
    assert corpus.meta["num_bytes"] > 5_000_000
    assert 0.01 < len(corpus.val) / (len(corpus.val) + len(corpus.train)) < 0.04
    assert 2 < corpus.meta["bigram_bpb"] < 8
    assert f"python corpus, {corpus.meta['num_bytes'] / 1e6:.3g} MB, bytes" == corpus.describe()


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, text_file: Path) -> None:
    """Where a file may not grow beyond 2 kB the build ends with a DataError, and the next one succeeds."""
    before = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))"
    command = [sys.executable, "-c", BUILD.format(before=before), str(text_file), str(tmp_path / "cache")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (2, True) == (result.returncode, result.stdout.startswith("cannot write the token files to "))
    assert "File too large" in result.stdout
    assert [] == list((tmp_path / "cache").iterdir())
    assert load(text_file, tmp_path / "cache").val.tolist()


def test_no_room_for_the_last_bytes(tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room may end at any file, meta.json included."""

    def full(*arguments: Any, **named: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(DataError, match=r"cannot write the token files to .*: No space left on device"):
        load(text_file, tmp_path)
    assert [] == list(tmp_path.iterdir())


def test_what_a_killed_build_leaves_is_removed(tmp_path: Path, text_file: Path) -> None:
    """Killed half way it leaves no corpus; the next build frees its disk, but not that of one that is alive."""
    before = (
        "from moe_cli.data import corpus_builder; import time\n"
        "corpus_builder._meta = lambda *arguments: (print('half way', flush=True), time.sleep(100))"
    )
    command = [sys.executable, "-c", BUILD.format(before=before), str(text_file), str(tmp_path)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in started:
        assert process.stdout
        assert "half way\n" == process.stdout.readline()
    killed, alive = started
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    left = list(tmp_path.iterdir())
    assert 2 == len(left)
    for folder in left:
        os.utime(folder, (time.time() - 60,) * 2)
    corpus = load(text_file, tmp_path)
    assert 2 == len(list(tmp_path.iterdir()))
    alive.kill()
    alive.communicate()
    for folder in tmp_path.glob(".building-*"):
        os.utime(folder, (time.time() - 60,) * 2)
    load(text_file, tmp_path, val_fraction=0.2)
    assert [] == list(tmp_path.glob(".building-*"))
    assert load(text_file, tmp_path).folder == corpus.folder


@pytest.mark.parametrize("change", ["longer", "shorter", "same length", "other characters", "binary", "gone"])
@pytest.mark.parametrize("tokenizer", ["bytes", "chars"])
def test_a_file_that_changes_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, tokenizer: Any
) -> None:
    """Between the first and the second reading: a DataError that names the file, and no corpus of half of each."""
    folder = many(tmp_path / "text", 4)
    path, write = folder / "d02.txt", corpus_builder._write
    text = path.read_text()
    new = {
        "longer": text + "x",
        "shorter": text[:-1],
        "same length": text[:-1] + "b" * (text[-1] != "b") or "d",
        "other characters": "§" * len(text),
        "binary": "\0" * len(text),
    }

    def changing(*arguments: Any) -> Any:
        path.unlink()
        if change != "gone":
            path.write_text(new[change])
        return write(*arguments)

    monkeypatch.setattr(corpus_builder, "_write", changing)
    message = "does not exist" if change == "gone" else "changed while it was read"
    with pytest.raises(DataError, match=rf"d02.txt {message}"):
        load(folder, tmp_path / "cache", tokenizer=tokenizer)
    assert [] == list((tmp_path / "cache").iterdir())


def test_a_table_that_grows_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record more in the second reading is noticed too."""
    path, write = tmp_path / "a.jsonl", corpus_builder._write
    path.write_text("".join(f'{{"text": "{words(200, number)}"}}\n'.replace("\n", " ") + "\n" for number in range(9)))

    def growing(*arguments: Any) -> Any:
        with path.open("a") as file:
            file.write('{"text": "more"}\n')
        return write(*arguments)

    monkeypatch.setattr(corpus_builder, "_write", growing)
    with pytest.raises(DataError, match=r"a.jsonl changed while it was read"):
        load(path, tmp_path / "cache")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the disk in the middle of a file."""

    class Failing:
        def __enter__(self) -> "Failing":
            return self

        def __exit__(self, *error: object) -> None: ...

        def read(self, size: int) -> Iterator[bytes]:
            raise OSError(errno.EIO, "Input/output error")

    path = write(tmp_path, {"a.txt": words(3000)}) / "a.txt"
    monkeypatch.setattr(documents, "open_file", lambda *arguments: Failing())
    with pytest.raises(DataError, match=r"a.txt cannot be read: Input/output error"):
        load(path, tmp_path / "cache")


def test_a_corpus_of_shards_trains_as_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents know their domains also where validation is in several files."""
    folder = write(tmp_path / "text", {f"{'ab'[n % 2]}/{n}.txt": "ab"[n % 2] * (150 + n) for n in range(20)})
    monkeypatch.setattr(shards, "SHARD_TOKENS", 100)
    corpus: Corpus = load(folder, tmp_path / "cache", val_fraction=0.3)
    assert len(corpus.meta["val_shards"]) > 3
    letters = [chr(token) for token in corpus.val]
    domains = [corpus.meta["domains"][place] for place in corpus.domain_ids_at(np.arange(len(corpus.val)))]
    assert domains == [letter if letter != "\0" else letters[place - 1] for place, letter in enumerate(letters)]
