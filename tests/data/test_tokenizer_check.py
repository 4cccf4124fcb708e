"""A tokenizer.json from others: what could hang, fill the memory or print pages is refused in a line."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from moe_cli.data.bpe import read_tokenizer
from moe_cli.data.tokenizer_check import has_nested_repetition, hazard, quiet
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
    return {"version": "1.0", "added_tokens": [], "model": model, "normalizer": None, "pre_tokenizer": None,
            "post_processor": None, "decoder": None, "truncation": None, "padding": None, **parts}  # fmt: skip


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


@pytest.mark.parametrize("pattern", PUBLISHED)
def test_published_patterns_are_taken(pattern: str) -> None:
    """Those of GPT-2, Llama 3 and GPT-4o, and brackets within sets."""
    assert not has_nested_repetition(pattern)


@pytest.mark.parametrize("pattern", ENDLESS)
def test_patterns_without_end_are_refused(tmp_path: Path, pattern: str) -> None:
    """A repetition within a repeated group, however deep, wherever it stands in the file."""
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(tokenizer(pre_tokenizer={"type": "Sequence", "pretokenizers": [split]})))
    with pytest.raises(DataError, match=r"is not used: its pattern .* can take time without end"):
        read_tokenizer(str(path))


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
    with pytest.raises(DataError, match=f"^data.tokenizer={path} is [^\n]*"):
        read_tokenizer(str(path))


def test_a_library_that_panics_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """What reaches standard error below Python is dropped, and what comes after is not."""
    with quiet():
        os.write(2, b"thread panicked\n" * 242)
    os.write(2, b"after\n")
    assert "after\n" == capfd.readouterr().err
