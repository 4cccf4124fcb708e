"""How much of a training step does the optimizer take, by the number of experts and the period of their updates?

A step is forward, loss and backward on random tokens (the pass), then the update. All candidates run in alternation.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count

import torch
from jaxtyping import Int
from torch import Tensor

from moe_cli.bench.spread import Spread, spread
from moe_cli.bench.step import VOCAB_SIZE, next_token_loss, random_tokens
from moe_cli.bench.timing import interleave, ratios, synchronise, torch_threads
from moe_cli.config.optim import MuonConfig
from moe_cli.config.schema import RunConfig
from moe_cli.models.registry import make_model
from moe_cli.moe.balance import auxiliary_losses, total_loss
from moe_cli.training.optimizers import make_optimizers
from moe_cli.training.precision import autocast


@dataclass(frozen=True)
class OptimizerBenchResult:
    """The times of one configuration, in seconds of a step.

    Attributes:
        period: steps between two updates of the same experts by Muon; 1 for other optimizers.
        pass_seconds: forward, loss and backward.
        update_seconds: the update, the mean over a period.
        share: the update's share of the step.
        ratio: the step of the first candidate divided by this step.
    """

    experts: int
    top_k: int
    period: int
    pass_seconds: Spread
    update_seconds: Spread
    share: Spread
    ratio: Spread


@dataclass(frozen=True)
class OptimizerBenchmark:
    """The results of all candidates; `ratio` refers to the first.

    Attributes:
        config: the configuration of the first candidate.
        rounds: number of measurements of each candidate.
        router: the router of the candidates with experts; None without such a candidate.
    """

    config: RunConfig
    device: str
    threads: int
    rounds: int
    results: list[OptimizerBenchResult]
    router: str | None = None

    def to_dicts(self) -> list[dict[str, object]]:
        """Returns the results as records of plain values."""
        return [
            {
                "optimizer": self.config.optim.name,
                "experts": result.experts,
                "k": result.top_k,
                "expert_period": result.period,
                "router": self.router,
                "d_model": self.config.model.d_model,
                "d_ff": self.config.model.d_ff,
                "num_layers": self.config.model.num_layers,
                "context_length": self.config.model.context_length,
                "batch_size": self.config.train.batch_size,
                "threads": self.threads,
                "device": self.device,
                "rounds": self.rounds,
                **result.pass_seconds.to_dict("pass_seconds"),
                **result.update_seconds.to_dict("update_seconds"),
                **result.share.to_dict("share"),
                **result.ratio.to_dict("ratio"),
            }
            for result in self.results
        ]


class _Candidate:
    """A model with gradients, whose pass and update are timed apart."""

    def __init__(self, config: RunConfig, device: str) -> None:
        self.config, self.device = config, device
        self.model = make_model(config, VOCAB_SIZE).to(device)
        self.optimizers = make_optimizers(config.optim, self.model)
        self.numbers = count()

    def run_pass(self, tokens: Int[Tensor, "B L1"]) -> None:
        self.optimizers.zero_grad()
        with autocast(self.config.train.precision, torch.device(self.device)):
            logits, routings = self.model(tokens[:, :-1])
            losses = auxiliary_losses(self.config.balance, routings, num_sequences=len(tokens))
            loss = total_loss(next_token_loss(logits, tokens), losses, routings)
        loss.backward()
        synchronise(self.device)

    def update(self, tokens: Int[Tensor, "B L1"]) -> None:
        """Executes the updates of a whole period, on the gradients of the last pass."""
        for _ in range(expert_period(self.config)):
            self.optimizers.step(next(self.numbers), 0.5)
        synchronise(self.device)


def every_step_too(config: RunConfig) -> list[RunConfig]:
    """Returns the configuration and, if its experts are not updated in every step, one in which they are."""
    if expert_period(config) == 1:
        return [config]
    return [config, replace(config, optim=replace(config.optim, expert_period=1))]  # type: ignore[arg-type]


def expert_period(config: RunConfig) -> int:
    """Returns the steps between two updates of the same experts."""
    return (config.optim.expert_period or 1) if isinstance(config.optim, MuonConfig) else 1


def run_optimizer_benchmark(
    configs: Sequence[RunConfig], seconds: float, threads: int, device: str = "cpu"
) -> OptimizerBenchmark:
    """Measures pass and update of every configuration in alternation, for about `seconds` after a warm-up."""
    with torch_threads(threads):
        candidates = [_Candidate(config, device) for config in configs]
        calls: dict[str, Callable[[Tensor], None]] = {}
        for number, candidate in enumerate(candidates):
            candidate.run_pass(random_tokens(candidate.config, 0, device))
            candidate.update(random_tokens(candidate.config, 0, device))
            calls |= {f"pass {number}": candidate.run_pass, f"update {number}": candidate.update}
        times = interleave(calls, lambda number: random_tokens(configs[0], number + 1, device), seconds)
    results = [_result(config, number, times, expert_period(configs[0])) for number, config in enumerate(configs)]
    router = next((config.router.name for config in configs if config.router and not config.dense), None)
    return OptimizerBenchmark(configs[0], device, threads, len(times["pass 0"]), results, router)


def _result(
    config: RunConfig, number: int, times: Mapping[str, list[float]], first_period: int
) -> OptimizerBenchResult:
    period = expert_period(config)
    passes, updates = times[f"pass {number}"], [seconds / period for seconds in times[f"update {number}"]]
    steps = [a + b for a, b in zip(passes, updates, strict=True)]
    first = [a + b / first_period for a, b in zip(times["pass 0"], times["update 0"], strict=True)]
    return OptimizerBenchResult(
        config.expert,
        config.k if isinstance(config.k, int) else 1,
        period,
        spread(passes),
        spread(updates),
        ratios(updates, steps),
        ratios(first, steps),
    )
