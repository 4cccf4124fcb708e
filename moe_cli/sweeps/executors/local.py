"""Pool of runs on this machine: one process per run, with cores, memory and GPUs divided among the runs."""

import os
import select
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moe_cli.config.schema import RunConfig
from moe_cli.costs.model import estimate_cost
from moe_cli.errors import MoeError
from moe_cli.execution.compilation import should_compile
from moe_cli.execution.data import vocab_size_reader
from moe_cli.execution.estimate import RunEstimate
from moe_cli.execution.machine import available_memory_bytes, count_cores, resident_bytes, visible_gpus
from moe_cli.execution.memory import memory_bytes
from moe_cli.execution.worker import PARENT_PID_ENV
from moe_cli.files.writing import append
from moe_cli.runs.folder import Run
from moe_cli.sweeps.executors.fork_server import ForkedRun, ForkServer


def default_workers(estimates: Sequence[RunEstimate]) -> int:
    """Returns the number of parallel runs: one per GPU, else the cores divided by the threads of a run.

    The available memory limits the number.
    """
    num_processes = max(estimate.config.launch.num_processes for estimate in estimates)
    may_use_gpu = [estimate.config.train.device in ("auto", "cuda") for estimate in estimates]
    num_gpus = len(visible_gpus()) if any(may_use_gpu) else 0
    slots = (num_gpus or count_cores() // max(estimate.threads for estimate in estimates)) // num_processes
    need = max(
        memory_bytes(estimate.cost, num_gpus > 0 and on_gpu)
        for estimate, on_gpu in zip(estimates, may_use_gpu, strict=True)
    )
    available = available_memory_bytes()
    return max(1, slots if available is None else min(slots, available // need))


class Process:
    """A run in a new process and a new session, so that Ctrl-C reaches it only as the scheduler's request to save.

    Attributes:
        exit_fd: a file descriptor that becomes readable when the process ends.
    """

    def __init__(self, run: Run, outputs: Path, environment: dict[str, str]) -> None:
        self.exit_fd, child_fd = os.pipe()
        try:
            with append(run.path / "log.txt") as log:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "moe_cli.execution.worker", str(run.path), str(outputs)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    pass_fds=[child_fd],
                    env={**os.environ, **environment, PARENT_PID_ENV: str(os.getpid())},
                    start_new_session=True,
                )
        except BaseException:
            os.close(self.exit_fd)
            raise
        finally:
            os.close(child_fd)

    @property
    def pid(self) -> int | None:
        return self.process.pid

    def poll(self) -> int | None:
        return self.process.poll()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@dataclass(frozen=True)
class Slot:
    """The part of the machine that a running run uses.

    Attributes:
        need: bytes of main memory that the run is expected to take.
        gpus: names as in CUDA_VISIBLE_DEVICES.
    """

    job: Process | ForkedRun
    need: int
    gpus: tuple[str, ...]

    def memory_still_needed(self) -> int:
        """Returns the bytes that the run is expected to allocate from now on."""
        return max(0, self.need - (resident_bytes(self.job.pid) if self.job.pid else 0))


class LocalPool:
    """Pool that executes `workers` runs at a time on this machine.

    Runs are forked from a process that has imported torch (see `fork_server`). A run that uses a GPU, compiles or
    launches processes needs a new process instead. With `warm=False`, or if the fork server cannot start, every run
    gets a new process.
    """

    def __init__(self, outputs: Path, workers: int, warm: bool = True) -> None:
        self.outputs = outputs
        self.workers = workers
        self.gpus = visible_gpus()
        self._warm = warm
        self._server: ForkServer | None = None
        self._slots: list[Slot] = []
        self._needs: dict[Path, int] = {}
        self._vocab_size = vocab_size_reader(outputs)

    def room(self) -> int:
        for slot in list(self._slots):
            if slot.job.poll() is not None:
                self._slots.remove(slot)
                if isinstance(slot.job, Process):
                    os.close(slot.job.exit_fd)
        return self.workers - len(self._slots)

    def fits(self, run: Run) -> bool:
        """Returns whether enough memory is available, after subtracting what the running runs still need."""
        available = available_memory_bytes()
        if available is None:
            return True
        return self._need(run) <= available - sum(slot.memory_still_needed() for slot in self._slots)

    def start(self, run: Run) -> Process | ForkedRun:
        try:
            config = run.config()
        except MoeError:  # the worker reports the error
            config = None
        gpus = self._pick_gpus(config) if config else ()
        job = self._fork(run) if config and self._can_fork(config) else self._start_process(run, gpus)
        self._slots.append(Slot(job, self._need(run), gpus))
        return job

    def _can_fork(self, config: RunConfig) -> bool:
        is_single_on_cpu = self._on_cpu(config) and config.launch.num_processes == 1
        return self._warm and is_single_on_cpu and not self._is_compiled(config)

    def _is_compiled(self, config: RunConfig) -> bool:
        try:
            return should_compile(config, self._vocab_size(config), "cpu")
        except (MoeError, OSError):  # the worker reports the error
            return False

    def _on_cpu(self, config: RunConfig) -> bool:
        device = config.train.device
        return device == "cpu" or (device == "auto" and not self.gpus)

    def _fork(self, run: Run) -> Process | ForkedRun:
        """Starts a run through the fork server. A server that died is replaced if it had been able to start."""
        if self._server is not None and self._server.gone:
            self._warm = self._server.ready
            self._close_server()
            if not self._warm:
                return self._start_process(run, ())
        if self._server is None:
            # numpy's libraries start threads at import, and a process must have a single thread when it forks.
            self._server = ForkServer(self.outputs, {"OPENBLAS_NUM_THREADS": "1"})
        return self._server.start(run, self.outputs)

    def _start_process(self, run: Run, gpus: tuple[str, ...]) -> Process:
        return Process(run, self.outputs, {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {})

    def _pick_gpus(self, config: RunConfig) -> tuple[str, ...]:
        """Returns the GPUs with the fewest runs, one per process; empty if the run uses none or names its own."""
        if config.train.device not in ("auto", "cuda"):
            return ()
        num_runs = Counter(name for slot in self._slots for name in slot.gpus)
        return tuple(sorted(self.gpus, key=lambda name: num_runs[name])[: config.launch.num_processes])

    def _need(self, run: Run) -> int:
        """Returns the bytes of main memory that a run is expected to take; 0 if its configuration or data are wrong."""
        if run.path not in self._needs:
            try:
                config = run.config()
                cost = estimate_cost(config, self._vocab_size(config))
                self._needs[run.path] = memory_bytes(cost, not self._on_cpu(config))
            except (MoeError, OSError):  # the worker reports the error
                self._needs[run.path] = 0
        return self._needs[run.path]

    def wait(self, seconds: float) -> None:
        """Waits until a run ends, at most `seconds`."""
        self.room()  # removes ended runs, whose descriptors stay readable
        ends = [slot.job.exit_fd for slot in self._slots if isinstance(slot.job, Process)]
        if self._server is not None and not self._server.gone:
            ends.append(self._server.channel.fileno())
        select.select(ends, [], [], seconds)
        if self._server is not None:
            self._server.receive()

    def close(self) -> None:
        for slot in self._slots:
            if slot.job.poll() is None:
                slot.job.kill()
        self.room()
        self._close_server()

    def _close_server(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
