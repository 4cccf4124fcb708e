"""Parts of words: nothing is lost, bytes are exact, wrong files are said."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_cli.data.bpe import SubwordTokenizer, read_tokenizer, train_bpe
from moe_cli.data.tokenizers import load_tokenizer
from moe_cli.errors import CheckpointError, DataError
from moe_cli.execution.trained_model import load_trained
from moe_cli.training.explain import text_tokens
from tests.data.test_corpora import load, many, write
from tests.tiny import finish, tiny_config, words

tokenizers = pytest.importorskip("tokenizers")
TEXTS = [words(3000), "naïve 𝄞 </s> " * 9]
BPE = train_bpe(iter(TEXTS), 400)


def saved(path: Path, tokenizer: Any) -> str:
    path.write_text(tokenizer.to_str())
    return str(path)


def byte_level(*added: str, normalizer: Any = None) -> Any:
    """A tokenizer.json of GPT-2's kind."""
    own = tokenizers.Tokenizer.from_str(BPE.json)
    own.add_special_tokens(list(added))
    own.normalizer = normalizer
    return own


def word_piece() -> Any:
    own = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({"[UNK]": 0, "[SEP]": 1, "ba": 2, "##de": 3, "ki": 4}, unk_token="[UNK]")
    )
    own.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    own.add_special_tokens(["[UNK]", "[SEP]"])
    return own


@given(st.text())
def test_text_comes_back(text: str) -> None:
    """Any text round trips, and its tokens stand for exactly its bytes."""
    ids = BPE.encode(text)
    assert text == BPE.decode(ids.tolist())
    assert len(text.encode()) == BPE.bytes_per_token()[ids].sum()


def test_a_stored_tokenizer_is_the_same_one() -> None:
    """A tokenizer is restored from the dictionary that it is stored as."""
    assert BPE == load_tokenizer(BPE.to_dict())


@given(st.text(st.sampled_from("aé€𝄞 "), min_size=1), st.integers(0, 12), st.integers(0, 12))
def test_a_part_is_the_characters_whole_in_it(text: str, start: int, length: int) -> None:
    """Bytes from one place to another, without characters that are cut in two."""
    whole = BPE.decode(BPE.encode(text, start, start + length).tolist())
    ends = np.cumsum([0, *(len(char.encode()) for char in text)])
    inside = [
        char for char, begin, end in zip(text, ends, ends[1:], strict=False) if start <= begin and end <= start + length
    ]
    assert "".join(inside) == whole


def test_frequent_pairs_become_tokens() -> None:
    """The commonest words of the text take a token each, and the vocabulary is what was asked for."""
    tokenizer = train_bpe(iter(["the gate and the expert " * 50]), 300)
    assert [" the"] == [tokenizer.decode([token]) for token in tokenizer.encode(" the").tolist()]
    assert 300 == tokenizer.vocab_size == len(tokenizer.bytes_per_token())
    assert 256 < tokenizer.num_used < 300


def test_training_is_deterministic() -> None:
    """Another process makes the same tokenizer of the same text."""
    code = (
        "import json, sys; from moe_cli.data.bpe import train_bpe\n"
        "print(train_bpe(iter(json.load(sys.stdin)), 400).sha256)"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(TEXTS), capture_output=True, text=True, check=True
    ).stdout
    assert output.strip() == BPE.sha256


def test_a_corpus_of_parts_of_words(tmp_path: Path) -> None:
    """Every document comes back from its split, bytes are those of `bytes`, and BPE learned from training text alone."""
    folder = many(tmp_path / "text")
    corpus = load(folder, tmp_path / "cache", tokenizer="bpe", bpe_vocab=400)
    plain = load(folder, tmp_path / "cache")
    for split in ("train", "val"):
        tokens, whole = getattr(corpus, split), getattr(plain, split)
        assert bytes(whole.tolist()) == corpus.tokenizer.to_bytes(tokens.tolist())
        assert len(whole) == corpus.bytes_per_token[np.asarray(tokens)].sum()
    assert len(corpus.train) < len(plain.train) / 2
    assert corpus.meta["gzip_bpb"] == plain.meta["gzip_bpb"]
    learned = train_bpe(iter(plain.tokenizer.decode(plain.train.tolist()).split("\0")), 400)
    assert learned == corpus.tokenizer
    pieces = [
        corpus.tokenizer.decode(corpus.train[a:b].tolist())
        for a, b in zip(corpus.document_starts(corpus.train), corpus.document_starts(corpus.train)[1:], strict=False)
    ]
    assert all(piece.endswith("\0") and piece.count("\0") == 1 for piece in pieces)


def test_one_file_is_cut_in_bytes(tmp_path: Path) -> None:
    """The parts of a single text are those of `bytes`."""
    path = write(tmp_path, {"a.txt": words(6000)}) / "a.txt"
    corpus = load(path, tmp_path / "cache", tokenizer="bpe", bpe_vocab=400)
    plain = load(path, tmp_path / "cache")
    for split in ("train", "val"):
        assert bytes(getattr(plain, split).tolist()) == corpus.tokenizer.to_bytes(getattr(corpus, split).tolist())


def test_a_file_that_ends_texts_is_the_separator(tmp_path: Path) -> None:
    """<|endoftext|> of a tokenizer.json stands between documents for one byte; in a text it is text."""
    path = saved(tmp_path / "t.json", byte_level("<|endoftext|>"))
    folder = write(tmp_path / "text", {f"{n}.txt": f"a<|endoftext|>{words(90, n)}" for n in range(9)})
    corpus = load(folder, tmp_path / "cache", tokenizer=path)
    end = 400
    assert (end, 401) == (corpus.tokenizer.separator, corpus.meta["vocab_size"])
    tokens = [*corpus.train, *corpus.val]
    assert 9 == tokens.count(end)
    assert "uint16" == corpus.meta["dtype"]
    assert 1 == corpus.bytes_per_token[end]


@pytest.mark.parametrize("kind", ["lower case", "words"])
def test_a_tokenizer_that_changes_text_has_no_bytes(tmp_path: Path, kind: str) -> None:
    """Where letters become small, or blanks are lost, bits per byte are not made up: there are none."""
    own = word_piece() if kind == "words" else byte_level(normalizer=tokenizers.normalizers.Lowercase())
    text = {f"{n}.txt": f"Ba bade ki{n}\n" * 20 for n in range(9)}
    path = saved(tmp_path / "t.json", own)
    corpus = load(write(tmp_path / "text", text), tmp_path / "cache", tokenizer=path)
    assert not corpus.meta["lossless"]
    assert corpus.bytes_per_token is None
    assert corpus.meta["bigram_bpb"] is None
    summary = finish(tiny_config(tmp_path / "text", data={"tokenizer": path}, train={"steps": 1}), tmp_path).summary()
    assert (summary or {})["val_bpb"] is None
    if kind == "words":
        assert " bade ki" == corpus.tokenizer.decode([2, 3, 4])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist. Use bytes, chars, bpe, or the path"),
        ("folder", "is a folder. Give the tokenizer.json in it."),
        (b"", "is empty"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is nested more than 64 deep"),
        (b'{"vocab": 3}', "no tokenizer: it has no 'model'"),
        (b'{"model": {"type": "Nonsense"}}', "is no tokenizer: "),
        (
            b'{"model": {"type": "WordLevel", "vocab": {"a": 0, "b": 4000000000}, "unk_token": "a"}}',
            "ids up to 4,000,000,000",
        ),
        (
            b'{"model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"}}',
            "no token that can separate documents",
        ),
        (
            b'{"model": {"type": "WordLevel", "vocab": {"<0xZZ>": 0, "b": 1}, "unk_token": "b"}}',
            "no token that can separate documents",
        ),
    ],
)
def test_wrong_files_are_said(tmp_path: Path, content: Any, message: str) -> None:
    """Not there, not JSON, another kind of JSON, ids from nowhere, nothing to stand between documents."""
    path = tmp_path / "tokenizer.json"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        load(many(tmp_path / "text", 4), tmp_path / "cache", tokenizer=str(path))
    assert len(str(error.value).splitlines()) <= 3
    assert f"data.tokenizer={path}" in str(error.value)


def test_a_character_without_a_token_is_said(tmp_path: Path) -> None:
    """Where the tokenizer has no token for what it does not know."""
    own = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "<eos>": 1}, unk_token="[UNK]"))
    own.add_special_tokens(["<eos>"])
    path = saved(tmp_path / "t.json", own)
    with pytest.raises(DataError, match=r"cannot encode this text: .*UNK"):
        load(many(tmp_path / "text", 4), tmp_path / "cache", tokenizer=path)


def test_tokens_end_where_their_characters_do() -> None:
    """Token texts are cut from the text by position where a tokenizer rewrites blanks and unknown words."""
    text = "baki xx  bade "
    tokens = text_tokens(text, SubwordTokenizer("t", word_piece().to_str(), 5))
    assert ["baki", " xx", "  ba", "de "] == [each.text for each in tokens]
    assert text == "".join(each.text for each in tokens)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    """A quarter of a gigabyte is no tokenizer."""
    path = tmp_path / "tokenizer.json"
    with open(path, "wb") as file:
        file.truncate(2**28 + 1)
    with pytest.raises(DataError, match="bytes long: no tokenizer"):
        read_tokenizer(str(path))


def test_a_run_knows_its_tokenizer(tmp_path: Path) -> None:
    """Its hash is kept; with another one in the file the run is not evaluated, with the old one it is."""
    path = Path(saved(tmp_path / "t.json", byte_level()))
    text = many(tmp_path / "text", 9)
    run = finish(tiny_config(text, data={"tokenizer": str(path)}, train={"steps": 1}), tmp_path)
    assert read_tokenizer(str(path)).sha256 == run.meta()["corpus"]["tokenizer_sha256"]
    before = path.read_text()
    path.write_text(json.dumps(json.loads(byte_level("<|endoftext|>").to_str())))
    with pytest.raises(CheckpointError, match="was trained with another tokenizer"):
        load_trained(run, tmp_path)
    path.write_text(before)
    assert isinstance(load_trained(run, tmp_path).task.dataset.tokenizer, SubwordTokenizer)
