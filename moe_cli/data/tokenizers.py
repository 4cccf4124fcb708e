"""Converts text to token ids and back: bytes, the characters of a corpus, or subwords (see `bpe`)."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_cli.data.bpe import SEPARATOR, SubwordTokenizer
from moe_cli.errors import DataError


@dataclass(frozen=True)
class ByteTokenizer:
    """The 256 bytes of UTF-8."""

    name: str = "bytes"

    @property
    def vocab_size(self) -> int:
        return 256

    @property
    def separator(self) -> int:
        return 0

    def encode(self, text: str, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Returns the tokens of the bytes from `start` to `stop`."""
        return np.frombuffer(text.encode(), dtype=np.uint8)[start:stop]

    def to_bytes(self, ids: Iterable[int]) -> bytes:
        return bytes(ids)

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(ids).decode("utf-8", errors="replace")

    def bytes_per_token(self) -> NDArray[np.int64]:
        return np.ones(256, dtype=np.int64)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name}


@dataclass(frozen=True)
class CharTokenizer:
    """The characters that occur in a corpus, in code point order."""

    alphabet: str
    name: str = "chars"

    @property
    def vocab_size(self) -> int:
        return len(self.alphabet)

    @property
    def separator(self) -> int:
        """Returns the token between documents. Raises DataError if the corpus is one document, which needs none."""
        if SEPARATOR not in self.alphabet:
            raise DataError("data.tokenizer=chars has no separator, because the text is one document.")
        return self.alphabet.index(SEPARATOR)

    def encode(self, text: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Returns the ids of the characters from `start` to `stop`.

        Raises DataError for a character not in the corpus.
        """
        points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)[start:stop]
        ids = self._ids[np.minimum(points, len(self._ids) - 1)]
        unknown = np.flatnonzero(ids < 0)
        if len(unknown):
            raise DataError(
                f"{text[start:][unknown[0]]!r} is not among the {len(self.alphabet)} characters of the corpus."
            )
        return ids.astype(np.min_scalar_type(len(self.alphabet) - 1))

    def to_bytes(self, ids: Iterable[int]) -> bytes:
        return self.decode(ids).encode()

    def decode(self, ids: Iterable[int]) -> str:
        return self._points[np.asarray([*ids], np.int64)].tobytes().decode("utf-32-le")

    @cached_property
    def _points(self) -> NDArray[np.uint32]:
        return np.frombuffer(self.alphabet.encode("utf-32-le"), dtype=np.uint32)

    @cached_property
    def _ids(self) -> NDArray[np.int32]:
        """Returns the id of each code point up to one above the largest known one; -1 means no id."""
        ids = np.full(int(self._points.max(initial=0)) + 2, -1, np.int32)
        ids[self._points] = np.arange(len(self.alphabet))
        return ids

    def bytes_per_token(self) -> NDArray[np.int64]:
        return np.array([len(char.encode()) for char in self.alphabet], dtype=np.int64)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "alphabet": self.alphabet}


Tokenizer = ByteTokenizer | CharTokenizer | SubwordTokenizer


def find_separator(tokenizer: Tokenizer) -> int | None:
    """Returns the token between documents; None if there is none."""
    try:
        return tokenizer.separator
    except DataError:
        return None


def make_tokenizer(name: str, alphabet: Iterable[str]) -> ByteTokenizer | CharTokenizer:
    """Returns the tokenizer of `data.tokenizer=bytes`, or `chars` with the characters of a corpus."""
    return ByteTokenizer() if name == "bytes" else CharTokenizer("".join(sorted(set().union(*alphabet))))


def load_tokenizer(content: dict[str, Any]) -> Tokenizer:
    """Returns the inverse of `to_dict`."""
    if "json" in content:
        return SubwordTokenizer(**content)
    return ByteTokenizer() if content["name"] == "bytes" else CharTokenizer(content["alphabet"])
