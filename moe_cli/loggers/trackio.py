"""log=trackio: Trackio, on this machine, where `trackio show --project moe` finds it.

A step that is repeated after a kill keeps its first values.
"""

import io
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any

import trackio

from moe_cli.loggers.logger import DeduplicatingLogger, results


class TrackioLogger(DeduplicatingLogger):
    """Metrics under the names of metrics.jsonl; settings as config; results as metrics `summary/...`."""

    name = "trackio"

    def open(self, known: str | None) -> str:
        run = self.context.run
        with redirect_stdout(io.StringIO()):  # it prints instructions
            self.run = trackio.init(
                project=self.context.project(),
                name=run.id,
                group=run.sweep,
                config=self.context.settings(),
                resume="allow" if known else "never",
                embed=False,
            )
        return run.id

    def finish(self, status: str, step: int, summary: Mapping[str, Any] | None) -> None:
        if self.run is not None:
            with redirect_stdout(io.StringIO()):
                if summary:
                    self.run.log(results(summary), step=step)
                trackio.finish()  # Trackio would call the run's own finish() again at exit
