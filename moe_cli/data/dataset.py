"""The base of all data sets, and how one is kept in the cache: found, built and checked."""

import dataclasses
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from moe_cli.config.data import DataConfig
from moe_cli.data.cached import META, Types, atomic_folder, find_built
from moe_cli.errors import DataError

SplitT = TypeVar("SplitT")
ExamplesT = TypeVar("ExamplesT", bound="Examples")


class NotBuilt(DataError):
    """The data are not in the cache, and may not be built."""


def source(data: DataConfig) -> str:
    """Returns the setting that names the data, for messages."""
    path = getattr(data, "path", None)
    return f"data={data.name}" if path is None else f"data.path={path}"


def cache_key(*content: Any) -> str:
    """Returns the part of a folder's name that identifies its content: settings, and fingerprints of the source."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def load_or_build(
    folder: Path, what: str, types: Mapping[str, Types], build: Callable[[], None] | None
) -> dict[str, Any]:
    """Returns the metadata of the data in a folder of the cache. Missing or damaged data are built first.

    Args:
        what: the name of the data in messages, a plural.
        types: the required keys of the metadata, with the types of their values.
        build: writes the folder; None means that the data may not be built.

    Raises:
        NotBuilt: the data are missing, and `build` is None.
        DataError: the data cannot be built, or are damaged after they were built.
    """
    meta = find_built(folder, what, types)
    if meta is None:
        if build is None:
            raise NotBuilt(f"there are no {what} in {folder}.")
        build()
        meta = find_built(folder, what, types)
    if meta is None:
        raise DataError(f"the {what} in {folder} cannot be read as they were written. Is that disk in order?")
    return meta


@dataclass(frozen=True)
class Dataset(ABC, Generic[SplitT]):
    """Splits in files of a folder, with metadata.

    Attributes:
        unit: the unit in which the sizes of splits are counted, as in the key `train_tokens` of the metadata.
        test_setting: a setting that holds out a test split.
        meta: the content of meta.json, with `notes` on the source.
        eval_split: the split for evaluation, `val` or `test`.
    """

    unit: ClassVar[str]
    test_setting: ClassVar[str] = "data.test_fraction=0.1"

    folder: Path
    meta: dict[str, Any]
    eval_split: str = "val"

    @cached_property
    def train(self) -> SplitT:
        return self.read_split("train")

    @cached_property
    def val(self) -> SplitT:
        """Returns the split for evaluation."""
        return self.read_split(self.eval_split)

    @property
    def name(self) -> str:
        """Returns the name of the data in reports: that of the user's file or folder, else the choice of `data`."""
        path = self.meta["source"].partition("data.path=")[2]
        return Path(path).name if path else self.meta["name"]

    @abstractmethod
    def read_split(self, name: str) -> SplitT:
        """Returns the split `train`, `val` or `test`."""

    @abstractmethod
    def describe(self) -> str:
        """Returns one line: python corpus, 12.4 MB, bytes."""

    def notes(self) -> list[str]:
        """Returns notes on the data for the user, apart from their size."""
        ignored = self.meta.get("ignored_split_names")
        return [*self.meta.get("notes", ()), *([ignored] if ignored else [])]

    def with_test_split(self) -> Self:
        """Returns the same data with the test split for evaluation. Raises DataError if no test split exists."""
        if not self.meta[f"test_{self.unit}"]:
            raise DataError(
                f"{self.meta['source']} has no test split here. "
                f"Train a model on data that have one: {self.test_setting}"
            )
        return dataclasses.replace(self, eval_split="test")


@dataclass(frozen=True)
class Examples:
    """Arrays with one row for each of N examples."""

    def __len__(self) -> int:
        return len(getattr(self, dataclasses.fields(self)[0].name))

    def select(self, indices: NDArray[Any]) -> Self:
        return type(self)(*(getattr(self, field.name)[indices] for field in dataclasses.fields(self)))


class ExampleDataset(Dataset[ExamplesT]):
    """A data set of separate examples. Each array of each split is a file.

    Attributes:
        label: the name of the data in messages, a plural.
        examples: the class of the splits.
        mapped: arrays that stay on the disk, because they may be large.
    """

    label: ClassVar[str]
    examples: ClassVar[type[Examples]]
    mapped: ClassVar[tuple[str, ...]] = ()

    def read_split(self, name: str) -> ExamplesT:
        arrays = (
            np.load(self.folder / f"{name}_{field.name}.npy", mmap_mode="r" if field.name in self.mapped else None)
            for field in dataclasses.fields(self.examples)
        )
        return self.examples(*arrays)  # type: ignore[return-value]


def write_examples(
    cls: type[ExampleDataset[Any]], folder: Path, splits: Mapping[str, Examples], meta: Mapping[str, Any], **files: str
) -> None:
    """Writes the folder of a data set of examples.

    Args:
        meta: metadata, without the sizes and the hash of the splits.
        files: the text of other files, by name without the ending .json.
    """
    sha256 = hashlib.sha256(json.dumps(meta["domains"]).encode())
    with atomic_folder(folder, cls.label) as temporary:
        for split, examples in splits.items():
            for field in dataclasses.fields(examples):
                array = getattr(examples, field.name)
                sha256.update(array.tobytes())
                np.save(temporary / f"{split}_{field.name}.npy", array)
        for name, text in files.items():
            (temporary / f"{name}.json").write_text(text, encoding="utf-8")
        content = {
            **meta,
            **{f"{split}_{cls.unit}": len(examples) for split, examples in splits.items()},
            "num_documents": sum(map(len, splits.values())),
            "sha256": sha256.hexdigest(),
            "num_bytes": None,
            "bigram_bpb": None,
            "gzip_bpb": None,
        }
        (temporary / META).write_text(json.dumps(content), encoding="utf-8")
