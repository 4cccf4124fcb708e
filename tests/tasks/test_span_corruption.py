"""Span corruption: what is taken out, how it is written, what is counted. V tokens, L positions."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from moe_cli.config.tasks import SpanCorruption
from moe_cli.data.corpora import Corpus
from moe_cli.models.registry import make_model
from moe_cli.tasks.span_corruption import SpanTask
from moe_cli.training.evaluate import evaluate
from tests.data.made_token_files import Held
from tests.tiny import TINY, finish, randomise, tiny_config, tiny_task

V, L = 50, 40


def make(seed: int = 0, length: int = L, val: int = 130, **settings: Any) -> SpanTask:
    """A task on tokens that count up, so that a window shows what should stand where."""
    corpus = Corpus(Path(), {"vocab_size": V, "tokenizer": None, "domains": ["all"]})
    vars(corpus).update(train=Held(np.arange(4000, dtype=np.uint16) % V), val=Held(np.arange(val, dtype=np.uint16) % V))
    return SpanTask(corpus, length, seed, SpanCorruption(**settings))


def put_back(read: list[int], written: list[int]) -> list[int]:
    """The window of a corrupted one: each sentinel is replaced with what is written after it."""
    spans: dict[int, list[int]] = {}
    for token in written:
        if token >= V:
            spans[last := token] = []
        else:
            spans[last].append(token)
    return [each for token in read for each in (spans[token] if token >= V else [token])]


@given(st.integers(1, 200), st.floats(0.01, 0.5), st.floats(1, 8), st.integers(0, 9))
def test_nothing_is_lost(length: int, corrupted: float, mean_noise_span_length: float, seed: int) -> None:
    """Spans put back in their places give the window; lengths are those that are promised; sentinels come in order."""
    settings = SpanCorruption(noise_density=corrupted, mean_noise_span_length=mean_noise_span_length, num_sentinels=200)
    task = make(seed, length, noise_density=corrupted, mean_noise_span_length=mean_noise_span_length, num_sentinels=200)
    batch = task.train_batch(seed, 2)
    assert settings.lengths(length) == (batch.inputs.shape[1], batch.targets.shape[1])
    taken, number = settings.spans(length)
    for read, written, start in zip(batch.inputs.tolist(), batch.targets.tolist(), batch.starts.tolist(), strict=True):
        assert [(start + place) % V for place in range(length)] == put_back(read, written)
        assert list(range(V, V + number)) == [token for token in read if token >= V]
        assert list(range(V, V + number + 1)) == [token for token in written if token >= V]
        assert V + number == written[-1]
        assert taken == sum(token < V for token in written)
        assert all(a < V or b < V for a, b in pairwise(written))


@pytest.mark.parametrize(("length", "lengths"), [(16, (15, 4)), (128, (115, 26)), (568, (511, 114))])
def test_lengths_by_hand(length: int, lengths: tuple[int, int]) -> None:
    """15 % in spans of 3: 2 of 16 in 1 span, 19 of 128 in 6, 85 of 568 in 28; T5's 512 and 114, less a token at the end of
    what it reads.
    """
    assert lengths == SpanCorruption().lengths(length)


def test_ways_to_cut_are_as_likely() -> None:
    """A window of 6 loses 2 tokens in 2 spans: what stays, 4, is cut as 1+3, 2+2 or 3+1, each in a third of many windows."""
    task, number = make(length=6, noise_density=0.33, mean_noise_span_length=1), 1500
    draw = np.random.default_rng(0)
    first = [task._corrupt_window(np.arange(6), start, draw).target_positions[0] - start for start in range(number)]
    shares = np.bincount(first, minlength=4)[1:4] / number
    assert 1 == pytest.approx(shares.sum())
    assert np.abs(shares - 1 / 3).max() < 5 * (2 / 9 / number) ** 0.5


def test_any_batch_can_be_made_again() -> None:
    """The seed and the index decide spans and windows; parts of a batch are those of the whole; another seed, other spans."""
    batch, again = (make().train_batch(7, 4) for _ in range(2))
    assert torch.equal(batch.inputs, again.inputs)
    assert torch.equal(batch.targets, again.targets)
    parts = [make().train_batch(7, 4, part, 2) for part in range(2)]
    assert torch.equal(batch.inputs, torch.cat([part.inputs for part in parts]))
    tasks = [make(seed=seed) for seed in (0, 1)]
    first, other = (task._batch(task.dataset.train, [80], L) for task in tasks)
    assert not torch.equal(first.targets, other.targets)


class Favourite(nn.Module):
    """Always the same guess, and the same logits everywhere."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.linspace(1, -1, vocab_size))
        self.shown: list[Tensor] = []

    def forward(self, tokens: Tensor, answer: Tensor) -> tuple[Tensor, list[Any]]:
        self.shown.append(answer)
        return self.logits.expand(*answer.shape, -1), []


def test_the_loss_is_the_mean_over_all_targets_of_the_split() -> None:
    """Sentinels are targets too; the accuracy is of the other tokens; all windows and the rest of the split are asked."""
    task = make()
    model = Favourite(task.vocab_size)
    targets = torch.cat([batch.targets.flatten() for batch in task.val_batches(2)])
    guess = int(targets[1])
    model.logits.data[guess] = 2.0
    result = evaluate(model, task, 2)
    assert 3 * (6 + 2 + 1) + (2 + 1 + 1) == len(targets) == result.num_tokens  # three windows, and 10 tokens
    assert -model.logits.log_softmax(0)[targets].mean().item() == pytest.approx(result.loss, rel=1e-5)
    text = targets[targets < V]
    assert 0 < (text == guess).double().mean().item() == pytest.approx(result.measures["accuracy"])
    assert result.bits_per_byte is None
    batch = next(task.val_batches(2))
    assert task.loss(model, batch)[0].item() == pytest.approx(task.score(model, batch).loss.item())


def test_the_decoder_is_shown_what_it_has_written() -> None:
    """All targets but the last, after the token at the start, which is no target."""
    task = make()
    model, batch = Favourite(task.vocab_size), task.train_batch(0, 3)
    task.loss(model, batch)
    assert torch.equal(F.pad(batch.targets[:, :-1], (1, 0), value=V + 100), model.shown[0])
    assert V + 101 == task.vocab_size
    assert not (batch.targets == task.start_token).any()


def test_experts_are_counted_by_the_tokens_of_their_own_stack(text_file: Path, tmp_path: Path) -> None:
    """Per token id and layer, the assignments of the tokens that the layer's stack reads, of the whole split."""
    config = tiny_config(text_file, **TINY["t5"])
    task = tiny_task(config, tmp_path)
    model = randomise(make_model(config, task.vocab_size)).eval()
    result = evaluate(model, task, 8)
    batches = list(task.val_batches(8))
    routings = [task.loss(model, batch)[1] for batch in batches]
    read = [
        torch.cat([batch.inputs.flatten() for batch in batches]),
        torch.cat([F.pad(batch.targets[:, :-1], (1, 0), value=task.start_token).flatten() for batch in batches]),
    ]
    assert 2 == len(result.layers)
    for layer, tokens, number in zip(result.layers, read, (0, 1), strict=True):
        assert torch.equal(2 * torch.bincount(tokens, minlength=task.vocab_size), layer.by_token.per_token())
        assert torch.equal(sum(each[number].tokens_per_expert for each in routings), layer.tokens_per_expert)
        assert len(tokens) == layer.num_tokens == layer.by_domain.sum() // 2


def test_tokens_have_the_domain_of_their_place(tmp_path: Path) -> None:
    """Inputs and targets of a window have the domains of the places of their tokens."""
    task = make(val=81)
    vars(task.dataset)["domain_ids_at"] = lambda places: (places >= 45).astype(np.int64)
    batch = next(task.val_batches(2))
    # Tokens count up, so that each tells its place, from where its window begins.
    starts = batch.starts[:, None]
    for tokens, (_, domains) in zip((batch.inputs, batch.targets), task.routed_ids_and_domains(batch), strict=True):
        places = starts + (tokens - starts) % V
        text = tokens < V
        assert torch.equal((places >= 45).long()[text], domains.view_as(tokens)[text])
        assert {0, 1} == set(domains.tolist())


def test_a_run_reports_accuracy(text_file: Path, tmp_path: Path) -> None:
    """It stands in summary.json; bits per byte are not said; ids stand for text, sentinels and the start."""
    config = tiny_config(text_file, **TINY["t5"], train={"steps": 4})
    summary = finish(config, tmp_path).summary() or {}
    assert 0 <= summary["val_accuracy"] <= 1
    assert summary["val_bpb"] is None
    task = tiny_task(config, tmp_path)
    assert 256 + 5 == task.vocab_size
    assert {97: "a", 256: "[1]", 260: "[START]"} == task.id_texts([97, 256, 260])


@pytest.mark.slow
def test_a_model_beats_the_commonest_token(few_words: Path, tmp_path: Path) -> None:
    """A short training tells tokens of the spans that were taken out better than the same guess for all of them."""
    config = tiny_config(few_words, **TINY["t5"], train={"steps": 80, "batch_size": 16, "log_every": 40})
    summary = finish(config, tmp_path).summary() or {}
    assert summary["val_accuracy"] > 1.5 * summary["commonest_accuracy"] > 0
    assert "unigram_loss" not in summary
