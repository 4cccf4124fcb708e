"""Pool of runs on a Ray cluster: one actor per run, which starts the run's worker on a node and waits for its end.

The outputs folder must be on a file system that all nodes share, and Python at the same path on all nodes. If a node
dies, its run starts on another node from its last checkpoint. An old worker that is still alive notices that its actor
has ended, saves and stops (see `training.signals.exit_with_parent`).
"""

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from moe_cli.config.executors import RayExecutor
from moe_cli.errors import MoeError
from moe_cli.execution.worker import EXIT_BUSY, EXIT_INTERRUPTED, PARENT_PID_ENV
from moe_cli.plugins import FILES_VARIABLE
from moe_cli.runs.folder import Run
from moe_cli.runs.locks import break_lock, is_locked

CONNECT_SECONDS, HEALTH_SECONDS = 5.0, 20.0
KILL_SECONDS = 10.0
# The interval between queries of the nodes, and the time that a sweep waits for a first node.
POLL_SECONDS, NO_NODE_TIMEOUT = 2.0, 60.0
# A run that loses more actors than this is taken to be the cause, and fails.
MAX_LOSSES = 3
# The smallest object store that Ray accepts; runs exchange no objects.
OBJECT_BYTES = 80 * 2**20


def connect(address: str | None) -> Any:
    """Connects to Ray without its output and usage reports, and returns its module.

    Raises:
        MoeError: Ray is not installed or cannot be reached at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # prevents a warning about a future change
    try:
        import ray
    except ImportError:
        raise MoeError(
            "executor=ray needs Ray, which is not installed.\nInstall it: pip install 'moe-cli[ray]'"
        ) from None
    if ray.is_initialized():
        return ray
    if address not in (None, "auto"):
        _probe(str(address))
    _silence_driver_output()
    start: dict[str, Any] = {"include_dashboard": False, "object_store_memory": OBJECT_BYTES} if address is None else {}
    try:
        with _own_sigterm():
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.CRITICAL, **start)
    except (OSError, RuntimeError, ValueError, AssertionError, ray.exceptions.RayError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise MoeError(
            f"executor.address={address or 'null'}: Ray cannot be reached: {reason}\n"
            "A sweep starts on a machine of the cluster. Make it one: ray start --address=HOST:6379"
        ) from None
    return ray


def _probe(address: str) -> None:
    """Raises MoeError if no Ray head listens at the address. Ray itself would retry for minutes."""
    host, _, port = address.rpartition(":")
    reason: object = "the program that listens there is no Ray head of this version"
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
        if subprocess.run(command, capture_output=True, timeout=HEALTH_SECONDS, check=False).returncode == 0:
            return
    except subprocess.TimeoutExpired:
        pass
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
    raise MoeError(
        f"executor.address={address}: no Ray head answers ({reason}).\n"
        "Start one: ray start --head --port=6379. Without executor.address, Ray starts on this machine."
    )


def _silence_driver_output() -> None:
    """Replaces Ray's function that prints messages about nodes. Ray has no setting for that."""
    from ray._private import worker

    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = lambda *message, **options: None


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Restores the handler of SIGTERM, which Ray replaces."""
    previous = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, previous)


def _run_actor_class() -> type:
    """Returns the class of the actors.

    Ray serialises a class that is defined in a function, so that the nodes can load it without this package.
    """

    class RunActor:
        def begin(self, command: list[str], folder: str, directory: str, variables: dict[str, str], parent: str) -> str:
            """Starts the worker and returns "", or returns what this node does not see.

            The worker finds the process id of its actor in the environment variable `parent`.
            """
            import os
            import socket
            import subprocess

            for path in (command[0], os.path.join(folder, "config.json"), directory):
                if not os.path.exists(path):
                    return f"{socket.gethostname()} does not see {path}"
            environment = {**os.environ, **variables, parent: str(os.getpid())}
            added = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
            with os.fdopen(os.open(os.path.join(folder, "log.txt"), added, 0o666), "ab") as log:
                self.process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=directory,
                    env=environment,
                    start_new_session=True,
                )
            return ""

        def wait(self) -> int:
            return int(self.process.wait())

        def signal(self, number: int) -> None:
            self.process.send_signal(number)

    return RunActor


class RayJob:
    """A run that an actor executes."""

    def __init__(self, pool: "RayPool", run: Run) -> None:
        self.pool, self.run = pool, run
        self.actor = pool.actor_class.remote()
        command = [sys.executable, "-m", "moe_cli.execution.worker", str(run.path), str(pool.outputs)]
        self.started = self.actor.begin.remote(command, str(run.path), os.getcwd(), pool.environment, PARENT_PID_ENV)
        self.exit_code: Any = None
        self.code: int | None = None
        self.stopping = False

    def poll(self) -> int | None:
        if self.code is None:
            errors = self.pool.ray.exceptions
            try:
                self.code = self._poll()
            except errors.ActorUnavailableError:  # temporary
                self.exit_code = None
            except (errors.RayActorError, errors.WorkerCrashedError):
                self.code = EXIT_INTERRUPTED if self.stopping else self.pool.on_actor_lost(self.run)
            if self.code is not None:
                self.pool.ray.kill(self.actor)
        return self.code

    def _poll(self) -> int | None:
        ray = self.pool.ray
        if self.exit_code is None:
            if not ray.wait([self.started], timeout=0)[0]:
                return None
            if problem := ray.get(self.started):
                raise MoeError(
                    f"{problem}: runs on Ray need outputs, data and Python at the same paths on all nodes.\n"
                    "Give a shared folder: --outputs DIR"
                )
            self.exit_code = self.actor.wait.remote()
        return int(ray.get(self.exit_code)) if ray.wait([self.exit_code], timeout=0)[0] else None

    def queued(self) -> bool:
        return self.code is None and self.exit_code is None

    def stop(self) -> None:
        self.stopping = True
        if self.poll() is None and self.exit_code is not None:
            self.actor.signal.remote(signal.SIGTERM)
        elif self.code is None:  # the actor waits for a node
            self.pool.ray.kill(self.actor)
            self.code = EXIT_INTERRUPTED

    def kill(self) -> None:
        if self.poll() is not None:
            return
        ray = self.pool.ray
        if self.exit_code is not None:
            with suppress(ray.exceptions.RayError):
                self.actor.signal.remote(signal.SIGKILL)
                ray.wait([self.exit_code], timeout=KILL_SECONDS)
        if self.poll() is None:
            ray.kill(self.actor)
            self.code = -signal.SIGKILL


class RayPool:
    """Pool of runs on the nodes of a Ray cluster, or on this machine through Ray.

    Args:
        workers: the number of parallel runs, including those that wait for a node; None means as many as the living
            nodes can hold.

    Raises:
        MoeError: Ray is missing or cannot be reached, or no node is large enough.
    """

    def __init__(self, executor: RayExecutor, outputs: Path, workers: int | None) -> None:
        self.outputs = outputs
        ray = sys.modules.get("ray")
        self._owns_ray = ray is None or not ray.is_initialized()
        self.ray = connect(executor.address)
        self.cpus = executor.cpus
        has_gpus = any(node["Resources"].get("GPU") for node in self._nodes())
        self.gpus = float(has_gpus) if executor.gpus is None else executor.gpus
        remote = self.ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_concurrency=2)
        self.actor_class = remote(_run_actor_class())
        self.environment = _environment(self.gpus)
        self._workers = workers
        self._jobs: list[RayJob] = []
        self._losses: Counter[Path] = Counter()
        self._polled, self._capacity = -POLL_SECONDS, 0
        self._no_node_since: float | None = None
        if workers is None and self.capacity() == 0:
            largest = max((node["Resources"].get("CPU", 0) for node in self._nodes()), default=0)
            self.close()
            raise MoeError(
                f"executor.cpus={self.cpus}, executor.gpus={self.gpus:g}: no node has that; the largest has "
                f"{largest:g} cores.\nRequest less, or give -j N to wait for new nodes."
            )

    @property
    def workers(self) -> int:
        """Returns the number of parallel runs."""
        return self.capacity() if self._workers is None else self._workers

    def _nodes(self) -> list[dict[str, Any]]:
        return [node for node in self.ray.nodes() if node["Alive"]]

    def capacity(self) -> int:
        """Returns the number of runs that the living nodes can hold."""
        now = time.monotonic()
        if now - self._polled >= POLL_SECONDS:
            resources = [node["Resources"] for node in self._nodes()]
            by_cpu = [int(node.get("CPU", 0) // self.cpus) for node in resources]
            by_gpu = [int(node.get("GPU", 0) // self.gpus) for node in resources] if self.gpus else by_cpu
            self._polled, self._capacity = now, sum(map(min, by_cpu, by_gpu))
        return self._capacity

    def room(self) -> int:
        self._jobs = [job for job in self._jobs if job.poll() is None]
        room = self.workers - len(self._jobs)
        if self._jobs or room > 0:
            self._no_node_since = None
            return room
        self._no_node_since = self._no_node_since or time.monotonic()
        if time.monotonic() - self._no_node_since > NO_NODE_TIMEOUT:
            raise MoeError("the Ray cluster has had no node for a minute. Add nodes; the same command continues.")
        return room

    def start(self, run: Run) -> RayJob:
        job = RayJob(self, run)
        self._jobs.append(job)
        return job

    def on_actor_lost(self, run: Run) -> int:
        """Returns the exit code of a run whose actor died: EXIT_BUSY, so that it restarts, up to MAX_LOSSES times."""
        self._losses[run.path] += 1
        alive = {node["NodeManagerHostname"] for node in self._nodes()}
        if is_locked(run.path) and run.status().get("host") not in alive | {socket.gethostname()}:
            break_lock(run.path)
        return EXIT_BUSY if self._losses[run.path] <= MAX_LOSSES else -signal.SIGKILL

    def close(self) -> None:
        for job in self._jobs:
            job.kill()
        if self._owns_ray and self.ray.is_initialized():
            self.ray.shutdown()


def _environment(gpus: float) -> dict[str, str]:
    """Returns the environment variables of workers. Ray itself sets CUDA_VISIBLE_DEVICES of runs that use GPUs."""
    variables = {name: os.environ[name] for name in ("PYTHONPATH", FILES_VARIABLE) if name in os.environ}
    return variables if gpus else {**variables, "CUDA_VISIBLE_DEVICES": ""}
