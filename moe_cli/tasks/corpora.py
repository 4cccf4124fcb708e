"""Named corpora and users' own files -> token files built once: memory-mapped, split, hashed, with reference losses."""

import codecs
import gzip
import hashlib
import json
import math
import os
import shutil
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe_cli.config.schema import DataConfig, PythonData, TextData
from moe_cli.errors import DataError
from moe_cli.tasks.tokenizers import SEPARATOR, Tokenizer, load_tokenizer, make_tokenizer

FORMAT = 2
# No document is more than this share of a validation split that holds whole documents, if there are smaller ones.
LARGEST_SHARE = 1 / 8
# Between training and validation text of one document, so that no training context reaches into validation.
GAP_TOKENS = 1024
# Beside tests and what others installed: encodings, whose generated tables repeat each other from file to file, so that
# having learned one would pass for having understood the next.
_NOT_CORPUS = {"test", "tests", "idle_test", "encodings", "site-packages", "dist-packages", "__pycache__"}


@dataclass(frozen=True)
class Document:
    text: str
    domain: str


@dataclass(frozen=True)
class Corpus:
    """Token files in a cache folder, and what is known of them."""

    folder: Path
    meta: dict[str, Any]

    @cached_property
    def train(self) -> NDArray[Any]:
        return np.memmap(self.folder / "train.bin", dtype=self.meta["dtype"], mode="r")

    @cached_property
    def val(self) -> NDArray[Any]:
        return np.memmap(self.folder / "val.bin", dtype=self.meta["dtype"], mode="r")

    @cached_property
    def val_domains(self) -> NDArray[Any]:
        """The domain of each validation token, as a place in meta["domains"]; a separator belongs to the file before."""
        table = self.meta["documents"]
        places = np.arange(len(self.val)) + table["cut"][0]
        documents = np.searchsorted(table["starts"], places, side="right") - 1
        domains: NDArray[Any] = np.asarray(table["domain_ids"])[documents]
        return domains

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.meta["tokenizer"])


def load_corpus(data: DataConfig, context_length: int, cache: Path) -> Corpus:
    """The corpus of a configuration, from the cache if its files are unchanged.

    Raises:
        DataError: a path that is missing, empty, not text, or too short for one context.
    """
    files = _list_files(data)
    key = _key(data, files)
    folder = cache / f"{data.name}-{key}"
    if not (folder / "meta.json").is_file():
        _build(data, files, folder)
    corpus = Corpus(folder, json.loads((folder / "meta.json").read_text(encoding="utf-8")))
    _check_length(corpus, data, context_length)
    return corpus


def _check_length(corpus: Corpus, data: DataConfig, context_length: int) -> None:
    unit = data.tokenizer
    if len(corpus.train) <= context_length or len(corpus.val) < 2:
        raise DataError(
            f"{_source(data)} leaves {len(corpus.train)} {unit} for training and {len(corpus.val)} for validation; "
            f"one context takes {context_length + 1}.\nGive more text, or lower model.context_length."
        )


def _source(data: DataConfig) -> str:
    return f"data.path={data.path}" if isinstance(data, TextData) else "data=python"


def _list_files(data: DataConfig) -> list[tuple[Path, str]]:
    """Files and their domains, in an order that is fixed but mixes the folders: by a hash of their names."""
    if isinstance(data, PythonData):
        root = Path(sysconfig.get_path("stdlib"))
        files = [path for path in root.rglob("*.py") if not _NOT_CORPUS & set(path.relative_to(root).parts)]
        if not files:
            raise DataError(f"data=python: this interpreter has no source files in {root}. Use data=text data.path=...")
    else:
        root = Path(data.path or "")
        if not root.exists():
            raise DataError(f"data.path={root} does not exist.")
        if not root.is_dir():
            return [(root, root.name)]
        files = [path for path in root.rglob("*") if path.is_file() and not _hidden(path.relative_to(root))]
        if not files:
            raise DataError(f"data.path={root} is a folder without files.")
    names = sorted((path.relative_to(root) for path in files), key=_order)
    return [(root / name, _domain(data, name)) for name in names]


def _order(name: Path) -> bytes:
    return hashlib.sha256(os.fsencode(name.as_posix())).digest()


def _hidden(name: Path) -> bool:
    return any(part.startswith(".") for part in name.parts)


def _domain(data: DataConfig, name: Path) -> str:
    """The top-level package or sub-folder a file lies in; prose of the standard library is `docs`."""
    if isinstance(data, PythonData) and name.parts[0] == "pydoc_data":
        return "docs"
    return name.parts[0] if len(name.parts) > 1 else "modules" if isinstance(data, PythonData) else "."


def _key(data: DataConfig, files: Sequence[tuple[Path, str]]) -> str:
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path, _ in files]
    content = [FORMAT, data.tokenizer, data.val_fraction, stats]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _read(data: DataConfig, files: Sequence[tuple[Path, str]]) -> tuple[list[Document], int]:
    """The documents, and how many files were left out because they are empty or not text."""
    documents = []
    for path, domain in files:
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}.") from None
        problem = _problem(raw)
        if problem and len(files) == 1 and isinstance(data, TextData):
            raise DataError(f"data.path={path} {problem}")
        if not problem:
            documents.append(Document(raw.decode("utf-8-sig"), domain))
    if not documents:
        raise DataError(f"{_source(data)} holds no text: its {len(files)} files are empty or not UTF-8.")
    return documents, len(files) - len(documents)


def _problem(raw: bytes) -> str | None:
    if not raw.removeprefix(codecs.BOM_UTF8).strip():
        return "is empty. Give a file or folder of text."
    if b"\0" in raw:
        return f"is not text: byte {raw.index(0)} is zero. Give UTF-8 text."
    try:
        raw.decode()  # not as utf-8-sig, which counts bytes from behind the mark
    except UnicodeDecodeError as error:
        return f"is not UTF-8 text: byte {error.start} is 0x{raw[error.start]:02x}. Convert it, for example with iconv."
    return None


def _build(data: DataConfig, files: Sequence[tuple[Path, str]], folder: Path) -> None:
    """Builds in a temporary neighbour and renames, so that of ten jobs that start at once all see a whole corpus."""
    documents, left_out = _read(data, files)
    texts = [document.text for document in documents]
    tokenizer = make_tokenizer(data.tokenizer, [*texts, SEPARATOR] if len(texts) > 1 else texts)
    train, val, table = _split(documents, tokenizer, data.val_fraction)
    if len(train) < 2 or len(val) < 2:
        raise DataError(f"{_source(data)} holds only {len(train) + len(val)} {data.tokenizer}. Give more text.")
    sha = hashlib.sha256("\0".join(texts).encode())
    val_bytes = tokenizer.decode(val.tolist()).encode() if data.tokenizer == "chars" else val.tobytes()
    meta = {
        "name": data.name,
        "source": _source(data),
        "sha256": sha.hexdigest(),
        "num_documents": len(documents),
        "num_left_out": left_out,
        "num_bytes": sum(len(text.encode()) for text in texts),
        "tokenizer": tokenizer.to_dict(),
        "vocab_size": tokenizer.vocab_size,
        "dtype": train.dtype.name,
        "train_tokens": len(train),
        "val_tokens": len(val),
        "domains": sorted({document.domain for document in documents}),
        "documents": table,
        "bigram_bpb": bigram_bits_per_byte(train, val, tokenizer),
        "gzip_bpb": 8 * len(gzip.compress(val_bytes, 9, mtime=0)) / len(val_bytes),
    }
    temporary = folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
        train.tofile(temporary / "train.bin")
        val.tofile(temporary / "val.bin")
        (temporary / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        os.chmod(temporary, 0o755)
        temporary.rename(folder)
    except OSError as error:
        if temporary != folder:
            shutil.rmtree(temporary, ignore_errors=True)
        if not (folder / "meta.json").is_file():  # not that another job was first
            raise DataError(f"cannot write the token files to {folder}: {error.strerror}.") from None


def _split(
    documents: Sequence[Document], tokenizer: Tokenizer, val_fraction: float
) -> tuple[NDArray[Any], NDArray[Any], dict[str, list[Any]]]:
    """Training tokens, validation tokens, and where each document begins.

    Whole documents go to validation when they come near to the share wanted; else the text is cut at the share, with a
    gap.
    """
    separator = tokenizer.encode(SEPARATOR) if len(documents) > 1 else None
    pieces = [tokenizer.encode(document.text) for document in documents]
    if separator is not None:
        pieces = [np.concatenate((piece, separator)) for piece in pieces]
    sizes = [len(piece) for piece in pieces]
    chosen = choose_validation(sizes, val_fraction)
    order = [number for number in range(len(pieces)) if number not in chosen] + sorted(chosen)
    documents, pieces = [documents[number] for number in order], [pieces[number] for number in order]
    tokens, ends = np.concatenate(pieces), np.cumsum([len(piece) for piece in pieces])
    if chosen:
        cut, gap = len(tokens) - sum(sizes[number] for number in chosen), 0
    else:
        cut = int(len(tokens) * (1 - val_fraction))
        gap = min(GAP_TOKENS, cut // 100)
    domains = sorted({document.domain for document in documents})
    table = {
        "starts": (ends - [len(piece) for piece in pieces]).tolist(),
        "domain_ids": [domains.index(document.domain) for document in documents],
        "cut": [cut],
    }
    return tokens[: cut - gap], tokens[cut:], table


def choose_validation(sizes: Sequence[int], fraction: float) -> set[int]:
    """Which documents of these sizes are held out for validation; none if whole ones do not come near to the share.

    From the last on, those that are small beside the share wanted, so that no single document decides how a model is
    judged; if that does not do, whatever comes last.
    """
    wanted = fraction * sum(sizes)
    for largest in (LARGEST_SHARE * wanted, math.inf):
        chosen: set[int] = set()
        total = 0
        for number in range(len(sizes) - 1, 0, -1):
            if sizes[number] <= largest and abs(total + sizes[number] - wanted) < abs(total - wanted):
                chosen.add(number)
                total += sizes[number]
        if wanted / 2 <= total <= 2 * wanted:
            return chosen
    return set()


def bigram_bits_per_byte(train: NDArray[Any], val: NDArray[Any], tokenizer: Tokenizer) -> float:
    """Bits per byte on `val` of a bigram model counted on `train`: (count(a, b) + p(b)) / (count(a) + 1).

    p is the unigram distribution with one added to every count. The reference line every language model must beat.
    """
    size = tokenizer.vocab_size
    before, after = train[:-1].astype(np.int64), train[1:].astype(np.int64)
    pairs, counts = np.unique(before * size + after, return_counts=True)
    asked = val[:-1].astype(np.int64) * size + val[1:]
    place = np.searchsorted(pairs, asked).clip(max=len(pairs) - 1)
    seen = np.where(pairs[place] == asked, counts[place], 0)
    starts = np.bincount(before, minlength=size)[val[:-1]]
    unigram = (np.bincount(train, minlength=size) + 1) / (len(train) + size)
    bits = -np.log2((seen + unigram[val[1:]]) / (starts + 1)).sum()
    return float(bits / tokenizer.bytes_per_token()[val[1:]].sum())


def describe(corpus: Corpus) -> str:
    """One line: 12.4 MB python corpus, bytes."""
    meta = corpus.meta
    size = meta["num_bytes"]
    power = min(2, int(math.log(max(size, 1), 1000)))
    return f"{meta['name']} corpus, {size / 1000**power:.3g} {('B', 'kB', 'MB')[power]}, {meta['tokenizer']['name']}"
