"""Expert usage of a run, from its folder alone: load, balance over training, co-activation, specialisation.

L sparse layers, E experts, G domains. Entries of a file that are not numbers are skipped.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moe_cli.files.reading import number_in, whole_number_in
from moe_cli.metrics import DEAD_BELOW
from moe_cli.moe.max_violation import max_violation
from moe_cli.runs.folder import Run

# The loads of this many evaluations are kept per layer.
MAX_LOOKS = 1024
# Longer lists of counts are none.
MAX_EXPERTS = 65_536
Curve = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class TopToken:
    """A token that chooses an expert more often than by chance.

    Attributes:
        text: None where it is not recorded.
        count: assignments of this token to this expert; of `total` to any.
    """

    token: int
    text: str | None
    count: int
    total: int


@dataclass(frozen=True)
class LayerUsage:
    """One sparse layer.

    Attributes:
        layer: its index among the sparse layers, from 0.
        load: per expert, its fraction of all assignments divided by 1 / E: 1 is even.
        dead: experts below DEAD_BELOW.
        dropped: the fraction of assignments that a capacity dropped at this record.
        entropy: of the router per token, as a fraction of ln E; None means not recorded.
        max_violation_over_time: MaxVio over training, (step, value).
        load_over_time: (step, load of each expert) over training; the last entry is over the whole split.
        saturation: the fraction of the final choices already made at a step (OLMoE), (step, value).
        co_activation: [E, E] the fraction of the tokens of the row's expert that also chose the column's; empty means
            not recorded.
        by_domain: for each domain, the fraction of its assignments per expert; empty means fewer than two domains.
        top_tokens: for each expert, its tokens, the most specific first; empty means not recorded.
        whole_split: whether this is of the final evaluation, or of an estimate during training.
    """

    layer: int
    step: int
    load: tuple[float, ...]
    dead: tuple[int, ...]
    dropped: float | None
    entropy: float | None
    max_violation_over_time: Curve
    load_over_time: tuple[tuple[int, tuple[float, ...]], ...]
    saturation: Curve
    co_activation: tuple[tuple[float, ...], ...]
    by_domain: Mapping[str, tuple[float, ...]]
    top_tokens: tuple[tuple[TopToken, ...], ...]
    whole_split: bool

    @property
    def max_violation(self) -> float:
        """Returns MaxVio of `load`."""
        return max_violation(self.load) if self.load else 0.0


@dataclass(frozen=True)
class ExpertUsage:
    """All sparse layers of a run, first to last; empty for a dense model or before the first evaluation.

    Attributes:
        dropped: the fraction of assignments that the training capacity drops; None means that the run is not complete.
        k: the number of experts per token; None means that config.json does not contain it.
        images: whether tokens are patches of images, and domains their classes.
    """

    run: str
    dropped: float | None
    layers: tuple[LayerUsage, ...]
    k: int | None
    images: bool


def read_expert_usage(run: Run) -> ExpertUsage:
    """Reads routing.jsonl."""
    by_layer: dict[int, _Looks] = {}
    for record in run.read_routing():
        layer, step = whole_number_in(record.get("layer")), whole_number_in(record.get("step"))
        if layer is not None and step is not None and counts_in(record.get("tokens_per_expert")):
            by_layer.setdefault(layer, _Looks()).add(record)
    config = run.config_dict()
    dropped = _fraction((run.summary() or {}).get("dropped_fraction"))
    settings = {group: value if isinstance(value := config.get(group), dict) else {} for group in ("eval", "task")}
    k = whole_number_in(settings["eval"].get("k") or config.get("k"))
    layers = tuple(_layer(number, looks.records()) for number, looks in sorted(by_layer.items()))
    return ExpertUsage(run.id, dropped, layers, k, settings["task"].get("name") == "images")


class _Looks:
    """The records of one layer: the last record, and the load of earlier ones, halved in number if too many."""

    def __init__(self) -> None:
        self._loads: list[dict[str, Any]] = []
        self._last: dict[str, Any] = {}

    def add(self, record: dict[str, Any]) -> None:
        if self._last and _moment(record) < _moment(self._last):
            record, self._last = self._last, record
        if self._last:
            self._loads.append({key: self._last.get(key) for key in ("step", "whole_split", "tokens_per_expert")})
        self._last = record
        if len(self._loads) > MAX_LOOKS:
            del self._loads[1::2]

    def records(self) -> list[dict[str, Any]]:
        return [*self._loads, self._last]


def _moment(record: Mapping[str, Any]) -> tuple[bool, int]:
    return bool(record.get("whole_split")), record["step"]


def _layer(number: int, records: list[dict[str, Any]]) -> LayerUsage:
    records = sorted(records, key=_moment)
    last = records[-1]
    size = len(last["tokens_per_expert"])
    records = [record for record in records if len(record["tokens_per_expert"]) == size]
    load = _load(last)
    found = last.get("saturation")
    settled: dict[str, Any] = found if isinstance(found, dict) else {}
    return LayerUsage(
        number,
        last["step"],
        load,
        tuple(expert for expert, share in enumerate(load) if share < DEAD_BELOW),
        _dropped(last),
        _fraction(last.get("routing_entropy")),
        _curve({record["step"]: max_violation(_load(record)) for record in records}),
        tuple((record["step"], _load(record)) for record in records),
        _curve({int(step): value for step, value in settled.items() if step.isdecimal() and len(step) < 16}),
        _co_activation(last.get("co_activation"), size),
        _by_domain(last.get("experts_by_domain"), size),
        _top_tokens(last, size),
        last.get("whole_split") is True,
    )


def counts_in(values: Any) -> list[float]:
    """Returns the counts of assignments of experts; empty where a file has something else."""
    counts = [_fraction(value) for value in values] if isinstance(values, list) and len(values) <= MAX_EXPERTS else []
    return [] if None in counts else [count or 0.0 for count in counts]


def _fraction(value: Any) -> float | None:
    """Returns a finite number of at least 0."""
    number = number_in(value)
    return number if number is not None and number >= 0 else None


def _load(record: Mapping[str, Any]) -> tuple[float, ...]:
    counts = [float(tokens) for tokens in record["tokens_per_expert"]]
    mean = math.fsum(counts) / len(counts)
    return tuple(count / mean if mean else 0.0 for count in counts)


def _dropped(record: Mapping[str, Any]) -> float | None:
    kept, assigned = counts_in(record.get("kept_per_expert")), math.fsum(record["tokens_per_expert"])
    return 1 - math.fsum(kept) / assigned if kept and assigned else None


def _curve(values: Mapping[int, Any]) -> Curve:
    return tuple((step, value) for step in sorted(values) if (value := _fraction(values[step])) is not None)


def _co_activation(table: Any, size: int) -> tuple[tuple[float, ...], ...]:
    if not isinstance(table, list) or len(table) != size or any(len(counts_in(row)) != size for row in table):
        return ()
    return tuple(
        tuple(float(value) / row[expert] if row[expert] else 0.0 for value in row) for expert, row in enumerate(table)
    )


def _by_domain(table: Any, size: int) -> dict[str, tuple[float, ...]]:
    if not isinstance(table, dict):
        return {}
    known = {str(name): row for name, row in table.items() if len(counts_in(row)) == size and sum(row)}
    if len(known) < 2:  # the shares of the only domain are those of the load
        return {}
    return {name: tuple(value / sum(row) for value in row) for name, row in known.items()}


def _top_tokens(record: Mapping[str, Any], size: int) -> tuple[tuple[TopToken, ...], ...]:
    table, texts = record.get("top_tokens"), record.get("token_texts")
    if not isinstance(table, list) or len(table) != size:
        return ()
    texts = texts if isinstance(texts, dict) else {}
    return tuple(
        tuple(
            TopToken(entry[0], text if isinstance(text := texts.get(str(entry[0])), str) else None, entry[1], entry[2])
            for entry in (row if isinstance(row, list) else [])
            if isinstance(entry, list)
            and len(entry) == 3
            and all(whole_number_in(value) is not None for value in entry)
        )
        for row in table
    )


def expert_load(run: Run) -> dict[int, list[float]]:
    """Returns, for each sparse layer, the number of tokens that chose each expert at the newest evaluation."""
    newest: dict[int, list[float]] = {}
    for record in run.read_routing():
        layer, counts = record.get("layer"), counts_in(record.get("tokens_per_expert"))
        if isinstance(layer, int) and counts:
            newest[layer] = counts
    return dict(sorted(newest.items()))
