"""The data of a configuration, whatever they are: texts, images or ratings. Knows no torch."""

from pathlib import Path

from moe_cli.config.data import DataConfig, ImageData, RatingData
from moe_cli.tasks.corpora import Corpus, describe_corpus, load_corpus, remarks_on_corpus
from moe_cli.tasks.images import Images, describe_images, load_images
from moe_cli.tasks.ratings import Ratings, describe_ratings, load_ratings

Data = Corpus | Images | Ratings


def load_data(data: DataConfig, context_length: int, cache: Path) -> Data:
    """The data of a configuration, built under a folder if they are not there. Raises DataError."""
    if isinstance(data, ImageData):
        return load_images(data, cache / "images")
    if isinstance(data, RatingData):
        return load_ratings(data, cache / "ratings")
    return load_corpus(data, context_length, cache / "corpora")


def describe(data: Data) -> str:
    """One line: python corpus, 12.4 MB, bytes."""
    if isinstance(data, Images):
        return describe_images(data)
    return describe_ratings(data) if isinstance(data, Ratings) else describe_corpus(data)


def remarks(data: Data) -> list[str]:
    """What a user should know of the data beside their size."""
    return remarks_on_corpus(data) if isinstance(data, Corpus) else []
