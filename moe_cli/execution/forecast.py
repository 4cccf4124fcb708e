"""What a run will do, take and cost, and whether it can be done at all: known before it starts, without torch."""

import math
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from moe_cli.config.build import show
from moe_cli.config.data import HELD_OUT, TOKENIZERS, CorpusConfig, DataConfig
from moe_cli.config.resolve import SPARSE_ONLY
from moe_cli.config.schema import RunConfig
from moe_cli.config.tasks import MaskedLM, SpanCorruption
from moe_cli.costs.model import Cost, cost, training_steps
from moe_cli.data.bpe import hash_of
from moe_cli.data.images import Images
from moe_cli.data.load import Data, load_data
from moe_cli.data.ratings import Ratings
from moe_cli.errors import ConfigError, Unwritable
from moe_cli.execution.machine import available_memory_bytes, crowding, pick_threads, total_memory_bytes, visible_gpus
from moe_cli.files.writing import scratch_folder
from moe_cli.formatting import count
from moe_cli.loggers.recorder import check_loggers
from moe_cli.runs.folder import Run, find_run
from moe_cli.runs.tags import fix_corpora

# What a run takes is counted in FLOPs of the product that `measure_flops` times. The model's own products reach this share
# of its speed; Muon's, of which many are done at once and in bfloat16, all of it.
PRODUCT_EFFICIENCY = 0.7
# Beside products, training on a batch takes the time of so many FLOPs on one thread, however small the batch: calls of torch, data, loss
# and optimizer. For each layer and once beside them, more if it is sparse, and for each of its experts; of evaluation a third.
LAYER_FLOPS, SPARSE_FLOPS, EXPERT_FLOPS = 0.15e9, 0.2e9, 0.01e9
# Evaluation counts who was chosen: for each token and sparse layer.
COUNTING_FLOPS = 0.1e6
# With train.eval_every=null, the evaluations before the last one.
EVALUATIONS = 9
# From this budget on, torch.compile's half minute is won back: it gives about 1.09 times the steps a second. In FLOPs about
# ten minutes of one core; never a measured time or a number of cores, so that every machine decides alike.
COMPILE_FLOPS, COMPILE_MINUTES = 2.4e13, 10.0
# Settings of a model that may differ from those of the dense run whose weights it starts from, besides those that only
# models with experts have: none is part of the function.
NOT_UPCYCLED = ("model.dropout", "model.attention_dropout")
# What a process holds besides its model: torch and what it loads while it works, freed blocks, and the counts of evaluations.
PROCESS_BYTES = 470e6
# A run is refused that is expected to take so many times the memory there is; one that takes more than is free is noted.
FAR_TOO_MUCH = 2
_LESS_MEMORY = "Lower train.batch_size, model.context_length or the model's size."


@dataclass(frozen=True)
class Plan:
    """What a run will do and cost, known before it starts.

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


def corpus_of(config: RunConfig, outputs: Path) -> Data:
    """The data of a configuration, built under outputs/.cache if they are not there. Raises DataError."""
    return load_data(config.data, config.model.context_length, outputs)


def corpus_to_read(data: DataConfig, context_length: int, outputs: Path, build: bool = True) -> Data:
    """The same for what makes no run: a folder that goes with this process serves where outputs cannot be written."""
    try:
        return load_data(data, context_length, outputs, build)
    except Unwritable:
        return load_data(data, context_length, scratch_folder(), build)


def make_plans(configs: Sequence[RunConfig], outputs: Path, flops_per_second: float, build: bool = True) -> list[Plan]:
    """Counts what configurations take, each on its own number of threads, at `flops_per_second` a core.

    The files of each corpus are looked at once, however many configurations use it.

    Args:
        build: False: nothing will be trained, so that no tokenizer has to be either.

    Raises:
        DataError: the data are no use.
        ConfigError: the library of a logger is not installed.
    """
    for log in {config.log for config in configs}:
        check_loggers(log)
    reader = load_data if build else corpus_to_read
    load = cache(lambda data, context_length: reader(data, context_length, outputs, build))
    return [_make_plan(config, load(config.data, config.model.context_length), flops_per_second) for config in configs]


def fix_data(folder: Path, plans: Sequence[Plan], replace: bool = False) -> None:
    """Notes in a sweep's folder which data these plans learn from; see `fix_corpora`. Raises DataError: other data."""
    fix_corpora(folder, [(plan.config.data, plan.corpus.meta) for plan in plans], replace)


def vocab_of(config: RunConfig, corpus: Data) -> int:
    """Rows of the model's embedding. Raises ConfigError where the data have more tokens."""
    asked, own = config.model.vocab_size, int(corpus.meta["vocab_size"]) + config.task.special_tokens
    if asked is not None and asked < own:
        raise ConfigError(f"model.vocab_size={asked} is less than the {own} tokens of the data. Use at least {own}.")
    return asked or own


def check_upcycle(config: RunConfig, outputs: Path) -> Run | None:
    """The dense run a model starts from, None if it starts from scratch.

    Raises:
        RunNotFound: there is no such run.
        ConfigError: its weights do not fit.
    """
    if config.train.upcycle_from is None:
        return None
    given, source = f"train.upcycle_from={config.train.upcycle_from}", find_run(outputs, config.train.upcycle_from)
    dense, model = source.config(), config.model
    if getattr(config.router, "score", None) == "activation":
        raise ConfigError(
            f"{given} makes all experts equal, and router.score=activation tells them apart by their own activations. "
            "Use router.score=linear"
        )
    if not dense.dense:
        raise ConfigError(f"{given} is itself sparse ({dense.expert}x{dense.k}). Make a dense run: moe train expert=1")
    if not source.checkpoints():
        raise ConfigError(f"{given} has no checkpoint. Finish it: moe train --resume {source.id}")
    ours, theirs = _held_out(config), _held_out(dense)
    if all(ours[name] == theirs[name] for name in ("data.name", "data.path")) and ours != theirs:
        add = " ".join(f"{name}={show(value)}" for name, value in theirs.items() if ours[name] != value)
        raise ConfigError(f"{given} may have learned from what this run holds out of the same data. Add: {add}")
    recorded = source.meta().get("corpus") or {}
    if _tokens(config.data) != _tokens(dense.data, recorded.get("tokenizer_sha256")):
        raise ConfigError(f"{given} reads other tokens: its data are {dense.data.name}, {dense.data.tokenizer}.")
    for key, ours, theirs in _unlike(config, dense):
        raise ConfigError(f"{given} has {key}={show(theirs)}, and this model {show(ours)}. Add: {key}={show(theirs)}")
    if not config.dense and model.d_expert != model.d_ff:
        raise ConfigError(
            f"{given}: experts of width {model.d_expert} cannot be copies of a network of width {model.d_ff}. "
            f"Add: match=none model.d_expert={model.d_ff}"
        )
    return source


def pin_upcycle(config: RunConfig, outputs: Path) -> RunConfig:
    """The configuration with the run it starts from by its place, group/run: a beginning may fit other runs later.

    Raises:
        MoeError: see `check_upcycle`.
    """
    source = check_upcycle(config, outputs)
    if source is None:
        return config
    path, root = source.path.resolve(), outputs.resolve()
    place = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
    return replace(config, train=replace(config.train, upcycle_from=place))


def _tokens(data: DataConfig, tokenizer_sha256: str | None = None) -> object:
    """What token ids mean, in a form that is equal where they mean the same.

    Bytes are the same everywhere, and so are the tokens of one tokenizer.json. Characters and `bpe` are numbered by the
    text they come from, classes, users and items by their data; the meaning of ready-made tokens is not known.

    Args:
        tokenizer_sha256: of the tokenizer.json, as it was; None: as it is now.
    """
    if not isinstance(data, CorpusConfig):
        return data
    if data.tokenizer not in TOKENIZERS:
        return tokenizer_sha256 or hash_of(data.tokenizer)
    return "bytes" if data.tokenizer == "bytes" else replace(data, packing="concat")


def _unlike(config: RunConfig, dense: RunConfig) -> Iterator[tuple[str, Any, Any]]:
    """Settings that decide the dense function and differ: each with its value here and there.

    All settings of a model count unless they are known not to, so that a new one does.
    """
    if config.model.name != dense.model.name:
        yield "model", config.model.name, dense.model.name
        return
    names = [each.name for each in fields(dense.model) if f"model.{each.name}" not in (*SPARSE_ONLY, *NOT_UPCYCLED)]
    names.sort(key=lambda name: name == "context_length")  # last: others decide it
    for name in names:
        ours, theirs = getattr(config.model, name), getattr(dense.model, name)
        if ours != theirs:
            yield f"model.{name}", ours, theirs
    if isinstance(config.task, SpanCorruption) and isinstance(dense.task, SpanCorruption):
        ours, theirs = config.task.num_sentinels, dense.task.num_sentinels
        if ours != theirs:  # each is a row of the embedding
            yield "task.num_sentinels", ours, theirs


def _held_out(config: RunConfig) -> dict[str, Any]:
    """Where the data are from, and the settings that say what is not learned from."""
    names = ("data.name", "data.path", "data.exclude", *HELD_OUT)
    return {name: getattr(config.data, name.removeprefix("data."), None) for name in names}


def memory_bytes(costs: Cost, on_gpu: bool = False) -> int:
    """The main memory that a run's process is expected to take; if it trains on a GPU, for the weights as they are made."""
    return int(PROCESS_BYTES + (4 * costs.num_params if on_gpu else costs.state_bytes + costs.activation_bytes))


def shortage(plan: Plan) -> str | None:
    """What to be told of a run that is expected to take more memory than is free; None: it fits, or a GPU may hold it."""
    need, free = memory_bytes(plan.cost), available_memory_bytes()
    if free is None or need <= free or (plan.config.train.device != "cpu" and visible_gpus()):
        return None
    return f"about {count(need)}B of memory are needed, {count(free)}B are free. {_LESS_MEMORY}"


def check_memory(plans: Iterable[Plan], force: bool = False) -> None:
    """Raises ConfigError for a run that needs far more memory than this machine has, unless it is forced.

    The system may grant what is not there, page by page, and the process then hears no signal until it is killed.
    """
    for plan in () if force else plans:
        if why := _far_too_much(plan.config, plan.cost):
            raise ConfigError(f"{why}\nTo try it all the same: --force-memory")


def check_step_memory(config: RunConfig, vocab_size: int) -> None:
    """The same for a single step of a configuration, which no data are read for."""
    if why := _far_too_much(config, cost(config, vocab_size)):
        raise ConfigError(why)


def _far_too_much(config: RunConfig, costs: Cost) -> str | None:
    """What to say of a run that needs far more memory than this machine has; None: it does not, or a GPU may hold it."""
    total = total_memory_bytes()
    need = memory_bytes(costs) + int((config.launch.num_processes - 1) * PROCESS_BYTES)
    if total is None or need <= FAR_TOO_MUCH * total or (config.train.device != "cpu" and visible_gpus()):
        return None
    return f"{config.run_id}: about {count(need)}B of memory are needed, and this machine has {count(total)}B. {_LESS_MEMORY}"


def cautions(plan: Plan, device: str) -> tuple[str, ...]:
    """Notes on a run before it starts on a `cpu` or `cuda` device: too little memory, busy cores, a slow start."""
    compiled = compiles(plan.config, vocab_of(plan.config, plan.corpus), device)
    slow = _about_compiling(plan.config) if compiled else None
    return tuple(filter(None, (shortage(plan), crowding(plan.threads), slow)))


def _about_compiling(config: RunConfig) -> str:
    if config.train.compile == "auto" and not has_compiler():
        return "there is no C++ compiler here: training goes without torch.compile."
    return "torch.compile takes half a minute at the start. Without it: train.compile=off"


def memory_of(config: RunConfig, outputs: Path, on_gpu: bool = False) -> int:
    """The same for a configuration. Raises DataError, ConfigError: it cannot be run at all."""
    return memory_bytes(cost(config, vocab_of(config, corpus_of(config, outputs))), on_gpu)


def _make_plan(config: RunConfig, corpus: Data, flops_per_second: float) -> Plan:
    vocab_size = vocab_of(config, corpus)
    threads = pick_threads(config, vocab_size)
    costs = cost(config, vocab_size)
    steps = training_steps(config, vocab_size)
    step = step_work(config, costs).seconds(flops_per_second, threads)
    training = 60 * (config.train.minutes or 0) if steps is None else steps * step
    seconds = sum(
        times * evaluation_work(config, costs, tokens).seconds(flops_per_second, threads)
        for tokens, times in evaluations(config, _val_tokens(config, corpus), training / step)
    )
    return Plan(config, corpus, costs, steps, training + seconds, threads)


@dataclass(frozen=True)
class Work:
    """FLOPs that threads share, and those of one thread while the others wait."""

    shared: float
    alone: float

    def seconds(self, flops_per_second: float, threads: int) -> float:
        return (self.shared / threads + self.alone) / flops_per_second


def step_work(config: RunConfig, costs: Cost) -> Work:
    """Of one optimizer step."""
    products = costs.model_flops_per_token * config.tokens_per_step / PRODUCT_EFFICIENCY
    return Work(products + costs.optimizer_flops_per_step, config.train.grad_accumulation * _batch_flops(config, costs))


def evaluation_work(config: RunConfig, costs: Cost, tokens: int) -> Work:
    """Of an evaluation on so many tokens."""
    batches = math.ceil(tokens / (config.train.batch_size * config.eval_length))
    counting = tokens * costs.num_sparse_layers * COUNTING_FLOPS
    return Work(tokens * costs.forward_flops_per_token / PRODUCT_EFFICIENCY,
                batches * _batch_flops(config, costs) / 3 + counting)  # fmt: skip


def _batch_flops(config: RunConfig, costs: Cost) -> float:
    """What training on a batch takes beside products."""
    layers, sparse = config.model.num_layers, costs.num_sparse_layers
    return (1 + layers) * LAYER_FLOPS + sparse * (SPARSE_FLOPS + config.expert * EXPERT_FLOPS)


def evaluations(config: RunConfig, val_tokens: int, steps: float) -> list[tuple[int, int]]:
    """How many tokens are looked at how many times: in the course of so many steps, and of the whole split at the end."""
    every = config.train.eval_every
    looks = min(EVALUATIONS, math.ceil(steps) - 1) if every is None else math.ceil(steps / every) - 1
    found = [(min(val_tokens, config.train.eval_tokens), max(0, looks)), (val_tokens, 2 if config.capacity else 1)]
    if isinstance(config.task, MaskedLM) and config.task.pseudo_perplexity_tokens:
        found.append((min(val_tokens, config.task.pseudo_perplexity_tokens) * config.eval_length, 1))
    return found


def _val_tokens(config: RunConfig, corpus: Data) -> int:
    """Tokens read of the validation split, so often as windows overlap: of images, patches; of pairs, one for each task."""
    if isinstance(corpus, Images):
        return int(corpus.meta["val_images"]) * config.model.context_length
    if isinstance(corpus, Ratings):
        return int(corpus.meta["val_pairs"]) * config.model.context_length
    return int(corpus.meta["val_tokens"]) * config.eval_length // config.eval_stride


def compiles(config: RunConfig, vocab_size: int, device: str) -> bool:
    """Whether training on a `cpu` or `cuda` device goes through torch.compile; `auto` is for long trainings on a CPU.

    Decided by the configuration alone: compiled code has other last digits.
    """
    if config.train.compile != "auto":
        return config.train.compile == "on"
    if config.launch.num_processes > 1 or device != "cpu":
        return False
    steps = training_steps(config, vocab_size)
    if steps is None:
        return (config.train.minutes or 0) >= COMPILE_MINUTES
    return steps * cost(config, vocab_size).flops_per_step >= COMPILE_FLOPS


def has_compiler() -> bool:
    """Whether there is a C++ compiler, without which torch.compile cannot do on a CPU."""
    return any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++"))


def measure_flops() -> float:
    """FLOPs per second of one core on a small matrix product, measured in a few thousandths of a second.

    With numpy, not torch: a plan must not wait for torch to be imported. Small, so that numpy starts no threads, which
    would go on spinning beside torch's.
    """
    import numpy as np

    a = np.ones((64, 64), np.float32)
    best = float("inf")
    for _ in range(200):
        started = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - started)
    return 2 * 64**3 / best
