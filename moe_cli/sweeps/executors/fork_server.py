"""The sweep's side of `moe_cli.sweeps.executors.fork_server_process`: runs as forks of a process that has imported torch already."""

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
    """A run in a process that the parent of all of them has forked."""

    def __init__(self, run: Run, nest: "ForkServer") -> None:
        self.folder = str(run.path)
        self.nest = nest
        self.pid: int | None = None
        self.code: int | None = None

    def poll(self) -> int | None:
        if self.code is None:
            self.nest.receive()
        return self.code

    def stop(self) -> None:
        if not self.nest.ready:  # nothing has begun that could be saved, so do not wait for torch
            self.code = EXIT_INTERRUPTED
        self.nest.send(run=self.folder, signal=int(signal.SIGTERM))

    def kill(self) -> None:
        self.nest.send(run=self.folder, signal=int(signal.SIGKILL))


class ForkServer:
    """The parent process of forked runs.

    If it dies, its runs save and stop with code BUSY, so that they are started again.
    """

    def __init__(self, outputs: Path, environment: Mapping[str, str]) -> None:
        self.channel, theirs = socket.socketpair()
        self.forks: dict[str, ForkedRun] = {}
        self.ready = False
        self.gone = False
        self._begun = b""
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", WORKER, str(theirs.fileno()), str(outputs)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, **environment},
                start_new_session=True,
            )
        self.channel.setblocking(False)

    def start(self, run: Run, outputs: Path) -> ForkedRun:
        fork = self.forks[str(run.path)] = ForkedRun(run, self)
        self.send(run=fork.folder, outputs=str(outputs))
        return fork

    def send(self, **message: Any) -> None:
        # A socket that is full or broken belongs to a parent that is gone: `listen` will see it.
        with suppress(OSError):
            self.channel.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> None:
        """Reads pending messages from the parent process."""
        while not self.gone:
            try:
                received = self.channel.recv(65_536)
            except BlockingIOError:
                return
            except ConnectionResetError:
                received = b""
            *lines, self._begun = (self._begun + received).split(b"\n")
            for line in lines:
                self._take_in(json.loads(line))
            self.gone = not received
        self._give_up()

    def _take_in(self, message: dict[str, Any]) -> None:
        self.ready = True
        fork = self.forks.get(message.get("run", ""))
        if fork is None:
            return
        fork.pid = message.get("pid", fork.pid)
        if "code" in message:
            fork.code = message["code"]
            del self.forks[fork.folder]

    def _give_up(self) -> None:
        """Marks runs as ended once the server has died and no process holds their folder."""
        for fork in list(self.forks.values()):
            if not is_locked(Path(fork.folder)):
                fork.code = EXIT_BUSY
                del self.forks[fork.folder]

    def close(self) -> None:
        """Ends whatever is left."""
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
        self.gone = True  # first: a closed channel must not be listened to, whenever Ctrl-C comes
        self.channel.close()
