"""Tokens in several files are one sequence."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_cli.data import shards as module
from moe_cli.data.shards import Shard, ShardWriter, Tokens, blocks, slice_shards
from moe_cli.errors import DataError
from tests.data.made_token_files import raw, sparse, with_header

SIZES = [5, 1, 8, 3]


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> list[Shard]:
    """Four files that hold 0 to 16, one after the other, the last with a header."""
    folder, passed, result = tmp_path_factory.mktemp("shards"), 0, []
    for number, size in enumerate(SIZES):
        write, first_byte = (with_header, 1024) if number == 3 else (raw, 0)
        path = write(folder / str(number), range(passed, passed + size))
        result.append(Shard(path, first_byte, size))
        passed += size
    return result


@given(st.integers(-20, 20), st.integers(-20, 20))
def test_a_slice_is_that_of_all_tokens_in_a_row(pieces: list[Shard], start: int, stop: int) -> None:
    """Any slice, within a file or over several, empty or from behind, is what a list would give."""
    tokens = Tokens(pieces, "uint16")
    assert list(range(17))[start:stop] == tokens[start:stop].tolist()
    assert list(range(17)) == tokens.tolist() == np.asarray(tokens).tolist()
    assert 17 == len(tokens)


def test_few_files_are_open_at_a_time(pieces: list[Shard], monkeypatch: pytest.MonkeyPatch) -> None:
    """At most MAX_OPEN shards are open: the oldest is closed, and opened again when it is read."""
    monkeypatch.setattr(module, "MAX_OPEN", 2)
    tokens = Tokens(pieces, "uint16")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        assert list(range(17)) == tokens.tolist()
        assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_blocks_are_all_tokens(pieces: list[Shard], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block is followed by the first of the next, where that is asked for."""
    monkeypatch.setattr(module, "BLOCK_TOKENS", 6)
    found = [block.tolist() for block in blocks(Tokens(pieces, "uint16"), overlap=1)]
    assert [list(range(7)), list(range(6, 13)), list(range(12, 17))] == found


@given(st.integers(0, 17), st.integers(0, 17))
def test_a_cut_is_a_slice(pieces: list[Shard], start: int, stop: int) -> None:
    """A part of shards has their tokens from start to stop, and no empty shard."""
    part = slice_shards(pieces, start, stop, 2)
    assert list(range(start, stop)) == Tokens(part, "uint16").tolist()
    assert all(shard.num_tokens for shard in part)


@pytest.mark.parametrize(("place", "number", "byte"), [(0, 0, 0), (5, 1, 0), (6, 2, 0), (13, 2, 14), (15, 3, 1026)])
def test_a_token_is_found_in_its_file(pieces: list[Shard], place: int, number: int, byte: int) -> None:
    """The file and the byte in it, behind a header too."""
    assert (pieces[number].path, byte) == Tokens(pieces, "uint16").locate(place)


@given(st.lists(st.integers(0, 9), max_size=6))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, sizes: list[int]) -> None:
    """However it is handed over, it lies in files of the size wanted but for the last."""
    folder = tmp_path_factory.mktemp("written")
    with pytest.MonkeyPatch.context() as patch, ShardWriter(folder, "train", np.uint16) as writer:
        patch.setattr(module, "SHARD_TOKENS", 4)
        for number, size in enumerate(sizes):
            writer.write(np.full(size, number, np.uint8))
    expected = [number for number, size in enumerate(sizes) for _ in range(size)]
    assert expected == Tokens(writer.shards, "uint16").tolist()
    assert all(shard.num_tokens == 4 for shard in writer.shards[:-1])
    assert sorted(path.name for path in folder.iterdir()) == [f"train_{i:04}.bin" for i in range(len(writer.shards))]


def test_tokens_beyond_two_to_the_31_are_addressed(tmp_path: Path) -> None:
    """In files of 5 and 6 GiB, without a byte of room for their zeros, what was planted is read where it was planted."""
    first, second = 5 * 2**30, 3 * 2**30 + 7  # tokens: uint8, then uint16
    place = first - 3
    one = sparse(tmp_path / "one", first, {place: [1, 2, 3], 2**31 + 5: [9]}, "uint8")
    tokens = Tokens([Shard(one, 0, first), Shard(one, 0, first)], "uint8")
    assert 2 * first == len(tokens)
    for start in (2**31 + 5, first + 2**31 + 5):
        assert [0, 9, 0] == tokens[start - 1 : start + 2].tolist()
    assert [0, 1, 2, 3, 0] == tokens[place - 1 : first + 1].tolist()
    assert (one, place + 2) == tokens.locate(first - 1)
    wide = sparse(tmp_path / "two", 2 * second, {2**31 + 1: [50_000]})
    tokens = Tokens([Shard(wide, 0, second)], "uint16")
    assert [0, 50_000, 0] == tokens[2**31 : 2**31 + 3].tolist()
    assert (wide, 2 * (2**31 + 1)) == tokens.locate(2**31 + 1)
    tokens.prefetch(2**31, 2**31 + 3)
    assert os.stat(wide).st_blocks < 1000


def mapped_bytes(path: Path) -> int:
    """How much of a file this process holds in memory."""
    parts = Path("/proc/self/smaps").read_text().split(str(path))[1:]
    return sum(int(part.split("Rss:")[1].split()[0]) * 1024 for part in parts)


def test_memory_is_let_go(tmp_path: Path) -> None:
    """Tokens stay mapped until `release`, and can be read again afterwards."""
    path = raw(tmp_path / "a", range(2**20), "uint32")
    tokens = Tokens([Shard(path, 0, 2**20)], "uint32", random_access=True)
    total = int(tokens[:].sum())
    assert 2**22 == mapped_bytes(path)
    tokens.release()
    assert 0 == mapped_bytes(path)
    assert total == int(tokens[:].sum())


def test_a_file_that_becomes_shorter_is_an_error_of_ours(tmp_path: Path) -> None:
    """Cut while it is open or before it is: a DataError that names it, where the system would end the process."""
    shard = Shard(raw(tmp_path / "a", range(5000)), 0, 5000)
    tokens = Tokens([shard], "uint16")
    assert 7 == tokens[7:8][0]
    os.truncate(shard.path, 6000)
    for reader in (tokens, Tokens([shard], "uint16")):
        with pytest.raises(DataError, match=r"a has become shorter: it has 6,000 bytes, and had 10,000"):
            reader[4000:4001]
    shard.path.unlink()
    with pytest.raises(DataError, match="a does not exist"):
        Tokens([shard], "uint16")[:1]
