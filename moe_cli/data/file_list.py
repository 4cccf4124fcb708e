"""Lists and opens the files of a data path: text, images, tokens, ratings and tokenizers.

The rules:

- A data path is a file, a folder with all files below it, or a pattern such as logs/*.txt, in which ** matches any
  folders. Names that begin with a dot are left out, unless the path itself or a part of the pattern begins with one.
- A link is followed. Its own name determines the kind of the file, and the bytes are those of its target.
- A folder is entered once and a file is counted once, by device and inode, even if several links lead to it. If a
  folder has several names, one without links is used. If a file has several names, the first in order is used, where
  names with an ending come first. A link to a folder around the data path is not entered.
- Outputs of moe are not data: the outputs folder of this run, and every folder that `moe_cli.files.marker` recognises.
- `data.exclude` leaves out matches of its patterns: a name at any depth, or with a slash a path below the data path.
- Only regular files are read, of any size. A pipe, socket or device is refused before it is opened.

Files of a folder that are left out are noted, except hidden names. An unreadable file that the user names is an error.
"""

import errno
import glob
import os
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import takewhile
from pathlib import Path
from typing import IO

from moe_cli.errors import DataError
from moe_cli.files.marker import MARKER, is_outputs, is_run_folder
from moe_cli.files.reading import Unreadable, kind_of, open_regular
from moe_cli.formatting import listed, sanitise

# Why something is left out.
EXCLUDED = "by data.exclude"
OUTPUTS = "as outputs of moe"
TWICE = "as already read under another name"
NOWHERE = "as a broken link"
AROUND = "as a link to a folder around the data"
# At most this many names are printed in a note.
MAX_SHOWN = 3
# Device and inode.
_Identity = tuple[int, int]


@dataclass(frozen=True)
class DataFiles:
    """The files of a data path.

    Attributes:
        root: the folder of the files; for a single file, that file.
        paths: the files in order of their names; links are not resolved.
        left_out: names below `root` that are not data, by the reason.
        idle: patterns of data.exclude that leave nothing out.
    """

    root: Path
    paths: Sequence[Path]
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)
    idle: Sequence[str] = ()

    @property
    def notes(self) -> list[str]:
        """Returns a line for each reason why something is left out."""
        lines = [f"left out {reason}: {_listed(names)}" for reason, names in self.left_out.items()]
        return lines + [f"data.exclude={pattern} leaves nothing out" for pattern in self.idle]


def find_files(
    path: str,
    exclude: Sequence[str] = (),
    outputs: Path | None = None,
    endings: Collection[str] | None = None,
    hint: str = "",
) -> DataFiles:
    """Lists the files of a data path, by the rule of this module.

    Args:
        exclude: patterns of names to leave out of a folder.
        outputs: the outputs folder of this run, which may not exist yet.
        endings: endings of names in a folder, in lower case; None means all. They do not apply to a file or pattern.
        hint: advice for a folder without such files.

    Raises:
        DataError: there are no files; the path is neither a regular file nor a folder, or is in the outputs; or it is a
            single file and patterns to exclude are given.
    """
    root = Path(path)
    pattern: tuple[str, ...] = ()
    if not os.path.lexists(path) and glob.has_magic(path):
        fixed = tuple(takewhile(lambda part: not glob.has_magic(part), root.parts))
        root, pattern = Path(*fixed), root.parts[len(fixed) :]
        if not os.path.isdir(root):
            raise DataError(f"data.path={path} matches no file.")
    mode = check_readable(root, f"data.path={path}").st_mode
    _check_no_outputs(root, path, outputs)
    if not stat.S_ISDIR(mode):
        if exclude:
            raise DataError(
                f"data.exclude={','.join(exclude)} has no effect: data.path={path} is a file. Leave it out."
            )
        return DataFiles(root, [root])
    walk = _Walk(root, pattern, exclude, outputs, None if pattern else endings)
    found = walk.files()
    if not found.paths:
        kinds = f"{', '.join(endings)} " if endings else ""
        missing = "matches no file." if pattern else f"is a folder without {kinds}files.{hint and ' ' + hint}"
        raise DataError("\n".join([f"data.path={path} {missing}", *found.notes[:2]]))
    return found


def find_named(folder: str, names: Sequence[str]) -> Path | None:
    """Returns the first of `names` in a folder; None if it has none.

    Raises DataError if the folder or file is unreadable.
    """
    check_readable(Path(folder), f"data.path={folder}")
    for name in names:
        path = Path(folder, name)
        if os.path.lexists(path):
            check_readable(path, str(path))
            return path
    return None


def check_readable(path: Path, label: str) -> os.stat_result:
    """Returns size and kind of a regular file or folder, without opening it.

    Raises:
        DataError: it does not exist, or is a broken link, pipe, socket or device.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        if os.path.islink(path):
            raise DataError(f"{label} is a link to {os.readlink(path)}, which does not exist.") from None
        raise DataError(f"{label} does not exist.") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{label} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    if kind := kind_of(status.st_mode):
        raise DataError(f"{label} is a {kind}, and only files are read. Write its content to a file first.")
    return status


def open_file(path: Path, label: str | None = None) -> IO[bytes]:
    """Opens a regular file for reading. The call never blocks, even if the file was replaced by a pipe or device.

    Raises:
        DataError: it cannot be read, or is not a regular file.
    """
    label = label or str(path)
    if stat.S_ISDIR(check_readable(path, label).st_mode):
        raise DataError(f"{label} is a folder, not a file.")
    try:
        return open_regular(path)
    except FileNotFoundError:
        raise DataError(f"{label} does not exist.") from None
    except Unreadable as problem:
        raise DataError(f"{label} {problem}.") from None


def fingerprints(paths: Sequence[Path]) -> list[tuple[str, int, int]]:
    """Returns the path, size and modification time of each file, to detect changes.

    Raises DataError if a file is missing.
    """
    try:
        return [(str(path), status.st_size, status.st_mtime_ns) for path in paths for status in (path.stat(),)]
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}.") from None


def matches(parts: Sequence[str], pattern: Sequence[str], begins: bool = False) -> bool:
    """Returns whether a path matches a pattern, both in parts; with `begins`, whether a path with this start can match.

    ** matches any number of folders. A name that begins with a dot is matched only by a part that begins with one.
    """
    if not parts:
        return begins or all(part == "**" for part in pattern)
    if not pattern:
        return False
    name, part = parts[0], pattern[0]
    if name.startswith(".") and not part.startswith("."):
        return part == "**" and matches(parts, pattern[1:], begins)
    if part == "**":
        return matches(parts, pattern[1:], begins) or matches(parts[1:], pattern, begins)
    return fnmatchcase(name, part) and matches(parts[1:], pattern[1:], begins)


class _Walk:
    """One pass over a folder. Links to folders wait until all folders without links are known."""

    def __init__(
        self,
        root: Path,
        pattern: Sequence[str],
        exclude: Sequence[str],
        outputs: Path | None,
        endings: Collection[str] | None,
    ) -> None:
        self.root = root
        self.pattern = pattern
        self.exclude = {text: tuple(part for part in text.split("/") if part) for text in exclude}
        self.outputs = _identity(outputs) if outputs else None
        self.endings = endings
        real = root.resolve()
        self.around = {_identity(folder) for folder in (real, *real.parents)}
        self.entered: set[_Identity] = set()
        self.found: list[tuple[Path, _Identity]] = []
        self.left_out: dict[str, list[str]] = {}
        self.excluded: list[set[str]] = []  # the patterns that match each name that is left out

    def files(self) -> DataFiles:
        folders: list[tuple[Path, _Identity]] = [(Path(), (0, 0))]
        links: list[tuple[Path, _Identity]] = []
        while folders or links:
            if not folders:
                links.sort(reverse=True)
                folders.append(links.pop())
            name, identity = folders.pop()
            if identity in self.entered:
                self._leave_out(TWICE, name)
                continue
            self.entered.add(identity)
            for inner, which, linked in sorted(self._folders_in(name), reverse=True):
                (links if linked else folders).append((inner, which))
        return self._counted_once()

    def _counted_once(self) -> DataFiles:
        kept: dict[_Identity, Path] = {}
        for name, identity in sorted(self.found, key=lambda file: (not file[0].suffix, file[0].as_posix())):
            if identity in kept:
                self._leave_out(TWICE, name)
            else:
                kept[identity] = name
        # A pattern has no effect if other patterns match every name that it matches.
        idle = [pattern for pattern in self.exclude if {pattern} not in self.excluded]
        left_out = {reason: sorted(names) for reason, names in self.left_out.items()}
        return DataFiles(self.root, [self.root / name for name in sorted(kept.values())], left_out, idle)

    def _folders_in(self, folder: Path) -> Iterator[tuple[Path, _Identity, bool]]:
        """Collects the files of a folder. Yields the folders in it: name, identity, whether it is a link."""
        path = self.root / folder
        try:
            entries = [(entry, _status(entry)) for entry in os.scandir(path)]
        except OSError as error:
            raise DataError(
                f"{path} cannot be read: {error.strerror}. Make it readable, or leave it out: data.exclude"
            ) from None
        for entry, status in entries:
            name = folder / entry.name
            is_folder = status is not None and stat.S_ISDIR(status.st_mode)
            if not (matches(name.parts, self.pattern or ("**",), begins=True) if is_folder else self._wants(name)):
                continue
            if reason := self._reason(name, entry.path, status):
                self._leave_out(reason, name)
            elif status is not None:
                identity = status.st_dev, status.st_ino
                if is_folder:
                    yield name, identity, entry.is_symlink()
                else:
                    self.found.append((name, identity))

    def _reason(self, name: Path, path: str, status: os.stat_result | None) -> str | None:
        """Returns the reason why a file or folder is not data; None means that it is."""
        if self._excluded(name):
            return EXCLUDED
        if status is None:
            return NOWHERE
        if kind := kind_of(status.st_mode):
            return f"as a {kind}"
        if not stat.S_ISDIR(status.st_mode):
            return None
        identity = status.st_dev, status.st_ino
        if identity == self.outputs or is_outputs(path):
            return OUTPUTS
        return AROUND if identity in self.around else None

    def _wants(self, name: Path) -> bool:
        """Returns whether a file of this name is selected."""
        if not matches(name.parts, self.pattern or ("**",)):
            return False
        return self.endings is None or name.suffix.lower() in self.endings

    def _excluded(self, name: Path) -> bool:
        """Returns whether data.exclude has a pattern for this file or folder."""
        found = set()
        for text, pattern in self.exclude.items():
            below_root = "/" in text.rstrip("/")
            if matches(name.parts, pattern) if below_root else fnmatchcase(name.name, text.rstrip("/")):
                found.add(text)
        if found:
            self.excluded.append(found)
        return bool(found)

    def _leave_out(self, reason: str, name: object) -> None:
        self.left_out.setdefault(reason, []).append(str(name))


def _check_no_outputs(root: Path, path: str, outputs: Path | None) -> None:
    """Raises DataError when a path lies in a run folder, or is an outputs folder."""
    real = root.resolve()
    run = next((folder for folder in (real, *real.parents) if is_run_folder(folder)), None)
    if run is not None:
        raise DataError(
            f"data.path={path} is in the run folder {run}, and outputs of moe are not data. Copy it elsewhere."
        )
    if root.is_dir() and (is_outputs(root) or (outputs is not None and _identity(root) == _identity(outputs))):
        raise DataError(
            f"data.path={path} is the outputs folder {real}, and outputs of moe are not data.\n"
            f"Give another folder, or keep runs elsewhere: --outputs DIR (where no runs are, remove {real / MARKER})"
        )


def _identity(path: Path) -> _Identity | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _status(entry: os.DirEntry[str]) -> os.stat_result | None:
    """Returns the status of a folder entry or its link target; None for a broken or circular link."""
    try:
        return entry.stat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise


def _listed(names: Sequence[str]) -> str:
    return sanitise(listed(names, MAX_SHOWN))
