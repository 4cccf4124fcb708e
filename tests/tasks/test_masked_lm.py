"""Masked language modelling: what is hidden, how it is shown, and what is counted. V tokens, L positions."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_cli.config.compose import load_config
from moe_cli.config.routers import ExpertChoiceConfig
from moe_cli.config.tasks import MaskedLM
from moe_cli.data.corpora import Corpus
from moe_cli.errors import ConfigError
from moe_cli.models.registry import make_model
from moe_cli.tasks.masked_lm import IGNORE_INDEX, MaskedTask
from moe_cli.training.evaluate import evaluate
from tests.data.made_token_files import Held
from tests.tiny import TINY, finish, tiny_config, tiny_task

V, L = 50, 40
MODEL = {"model": TINY["bert"]["model"]}


def make(seed: int = 0, val: int = 130, **settings: Any) -> MaskedTask:
    """A task on tokens that count up, so that a window shows what should stand where."""
    corpus = Corpus(Path(), {"vocab_size": V, "tokenizer": None, "domains": ["all"]})
    vars(corpus).update(train=Held(np.arange(4000, dtype=np.uint16) % V), val=Held(np.arange(val, dtype=np.uint16) % V))
    return MaskedTask(corpus, L, seed, MaskedLM(**settings))


class Unigram(nn.Module):
    """The same logits everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.linspace(-1, 1, V + 1))

    def forward(self, tokens: Tensor) -> tuple[Tensor, list[Any]]:
        return self.logits.expand(*tokens.shape, -1), []


def original(starts: Tensor, length: int = L) -> Tensor:
    return (starts[:, None] + torch.arange(length)) % V


@pytest.mark.parametrize(("masked", "number"), [(0.15, 6), (0.5, 20), (0.01, 1)])
def test_as_many_are_hidden_in_every_window(masked: float, number: int) -> None:
    """The nearest whole number of positions, at least one; targets are what stands there, and all else is shown as it is."""
    batch = make(mask_prob=masked).train_batch(3, 8)
    asked = batch.targets != IGNORE_INDEX
    assert [number] * 8 == asked.sum(1).tolist()
    assert 8 * number == batch.num_targets
    plain = original(batch.starts)
    assert torch.equal(plain[asked], batch.targets[asked])
    assert torch.equal(plain[~asked], batch.inputs[~asked])


def test_how_hidden_tokens_are_shown() -> None:
    """Hidden tokens are shown as mask, random token, or themselves in the given shares, within 4 standard errors."""
    task = make(mask_prob=0.5, mask_token_prob=0.6, random_token_prob=0.3)
    batch = task.train_batch(0, 400)
    asked = batch.targets != IGNORE_INDEX
    shown, right = batch.inputs[asked], batch.targets[asked]
    total = len(shown)
    masks, same = (shown == task.mask_token).sum().item(), (shown == right).sum().item()
    assert 0.6 == pytest.approx(masks / total, abs=4 * math.sqrt(0.24 / total))
    # A random token is the right one once in V times.
    kept = 0.1 + 0.3 / V
    assert kept == pytest.approx(same / total, abs=4 * math.sqrt(kept * (1 - kept) / total))
    assert shown.max() == task.mask_token == V
    assert set(range(V)) <= set(shown.tolist())


def test_a_batch_can_be_made_again_and_in_parts() -> None:
    """Seed and index decide what is hidden, wherever it is asked; another seed hides otherwise."""
    whole, again = make().train_batch(5, 8), make().train_batch(5, 8)
    assert torch.equal(whole.inputs, again.inputs)
    parts = [make().train_batch(5, 8, part, 2) for part in range(2)]
    assert torch.equal(whole.inputs, torch.cat([part.inputs for part in parts]))
    assert torch.equal(whole.targets, torch.cat([part.targets for part in parts]))
    tasks = [make(seed=seed) for seed in (0, 1)]
    first, other = (task._batch(task.dataset.train, [80], L) for task in tasks)
    assert not torch.equal(first.targets, other.targets)


def test_the_loss_is_the_mean_over_what_is_hidden() -> None:
    """Cross-entropy at the hidden positions alone; the accuracy is the share that is guessed."""
    task, model = make(mask_prob=0.3), Unigram()
    result = evaluate(model, task, 2)
    log_probs = model.logits.log_softmax(0)
    batches = list(task.val_batches(2))
    targets = torch.cat([batch.targets.flatten() for batch in batches])
    hidden = targets[targets != IGNORE_INDEX]
    assert len(hidden) == result.num_tokens
    assert -log_probs[hidden].mean().item() == pytest.approx(result.loss, rel=1e-5)
    guess = V  # the largest logit, never right
    assert (hidden == guess).double().mean().item() == result.measures["accuracy"] == 0
    assert result.bits_per_byte is None


def test_the_pseudo_perplexity_hides_each_token_alone() -> None:
    """Every batch hides each position of one window once and shows all others; its loss is Salazar's sum."""
    task, model = make(pseudo_perplexity_tokens=2 * L), Unigram()
    pseudo_perplexity_task = task.pseudo_perplexity_task()
    assert pseudo_perplexity_task is not None
    batches = list(pseudo_perplexity_task.val_batches(7))
    inputs, targets = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("inputs", "targets"))
    starts = torch.cat([batch.starts for batch in batches])
    assert (2 * L, L) == tuple(inputs.shape)
    assert set(starts.tolist()) == {0, 2 * L}
    asked = targets != IGNORE_INDEX
    assert torch.equal(asked[:L], torch.eye(L, dtype=torch.bool))
    assert (inputs[asked] == V).all()
    assert torch.equal(original(starts)[~asked], inputs[~asked])
    assert torch.equal(original(starts)[asked], targets[asked])
    expected = -model.logits.log_softmax(0)[original(torch.tensor([0, 2 * L]))].mean().item()
    assert expected == pytest.approx(evaluate(model, pseudo_perplexity_task, 7).loss, rel=1e-5)
    assert make(pseudo_perplexity_tokens=0).pseudo_perplexity_task() is None


def test_a_run_reports_accuracy_and_pseudo_perplexity(text_file: Path, tmp_path: Path) -> None:
    """Both stand in summary.json; the embedding has a row for the mask; bits per byte are not said."""
    config = tiny_config(text_file, **MODEL, task=MaskedLM(pseudo_perplexity_tokens=32), train={"steps": 4})
    summary = finish(config, tmp_path).summary() or {}
    assert 0 <= summary["val_accuracy"] <= 1
    assert summary["val_pseudo_perplexity"] > 1
    assert summary["val_bpb"] is None
    assert 257 == tiny_task(config, tmp_path).vocab_size
    assert (
        summary["params"] - 257 * 2 * 16
        == (
            finish(
                tiny_config(text_file, **MODEL, task=MaskedLM(mask_prob=0.3), train={"steps": 1}), tmp_path
            ).summary()
            or {}
        )["params"]
        - 257 * 2 * 16
    )


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("sparse", [{}, {"expert": 1, "k": 1}])
def test_one_batch_can_be_learned_by_heart(sparse: dict[str, Any]) -> None:
    """Some dozen steps on the hidden tokens of one batch leave next to no loss."""
    torch.manual_seed(0)
    task = make()
    model = make_model(
        tiny_config(Path("text"), model=replace(MODEL["model"], context_length=L), task=MaskedLM(), **sparse), V + 1
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    batch = task.train_batch(0, 4)
    for _ in range(80):
        loss = task.loss(model, batch)[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05


@pytest.mark.slow
def test_a_model_beats_how_frequent_tokens_are(few_words: Path, tmp_path: Path) -> None:
    """A short training guesses hidden tokens better, in nats and in accuracy, than anyone could who sees no context."""
    config = tiny_config(
        few_words,
        **MODEL,
        task=MaskedLM(pseudo_perplexity_tokens=0),
        train={"steps": 150, "batch_size": 16, "log_every": 50},
    )
    summary = finish(config, tmp_path).summary() or {}
    assert summary["val_loss"] < 0.9 * summary["unigram_loss"]
    assert summary["val_accuracy"] > 1.5 * summary["commonest_accuracy"] > 0


def test_experts_may_choose_where_all_is_seen(text_file: Path, tmp_path: Path) -> None:
    """router=expert_choice, which a causal model refuses, trains."""
    config = tiny_config(text_file, **MODEL, task=MaskedLM(), router=ExpertChoiceConfig(), train={"steps": 2})
    assert (finish(config, tmp_path).summary() or {})["dead_experts"] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model=gpt", "task=masked_lm"], "model=gpt cannot do task=masked_lm. Use model=bert, or task=causal_lm"),
        (
            ["model=bert", "task=causal_lm"],
            "model=bert cannot do task=causal_lm. Use model=gpt or lstm, or task=masked_lm",
        ),
        (["model=bert", "task.mask_prob=1.5"], "task.mask_prob=1.5 must be between 0.01 and 0.99."),
        (
            ["model=bert", "task.mask_token_prob=0.8", "task.random_token_prob=0.3"],
            "task.mask_token_prob=0.8 and task.random_token_prob=0.3 are shares of what is masked: together at most 1.",
        ),
    ],
)
def test_what_is_refused(words: list[str], message: str) -> None:
    """A task that the model cannot do, and shares that are none."""
    with pytest.raises(ConfigError) as error:
        load_config(words)
    assert message == str(error.value)


@pytest.mark.parametrize("words", [["model=bert"], ["task=masked_lm"], ["model=bert", "task=masked_lm"]])
def test_model_and_task_bring_each_other_along(words: list[str]) -> None:
    """One of them is enough."""
    config = load_config(words).config
    assert ("bert", "masked_lm", "python") == (config.model.name, config.task.name, config.data.name)


def test_the_mask_is_written_as_such(text_file: Path, tmp_path: Path) -> None:
    """Ids stand for their text, and the one after the last for the mask."""
    task = tiny_task(tiny_config(text_file, **MODEL, task=MaskedLM()), tmp_path)
    assert {97: "a", 256: "[MASK]"} == task.id_texts([97, 256])


def test_a_window_at_the_end_may_be_short() -> None:
    """The rest of the split is asked too: its share of hidden tokens, at least one."""
    short = list(make(val=L + 4).val_batches(4))[-1]
    assert (1, 4) == tuple(short.inputs.shape)
    assert 1 == short.num_targets


def test_cross_entropy_ignores_what_is_not_asked() -> None:
    """Logits at other positions have no gradient."""
    task, model = make(), Unigram()
    batch = task.train_batch(0, 2)
    logits = model(batch.inputs)[0].detach().requires_grad_()

    class Given(nn.Module):
        def forward(self, tokens: Tensor) -> tuple[Tensor, list[Any]]:
            return logits, []

    task.loss(Given(), batch)[0].backward()
    moved = logits.grad.abs().sum(-1) > 0
    assert torch.equal(moved, batch.targets != IGNORE_INDEX)
    assert F.cross_entropy(logits[moved], batch.targets[moved]).item() == pytest.approx(
        task.loss(Given(), batch)[0].item()
    )
