"""Next-token prediction on a corpus: batches for training, the validation split, the loss. B sequences, L positions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from moe_cli.moe.routing import Routing
from moe_cli.tasks.corpora import Corpus
from moe_cli.tasks.order import EpochOrder, epoch_order
from moe_cli.tasks.ready import check_tokens
from moe_cli.tasks.shards import LARGE, Tokens
from moe_cli.tasks.task import BY_DOMAIN, Scored, Task, by_domain

# After so many batches of a large text the memory through which it was read is let go.
BATCHES_HELD = 16


@dataclass(frozen=True)
class Batch:
    """Inputs and the tokens that follow them.

    Attributes:
        num_bytes: the bytes that the targets stand for; None: nobody knows.
        starts: where in its split each window of inputs begins.
    """

    inputs: Int[Tensor, "B L"]
    targets: Int[Tensor, "B L"]
    num_bytes: int | None
    starts: Int[Tensor, " B"]

    @property
    def num_examples(self) -> int:
        return len(self.inputs)

    @property
    def num_targets(self) -> int:
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
        self.vocab_size = self.num_known = int(corpus.meta["vocab_size"])
        self._bytes_per_token = None if corpus.tokenizer is None else corpus.tokenizer.bytes_per_token()
        self._order = lru_cache(maxsize=2)(self._order_of)
        self._starts = lru_cache(maxsize=2)(self._starts_of)

    def train_batch(self, index: int, size: int, part: int = 0, parts: int = 1) -> Batch:
        """The `index`-th batch of `size` windows, a function of the seed and the index: any step can be done again.

        Args:
            part: which of `parts` equal parts of the batch, whose windows alone are read.
        """
        share = size // parts
        first = index * size + part * share
        batch = self._batch(self.corpus.train, self._starts(first, share), self.context_length)
        if len(self.corpus.train) >= LARGE:
            if index % BATCHES_HELD == 0:
                self.corpus.train.release()
            # The next batch is read from the disk while this one is learned from.
            for start in self._starts(first + size, share):
                self.corpus.train.will_need(start, start + self.context_length + 1)
        return batch

    def val_batches(self, size: int, max_tokens: int | None = None) -> Iterator[Batch]:
        """The validation split in windows side by side, each token predicted once; or windows spread evenly over it."""
        val, length = self.corpus.val, self.context_length
        num_targets = len(val) - 1
        starts: Sequence[int] = range(0, num_targets - length + 1, length)
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

    def score(self, model: nn.Module, batch: Batch) -> Scored:
        """The loss, of each domain too; bits per byte and perplexity follow from it."""
        logits, routings = model(batch.inputs)
        losses = F.cross_entropy(logits.flatten(0, 1).float(), batch.targets.flatten(), reduction="none")
        domains = self._domains(batch.starts.cpu() + 1, batch.targets.shape[1])
        return Scored(losses.mean(), routings, {BY_DOMAIN: by_domain(losses, domains, len(self.domains))})

    def _domains(self, starts: Int[Tensor, " B"], length: int) -> Int[Tensor, " T"]:
        """The domain of each validation token of some windows."""
        places = starts[:, None] + torch.arange(length)
        return torch.from_numpy(self.corpus.val_domains(places.flatten().numpy()))

    def metrics(self, sums: Mapping[str, Tensor], num_targets: int) -> dict[str, float]:
        """None beside the loss."""
        return {}

    @property
    def meta(self) -> Mapping[str, Any]:
        return self.corpus.meta

    @property
    def domains(self) -> Sequence[str]:
        return self.corpus.meta["domains"]  # type: ignore[no-any-return]

    def groups(self, batch: Batch) -> list[tuple[Int[Tensor, " T"], Int[Tensor, " T"]]]:
        """The id of every token that is read, and the domain of its document; of validation batches."""
        return [(batch.inputs.flatten(), self._domains(batch.starts, batch.inputs.shape[1]))]

    def texts(self, ids: Sequence[int]) -> dict[int, str]:
        """The text of each token id; nothing where the tokens came without a tokenizer."""
        tokenizer = self.corpus.tokenizer
        return {} if tokenizer is None else {each: tokenizer.decode([each]) for each in ids}

    def hardest(self) -> "Task | None":
        """There is no other way to ask."""
        return None

    @property
    def _windows_per_epoch(self) -> int:
        return max(1, (len(self.corpus.train) - self.context_length) // self.context_length)

    def _starts_of(self, first: int, size: int) -> tuple[int, ...]:
        """Where in the training text so many windows begin, counted from the first of the first epoch."""
        epochs, places = np.divmod(np.arange(first, first + size), self._windows_per_epoch)
        starts = np.empty(size, np.int64)
        for epoch in np.unique(epochs).tolist():
            order, here = self._order(epoch), epochs == epoch
            starts[here] = order.windows[places[here]] * self.context_length + order.offset
        return tuple(starts.tolist())

    def _order_of(self, epoch: int) -> EpochOrder:
        room = min(self.context_length, len(self.corpus.train) - self.context_length)
        return epoch_order(self.seed, epoch, self._windows_per_epoch, room)

    def _batch(self, tokens: Tokens, starts: Sequence[int], length: int) -> Batch:
        windows = np.stack([tokens[start : start + length + 1] for start in starts])
        if windows.max() >= self.num_known:
            for start, window in zip(starts, windows, strict=True):
                check_tokens(tokens, window, start, self.num_known)
        windows = windows.astype(np.int64)
        targets = windows[:, 1:]
        widths = self._bytes_per_token
        return Batch(
            torch.from_numpy(windows[:, :-1].copy()),
            torch.from_numpy(targets.copy()),
            None if widths is None else int(widths[targets].sum()),
            torch.tensor(starts),
        )
