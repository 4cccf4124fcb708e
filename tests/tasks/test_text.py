"""Windows of a corpus: each once, in an order that the seed decides. L positions, D tokens."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_cli.tasks.corpora import Corpus
from moe_cli.tasks.text import TextTask
from moe_cli.tasks.tokenizers import CharTokenizer

# One character of each width in UTF-8.
ALPHABET = "aé€𝄞"


def counting_task(train: int, val: int, context_length: int, seed: int = 0) -> TextTask:
    """A task in which every token is its own position, so that a window shows where it lies."""
    meta = {"vocab_size": max(train, val), "tokenizer": {"name": "chars", "alphabet": "a" * max(train, val)}}
    corpus = Corpus(Path(), meta)
    vars(corpus).update(train=np.arange(train, dtype=np.uint16), val=np.arange(val, dtype=np.uint16))
    return TextTask(corpus, context_length, seed)


@given(st.integers(2, 90), st.integers(1, 20), st.integers(1, 5))
def test_validation_predicts_every_token_once(val: int, context_length: int, size: int) -> None:
    """Over the whole split every token but the first is a target exactly once, after the token before it."""
    batches = list(counting_task(50, val, context_length).val_batches(size))
    targets = torch.cat([batch.targets.flatten() for batch in batches])
    inputs = torch.cat([batch.inputs.flatten() for batch in batches])
    assert list(range(1, val)) == targets.tolist()
    assert all(torch.equal(batch.starts, batch.inputs[:, 0]) for batch in batches)
    assert list(range(val - 1)) == inputs.tolist()
    assert all(batch.inputs.shape[0] <= size and batch.inputs.shape[1] <= context_length for batch in batches)
    assert val - 1 == sum(batch.num_tokens for batch in batches)


@given(st.integers(40, 200), st.integers(1, 60))
def test_a_partial_evaluation_is_spread_over_the_split(val: int, max_tokens: int) -> None:
    """At most so many tokens (one window at least), no window twice, from the first window to the last."""
    length = 8
    starts = torch.cat([batch.inputs[:, 0] for batch in counting_task(50, val, length).val_batches(3, max_tokens)])
    windows = (val - 1) // length
    if max_tokens >= val - 1:
        assert len(starts) >= windows
        return
    assert max(1, max_tokens // length) == len(starts) == len(set(starts.tolist()))
    assert all(start % length == 0 for start in starts.tolist())
    if len(starts) > 1:
        assert (0, (windows - 1) * length) == (starts.min(), starts.max())


@given(st.integers(18, 200), st.integers(1, 16), st.integers(0, 3))
def test_an_epoch_sees_every_window_once(train: int, context_length: int, seed: int) -> None:
    """The windows of an epoch lie side by side from one offset and cover the text but for less than two of them."""
    task = counting_task(train, 10, context_length, seed)
    per_epoch = max(1, (train - context_length) // context_length)
    first = [task.train_batch(i, 1) for i in range(per_epoch)]
    starts = sorted(int(batch.inputs[0, 0]) for batch in first)
    assert starts[0] <= context_length
    assert list(range(starts[0], starts[0] + per_epoch * context_length, context_length)) == starts
    assert starts[-1] + context_length < train
    for batch in first:
        window = torch.arange(context_length) + batch.inputs[0, 0]
        assert torch.equal(window, batch.inputs[0])
        assert torch.equal(window + 1, batch.targets[0])


def test_epochs_and_seeds_differ() -> None:
    """The second epoch and another seed come in another order, the second epoch from another offset."""
    orders = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        task = counting_task(400, 10, 16, seed)
        orders.append([int(task.train_batch(24 * epoch + i, 1).inputs[0, 0]) for i in range(24)])
    assert all(order != sorted(order) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert len({min(order) for order in orders}) > 1


@given(st.lists(st.integers(0, 60), min_size=1, max_size=8))
def test_a_batch_depends_on_seed_and_index_alone(asked: list[int]) -> None:
    """Whatever was asked before and however random numbers stand, a batch is the same."""
    task = counting_task(300, 10, 16)
    for index in asked:
        torch.manual_seed(index)
        np.random.seed(index)
        again = counting_task(300, 10, 16).train_batch(index, 3)
        assert torch.equal(again.inputs, task.train_batch(index, 3).inputs)


def test_large_batches_are_small_ones_put_together() -> None:
    """The order of windows does not depend on the size of a batch."""
    task = counting_task(300, 10, 16)
    halves = torch.cat([task.train_batch(4, 2).inputs, task.train_batch(5, 2).inputs])
    assert torch.equal(halves, task.train_batch(2, 4).inputs)


def test_a_batch_knows_the_bytes_of_its_targets() -> None:
    """num_bytes counts the UTF-8 of the predicted text, not of the inputs."""
    tokenizer = CharTokenizer(ALPHABET)
    val = tokenizer.encode("𝄞é€aaé𝄞€aé")
    corpus = Corpus(Path(), {"vocab_size": 4, "tokenizer": tokenizer.to_dict()})
    vars(corpus).update(train=val, val=val)
    for batch in TextTask(corpus, 4, 0).val_batches(2):
        assert len(tokenizer.decode(batch.targets.flatten().tolist()).encode()) == batch.num_bytes


def test_the_loss_is_the_mean_over_tokens() -> None:
    """loss = -mean log softmax(logits)[target], in nats."""
    task = counting_task(100, 40, 8)
    batch = task.train_batch(0, 3)
    logits = torch.randn(3, 8, task.vocab_size)

    class Fixed(torch.nn.Module):
        def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, list[None]]:
            return logits, []

    loss, routings = task.loss(Fixed(), batch)
    direct = [-logits[b, i].log_softmax(0)[batch.targets[b, i]] for b in range(3) for i in range(8)]
    assert torch.stack(direct).mean().item() == pytest.approx(loss.item())
    assert [] == routings
