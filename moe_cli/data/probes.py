"""Generates the questions of the probes. A seed determines them; nothing is downloaded.

Q questions of R characters, N nodes, M edges, H hops.
"""

import dataclasses
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moe_cli.config.probes import (
    ALPHANUMERICS,
    ANSWER,
    ARROW,
    EDGE_END,
    NUMERALS,
    SIGNS,
    START,
    ModularConfig,
    PhonebookConfig,
    ProbeConfig,
    ShortestPathConfig,
)
from moe_cli.data.corpus_files import CorpusFile, CorpusSource
from moe_cli.data.documents import Document
from moe_cli.data.splits import TRAIN, VAL
from moe_cli.errors import DataError

# Changes whenever equal settings give other questions.
GENERATOR = 1
# Questions that are made, or written, at a time.
BLOCK = 4096
# Draws without a new graph after which no more are expected to exist.
MAX_FAILED_BLOCKS = 50

# Code points of the characters of questions.
Rows = NDArray[np.uint32]


@dataclasses.dataclass(frozen=True)
class Questions:
    """The questions of each split, one a row [Q, R]."""

    train: Rows
    val: Rows


def list_questions(data: ProbeConfig) -> CorpusSource:
    """Returns the questions as two texts, one for each split."""
    files = [
        CorpusFile(Path(data.name, name), ".", partial(_documents, data, name), part)
        for name, part in (("train", TRAIN), ("val", VAL))
    ]
    sizes = f"{data.num_train:,} questions for training, {data.num_val:,} for validation"
    note = f"{sizes}; a model reads {data.context_length} tokens of each; the loss is that of the answers alone"
    return CorpusSource(files, [GENERATOR, dataclasses.asdict(data)], notes=[note], alphabet=data.alphabet)


def _documents(data: ProbeConfig, split: str) -> Iterator[Document]:
    rows = getattr(generate_questions(data), split)
    yield (to_text(rows[first : first + BLOCK]) for first in range(0, len(rows), BLOCK))


def to_text(rows: Rows) -> str:
    """Returns the text of questions, one after the other."""
    return rows.astype("<u4").tobytes().decode("utf-32-le")


@lru_cache(maxsize=1)
def generate_questions(data: ProbeConfig) -> Questions:
    """Generates all questions of a probe. Raises DataError where too few graphs have such a path."""
    draw = np.random.default_rng(data.seed)
    if isinstance(data, PhonebookConfig):
        return _phonebook(data, draw)
    return _shortest_paths(data, draw) if isinstance(data, ShortestPathConfig) else _modular(data, draw)


def _phonebook(data: PhonebookConfig, draw: np.random.Generator) -> Questions:
    names = _distinct(lambda: draw.integers(26, size=(data.entries, data.name_length)), data.entries, data.name_length)
    numbers = draw.integers(10, size=(data.entries, data.number_length))
    book = _rows(data.entries, START, np.array(names) + ord("a"), ANSWER, numbers + ord("0"))
    return Questions(book, book)


def _modular(data: ModularConfig, draw: np.random.Generator) -> Questions:
    operands = np.arange(data.smallest_operand, data.modulus)
    left, right = (side.flatten() for side in np.meshgrid(operands, operands, indexing="ij"))
    inverse = np.zeros(data.modulus, np.int64)
    if data.operation == "divide":
        inverse[operands] = [pow(int(number), -1, data.modulus) for number in operands]
    result = {
        "add": left + right,
        "subtract": left - right,
        "multiply": left * right,
        "divide": left * inverse[right],
    }[data.operation]
    symbols = _points(NUMERALS)
    order = draw.permutation(len(left))
    table = _rows(
        len(left), START, symbols[left], SIGNS[data.operation], symbols[right], ANSWER, symbols[result % data.modulus]
    )[order]
    return Questions(table[data.num_val :], table[: data.num_val])


def _shortest_paths(data: ShortestPathConfig, draw: np.random.Generator) -> Questions:
    wanted = data.train_graphs + data.val_graphs
    key_width = -(-data.nodes * (data.nodes - 1) // 2 // 8)
    graphs = _distinct(lambda: _draw_graphs(data, draw), wanted, key_width)
    if len(graphs) < wanted:
        raise DataError(
            f"data=shortest_path: only {len(graphs):,} of {wanted:,} graphs of {data.nodes} nodes and {data.edges} "
            f"edges were found with a single shortest path of {data.hops} hops.\n"
            "Lower data.hops, data.train_graphs or data.val_graphs, or change data.nodes or data.edges."
        )
    nodes = _points(ALPHANUMERICS)[np.array(graphs)[:, key_width:]]
    edges = [
        part
        for edge in range(data.edges)
        for part in ([EDGE_END] if edge else []) + [nodes[:, 2 * edge : 2 * edge + 2]]
    ]
    ends, path = nodes[:, 2 * data.edges : 2 * data.edges + 2], nodes[:, 2 * data.edges + 2 :]
    questions = _rows(wanted, START, *edges, ARROW, ends, ANSWER, path)
    return Questions(questions[data.val_graphs :], questions[: data.val_graphs])


def _draw_graphs(data: ShortestPathConfig, draw: np.random.Generator) -> NDArray[np.int64]:
    """Returns graphs in which one node has a single shortest path of H hops to another.

    Each row has one bit for each pair of nodes, packed into bytes; the M edges, in random order and direction; both
    ends of the path; and the nodes of the path without the first.
    """
    pairs = np.array([*combinations(range(data.nodes), 2)])
    edge_ids = draw.random((BLOCK, len(pairs))).argsort(1)[:, : data.edges]
    has_edge = np.zeros((BLOCK, len(pairs)), np.int64)
    np.put_along_axis(has_edge, edge_ids, 1, axis=1)
    adjacency = np.zeros((BLOCK, data.nodes, data.nodes), np.float32)
    adjacency[:, pairs[:, 0], pairs[:, 1]] = adjacency[:, pairs[:, 1], pairs[:, 0]] = has_edge
    rows = np.arange(BLOCK)
    start = draw.integers(data.nodes, size=BLOCK)
    # The number of shortest paths to each node at the current distance; 2 means at least two.
    paths = np.zeros((BLOCK, data.nodes), np.float32)
    paths[rows, start] = 1
    distance = np.where(paths > 0, 0, -1)
    for step in range(1, data.hops + 1):
        paths = np.minimum((paths[:, None] @ adjacency)[:, 0], 2) * (distance < 0)
        distance[paths > 0] = step
    is_end = paths == 1
    end = (draw.random(is_end.shape) * is_end).argmax(1)
    path = [end]
    for step in range(data.hops - 1, 0, -1):
        path.append((adjacency[rows, path[-1]] * (distance == step)).argmax(1))
    edges = pairs[edge_ids]
    is_reversed = draw.random((BLOCK, data.edges)) < 0.5
    edges[is_reversed] = edges[is_reversed][:, ::-1]
    columns = (np.packbits(has_edge > 0, axis=1), edges.reshape(BLOCK, -1), np.stack([start, end, *reversed(path)], 1))
    graphs: NDArray[np.int64] = np.concatenate(columns, 1)[is_end.any(1)]
    return graphs


def _distinct(draw_rows: Callable[[], NDArray[np.int64]], wanted: int, width: int) -> list[NDArray[np.int64]]:
    """Returns rows that differ in their first `width` columns, in the order of their draw; fewer if no more are found.

    Args:
        draw_rows: draws any number of rows. The numbers in their first columns are below 256.
    """
    found: list[NDArray[np.int64]] = []
    seen, failed = set[bytes](), 0
    while len(found) < wanted and failed < MAX_FAILED_BLOCKS:
        rows, before = draw_rows(), len(found)
        for row, key in zip(rows, rows[:, :width].astype(np.uint8), strict=True):
            if (content := key.tobytes()) not in seen:
                seen.add(content)
                found.append(row)
        failed = failed + 1 if len(found) == before else 0
    return found[:wanted]


def _rows(number: int, *columns: str | NDArray[np.integer]) -> Rows:
    """Returns rows of code points from columns; a text is the same in every row."""
    parts = [np.tile(_points(part), (number, 1)) if isinstance(part, str) else part for part in columns]
    return np.concatenate([part.reshape(number, -1) for part in parts], 1).astype(np.uint32)


def _points(text: str) -> NDArray[np.int64]:
    return np.array([ord(char) for char in text], np.int64)
