"""Client of the fork server, a process that has imported torch and forks one process for each run.

The server is `moe_cli.sweeps.executors.fork_server_process`.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from moe_cli.execution.worker import EXIT_BUSY, EXIT_INTERRUPTED
from moe_cli.runs.folder import Run
from moe_cli.runs.locks import is_locked

WORKER = "moe_cli.sweeps.executors.fork_server_process"
CLOSE_SECONDS = 10.0


class ForkedRun:
    """A run in a process that the fork server has forked."""

    def __init__(self, run: Run, server: "ForkServer") -> None:
        self.folder = str(run.path)
        self.server = server
        self.pid: int | None = None
        self.code: int | None = None

    def poll(self) -> int | None:
        if self.code is None:
            self.server.receive()
        return self.code

    def stop(self) -> None:
        if not self.server.ready:  # the run has not started, so that nothing needs to be saved
            self.code = EXIT_INTERRUPTED
        self.server.send(run=self.folder, signal=int(signal.SIGTERM))

    def kill(self) -> None:
        self.server.send(run=self.folder, signal=int(signal.SIGKILL))


class ForkServer:
    """A connection to a new fork server.

    If the server dies, its runs save a checkpoint and stop. They end with EXIT_BUSY, so that the scheduler starts them
    again.

    Attributes:
        forks: the runs that have not ended, by folder.
        ready: whether the server has imported torch.
        gone: whether the server has died or was closed.
    """

    def __init__(self, outputs: Path, environment: Mapping[str, str]) -> None:
        self.channel, server_end = socket.socketpair()
        self.forks: dict[str, ForkedRun] = {}
        self.ready = False
        self.gone = False
        self._buffer = b""
        with server_end:
            self.process = subprocess.Popen(
                [sys.executable, "-m", WORKER, str(server_end.fileno()), str(outputs)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[server_end.fileno()],
                env={**os.environ, **environment},
                start_new_session=True,
            )
        self.channel.setblocking(False)

    def start(self, run: Run, outputs: Path) -> ForkedRun:
        fork = self.forks[str(run.path)] = ForkedRun(run, self)
        self.send(run=fork.folder, outputs=str(outputs))
        return fork

    def send(self, **message: Any) -> None:
        # The socket of a dead server is full or broken; `receive` handles that.
        with suppress(OSError):
            self.channel.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> None:
        """Handles the messages that the server has sent."""
        while not self.gone:
            try:
                received = self.channel.recv(65_536)
            except BlockingIOError:
                return
            except ConnectionResetError:
                received = b""
            *lines, self._buffer = (self._buffer + received).split(b"\n")
            for line in lines:
                self._handle(json.loads(line))
            self.gone = not received
        self._end_orphans()

    def _handle(self, message: dict[str, Any]) -> None:
        self.ready = True
        fork = self.forks.get(message.get("run", ""))
        if fork is None:
            return
        fork.pid = message.get("pid", fork.pid)
        if "code" in message:
            fork.code = message["code"]
            del self.forks[fork.folder]

    def _end_orphans(self) -> None:
        """Marks the runs of a dead server as ended, each when no process holds its folder any more."""
        for fork in list(self.forks.values()):
            if not is_locked(Path(fork.folder)):
                fork.code = EXIT_BUSY
                del self.forks[fork.folder]

    def close(self) -> None:
        """Kills the remaining runs and ends the server."""
        for fork in self.forks.values():
            fork.kill()
        if not self.ready:
            self.process.kill()
        with suppress(OSError):
            self.channel.shutdown(socket.SHUT_WR)
        try:
            self.process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.gone = True  # before the channel is closed, because Ctrl-C may come in between
        self.channel.close()
