"""Masked language modelling: predicts masked tokens from both sides. B windows, L positions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_cli.config.tasks import MaskedLM
from moe_cli.data.corpora import Corpus
from moe_cli.data.shards import Tokens
from moe_cli.tasks.base import BY_DOMAIN, EvalBatchResult, sum_by_domain
from moe_cli.tasks.causal_lm import IGNORE_INDEX, TextBatch, TextTask


class MaskedTask(TextTask):
    """BERT's task (arXiv:1810.04805, section 3.1) on windows of a corpus.

    In each window mask_prob * L positions are predicted, rounded, at least one. The seed and the window determine the
    positions and their replacements, so that any step can be repeated; in validation the window alone. The id of the
    mask token follows those of the corpus.
    """

    target_offset: ClassVar[int] = 0

    def __init__(
        self,
        corpus: Corpus,
        context_length: int,
        seed: int,
        task: MaskedLM,
        packing: str = "concat",
        eval_length: int | None = None,
    ) -> None:
        super().__init__(corpus, context_length, seed, packing, eval_length)
        self.task = task
        self.mask_token = self.vocab_size
        self.vocab_size += 1

    def score(self, model: nn.Module, batch: TextBatch) -> EvalBatchResult:
        """Returns the loss, in total and for each domain, and the number of correctly predicted tokens."""
        logits, routings = batch.forward(model)
        is_target = batch.targets != IGNORE_INDEX
        losses = F.cross_entropy(logits[is_target].float(), batch.targets[is_target], reduction="none")
        domains = self._domains(self._first_inputs(batch), batch.inputs.shape[1])[is_target.flatten().cpu()]
        correct = (logits.argmax(-1) == batch.targets).sum()
        sums = {"correct": correct, BY_DOMAIN: sum_by_domain(losses, domains, len(self.domains))}
        return EvalBatchResult(losses.mean(), routings, sums)

    def metrics(self, sums: Mapping[str, Tensor], num_targets: int) -> dict[str, float]:
        """Computes the metrics. accuracy: the fraction of correctly predicted masked tokens."""
        return {"accuracy": float(sums["correct"]) / num_targets}

    @property
    def meta(self) -> Mapping[str, Any]:
        """Returns the metadata of the corpus, with the unigram loss as the reference."""
        return {**self.dataset.meta, "references": self.dataset.meta.get("unigram", {})}

    def id_texts(self, ids: Sequence[int]) -> dict[int, str]:
        texts = super().id_texts([token for token in ids if token != self.mask_token])
        return {**texts, **({self.mask_token: "[MASK]"} if self.mask_token in ids else {})}

    def pseudo_perplexity_task(self) -> "PseudoPerplexityTask | None":
        """Returns the task that masks one token at a time; None if task.pseudo_perplexity_tokens is 0."""
        return (
            PseudoPerplexityTask(
                self.dataset, self.context_length, self.seed, self.task, self.packing, self.eval_length
            )
            if self.task.pseudo_perplexity_tokens
            else None
        )

    def _make_targets(self, tokens: Tokens, batch: TextBatch) -> TextBatch:
        """Masks some tokens, which become the targets."""
        inputs, targets = batch.inputs.numpy(), np.full(batch.inputs.shape, IGNORE_INDEX, np.int64)
        sizes = [inputs.shape[1]] * len(inputs) if batch.mask is None else batch.mask.sum(1).tolist()
        for row, (start, size) in enumerate(zip(batch.starts.tolist(), sizes, strict=True)):
            draw = self._draw(tokens, start)
            inputs[row, :size], targets[row, :size] = self._mask_window(inputs[row, :size], draw)
        return replace(batch, inputs=torch.from_numpy(inputs), targets=torch.from_numpy(targets), num_bytes=None)

    def _mask_window(self, row: "np.ndarray", draw: np.random.Generator) -> tuple["np.ndarray", "np.ndarray"]:
        """Returns the masked window and its targets."""
        task = self.task
        positions = draw.permutation(len(row))[: max(1, round(task.mask_prob * len(row)))]
        targets = np.full_like(row, IGNORE_INDEX)
        targets[positions] = row[positions]
        action = draw.random(len(positions))
        shown = row.copy()
        shown[positions[action < task.mask_token_prob]] = self.mask_token
        random = positions[(action >= task.mask_token_prob) & (action < task.mask_token_prob + task.random_token_prob)]
        shown[random] = draw.integers(self.mask_token, size=len(random))
        return shown, targets


class PseudoPerplexityTask(MaskedTask):
    """A task that masks each token of some validation windows alone; all other tokens are visible.

    The exponential of the mean loss is the pseudo-perplexity (Salazar et al., arXiv:1910.14659, eq. 1 and 2).
    """

    def val_batches(self, size: int, max_tokens: int | None = None) -> Iterator[TextBatch]:
        """Yields copies of each window, each with another token masked; about `max_tokens` are masked in all."""
        for batch in super().val_batches(1, max_tokens or self.task.pseudo_perplexity_tokens):
            row = batch.inputs[0]
            shown = len(row) if batch.mask is None else int(batch.mask.sum())
            copies = row.repeat(shown, 1)
            diagonal = torch.eye(len(row), dtype=torch.bool)[:shown]
            targets = torch.where(diagonal, copies, IGNORE_INDEX)
            inputs = torch.where(diagonal, self.mask_token, copies)
            for first in range(0, shown, size):
                rows = slice(first, first + size)
                number = len(inputs[rows])
                yield TextBatch(
                    inputs[rows],
                    targets[rows],
                    None,
                    batch.starts.expand(number),
                    *(part if part is None else part.expand(number, -1) for part in (batch.mask, batch.documents)),
                )

    def _make_targets(self, tokens: Tokens, batch: TextBatch) -> TextBatch:
        return batch
