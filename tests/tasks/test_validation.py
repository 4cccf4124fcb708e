"""Which questions validation asks: those of the data alone, each token once, from a context that is stated. L positions."""

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from moe_cli.config.data import TextData
from moe_cli.forecast import corpus_of
from moe_cli.tasks.registry import make_task
from tests.tasks.test_corpora import write
from tests.tiny import TINY, tiny_config, words

L = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents shorter and longer than a window."""
    return write(tmp_path_factory.mktemp("text") / "text", {f"{n}.txt": words(5 + 9 * n, n) for n in range(24)})


def config_of(folder: Path, family: str = "gpt", packing: str = "concat", **changes: Any) -> Any:
    given = {**TINY.get(family, {})}
    if family not in ("vit", "mmoe"):
        given["data"] = TextData(path=str(folder), packing=packing, val_fraction=0.3)  # type: ignore[arg-type]
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
    corpus = corpus_of(config, tmp_path)
    first = make_task(config, corpus)
    for seed, size in ((1, 4), (7, 3), (2**40, 1)):
        other = make_task(replace(config, seed=seed, train=replace(config.train, batch_size=size)), corpus)
        assert questions(first, 4) == questions(other, size)
        assert questions(first, 4, 200) == questions(other, size, 200)
        hardest, its = first.hardest(), other.hardest()
        if hardest is not None:
            assert questions(hardest, 4) == questions(its, size)
