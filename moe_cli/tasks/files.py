"""Which files a corpus is made of, in which order, and the domain of each."""

import glob
import hashlib
import os
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from moe_cli.config.data import CorpusData, PythonData, TextData
from moe_cli.errors import DataError

# Beside tests and what others installed: encodings, whose generated tables repeat each other from file to file, so that
# having learned one would pass for having understood the next.
_NOT_CORPUS = {"test", "tests", "idle_test", "encodings", "site-packages", "dist-packages", "__pycache__"}


@dataclass(frozen=True)
class File:
    path: Path
    domain: str


def source(data: CorpusData) -> str:
    """The data as the user gave them, for messages."""
    return "data=python" if isinstance(data, PythonData) else f"data.path={data.path}"


def list_texts(data: PythonData | TextData) -> list[File]:
    """Files and their domains, in an order that is fixed but mixes the folders: by a hash of their names.

    Raises:
        DataError: there are none.
    """
    if isinstance(data, PythonData):
        root = Path(sysconfig.get_path("stdlib"))
        files = [path for path in root.rglob("*.py") if not _NOT_CORPUS & set(path.relative_to(root).parts)]
        if not files:
            raise DataError(f"data=python: this interpreter has no source files in {root}. Use data=text data.path=...")
    else:
        root, files = find_files(data.path or "")
        if files == [root]:
            return [File(root, root.name)]
    names = sorted((path.relative_to(root) for path in files), key=_order)
    return [File(root / name, _domain(data, name)) for name in names]


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


def _order(name: Path) -> bytes:
    return hashlib.sha256(os.fsencode(name.as_posix())).digest()


def _hidden(name: Path) -> bool:
    return any(part.startswith(".") for part in name.parts)


def _domain(data: CorpusData, name: Path) -> str:
    """The top-level package or sub-folder a file lies in; prose of the standard library is `docs`."""
    if isinstance(data, PythonData) and name.parts[0] == "pydoc_data":
        return "docs"
    return name.parts[0] if len(name.parts) > 1 else "modules" if isinstance(data, PythonData) else "."
