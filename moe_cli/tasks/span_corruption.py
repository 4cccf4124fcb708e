"""Span corruption: the decoder predicts spans that are removed from a window. B windows, L inputs, M targets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from moe_cli.config.tasks import SpanCorruption
from moe_cli.data.corpora import Corpus
from moe_cli.data.shards import Tokens
from moe_cli.moe.routing import Routing
from moe_cli.tasks.base import BY_DOMAIN, EvalBatchResult, sum_by_domain
from moe_cli.tasks.causal_lm import TextBatch, TextTask


@dataclass(frozen=True, kw_only=True)
class SpanBatch(TextBatch):
    """The inputs of the encoder and the targets of the decoder.

    Attributes:
        input_positions, target_positions: the position of each token in its split. A sentinel has that of the start of
            its span, the last sentinel that of the end of the window.
    """

    targets: Int[Tensor, "B M"] = field(kw_only=False)
    input_positions: Int[Tensor, "B L"]
    target_positions: Int[Tensor, "B M"]

    def to(self, device: torch.device) -> "SpanBatch":
        return replace(self, inputs=self.inputs.to(device), targets=self.targets.to(device))


class SpanTask(TextTask):
    """T5's task (arXiv:1910.10683, section 3.1.4) on windows of a corpus.

    The encoder reads a window in which each span is replaced by one sentinel. The decoder predicts every sentinel
    followed by its span, and one more sentinel at the end. The number of removed tokens and of spans depends on the
    window's length alone, so that no padding is needed. The seed and the window determine the spans, so that any step
    can be repeated; in validation the window alone. The ids of the sentinels, and of the decoder's start token, follow
    those of the corpus.
    """

    target_offset: ClassVar[int] = 0

    def __init__(
        self, corpus: Corpus, context_length: int, seed: int, task: SpanCorruption, eval_length: int | None = None
    ) -> None:
        super().__init__(corpus, context_length, seed, eval_length=eval_length)
        self.task = task
        self.vocab_size = self.num_data_tokens + task.special_tokens
        self.start_token = self.vocab_size - 1

    def loss(self, model: nn.Module, batch: TextBatch) -> tuple[Float[Tensor, ""], list[Routing]]:
        """Computes the mean cross-entropy in nats per target, with sentinels, and the routings of the sparse layers."""
        logits, routings = model(batch.inputs, self._shift_right(batch.targets))
        return F.cross_entropy(logits.flatten(0, 1).float(), batch.targets.flatten()), routings

    def score(self, model: nn.Module, batch: SpanBatch) -> EvalBatchResult:  # type: ignore[override]
        """Returns the loss, in total and for each domain, and the number of correctly predicted tokens of the spans."""
        logits, routings = model(batch.inputs, self._shift_right(batch.targets))
        losses = F.cross_entropy(logits.flatten(0, 1).float(), batch.targets.flatten(), reduction="none")
        is_span_token = batch.targets < self.num_data_tokens
        correct = ((logits.argmax(-1) == batch.targets) & is_span_token).sum()
        domains = self._domains_at(batch.target_positions)
        by_domain = sum_by_domain(losses, domains, len(self.domains))
        sums = {"correct": correct, "span_tokens": is_span_token.sum(), BY_DOMAIN: by_domain}
        return EvalBatchResult(losses.mean(), routings, sums)

    def metrics(self, sums: Mapping[str, Tensor], num_targets: int) -> dict[str, float]:
        """Computes the metrics. accuracy: the fraction of correctly predicted tokens of spans, without sentinels."""
        return {"accuracy": float(sums["correct"]) / float(sums["span_tokens"])}

    @property
    def meta(self) -> Mapping[str, Any]:
        """Returns the metadata of the corpus, with the accuracy of the most frequent token as the reference."""
        known = self.dataset.meta.get("unigram", {})
        return {
            **self.dataset.meta,
            "references": {name: known[name] for name in ("commonest_accuracy",) if name in known},
        }

    def routed_ids_and_domains(  # type: ignore[override]
        self, batch: SpanBatch
    ) -> list[tuple[Int[Tensor, " T"], Int[Tensor, " T"]]]:
        """Returns the input tokens of encoder and decoder with their domains.

        The decoder's domains are those of its targets.
        """
        return [
            (tokens.flatten(), self._domains_at(positions))
            for tokens, positions in (
                (batch.inputs, batch.input_positions),
                (self._shift_right(batch.targets), batch.target_positions),
            )
        ]

    def routed_documents(self, batch: SpanBatch) -> list[Int[Tensor, " T"]]:  # type: ignore[override]
        """Returns the documents of the input tokens of encoder and decoder."""
        positions = (batch.input_positions, batch.target_positions)
        return [torch.from_numpy(self.dataset.document_ids_at(part.flatten().numpy())) for part in positions]

    def id_texts(self, ids: Sequence[int]) -> dict[int, str]:
        texts = super().id_texts([token for token in ids if token < self.num_data_tokens])
        sentinels = {token: f"[{token - self.num_data_tokens + 1}]" for token in ids if token >= self.num_data_tokens}
        return {**texts, **sentinels, **({self.start_token: "[START]"} if self.start_token in ids else {})}

    def _shift_right(self, targets: Int[Tensor, "B M"]) -> Int[Tensor, "B M"]:
        """Returns the inputs of the decoder: the start token, then all targets but the last."""
        return F.pad(targets[:, :-1], (1, 0), value=self.start_token)

    def _domains_at(self, positions: Int[Tensor, "B N"]) -> Int[Tensor, " T"]:
        return torch.from_numpy(self.dataset.domain_ids_at(positions.flatten().numpy()))

    def _make_targets(self, tokens: Tokens, batch: TextBatch) -> TextBatch:
        """Removes spans, which become the targets."""
        parts = [
            self._corrupt_window(row, start, self._draw(tokens, start))
            for row, start in zip(batch.inputs.numpy(), batch.starts.tolist(), strict=True)
        ]
        inputs, targets, input_positions, target_positions = (
            torch.from_numpy(np.stack([getattr(part, name) for part in parts]))
            for name in ("inputs", "targets", "input_positions", "target_positions")
        )
        return SpanBatch(
            inputs, targets, None, batch.starts, input_positions=input_positions, target_positions=target_positions
        )

    def _corrupt_window(self, row: NDArray[np.int64], start: int, draw: np.random.Generator) -> "CorruptedWindow":
        """Returns the input of the encoder for a window, and the targets of the decoder."""
        taken, number = self.task.spans(len(row))
        kept_lengths, span_lengths = (
            _random_segments(len(row) - taken, number, draw),
            _random_segments(taken, number, draw),
        )
        # Kept and removed segments alternate; a window begins with a kept one and ends with a removed one.
        ends = np.stack([kept_lengths, span_lengths], 1).flatten().cumsum()
        begins = np.concatenate([[0], ends[:-1]])
        inputs, targets = [], []
        for span, (first, middle, last) in enumerate(zip(begins[::2], ends[::2], ends[1::2], strict=True)):
            sentinel = [(self.num_data_tokens + span, middle)]
            inputs += [*((row[index], index) for index in range(first, middle)), *sentinel]
            targets += [*sentinel, *((row[index], index) for index in range(middle, last))]
        targets.append((self.num_data_tokens + number, len(row) - 1))
        read, written = np.array(inputs, np.int64), np.array(targets, np.int64)
        return CorruptedWindow(read[:, 0], written[:, 0], read[:, 1] + start, written[:, 1] + start)


@dataclass(frozen=True)
class CorruptedWindow:
    """The inputs and targets of one window, as in `SpanBatch`."""

    inputs: NDArray[np.int64]
    targets: NDArray[np.int64]
    input_positions: NDArray[np.int64]
    target_positions: NDArray[np.int64]


def _random_segments(total: int, parts: int, draw: np.random.Generator) -> NDArray[np.int64]:
    """Draws `parts` lengths that sum to `total`, each at least 1 if possible. All divisions are equally likely."""
    cuts = np.sort(draw.permutation(max(0, total - 1))[: parts - 1]) + 1
    edges = np.concatenate([[0], cuts, [total]]).astype(np.int64)
    return edges[1:] - edges[:-1]
