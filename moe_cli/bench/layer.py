"""`moe bench layer`: one layer, forward and backward, against the dense network of equal active FLOPs. T tokens, D width.

efficiency = time of a SwiGLU network over T K tokens / time of the whole layer: router, top-k, dispatch, experts and
combine. 1 means that sparsity is free.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from moe_cli.bench.candidates import (
    DTYPES,
    Builder,
    Candidate,
    Shape,
    SkipCandidate,
    make_dense,
    make_layer,
    our_builders,
)
from moe_cli.bench.peers import peer_builders
from moe_cli.bench.timing import (
    Spread,
    interleave,
    ratios,
    saved_bytes,
    skip_reason,
    spread,
    synchronise,
    torch_threads,
)
from moe_cli.errors import ConfigError
from moe_cli.execution.machine import total_memory_bytes
from moe_cli.formatting import count

# A candidate whose single pass takes more than this fraction of the time would leave too few rounds to the others.
MAX_TIME_FRACTION = 0.15
MAX_SHAPES = 1000


@dataclass(frozen=True)
class LayerResult:
    """One candidate on one shape.

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
class LayerBenchmark:
    """All candidates on one shape.

    Attributes:
        largest_load: rows of the busiest expert of our layer, in one round.
        skipped: candidates that were not measured, with the reasons.
    """

    shape: Shape
    device: str
    rounds: int
    largest_load: int
    dense: LayerResult
    results: list[LayerResult]
    skipped: dict[str, str]


def make_grid(axes: Mapping[str, Sequence[int | str]]) -> list[Shape]:
    """Returns every combination of the axes (fields of Shape).

    Raises:
        ConfigError: no combination can be built, or there are too many.
    """
    if (number := math.prod(map(len, axes.values()))) > MAX_SHAPES:
        raise ConfigError(f"{number:,} shapes are too many: the most are {MAX_SHAPES:,}. Give fewer values.")
    shapes = [Shape(**dict(zip(axes, point, strict=True))) for point in product(*axes.values())]  # type: ignore[arg-type]
    possible = [shape for shape in shapes if shape.k <= shape.experts and not (shape.k == 1 == shape.experts)]
    if not possible:
        raise ConfigError("nothing to measure: --k is more than --experts everywhere.")
    return possible


def run_layer_benchmark(
    shape: Shape,
    dispatches: Sequence[str],
    seconds: float,
    device: str = "cpu",
    builders: Mapping[str, Builder] | None = None,
) -> LayerBenchmark:
    """Times every available candidate in alternation for about `seconds`.

    Args:
        builders: the candidates; None means our layer by back end, the loop, and every peer.
    """
    _check_memory(shape, device)
    if builders is None:
        builders = {**our_builders(shape, dispatches, device), **peer_builders(shape, device)}
    with torch_threads(shape.threads):
        dense = make_dense(shape, device)
        candidates, saved, skipped = _warm_up(shape, {"dense": lambda: dense, **builders}, seconds, device)
        times = interleave(
            {name: _pass(candidate, device) for name, candidate in candidates.items()},
            lambda number: _inputs(shape, number + 1, device),
            seconds,
        )
        largest = int(
            make_layer(shape, device=device).route(_inputs(shape, 0, device).x[: shape.tokens]).tokens_per_expert.max()
        )
    results = [
        LayerResult(name, spread(times[name]), ratios(times["dense"], times[name]), saved[name]) for name in candidates
    ]
    rounds = len(times["dense"])
    return LayerBenchmark(shape, device, rounds, largest, results[0], results[1:], skipped)


def _check_memory(shape: Shape, device: str) -> None:
    """Raises ConfigError if weights, gradients and tokens alone need more than the main memory."""
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
    """Returns T K random rows; a sparse layer reads the first T."""
    generator = torch.Generator().manual_seed(seed)
    x, grad = torch.randn(2, shape.tokens * shape.k, shape.d_model, generator=generator).to(device, DTYPES[shape.dtype])
    return Inputs(x, grad)


def _pass(candidate: Candidate, device: str) -> Callable[[Inputs], None]:
    """Returns a function for one forward and backward pass.

    Its gradients are released, as many candidates share memory.
    """

    def run(inputs: Inputs) -> None:
        x = inputs.x[: candidate.rows].detach().requires_grad_()
        candidate.forward(x).backward(inputs.grad[: candidate.rows])
        synchronise(device)
        candidate.module.zero_grad(set_to_none=True)

    return run


def _warm_up(
    shape: Shape, builders: Mapping[str, Builder], seconds: float, device: str
) -> tuple[dict[str, Candidate], dict[str, int], dict[str, str]]:
    """Builds the candidates; returns them, the bytes that each saves for backward, and the skipped ones with reasons."""
    candidates: dict[str, Candidate] = {}
    saved: dict[str, int] = {}
    skipped: dict[str, str] = {}
    inputs = _inputs(shape, 0, device)
    for name, build in builders.items():
        try:
            candidate = build()
            saved[name] = _saved(candidate, inputs)
            started = time.perf_counter()
            _pass(candidate, device)(inputs)
            taken = time.perf_counter() - started
            if name != "dense" and taken > MAX_TIME_FRACTION * seconds and taken > 1:
                raise SkipCandidate(f"one pass took {taken:.1f} s; a larger --seconds lets it take part")
        except Exception as error:  # an error of a peer must not stop the others
            skipped[name] = skip_reason(error)
        else:
            candidates[name] = candidate
    return candidates, saved, skipped


def _saved(candidate: Candidate, inputs: Inputs) -> int:
    x = inputs.x[: candidate.rows].detach().requires_grad_()
    return saved_bytes(lambda: candidate.forward(x), x, *candidate.module.parameters())


def to_dicts(benchmark: LayerBenchmark) -> list[dict[str, object]]:
    """Returns the scores with plain keys, one object each, the dense network first."""
    shape = benchmark.shape
    return [
        {
            "candidate": result.name,
            "tokens": shape.tokens,
            "experts": shape.experts,
            "k": shape.k,
            "d_model": shape.d_model,
            "d_expert": shape.d_expert,
            "dtype": shape.dtype,
            "threads": shape.threads,
            "device": benchmark.device,
            "rows_per_expert": shape.rows_per_expert,
            "largest_load": benchmark.largest_load,
            "rounds": benchmark.rounds,
            "seconds": result.seconds.median,
            "seconds_min": result.seconds.min,
            "seconds_max": result.seconds.max,
            "efficiency": result.efficiency.median,
            "efficiency_min": result.efficiency.min,
            "efficiency_max": result.efficiency.max,
            "saved_bytes": result.saved_bytes,
        }
        for result in [benchmark.dense, *benchmark.results]
    ]
