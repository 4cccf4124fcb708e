"""Lists the files of a user's corpus: their order, domains and splits."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from moe_cli.config.data import TextFilesConfig
from moe_cli.data.dataset import source
from moe_cli.data.documents import RECORDS, Document, has_records, read_documents
from moe_cli.data.file_list import find_files, fingerprints
from moe_cli.data.splits import TEST, ignored_split_names, refuse_unused_fraction, splits_by_name
from moe_cli.errors import DataError


@dataclass(frozen=True)
class CorpusFile:
    """Documents of one domain, which can be read repeatedly.

    Attributes:
        path: their name in messages.
        split: TRAIN, VAL or TEST if the name gives it; None means that `split_documents` chooses.
    """

    path: Path
    domain: str
    documents: Callable[[], Iterator[Document]]
    split: int | None = None


@dataclass(frozen=True)
class CorpusSource:
    """The source files of a corpus.

    Attributes:
        state: a fingerprint, which changes when the sources change.
        version: the version of the packages that contain the corpus; None means no package.
        missing: corpora of a mix that are not installed.
        ignored_split_names: a warning about names that look like splits but are not used as splits.
        notes: notes on the parts of the data path that are left out.
        alphabet: all characters that may occur; None means those that do.
    """

    files: Sequence[CorpusFile]
    state: object
    version: str | None = None
    missing: Sequence[str] = ()
    ignored_split_names: str | None = None
    notes: Sequence[str] = ()
    alphabet: str | None = None


def list_texts(data: TextFilesConfig, outputs: Path | None = None) -> CorpusSource:
    """Lists the user's files, without those in the outputs folder.

    Raises:
        DataError: there are no files; data.field, or a fraction to hold out, has no effect.
    """
    found = find_files(data.path or "", data.exclude, outputs)
    root, paths = found.root, found.paths
    if data.field and not any(map(has_records, paths)):
        raise DataError(f"data.field={data.field} has no effect: {source(data)} has no {', '.join(RECORDS)}.")
    if paths == [root]:
        file = CorpusFile(root, root.name, partial(read_documents, root, data.field))
        return CorpusSource([file], fingerprints(paths), notes=found.notes)
    names = hash_shuffled(path.relative_to(root) for path in paths)
    splits = splits_by_name(names)
    if splits:
        refuse_unused_fraction(data, {TEST, *splits}, source(data))
    file_splits: Sequence[int | None] = splits or [None] * len(names)
    files = [
        CorpusFile(
            root / name,
            domain_of(_inside(name) if splits else name, "."),
            partial(read_documents, root / name, data.field),
            split,
        )
        for name, split in zip(names, file_splits, strict=True)
    ]
    return CorpusSource(
        files,
        fingerprints([file.path for file in files]),
        ignored_split_names=ignored_split_names(names),
        notes=found.notes,
    )


def _inside(name: Path) -> Path:
    """Returns the name of a file without the folder of its split."""
    return Path(*name.parts[1:]) if len(name.parts) > 1 else name


def hash_shuffled(names: Iterable[Path]) -> list[Path]:
    """Returns the names in order of their hashes, which mixes the folders and is always the same."""
    return sorted(names, key=lambda name: hashlib.sha256(os.fsencode(name.as_posix())).digest())


def domain_of(name: Path, top: str) -> str:
    """Returns the first folder of a file's name; `top` if it has none."""
    return name.parts[0] if len(name.parts) > 1 else top
