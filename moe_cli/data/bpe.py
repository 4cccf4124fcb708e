"""Subword tokenizers: byte-level BPE trained on a corpus, or any tokenizer.json.

A tokenizer.json is data: nothing in it is executed. The library `tokenizers` reads it (pip install 'moe-cli[bpe]').
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_cli.data.file_list import open_file
from moe_cli.data.tokenizer_check import EncodingTime, hazard, quiet, tokenizers_library
from moe_cli.data.tokenizer_probe import probe
from moe_cli.errors import DataError
from moe_cli.files.reading import Unreadable, parse_json

# The separator of documents. It occurs in no text: a file with this byte counts as binary.
SEPARATOR = "\0"
# Names of the end-of-text token in published vocabularies. It is used as the separator between documents.
END_OF_TEXT_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
# The largest tokenizer.json that is read, and the largest ratio of all ids to used ids.
MAX_JSON_BYTES, MAX_IDS_PER_TOKEN = 2**28, 8


@dataclass(frozen=True)
class SubwordTokenizer:
    """A tokenizer.json of the library `tokenizers`.

    Attributes:
        name: bpe, or the path it was read from.
        json: its content.
        vocab_size: the number of ids, including unused ones.
    """

    name: str
    json: str
    vocab_size: int

    @cached_property
    def _library(self) -> Any:
        return _parsed(self.name, self.json)

    @cached_property
    def _time(self) -> EncodingTime:
        return EncodingTime()

    @cached_property
    def _table(self) -> list[bytes]:
        """Returns the bytes of each id."""
        return _token_bytes(self._library, json.loads(self.json), self.vocab_size, self.separator)

    @cached_property
    def separator(self) -> int:
        """Returns the token between documents. It counts as one byte, as in every other tokenizer.

        Raises:
            DataError: the vocabulary has none.
        """
        content = json.loads(self.json)
        added = {token["content"]: token["id"] for token in content.get("added_tokens") or []}
        for end in END_OF_TEXT_TOKENS:
            if end in added:
                return int(added[end])
        ids = self._encode(self._library.encode_batch_fast, SEPARATOR).ids
        if len(ids) == 1 and self._library.id_to_token(ids[0]) != content["model"].get("unk_token"):
            return int(ids[0])
        raise DataError(
            f"data.tokenizer={self.name} has no token that can separate documents: none of "
            f"{', '.join(END_OF_TEXT_TOKENS)}, and none for a zero byte. Use another tokenizer, or bytes."
        )

    def encode(self, text: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Returns the tokens of the bytes from `start` to `stop`, without a character that is cut in two."""
        encoding = self._encode(self._library.encode_batch_fast, slice_utf8(text, start, stop))
        return np.array(encoding.ids, np.min_scalar_type(self.vocab_size - 1))

    def _encode(self, encode_batch: Callable[..., Any], text: str) -> Any:
        """Encodes one text. All encoding is done here.

        Args:
            encode_batch: a method of the library's tokenizer that takes a batch, because these release the GIL.

        Raises:
            DataError: a character has no token, and there is none for unknown ones; or the tokenizer takes too long.
        """
        label = f"data.tokenizer={self.name}"
        try:
            (encoding,) = self._time.call(lambda: encode_batch([text], add_special_tokens=False), len(text))
        except TimeoutError:
            raise DataError(
                f"{label} is not used: its patterns take too long on this text, which has {len(text):,} characters. "
                "Use another, or bytes."
            ) from None
        except BaseException as error:  # a panic in the library is not an Exception
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise DataError(f"{label} cannot encode this text: {reason[0][:200]}. Use another, or bytes.") from None
        return encoding

    def token_ends(self, text: str) -> list[int]:
        """Returns the position in the text after the characters of each token."""
        return [end for _, end in self._encode(self._library.encode_batch, text).offsets]

    def to_bytes(self, ids: Iterable[int]) -> bytes:
        return b"".join(map(self._table.__getitem__, ids))

    def decode(self, ids: Iterable[int]) -> str:
        return self.to_bytes(ids).decode("utf-8", errors="replace")

    def bytes_per_token(self) -> NDArray[np.int64]:
        return np.array([len(entry) for entry in self._table], np.int64)

    @property
    def num_used(self) -> int:
        """Returns the number of ids that have a text."""
        return sum(map(bool, self._table))

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.json.encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "json": self.json, "vocab_size": self.vocab_size}


def slice_utf8(text: str, start: int, stop: int | None) -> str:
    """Returns the characters whose bytes all lie between `start` and `stop`."""
    if start == 0 and stop is None:
        return text
    return text.encode()[start:stop].decode(errors="ignore")


def train_bpe(texts: Iterator[str], vocab_size: int) -> SubwordTokenizer:
    """Trains byte-level BPE (GPT-2's, without normalisation): all 256 bytes, then the most frequent pairs of `texts`.

    The same texts give the same tokenizer. If they have too few pairs, some ids stay unused.
    """
    library = tokenizers_library()
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    alphabet = sorted(library.pre_tokenizers.ByteLevel.alphabet())
    trainer = library.trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return SubwordTokenizer("bpe", tokenizer.to_str(), vocab_size)


def read_tokenizer(path: str) -> SubwordTokenizer:
    """Reads the tokenizer of a tokenizer.json.

    Raises:
        DataError: the file is missing, or is not a tokenizer.json.
    """
    text = _content(path)
    try:
        whole = parse_json(text.encode())
    except Unreadable as reason:
        raise DataError(f"data.tokenizer={path} {reason}. Give a tokenizer.json of the library tokenizers.") from None
    if not isinstance(whole, dict) or not isinstance(whole.get("model"), dict):
        raise DataError(
            f"data.tokenizer={path} is JSON, but no tokenizer: it has no 'model'. Give the tokenizer.json that lies "
            "in the same folder as vocab.json and config.json."
        )
    library = _parsed(path, text)
    if problem := probe(text):
        raise DataError(f"data.tokenizer={path} is not used: {problem}.")
    known = library.get_vocab(with_added_tokens=True)
    size = max(known.values(), default=-1) + 1
    if not 2 <= size <= MAX_IDS_PER_TOKEN * len(known) + 1024:
        raise DataError(
            f"data.tokenizer={path} has {len(known):,} tokens, and ids up to {size - 1:,} are too large. Use another."
        )
    return SubwordTokenizer(path, text, size)


def hash_tokenizer_file(path: str) -> str:
    """Returns the SHA-256 of a tokenizer.json. Raises DataError if the file is missing."""
    return hashlib.sha256(_content(path).encode()).hexdigest()


def _content(path: str) -> str:
    setting = f"data.tokenizer={path}"
    file = Path(path)
    if os.path.isdir(file):
        raise DataError(f"{setting} is a folder. Give the tokenizer.json in it.")
    if not os.path.lexists(file):
        raise DataError(f"{setting} does not exist. Use bytes, chars, bpe, or the path of a tokenizer.json.")
    with open_file(file, setting) as content:
        raw = content.read(MAX_JSON_BYTES + 1)
    if len(raw) > MAX_JSON_BYTES:
        raise DataError(f"{setting} is more than {MAX_JSON_BYTES:,} bytes long: no tokenizer.json is.")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise DataError(f"{setting} is not JSON. Give a tokenizer.json of the library tokenizers.") from None


def _parsed(name: str, text: str) -> Any:
    """Returns the tokenizer of the library. It treats text that looks like a special token as text."""
    library = tokenizers_library()
    if reason := hazard(json.loads(text)):
        raise DataError(f"data.tokenizer={name} is not used: {reason}.")
    try:
        with quiet():
            tokenizer = library.Tokenizer.from_str(text)
            tokenizer.no_truncation()
            tokenizer.no_padding()
            tokenizer.encode_special_tokens = True
    except BaseException as error:  # a panic in the library is not an Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        lines = str(error).strip().splitlines()
        raise DataError(f"data.tokenizer={name} is no tokenizer: {lines[0][:200] if lines else 'damaged'}.") from None
    return tokenizer


def _token_bytes(library: Any, content: dict[str, Any], vocab_size: int, separator: int) -> list[bytes]:
    """Returns the bytes of each token, by the alphabet of byte-level tokenizers, else by the characters for spaces."""
    table = [b""] * vocab_size
    added = {token["id"]: token["content"] for token in content.get("added_tokens") or []}
    alphabet = byte_alphabet() if '"ByteLevel"' in json.dumps(content.get("decoder")) else {}
    is_wordpiece = content["model"].get("type") == "WordPiece"
    prefix = content["model"].get("continuing_subword_prefix") or "##"
    for token, number in library.get_vocab(with_added_tokens=True).items():
        if number in added:
            table[number] = added[number].encode()
        elif alphabet:
            table[number] = b"".join(alphabet.get(char, char.encode()) for char in token)
        elif is_wordpiece:
            table[number] = token.removeprefix(prefix).encode() if token.startswith(prefix) else f" {token}".encode()
        elif re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", token):
            table[number] = bytes([int(token[3:5], 16)])
        else:
            table[number] = token.replace("▁", " ").encode()
    table[separator] = SEPARATOR.encode()
    return table


def byte_alphabet() -> dict[str, bytes]:
    """Returns the byte of each character of GPT-2's alphabet: printable bytes stay, others follow from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    signs = {chr(byte): bytes([byte]) for byte in printable}
    rest = (byte for byte in range(256) if byte not in printable)
    return signs | {chr(256 + index): bytes([byte]) for index, byte in enumerate(rest)}
