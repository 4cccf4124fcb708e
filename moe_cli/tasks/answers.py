"""Answers to the questions of a probe: batches, the loss of the answers, exact accuracy. B questions, L positions."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor, nn

from moe_cli.config.probes import START, ProbeConfig
from moe_cli.data.corpora import Corpus
from moe_cli.data.shards import Tokens
from moe_cli.data.shuffle import ExampleOrder, evenly_spaced
from moe_cli.tasks.base import BY_DOMAIN, EvalBatchResult, sum_by_domain
from moe_cli.tasks.causal_lm import IGNORE_INDEX, TextBatch, TextTask


class AnswersTask(TextTask):
    """Next-token prediction in which only answers are targets. A window is one question; each epoch has each once.

    The order of questions depends on the seed alone.
    """

    def __init__(self, corpus: Corpus, seed: int, data: ProbeConfig) -> None:
        super().__init__(corpus, data.context_length, seed)
        self.data = data
        self._questions = ExampleOrder(seed, data.num_train)

    def train_batch(self, index: int, size: int, part: int = 0, parts: int = 1) -> TextBatch:
        return self._read(self.dataset.train, self._questions.batch(index, size, part, parts))

    def val_batches(self, size: int, max_tokens: int | None = None) -> Iterator[TextBatch]:
        """Yields the validation questions in order; or evenly spaced ones of about `max_tokens` in total."""
        wanted = None if max_tokens is None else max_tokens // self.context_length
        indices = evenly_spaced(self.data.num_val, wanted)
        for first in range(0, len(indices), size):
            yield self._read(self.dataset.val, indices[first : first + size])

    def _read(self, tokens: Tokens, indices: NDArray[np.int64]) -> TextBatch:
        """Returns questions, with answers as targets; num_bytes is None, as there are no bits per byte of answers."""
        starts = indices * (self.context_length + 1)
        text = tokens[:]  # mapped from its file, not a copy
        windows = text[starts[:, None] + np.arange(self.context_length + 1)].astype(np.int64)
        targets = windows[:, 1:].copy()
        targets[:, : -self.data.answer_length] = IGNORE_INDEX
        return TextBatch(
            torch.from_numpy(windows[:, :-1].copy()), torch.from_numpy(targets), None, torch.from_numpy(starts)
        )

    def score(self, model: nn.Module, batch: TextBatch) -> EvalBatchResult:
        """Returns the loss of the answers, and the number of answers whose tokens are all the likeliest ones.

        Each token is predicted from the right ones before it, so an answer is right if and only if greedy decoding
        writes it.
        """
        logits, routings = batch.forward(model)
        answers = batch.targets[:, -self.data.answer_length :]
        predicted = logits[:, -self.data.answer_length :].float()
        losses = F.cross_entropy(predicted.flatten(0, 1), answers.flatten(), reduction="none")
        correct = (predicted.argmax(-1) == answers).all(1)
        domains = torch.zeros(len(losses), dtype=torch.int64)
        sums = {
            "correct": correct.sum(),
            "answers": torch.tensor(len(answers)),
            BY_DOMAIN: sum_by_domain(losses, domains, len(self.domains)),
        }
        return EvalBatchResult(losses.mean(), routings, sums)

    def metrics(self, sums: Mapping[str, Tensor], num_targets: int) -> dict[str, float]:
        """Computes the metrics. accuracy: the fraction of answers that are wholly right."""
        return {"accuracy": float(sums["correct"]) / float(sums["answers"])}

    @property
    def meta(self) -> Mapping[str, Any]:
        """Returns the metadata of the questions, with the results of random answers as references."""
        references = {"chance_accuracy": self.data.chance_accuracy, "chance_loss": self.data.chance_loss}
        return {**self.dataset.meta, "references": references}

    def routed_documents(self, batch: TextBatch) -> list[Int[Tensor, " T"]] | None:  # type: ignore[override]
        """Returns None: each question is a document of its own."""
        return None

    @property
    def document_prefix(self) -> list[int]:
        """Returns the token that begins a question."""
        assert self.dataset.tokenizer is not None
        return [int(token) for token in self.dataset.tokenizer.encode(START)]

    def prompt(self, text: str) -> list[int]:
        """Returns the tokens of the beginning of a question. Raises DataError for other characters."""
        return super().prompt(text.removeprefix(START))
