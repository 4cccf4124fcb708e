"""Every pool keeps the same contract, and the executor picks the pool."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moe_cli.config.executors import LocalExecutor, RayExecutor, SlurmExecutor
from moe_cli.execution.worker import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK
from moe_cli.runs.folder import Run
from moe_cli.runs.locks import is_locked
from moe_cli.sweeps.executors.make import make_pool
from moe_cli.sweeps.scheduler import Job, SupportsCapacity
from tests.sweeps.clusters import HAS_RAY, HAS_SLURM, NO_RAY, NO_SLURM, make_runs, slurm_daemons, wait_until

KINDS = [
    pytest.param("local", marks=pytest.mark.slow),
    pytest.param("ray", marks=[pytest.mark.slow, pytest.mark.skipif(not HAS_RAY, reason=NO_RAY)]),
    pytest.param("slurm", marks=[pytest.mark.slow, pytest.mark.skipif(not HAS_SLURM, reason=NO_SLURM)]),
]
EXECUTORS = {"local": LocalExecutor(), "ray": RayExecutor(cpus=1), "slurm": SlurmExecutor(cpus=1)}


@pytest.fixture
def executor(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The executor of a kind, with its daemons where it needs some."""
    if request.param == "slurm":
        with slurm_daemons():
            yield EXECUTORS[request.param]
    else:
        yield EXECUTORS[request.param]


def at_work(job: Job, run: Run) -> bool:
    return job.poll() is not None or bool(run.checkpoints())


@pytest.mark.parametrize("executor", KINDS, indirect=True)
def test_every_pool_keeps_the_contract(executor: Any, tmp_path: Path) -> None:
    """Codes DONE, WRONG, STOPPED with a checkpoint and negative when killed; room is what is free; close leaves nothing."""
    endless = "train.steps=100000 train.checkpoint_every=2"
    short, wrong, stopped, killed, left = make_runs(
        tmp_path / "outputs", "train.steps=4", "train.steps=5", *(f"{endless} seed={seed}" for seed in (1, 2, 3))
    )
    (wrong.path / "config.json").write_text("{}")
    pool = make_pool(executor, tmp_path / "outputs", 2, [])
    try:
        assert (2, 2) == (pool.workers, pool.room())
        if isinstance(pool, SupportsCapacity):  # asked first, as by the driver: the first answer takes seconds
            assert all(map(pool.fits, (short, wrong)))
        jobs: list[Job] = [pool.start(short), pool.start(wrong)]
        assert 0 == pool.room()
        wait_until(lambda: all(job.poll() is not None for job in jobs))
        assert [EXIT_OK, EXIT_FAILED] == [job.poll() for job in jobs]
        assert short.summary() is not None
        assert 2 == pool.room()

        to_stop, to_kill = pool.start(stopped), pool.start(killed)
        wait_until(lambda: at_work(to_stop, stopped) and at_work(to_kill, killed))
        assert (None, None) == (to_stop.poll(), to_kill.poll())
        to_stop.stop()
        to_kill.kill()
        wait_until(lambda: to_stop.poll() is not None)
        assert EXIT_INTERRUPTED == to_stop.poll()
        assert ("interrupted", f"stopped; {stopped.kept()}") == (
            stopped.status()["status"],
            stopped.status()["reason"],
        )
        assert (to_kill.poll() or 0) < 0
        wait_until(lambda: not is_locked(killed.path))

        job = pool.start(left)
        wait_until(lambda: at_work(job, left))
        assert is_locked(left.path)
    finally:
        pool.close()
    wait_until(lambda: not is_locked(left.path))
    assert left.summary() is None
