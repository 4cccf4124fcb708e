"""estimate_runs(configs): the cost and the expected time of runs, known before they start, without torch."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from moe_cli.config.schema import RunConfig
from moe_cli.config.tasks import MaskedLM
from moe_cli.costs.model import Cost, estimate_cost, training_steps
from moe_cli.data.corpora import Corpus
from moe_cli.data.load import Data, load_data
from moe_cli.execution.data import load_data_read_only, model_vocab_size
from moe_cli.execution.machine import pick_threads
from moe_cli.loggers.logging_recorder import check_loggers

# What a run takes is counted in FLOPs of the product that `measure_flops` times. The model's own products reach this share
# of its speed; Muon's, which are batched and in bfloat16, all of it.
PRODUCT_EFFICIENCY = 0.7
# Apart from products, training on a batch takes the time of this many FLOPs on one thread, at any batch size: calls of
# torch, data, loss and optimizer. Counted once, for each layer, more for a sparse layer, and for each expert; a third
# of it in evaluation.
LAYER_FLOPS, SPARSE_FLOPS, EXPERT_FLOPS = 0.15e9, 0.2e9, 0.01e9
# FLOPs of the evaluation's count of the chosen experts, per token and sparse layer.
COUNTING_FLOPS = 0.1e6
# With train.eval_every=null, the evaluations before the last one.
EVALUATIONS = 9


@dataclass(frozen=True)
class RunEstimate:
    """The work and cost of a run, known before it starts.

    Attributes:
        steps: None when the budget is a time.
        seconds: expected time on `threads` cores of this machine, evaluation included.
    """

    config: RunConfig
    corpus: Data
    cost: Cost
    steps: int | None
    seconds: float
    threads: int

    @property
    def tokens(self) -> int | None:
        return None if self.steps is None else self.steps * self.config.tokens_per_step


def estimate_runs(
    configs: Sequence[RunConfig], outputs: Path, flops_per_second: float, build: bool = True
) -> list[RunEstimate]:
    """Estimates the cost of configurations, each with its own number of threads, at `flops_per_second` per core.

    The files of each corpus are read once, even if several configurations use it.

    Args:
        build: False means that nothing will be trained, so that no tokenizer is trained either.

    Raises:
        DataError: the data cannot be used.
        ConfigError: the library of a logger is not installed.
    """
    for log in {config.log for config in configs}:
        check_loggers(log)
    reader = load_data if build else load_data_read_only
    load = cache(lambda data, context_length: reader(data, context_length, outputs, build))
    return [
        _estimate_run(config, load(config.data, config.model.context_length), flops_per_second) for config in configs
    ]


def _estimate_run(config: RunConfig, corpus: Data, flops_per_second: float) -> RunEstimate:
    vocab_size = model_vocab_size(config, corpus)
    threads = pick_threads(config, vocab_size)
    costs = estimate_cost(config, vocab_size)
    steps = training_steps(config, vocab_size)
    step = step_work(config, costs).seconds(flops_per_second, threads)
    training = 60 * (config.train.minutes or 0) if steps is None else steps * step
    seconds = sum(
        times * evaluation_work(config, costs, tokens).seconds(flops_per_second, threads)
        for tokens, times in evaluations(config, _val_tokens(config, corpus), training / step)
    )
    return RunEstimate(config, corpus, costs, steps, training + seconds, threads)


@dataclass(frozen=True)
class Work:
    """FLOPs that threads share, and those of one thread while the others wait."""

    shared: float
    alone: float

    def seconds(self, flops_per_second: float, threads: int) -> float:
        return (self.shared / threads + self.alone) / flops_per_second


def step_work(config: RunConfig, costs: Cost) -> Work:
    """Returns the work of one optimizer step."""
    products = costs.model_flops_per_token * config.tokens_per_step / PRODUCT_EFFICIENCY
    return Work(products + costs.optimizer_flops_per_step, config.train.grad_accumulation * _batch_flops(config, costs))


def evaluation_work(config: RunConfig, costs: Cost, tokens: int) -> Work:
    """Returns the work of an evaluation on `tokens` tokens."""
    batches = math.ceil(tokens / (config.train.batch_size * config.eval_length))
    counting = tokens * costs.num_sparse_layers * COUNTING_FLOPS
    return Work(
        tokens * costs.forward_flops_per_token / PRODUCT_EFFICIENCY,
        batches * _batch_flops(config, costs) / 3 + counting,
    )


def _batch_flops(config: RunConfig, costs: Cost) -> float:
    """Returns the FLOPs that training on a batch takes apart from products."""
    layers, sparse = config.model.num_layers, costs.num_sparse_layers
    return (1 + layers) * LAYER_FLOPS + sparse * (SPARSE_FLOPS + config.expert * EXPERT_FLOPS)


def evaluations(config: RunConfig, val_tokens: int, steps: float) -> list[tuple[int, int]]:
    """Returns (tokens, number of evaluations): those during `steps` steps, and those of the whole split at the end."""
    every = config.train.eval_every
    looks = min(EVALUATIONS, math.ceil(steps) - 1) if every is None else math.ceil(steps / every) - 1
    found = [(min(val_tokens, config.train.eval_tokens), max(0, looks)), (val_tokens, 2 if config.capacity else 1)]
    if isinstance(config.task, MaskedLM) and config.task.pseudo_perplexity_tokens:
        found.append((min(val_tokens, config.task.pseudo_perplexity_tokens) * config.eval_length, 1))
    return found


def _val_tokens(config: RunConfig, corpus: Data) -> int:
    """Returns the number of tokens read in one evaluation of the validation split, overlaps of windows included.

    For images these are patches. For pairs there is one token per task.
    """
    size = int(corpus.meta[f"val_{corpus.unit}"])
    if isinstance(corpus, Corpus):
        return size * config.eval_length // config.eval_stride
    return size * config.model.context_length


def measure_flops() -> float:
    """Returns the FLOPs per second of one core on a small matrix product, measured in a few milliseconds.

    This uses numpy, because a plan must not wait for the import of torch. The matrices are small, so that numpy starts
    no threads, which would keep spinning while torch's threads work.
    """
    import numpy as np

    a = np.ones((64, 64), np.float32)
    best = float("inf")
    for _ in range(200):
        started = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - started)
    return 2 * 64**3 / best
