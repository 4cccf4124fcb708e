"""Data of the cache: whatever happens to a file, a run learns from what was built or it is built again."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_cli.config.data import PackagedImagesConfig, SyntheticRatingsConfig, TextFilesConfig
from moe_cli.data.cached import write_checksums
from moe_cli.data.corpora import load_corpus
from moe_cli.data.images import load_images
from moe_cli.data.ratings import load_ratings
from moe_cli.errors import DataError
from tests.tiny import words


def _corpus(cache: Path) -> Any:
    found = load_corpus(TextFilesConfig(path=str(cache.parent / "text.txt")), 8, cache)
    return found, [found.train[:].tobytes(), found.val[:].tobytes(), found.starts.tobytes(), found.domain_ids.tobytes()]


def _images(cache: Path) -> Any:
    found = load_images(PackagedImagesConfig(name="digits"), cache)
    return found, [
        np.asarray(part).tobytes() for split in (found.train, found.val) for part in (split.pixels, split.labels)
    ]


def _ratings(cache: Path) -> Any:
    found = load_ratings(SyntheticRatingsConfig(users=30, items=20, clusters=2, num_pairs=400), cache)
    return found, [part.tobytes() for split in (found.train, found.val) for part in vars(split).values()]


def flip(path: Path) -> None:
    """Changes one bit, as a disk may: without another time."""
    before, raw = path.stat(), bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def zero(path: Path) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2] + bytes(len(raw) - len(raw) // 2))


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def nested(path: Path) -> None:
    path.write_bytes(b'{"a":' * 20_000 + b"1" + b"}" * 20_000)


DAMAGES = (flip, zero, Path.unlink, pipe, nested)


@pytest.mark.parametrize("load", [_corpus, _images, _ratings])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_data_are_built_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], load: Callable[[Path], Any], damage: Callable[[Path], None]
) -> None:
    """Every file of every kind of data: a line names it, and what is learned from is what it was."""
    (tmp_path / "text.txt").write_text(words(3000))
    cache = tmp_path / "cache"
    first, expected = load(cache)
    names = sorted(path.name for path in first.folder.iterdir() if path.stat().st_size and path.name[0] != ".")
    assert {"meta.json", "checksums.json"} < set(names)
    for name in names:
        raw = (first.folder / name).read_bytes()
        damage(first.folder / name)
        if (first.folder / name).is_file() and raw == (first.folder / name).read_bytes():
            continue  # what was zero is zero
        again, content = load(cache)
        assert (name, first.meta) == (name, again.meta)
        assert expected == content
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
        assert f"in {first.folder} are damaged ({name}" in line
    assert [first.folder] == list(cache.iterdir())
    load(cache)
    assert "" == capsys.readouterr().err


@pytest.mark.parametrize("load", [_corpus, _images, _ratings])
def test_a_description_of_other_types_is_made_again(tmp_path: Path, load: Callable[[Path], Any]) -> None:
    """Though all checksums are right, as where a cache comes from somebody else."""
    (tmp_path / "text.txt").write_text(words(3000))
    first, expected = load(tmp_path / "cache")
    for change in ({}, {**first.meta, "vocab_size": "x"}, dict.fromkeys(first.meta)):
        (first.folder / "meta.json").write_text(json.dumps(change))
        (first.folder / "checksums.json").unlink()
        (first.folder / "checksums.bin").unlink()
        write_checksums(first.folder)
        assert expected == load(tmp_path / "cache")[1]


def test_a_large_token_file_is_checked_where_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flipped bit that neither size nor time shows is found in the block that holds it; the next use builds it again."""
    monkeypatch.setattr("moe_cli.data.cached.WHOLE_BYTES", 0)
    (tmp_path / "text.txt").write_text(words(20_000))
    _, expected = _corpus(tmp_path / "cache")
    found = load_corpus(TextFilesConfig(path=str(tmp_path / "text.txt")), 8, tmp_path / "cache")
    path = found.folder / "train_0000.bin"
    flip(path)
    damaged = path.stat().st_size // 2 // 4096 * 4096
    assert expected[0][:damaged] == found.train[:damaged].tobytes()
    with pytest.raises(DataError, match=rf"is damaged: its bytes from {damaged:,} to {damaged + 4096:,} have changed"):
        found.train[damaged - 5 : damaged + 5]
    assert expected == _corpus(tmp_path / "cache")[1]


def test_no_reader_of_tokens_is_built_for_half_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that holds something else is set aside as damaged data are."""
    (tmp_path / "text.txt").write_text(words(3000))
    found, expected = _corpus(tmp_path / "cache")
    for path in found.folder.iterdir():
        path.unlink()
    assert expected == _corpus(tmp_path / "cache")[1]
    assert "checksums.json is missing" in capsys.readouterr().err
