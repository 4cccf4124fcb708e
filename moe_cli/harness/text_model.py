"""Scores and continues text with the model of a run. B windows, L positions, V tokens in the vocabulary."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from moe_cli.data.tokenizers import find_separator
from moe_cli.errors import ConfigError, DataError
from moe_cli.execution.trained_model import TrainedModel
from moe_cli.harness.generation import Generation
from moe_cli.harness.windows import Window, split_windows
from moe_cli.moe.routing import RoutingPolicy
from moe_cli.training.evaluate import eval_policy, evaluation_mode
from moe_cli.training.generate import sample


@dataclass(frozen=True)
class Score:
    """The log-likelihood of a continuation in nats, and whether each of its tokens is the most probable one."""

    log_prob: float
    is_greedy: bool


class TextModel:
    """The model of a run, with its tokenizer, its windows and its routing at evaluation (the settings `eval`).

    Args:
        batch_size: windows in one forward pass.

    Raises:
        ConfigError: the run learned another task, or from tokens without a tokenizer.
    """

    def __init__(self, trained: TrainedModel, batch_size: int) -> None:
        if trained.config.task.kind != "causal_lm":
            raise ConfigError(
                f"{trained.run_id} learned task={trained.config.task.name}: its model does not predict the next token. "
                "Name a run with task=causal_lm (model=gpt or lstm)."
            )
        self.trained, self.batch_size = trained, batch_size
        self.config, self.tokenizer = trained.config, trained.tokenizer
        self.length, self.stride = self.config.eval_length, self.config.eval_stride
        self.vocab_size: int = self.tokenizer.vocab_size
        self.separator = find_separator(self.tokenizer)
        self.prefix = self._prefix()

    def encode(self, text: str) -> list[int]:
        """Returns the tokens of a text."""
        return list(map(int, self.tokenizer.encode(text)))

    def encode_context(self, tokens: Sequence[int]) -> list[int]:
        """Returns the tokens of a context as the model saw the beginning of a document: after its prefix, if any."""
        return [*self.trained.task.document_prefix, *tokens] or [self.prefix]

    @torch.no_grad()
    def score(
        self,
        pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
        on_windows: Callable[[int, int], object] = lambda number, total: None,
    ) -> list[Score]:
        """Scores each continuation after its context, in batches of windows of similar lengths.

        Args:
            pairs: tokens of a context, at least one, and tokens of its continuation.
            on_windows: called with the number of windows of each batch, and of all batches.
        """
        windows = [
            (number, window)
            for number, (context, continuation) in enumerate(pairs)
            for window in split_windows(context, continuation, self.length, self.stride)
        ]
        windows.sort(key=lambda item: -len(item[1].inputs))
        log_probs, is_greedy = [0.0] * len(pairs), [True] * len(pairs)
        with evaluation_mode(self.trained.model, eval_policy(self.config.eval), self._precision) as (model, device):
            for first in range(0, len(windows), self.batch_size):
                batch = windows[first : first + self.batch_size]
                scores = self._score_batch(model, device, [window for _, window in batch])
                for (number, _), score in zip(batch, scores, strict=True):
                    log_probs[number] += score.log_prob
                    is_greedy[number] &= score.is_greedy
                on_windows(len(batch), len(windows))
        return list(map(Score, log_probs, is_greedy))

    def _score_batch(self, model: nn.Module, device: torch.device, windows: Sequence[Window]) -> list[Score]:
        lengths = torch.tensor([len(window.inputs) for window in windows])
        # A capacity per sequence follows from the length of the batch, so that it must not depend on other texts.
        width = int(lengths.max()) if self.config.eval.capacity is None else self.length
        inputs = torch.full((len(windows), width), self.prefix)
        for row, window in zip(inputs, windows, strict=True):
            row[: len(window.inputs)] = torch.tensor(window.inputs)
        mask = torch.arange(width) < lengths[:, None]
        padding = {} if mask.all() else {"mask": mask.to(device)}
        logits: Float[Tensor, "B L V"] = model(inputs.to(device), **padding)[0]
        return [
            self._score_row(row[len(window.inputs) - len(window.targets) : len(window.inputs)], window.targets)
            for row, window in zip(logits, windows, strict=True)
        ]

    def _score_row(self, logits: Float[Tensor, "L V"], targets: Sequence[int]) -> Score:
        ids = torch.tensor(targets, device=logits.device)
        losses = F.cross_entropy(logits.float(), ids, reduction="none").double()
        return Score(-losses.sum().item(), bool((logits[:, : self.vocab_size].argmax(-1) == ids).all()))

    def generate(self, prompt: str, options: Generation, seed: int) -> str:
        """Continues a text until a stop, the end of a document or the largest number of tokens.

        The prompt is cut from the left so that prompt and text fit into the context length of the model. If the text
        alone does not fit, the model reads the last tokens, as in `moe sample`. No assignment is dropped.
        """
        length = self.config.model.context_length
        ids = self.encode_context(self.encode(prompt))
        ids = ids[-(length - options.max_tokens) :] if options.max_tokens < length else ids[-length:]
        cached = getattr(self.config.model, "has_cache", True)  # False for a plug-in's model without one
        written: list[int] = []
        text = ""
        with evaluation_mode(self.trained.model, RoutingPolicy(self.config.eval.k), self._precision) as (model, _):
            tokens = sample(model, ids, options.max_tokens, length, options.sampling, seed, self.vocab_size, cached)
            for token in tokens:
                if token == self.separator:
                    break
                written.append(token)
                text = self.tokenizer.decode(written)
                if options.cut(text) != text:
                    break
        return options.cut(text)

    def _prefix(self) -> int:
        """Returns the token before a text without a context: the separator; without one a newline, else token 0."""
        if self.separator is not None:
            return self.separator
        try:
            return self.encode("\n")[0]
        except DataError:
            return 0

    @property
    def _precision(self) -> Any:
        return self.config.train.precision
