"""Text to token ids and back: bytes, and the characters of a corpus."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_cli.errors import DataError

# Stands between documents. No text holds it: a file with this byte counts as binary.
SEPARATOR = "\0"


@dataclass(frozen=True)
class ByteTokenizer:
    """The 256 bytes of UTF-8."""

    name: str = "bytes"

    @property
    def vocab_size(self) -> int:
        return 256

    def encode(self, text: str) -> NDArray[np.uint8]:
        return np.frombuffer(text.encode(), dtype=np.uint8)

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

    def encode(self, text: str) -> NDArray[Any]:
        """Raises DataError for a character the corpus does not have."""
        points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        ids = self._ids[np.minimum(points, len(self._ids) - 1)]
        strange = np.flatnonzero(ids < 0)
        if len(strange):
            raise DataError(f"{text[strange[0]]!r} is not among the {len(self.alphabet)} characters of the corpus.")
        return ids.astype(np.min_scalar_type(len(self.alphabet) - 1))

    def decode(self, ids: Iterable[int]) -> str:
        return self._points[np.asarray([*ids], np.int64)].tobytes().decode("utf-32-le")

    @cached_property
    def _points(self) -> NDArray[np.uint32]:
        return np.frombuffer(self.alphabet.encode("utf-32-le"), dtype=np.uint32)

    @cached_property
    def _ids(self) -> NDArray[np.int32]:
        """The id of each code point up to the largest known one, and of one more; -1 where there is none."""
        ids = np.full(int(self._points.max(initial=0)) + 2, -1, np.int32)
        ids[self._points] = np.arange(len(self.alphabet))
        return ids

    def bytes_per_token(self) -> NDArray[np.int64]:
        return np.array([len(char.encode()) for char in self.alphabet], dtype=np.int64)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "alphabet": self.alphabet}


Tokenizer = ByteTokenizer | CharTokenizer


def make_tokenizer(name: str, texts: Iterable[str]) -> Tokenizer:
    """The tokenizer of a corpus; `chars` reads all of it."""
    if name == "bytes":
        return ByteTokenizer()
    return CharTokenizer("".join(sorted(set().union(*texts))))


def load_tokenizer(content: dict[str, Any]) -> Tokenizer:
    """The inverse of `to_dict`."""
    return ByteTokenizer() if content["name"] == "bytes" else CharTokenizer(content["alphabet"])
