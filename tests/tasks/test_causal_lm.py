"""Windows of a corpus: each once, in an order that the seed decides. L positions, D tokens."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe_cli.data import shuffle
from moe_cli.data.corpora import Corpus
from moe_cli.data.shards import Shard, Tokens
from moe_cli.data.tokenizers import CharTokenizer
from moe_cli.tasks import causal_lm
from moe_cli.tasks.causal_lm import TextTask
from tests.data.made_token_files import Held, corpus_of, raw, sparse

# One character of each width in UTF-8.
ALPHABET = "aé€𝄞"


def counting_task(train: int, val: int, context_length: int, seed: int = 0) -> TextTask:
    """A task in which every token is its own position, so that a window shows where it lies."""
    meta = {"vocab_size": max(train, val), "tokenizer": {"name": "chars", "alphabet": "a" * max(train, val)}}
    corpus = Corpus(Path(), meta)
    vars(corpus).update(train=Held(np.arange(train, dtype=np.uint16)), val=Held(np.arange(val, dtype=np.uint16)))
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
    assert val - 1 == sum(batch.num_targets for batch in batches)


@given(st.integers(40, 200), st.integers(1, 60))
def test_a_partial_evaluation_is_spread_over_the_split(val: int, max_tokens: int) -> None:
    """A partial evaluation takes at most max_tokens, one window at least, and spreads its windows over the split."""
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


# A shuffled list of all windows, and places computed one at a time, as for more windows than are listed.
both_orders = pytest.mark.parametrize("most_listed", [2**22, 0])


@both_orders
@given(train=st.integers(18, 200), context_length=st.integers(1, 16), seed=st.integers(0, 3))
def test_an_epoch_sees_every_window_once(most_listed: int, train: int, context_length: int, seed: int) -> None:
    """The windows of an epoch lie side by side from one offset and cover the text but for less than two of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shuffle, "MAX_IN_MEMORY", most_listed)
        check_an_epoch(counting_task(train, 10, context_length, seed), train, context_length)


def check_an_epoch(task: TextTask, train: int, context_length: int) -> None:
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


@both_orders
@given(asked=st.lists(st.integers(0, 60), min_size=1, max_size=8))
def test_a_batch_depends_on_seed_and_index_alone(most_listed: int, asked: list[int]) -> None:
    """Whatever was asked before and however random numbers stand, a batch is the same: in the middle of an epoch of 17
    windows, at its end and across it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shuffle, "MAX_IN_MEMORY", most_listed)
        task = counting_task(300, 10, 16)
        for index in asked:
            torch.manual_seed(index)
            np.random.seed(index)
            again = counting_task(300, 10, 16).train_batch(index, 3)
            assert torch.equal(again.inputs, task.train_batch(index, 3).inputs)


def test_a_batch_may_span_epochs() -> None:
    """A batch larger than an epoch of 17 windows holds the end of one, all of the next, and the beginning of a third."""
    task = counting_task(300, 10, 16)
    one_by_one = [int(task.train_batch(i, 1).starts) for i in range(15, 45)]
    assert one_by_one == counting_task(300, 10, 16).train_batch(0, 45).starts.tolist()[15:]
    assert [int(task.train_batch(i, 1).starts) for i in range(17)] == task.train_batch(0, 17).starts.tolist()


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> list[Shard]:
    """1,000 tokens, each its own position, in files of 7 to 313."""
    folder, passed, shards = tmp_path_factory.mktemp("shards"), 0, []
    for number, size in enumerate((313, 7, 200, 180, 300)):
        shards.append(Shard(raw(folder / f"{number}.bin", range(passed, passed + size)), 0, size))
        passed += size
    return shards


@both_orders
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_the_parts_are_the_batch(
    sharded: list[Shard], monkeypatch: pytest.MonkeyPatch, most_listed: int, parts: int
) -> None:
    """Each part of a text in shards reads its own windows and no other token; together they are the whole batch, and
    that of the text in one file. No window is lost where a file ends."""
    monkeypatch.setattr(shuffle, "MAX_IN_MEMORY", most_listed)
    whole, task = counting_task(1000, 20, 16), TextTask(corpus_of(sharded, sharded, 1000), 16, 0)
    read: list[range] = []
    take = Tokens.__getitem__

    def watched(tokens: Tokens, place: slice) -> Any:
        read.append(range(*place.indices(len(tokens))))
        return take(tokens, place)

    monkeypatch.setattr(Tokens, "__getitem__", watched)
    crossing = 0
    for index in range(20):
        expected = whole.train_batch(index, 8)
        batches = []
        for part in range(parts):
            read.clear()
            batches.append(task.train_batch(index, 8, part, parts))
            own = [range(start, start + 17) for start in batches[-1].starts.tolist()]
            assert own == read
            crossing += sum(window[0] < end <= window[-1] for window in own for end in (313, 320, 520, 700))
        assert expected.inputs.tolist() == torch.cat([batch.inputs for batch in batches]).tolist()
        assert expected.targets.tolist() == torch.cat([batch.targets for batch in batches]).tolist()
    assert crossing > 4


def test_windows_beyond_two_to_the_31_are_read(tmp_path: Path) -> None:
    """A file of 5 GiB of single bytes has more windows than are listed: tokens planted in one of its last windows are
    in its batch, and the last window of a validation split as large is read."""
    size = 5 * 2**30
    path = sparse(tmp_path / "a.bin", size, {}, "uint8")
    corpus = corpus_of([Shard(path, 0, size)], [Shard(path, 0, size)], 256, "uint8")
    task = TextTask(corpus, 128, 0)
    assert 41_943_039 == task._windows_per_epoch
    starts = task.train_batch(3, 64).starts
    place = int(starts.argmax())
    start = int(starts[place])
    assert start > 2**31 + 2**30
    planted = list(range(1, 130))
    sparse_again = corpus_of(
        [Shard(sparse(tmp_path / "b.bin", size, {start: planted}, "uint8"), 0, size)], [], 256, "uint8"
    )
    batch = TextTask(sparse_again, 128, 0).train_batch(3, 64)
    assert planted == [*batch.inputs[place].tolist(), int(batch.targets[place, -1])]
    assert 0 == sum(int(batch.inputs[other].sum()) for other in range(64) if other != place)
    *_, last = task.val_batches(4, 4096)
    assert size - 1 - 2 * 128 < int(last.starts[-1]) < size - 128


def test_the_next_batch_is_asked_from_the_disk(sharded: list[Shard], monkeypatch: pytest.MonkeyPatch) -> None:
    """In a large text each part prefetches the tokens of its next batch; in a small text it prefetches none."""
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(Tokens, "prefetch", lambda tokens, start, stop: asked.append((start, stop)))
    task = TextTask(corpus_of(sharded, sharded, 1000), 16, 0)
    task.train_batch(3, 8)
    assert [] == asked
    monkeypatch.setattr(causal_lm, "LARGE_SPLIT_TOKENS", 1000)
    monkeypatch.setattr(causal_lm, "RELEASE_EVERY", 1)
    monkeypatch.setattr(Tokens, "release", lambda tokens: asked.append((-1, -1)))
    for part in range(2):
        asked.clear()
        task.train_batch(3, 8, part, 2)
        calls = list(asked)
        assert (-1, -1) == calls.pop(0)
        assert [(start, start + 17) for start in task.train_batch(4, 8, part, 2).starts.tolist()] == calls


def test_where_the_bytes_are_not_known(sharded: list[Shard]) -> None:
    """A batch of tokens without a tokenizer does not know how many bytes they stand for."""
    assert TextTask(corpus_of(sharded, sharded, 1000), 16, 0).train_batch(0, 2).num_bytes is None


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
    vars(corpus).update(train=Held(val), val=Held(val))
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
