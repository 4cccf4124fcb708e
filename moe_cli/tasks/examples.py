"""Tasks on separate examples, images or pairs, in an order that the seed determines. Each epoch has each once."""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from moe_cli.data.dataset import ExampleDataset
from moe_cli.data.shuffle import ExampleOrder, evenly_spaced
from moe_cli.tasks.base import Batch, Task


class ExampleBatch(Batch):
    """Examples with one target each. Each field has one row for each example."""

    num_bytes: ClassVar[None] = None  # type: ignore[misc]

    @property
    def num_examples(self) -> int:
        batch: Any = self
        return len(getattr(self, fields(batch)[0].name))

    @property
    def num_targets(self) -> int:
        return self.num_examples


class ExampleTask(Task):
    """A task on separate examples.

    Args:
        tokens_per_example: the number of tokens that are routed for an example.
    """

    def __init__(self, dataset: ExampleDataset[Any], seed: int, tokens_per_example: int) -> None:
        super().__init__(dataset)
        self._tokens_per_example = tokens_per_example
        self._order = ExampleOrder(seed, len(dataset.train))

    def train_batch(self, index: int, size: int, part: int = 0, parts: int = 1) -> Any:
        return self._batch(self.dataset.train, self._order.batch(index, size, part, parts))

    def val_batches(self, size: int, max_tokens: int | None = None) -> Iterator[Any]:
        """Yields the validation examples in order; or evenly spaced ones for which about `max_tokens` are routed."""
        wanted = None if max_tokens is None else max_tokens // self._tokens_per_example
        indices = evenly_spaced(len(self.dataset.val), wanted)
        for first in range(0, len(indices), size):
            yield self._batch(self.dataset.val, indices[first : first + size])

    @abstractmethod
    def _batch(self, split: Any, indices: NDArray[np.int64]) -> Any:
        """Returns the examples of a split with these indices."""
