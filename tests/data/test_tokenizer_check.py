"""A tokenizer.json from others: what could hang, fill the memory or print pages is refused in a line."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from moe_cli.data.bpe import read_tokenizer
from moe_cli.data.tokenizer_check import EncodingTime, call_with_limit, has_nested_repetition, hazard, quiet
from moe_cli.errors import DataError

PUBLISHED = [
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{M}]*[\p{Ll}\p{M}]+(?i:'s|'t)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+",
    r"(?=(\d{3})+(?!\d))",
    r"[(+]+\)*",
]
ENDLESS = [r"(a+)+b", r"(?:x|y*){2,}z", r"((a|b)+c*)*$", r"(\w+\s?)+$", r"((a+))+", r"(?:(?:a+)b?)+", r"([a-z]+)*\d"]


def tokenizer(**parts: Any) -> dict[str, Any]:
    vocab = {"a": 0, "b": 1, "\0": 2, "[UNK]": 3}
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"}
    return {
        "version": "1.0",
        "added_tokens": [],
        "model": model,
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "truncation": None,
        "padding": None,
        **parts,
    }


def saved(folder: Path, pattern: str) -> str:
    """The path of a tokenizer that splits text by a pattern."""
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(tokenizer(pre_tokenizer={"type": "Sequence", "pretokenizers": [split]})))
    return str(path)


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


@pytest.mark.parametrize("pattern", PUBLISHED)
def test_published_patterns_are_taken(pattern: str) -> None:
    """Those of GPT-2, Llama 3 and GPT-4o, and brackets within sets."""
    assert not has_nested_repetition(pattern)


@pytest.mark.parametrize("pattern", ENDLESS)
def test_patterns_without_end_are_refused(tmp_path: Path, pattern: str) -> None:
    """A repetition within a repeated group, however deep, wherever it stands in the file."""
    with pytest.raises(DataError, match=r"is not used: its pattern .* may never end"):
        read_tokenizer(saved(tmp_path, pattern))


@pytest.mark.parametrize("pattern", [r"(a|a)*b", pytest.param(r"a*a*a*b", marks=pytest.mark.slow)])
def test_patterns_that_backtrack_too_long_are_refused(tmp_path: Path, pattern: str) -> None:
    """Overlapping alternatives and neighbours: nothing repeated holds a repetition, so only a try shows the time."""
    with pytest.raises(DataError, match=r"tokenizer.json is not used: its patterns take too long on a text"):
        read_tokenizer(saved(tmp_path, pattern))


def test_a_text_without_end_is_given_up_and_the_process_ends(tmp_path: Path) -> None:
    """A pattern that no try found out: the error names the file, and the encoding that goes on holds nothing up."""
    text = ("Q7" + "a" * 300 + "!") * 3000 + "b"
    script = f"""
from moe_cli.data import tokenizer_check
from moe_cli.data.bpe import read_tokenizer
from moe_cli.errors import DataError
tokenizer_check.START_SECONDS, tokenizer_check.MIN_CHARACTERS_PER_SECOND = 0.2, 1e9
tokenizer = read_tokenizer({saved(tmp_path, r"(?<=Q7)a*a*a*b")!r})
for encode in (tokenizer.encode, tokenizer.token_ends):
    try:
        encode({text!r})
    except DataError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-"], input=script, capture_output=True, text=True, timeout=120, check=True)
    name = f"data.tokenizer={tmp_path}/tokenizer.json"
    reason = "its patterns take too long on this text, which has 909,001 characters"
    assert [f"{name} is not used: {reason}. Use another, or bytes."] * 2 == done.stdout.splitlines()


def test_a_call_that_takes_too_long_leaves_the_next_one_free() -> None:
    """The thread of the first is left to itself; errors and results of others come through."""
    over = threading.Event()
    with pytest.raises(TimeoutError):
        call_with_limit(over.wait, 0.05)
    assert call_with_limit(lambda: 3, 60) == 3
    with pytest.raises(ZeroDivisionError):
        call_with_limit(lambda: 1 // 0, 60)
    over.set()


def test_the_time_of_many_short_texts_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each alone is short enough to be encoded without a thread; together they use the time up."""
    monkeypatch.setattr("moe_cli.data.tokenizer_check.START_SECONDS", 0.01)
    encoding = EncodingTime()
    encoding.call(lambda: time.sleep(0.02), 1)
    with pytest.raises(TimeoutError):
        encoding.call(lambda: None, 1)


def test_replacements_that_multiply_text_are_refused() -> None:
    """Twenty doublings make a million letters of one; the signs that published tokenizers write for a space do not."""
    doubling = {"type": "Sequence", "normalizers": [replace({"String": "a"}, "aa")] * 20}
    reason = hazard(tokenizer(normalizer=doubling))
    assert reason is not None
    assert reason.startswith("its normalizer makes text up to 1.05e+06 times as long")
    assert hazard(tokenizer(decoder=replace({"Regex": "x"}, "y" * 100))) is not None
    assert (
        hazard(tokenizer(normalizer=replace({"String": " "}, "\u2581"), decoder=replace({"String": "\u2581"}, " ")))
        is None
    )


@pytest.mark.parametrize("content", [b'{"a":' * 20_000, b"\0" * 100, b"[1]", b'{"model": {"a": 1e999}}', b""])
def test_what_is_no_tokenizer_is_said_in_a_line(tmp_path: Path, content: bytes) -> None:
    """Nested, empty, or of another kind."""
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"^data.tokenizer={path} (is|holds) [^\n]*"):
        read_tokenizer(str(path))


def test_a_library_that_panics_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """`quiet` drops writes to standard error below Python, and later writes appear."""
    with quiet():
        os.write(2, b"thread panicked\n" * 242)
    os.write(2, b"after\n")
    assert "after\n" == capfd.readouterr().err
