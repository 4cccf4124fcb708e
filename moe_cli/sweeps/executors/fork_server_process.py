"""The parent of a sweep's runs: it imports torch once, then forks a process for every run.

python -m moe_cli.sweeps.executors.fork_server_process DESCRIPTOR OUTPUTS

OUTPUTS only identifies the process in process lists. DESCRIPTOR is one end of a socket. Each message on it is a line of
JSON.
In: {"run": folder, "outputs": folder} starts a run, {"run": folder, "signal": number} sends its process a signal. Out:
{"ready": true} after torch is imported, {"run": folder, "pid": number} when a run has started, {"run": folder, "code":
number} when it has ended, with the exit codes of `moe_cli.execution.worker`.

Every run has its own process, so that no state leaks into the next run or outlives it. No run waits for the import. A
fork is safe here because this process computes nothing: it has one thread, no lock that another thread could hold, and
no GPU.
"""

import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from moe_cli.distributed.launch import hard_exit
from moe_cli.execution import worker
from moe_cli.execution.runtime_tuning import configure_malloc, limit_thread_spinning
from moe_cli.files.writing import append
from moe_cli.training.signals import exit_with_parent

# What a run imports; torch's optimizers bring its compiler along at their first step.
IMPORTED = (
    "torch._dynamo",
    "moe_cli.models.registry",
    "moe_cli.tasks.registry",
    "moe_cli.moe.backends.dispatch",
    "moe_cli.training.trainer",
    "moe_cli.training.evaluate",
    "moe_cli.training.upcycle",
)


def main(descriptor: str, _outputs: str) -> None:
    limit_thread_spinning()
    configure_malloc()
    for name in IMPORTED:
        importlib.import_module(name)
    # What is there now lives as long as the process: a collection must not touch, and so copy, its pages.
    gc.collect()
    gc.freeze()
    with suppress(BrokenPipeError, ConnectionResetError):
        ForkServerProcess(socket.socket(fileno=int(descriptor))).serve()
    # Those that are still at work see that their parent has gone, save and stop.


class ForkServerProcess:
    """Forks a process for every requested run, and reports when one has ended."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.pids: dict[str, int] = {}
        self.ends, self.wakes = os.pipe()
        os.set_blocking(self.wakes, False)

    def serve(self) -> None:
        """Handles messages until the other end of the socket is closed."""
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(self.wakes)
        self._say(ready=True)
        begun = b""
        while True:
            ready = select.select([self.channel.fileno(), self.ends], [], [])[0]
            if self.ends in ready:
                os.read(self.ends, 4096)
                self._reap()
            if self.channel.fileno() in ready:
                received = self.channel.recv(65_536)
                if not received:
                    return
                *lines, begun = (begun + received).split(b"\n")
                for line in lines:
                    self._do(json.loads(line))

    def _do(self, message: dict[str, Any]) -> None:
        folder = message["run"]
        if "signal" not in message:
            self._fork(folder, message["outputs"])
        elif folder in self.pids:
            os.kill(self.pids[folder], message["signal"])

    def _fork(self, folder: str, outputs: str) -> None:
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._become(folder, outputs, parent)
        self.pids[folder] = pid
        self._say(run=folder, pid=pid)

    def _become(self, folder: str, outputs: str, parent: int) -> NoReturn:
        """Turns the forked process into `python -m moe_cli.execution.worker FOLDER OUTPUTS`, in a separate session."""
        code = worker.EXIT_FAILED
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setsid()
            for descriptor in (self.ends, self.wakes):
                os.close(descriptor)
            self.channel.close()
            with append(Path(folder, "log.txt")) as log:
                for descriptor in (1, 2):
                    os.dup2(log.fileno(), descriptor)
            exit_with_parent(parent)
            sys.argv = [str(worker.__file__), folder, outputs]
            code = worker.main(folder, outputs)
        except BaseException:
            with suppress(OSError):
                traceback.print_exc()
        finally:
            hard_exit(code)

    def _reap(self) -> None:
        for folder, pid in list(self.pids.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del self.pids[folder]
                self._say(run=folder, code=os.waitstatus_to_exitcode(status))

    def _say(self, **message: Any) -> None:
        self.channel.sendall(json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
