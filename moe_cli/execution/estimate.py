"""Estimates the cost and the time of runs before they start, without torch."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from moe_cli.config.probes import ProbeConfig
from moe_cli.config.schema import RunConfig
from moe_cli.config.tasks import MaskedLM
from moe_cli.costs.model import Cost, estimate_cost, training_steps
from moe_cli.costs.processor import cpu_has_bfloat16
from moe_cli.data.corpora import Corpus
from moe_cli.data.load import Data, load_data
from moe_cli.execution.data import load_data_read_only, model_vocab_size
from moe_cli.execution.machine import pick_threads
from moe_cli.execution.precision import planned_precision
from moe_cli.loggers.logging_recorder import check_loggers

# Times are computed from the FLOP rate of the product that `measure_flops` times. The matrix products of a model reach
# this fraction of that rate; those of Muon, which are batched and in bfloat16, reach all of it.
PRODUCT_EFFICIENCY = 0.7
# Products of a model take this fraction of their time in float32 if the processor multiplies bfloat16, casts included.
BFLOAT16_TIME = 0.6
# Besides products, training on a batch has a fixed cost on one thread: calls of torch, data, loss and optimizer. It is
# given as the FLOPs of the same duration, for the model and each layer, each sparse layer, and each expert. An
# evaluation batch costs a third of it.
LAYER_FLOPS, SPARSE_FLOPS, EXPERT_FLOPS = 0.15e9, 0.2e9, 0.01e9
# FLOPs per token and sparse layer to count the chosen experts in an evaluation.
COUNTING_FLOPS = 0.1e6


@dataclass(frozen=True)
class RunEstimate:
    """The estimate of a run before it starts.

    Attributes:
        steps: the number of training steps; None if the budget is a time.
        seconds: the expected time on `threads` cores of this machine, with all evaluations.
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

    def seconds_after(self, step: int) -> float:
        """Returns the expected time of the steps after one from which a run continues."""
        return self.seconds * (max(0.0, 1 - step / self.steps) if self.steps else 1.0)


def estimate_runs(
    configs: Sequence[RunConfig], outputs: Path, flops_per_second: float, build: bool = True
) -> list[RunEstimate]:
    """Estimates the cost and time of configurations at `flops_per_second` per core. Loads each data set once.

    Args:
        build: False, for a dry run, trains no tokenizer.

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
    original, config = config, _with_planned_precision(config)
    threads = pick_threads(config, vocab_size)
    costs = estimate_cost(config, vocab_size)
    steps = training_steps(config, vocab_size)
    step = step_work(config, costs).seconds(flops_per_second, threads)
    training = 60 * (config.train.minutes or 0) if steps is None else steps * step
    seconds = sum(
        times * evaluation_work(config, costs, tokens).seconds(flops_per_second, threads)
        for tokens, times in evaluations(config, _val_tokens(config, corpus), training / step)
    )
    return RunEstimate(original, corpus, costs, steps, training + seconds, threads)


def _with_planned_precision(config: RunConfig) -> RunConfig:
    """Returns the configuration in bfloat16 if a run that starts on this machine will be."""
    is_narrow = planned_precision(config) == "bfloat16"
    return replace(config, train=replace(config.train, precision="bfloat16")) if is_narrow else config


@dataclass(frozen=True)
class Work:
    """Work of a step, in FLOPs: the part that threads share, and the part of one thread while the others wait."""

    shared: float
    alone: float

    def seconds(self, flops_per_second: float, threads: int) -> float:
        return (self.shared / threads + self.alone) / flops_per_second


def step_work(config: RunConfig, costs: Cost) -> Work:
    """Returns the work of one optimizer step."""
    products = costs.model_flops_per_token * config.tokens_per_step / _product_speed(config)
    return Work(products + costs.optimizer_flops_per_step, config.train.grad_accumulation * _batch_flops(config, costs))


def evaluation_work(config: RunConfig, costs: Cost, tokens: int) -> Work:
    """Returns the work of an evaluation on `tokens` tokens."""
    batches = math.ceil(tokens / (config.train.batch_size * config.eval_length))
    counting = tokens * costs.num_sparse_layers * COUNTING_FLOPS
    return Work(
        tokens * costs.forward_flops_per_token / _product_speed(config),
        batches * _batch_flops(config, costs) / 3 + counting,
    )


def _product_speed(config: RunConfig) -> float:
    """Returns the FLOP rate of the model's products, relative to that of `measure_flops`."""
    is_narrow = config.train.precision == "bfloat16" and cpu_has_bfloat16()
    return PRODUCT_EFFICIENCY / (BFLOAT16_TIME if is_narrow else 1)


def _batch_flops(config: RunConfig, costs: Cost) -> float:
    """Returns the fixed cost of training on a batch, in FLOPs."""
    layers, sparse = config.model.num_layers, costs.num_sparse_layers
    return (1 + layers) * LAYER_FLOPS + sparse * (
        SPARSE_FLOPS + config.expert * config.model.blocks_per_expert * EXPERT_FLOPS
    )


def evaluations(config: RunConfig, val_tokens: int, steps: float) -> list[tuple[int, int]]:
    """Returns (tokens, number of evaluations) of the evaluations during `steps` steps and at the end."""
    during = config.train.num_evaluations(steps)
    found = [(min(val_tokens, config.train.eval_tokens), during + 1), (val_tokens, 2 if config.capacity else 1)]
    if isinstance(config.task, MaskedLM) and config.task.pseudo_perplexity_tokens:
        found.append((min(val_tokens, config.task.pseudo_perplexity_tokens) * config.eval_length, 1))
    return found


def _val_tokens(config: RunConfig, corpus: Data) -> int:
    """Returns the number of tokens of one evaluation of the validation split, with overlaps of windows.

    An image has one token per patch; a pair of user and item has one token per task.
    """
    if isinstance(config.data, ProbeConfig):
        return config.data.num_val * config.data.context_length
    size = int(corpus.meta[f"val_{corpus.unit}"])
    if isinstance(corpus, Corpus):
        return size * config.eval_length // config.eval_stride
    return size * config.model.context_length


def measure_flops() -> float:
    """Measures the FLOPs per second of one core on a small matrix product, in a few milliseconds.

    The product uses numpy, because the import of torch takes seconds. The matrices are small, so that numpy starts no
    threads, which would spin while torch's threads work.
    """
    import numpy as np

    a = np.ones((64, 64), np.float32)
    best = float("inf")
    for _ in range(200):
        started = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - started)
    return 2 * 64**3 / best
