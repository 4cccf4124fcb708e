"""The kit for executors: it passes the local one, and names each planted fault."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from moe_cli.config.executors import LocalExecutor, PluginExecutor
from moe_cli.plugins import Plugin
from moe_cli.sweeps.executors.local import LocalPool
from moe_cli.testing import check_executor, executor


@dataclass(frozen=True)
class PoolConfig(PluginExecutor):
    name: str = "kit_pool"


def plugin_of(pool: type[Any]) -> Plugin:
    build = lambda config, outputs, workers: pool(outputs, workers)  # noqa: E731
    return Plugin(build=build, config=PoolConfig, conf="name: kit_pool\n")


class AlwaysFree(LocalPool):
    def room(self) -> int:
        return 2


class Done:
    """A job that has ended at once."""

    def __init__(self, pool: "Pretends") -> None:
        self.pool = pool
        pool.free -= 1

    def poll(self) -> int:
        self.pool.free = 2
        return self.pool.code


class Pretends:
    """A pool that runs nothing."""

    code = 0

    def __init__(self, outputs: Path, workers: int) -> None:
        self.workers = self.free = workers

    def room(self) -> int:
        return self.free

    def start(self, run: Any) -> Done:
        return Done(self)

    def close(self) -> None:
        pass


class Never(Pretends):
    code = 7


@pytest.mark.parametrize(
    ("pool", "sentence"),
    [
        (AlwaysFree, "with both places taken the room is 2"),
        (Pretends, "a run that has ended with 0 has no results"),
        (Never, "a run that completes ends with 7, not 0"),
    ],
)
def test_a_fault_is_named(pool: type[Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError) as error:
        check_executor(plugin_of(pool), tmp_path)
    assert sentence in str(error.value)


class Kills(LocalPool):
    def start(self, run: Any) -> Any:
        job = super().start(run)
        job.stop = job.kill  # type: ignore[method-assign]
        return job


class LeavesRuns(LocalPool):
    def close(self) -> None:
        pass


@pytest.mark.slow
def test_the_local_executor_passes(tmp_path: Path) -> None:
    check_executor(LocalExecutor(), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pool", "sentence"), [(Kills, "a stopped run ends with -9"), (LeavesRuns, "end when the pool is closed within")]
)
def test_a_fault_of_a_running_pool_is_named(
    pool: type[Any], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "CLOSE_SECONDS", 1.0)
    opened: list[LocalPool] = []

    def build(config: Any, outputs: Path, workers: int) -> LocalPool:
        opened.append(pool(outputs, workers))
        return opened[0]

    try:
        with pytest.raises(AssertionError) as error:
            check_executor(Plugin(build=build, config=PoolConfig, conf="name: kit_pool\n"), tmp_path)
        assert sentence in str(error.value)
    finally:
        LocalPool.close(opened[0])
