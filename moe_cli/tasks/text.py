"""Next-token prediction on a corpus: batches for training, the validation split, the loss. B sequences, L positions."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from moe_cli.moe.routing import Routing
from moe_cli.tasks.corpora import Corpus


@dataclass(frozen=True)
class Batch:
    """Inputs and the tokens that follow them.

    Attributes:
        num_bytes: the bytes that the targets stand for.
        starts: where in its split each window of inputs begins.
    """

    inputs: Int[Tensor, "B L"]
    targets: Int[Tensor, "B L"]
    num_bytes: int
    starts: Int[Tensor, " B"]

    @property
    def num_tokens(self) -> int:
        return self.targets.numel()

    def to(self, device: torch.device) -> "Batch":
        return Batch(self.inputs.to(device), self.targets.to(device), self.num_bytes, self.starts)


class TextTask:
    """A corpus cut into windows.

    The order of training windows depends on the seed alone, never on the model, so that configurations of one seed see
    the same data in the same order. Each epoch sees every window once, from a new offset.
    """

    def __init__(self, corpus: Corpus, context_length: int, seed: int) -> None:
        self.corpus = corpus
        self.context_length = context_length
        self.seed = seed
        self.vocab_size = int(corpus.meta["vocab_size"])
        self._bytes_per_token = corpus.tokenizer.bytes_per_token()
        self._epoch = lru_cache(maxsize=2)(self._shuffled_windows)

    def train_batch(self, index: int, size: int, part: int = 0, parts: int = 1) -> Batch:
        """The `index`-th batch of `size` windows, a function of the seed and the index: any step can be done again.

        Args:
            part: which of `parts` equal parts of the batch, whose windows alone are read.
        """
        starts = []
        first, share = index * size, size // parts
        for position in range(first + part * share, first + (part + 1) * share):
            epoch, place = divmod(position, self._windows_per_epoch)
            starts.append(int(self._epoch(epoch)[place]))
        return self._batch(self.corpus.train, starts, self.context_length)

    def val_batches(self, size: int, max_tokens: int | None = None) -> Iterator[Batch]:
        """The validation split in windows side by side, each token predicted once; or windows spread evenly over it."""
        val, length = self.corpus.val, self.context_length
        num_targets = len(val) - 1
        starts = list(range(0, num_targets - length + 1, length))
        partial = max_tokens is not None and max_tokens < num_targets and len(starts) > 1
        if partial:
            keep = max(1, max_tokens // length)  # type: ignore[operator]
            starts = [starts[int(i)] for i in np.linspace(0, len(starts) - 1, min(keep, len(starts)))]
        for first in range(0, len(starts), size):
            yield self._batch(val, starts[first : first + size], length)
        rest = num_targets % length
        if rest and not partial:
            yield self._batch(val, [num_targets - rest], rest)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Float[Tensor, ""], list[Routing]]:
        """Mean cross-entropy in nats per token, and the routings of the model's sparse layers."""
        logits, routings = model(batch.inputs)
        return F.cross_entropy(logits.flatten(0, 1).float(), batch.targets.flatten()), routings

    @property
    def _windows_per_epoch(self) -> int:
        return max(1, (len(self.corpus.train) - self.context_length) // self.context_length)

    def _shuffled_windows(self, epoch: int) -> NDArray[np.int64]:
        generator = np.random.default_rng((self.seed, epoch))
        room = min(self.context_length, len(self.corpus.train) - self.context_length)
        offset = int(generator.integers(room))
        return generator.permutation(self._windows_per_epoch) * self.context_length + offset

    def _batch(self, tokens: NDArray[Any], starts: list[int], length: int) -> Batch:
        windows = np.stack([tokens[start : start + length + 1] for start in starts]).astype(np.int64)
        targets = windows[:, 1:]
        return Batch(
            torch.from_numpy(windows[:, :-1].copy()),
            torch.from_numpy(targets.copy()),
            int(self._bytes_per_token[targets].sum()),
            torch.tensor(starts),
        )
