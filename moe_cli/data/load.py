"""Loads the data of a configuration: texts, images or ratings. Imports no torch."""

from pathlib import Path
from typing import Any

from moe_cli.config.data import CorpusConfig, DataConfig, ImageData, RatingData
from moe_cli.config.schema import RunConfig
from moe_cli.data.corpora import UNTRAINED, Corpus, load_corpus
from moe_cli.data.document_windows import document_windows
from moe_cli.data.images import Images, load_images
from moe_cli.data.ratings import Ratings, load_ratings
from moe_cli.data.splits import SPLITS
from moe_cli.files.writing import guard
from moe_cli.formatting import percent

Data = Corpus | Images | Ratings
# The metadata keys of the size of each split.
SIZES = tuple(f"{split}_{cls.unit}" for split in SPLITS for cls in (Corpus, Images, Ratings))


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


def data_notes(data: Data, config: RunConfig) -> list[str]:
    """Returns notes on the data for the user, and the fraction of padding with data.packing=pad."""
    lines = data.notes()
    padded = isinstance(config.data, CorpusConfig) and config.data.packing == "pad"
    if padded and isinstance(data, Corpus) and data.meta["tokenizer_sha256"] != UNTRAINED:
        length = config.model.context_length
        sizes = document_windows(data.document_starts(data.train), len(data.train), length).sizes
        lines.append(
            f"{percent(1 - sizes.mean() / length)} of the training tokens are padding, which counts towards the budget"
        )
    return lines
