"""How fast is a sparse layer, forward and backward, compared with a dense network of equal active FLOPs?

The efficiency is the time of a SwiGLU network over T K rows divided by the time of the layer with router, top-k,
dispatch, experts and combine. At 1 sparsity costs no time. T tokens, K chosen, D width.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
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
from moe_cli.bench.spread import Spread, spread
from moe_cli.bench.timing import (
    build_candidates,
    interleave,
    ratios,
    saved_bytes,
    synchronise,
    torch_threads,
)
from moe_cli.errors import ConfigError
from moe_cli.execution.machine import total_memory_bytes
from moe_cli.formatting import format_bytes

# Largest fraction of the available time that one pass of a candidate may take; otherwise there would be few rounds.
MAX_TIME_FRACTION = 0.15
MAX_SHAPES = 1000


@dataclass(frozen=True)
class LayerResult:
    """The result of one candidate on one shape.

    Attributes:
        seconds: seconds of one forward and backward pass.
        efficiency: seconds of the dense network divided by these, by round.
        saved_bytes: bytes that are saved for backward, without weights and input.
    """

    name: str
    seconds: Spread
    efficiency: Spread
    saved_bytes: int


@dataclass(frozen=True)
class LayerBenchmark:
    """The results of all candidates on one shape.

    Attributes:
        rounds: number of measurements of each candidate.
        largest_load: rows of the busiest expert of our layer in one round.
        dense: the baseline.
        skipped: reasons for which candidates were not measured, by name.
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
    points = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    shapes = [Shape(**point) for point in points]  # type: ignore[arg-type]
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
        dispatches: back ends of our layer.
        builders: the candidates; None means our layer with each back end, the loop, and every peer.

    Raises:
        ConfigError: the shape needs more than the main memory.
    """
    _check_memory(shape, device)
    if builders is None:
        builders = {**our_builders(shape, dispatches, device), **peer_builders(shape, device)}
    with torch_threads(shape.threads):
        first_inputs, saved = _inputs(shape, 0, device), dict[str, int]()

        def warm_up(name: str, candidate: Candidate) -> None:
            limit = math.inf if name == "dense" else MAX_TIME_FRACTION * seconds
            saved[name] = _warm_up(candidate, first_inputs, limit, device)

        builders = {"dense": lambda: make_dense(shape, device), **builders}
        candidates, skipped = build_candidates(builders, warm_up)
        times = interleave(
            {name: _pass(candidate, device) for name, candidate in candidates.items()},
            lambda number: _inputs(shape, number + 1, device),
            seconds,
        )
        routing = make_layer(shape, device=device).route(first_inputs.x[: shape.tokens])
        largest = int(routing.tokens_per_expert.max())
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
            f"tokens={shape.tokens} experts={shape.experts} k={shape.k} d_model={shape.d_model} "
            f"d_expert={shape.d_expert} take at least {format_bytes(need)} of memory, "
            f"and this machine has {format_bytes(total)}. "
            "Measure smaller shapes."
        )


@dataclass(frozen=True)
class Inputs:
    """The input rows [T K, D] and output gradients of a round; a sparse layer uses the first T rows."""

    x: Tensor
    grad: Tensor


def _inputs(shape: Shape, seed: int, device: str) -> Inputs:
    """Returns random rows and gradients."""
    generator = torch.Generator().manual_seed(seed)
    x, grad = torch.randn(2, shape.tokens * shape.k, shape.d_model, generator=generator).to(device, DTYPES[shape.dtype])
    return Inputs(x, grad)


def _pass(candidate: Candidate, device: str) -> Callable[[Inputs], None]:
    """Returns a function for one forward and backward pass, which frees the gradients at its end."""

    def run(inputs: Inputs) -> None:
        x = inputs.x[: candidate.rows].detach().requires_grad_()
        candidate.forward(x).backward(inputs.grad[: candidate.rows])
        synchronise(device)
        candidate.module.zero_grad(set_to_none=True)

    return run


def _warm_up(candidate: Candidate, inputs: Inputs, max_seconds: float, device: str) -> int:
    """Runs one pass; returns the bytes that it saves for backward. Raises SkipCandidate if it is too slow."""
    x = inputs.x[: candidate.rows].detach().requires_grad_()
    saved = saved_bytes(lambda: candidate.forward(x), x, *candidate.module.parameters())
    started = time.perf_counter()
    _pass(candidate, device)(inputs)
    elapsed = time.perf_counter() - started
    if elapsed > max_seconds and elapsed > 1:
        raise SkipCandidate(f"one pass took {elapsed:.1f} s; a larger --seconds lets it take part")
    return saved


def to_dicts(benchmark: LayerBenchmark) -> list[dict[str, object]]:
    """Returns the results as records of plain values, the dense network first."""
    shape = benchmark.shape
    return [
        {
            "candidate": result.name,
            **asdict(shape),
            "device": benchmark.device,
            "rows_per_expert": shape.rows_per_expert,
            "largest_load": benchmark.largest_load,
            "rounds": benchmark.rounds,
            **result.seconds.to_dict("seconds"),
            **result.efficiency.to_dict("efficiency"),
            "saved_bytes": result.saved_bytes,
        }
        for result in [benchmark.dense, *benchmark.results]
    ]
