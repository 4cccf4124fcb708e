"""How a broken promise is reported, and how records are compared. T tokens, E experts, D width."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from moe_cli.moe.routing import Routing

TOLERANCE = 1e-6
Answer = TypeVar("Answer")


class BrokenPromise(AssertionError):
    """A promise that the tested code breaks."""


def require(is_kept: bool, subject: str, sentence: str) -> None:
    """Raises AssertionError with the sentence unless the promise is kept."""
    if not is_kept:
        raise BrokenPromise(f"{subject}: {sentence}")


@contextmanager
def expected_to_run(subject: str, what: str) -> Iterator[None]:
    """Turns an exception of the tested code into an AssertionError that says what was tried."""
    try:
        yield
    except BrokenPromise:
        raise
    except Exception as error:
        raise BrokenPromise(f"{subject}: {what} raises {type(error).__name__}: {error}") from error


def equal(first: Tensor, second: Tensor) -> bool:
    """Returns whether two tensors have one shape and values that differ by rounding only."""
    return first.shape == second.shape and torch.allclose(first, second, rtol=TOLERANCE, atol=TOLERANCE)


def random_tokens(num_tokens: int, width: int, seed: int = 0) -> Float[Tensor, "T D"]:
    return torch.randn(num_tokens, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def randomise(module: nn.Module) -> None:
    """Draws every weight at random, because first weights may be zero and hide a dependence."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5, generator=generator)


def dense_weights(routing: Routing) -> Float[Tensor, "T E"]:
    """Returns the weight of each expert for each token; the order of the record does not matter."""
    dense = routing.weights.new_zeros(routing.num_tokens, routing.num_experts)
    return dense.index_put((routing.token_ids, routing.expert_ids), routing.weights, accumulate=True)


def choices(routing: Routing) -> Int[Tensor, "T E"]:
    """Returns how often each token chose each expert."""
    counts = torch.zeros(routing.num_tokens, routing.num_experts, dtype=torch.int64)
    ones = torch.ones_like(routing.expert_ids)
    return counts.index_put((routing.token_ids, routing.expert_ids), ones, accumulate=True)


def same_routing(first: Routing, second: Routing) -> bool:
    return torch.equal(choices(first), choices(second)) and equal(dense_weights(first), dense_weights(second))


def with_seed(seed: int, call: Callable[[], Answer]) -> Answer:
    """Returns the answer of the call with torch's generator at a seed, which is restored."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return call()
