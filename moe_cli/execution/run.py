"""run_one(run) -> Run: build, train, evaluate, record, survive errors. Also the entry of a sweep's workers:

python -m moe_cli.execution.run RUN_FOLDER OUTPUTS
"""

import errno
import gc
import math
import os
import re
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from moe_cli.config.layer_costs import assignments_per_token
from moe_cli.config.schema import RunConfig
from moe_cli.costs.model import cost, training_steps
from moe_cli.data.load import Data, judged_by_test, other_reading
from moe_cli.distributed.launch import by_us, job, launch, launched, leave, processes, rank
from moe_cli.errors import CheckpointError, DiskFull, LostProcess, MoeError, RunBusy, TrainingError
from moe_cli.execution.forecast import check_upcycle, compiles, corpus_of, corpus_to_read, has_compiler, vocab_of
from moe_cli.execution.machine import describe_environment, peak_memory_bytes, pick_device, pick_threads
from moe_cli.execution.runtime_tuning import keep_freed_memory, spin_briefly
from moe_cli.files.writing import delete, guard, is_full, write_text
from moe_cli.formatting import print_line
from moe_cli.loggers.recorder import check_loggers, make_recorder
from moe_cli.runs.folder import (
    FAILED,
    INTERRUPTED,
    RUNNING,
    Onlooker,
    Recorder,
    Run,
    lock,
)
from moe_cli.runs.tags import check_corpus
from moe_cli.training.signals import follow

# Exit codes of a worker. BUSY: it did not do the run, which may be asked for again; FULL: no space is left to write.
DONE, WRONG, BUSY, FULL, STOPPED = 0, 1, 4, 5, 130
# How messages of torch begin that have no type of their own: those of its allocators, and those of gloo.
_NO_MEMORY = re.compile(
    r"\[enforce fail at alloc_cpu\.cpp:\d+\] .*DefaultCPUAllocator: can't allocate memory: "
    r"|CUDA error: (out of memory|CUBLAS_STATUS_ALLOC_FAILED)|MPS backend out of memory"
)
_GLOO = re.compile(r"\[\S*gloo/\S+:\d+\] |Gloo connectFullMesh failed|Application timeout caused pair closure$")
# The process id of a worker's parent, without which it should not go on.
PARENT = "MOE_PARENT"


def run_one(run: Run, outputs: Path, observer: Any = None) -> Run:
    """Carries a run out in its folder, from its last checkpoint if it has one, else from the start.

    Args:
        observer: called with a `training.state.StepView` after every step.

    Raises:
        MoeError: anything the user can mend; it also stands in status.json.
    """
    guard(outputs)
    if run.summary() is not None:
        return run
    config = for_this_job(run.config())
    if config.launch.procs > 1 and not launched():
        return run_launched(run, ["-m", "moe_cli.execution.run", str(run.path), str(outputs)], config)
    # Of several processes the first holds the folder, and writes for all.
    with lock(run.path) if rank() == 0 else nullcontext():
        if rank() == 0 and run.summary() is not None:
            raise RunBusy(f"{run.id} has just been completed by another process: there is nothing left to do.")
        recorder = make_recorder(run, config, outputs) if rank() == 0 else Onlooker(run)
        try:
            _carry_out(run, config, outputs, recorder, observer or (lambda view: None))
        except BaseException as error:
            error = _in_our_words(run, error) or error
            if rank() == 0:
                _record_failure(run, recorder, error)
            raise error
    _part_ways()
    return run


def run_launched(run: Run, words: Sequence[str], config: RunConfig) -> Run:
    """The same by `python WORDS` in config.launch.procs processes. Raises TrainingError, KeyboardInterrupt: see `launch`."""
    try:
        launch(words, config.launch)
    except LostProcess as error:
        raise LostProcess(f"{error} For {run.id}, {run.kept()}.\n{_go_on(run)}") from None
    return run


def for_this_job(config: RunConfig) -> RunConfig:
    """The configuration for the processes that a launcher has started, if one has. Raises ConfigError: it cannot be."""
    return replace(config, launch=replace(config.launch, procs=processes())) if launched() else config


def _carry_out(run: Run, config: RunConfig, outputs: Path, recorder: Recorder, observer: Any) -> None:
    import torch

    from moe_cli.distributed import collectives
    from moe_cli.models.registry import make_model
    from moe_cli.tasks.registry import make_task
    from moe_cli.training.checkpoint import newest_whole
    from moe_cli.training.optimizers import make_optimizers
    from moe_cli.training.trainer import Training
    from moe_cli.training.upcycle import upcycle
    from moe_cli.training.wrap import Parallel

    starts = run.status().get("starts")
    recorder.status(
        RUNNING, started=time.time(), starts=1 + starts if isinstance(starts, int) else 1, reason=None, job=job()
    )
    if rank() == 0:
        delete(run.path / "traceback.txt", missing_ok=True)
    check_loggers(config.log)
    device = pick_device(config.train.device)
    collectives.init_process_group()
    corpus = _corpus_of_all(config, outputs)
    check_corpus(run, config.data, corpus.meta)
    task = make_task(config, corpus)
    vocab_size = vocab_of(config, corpus)
    torch.set_num_threads(pick_threads(config, vocab_size))
    model = make_model(config, vocab_size).to(device)
    steps = training_steps(config, vocab_size)
    checkpoints = run.checkpoints()
    if not checkpoints and (source := check_upcycle(config, outputs)):
        upcycle(model, source)
    config = as_decided(run, config, device)
    compiled = _is_compiled(run, config, vocab_size, device)
    parts = Parallel(config.launch, model, compiled)
    training = Training(config, parts, task, make_optimizers(config.optim, model), recorder, steps, observer)
    if checkpoints:
        checkpoint = newest_whole(run)
        _check_same_corpus(run, checkpoint.state, corpus)
        _check_same_config(run, checkpoint.state, config)
        training.resume(checkpoint)
    else:
        torch.manual_seed(config.seed + collectives.rank())
        recorder.rewind(-1)
        decided = {"precision": config.train.precision, "compile": compiled, "device": device.type}
        recorder.meta(describe_environment(corpus) | decided)
    if training.run():
        with training.averaged():
            recorder.complete(_summarise(run, config, corpus, training))
    else:
        recorder.status(INTERRUPTED, step=training.state.step, steps=steps, reason=f"stopped; {run.kept()}")


def as_decided(run: Run, config: RunConfig, device: Any) -> RunConfig:
    """The configuration with its precision decided: where the run first started, and kept from then on.

    The configuration of the run folder keeps `auto`: a sweep names its runs before the device of each is known.
    """
    from moe_cli.training.precision import pick_precision

    precision: Any = config.train.precision
    if precision == "auto" and run.checkpoints():
        precision = run.meta().get("precision", "auto")
    return replace(config, train=replace(config.train, precision=pick_precision(precision, device)))


def _is_compiled(run: Run, config: RunConfig, vocab_size: int, device: Any) -> bool:
    """Whether to compile; with `auto` as the run began, and not without a compiler."""
    import torch

    compiled = compiles(config, vocab_size, device.type)
    if compiled and config.train.compile == "auto":
        torch._dynamo.config.suppress_errors = True  # what cannot be compiled runs as it is
        return bool(run.meta().get("compile", True)) if run.checkpoints() else has_compiler()
    return compiled


def _part_ways() -> None:
    """Leaves the other processes, when all are done and nothing of the model, which held on to them, is left."""
    from moe_cli.distributed import collectives

    if collectives.world_size() > 1:
        gc.collect()
        collectives.barrier()
        collectives.destroy_process_group()


def _corpus_of_all(config: RunConfig, outputs: Path) -> Data:
    """The corpus, made by the first process where it has to be made."""
    from moe_cli.distributed import collectives

    if collectives.rank() == 0:
        corpus = corpus_of(config, outputs)
        collectives.barrier()
        return corpus
    collectives.barrier()
    return corpus_of(config, outputs)


@dataclass(frozen=True)
class Trained:
    """A model as one of its run's checkpoints holds it, in evaluation mode, with its task."""

    config: RunConfig
    model: Any
    task: Any
    step: int


def restore(run: Run, outputs: Path, which: str = "latest", split: str = "val") -> Trained:
    """The model of a run as a checkpoint holds it: `latest`, `best` or that of a step.

    Args:
        split: what it will be judged by, `val` or `test`.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged.
        DataError: its data are gone, or have no test split.
    """
    from moe_cli.models.registry import make_model
    from moe_cli.tasks.registry import make_task
    from moe_cli.training.checkpoint import find_checkpoint

    checkpoint = find_checkpoint(run, which)
    device = pick_device(run.config().train.device)
    config = as_decided(run, run.config(), device)
    corpus = corpus_to_read(config.data, config.model.context_length, outputs)
    _check_same_corpus(run, checkpoint.state, corpus)
    task = make_task(config, judged_by_test(corpus) if split == "test" else corpus)
    model = make_model(config, vocab_of(config, corpus))
    checkpoint.load_model(model)
    return Trained(config, model.to(device).eval(), task, checkpoint.state["step"])


def _check_same_corpus(run: Run, state: dict[str, Any], corpus: Data) -> None:
    if state.get("corpus_sha256") != corpus.meta["sha256"]:
        raise CheckpointError(f"{run.id} was trained on other data: {corpus.meta['source']} has changed since.")
    if (other := other_reading(run.meta().get("corpus"), corpus)) == "tokenizer":
        raise CheckpointError(
            f"{run.id} was trained with another tokenizer: data.tokenizer={run.config().data.tokenizer} is not what it was."
        )
    if other:
        raise CheckpointError(
            f"{run.id} was trained on another split of {corpus.meta['source']}: it may have learned from what is held out now."
        )


def _check_same_config(run: Run, state: dict[str, Any], config: RunConfig) -> None:
    if state.get("digest") != config.digest:
        raise CheckpointError(
            f"{run.id} was begun with other settings (or another version of moe): {run.path / 'config.json'} has changed "
            f"since, {state.get('digest')} is now {config.digest}.\nPut it back, or start anew: moe train"
        )


def _summarise(run: Run, config: RunConfig, corpus: Data, training: Any) -> dict[str, Any]:
    """The results: one evaluation over the whole validation split, and what it took to get there."""
    from moe_cli.distributed import collectives
    from moe_cli.metrics import LAYER_METRICS
    from moe_cli.training.evaluate import evaluate

    size = config.train.batch_size
    model, task, state = training.model, training.task, training.state
    look = partial(evaluate, model, top_k=config.eval.k, precision=config.train.precision)
    chosen = partial(look, capacity_factor=config.eval.capacity, drop=config.eval.drop)
    result = chosen(task, size)
    routing: dict[str, float | None] = {**dict.fromkeys(LAYER_METRICS), **(result.routing_metrics() or {})}
    limited = look(task, size, capacity_factor=config.capacity, drop=config.eval.drop) if config.drops else None
    hardest = task.hardest()
    pseudo = chosen(hardest, size).perplexity if hardest else None
    if not math.isfinite(result.loss):
        raise TrainingError(f"the validation loss is {result.loss} at the end of training. Try a lower optim.lr.")
    if limited:  # what the capacity that the model was trained with drops; the loss beside it is dropless
        routing["dropped_fraction"] = (limited.routing_metrics() or {})["dropped_fraction"]
    routing["router_saturation"] = _record_final_routing(run, training, result)
    costs = cost(config, vocab_of(config, corpus))
    train_loss = None
    for record in run.read_metrics():
        train_loss = record.get("train/loss", train_loss)
    return {
        "run": run.id, "status": "completed", "expert": config.expert, "k": config.k, "capacity": config.capacity,
        "router": config.router.name if config.router else None,
        "balance": config.balance.name if config.balance else None,
        "seed": config.seed, "params": costs.num_params, "active_params": costs.num_active_params,
        "flops_per_token": costs.flops_per_token, "forward_flops_per_token": costs.forward_flops_per_token,
        "model_flops_per_token": costs.model_flops_per_token, "optimizer_flops_per_step": costs.optimizer_flops_per_step,
        "val_loss": result.loss, "val_bpb": result.bits_per_byte, "val_perplexity": result.perplexity,
        **{f"val_{key}": value for key, value in result.measures.items()},
        **({"val_pseudo_perplexity": pseudo} if pseudo else {}),
        "val_tokens": result.num_tokens, "val_bytes": result.num_bytes,
        "dispatch": _backend(config, training.layers),
        "capacity_val_loss": limited.loss if limited else None,
        "capacity_val_drop": config.eval_drop if limited else None,
        "eval_context": result.mean_context, "train_loss": train_loss, **routing,
        "skipped_steps": state.skipped, "rewinds": state.rewinds, "loss_spikes": state.spikes,
        "steps": state.step, "tokens": state.tokens, "seconds": round(state.seconds, 3),
        "tokens_per_second": round(state.tokens / state.seconds, 1), "peak_memory_bytes": int(collectives.all_reduce_max(peak_memory_bytes())),
        "bigram_bpb": corpus.meta["bigram_bpb"], "gzip_bpb": corpus.meta["gzip_bpb"], "corpus": corpus.meta["name"],
        "corpus_sha256": corpus.meta["sha256"], **task.meta.get("references", {}),
    }  # fmt: skip


def _backend(config: RunConfig, layers: Any) -> str | None:
    """What computed the experts in training: with dispatch=auto the pick for batches of this size."""
    import torch

    from moe_cli.moe.backends.dispatch import choose_backend, make_regime

    if not layers or config.model.dispatch != "auto":
        return config.model.dispatch if layers else None
    experts = layers[0].experts
    rows = config.train.batch_size * config.model.context_length * assignments_per_token(config) / config.expert
    return choose_backend(make_regime(experts, getattr(torch, config.train.precision), rows))


def _record_final_routing(run: Run, training: Any, result: Any) -> float | None:
    """Writes each layer's use over the whole split; gives how far routing had settled halfway, None if nobody looked."""
    from moe_cli.training.evaluate import probe, saturations

    step = training.state.step
    config = training.config
    final = probe(training.model, training.task, config.eval.k, config.train.precision)
    settled = saturations(run.read_routing(), final)
    for record, saturation in zip(result.layer_records(tables=True), settled, strict=True):
        if "top_tokens" in record:
            ids = sorted({entry[0] for expert in record["top_tokens"] for entry in expert})
            record["token_texts"] = {str(each): text for each, text in training.task.texts(ids).items()}
        training.recorder.routing({"step": step, "whole_split": True, **record, "saturation": saturation})
    known = set(settled[0]).intersection(*settled) if settled else set()
    if not known:
        return None
    halfway = min(known, key=lambda looked: abs(looked - step / 2))
    return sum(layer[halfway] for layer in settled) / len(settled)


def _in_our_words(run: Run, error: BaseException) -> TrainingError | None:
    """What Python, torch and its libraries raise; a MoeError has words of its own."""
    if isinstance(error, MoeError):
        return None
    return _disk_full(run, error) or _out_of_memory(error) or _lost_process(run, error) or _not_compiled(error)


def _disk_full(run: Run, error: BaseException) -> DiskFull | None:
    if not is_full(error):
        return None
    from moe_cli.training.checkpoint import way_on

    reason = error.strerror if isinstance(error, OSError) else str(error)
    return DiskFull(f"cannot write to {run.path}: {reason}. {way_on(run, full=True)}")


def _out_of_memory(error: BaseException) -> TrainingError | None:
    """The error in words a user can act on, if memory ran out: known by its type, or by how torch's allocators begin."""
    import torch

    typed = isinstance(error, MemoryError | torch.OutOfMemoryError)
    typed |= isinstance(error, OSError) and error.errno == errno.ENOMEM
    if typed or (_is_of_torch(error) and _NO_MEMORY.match(str(error))):
        return TrainingError("out of memory. Lower train.batch_size, model.context_length or the model's size.")
    return None


def _is_of_torch(error: BaseException) -> bool:
    """Whether torch may have raised it: its C++ code has no types of its own for most of what can go wrong."""
    return type(error) is RuntimeError or type(error).__module__ == "torch"


def _not_compiled(error: BaseException) -> TrainingError | None:
    """What torch's compiler says in pages, such as that there is no C++ compiler."""
    if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return None
    reason = str(error).strip().split("\n")[0]
    return TrainingError(f"torch cannot compile this model: {reason}\nGo without: train.compile=off")


def _lost_process(run: Run, error: BaseException) -> LostProcess | None:
    """What torch.distributed raises when another process is gone; gloo's errors are plain RuntimeErrors."""
    if not launched():
        return None
    from torch.distributed import DistError

    if isinstance(error, DistError) or (type(error) is RuntimeError and _GLOO.match(str(error))):
        return LostProcess(f"another process of this training is gone; {run.kept()}.\n{_go_on(run)}")
    return None


def _go_on(run: Run) -> str:
    return f"Go on with: moe train --resume {run.id}"


def _record_failure(run: Run, recorder: Recorder, error: BaseException) -> None:
    """Leaves the reason in the run folder; a disk too full for that must not hide the error itself."""
    # rich exits when nobody reads what it prints: `moe train | head` has stopped the run, the run has not failed.
    interrupted = isinstance(error, KeyboardInterrupt | SystemExit | LostProcess | DiskFull)
    reason = str(error).split("\n")[0] if isinstance(error, MoeError) else f"{type(error).__name__}: {error}"
    try:
        stopped = interrupted and not isinstance(error, MoeError)
        recorder.status(INTERRUPTED if interrupted else FAILED, reason="stopped at once" if stopped else reason)
        if not interrupted:
            write_text(run.path / "traceback.txt", "".join(traceback.format_exception(error)))
    except OSError:
        pass


def main(run_folder: str, outputs: str) -> int:
    """A sweep's worker. Its exit code: DONE, WRONG with the reason in the folder, STOPPED, FULL or BUSY."""
    run = Run(Path(run_folder))
    try:
        run_one(run, Path(outputs))
    except KeyboardInterrupt:
        return STOPPED
    except (MoeError, OSError) as error:
        if not isinstance(error, MoeError) and not is_full(error):
            raise
        if str(error) and not (isinstance(error, LostProcess) and by_us()):
            with suppress(OSError):
                print_line(f"error: {error}")
        if isinstance(error, RunBusy):
            return BUSY
        return FULL if is_full(error) or isinstance(error, DiskFull) else WRONG
    return DONE if run.summary() or launched() else STOPPED


if __name__ == "__main__":
    spin_briefly()
    keep_freed_memory()
    if parent := os.environ.pop(PARENT, None):
        follow(int(parent))
    code = main(*sys.argv[1:])
    if launched():
        leave(code)
    sys.exit(code)
