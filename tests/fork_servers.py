"""A fork server that the sweeps of a test process share, because the import of torch takes seconds."""

import select
from collections.abc import Mapping
from pathlib import Path

from moe_cli.sweeps.executors.fork_server import ForkServer


class SharedForkServer(ForkServer):
    """A fork server whose `close` ends its runs and keeps the server for the next sweep."""

    def close(self) -> None:
        for fork in self.forks.values():
            fork.kill()
        while self.forks:
            select.select([self.channel], [], [], 1.0)
            self.receive()


class ForkServers:
    """Replaces the class `ForkServer`: returns the living server, or starts one."""

    def __init__(self) -> None:
        self.fork_servers: list[SharedForkServer] = []

    def __call__(self, outputs: Path, environment: Mapping[str, str]) -> ForkServer:
        if not self.fork_servers or self.fork_servers[-1].gone:
            self.fork_servers.append(SharedForkServer(outputs, environment))
        return self.fork_servers[-1]

    def end(self) -> None:
        for server in self.fork_servers:
            ForkServer.close(server)
