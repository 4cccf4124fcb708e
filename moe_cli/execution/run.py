"""Executes one run: builds, trains, evaluates and records it."""

import gc
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from moe_cli.config.loggers import LOGGERS, loggers_of
from moe_cli.config.schema import RunConfig
from moe_cli.costs.model import training_steps
from moe_cli.data.load import Data
from moe_cli.distributed.launch import is_distributed, job_id, launch, rank, world_size
from moe_cli.errors import CheckpointError, LostProcess
from moe_cli.execution.compilation import has_compiler, should_compile
from moe_cli.execution.data import check_same_data, load_run_data, model_vocab_size
from moe_cli.execution.failures import record_failure, resume_hint, translate_exception
from moe_cli.execution.machine import describe_environment, machine_name, pick_device, pick_threads
from moe_cli.execution.summary import summarise
from moe_cli.execution.trained_model import with_decided_precision
from moe_cli.execution.upcycling import check_upcycle
from moe_cli.files.writing import delete, guard
from moe_cli.loggers.logging_recorder import check_loggers, make_recorder
from moe_cli.plugins import origin_of
from moe_cli.runs.corpora import check_corpus
from moe_cli.runs.folder import INTERRUPTED, RUNNING, Run
from moe_cli.runs.locks import claim_run
from moe_cli.runs.recorder import NullRecorder, Recorder


def run_one(run: Run, outputs: Path, observer: Any = None) -> Run:
    """Trains and evaluates a run in its folder, from its last checkpoint if it has one.

    Args:
        observer: called with a `training.state.StepReport` after every step.

    Raises:
        RunBusy: another process executes the run.
        MoeError: the run failed for a reason that the user can change; status.json also has the reason.
    """
    guard(outputs)
    if run.summary() is not None:
        return run
    config = with_launched_world_size(run.config())
    if config.launch.num_processes > 1 and not is_distributed():
        return run_launched(run, ["-m", "moe_cli.execution.worker", str(run.path), str(outputs)], config)
    # Only rank 0 locks the folder and writes to it.
    with claim_run(run) if rank() == 0 else nullcontext():
        recorder = make_recorder(run, config, outputs) if rank() == 0 else NullRecorder(run)
        try:
            _train_and_record(run, config, outputs, recorder, observer or (lambda view: None))
        except BaseException as error:
            known = translate_exception(run, error)
            if known is not None:
                known.__cause__ = error  # the traceback in the run folder has it
            if rank() == 0:
                record_failure(run, recorder, known or error)
            if known is None:
                raise
            raise known from error
    _leave_process_group()
    return run


def run_launched(run: Run, arguments: Sequence[str], config: RunConfig) -> Run:
    """Executes a run in config.launch.num_processes processes `python WORDS`. Raises the exceptions of `launch`."""
    try:
        launch(arguments, config.launch)
    except LostProcess as error:
        raise LostProcess(f"{error} For {run.id}, {run.kept()}.\n{resume_hint(run)}") from None
    return run


def with_launched_world_size(config: RunConfig) -> RunConfig:
    """Returns the configuration with the number of processes that a launcher has started.

    Raises ConfigError if the configuration is impossible with this number.
    """
    return replace(config, launch=replace(config.launch, num_processes=world_size())) if is_distributed() else config


def _train_and_record(run: Run, config: RunConfig, outputs: Path, recorder: Recorder, observer: Any) -> None:
    import torch

    from moe_cli.distributed import collectives
    from moe_cli.models.registry import make_model
    from moe_cli.tasks.registry import make_task
    from moe_cli.training.checkpoint import newest_valid_checkpoint
    from moe_cli.training.distributed_model import DistributedModel
    from moe_cli.training.optimizers import make_optimizers
    from moe_cli.training.trainer import Trainer
    from moe_cli.training.upcycle import upcycle

    starts = run.status().get("starts")
    recorder.status(
        RUNNING, started=time.time(), starts=1 + starts if isinstance(starts, int) else 1, reason=None, job=job_id()
    )
    if rank() == 0:
        delete(run.path / "traceback.txt", missing_ok=True)
    check_loggers(config.log)
    device = pick_device(config.train.device)
    collectives.init_process_group()
    corpus = _load_data_rank0_first(config, outputs)
    check_corpus(run, config.data, corpus.meta)
    task = make_task(config, corpus)
    vocab_size = model_vocab_size(config, corpus)
    torch.set_num_threads(pick_threads(config, vocab_size))
    model = make_model(config, vocab_size).to(device)
    steps = training_steps(config, vocab_size)
    checkpoints = run.checkpoints()
    if not checkpoints and (source := check_upcycle(config, outputs)):
        upcycle(model, source, config.seed, noise=config.train.upcycle_noise, drop=config.train.upcycle_drop)
    config = with_decided_precision(run, config, device)
    compiled = _is_compiled(run, config, vocab_size, device)
    distributed_model = DistributedModel(config.launch, model, compiled)
    optimizers = make_optimizers(config.optim, model)
    trainer = Trainer(config, distributed_model, task, optimizers, recorder, steps, observer)
    if checkpoints:
        checkpoint = newest_valid_checkpoint(run)
        check_same_data(run, checkpoint.state, corpus)
        _check_same_config(run, checkpoint.state, config)
        trainer.resume(checkpoint)
        if run.meta().get("machine") != machine_name(device.type):
            recorder.meta({**run.meta(), "machine": None})  # its seconds are those of several machines
    else:
        torch.manual_seed(config.seed + rank())
        recorder.rewind(-1)
        decided = {
            "precision": config.train.precision,
            "compile": compiled,
            "device": device.type,
            "machine": machine_name(device.type),
        }
        plugins = {"plugins": found} if (found := used_plugins(config)) else {}
        recorder.meta(describe_environment(corpus) | decided | plugins)
    if trainer.run():
        with trainer.averaged():
            recorder.complete(summarise(run, config, corpus, trainer))
    else:
        recorder.status(INTERRUPTED, step=trainer.state.step, steps=steps, reason=f"stopped; {run.kept()}")


def used_plugins(config: RunConfig) -> dict[str, dict[str, str]]:
    """Returns where the plug-ins of a run come from, by group and name: those of its identity, and its loggers."""
    own = (name for name in loggers_of(config.log) if name not in LOGGERS)
    loggers = {name: str(origin_of("log", name)) for name in own}
    return config.plugins() | ({"log": loggers} if loggers else {})


def _is_compiled(run: Run, config: RunConfig, vocab_size: int, device: Any) -> bool:
    """Returns whether to compile.

    With `auto`, a resumed run keeps the decision of its start, and a new run compiles only if there is a compiler.
    """
    import torch

    compiled = should_compile(config, vocab_size, device.type)
    if compiled and config.train.compile == "auto":
        torch._dynamo.config.suppress_errors = True  # code that cannot be compiled runs eagerly
        return bool(run.meta().get("compile", True)) if run.checkpoints() else has_compiler()
    return compiled


def _leave_process_group() -> None:
    """Destroys the process group when all ranks have finished. The model, which holds the group, is collected first."""
    from moe_cli.distributed import collectives

    if is_distributed():
        gc.collect()
        collectives.barrier()
        collectives.destroy_process_group()


def _load_data_rank0_first(config: RunConfig, outputs: Path) -> Data:
    """Loads the data; if they must be built, rank 0 builds them while the other ranks wait."""
    from moe_cli.distributed import collectives

    if rank() > 0:
        collectives.barrier()
        return load_run_data(config, outputs)
    corpus = load_run_data(config, outputs)
    collectives.barrier()
    return corpus


def _check_same_config(run: Run, state: dict[str, Any], config: RunConfig) -> None:
    if state.get("digest") != config.digest:
        raise CheckpointError(
            f"{run.id} was started with other settings or another version of moe: "
            f"{run.path / 'config.json'} has changed, and {state.get('digest')} is now {config.digest}.\n"
            "Restore the file, or train again: moe train"
        )
