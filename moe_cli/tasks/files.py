"""Which files a user's corpus is made of, in which order, and the domain of each."""

import glob
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path

from moe_cli.config.data import CorpusData, HubData, TextData, TokenData
from moe_cli.errors import DataError
from moe_cli.tasks.documents import Document, has_records, read_documents
from moe_cli.tasks.splits import splits_by_name, unheeded


@dataclass(frozen=True)
class File:
    """Documents of one domain, which can be read again and again; `path` is what they are called in messages.

    Attributes:
        split: TRAIN, VAL or TEST where its name says so; None: what is held out is chosen.
    """

    path: Path
    domain: str
    documents: Callable[[], Iterator[Document]]
    split: int | None = None


@dataclass(frozen=True)
class Texts:
    """What a corpus is made of.

    Attributes:
        state: by what is known that it has changed.
        version: of the packages it comes from; None: from none.
        missing: corpora that a mix would have too, were they installed.
        unheeded: what is to be told of names that say a split which is none.
    """

    files: Sequence[File]
    state: object
    version: str | None = None
    missing: Sequence[str] = ()
    unheeded: str | None = None


def source(data: CorpusData) -> str:
    """The data as the user gave them, for messages."""
    return f"data.path={data.path}" if isinstance(data, TextData | TokenData | HubData) else f"data={data.name}"


def list_texts(data: TextData) -> Texts:
    """The user's files.

    Raises:
        DataError: there are none; data.field has no effect.
    """
    root, paths = find_files(data.path or "")
    if data.field and not any(map(has_records, paths)):
        raise DataError(f"data.field={data.field} has no effect: there is no .jsonl or .parquet in {source(data)}.")
    if paths == [root]:
        return Texts([File(root, root.name, partial(read_documents, root, data.field))], stamps(paths))
    names = mixed(path.relative_to(root) for path in paths)
    splits = splits_by_name(names)
    if splits and data.test_fraction:
        raise DataError(
            f"data.test_fraction={data.test_fraction} has no effect: the names in {source(data)} say what is for training "
            "and what is held out. Leave it out."
        )
    given: Sequence[int | None] = splits or [None] * len(names)
    files = [
        File(root / name, domain_of(_inside(name) if splits else name, "."),
             partial(read_documents, root / name, data.field), split)
        for name, split in zip(names, given, strict=True)
    ]  # fmt: skip
    return Texts(files, stamps([file.path for file in files]), unheeded=unheeded(names))


def _inside(name: Path) -> Path:
    """The name of a file in the folder of its split."""
    return Path(*name.parts[1:]) if len(name.parts) > 1 else name


def mixed(names: Iterable[Path]) -> list[Path]:
    """In an order that is fixed but mixes the folders: by a hash of their names."""
    return sorted(names, key=lambda name: hashlib.sha256(os.fsencode(name.as_posix())).digest())


def domain_of(name: Path, top: str) -> str:
    """The first folder a file lies in; `top` if in none."""
    return name.parts[0] if len(name.parts) > 1 else top


def find_files(given: str) -> tuple[Path, list[Path]]:
    """A folder and the files in it that a path stands for; of one file, that file twice.

    The path is a file, a folder, or a pattern such as logs/*.txt, in which ** stands for any folders. Files and
    folders whose names begin with a dot are passed over.

    Raises:
        DataError: there are none.
    """
    root = Path(given)
    if not root.exists():
        if not glob.has_magic(given):
            raise DataError(f"data.path={given} does not exist.")
        parts = root.parts
        root = Path(*takewhile(lambda part: not glob.has_magic(part), parts))
        pattern = os.path.join(*parts[len(root.parts) :])
        files = [root / name for name in glob.glob(pattern, root_dir=root, recursive=True)]
        files = [path for path in files if path.is_file()]
        if not files:
            raise DataError(f"data.path={given} matches no file.")
    elif root.is_dir():
        files = [path for path in root.rglob("*") if path.is_file() and not _hidden(path.relative_to(root))]
        if not files:
            raise DataError(f"data.path={given} is a folder without files.")
    else:
        files = [root]
    return root, files


def stamps(paths: Sequence[Path]) -> list[tuple[str, int, int]]:
    """By what a changed file is known: its size and the time of its last change. Raises DataError: one is gone."""
    try:
        return [(str(path), stat.st_size, stat.st_mtime_ns) for path in paths for stat in (path.stat(),)]
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}.") from None


def _hidden(name: Path) -> bool:
    return any(part.startswith(".") for part in name.parts)
