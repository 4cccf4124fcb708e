"""log=wandb: Weights & Biases, offline in RUN/wandb unless WANDB_MODE says otherwise; `wandb sync` sends it later.

W&B takes no step twice: one that is done again after a kill keeps the values it had.
"""

import os
import uuid
from collections.abc import Mapping
from typing import Any

import wandb

from moe_cli.loggers.logger import About, Once, Past, remember, remembered, results, step_of
from moe_cli.store import COMPLETED


class WandbLogger:
    """History under the names of metrics.jsonl; settings as config; results in the summary as `summary/...`."""

    def __init__(self, about: About) -> None:
        self.about = about
        self.run: Any = None
        self.once = Once({})

    def start(self, past: Past) -> None:
        if self.run is not None:
            return
        run, known = self.about.run, remembered(self.about.run, "wandb")
        called = known or uuid.uuid4().hex[:12]
        mode: Any = os.environ.get("WANDB_MODE", "offline")
        self.run = wandb.init(
            project=self.about.project(os.environ.get("WANDB_PROJECT")), dir=os.environ.get("WANDB_DIR") or run.path,
            id=called, name=run.id, group=run.group, tags=self.about.tags(), config=self.about.settings(), mode=mode, allow_val_change=True,
            resume="allow" if mode == "online" else None, settings={"console": "off", "silent": True},
        )  # fmt: skip
        remember(run, "wandb", called)
        self.once = Once(past.told if known else {})
        for record in past.kept:
            self.metrics(record)

    def metrics(self, record: Mapping[str, Any]) -> None:
        if new := self.once.new(record):
            self.run.log(new, step=step_of(record))  # several of one step become one

    def finish(self, status: str, step: int, summary: Mapping[str, Any] | None) -> None:
        if self.run is not None:
            self.run.summary.update(results(summary))
            self.run.finish(exit_code=0 if status == COMPLETED else 1)
