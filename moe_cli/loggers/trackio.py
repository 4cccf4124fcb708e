"""log=trackio: Trackio, on this machine, where `trackio show --project moe` finds it.

A step that is done again after a kill keeps the values it had.
"""

import io
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any

import trackio

from moe_cli.loggers.logger import About, Once, Past, remember, remembered, results, step_of


class TrackioLogger:
    """Metrics under the names of metrics.jsonl; settings as config; results as metrics `summary/...`."""

    def __init__(self, about: About) -> None:
        self.about = about
        self.run: Any = None
        self.once = Once({})

    def start(self, past: Past) -> None:
        if self.run is not None:
            return
        run, known = self.about.run, remembered(self.about.run, "trackio")
        project = self.about.project()
        with redirect_stdout(io.StringIO()):  # it prints how to look at it
            self.run = trackio.init(
                project=project, name=run.id, group=run.group, config=self.about.settings(),
                resume="allow" if known else "never", embed=False,
            )  # fmt: skip
        remember(run, "trackio", run.id)
        self.once = Once(past.told if known else {})
        for record in past.kept:
            self.metrics(record)

    def metrics(self, record: Mapping[str, Any]) -> None:
        if new := self.once.new(record):
            self.run.log(new, step=step_of(record))

    def finish(self, status: str, step: int, summary: Mapping[str, Any] | None) -> None:
        if self.run is not None:
            with redirect_stdout(io.StringIO()):
                if summary:
                    self.run.log(results(summary), step=step)
                trackio.finish()  # the run's own finish() would be called once more at exit
