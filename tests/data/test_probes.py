"""The generated questions: answers against independent solvers, disjoint splits, determinism, and sizes."""

import hashlib
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_cli.config.probes import (
    ALPHANUMERICS,
    NUMERALS,
    ModularConfig,
    PhonebookConfig,
    ProbeConfig,
    ShortestPathConfig,
)
from moe_cli.data.corpora import load_corpus
from moe_cli.data.probes import generate_questions, to_text
from moe_cli.errors import ConfigError, DataError

SMALL: list[ProbeConfig] = [
    PhonebookConfig(entries=50, name_length=2, number_length=3),
    ShortestPathConfig(nodes=6, edges=6, hops=2, train_graphs=60, val_graphs=20),
    ModularConfig(modulus=7, operation="divide"),
]
few = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 2**32)


def texts(rows: Any) -> list[str]:
    return [to_text(row[None]) for row in rows]


def parts(question: str) -> tuple[str, str]:
    """The prompt and the answer of a question."""
    assert question.startswith("\n")
    prompt, answer = question[1:].split("=")
    return prompt, answer


def graph_of(prompt: str) -> tuple[frozenset[frozenset[str]], str, str]:
    """The edges of a graph, and both ends of the path."""
    edges, ends = prompt.split(">")
    return frozenset(frozenset(edge) for edge in edges.split(" ")), ends[0], ends[1]


def shortest_paths(edges: frozenset[frozenset[str]], start: str, end: str) -> list[str]:
    """All shortest paths, by breadth-first search over whole paths."""
    found: list[str] = []
    queue = deque([start])
    while queue:
        path = queue.popleft()
        if found and len(path) >= len(found[0]):
            continue
        for node in sorted(set().union(*(edge for edge in edges if path[-1] in edge)) - set(path)):
            if node == end:
                found.append(path + node)
            else:
                queue.append(path + node)
    shortest = min(map(len, found))
    return [path for path in found if len(path) == shortest]


@st.composite
def graph_settings(draw: st.DrawFn) -> ShortestPathConfig:
    nodes = draw(st.integers(6, 9))
    edges = draw(st.integers(nodes - 1, nodes + 1))
    hops = draw(st.integers(2, 3))
    return ShortestPathConfig(nodes=nodes, edges=edges, hops=hops, train_graphs=30, val_graphs=10, seed=draw(seeds))


@few
@given(graph_settings())
def test_each_answer_is_the_only_shortest_path(data: ShortestPathConfig) -> None:
    """A breadth-first search written apart from the generator finds one path, which is the answer."""
    found = generate_questions(data)
    for question in [*texts(found.train), *texts(found.val)]:
        prompt, answer = parts(question)
        edges, start, end = graph_of(prompt)
        assert [start + answer] == shortest_paths(edges, start, end)
        assert (data.edges, data.hops, data.answer_length) == (len(edges), len(answer), len(answer))
        assert set().union(*edges) <= set(ALPHANUMERICS[: data.nodes])


@few
@given(graph_settings())
def test_no_validation_graph_is_a_training_graph(data: ShortestPathConfig) -> None:
    """Not even with its edges in another order or direction, or another question."""
    found = generate_questions(data)
    train, val = ([graph_of(parts(text)[0])[0] for text in texts(rows)] for rows in (found.train, found.val))
    assert (30, 10) == (len(set(train)), len(set(val)))
    assert not set(train) & set(val)


@few
@given(
    st.sampled_from([5, 7, 11]),
    st.sampled_from(["add", "subtract", "multiply", "divide"]),
    st.floats(0.3, 0.7),
    seeds,
)
def test_arithmetic_is_right_and_pairs_are_held_out(modulus: int, operation: Any, share: float, seed: int) -> None:
    """A division is checked by its product. Every pair is in one of the splits."""
    data = ModularConfig(modulus=modulus, operation=operation, val_fraction=share, seed=seed)
    found = generate_questions(data)
    pairs: dict[str, set[str]] = {}
    for split, rows in (("train", found.train), ("val", found.val)):
        for question in texts(rows):
            (left, sign, right), answer = parts(question)
            a, b, c = (NUMERALS.index(symbol) for symbol in (left, right, answer))
            is_right = {
                "+": c == (a + b) % modulus,
                "-": c == (a - b) % modulus,
                "*": c == a * b % modulus,
                "/": c * b % modulus == a,
            }
            assert is_right[sign]
            pairs.setdefault(split, set()).add(left + right)
    assert not pairs["train"] & pairs["val"]
    operands = modulus - (operation in ("multiply", "divide"))
    assert operands**2 == len(pairs["train"]) + len(pairs["val"]) == len(found.train) + len(found.val)


@few
@given(st.integers(2, 26), st.integers(1, 3), st.integers(1, 9), seeds)
def test_names_differ_and_both_splits_have_all(entries: int, letters: int, digits: int, seed: int) -> None:
    data = PhonebookConfig(entries=entries, name_length=letters, number_length=digits, seed=seed)
    found = generate_questions(data)
    book = dict(parts(text) for text in texts(found.train))
    assert entries == len(book)
    assert all(len(name) == letters and len(number) == digits and number.isdigit() for name, number in book.items())
    assert book == dict(parts(text) for text in texts(found.val))


@pytest.mark.parametrize("data", SMALL, ids=lambda data: data.name)
def test_sizes_follow_from_the_settings(data: ProbeConfig, tmp_path: Path) -> None:
    """Sizes that are known before anything is generated equal those of the questions and of the files."""
    found = generate_questions(data)
    assert (data.num_train, data.context_length + 1) == found.train.shape
    assert (data.num_val, data.context_length + 1) == found.val.shape
    corpus = load_corpus(data, data.context_length, tmp_path)
    assert (data.vocab_size, data.alphabet) == (
        corpus.meta["vocab_size"],
        corpus.tokenizer.decode(range(1, data.vocab_size)),
    )
    for split, rows in ((corpus.train, found.train), (corpus.val, found.val)):
        assert to_text(rows) + "\0" == corpus.tokenizer.decode(split)


def test_the_vocabulary_is_that_of_the_settings(tmp_path: Path) -> None:
    """It has the characters that no question happens to have."""
    data = PhonebookConfig(entries=2, name_length=1, number_length=1)
    assert 1 + 2 + 26 + 10 == data.vocab_size == load_corpus(data, 3, tmp_path).meta["vocab_size"]


@pytest.mark.parametrize("data", SMALL, ids=lambda data: data.name)
def test_chance_is_the_accuracy_of_every_possible_answer(data: ProbeConfig) -> None:
    """Exactly one of all texts of answer symbols is right, so a random one is right with the stated probability."""
    possible = len(data.answer_symbols) ** data.answer_length
    assert data.chance_accuracy == pytest.approx(1 / possible)
    assert data.chance_loss == pytest.approx(np.log(possible) / data.answer_length)
    assert {char for text in texts(generate_questions(data).train) for char in parts(text)[1]} <= set(
        data.answer_symbols
    )


def test_a_seed_gives_the_same_questions_in_another_process() -> None:
    """Another seed gives others."""
    code = (
        "import hashlib\n"
        "from tests.data.test_probes import SMALL\n"
        "from moe_cli.data.probes import generate_questions\n"
        "for data in SMALL:\n"
        "    found = generate_questions(data)\n"
        "    print(hashlib.sha256(found.train.tobytes() + found.val.tobytes()).hexdigest())\n"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    found = [generate_questions(data) for data in SMALL]
    hashes = [hashlib.sha256(each.train.tobytes() + each.val.tobytes()).hexdigest() for each in found]
    assert 3 == len(set(hashes))
    assert hashes == output.split()
    for data, questions in zip(SMALL, found, strict=True):
        other = generate_questions(type(data)(**{**vars(data), "seed": 1}))
        assert other.train.tobytes() != questions.train.tobytes()


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (PhonebookConfig, {"entries": 27, "name_length": 1}, "data.entries=27 is more than the 26 names"),
        (PhonebookConfig, {"entries": 1}, "data.entries=1 must be between 2 and"),
        (ShortestPathConfig, {"nodes": 63}, "data.nodes=63 must be between 3 and 62"),
        (ShortestPathConfig, {"nodes": 4, "edges": 7}, "data.edges=7 must be between 2 and 6"),
        (ShortestPathConfig, {"nodes": 4, "edges": 3, "hops": 4}, "data.hops=4 must be between 2 and 3"),
        (
            ShortestPathConfig,
            {"nodes": 4, "edges": 3, "train_graphs": 15, "val_graphs": 6},
            "are more than the 20 graphs",
        ),
        (ModularConfig, {"modulus": 9, "operation": "divide"}, "Use data.modulus=7, or data.operation=add"),
        (ModularConfig, {"modulus": 3, "val_fraction": 0.01}, "Raise data.modulus"),
        (ModularConfig, {"modulus": 2}, "data.modulus=2 must be between 3 and"),
    ],
)
def test_impossible_sizes_are_refused(cls: type, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=r"^data") as error:
        cls(**values)
    assert message in str(error.value)
    assert 3 >= len(str(error.value).splitlines())


def test_too_few_graphs_with_such_a_path_are_refused() -> None:
    """Of 20 graphs of four nodes and three edges, twelve are paths of three hops."""
    data = ShortestPathConfig(nodes=4, edges=3, hops=3, train_graphs=10, val_graphs=3)
    with pytest.raises(DataError, match="only 12 of 13 graphs"):
        generate_questions(data)
    with pytest.raises(DataError, match="only 0 of 4 graphs"):
        generate_questions(ShortestPathConfig(nodes=5, edges=9, hops=3, train_graphs=2, val_graphs=2))
