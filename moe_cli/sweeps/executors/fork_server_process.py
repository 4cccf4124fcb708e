"""Fork server of a sweep: a process that imports torch once, then forks one process for each run.

python -m moe_cli.sweeps.executors.fork_server_process DESCRIPTOR OUTPUTS

OUTPUTS only identifies the process in process lists. DESCRIPTOR is one end of a socket, on which each message is a line
of JSON. The server receives {"run": folder, "outputs": folder} to start a run, and {"run": folder, "signal": number}
to send a signal to its process. It sends {"ready": true} when torch is imported, {"run": folder, "pid": number} when a
run has started, and {"run": folder, "code": number} when a run has ended, with an exit code of the worker.

Each run has its own process, so that no state is left for the next run, and no run waits for the import. Forking is
safe because this process computes nothing: it has one thread, holds no lock and uses no GPU.
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
from moe_cli.execution.machine import describe_software
from moe_cli.execution.runtime_tuning import configure_libraries, configure_malloc
from moe_cli.files.writing import append
from moe_cli.training.signals import exit_with_parent

# Modules that a run imports. torch's optimizers import torch._dynamo at their first step.
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
    configure_libraries()
    configure_malloc()
    for name in IMPORTED:
        importlib.import_module(name)
    describe_software()
    # A garbage collection in a fork would write to the pages of all objects, and so copy them.
    gc.collect()
    gc.freeze()
    with suppress(BrokenPipeError, ConnectionResetError):
        ForkServerProcess(socket.socket(fileno=int(descriptor))).serve()
    # Running forks notice that their parent has ended, save and stop.


class ForkServerProcess:
    """Forks a process for each requested run and reports the exit codes."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.pids: dict[str, int] = {}
        self.wake_read, self.wake_write = os.pipe()
        os.set_blocking(self.wake_write, False)

    def serve(self) -> None:
        """Handles messages until the other end of the socket is closed."""
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(self.wake_write)
        self._send(ready=True)
        buffer = b""
        while True:
            ready = select.select([self.channel.fileno(), self.wake_read], [], [])[0]
            if self.wake_read in ready:
                os.read(self.wake_read, 4096)
                self._reap()
            if self.channel.fileno() in ready:
                received = self.channel.recv(65_536)
                if not received:
                    return
                *lines, buffer = (buffer + received).split(b"\n")
                for line in lines:
                    self._handle(json.loads(line))

    def _handle(self, message: dict[str, Any]) -> None:
        folder = message["run"]
        if "signal" not in message:
            self._fork(folder, message["outputs"])
        elif folder in self.pids:
            os.kill(self.pids[folder], message["signal"])

    def _fork(self, folder: str, outputs: str) -> None:
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._run_worker(folder, outputs, parent)
        self.pids[folder] = pid
        self._send(run=folder, pid=pid)

    def _run_worker(self, folder: str, outputs: str, parent: int) -> NoReturn:
        """Turns the forked process into `python -m moe_cli.execution.worker FOLDER OUTPUTS`, in a separate session."""
        code = worker.EXIT_FAILED
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setsid()
            for descriptor in (self.wake_read, self.wake_write):
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
                self._send(run=folder, code=os.waitstatus_to_exitcode(status))

    def _send(self, **message: Any) -> None:
        self.channel.sendall(json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
