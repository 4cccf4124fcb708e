"""The parent of forked runs that the sweeps of a test process share: it takes seconds of work until torch is there."""

import select
from collections.abc import Mapping
from pathlib import Path

from moe_cli.sweeps.executors.fork_server import ForkServer


class SharedNest(ForkServer):
    """Closing it ends the runs and leaves the parent of them for the next sweep."""

    def close(self) -> None:
        for fork in self.forks.values():
            fork.kill()
        while self.forks:
            select.select([self.channel], [], [], 1.0)
            self.listen()


class Nests:
    """In place of the class `ForkServer`: one that is there already, or a new one where it has died."""

    def __init__(self) -> None:
        self.nests: list[SharedNest] = []

    def __call__(self, outputs: Path, environment: Mapping[str, str]) -> ForkServer:
        if not self.nests or self.nests[-1].gone:
            self.nests.append(SharedNest(outputs, environment))
        return self.nests[-1]

    def end(self) -> None:
        for nest in self.nests:
            ForkServer.close(nest)
