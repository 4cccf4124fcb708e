"""Text to tokens and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_cli.data.tokenizers import ByteTokenizer, CharTokenizer, load_tokenizer, make_tokenizer
from moe_cli.errors import DataError


@pytest.mark.parametrize("name", ["bytes", "chars"])
@given(texts=st.lists(st.text(), min_size=1, max_size=4).filter(any))
def test_text_comes_back(name: str, texts: list[str]) -> None:
    """Any text round trips, its tokens stand for its bytes, and a stored tokenizer is the same one."""
    tokenizer = make_tokenizer(name, texts)
    for text in texts:
        ids = tokenizer.encode(text)
        assert text == tokenizer.decode(ids.tolist())
        assert len(text.encode()) == tokenizer.bytes_per_token()[ids].sum()
        assert not len(ids) or ids.max() < tokenizer.vocab_size
    assert tokenizer == load_tokenizer(tokenizer.to_dict())


def test_a_token_is_a_byte_or_a_character() -> None:
    """é is two bytes and one character; characters are numbered in code point order."""
    text = "né𝄞a"
    assert list(text.encode()) == ByteTokenizer().encode(text).tolist()
    chars = make_tokenizer("chars", [text])
    assert ("ané𝄞", 4) == (chars.decode(range(4)), chars.vocab_size)
    assert [1, 2, 3, 0] == chars.encode(text).tolist()
    assert [1, 1, 2, 4] == chars.bytes_per_token().tolist()


@pytest.mark.parametrize(("size", "dtype"), [(1, np.uint8), (256, np.uint8), (257, np.uint16), (70_000, np.uint32)])
def test_token_files_are_as_narrow_as_they_can_be(size: int, dtype: type) -> None:
    """The type of the ids holds the largest of them and no more."""
    alphabet = "".join(chr(point) for point in range(0x10000, 0x10000 + size))
    ids = CharTokenizer(alphabet).encode(alphabet)
    assert dtype == ids.dtype
    assert list(range(size)) == ids.tolist()


@pytest.mark.parametrize("text", ["abz", "!ab", "a\U0001f600"])
def test_a_strange_character_is_named(text: str) -> None:
    """A prompt with a character that the corpus does not have is a DataError that shows it."""
    with pytest.raises(DataError, match="is not among the 2 characters"):
        CharTokenizer("ab").encode(text)


def test_half_a_character_is_shown_as_such() -> None:
    """Bytes that a model made up need not be UTF-8: they decode to the replacement character."""
    assert "a\ufffd" == ByteTokenizer().decode([97, 0xC3])
