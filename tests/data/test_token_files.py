"""Token files made by others: what is read, how they are divided, what is refused."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_cli.config.data import TokenFilesConfig
from moe_cli.data import token_files as module
from moe_cli.data.corpora import Corpus, load_corpus
from moe_cli.errors import ConfigError, DataError
from moe_cli.tasks.causal_lm import TextTask
from tests.data.made_token_files import raw, sparse, with_header


def load(path: Path, context_length: int = 16, **options: Any) -> Corpus:
    data = TokenFilesConfig(path=str(path), **{"vocab_size": 1000, **options})
    return load_corpus(data, context_length, path.parent / "cache")


def ids(size: int, seed: int = 0, vocab_size: int = 1000) -> list[int]:
    return np.random.default_rng(seed).integers(vocab_size, size=size).tolist()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32"])
def test_one_file_is_cut_at_the_share(tmp_path: Path, dtype: str) -> None:
    """The last share is for validation, and training ends a gap before it."""
    tokens = ids(5000, vocab_size=200)
    corpus = load(raw(tmp_path / "a.bin", tokens, dtype), dtype=dtype, val_fraction=0.1)
    assert tokens[4500:] == corpus.val.tolist()
    assert tokens[: 4500 - 45] == corpus.train.tolist()
    assert (corpus.meta["train_tokens"], corpus.meta["val_tokens"]) == (4455, 500)
    assert corpus.tokenizer is None
    assert f"tokens corpus, 4.96k {dtype}, 1,000 different" == corpus.describe()
    assert ["4.46k in 1 file, validation 500 in 1, no header"] == corpus.notes()


def test_validation_takes_no_more_than_wanted(tmp_path: Path) -> None:
    """data.val_tokens bounds the end that is cut off, and the files for validation; null takes all."""
    tokens = ids(5000)
    path = raw(tmp_path / "a.bin", tokens)
    assert tokens[-70:] == load(path, val_fraction=0.5, val_tokens=70).val.tolist()
    assert tokens[2500:] == load(path, val_fraction=0.5, val_tokens=None).val.tolist()
    for number in range(2):
        raw(tmp_path / "parts" / f"val_{number}.bin", tokens[number * 50 : number * 50 + 50])
    raw(tmp_path / "parts" / "train.bin", tokens)
    assert tokens[:70] == load(tmp_path / "parts", val_tokens=70).val.tolist()
    assert tokens[:100] == load(tmp_path / "parts", val_tokens=None).val.tolist()
    assert tokens == load(tmp_path / "parts").train.tolist()


@pytest.mark.parametrize(
    ("names", "train", "val", "left_out"),
    [
        (["train.bin", "val.bin"], "0", "1", 0),
        (["fineweb_train_000002.bin", "fineweb_val_000000.bin", "fineweb_train_000001.bin"], "20", "1", 0),
        (["a.bin", "validation.bin", "b.bin"], "02", "1", 0),
        (["a.bin", "TRAIN-0.bin", "x-valid.bin"], "1", "2", 1),
        (["interval.bin", "strain.bin"], None, None, 0),  # words within words
        (["train_0.bin", "train_1.bin"], None, None, 0),
        (["val_0.bin"], None, None, 0),
        (["train.bin", "val.bin", "test.bin"], "0", "1", 0),
    ],
)
def test_names_tell_training_from_validation(
    tmp_path: Path, names: list[str], train: str | None, val: str | None, left_out: int
) -> None:
    """A name that says val is for validation, and the others, or those that say train, are for training, in order of
    their names; without both, all files are one text that is cut."""
    contents = {name: ids(400, number) for number, name in enumerate(names)}
    for name, tokens in contents.items():
        raw(tmp_path / "tokens" / name, tokens)
    (tmp_path / "tokens" / "meta.pkl").write_bytes(b"no tokens")
    corpus = load(tmp_path / "tokens")
    if train is None or val is None:
        together = [token for name in sorted(names) for token in contents[name]]
        assert together[: len(corpus.train)] == corpus.train.tolist()
        assert together[-len(corpus.val) :] == corpus.val.tolist()
    else:
        assert [token for place in train for token in contents[names[int(place)]]] == corpus.train.tolist()
        assert contents[names[int(val)]] == corpus.val.tolist()
    assert left_out == corpus.meta["num_skipped"]
    assert bool(left_out) == any("they are named neither train, val nor test" in remark for remark in corpus.notes())


@pytest.mark.parametrize(
    ("names", "options", "spans"),
    [
        (["train", "val", "test"], {}, [("train", 0, 1000), ("val", 0, 1000), ("test", 0, 1000)]),
        (["train", "test"], {"val_fraction": 0.1}, [("train", 0, 891), ("train", 900, 1000), ("test", 0, 1000)]),
        (["train", "val"], {"test_fraction": 0.2}, [("train", 0, 792), ("val", 0, 1000), ("train", 800, 1000)]),
        (
            ["train"],
            {"val_fraction": 0.2, "test_fraction": 0.2},
            [("train", 0, 589), ("train", 594, 792), ("train", 800, 1000)],
        ),
        (["train", "val", "test"], {"val_tokens": 70}, [("train", 0, 1000), ("val", 0, 70), ("test", 0, 70)]),
    ],
)
def test_token_files_have_a_test_split(
    tmp_path: Path, names: list[str], options: dict[str, Any], spans: list[tuple[str, int, int]]
) -> None:
    """From files by their names, or from the end of training, which ends a gap before."""
    contents = {name: ids(1000, number) for number, name in enumerate(names)}
    for name, tokens in contents.items():
        raw(tmp_path / "tokens" / f"{name}.bin", tokens)
    corpus = load(tmp_path / "tokens", **options)
    splits = (corpus.train, corpus.val, corpus.with_test_split().val)
    assert [contents[name][first:last] for name, first, last in spans] == [split.tolist() for split in splits]
    assert any("test" in remark for remark in corpus.notes())


def test_token_files_lie_in_folders_of_splits(tmp_path: Path) -> None:
    """Where a file's own name says nothing, the folder it lies in does, the innermost first."""
    contents = {
        "train/shard0.bin": ids(400, 0),
        "val/shard0.bin": ids(400, 1),
        "test/deep/shard0.bin": ids(400, 2),
        "train/held/val_1.bin": ids(300, 3),
    }
    for name, tokens in contents.items():
        raw(tmp_path / "tokens" / name, tokens)
    corpus = load(tmp_path / "tokens")
    assert contents["train/shard0.bin"] == corpus.train.tolist()
    assert [*contents["train/held/val_1.bin"], *contents["val/shard0.bin"]] == corpus.val.tolist()
    assert contents["test/deep/shard0.bin"] == corpus.with_test_split().val.tolist()


def test_token_files_that_are_only_held_out_are_noted(tmp_path: Path) -> None:
    """With nothing to learn from, all are learned from, and that is said."""
    for name in ("val", "test"):
        raw(tmp_path / "tokens" / f"{name}.bin", ids(1000))
    assert any(remark.startswith("test.bin, val.bin may be trained on") for remark in load(tmp_path / "tokens").notes())


def test_a_test_of_one_token_is_refused(tmp_path: Path) -> None:
    """There is nothing to predict."""
    for name, size in (("train", 500), ("val", 100), ("test", 1)):
        raw(tmp_path / "tokens" / f"{name}.bin", ids(size))
    with pytest.raises(DataError, match=r"has 1 token for the test split. Give more text."):
        load(tmp_path / "tokens")


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_share_to_hold_out_that_files_hold_out(tmp_path: Path, part: str) -> None:
    """A share for validation, or for a test, is refused where a file is named for it."""
    for name in ("train", part):
        raw(tmp_path / "tokens" / f"{name}.bin", ids(1000))
    with pytest.raises(DataError, match=rf"data.{part}_fraction=0.2 has no effect"):
        load(tmp_path / "tokens", **{f"{part}_fraction": 0.2})


def test_headers_are_known_and_said(tmp_path: Path) -> None:
    """Files of GPT-2's and of Llama 3's tokens with the header of llm.c are those tokens, and the same corpus as raw ones."""
    tokens = ids(900)
    with_header(tmp_path / "a" / "train_1.bin", tokens[:500])
    with_header(tmp_path / "a" / "train_2.bin", tokens[500:])
    with_header(tmp_path / "a" / "val.bin", tokens[:100])
    corpus = load(tmp_path / "a")
    assert (tokens, tokens[:100]) == (corpus.train.tolist(), corpus.val.tolist())
    assert ["900 in 2 files, validation 100 in 1, llm.c header in 3"] == corpus.notes()
    raw(tmp_path / "b" / "train.bin", tokens)
    raw(tmp_path / "b" / "val.bin", tokens[:100])
    assert corpus.meta["sha256"] == load(tmp_path / "b").meta["sha256"]
    wide = with_header(tmp_path / "c.bin", [*tokens, 100_000] * 2, magic=20240801, dtype="uint32")
    assert 100_000 == max(load(wide, dtype="uint32", vocab_size=128_256).train)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64", "int32", "int64"])
@pytest.mark.parametrize("name", ["train.npy", "train.bin"])
def test_arrays_of_numpy_are_token_files(tmp_path: Path, dtype: str, name: str) -> None:
    """A file of numpy.save gives its tokens without the header, under any name, in the type of its header."""
    tokens = [token % 250 for token in ids(900)]
    (tmp_path / "a").mkdir()
    for path, part in ((tmp_path / "a" / name, tokens), (tmp_path / "a" / name.replace("train", "val"), tokens[:100])):
        with open(path, "wb") as file:
            np.save(file, np.array(part, dtype))
    corpus = load(tmp_path / "a", dtype=dtype if dtype.startswith("u") else f"u{dtype}")
    assert (tokens, tokens[:100]) == (corpus.train.tolist(), corpus.val.tolist())
    assert ["900 in 1 file, validation 100 in 1, numpy header in 2"] == corpus.notes()
    batches = [TextTask(corpus, 16, 0).train_batch(0, 4), *TextTask(corpus, 16, 0).val_batches(4)]
    assert all(batch.inputs.max() < 250 for batch in batches)


@pytest.mark.parametrize(
    ("array", "options", "message"),
    [
        (
            np.arange(512).reshape(2, 256),
            {},
            "is an array of shape (2, 256). Save one row of tokens: array.reshape(-1)",
        ),
        (np.ones(99), {}, "holds float64, not uint16 or uint32, little-endian: array.astype('<u4')"),
        (np.ones(99, ">u2"), {}, "holds >uint16, not uint16 or uint32, little-endian: array.astype('<u4')"),
        (np.array(["a"]), {}, "holds str32, not uint16 or uint32, little-endian"),
        (np.array([{}]), {}, "holds object, not uint16 or uint32, little-endian"),
        (np.ones(99, "i8"), {}, "holds uint64, by its header (int64). Use data.dtype=uint64"),
        (np.array([5, -3] * 300, "i4"), {"dtype": "uint32"}, "token 4294967293 is beyond data.vocab_size=1000"),
        (
            np.array([5, -3] * 300, "i8"),
            {"dtype": "uint64"},
            "token 18446744073709551613 is beyond data.vocab_size=1000",
        ),
        (np.zeros(0, "u2"), {}, "has no tokens."),
    ],
)
def test_arrays_that_are_no_tokens_are_refused(tmp_path: Path, array: Any, options: Any, message: str) -> None:
    """Two dimensions, other types, an order of bytes or a setting that is at odds, numbers below 0."""
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DataError) as error:
        load(tmp_path / "a.npy", **options)
    assert message in str(error.value)
    assert str(tmp_path / "a.npy") in str(error.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[:-2], "700 tokens of its header take 1,528. Copy it again."),
        (lambda raw: raw[:40], "cannot be read as .npy"),
        (lambda raw: b"x" + raw, "does not begin like a .npy file. Copy it again."),
    ],
)
def test_damaged_arrays_are_refused(tmp_path: Path, damage: Any, message: str) -> None:
    """Cut at the end, cut in the header, without its beginning."""
    np.save(tmp_path / "a.npy", np.array(ids(700), "u2"))
    (tmp_path / "a.npy").write_bytes(damage((tmp_path / "a.npy").read_bytes()))
    with pytest.raises(DataError) as error:
        load(tmp_path / "a.npy")
    assert message in str(error.value)


@pytest.mark.parametrize("suffix", [".gz", ".npz", ".zst"])
def test_packed_token_files_are_refused(tmp_path: Path, suffix: str) -> None:
    """They cannot be read in place."""
    path = raw(tmp_path / f"a.bin{suffix}", ids(700))
    with pytest.raises(DataError, match=r"is compressed, and token files are memory-mapped\. Unpack it\."):
        load(path)


def test_the_hash_sees_length_and_content(tmp_path: Path) -> None:
    """A token more, another token in a block that is looked at, or another division make another corpus; times do not."""
    tokens = ids(3000)
    path = raw(tmp_path / "a.bin", tokens)
    first = load(path).meta["sha256"]
    os.utime(path, (1, 1))
    assert first == load(path).meta["sha256"]
    assert first != load(path, val_fraction=0.1).meta["sha256"]
    raw(path, [*tokens, 1])
    assert first != load(path).meta["sha256"]
    raw(path, [*tokens[:-1], (tokens[-1] + 1) % 1000])
    assert first != load(path).meta["sha256"]


def test_the_hash_reads_a_bounded_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hash of a huge file reads a fixed number of blocks, the first and the last among them."""
    size = 2**34
    path = sparse(tmp_path / "a.bin", 2 * size, {0: [7], size - 1: [8]})
    seen: list[int] = []
    check = module.check_tokens
    monkeypatch.setattr(
        module, "check_tokens", lambda tokens, block, *rest: seen.append(block.nbytes) or check(tokens, block, *rest)
    )
    monkeypatch.setattr(module, "MAX_HASH_BLOCKS", 32)
    first = load(path).meta["sha256"]
    assert 32 + 32 == len(seen)
    assert sum(seen) == (32 + 32) * module.BLOCK_BYTES
    for place in (0, size - 1):
        sparse(path, 2 * size, {place: [9]})
        assert first != load(path).meta["sha256"]


@pytest.mark.parametrize("place", [0, 2999, 70_000])
def test_a_token_beyond_the_vocabulary_is_found_at_once_where_it_is_cheap(tmp_path: Path, place: int) -> None:
    """In the blocks that are hashed: a DataError with file, byte and token."""
    tokens = ids(100_000)
    tokens[place] = 1000
    path = with_header(tmp_path / "a.bin", tokens)
    with pytest.raises(DataError) as error:
        load(path)
    assert f"{path}, byte {1024 + 2 * place:,}: token 1000 is beyond data.vocab_size=1000." in str(error.value)


def test_a_token_beyond_the_vocabulary_is_found_in_its_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere it is found when its window is read, for training or for validation, with file and byte."""
    monkeypatch.setattr(module, "BLOCK_BYTES", 64)
    monkeypatch.setattr(module, "MAX_HASH_BLOCKS", 2)
    for name, other in (("train", "val"), ("val", "train")):
        tokens = ids(2000)
        tokens[1001] = 4242
        path = raw(tmp_path / name / f"{name}.bin", tokens)
        raw(tmp_path / name / f"{other}.bin", ids(500))
        task = TextTask(load(tmp_path / name), 16, 0)
        batches = task.val_batches(4) if name == "val" else (task.train_batch(i, 4) for i in range(40))
        with pytest.raises(DataError) as error:
            list(batches)
        assert f"{path}, byte 2,002: token 4242 is beyond data.vocab_size=1000." in str(error.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda path: path.write_bytes(b"x" * 777),
            "a.bin is 777 bytes long, not a multiple of the 2 of data.dtype=uint16",
        ),
        (lambda path: path.write_bytes(b""), "a.bin has no tokens."),
        (lambda path: with_header(path, []), "a.bin has no tokens."),
        (
            lambda path: with_header(path, ids(50), version=2),
            "a.bin has a header of version 2; only version 1 can be read.",
        ),
        (lambda path: with_header(path, ids(50), magic=20240801), "by its header (20240801). Use data.dtype=uint32"),
        (
            lambda path: with_header(path, ids(50), claimed=51),
            "a.bin is 1,124 bytes long, and the 51 tokens of its header",
        ),
        (
            lambda path: with_header(path, ids(50), claimed=-1),
            "a.bin is 1,124 bytes long, and the -1 tokens of its header",
        ),
        (lambda path: raw(path, ids(10)), "leaves 9 tokens for training and 1 "),
        (lambda path: path.mkdir(), "is a folder without .bin, .npy files. For text: data=text"),
        (lambda path: None, "does not exist."),
    ],
)
def test_what_is_no_token_file_is_refused(tmp_path: Path, make: Any, message: str) -> None:
    """Each with a DataError of at most three lines that names the file."""
    make(tmp_path / "a.bin")
    if (tmp_path / "a.bin").is_dir():
        (tmp_path / "a.bin" / "readme.md").write_text("no tokens")
    with pytest.raises(DataError) as error:
        load(tmp_path / "a.bin")
    assert message in str(error.value)
    assert str(tmp_path / "a.bin") in str(error.value)
    assert len(str(error.value).splitlines()) <= 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 1}, "data.vocab_size=1 must be between 2 and 4294967296."),
        ({"val_fraction": 0.6}, "data.val_fraction=0.6 must be between 0.0001 and 0.5."),
    ],
)
def test_settings_of_token_files(options: dict[str, Any], message: str) -> None:
    """A setting that is missing or out of range raises an error that names it."""
    with pytest.raises(ConfigError) as error:
        TokenFilesConfig(**{"path": "a.bin", "vocab_size": 100, **options})
    assert message == str(error.value)
