"""The data of a configuration, whatever they are: texts, images or ratings. Knows no torch."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from moe_cli.config.data import CorpusConfig, DataConfig, ImageData, RatingData
from moe_cli.config.schema import RunConfig
from moe_cli.data.corpora import UNTRAINED, Corpus, describe_corpus, load_corpus, notes_on_corpus
from moe_cli.data.document_windows import document_windows
from moe_cli.data.images import Images, describe_images, load_images
from moe_cli.data.ratings import Ratings, describe_ratings, load_ratings
from moe_cli.data.splits import SPLITS
from moe_cli.errors import DataError
from moe_cli.files.writing import guard
from moe_cli.formatting import percent

Data = Corpus | Images | Ratings
# The metadata keys of the size of each split.
SIZES = tuple(f"{split}_{unit}" for split in SPLITS for unit in ("tokens", "images", "pairs"))


def load_data(data: DataConfig, context_length: int, outputs: Path, build: bool = True) -> Data:
    """Returns the data of a configuration, built in outputs/.cache if they are not there; see `load_corpus`.

    Raises DataError.
    """
    cache = guard(outputs) / ".cache"
    if isinstance(data, ImageData):
        return load_images(data, cache / "images", outputs)
    if isinstance(data, RatingData):
        return load_ratings(data, cache / "ratings")
    return load_corpus(data, context_length, cache / "corpora", build, outputs)


def with_test_split(data: Data) -> Data:
    """Returns the same data with the test split for evaluation. Raises DataError if no test split exists."""
    unit = next(unit for unit in ("tokens", "images", "pairs") if f"train_{unit}" in data.meta)
    if not data.meta[f"test_{unit}"]:
        ask = "data.test_fold=1" if isinstance(data, Ratings) else "data.test_fraction=0.1"
        raise DataError(f"{data.meta['source']} has no test split here. Train a model on data that have one: {ask}")
    return replace(data, eval_split="test")


def changed_aspect(recorded: Any, data: Data) -> str | None:
    """Returns `tokenizer` or `split` if it has changed while the text has not; None means no known change.

    Args:
        recorded: the record of the data in meta.json.
    """
    if not isinstance(recorded, dict):
        return None
    if recorded.get("tokenizer_sha256") not in (None, data.meta.get("tokenizer_sha256")):
        return "tokenizer"
    as_it_was = all(recorded.get(size) in (None, data.meta.get(size)) for size in SIZES)
    return None if as_it_was and bool(recorded.get("by_name")) == bool(data.meta.get("by_name")) else "split"


def describe(data: Data) -> str:
    """Returns one line: python corpus, 12.4 MB, bytes."""
    if isinstance(data, Images):
        return describe_images(data)
    return describe_ratings(data) if isinstance(data, Ratings) else describe_corpus(data)


def data_notes(data: Data, config: RunConfig) -> list[str]:
    """Returns notes on the data for the user, apart from their size."""
    lines = list(data.meta.get("notes", ()))
    if not isinstance(data, Corpus):
        return [*lines, data.meta["ignored_split_names"]] if data.meta.get("ignored_split_names") else lines
    lines += notes_on_corpus(data)
    padded = isinstance(config.data, CorpusConfig) and config.data.packing == "pad"
    if padded and data.meta["tokenizer_sha256"] != UNTRAINED:
        length = config.model.context_length
        sizes = document_windows(data.document_starts(data.train), len(data.train), length).sizes
        lines.append(f"{percent(1 - sizes.mean() / length)} of what is trained on is padding, which counts as tokens")
    return lines
