"""The pool of this machine: a process per run, cores divided among them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from moe_cli.store import Run


def default_workers() -> int:
    """One run per two cores: small models gain little from more, and each needs some memory."""
    return max(1, (os.cpu_count() or 1) // 2)


def threads_per_run(workers: int) -> int:
    """The cores divided among the runs that go on at a time."""
    return max(1, (os.cpu_count() or 1) // workers)


class Process:
    """A run in a process of its own, in a session of its own: Ctrl-C reaches it through us, once, as a request to save."""

    def __init__(self, run: Run, outputs: Path, threads: int) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        with open(run.path / "log.txt", "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "moe_cli.run", str(run.path), str(outputs)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
            )  # fmt: skip

    def poll(self) -> int | None:
        return self.process.poll()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class LocalPool:
    """`workers` runs at a time on this machine."""

    def __init__(self, outputs: Path, workers: int) -> None:
        self.outputs = outputs
        self.workers = workers
        self.threads = threads_per_run(workers)
        self._processes: list[Process] = []

    def room(self) -> int:
        self._processes = [process for process in self._processes if process.poll() is None]
        return self.workers - len(self._processes)

    def start(self, run: Run) -> Process:
        process = Process(run, self.outputs, self.threads)
        self._processes.append(process)
        return process

    def close(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
