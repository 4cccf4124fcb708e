"""run_one(run) -> Run: build, train, evaluate, record, survive errors. Also the entry of a sweep's workers:

python -m moe_cli.run RUN_FOLDER OUTPUTS
"""

import importlib.metadata
import math
import os
import platform
import resource
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from moe_cli.config.schema import RunConfig
from moe_cli.errors import CheckpointError, MoeError, RunBusy, TrainingError
from moe_cli.forecast import check_upcycle, corpus_of, pin_upcycle
from moe_cli.memory import keep_freed_memory
from moe_cli.models.cost import cost, training_steps
from moe_cli.store import (
    FAILED,
    INTERRUPTED,
    RUNNING,
    Recorder,
    Run,
    create_run,
    lock,
    outputs_folder,
    write_text,
)
from moe_cli.tasks.corpora import Corpus

# Exit codes of a worker.
DONE, WRONG, BUSY, STOPPED = 0, 1, 4, 130
_PACKAGES = ("moe-cli", "torch", "numpy", "hydra-core", "omegaconf", "safetensors")


def pick_threads(config: RunConfig) -> int:
    """train.threads, else the cores that are idle now, at least one.

    More threads than idle cores wait for each other at every matrix product: on a busy machine two threads were seen to
    be 20 times slower than one. The number may change the last digits of results, so a run keeps it when it is resumed.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if config.train.threads is not None:
        return config.train.threads
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdigit() and int(given) > 0:
        return int(given)
    return max(1, min(cores, round(cores - _busy_cores())))


def _busy_cores() -> float:
    """How many cores are at work, over a tenth of a second; 0 where the system does not tell."""
    try:
        before = _cpu_ticks()
        time.sleep(0.1)
        after = _cpu_ticks()
    except (OSError, ValueError, IndexError):
        return 0.0
    idle, total = after[0] - before[0], after[1] - before[1]
    return (1 - idle / total) * (os.cpu_count() or 1) if total > 0 else 0.0


def _cpu_ticks() -> tuple[int, int]:
    """Idle and total processor time since the start of a Linux system."""
    with open("/proc/stat", encoding="ascii") as file:
        ticks = [int(word) for word in file.readline().split()[1:]]
    return ticks[3] + ticks[4], sum(ticks[:8])


def run_one(run: Run, outputs: Path, observer: Any = None) -> Run:
    """Carries a run out in its folder, from its last checkpoint if it has one, else from the start.

    Args:
        observer: called with a `training.state.StepView` after every step.

    Raises:
        MoeError: anything the user can mend; it also stands in status.json.
    """
    with lock(run.path):
        if run.summary() is not None:
            return run
        recorder = Recorder(run)
        try:
            _carry_out(run, outputs, recorder, observer or (lambda view: None))
        except BaseException as error:
            error = _out_of_memory(error) or error
            _record_failure(run, recorder, error)
            raise error
    return run


def _carry_out(run: Run, outputs: Path, recorder: Recorder, observer: Any) -> None:
    import torch

    from moe_cli.models.gpt import make_model
    from moe_cli.tasks.text import TextTask
    from moe_cli.training.checkpoint import latest_checkpoint
    from moe_cli.training.loop import Training
    from moe_cli.training.optim import make_optimizers
    from moe_cli.training.upcycle import upcycle

    config = run.config()
    recorder.status(RUNNING, started=time.time(), reason=None)
    (run.path / "traceback.txt").unlink(missing_ok=True)
    device = pick_device(config.train.device)
    torch.set_num_threads(pick_threads(config))
    corpus = corpus_of(config, outputs)
    task = TextTask(corpus, config.model.context_length, config.seed)
    model = make_model(config, task.vocab_size).to(device)
    steps = training_steps(config, task.vocab_size)
    training = Training(config, model, task, make_optimizers(config.optim, model), recorder, steps, observer)
    if run.checkpoints():
        checkpoint = latest_checkpoint(run)
        _check_same_corpus(run, checkpoint.state, corpus)
        training.resume(checkpoint)
    else:
        if source := check_upcycle(config, outputs):
            upcycle(model, source)
        torch.manual_seed(config.seed)
        recorder.rewind(-1)
        recorder.meta(describe_environment(corpus))
    if not training.run():
        recorder.status(INTERRUPTED, step=training.state.step, steps=steps, reason="stopped; its checkpoint is saved")
        return
    with training.averaged():
        recorder.complete(_summarise(run, config, corpus, training))


@dataclass(frozen=True)
class Trained:
    """A model as one of its run's checkpoints holds it, in evaluation mode, with its task."""

    config: RunConfig
    model: Any
    task: Any
    step: int


def restore(run: Run, outputs: Path, which: str = "latest") -> Trained:
    """The model of a run as a checkpoint holds it: `latest`, `best` or that of a step.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged.
        DataError: its data are gone.
    """
    from moe_cli.models.gpt import make_model
    from moe_cli.tasks.text import TextTask
    from moe_cli.training.checkpoint import find_checkpoint

    config = run.config()
    checkpoint = find_checkpoint(run, which)
    corpus = corpus_of(config, outputs)
    _check_same_corpus(run, checkpoint.state, corpus)
    task = TextTask(corpus, config.model.context_length, config.seed)
    model = make_model(config, task.vocab_size)
    checkpoint.load_model(model)
    return Trained(config, model.to(pick_device(config.train.device)).eval(), task, checkpoint.state["step"])


def _check_same_corpus(run: Run, state: dict[str, Any], corpus: Corpus) -> None:
    if state["corpus_sha256"] != corpus.meta["sha256"]:
        raise CheckpointError(f"{run.id} was trained on other data: {corpus.meta['source']} has changed since.")


def _summarise(run: Run, config: RunConfig, corpus: Corpus, training: Any) -> dict[str, Any]:
    """The results: one evaluation over the whole validation split, and what it took to get there."""
    from moe_cli.training.evaluate import MEASURES, evaluate

    size = config.train.batch_size
    model, task, state = training.model, training.task, training.state
    look = partial(evaluate, model, task, size, top_k=config.eval.k, precision=config.train.precision)
    result = look(capacity_factor=config.eval.capacity)
    routing: dict[str, float | None] = {**dict.fromkeys(MEASURES), **(result.routing_metrics() or {})}
    limited = look(capacity_factor=config.capacity) if config.capacity else None
    if not math.isfinite(result.loss):
        raise TrainingError(f"the validation loss is {result.loss} at the end of training. Try a lower optim.lr.")
    if limited:  # what the capacity that the model was trained with drops; the loss beside it is dropless
        routing["dropped_fraction"] = (limited.routing_metrics() or {})["dropped_fraction"]
    routing["router_saturation"] = _record_final_routing(run, training, result)
    costs = cost(config, task.vocab_size)
    losses = [record["train/loss"] for record in run.metrics() if "train/loss" in record]
    return {
        "run": run.id, "status": "completed", "expert": config.expert, "k": config.k, "capacity": config.capacity,
        "router": config.router.name if config.router else None,
        "balance": config.balance.name if config.balance else None,
        "seed": config.seed, "params": costs.num_params, "active_params": costs.num_active_params,
        "flops_per_token": costs.flops_per_token, "forward_flops_per_token": costs.forward_flops_per_token,
        "val_loss": result.loss, "val_bpb": result.bits_per_byte, "val_perplexity": result.perplexity,
        "val_tokens": result.num_tokens, "val_bytes": result.num_bytes,
        "dispatch": _backend(config, training.layers),
        "capacity_val_loss": limited.loss if limited else None, "train_loss": losses[-1] if losses else None, **routing,
        "skipped_steps": state.skipped, "rewinds": state.rewinds, "loss_spikes": state.spikes,
        "steps": state.step, "tokens": state.tokens, "seconds": round(state.seconds, 3),
        "tokens_per_second": round(state.tokens / state.seconds, 1), "peak_memory_bytes": peak_memory_bytes(),
        "bigram_bpb": corpus.meta["bigram_bpb"], "gzip_bpb": corpus.meta["gzip_bpb"], "corpus": corpus.meta["name"],
        "corpus_sha256": corpus.meta["sha256"],
    }  # fmt: skip


def _backend(config: RunConfig, layers: Any) -> str | None:
    """What computed the experts in training: with dispatch=auto the pick for batches of this size."""
    import torch

    from moe_cli.moe.dispatch import choose_backend, make_regime
    from moe_cli.training.precision import pick_precision

    if not layers or config.model.dispatch != "auto":
        return config.model.dispatch if layers else None
    experts = layers[0].experts
    precision = pick_precision(config.train.precision, experts.w_in.device)
    rows = config.train.batch_size * config.model.context_length * (config.k or 1) / config.expert
    return choose_backend(make_regime(experts, getattr(torch, precision), rows))


def _record_final_routing(run: Run, training: Any, result: Any) -> float | None:
    """Writes each layer's use over the whole split; gives how far routing had settled halfway, None if nobody looked."""
    from moe_cli.training.evaluate import probe, saturations

    step = training.state.step
    config = training.config
    final = probe(training.model, training.task, config.eval.k, config.train.precision)
    settled = saturations(run.routing(), final)
    for record, saturation in zip(result.layer_records(tables=True), settled, strict=True):
        training.recorder.routing({"step": step, "whole_split": True, **record, "saturation": saturation})
    if not settled or not settled[0]:
        return None
    halfway = min(settled[0], key=lambda looked: abs(looked - step / 2))
    return sum(layer[halfway] for layer in settled) / len(settled)


def peak_memory_bytes() -> int:
    """The most main memory this process has held."""
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def pick_device(name: str) -> Any:
    """The torch device of train.device. Raises MoeError when it is not there."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise MoeError(f"train.device={name}: torch sees no GPU here. Use train.device=cpu")
    device = torch.device(name)
    if (device.index or 0) >= torch.cuda.device_count() > 0:
        raise MoeError(f"train.device={name}: torch sees {torch.cuda.device_count()} GPUs, numbered from 0.")
    return device


def describe_environment(corpus: Corpus) -> dict[str, Any]:
    """Where and with what a run was made: command line, code, packages, hardware, corpus."""
    import torch

    return {
        "argv": sys.argv,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "git": _git_state(Path(__file__).resolve().parents[1]),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "corpus": {key: corpus.meta[key] for key in ("name", "source", "sha256", "num_bytes", "num_documents")},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_state(folder: Path) -> dict[str, str] | None:
    """Commit and uncommitted change of a checkout; None for an installed package."""
    if not (folder / ".git").exists():
        return None
    try:
        texts = [
            subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=5, check=True).stdout
            for words in (["rev-parse", "HEAD"], ["diff", "HEAD"])
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": texts[0].strip(), "diff": texts[1][:100_000]}


def _out_of_memory(error: BaseException) -> TrainingError | None:
    """The error in words a user can act on, if that is what happened; torch says it differently on CPU and GPU."""
    text = str(error).lower()
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
        return TrainingError("out of memory. Lower train.batch_size, model.context_length or the model's size.")
    return None


def _record_failure(run: Run, recorder: Recorder, error: BaseException) -> None:
    """Leaves the reason in the run folder; a disk too full for that must not hide the error itself."""
    # rich exits when nobody reads what it prints: `moe train | head` has stopped the run, the run has not failed.
    interrupted = isinstance(error, KeyboardInterrupt | SystemExit)
    reason = str(error).split("\n")[0] if isinstance(error, MoeError) else f"{type(error).__name__}: {error}"
    try:
        recorder.status(INTERRUPTED if interrupted else FAILED, reason="stopped at once" if interrupted else reason)
        if not interrupted:
            write_text(run.path / "traceback.txt", "".join(traceback.format_exception(error)))
    except OSError:
        pass


def train(overrides: Sequence[str] = (), *, outputs: Path | None = None) -> Run:
    """Trains one configuration, as `moe train` does, and gives its run.

    Args:
        overrides: settings such as "expert=8", "k=2".
        outputs: where runs are kept; None: $MOE_OUTPUTS or ./outputs.

    Raises:
        MoeError: a setting or the data are wrong, or training failed.
    """
    from moe_cli.config.load import load_config

    folder = outputs_folder(outputs)
    config = pin_upcycle(load_config(overrides).config, folder)
    return run_one(create_run(folder, "runs", config), folder)


def main(run_folder: str, outputs: str) -> int:
    """A sweep's worker. Its exit code: DONE, WRONG with the reason in the folder, STOPPED, or BUSY."""
    run = Run(Path(run_folder))
    try:
        run_one(run, Path(outputs))
    except RunBusy as error:
        print(error, file=sys.stderr)  # noqa: T201
        return BUSY
    except MoeError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return WRONG
    return DONE if run.summary() else STOPPED


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main(*sys.argv[1:]))
