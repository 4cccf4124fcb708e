"""Runs on a Ray cluster of three nodes on this machine, and what is said when Ray is not there."""

import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from moe_cli.config.executors import RayExecutor
from moe_cli.errors import MoeError
from moe_cli.runs.locks import is_locked, lock
from moe_cli.sweeps.executors import ray as ray_pool
from moe_cli.sweeps.executors.local import LocalPool
from moe_cli.sweeps.executors.ray import RayPool, connect
from moe_cli.sweeps.scheduler import ListFeed, Progress, run_all
from tests.sweeps.clusters import HAS_RAY, NO_RAY, make_runs
from tests.training.test_resume import assert_equal_runs

needs_ray = pytest.mark.skipif(not HAS_RAY, reason=NO_RAY)
MEMORY = 80 * 2**20


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Three raylets with a core each; the head is one of them."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": MEMORY}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        cluster.others = [cluster.add_node(num_cpus=1, object_store_memory=MEMORY) for _ in range(2)]
        yield cluster
        cluster.shutdown()


def parents(pid: int) -> Iterator[int]:
    """The processes above a process."""
    while pid > 1:
        shown = subprocess.run(
            ["ps", "-o", "ppid=", "-p", str(pid)], capture_output=True, text=True, check=False
        ).stdout
        pid = int(shown or 0)
        yield pid


@pytest.mark.slow
@needs_ray
def test_a_node_that_dies_costs_no_run(cluster: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A raylet killed while a run of its is at work: all points complete, each to the last bit as on the local pool."""
    settings = [f"train.steps=200 train.checkpoint_every=10 seed={seed}" for seed in range(4)]
    runs = make_runs(tmp_path / "outputs", *settings)
    pool = RayPool(RayExecutor(address=cluster.address, cpus=1), tmp_path / "outputs", None)
    assert 3 == pool.workers
    started: list[Path] = []
    real_start, lost = pool.start, []
    pool.start = lambda run: (started.append(run.path), real_start(run))[1]  # type: ignore[method-assign]

    def kill_a_node(progress: Progress) -> None:
        for run in progress.running if not lost else ():
            above = list(parents(run.status()["pid"])) if run.checkpoints() else []
            for node in cluster.others:
                if not lost and node.all_processes["raylet"][0].process.pid in above:
                    lost.append(True)
                    cluster.remove_node(node, allow_graceful=False)

    progress = run_all(ListFeed(runs), pool, kill_a_node)
    assert [True] == lost
    assert (sorted(run.id for run in runs), []) == (sorted(run.id for run in progress.finished), progress.failed)
    assert len(runs) < len(started)
    assert ("", "") == tuple(capfd.readouterr())
    undisturbed = make_runs(tmp_path / "undisturbed", *settings)
    run_all(ListFeed(undisturbed), LocalPool(tmp_path / "undisturbed", 2))
    for run, other in zip(runs, undisturbed, strict=True):
        assert_equal_runs(run, other)


def test_ray_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says which extra brings it."""
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MoeError, match=r"pip install 'moe-cli\[ray\]'"):
        connect(None)


@needs_ray
def test_an_address_without_a_listener_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within seconds, with the address and the way to start a head; so is a port where something else listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(MoeError, match=f"executor.address={address}: no Ray head answers .*refused"):
        connect(address)
    monkeypatch.setattr(ray_pool, "HEALTH_SECONDS", 0.5)
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        pytest.raises(MoeError, match="the program that listens there is no Ray head"),
    ):
        connect(f"127.0.0.1:{other.getsockname()[1]}")


class Remote:
    """A function that is called at once, here."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.remote = function


class Actor:
    """An object whose methods are."""

    def __init__(self, kind: type) -> None:
        self._held = kind()

    def __getattr__(self, name: str) -> Remote:
        return Remote(getattr(self._held, name))


class FakeRay:
    """Ray as far as a pool asks it for its nodes; actors live in this process."""

    class exceptions:
        class ActorUnavailableError(Exception): ...

        class RayActorError(Exception): ...

        class WorkerCrashedError(Exception): ...

    def __init__(self, *nodes: dict[str, float]) -> None:
        self.alive = [
            {"Alive": True, "NodeManagerHostname": f"node{i}", "Resources": has} for i, has in enumerate(nodes)
        ]
        self.stopped = False

    def nodes(self) -> list[dict[str, Any]]:
        return [*self.alive, {"Alive": False, "NodeManagerHostname": "gone", "Resources": {"CPU": 64.0}}]

    def remote(self, **options: Any) -> Any:
        self.options = options
        return lambda kind: Remote(lambda: Actor(kind))

    def wait(self, references: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return references, []

    def get(self, reference: Any) -> Any:
        return reference

    def kill(self, actor: Actor) -> None: ...

    def is_initialized(self) -> bool:
        return True

    def shutdown(self) -> None:
        self.stopped = True


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    def install(*nodes: dict[str, float]) -> FakeRay:
        ray = FakeRay(*nodes)
        monkeypatch.setitem(sys.modules, "ray", None)
        monkeypatch.delitem(sys.modules, "ray")
        monkeypatch.setattr(ray_pool, "connect", lambda address: ray)
        return ray

    return install


@pytest.mark.parametrize(
    ("executor", "nodes", "places", "gpus"),
    [
        (RayExecutor(cpus=2), [{"CPU": 5.0}, {"CPU": 3.0}, {"CPU": 1.0}], 3, 0.0),
        (RayExecutor(cpus=1), [{"CPU": 4.0, "GPU": 2.0}, {"CPU": 4.0}], 2, 1.0),
        (RayExecutor(cpus=1, gpus=0.5), [{"CPU": 4.0, "GPU": 1.0}], 2, 0.5),
        (RayExecutor(cpus=1, gpus=0), [{"CPU": 4.0, "GPU": 1.0}], 4, 0.0),
    ],
)
def test_places_are_counted_node_by_node(
    fake: Any, tmp_path: Path, executor: RayExecutor, nodes: list[dict[str, float]], places: int, gpus: float
) -> None:
    """A run does not span nodes, dead nodes do not count, and a run takes a GPU if there is one, unless gpus is set."""
    ray = fake(*nodes)
    pool = RayPool(executor, tmp_path, None)
    assert (places, places, gpus) == (pool.workers, pool.room(), ray.options["num_gpus"])
    assert ("CUDA_VISIBLE_DEVICES" in pool.environment) == (gpus == 0)
    pool = RayPool(executor, tmp_path, 7)
    assert 7 == pool.room()


def test_no_node_large_enough_is_an_error(fake: Any, tmp_path: Path) -> None:
    """It names what was asked for and what there is, and lets go of Ray; with -j the nodes may still come."""
    ray = fake({"CPU": 2.0})
    with pytest.raises(MoeError, match=r"executor.cpus=8, executor.gpus=0: no node has that; the largest has 2 cores"):
        RayPool(RayExecutor(cpus=8), tmp_path, None)
    assert ray.stopped
    assert 3 == RayPool(RayExecutor(cpus=8), tmp_path, 3).room()


def test_a_cluster_without_nodes_is_not_waited_for_long(
    fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When all nodes are gone and none comes back, the sweep ends with an error."""
    ray = fake({"CPU": 2.0})
    pool = RayPool(RayExecutor(), tmp_path, None)
    ray.alive = []
    monkeypatch.setattr(ray_pool, "POLL_SECONDS", 0.0)
    assert 0 == pool.room()
    monkeypatch.setattr(ray_pool, "NO_NODE_TIMEOUT", 0.0)
    with pytest.raises(MoeError, match="has had no node"):
        pool.room()


def test_the_lock_of_a_dead_host_does_not_block(fake: Any, tmp_path: Path) -> None:
    """It is broken when its holder's host is no living node, and kept otherwise; a run is not tried for ever."""
    fake({"CPU": 2.0})
    pool = RayPool(RayExecutor(), tmp_path, None)
    (run,) = make_runs(tmp_path / "outputs", "train.steps=4")
    for host, held in (("node0", True), (socket.gethostname(), True), ("gone", False)):
        (run.path / "status.json").write_text(f'{{"status": "running", "host": "{host}"}}')
        with lock(run.path):
            assert ray_pool.EXIT_BUSY == pool.on_actor_lost(run)
            assert held == is_locked(run.path)
    assert -9 == pool.on_actor_lost(run)


def test_a_node_that_does_not_see_the_outputs_ends_the_sweep(fake: Any, tmp_path: Path) -> None:
    """The error names the node and the path, and says that the folder must be shared."""
    fake({"CPU": 2.0})
    pool = RayPool(RayExecutor(), tmp_path / "outputs", None)
    (run,) = make_runs(tmp_path / "outputs", "train.steps=4")
    (run.path / "config.json").unlink()
    job = pool.start(run)
    with pytest.raises(MoeError, match=rf"{socket.gethostname()} does not see {run.path}.*\n.*--outputs DIR"):
        job.poll()
