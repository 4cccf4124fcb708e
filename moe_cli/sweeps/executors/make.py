"""Makes the pool of an executor."""

from collections.abc import Sequence
from pathlib import Path

from moe_cli.config.executors import Executor, LocalExecutor, PluginExecutor, RayExecutor, SlurmExecutor
from moe_cli.execution.estimate import RunEstimate
from moe_cli.plugins import plugin_of
from moe_cli.sweeps.executors.local import LocalPool, default_workers
from moe_cli.sweeps.scheduler import Pool


def max_parallel(executor: Executor, workers: int | None, estimates: Sequence[RunEstimate]) -> int | None:
    """Returns the number of parallel runs; None means as many as the cluster can hold."""
    if isinstance(executor, LocalExecutor):
        return workers or default_workers(estimates)
    limit = executor.array_parallelism if isinstance(executor, SlurmExecutor) else None
    return min((number for number in (workers, limit) if number is not None), default=None)


def make_pool(executor: Executor, outputs: Path, workers: int | None, estimates: Sequence[RunEstimate]) -> Pool:
    """Returns a pool for `workers` parallel runs; None means as many as this machine or the cluster can hold.

    Raises:
        MoeError: the cluster, or its library, is not available.
    """
    if isinstance(executor, RayExecutor):
        from moe_cli.sweeps.executors.ray import RayPool

        return RayPool(executor, outputs, workers)
    if isinstance(executor, SlurmExecutor):
        from moe_cli.sweeps.executors.slurm import SlurmPool

        return SlurmPool(executor, outputs, workers)
    if isinstance(executor, PluginExecutor):
        plugin = plugin_of(executor)
        assert plugin is not None
        pool: Pool = plugin.code()(executor, outputs, workers)
        return pool
    return LocalPool(outputs, workers or default_workers(estimates))
