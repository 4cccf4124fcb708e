"""A file that is not there is absent; one that cannot be used is unreadable."""

import os
from pathlib import Path

import pytest

from moe_cli.files.reading import Unreadable, open_regular


@pytest.mark.parametrize("name", ["gone", "file/inside", "n" * 300, "file/" + "n" * 300])
def test_a_path_at_which_nothing_can_be_is_absent(tmp_path: Path, name: str) -> None:
    """Below a file, and under a name that is too long, there is no file: nothing is noted of it."""
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / name)


def test_what_is_no_regular_file_is_unreadable(tmp_path: Path) -> None:
    """A folder, a pipe and a link that leads nowhere are named as what they are."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("nowhere")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "link"):
        with pytest.raises(Unreadable):
            open_regular(path)
