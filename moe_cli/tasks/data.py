"""The data of a configuration, whatever they are: texts or images. Knows no torch."""

from pathlib import Path

from moe_cli.config.data import DataConfig, ImageData
from moe_cli.tasks.corpora import Corpus, describe_corpus, load_corpus, remarks_on_corpus
from moe_cli.tasks.images import Images, describe_images, load_images

Data = Corpus | Images


def load_data(data: DataConfig, context_length: int, cache: Path, build: bool = True) -> Data:
    """The data of a configuration, built under a folder if they are not there; see `load_corpus`. Raises DataError."""
    if isinstance(data, ImageData):
        return load_images(data, cache / "images")
    return load_corpus(data, context_length, cache / "corpora", build)


def describe(data: Data) -> str:
    """One line: python corpus, 12.4 MB, bytes."""
    return describe_images(data) if isinstance(data, Images) else describe_corpus(data)


def remarks(data: Data) -> list[str]:
    """What a user should know of the data beside their size."""
    return [] if isinstance(data, Images) else remarks_on_corpus(data)
