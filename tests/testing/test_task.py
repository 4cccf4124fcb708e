"""The kit for tasks on texts: it passes what is built in, and names each planted fault."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from moe_cli.config.tasks import PluginTask
from moe_cli.plugins import Plugin
from moe_cli.tasks.base import EvalBatchResult
from moe_cli.tasks.causal_lm import TextBatch, TextTask, window_settings
from moe_cli.testing import check_task

pytestmark = pytest.mark.usefixtures("unchecked_shapes")


@pytest.mark.parametrize("name", ["causal_lm", "masked_lm", "span_corruption"])
def test_every_task_on_texts_passes(name: str) -> None:
    check_task(name)


@dataclass(frozen=True)
class NextConfig(PluginTask):
    name: str = "kit_next"


class DrawsNumbers(TextTask):
    def train_batch(self, index: int, size: int, part: int = 0, parts: int = 1) -> TextBatch:
        batch = super().train_batch(index, size, part, parts)
        return replace(batch, inputs=batch.inputs + torch.randint(2, batch.inputs.shape))


class IgnoresParts(TextTask):
    def train_batch(self, index: int, size: int, part: int = 0, parts: int = 1) -> TextBatch:
        return super().train_batch(index, size // parts)


class SeedsValidation(TextTask):
    def val_batches(self, size: int, max_tokens: int | None = None) -> Any:
        for batch in super().val_batches(size, max_tokens):
            yield replace(batch, inputs=batch.inputs + self.seed)


class ReadsAll(TextTask):
    def val_batches(self, size: int, max_tokens: int | None = None) -> Any:
        return super().val_batches(size)


class LearnsNothing(TextTask):
    def loss(self, model: Any, batch: Any) -> Any:
        loss, routings = super().loss(model, batch)
        return loss.detach(), routings


class ScoresOtherwise(TextTask):
    def score(self, model: Any, batch: Any) -> EvalBatchResult:
        result = super().score(model, batch)
        return replace(result, loss=2 * result.loss)


class CountsNaN(TextTask):
    def metrics(self, sums: Any, num_targets: int) -> dict[str, float]:
        return {"accuracy": float("nan")}


class AddsIds(TextTask):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.vocab_size += 1


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (DrawsNumbers, "depends on more than the seed and its index"),
        (IgnoresParts, "two halves of a training batch are not the batch"),
        (SeedsValidation, "the validation split differs"),
        (ReadsAll, "max_tokens=32 gives"),
        (LearnsNothing, "the loss has no gradient"),
        (ScoresOtherwise, "score and loss differ"),
        (CountsNaN, "a metric is not a finite number"),
        (AddsIds, "data and special_tokens have 256 ids"),
        (dict, "not a moe_cli.tasks.base.Task"),
    ],
)
def test_each_fault_is_named(fault: Any, sentence: str) -> None:
    def make(config: Any, data: Any) -> Any:
        return fault(data, **window_settings(config)) if fault is not dict else {}

    with pytest.raises(AssertionError, match=sentence):
        check_task(Plugin(build=make, config=NextConfig, conf="name: kit_next"))


def test_a_sound_plug_in_passes() -> None:
    check_task(
        Plugin(
            build=lambda config, data: TextTask(data, **window_settings(config)),
            config=NextConfig,
            conf="name: kit_next",
        )
    )
