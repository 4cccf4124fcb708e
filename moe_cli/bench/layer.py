"""`moe bench layer`: one layer, forward and backward, against the dense network of equal active FLOPs. T tokens, D width.

efficiency = time of a SwiGLU network over T K tokens / time of the whole layer: router, top-k, dispatch, experts and
combine. 1 means that sparsity is free.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from moe_cli.bench.candidates import DTYPES, Builder, Contestant, LeftOut, Shape, make_dense, make_layer, our_builders
from moe_cli.bench.peers import peer_builders
from moe_cli.bench.timing import Spread, interleave, ratios, reason, saved_bytes, spread, synchronise
from moe_cli.errors import ConfigError
from moe_cli.execution.machine import total_memory_bytes
from moe_cli.formatting import count

# A contestant whose single pass takes more than this share of the time would leave too few rounds to the others.
MOST_OF_THE_TIME = 0.15
MOST_SHAPES = 1000


@dataclass(frozen=True)
class Score:
    """One contestant on one shape.

    Attributes:
        seconds: one forward and backward.
        efficiency: the dense network's seconds over these, round by round.
        saved_bytes: kept for backward, without weights and input.
    """

    name: str
    seconds: Spread
    efficiency: Spread
    saved_bytes: int


@dataclass(frozen=True)
class Match:
    """All contestants on one shape.

    Attributes:
        largest_load: rows of the busiest expert of our layer, in one round.
        left_out: who did not take part, and why.
    """

    shape: Shape
    device: str
    rounds: int
    largest_load: int
    dense: Score
    scores: list[Score]
    left_out: dict[str, str]


def make_grid(axes: Mapping[str, Sequence[int | str]]) -> list[Shape]:
    """Every combination of the axes (fields of Shape).

    Raises:
        ConfigError: no combination can be built, or there are too many.
    """
    if (number := math.prod(map(len, axes.values()))) > MOST_SHAPES:
        raise ConfigError(f"{number:,} shapes are too many: the most are {MOST_SHAPES:,}. Give fewer values.")
    shapes = [Shape(**dict(zip(axes, point, strict=True))) for point in product(*axes.values())]  # type: ignore[arg-type]
    possible = [shape for shape in shapes if shape.k <= shape.experts and not (shape.k == 1 == shape.experts)]
    if not possible:
        raise ConfigError("nothing to measure: --k is more than --experts everywhere.")
    return possible


def run_match(
    shape: Shape,
    dispatches: Sequence[str],
    seconds: float,
    device: str = "cpu",
    builders: Mapping[str, Builder] | None = None,
) -> Match:
    """Every contestant that can be had, timed side by side for about `seconds`.

    Args:
        builders: who takes part; None: our layer by back end, the loop, and every peer.
    """
    _check_memory(shape, device)
    if builders is None:
        builders = {**our_builders(shape, dispatches, device), **peer_builders(shape, device)}
    with _threads(shape.threads):
        dense = make_dense(shape, device)
        contestants, saved, left_out = _warm_up(shape, {"dense": lambda: dense, **builders}, seconds, device)
        times = interleave(
            {name: _pass(contestant, device) for name, contestant in contestants.items()},
            lambda number: _inputs(shape, number + 1, device), seconds,
        )  # fmt: skip
        largest = int(
            make_layer(shape, device=device).route(_inputs(shape, 0, device).x[: shape.tokens]).tokens_per_expert.max()
        )
    scores = [
        Score(name, spread(times[name]), ratios(times["dense"], times[name]), saved[name]) for name in contestants
    ]
    rounds = len(times["dense"])
    return Match(shape, device, rounds, largest, scores[0], scores[1:], left_out)


def _check_memory(shape: Shape, device: str) -> None:
    """Raises ConfigError where weights, gradients and tokens alone take more main memory than there is."""
    total, rows = total_memory_bytes(), shape.tokens * shape.k
    numbers = 2 * (shape.experts + 1) * shape.expert_params + rows * (2 * shape.d_model + 3 * shape.d_expert)
    need = numbers * DTYPES[shape.dtype].itemsize
    if device == "cpu" and total is not None and need > total:
        raise ConfigError(
            f"tokens={shape.tokens} experts={shape.experts} k={shape.k} d_model={shape.d_model} d_expert={shape.d_expert} "
            f"take at least {count(need)}B of memory, and this machine has {count(total)}B. Measure smaller shapes."
        )


@dataclass(frozen=True)
class Inputs:
    """A round's tokens and gradient; the dense network gets the K-fold number of both."""

    x: Tensor
    grad: Tensor


def _inputs(shape: Shape, seed: int, device: str) -> Inputs:
    """T K rows drawn at random, of which a sparse layer reads the first T."""
    generator = torch.Generator().manual_seed(seed)
    x, grad = torch.randn(2, shape.tokens * shape.k, shape.d_model, generator=generator).to(device, DTYPES[shape.dtype])
    return Inputs(x, grad)


def _pass(contestant: Contestant, device: str) -> Callable[[Inputs], None]:
    """One forward and backward into new gradients, which are given back: many contestants wait beside each other."""

    def run(inputs: Inputs) -> None:
        x = inputs.x[: contestant.rows].detach().requires_grad_()
        contestant.answer(x).backward(inputs.grad[: contestant.rows])
        synchronise(device)
        contestant.module.zero_grad(set_to_none=True)

    return run


def _warm_up(
    shape: Shape, builders: Mapping[str, Builder], seconds: float, device: str
) -> tuple[dict[str, Contestant], dict[str, int], dict[str, str]]:
    """Who can take part, what each keeps for backward, and who is left out and why."""
    contestants: dict[str, Contestant] = {}
    saved: dict[str, int] = {}
    left_out: dict[str, str] = {}
    inputs = _inputs(shape, 0, device)
    for name, build in builders.items():
        try:
            contestant = build()
            saved[name] = _saved(contestant, inputs)
            started = time.perf_counter()
            _pass(contestant, device)(inputs)
            taken = time.perf_counter() - started
            if name != "dense" and taken > MOST_OF_THE_TIME * seconds and taken > 1:
                raise LeftOut(f"one pass took {taken:.1f} s; a larger --seconds lets it take part")
        except Exception as error:  # whatever a peer raises, the others go on
            left_out[name] = reason(error)
        else:
            contestants[name] = contestant
    return contestants, saved, left_out


def _saved(contestant: Contestant, inputs: Inputs) -> int:
    x = inputs.x[: contestant.rows].detach().requires_grad_()
    return saved_bytes(lambda: contestant.answer(x), x, *contestant.module.parameters())


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def records(match: Match) -> list[dict[str, object]]:
    """The scores with plain keys, one object each, the dense network first."""
    shape = match.shape
    return [
        {
            "contestant": score.name, "tokens": shape.tokens, "experts": shape.experts, "k": shape.k,
            "d_model": shape.d_model, "d_expert": shape.d_expert, "dtype": shape.dtype, "threads": shape.threads,
            "device": match.device, "rows_per_expert": shape.rows_per_expert, "largest_load": match.largest_load,
            "rounds": match.rounds, "seconds": score.seconds.median, "seconds_min": score.seconds.least,
            "seconds_max": score.seconds.most, "efficiency": score.efficiency.median,
            "efficiency_min": score.efficiency.least, "efficiency_max": score.efficiency.most,
            "saved_bytes": score.saved_bytes,
        }
        for score in [match.dense, *match.scores]
    ]  # fmt: skip
