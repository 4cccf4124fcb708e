"""Times candidates side by side on new input, and counts the bytes they save."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeVar

import torch
from torch import Tensor

from moe_cli.bench.candidates import SkipCandidate

T = TypeVar("T")
MIN_ROUNDS = 3


@dataclass(frozen=True)
class Spread:
    """Median, least and most of many measurements."""

    median: float
    min: float
    max: float


def spread(values: list[float]) -> Spread:
    return Spread(median(values), min(values), max(values))


def interleave(
    calls: Mapping[str, Callable[[T], Any]],
    make_input: Callable[[int], T],
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of every call in every round, until the time is up and at least MIN_ROUNDS are done.

    Every candidate is called once per round with the round's own input, and the first one changes every round, so that a
    busy machine, a warm cache or a slow round disturbs all alike.

    Args:
        make_input: the input of a round, from its number.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    end = clock() + seconds
    number = 0
    while number < MIN_ROUNDS or clock() < end:
        value = make_input(number)
        for name in order:
            started = clock()
            calls[name](value)
            times[name].append(clock() - started)
        order = [*order[1:], order[0]]
        number += 1
    return times


def ratios(above: list[float], below: list[float]) -> Spread:
    """Computes, round by round, one candidate's time over another's, so that common factors of a round cancel."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


def saved_bytes(function: Callable[[], Any], *excluded: Tensor) -> int:
    """Counts the bytes that `function` saves for backward: every storage once, without those of `excluded` (weights, input)."""
    known = {tensor.untyped_storage().data_ptr() for tensor in excluded}
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = function()
    del result
    return sum(storage.nbytes() for storage in kept.values())


def synchronise(device: str) -> None:
    """Waits for a GPU, whose calls return before they are done."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def skip_reason(error: Exception) -> str:
    """Returns the reason for which a candidate is skipped, in one line."""
    if isinstance(error, SkipCandidate):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        return "not installed"
    first = str(error).strip().split("\n")[0]
    return f"failed: {type(error).__name__}: {first}"[:120]


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Sets the threads that torch uses, and puts the number back."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
