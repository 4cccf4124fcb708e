"""How are candidates timed? In alternation, on new input in each round; and how many bytes do they save?"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from moe_cli.bench.candidates import SkipCandidate
from moe_cli.bench.spread import Spread, spread

T = TypeVar("T")
MIN_ROUNDS = 3


def interleave(
    calls: Mapping[str, Callable[[T], Any]],
    make_input: Callable[[int], T],
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Measures the seconds of every call in every round, for `seconds` and at least MIN_ROUNDS rounds.

    Each round has its own input and calls every candidate once. The first candidate changes every round, so that a busy
    machine, a warm cache or a slow round affects all candidates alike.

    Args:
        make_input: makes the input of a round from its number.
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
    """Computes the spread of above / below of each round, so that the speed of the machine in a round cancels."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


def saved_bytes(function: Callable[[], Any], *excluded: Tensor) -> int:
    """Counts the bytes that `function` saves for backward, each storage once.

    Args:
        excluded: tensors whose storages are not counted, such as weights and input.
    """
    known = {tensor.untyped_storage().data_ptr() for tensor in excluded}
    kept: dict[int, torch.UntypedStorage] = {}  # keeps the storages alive, so that no address is reused

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
    """Waits until a GPU has executed all calls, which return earlier."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def build_candidates(
    builders: Mapping[str, Callable[[], T]], warm_up: Callable[[str, T], None]
) -> tuple[dict[str, T], dict[str, str]]:
    """Builds and warms up the candidates; returns those without an error, and the reasons for the others.

    Args:
        warm_up: runs a candidate; its arguments are the name and the candidate.
    """
    candidates: dict[str, T] = {}
    skipped: dict[str, str] = {}
    for name, build in builders.items():
        try:
            candidate = build()
            warm_up(name, candidate)
        except Exception as error:  # an error of one library must not stop the others
            skipped[name] = skip_reason(error)
        else:
            candidates[name] = candidate
    return candidates, skipped


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
    """Returns a context in which torch uses this number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
