"""The pool of this machine: a process per run; cores, memory and GPUs divided among them."""

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
from moe_cli.errors import MoeError
from moe_cli.execution.compilation import should_compile
from moe_cli.execution.estimate import RunEstimate
from moe_cli.execution.machine import available_memory_bytes, count_cores, resident_bytes, visible_gpus
from moe_cli.execution.memory import estimate_memory, memory_bytes
from moe_cli.execution.worker import PARENT_PID_ENV
from moe_cli.files.writing import append
from moe_cli.runs.folder import Run
from moe_cli.sweeps.executors.fork_server import ForkedRun, ForkServer


def default_workers(plans: Sequence[RunEstimate]) -> int:
    """Returns the number of these runs to execute in parallel: one per GPU, else by cores and threads per run.

    Available memory limits the number.
    """
    procs = max(plan.config.launch.num_processes for plan in plans)
    on_gpu = [plan.config.train.device in ("auto", "cuda") for plan in plans]
    gpus = len(visible_gpus()) if any(on_gpu) else 0
    most = (gpus or count_cores() // max(plan.threads for plan in plans)) // procs
    needs = [memory_bytes(plan.cost, gpus > 0 and there) for plan, there in zip(plans, on_gpu, strict=True)]
    available, need = available_memory_bytes(), max(needs)
    return max(1, most if available is None else min(most, available // need))


class Process:
    """A run in a process of its own, in a session of its own: Ctrl-C reaches it through us, once, as a request to save.

    Attributes:
        end: a descriptor that can be read once the process has ended.
    """

    def __init__(self, run: Run, outputs: Path, environment: dict[str, str]) -> None:
        self.exit_fd, theirs = os.pipe()
        try:
            with append(run.path / "log.txt") as log:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "moe_cli.execution.worker", str(run.path), str(outputs)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    pass_fds=[theirs],
                    env={**os.environ, **environment, PARENT_PID_ENV: str(os.getpid())},
                    start_new_session=True,
                )
        except BaseException:
            os.close(self.exit_fd)
            raise
        finally:
            os.close(theirs)

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
    """The share of the machine that a running run has.

    Attributes:
        need: bytes of main memory it is expected to take.
        gpus: names, as CUDA_VISIBLE_DEVICES takes them.
    """

    job: Process | ForkedRun
    need: int
    gpus: tuple[str, ...]

    def memory_still_needed(self) -> int:
        """Returns the memory it is still expected to take."""
        return max(0, self.need - (resident_bytes(self.job.pid) if self.job.pid else 0))


class LocalPool:
    """`workers` runs at a time on this machine.

    Runs are forked from a process that has imported torch (see `fork_server`), but for those that use a GPU, compile, or start
    processes themselves: these begin from nothing. So do all, if that process cannot start, or with warm=False.
    """

    def __init__(self, outputs: Path, workers: int, warm: bool = True) -> None:
        self.outputs = outputs
        self.workers = workers
        self.gpus = visible_gpus()
        self._warm = warm
        self._nest: ForkServer | None = None
        self._places: list[Slot] = []
        self._needs: dict[Path, int] = {}

    def room(self) -> int:
        for place in list(self._places):
            if place.job.poll() is not None:
                self._places.remove(place)
                if isinstance(place.job, Process):
                    os.close(place.job.exit_fd)
        return self.workers - len(self._places)

    def fits(self, run: Run) -> bool:
        """Returns whether the run's expected memory is free, after what the running runs still need."""
        available = available_memory_bytes()
        if available is None:
            return True
        return self._need(run) <= available - sum(place.memory_still_needed() for place in self._places)

    def start(self, run: Run) -> Process | ForkedRun:
        try:
            config = run.config()
        except MoeError:  # the worker reports the error
            config = None
        gpus = self._free_gpus(config) if config else ()
        job = self._start_warm(run) if config and self._forks(config) else self._start_cold(run, gpus)
        self._places.append(Slot(job, self._need(run), gpus))
        return job

    def _forks(self, config: RunConfig) -> bool:
        compiled = should_compile(config, config.model.vocab_size or 256, "cpu")
        return self._warm and self._on_cpu(config) and config.launch.num_processes == 1 and not compiled

    def _on_cpu(self, config: RunConfig) -> bool:
        device = config.train.device
        return device == "cpu" or (device == "auto" and not self.gpus)

    def _start_warm(self, run: Run) -> Process | ForkedRun:
        if self._nest is not None and self._nest.gone:
            self._warm = self._nest.ready
            self._close_nest()
            if not self._warm:
                return self._start_cold(run, ())
        if self._nest is None:
            # The libraries of numpy start threads when they are imported, which must not be there when it forks.
            self._nest = ForkServer(self.outputs, {"OPENBLAS_NUM_THREADS": "1"})
        return self._nest.start(run, self.outputs)

    def _start_cold(self, run: Run, gpus: tuple[str, ...]) -> Process:
        return Process(run, self.outputs, {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {})

    def _free_gpus(self, config: RunConfig) -> tuple[str, ...]:
        """Returns the GPUs with the fewest runs, one per process; empty if the run uses none or names its own."""
        if config.train.device not in ("auto", "cuda"):
            return ()
        load = Counter(name for place in self._places for name in place.gpus)
        return tuple(sorted(self.gpus, key=lambda name: load[name])[: config.launch.num_processes])

    def _need(self, run: Run) -> int:
        if run.path not in self._needs:
            try:
                config = run.config()
                self._needs[run.path] = estimate_memory(config, self.outputs, not self._on_cpu(config))
            except (MoeError, OSError):  # the worker reports the error
                self._needs[run.path] = 0
        return self._needs[run.path]

    def wait(self, seconds: float) -> None:
        """Waits until a run ends, at most `seconds`."""
        self.room()  # removes ended runs, which must not be waited for again
        ends = [place.job.exit_fd for place in self._places if isinstance(place.job, Process)]
        if self._nest is not None and not self._nest.gone:
            ends.append(self._nest.channel.fileno())
        select.select(ends, [], [], seconds)
        if self._nest is not None:
            self._nest.receive()

    def close(self) -> None:
        for place in self._places:
            if place.job.poll() is None:
                place.job.kill()
        self.room()
        if self._nest is not None:
            self._close_nest()

    def _close_nest(self) -> None:
        if self._nest is not None:
            self._nest.close()
            self._nest = None
