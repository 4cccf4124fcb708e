"""Next-token prediction on a corpus: batches for training, the validation split, the loss. B sequences, L positions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from moe_cli.config.data import CorpusConfig
from moe_cli.config.schema import RunConfig
from moe_cli.data.corpora import Corpus
from moe_cli.data.document_windows import DocumentWindows, document_windows
from moe_cli.data.shards import LARGE_SPLIT_TOKENS, Tokens
from moe_cli.data.shuffle import EpochOrder, epoch_order
from moe_cli.data.token_files import check_tokens
from moe_cli.moe.routing import Routing
from moe_cli.tasks.base import BY_DOMAIN, CONTEXT, Batch, EvalBatchResult, Task, sum_by_domain

# Batches of a large text after which the memory through which it was read is released.
RELEASE_EVERY = 16
# A target that is not scored.
IGNORE_INDEX = -100
# Replaces a run's seed in validation, so that targets depend on the data alone.
VALIDATION_SEED = 0


@dataclass(frozen=True)
class TextBatch(Batch):
    """Inputs and the tokens that follow them.

    Attributes:
        targets: IGNORE_INDEX for padding, and for targets that another window of a validation split scores.
        num_bytes: the bytes of text of the targets; None means unknown.
        starts: the start of each window of inputs in its split; -1 means with a separator before the first token.
        mask: False for padding; None means no padding.
        documents: the index of the document of each input; None means that all inputs form one text.
    """

    inputs: Int[Tensor, "B L"]
    targets: Int[Tensor, "B L"]
    num_bytes: int | None
    starts: Int[Tensor, " B"]
    mask: Bool[Tensor, "B L"] | None = None
    documents: Int[Tensor, "B L"] | None = None

    @property
    def num_examples(self) -> int:
        return len(self.inputs)

    @property
    def num_targets(self) -> int:
        return int((self.targets != IGNORE_INDEX).sum())

    def forward(self, model: nn.Module) -> tuple[Float[Tensor, "B L V"], list[Routing]]:
        """Returns the model's logits, and the routings of its sparse layers."""
        model_kwargs = {"mask": self.mask, "documents": self.documents}
        present = {key: value for key, value in model_kwargs.items() if value is not None}
        return model(self.inputs, **present)  # type: ignore[no-any-return]


def window_settings(config: RunConfig) -> dict[str, Any]:
    """Returns the arguments of a TextTask, apart from the corpus, that follow from a resolved configuration."""
    return {
        "context_length": config.model.context_length,
        "seed": config.seed,
        "packing": config.data.packing if isinstance(config.data, CorpusConfig) else "concat",
        "eval_length": config.eval.context_length,
        "stride": config.eval.stride,
    }


class TextTask(Task):
    """A corpus cut into windows.

    The order of training windows depends on the seed alone, never on the model, so that configurations of one seed see
    the same data in the same order. Each epoch sees every window once, from a new offset.

    With packing `isolate` or `pad`, a separator belongs to the document after it, as its first token.

    Args:
        eval_length: tokens of a validation window; None means context_length.
        stride: tokens from one validation window to the next; a window scores its last `stride` targets, the first all
            of them; None means windows without overlap.
    """

    dataset: Corpus

    # The distance from an input to its target, in positions.
    target_offset: ClassVar[int] = 1

    def __init__(
        self,
        corpus: Corpus,
        context_length: int,
        seed: int,
        packing: str = "concat",
        eval_length: int | None = None,
        stride: int | None = None,
    ) -> None:
        super().__init__(corpus)
        self.context_length = context_length
        self.eval_length = eval_length or context_length
        self.stride = stride or self.eval_length
        self.seed = seed
        self.vocab_size = self.num_data_tokens = int(corpus.meta["vocab_size"])
        self.packing = packing
        self._document_starts = lru_cache(maxsize=2)(corpus.document_starts)
        self._windows = lru_cache(maxsize=2)(self._windows_of)
        self._bytes_per_token = corpus.bytes_per_token
        self._order = lru_cache(maxsize=2)(self._order_of)
        self._train_starts = lru_cache(maxsize=2)(self._train_starts_of)

    def train_batch(self, index: int, size: int, part: int = 0, parts: int = 1) -> TextBatch:
        """Returns the `index`-th batch of `size` windows.

        It depends on the seed and the index, so steps can be repeated.

        Args:
            part: the index of the part to read, of `parts` equal parts of the batch.
        """
        part_size = size // parts
        first = index * size + part * part_size
        batch = self._batch(self.dataset.train, self._train_starts(first, part_size), self.context_length)
        if len(self.dataset.train) >= LARGE_SPLIT_TOKENS:
            if index % RELEASE_EVERY == 0:
                self.dataset.train.release()
            # The next batch is read from the disk during this step.
            for start in self._train_starts(first + size, part_size):
                self.dataset.train.prefetch(max(0, start), start + self.context_length + 1)
        return batch

    def val_batches(self, size: int, max_tokens: int | None = None) -> Iterator[TextBatch]:
        """Yields the validation split in windows, each token scored once; or windows spread evenly over it.

        If documents are kept apart, the first token of the split is predicted after a separator. With packing `concat`
        no token precedes it, so it is not scored, and its bytes are not counted.

        Args:
            max_tokens: read about this number of tokens.
        """
        if self.packing == "pad":
            yield from self._val_documents(size, max_tokens)
            return
        first, end = self._val_inputs()
        length, stride = self.eval_length, self.stride
        starts: Sequence[int] = range(first, end - length + 1, stride)
        follows = first + len(starts) * stride  # the start of the last window, which the end cuts short
        read = len(starts) * length + end - follows
        is_subset = max_tokens is not None and max_tokens < read and len(starts) > 1
        if is_subset:
            keep = max(1, max_tokens // length)  # type: ignore[operator]
            starts = [starts[int(i)] for i in np.linspace(0, len(starts) - 1, min(keep, len(starts)))]
        for index in range(0, len(starts), size):
            batch_starts = starts[index : index + size]
            yield self._batch(
                self.dataset.val,
                batch_starts,
                length,
                [0 if start == first else length - stride for start in batch_starts],
            )
        skipped = length - stride if len(starts) else 0
        if end - follows > skipped and not is_subset:
            yield self._batch(self.dataset.val, [follows], end - follows, [skipped])

    def _val_inputs(self) -> tuple[int, int]:
        """Returns the first and the last position of the validation split; -1 means a separator before the split."""
        return (0 if self.packing == "concat" else -self.target_offset), len(self.dataset.val) - self.target_offset

    def _val_documents(self, size: int, max_tokens: int | None) -> Iterator[TextBatch]:
        val, length = self.dataset.val, self.eval_length
        windows = document_windows(self._document_starts(val), len(val), length, self.stride)
        keep = len(windows.starts)
        if max_tokens is not None:
            keep = min(keep, max(1, int(max_tokens / windows.sizes.mean())))
        selected = np.linspace(0, len(windows.starts) - 1, keep).astype(np.int64)
        for first in range(0, keep, size):
            indices = selected[first : first + size]
            yield self._padded(
                val, windows.starts[indices] - 1, windows.sizes[indices], length, windows.skipped[indices]
            )

    def loss(self, model: nn.Module, batch: TextBatch) -> tuple[Float[Tensor, ""], list[Routing]]:
        """Computes the mean cross-entropy in nats per token, without padding, and the routings of the sparse layers."""
        logits, routings = batch.forward(model)
        return F.cross_entropy(
            logits.flatten(0, 1).float(), batch.targets.flatten(), ignore_index=IGNORE_INDEX
        ), routings

    def score(self, model: nn.Module, batch: TextBatch) -> EvalBatchResult:
        """Returns the loss, in total and for each domain. Bits per byte and perplexity follow from it."""
        logits, routings = batch.forward(model)
        is_target = batch.targets != IGNORE_INDEX
        losses = F.cross_entropy(logits[is_target].float(), batch.targets[is_target], reduction="none")
        domains = self._domains(batch.starts + 1, batch.targets.shape[1])[is_target.flatten().cpu()]
        context = context_of(batch.inputs, batch.documents)[is_target].sum()
        sums = {BY_DOMAIN: sum_by_domain(losses, domains, len(self.domains)), CONTEXT: context}
        return EvalBatchResult(losses.mean(), routings, sums)

    def _domains(self, starts: Int[Tensor, " B"], length: int) -> Int[Tensor, " T"]:
        """Returns the domain of each validation token of some windows."""
        return torch.from_numpy(self.dataset.domain_ids_at(self._positions(starts, length)))

    def _positions(self, starts: Int[Tensor, " B"], length: int) -> NDArray[np.int64]:
        positions = (starts.cpu()[:, None] + torch.arange(length)).clamp(max=len(self.dataset.val) - 1)
        return positions.flatten().numpy()

    def routed_ids_and_domains(self, batch: TextBatch) -> list[tuple[Int[Tensor, " T"], Int[Tensor, " T"]]]:
        """Returns the id of every input of a validation batch, and the domain of its document."""
        ids, domains = batch.inputs.flatten(), self._domains(self._first_inputs(batch), batch.inputs.shape[1])
        if batch.mask is None:
            return [(ids, domains)]
        return [(ids[batch.mask.flatten()], domains[batch.mask.flatten().cpu()])]

    def routed_documents(self, batch: TextBatch) -> list[Int[Tensor, " T"]]:
        """Returns the document of every input of a validation batch."""
        positions = self._positions(self._first_inputs(batch), batch.inputs.shape[1])
        documents = torch.from_numpy(self.dataset.document_ids_at(positions))
        return [documents if batch.mask is None else documents[batch.mask.flatten().cpu()]]

    def _first_inputs(self, batch: TextBatch) -> Int[Tensor, " B"]:
        """Returns the position of the first input of each window; that of a separator before it is the next one."""
        return batch.starts if self.packing == "concat" else batch.starts + 1

    def id_texts(self, ids: Sequence[int]) -> dict[int, str]:
        """Returns the text of each token id; nothing if the tokens have no tokenizer."""
        tokenizer = self.dataset.tokenizer
        return {} if tokenizer is None else {token: tokenizer.decode([token]) for token in ids}

    def prompt(self, text: str) -> list[int]:
        """Returns the tokens of a text, after the prefix of a document."""
        assert self.dataset.tokenizer is not None
        return [*self.document_prefix, *self.dataset.tokenizer.encode(text).tolist()]

    @property
    def document_prefix(self) -> list[int]:
        """Returns the tokens before each document: a separator, or nothing if packing is `concat`."""
        assert self.dataset.tokenizer is not None
        return [] if self.packing == "concat" else [self.dataset.tokenizer.separator]

    @property
    def _windows_per_epoch(self) -> int:
        if self.packing == "pad":
            return len(self._windows(self.dataset.train).starts)
        return max(1, (len(self.dataset.train) - self.context_length) // self.context_length)

    def _train_starts_of(self, first: int, size: int) -> tuple[int, ...]:
        """Returns the starts of `size` training windows; `first` counts windows from the start of the first epoch."""
        epochs, positions = np.divmod(np.arange(first, first + size), self._windows_per_epoch)
        starts = np.empty(size, np.int64)
        for epoch in np.unique(epochs).tolist():
            order, in_epoch = self._order(epoch), epochs == epoch
            windows = order.windows[positions[in_epoch]]
            if self.packing == "pad":
                starts[in_epoch] = self._windows(self.dataset.train).starts[windows] - 1
            else:
                starts[in_epoch] = windows * self.context_length + order.offset
        return tuple(starts.tolist())

    def _order_of(self, epoch: int) -> EpochOrder:
        room = min(self.context_length, len(self.dataset.train) - self.context_length)
        return epoch_order(self.seed, epoch, self._windows_per_epoch, room)

    def _windows_of(self, tokens: Tokens) -> DocumentWindows:
        return document_windows(self._document_starts(tokens), len(tokens), self.context_length)

    def _batch(self, tokens: Tokens, starts: Sequence[int], length: int, skipped: Sequence[int] = ()) -> TextBatch:
        """Returns the windows that begin at `starts`.

        Args:
            skipped: the number of targets at the beginning of each window that are not scored; default 0.
        """
        if self.packing == "pad":
            positions = np.array(starts)
            return self._padded(tokens, positions, self._windows(tokens).sizes_at(positions + 1), length)
        windows = self._read_windows(tokens, starts, length + self.target_offset)
        targets = windows[:, self.target_offset :].astype(np.int64)
        if any(skipped):
            targets[np.arange(length) < np.array(skipped)[:, None]] = IGNORE_INDEX
        batch = TextBatch(
            torch.from_numpy(windows[:, :length].astype(np.int64)),
            torch.from_numpy(targets),
            self._bytes_of(targets),
            torch.tensor(starts),
            documents=self._documents(tokens, starts, length),
        )
        return self._make_targets(tokens, batch)

    def _make_targets(self, tokens: Tokens, batch: TextBatch) -> TextBatch:
        """Returns the batch with its targets. Here these are the next tokens, which the batch already has."""
        return batch

    def _read_windows(self, tokens: Tokens, starts: Sequence[int], length: int) -> NDArray[Any]:
        """Returns the tokens of windows. Position -1, before the first token of the split, has a separator."""
        windows = np.stack([self._window(tokens, start, start + length) for start in starts])
        self._check_vocabulary(tokens, windows, starts)
        return windows

    def _window(self, tokens: Tokens, start: int, end: int) -> NDArray[Any]:
        return tokens[start:end] if start >= 0 else np.append(self.document_prefix, tokens[0:end])

    def _documents(self, tokens: Tokens, starts: Sequence[int], length: int) -> Int[Tensor, "B L"] | None:
        """Returns the index of each input's document if documents are kept apart: that of the token after it."""
        if self.packing != "isolate":
            return None
        positions = np.array(starts)[:, None] + np.arange(1, length + 1)
        return torch.from_numpy(np.searchsorted(self._document_starts(tokens), positions, side="right"))

    def _bytes_of(self, targets: NDArray[np.int64]) -> int | None:
        """Returns the bytes of text of the scored targets; None means unknown."""
        widths = self._bytes_per_token
        return None if widths is None else int(widths[targets[targets != IGNORE_INDEX]].sum())

    def _padded(
        self,
        tokens: Tokens,
        starts: NDArray[np.int64],
        sizes: NDArray[np.int64],
        length: int,
        skipped: NDArray[np.int64] | int = 0,
    ) -> TextBatch:
        """Returns windows of one document each, padded at the end."""
        shown, targets = np.full((2, len(starts), length), self.document_prefix[0], np.int64)
        for row, (start, size) in enumerate(zip(starts.tolist(), sizes.tolist(), strict=True)):
            window = self._window(tokens, start, start + size + 1)
            shown[row, :size], targets[row, :size] = window[:-1], window[1:]
        positions, mask = np.arange(length), np.arange(length) < sizes[:, None]
        targets = np.where(mask & (positions >= np.reshape(skipped, (-1, 1))), targets, IGNORE_INDEX)
        batch = TextBatch(
            torch.from_numpy(shown),
            torch.from_numpy(targets),
            self._bytes_of(targets),
            torch.from_numpy(starts),
            torch.from_numpy(mask),
        )
        return self._make_targets(tokens, batch)

    def _draw(self, tokens: Tokens, start: int) -> np.random.Generator:
        """Returns the random generator of a window: in training it depends on the seed, in validation it does not."""
        seed = self.seed if tokens is self.dataset.train else VALIDATION_SEED
        return np.random.default_rng((seed, start + (self.packing == "pad")))  # the start may be -1

    def _check_vocabulary(self, tokens: Tokens, windows: NDArray[Any], starts: Sequence[int]) -> None:
        """Raises DataError for a token beyond the vocabulary."""
        if windows.max() >= self.num_data_tokens:
            for start, window in zip(starts, windows, strict=True):
                check_tokens(tokens, window, start, self.num_data_tokens)


def context_of(inputs: Int[Tensor, "B L"], documents: Int[Tensor, "B L"] | None) -> Int[Tensor, "B L"]:
    """Returns the number of inputs that each position of a causal model sees, itself included, within its document.

    With model.sliding_window, one layer of attention may see fewer.
    """
    positions = torch.arange(inputs.shape[1], device=inputs.device).expand_as(inputs)
    if documents is None:
        return positions + 1
    begins = F.pad(documents[:, 1:] != documents[:, :-1], (1, 0))
    return positions + 1 - torch.where(begins, positions, 0).cummax(1).values
