"""Does an executor keep the contract of a pool? It starts, stops and kills real runs of a fraction of a second each."""

import time
from collections.abc import Callable
from pathlib import Path

from moe_cli.config.compose import load_config
from moe_cli.config.executors import Executor
from moe_cli.execution.worker import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK
from moe_cli.files.writing import make_folder, write_text
from moe_cli.plugins import Plugin
from moe_cli.runs.folder import Run, create_run
from moe_cli.runs.locks import is_locked
from moe_cli.sweeps.executors.make import make_pool
from moe_cli.sweeps.scheduler import Job, Pool
from moe_cli.testing.promise import expected_to_run, require

# The longest that a run may take to begin or end, and to end after `close`.
WAIT_SECONDS, CLOSE_SECONDS = 120.0, 30.0
TINY = (
    "expert=2",
    "k=1",
    "match=none",
    "data=text",
    "data.tokenizer=bytes",
    "optim=adamw",
    *(f"model.{size}" for size in ("num_layers=1", "d_model=16", "d_ff=16", "context_length=16")),
    *(f"train.{size}" for size in ("batch_size=2", "eval_tokens=64", "checkpoint_every=2", "threads=1", "device=cpu")),
)


def check_executor(executor: Plugin | Executor, outputs: Path) -> None:
    """Checks an executor with two places: exit codes, free places, stop with a checkpoint, kill, and close.

    Args:
        executor: a plug-in, or the settings of an executor.
        outputs: an empty folder that the executor's workers can reach.

    Raises:
        AssertionError: the first promise that is broken.
    """
    settings = executor
    if isinstance(executor, Plugin):
        assert executor.config is not None, f"{executor.name}: it is the plug-in of a logger, not of an executor."
        settings = executor.config()
    assert not isinstance(settings, Plugin)
    name = settings.name
    with expected_to_run(name, "making the pool"):
        pool = make_pool(settings, outputs, 2, [])
    try:
        _check_ends(name, pool, outputs)
        _check_stop_and_kill(name, pool, outputs)
        left = _run(outputs, seed=9, steps=100_000)
        _wait(name, "begin", _at_work(pool.start(left), left))
    finally:
        pool.close()
    _wait(name, "end when the pool is closed", lambda: not is_locked(left.path), CLOSE_SECONDS)


def _check_ends(name: str, pool: Pool, outputs: Path) -> None:
    """Checks the places of the pool, and the exit codes of a run that completes and of one that fails."""
    require(
        (pool.workers, pool.room()) == (2, 2), name, f"a pool of 2 has {pool.workers} workers and room {pool.room()}."
    )
    done, wrong = _run(outputs, seed=0, steps=4), _run(outputs, seed=1, steps=4)
    write_text(wrong.path / "config.json", "{}")
    jobs = [pool.start(done), pool.start(wrong)]
    require(pool.room() == 0, name, f"with both places taken the room is {pool.room()}.")
    _wait(name, "end", lambda: all(job.poll() is not None for job in jobs))
    codes = [job.poll() for job in jobs]
    require(codes[0] == EXIT_OK, name, f"a run that completes ends with {codes[0]}, not {EXIT_OK}.")
    require(done.summary() is not None, name, "a run that has ended with 0 has no results.")
    require(codes[1] == EXIT_FAILED, name, f"a run that fails ends with {codes[1]}, not {EXIT_FAILED}.")
    require(pool.room() == 2, name, f"when all runs have ended the room is {pool.room()}, not 2.")


def _check_stop_and_kill(name: str, pool: Pool, outputs: Path) -> None:
    """Checks that a stopped run saves, and that a killed one is gone."""
    stopped, killed = (_run(outputs, seed=seed, steps=100_000) for seed in (2, 3))
    to_stop, to_kill = pool.start(stopped), pool.start(killed)
    for job, run in ((to_stop, stopped), (to_kill, killed)):
        _wait(name, "begin", _at_work(job, run))
    require(to_stop.poll() is None, name, f"a run at work polls as {to_stop.poll()}, not None.")
    to_stop.stop()
    to_kill.kill()
    _wait(name, "stop", lambda: to_stop.poll() is not None)
    code = to_stop.poll()
    require(code == EXIT_INTERRUPTED, name, f"a stopped run ends with {code}, not {EXIT_INTERRUPTED}.")
    require(bool(stopped.checkpoints()), name, "a stopped run has no checkpoint.")
    _wait(name, "die", lambda: not is_locked(killed.path))
    _wait(name, "end with a negative code when killed", lambda: (to_kill.poll() or 0) < 0)


def _run(outputs: Path, seed: int, steps: int) -> Run:
    text = outputs / "words.txt"
    if not text.exists():
        make_folder(outputs)
        write_text(text, "the quick brown fox jumps over the lazy dog. " * 100)
    config = load_config([*TINY, f'data.path="{text}"', f"train.steps={steps}", f"seed={seed}"]).config
    return create_run(outputs, "check", config)


def _at_work(job: Job, run: Run) -> Callable[[], bool]:
    return lambda: job.poll() is not None or bool(run.checkpoints())


def _wait(name: str, what: str, is_done: Callable[[], bool], seconds: float = WAIT_SECONDS) -> None:
    end = time.monotonic() + seconds
    while not is_done():
        require(time.monotonic() < end, name, f"a run did not {what} within {seconds:g} s.")
        time.sleep(0.05)
