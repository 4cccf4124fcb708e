"""Validation depends on the data alone and scores each token once, from a stated context. L positions."""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moe_cli.config.compose import load_config
from moe_cli.config.data import TextFilesConfig
from moe_cli.config.training import EvalConfig
from moe_cli.data.document_windows import document_windows
from moe_cli.errors import ConfigError
from moe_cli.execution.data import load_run_data
from moe_cli.models.registry import make_model
from moe_cli.tasks.causal_lm import IGNORE_INDEX, context_of
from moe_cli.tasks.registry import make_task
from moe_cli.training.evaluate import evaluate
from tests.data.test_corpora import write
from tests.tasks.test_causal_lm import counting_task
from tests.tiny import TINY, randomise, tiny_config, words

L = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents shorter and longer than a window."""
    return write(tmp_path_factory.mktemp("text") / "text", {f"{n}.txt": words(5 + 9 * n, n) for n in range(12)})


def config_of(folder: Path, family: str = "gpt", packing: str = "concat", **changes: Any) -> Any:
    given = {**TINY.get(family, {})}
    if family not in ("vit", "mmoe"):
        given["data"] = TextFilesConfig(path=str(folder), packing=packing, val_fraction=0.3)  # type: ignore[arg-type]
        model = given.get("model") or tiny_config(folder).model
        given["model"] = replace(model, context_length=L)
    return tiny_config(folder, **{**given, **changes})


def questions(task: Any, size: int, max_tokens: int | None = None) -> list[Any]:
    """The validation split one example after the other, as values of every field."""
    found = []
    for batch in task.val_batches(size, max_tokens):
        fields = {entry.name: getattr(batch, entry.name) for entry in dataclasses.fields(batch)}
        tensors = {name: value for name, value in fields.items() if isinstance(value, Tensor)}
        found += [{name: value[row].tolist() for name, value in tensors.items()} for row in range(batch.num_examples)]
    return found


@pytest.mark.parametrize(
    ("family", "packing"),
    [(family, "concat") for family in ("gpt", *TINY)]
    + [("gpt", "isolate"), ("gpt", "pad"), ("bert", "isolate"), ("bert", "pad"), ("lstm", "pad")],
)
def test_questions_follow_from_the_data(folder: Path, tmp_path: Path, family: str, packing: str) -> None:
    """Whatever the seed and the batch size, windows, hidden positions, random tokens and spans are equal; so is a part of
    the split, and what the pseudo-perplexity asks."""
    config = config_of(folder, family, packing)
    corpus = load_run_data(config, tmp_path)
    first = make_task(config, corpus)
    for seed, size in ((1, 4), (7, 3), (2**40, 1)):
        other = make_task(replace(config, seed=seed, train=replace(config.train, batch_size=size)), corpus)
        assert questions(first, 4) == questions(other, size)
        assert questions(first, 4, 200) == questions(other, size, 200)
        pseudo_perplexity_task, its = first.pseudo_perplexity_task(), other.pseudo_perplexity_task()
        if pseudo_perplexity_task is not None:
            assert questions(pseudo_perplexity_task, 4) == questions(its, size)


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=9),
    length=st.integers(1, 12),
    data=st.data(),
)
def test_windows_of_documents_score_every_token_once(lengths: list[int], length: int, data: Any) -> None:
    """With any stride, each token is scored by the first window that holds it, and no window by none; the first window of a
    document scores all of its tokens, a later one at most the last `stride`."""
    stride = data.draw(st.integers(1, length))
    begins = np.cumsum([0, *lengths[:-1]])
    windows = document_windows(begins, sum(lengths), length, stride)
    columns = (windows.starts.tolist(), windows.sizes.tolist(), windows.skipped.tolist())
    scored = [
        place for start, size, skipped in zip(*columns, strict=True) for place in range(start + skipped, start + size)
    ]
    assert list(range(sum(lengths))) == scored
    for start, size, skipped in zip(*columns, strict=True):
        assert 0 <= skipped < size <= length
        assert (0 if start in begins.tolist() else length - stride) == skipped
        assert size - skipped <= (length if skipped == 0 else stride)


@given(val=st.integers(2, 90), length=st.integers(1, 20), size=st.integers(1, 5), data=st.data())
def test_sliding_windows_score_every_token_once(val: int, length: int, size: int, data: Any) -> None:
    """Every token but the first is a target once, each after as many tokens as the stride promises."""
    stride = data.draw(st.integers(1, length))
    task = counting_task(50, val, length)
    task.stride = stride
    found = []
    for batch in task.val_batches(size):
        context = context_of(batch.inputs, None)
        asked = batch.targets != IGNORE_INDEX
        found += zip(batch.targets[asked].tolist(), context[asked].tolist(), strict=True)
        assert asked.sum() == batch.num_targets > 0
    # The first window has 1 to L tokens before its targets, every further one the last `stride` of these.
    expected = [
        (target, target if target <= length else length - stride + 1 + (target - 1 - length) % stride)
        for target in range(1, val)
    ]
    assert expected == found


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("family", "packing", "length", "stride"),
    [
        ("gpt", "concat", None, None),
        ("gpt", "concat", 12, 5),
        ("gpt", "isolate", None, 7),
        ("gpt", "pad", 12, 5),
        ("lstm", "concat", None, 1),
        ("lstm", "pad", None, 7),
    ],
)
def test_the_loss_is_that_of_each_token_on_its_own(
    folder: Path, tmp_path: Path, family: str, packing: str, length: int | None, stride: int | None
) -> None:
    """Nats, bytes and mean context of an evaluation equal those of a loop that shows a model each token's context alone."""
    config = config_of(folder, family, packing, eval=EvalConfig(context_length=length, stride=stride))
    task = make_task(config, load_run_data(config, tmp_path))
    model = randomise(make_model(config, task.vocab_size)).eval()
    scored = list(contexts_of(task.dataset, packing, length or L, stride or length or L))
    contexts, texts, nats = [len(context) for context, _ in scored], [target for _, target in scored], 0.0
    for size in set(contexts):  # rows of one length in a batch do not see each other
        rows = [(context, target) for context, target in scored if len(context) == size]
        with torch.no_grad():
            logits = model(torch.tensor([context for context, _ in rows]))[0][:, -1]
        nats += F.cross_entropy(logits, torch.tensor([target for _, target in rows]), reduction="sum").item()
    result = evaluate(model, task, 3)
    assert nats / len(contexts) == pytest.approx(result.loss, rel=1e-4)
    assert (len(contexts), len(task.dataset.tokenizer.decode(texts).encode())) == (result.num_tokens, result.num_bytes)
    assert sum(contexts) / len(contexts) == pytest.approx(result.mean_context)
    weights = {
        name: sum(
            task.dataset.domain_ids_at(np.arange(1 if packing == "concat" else 0, len(task.dataset.val))) == number
        )
        for number, name in enumerate(task.domains)
    }
    sum_by_domain = sum(loss * weights[name] for name, loss in result.domain_losses.items()) / result.num_tokens
    assert result.loss == pytest.approx(sum_by_domain, rel=1e-6)


def contexts_of(corpus: Any, packing: str, length: int, stride: int) -> Iterator[tuple[list[int], int]]:
    """Each scored token of the split with what it is predicted from, by the definition of the windows."""
    val = corpus.val.tolist()
    texts = [val]
    if packing != "concat":
        texts = [[0, *val]]  # a separator before the split
    if packing == "pad":
        texts = [[0, *document, 0] for document in split_at_separators(val)]
    for text in texts:
        for place in range(1, len(text)):
            late = max(0, place - length)
            first = -(-late // stride) * stride  # where the window that scores it begins
            context = text[first:place]
            if packing == "isolate":
                context = context[max(at for at, token in enumerate([0, *context[1:]]) if token == 0) :]
            yield context, text[place]


def split_at_separators(tokens: list[int]) -> list[list[int]]:
    return [list(part) for part in bytes(tokens).split(b"\0")[:-1]]


@pytest.mark.parametrize("packing", ["concat", "isolate", "pad"])
def test_part_of_the_split_costs_what_it_reads(folder: Path, tmp_path: Path, packing: str) -> None:
    """max_tokens bounds what is read, however much of it earlier windows score; the windows are some of all."""
    config = config_of(folder, "gpt", packing, eval=EvalConfig(stride=10))
    task = make_task(config, load_run_data(config, tmp_path))
    every, some = questions(task, 1), questions(task, 3, 200)
    assert all(each in every for each in some)
    assert 3 <= len(some) < len(every) / 2
    read = sum(sum(each.get("mask", [1] * len(each["inputs"]))) for each in some)
    assert read <= (200 if packing == "concat" else 260)


def test_a_window_of_the_models_length_side_by_side_is_the_default(folder: Path) -> None:
    """Settings that say what holds anyway are no difference; a dense model keeps those of windows."""
    plain = config_of(folder)
    same = config_of(folder, eval=EvalConfig(context_length=L, stride=L))
    short = config_of(folder, eval=EvalConfig(context_length=8, stride=8))
    assert plain == same
    assert EvalConfig(context_length=8) == short.eval
    assert plain.digest != short.digest
    assert EvalConfig(stride=3) == config_of(folder, expert=1, k=1, eval=EvalConfig(k=1, stride=3)).eval


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["eval.stride=129"],
            "eval.stride=129 is more than the 128 tokens of a validation window: some tokens would not be scored.",
        ),
        (
            ["eval.context_length=8", "eval.stride=9"],
            "eval.stride=9 is more than the 8 tokens of a validation window: some tokens would not be scored.",
        ),
        (
            ["eval.context_length=129"],
            "eval.context_length=129 is more than model.context_length=128, the most that the model can read.",
        ),
        (["model=bert", "eval.stride=8"], "eval.stride=8 has no effect on task=masked_lm. It is for task=causal_lm."),
        (
            ["model=vit", "eval.context_length=8"],
            "eval.context_length=8 has no effect on task=images. It is for task=causal_lm, masked_lm, span_corruption.",
        ),
    ],
)
def test_what_is_refused(words: list[str], message: str) -> None:
    """Windows that leave tokens out, that no model can read, or that a task has not."""
    with pytest.raises(ConfigError) as error:
        load_config(words)
    assert message == str(error.value)


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_other_tasks_read_shorter_windows_too(folder: Path, tmp_path: Path, family: str) -> None:
    """eval.context_length cuts the split into windows of that length, the last token of the split among them."""
    config = config_of(folder, family, eval=EvalConfig(context_length=12))
    task = make_task(config, load_run_data(config, tmp_path))
    model = randomise(make_model(config, task.vocab_size))
    assert math.isfinite(evaluate(model, task, 4).loss)
    starts = [each["starts"] for each in questions(task, 4)]
    assert list(range(0, len(task.dataset.val), 12)) == starts
    assert evaluate(model, task, 4).mean_context is None
