"""A pool that trains nothing: a run is complete at the second look, with results that its settings decide."""

from collections.abc import Callable
from typing import Any

from moe_cli.config.schema import RunConfig
from moe_cli.execution.worker import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK
from moe_cli.runs.folder import Run
from moe_cli.runs.locks import lock
from moe_cli.runs.recorder import Recorder

Results = Callable[[RunConfig], dict[str, Any] | None]


class FakeJob:
    """Ends at the second look; without results it has failed."""

    def __init__(self, run: Run, results: Results) -> None:
        self.run, self.results, self.looks, self.stopped = run, results, 0, False

    def poll(self) -> int | None:
        self.looks += 1
        if self.stopped:
            return EXIT_INTERRUPTED
        if self.looks < 2:
            return None
        found = self.results(self.run.config())
        with lock(self.run.path):
            if found is None:
                Recorder(self.run).status("failed", reason="it could not be")
                return EXIT_FAILED
            Recorder(self.run).complete(found)
        return EXIT_OK

    def stop(self) -> None:
        self.stopped = True

    def kill(self) -> None:
        self.stopped = True


class FakePool:
    """Remembers what it has started."""

    def __init__(self, results: Results, workers: int = 1) -> None:
        self.results, self.workers = results, workers
        self.started: list[Run] = []
        self._jobs: list[FakeJob] = []

    def room(self) -> int:
        at_work = [
            job for job in self._jobs if job.run.status()["status"] not in ("completed", "failed") and not job.stopped
        ]
        return self.workers - len(at_work)

    def start(self, run: Run) -> FakeJob:
        self.started.append(run)
        self._jobs.append(FakeJob(run, self.results))
        return self._jobs[-1]

    def close(self) -> None: ...
