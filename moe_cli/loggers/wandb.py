"""log=wandb: Weights & Biases, offline in RUN/wandb unless WANDB_MODE says otherwise; `wandb sync` sends it later.

W&B accepts no step twice: a step that is repeated after a kill keeps its first values.
"""

import os
import re
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb

from moe_cli.files.writing import make_folder
from moe_cli.loggers.logger import DEFAULT_PROJECT, DeduplicatingLogger, results
from moe_cli.runs.folder import COMPLETED


def send_report(files: Sequence[Path], title: str, outputs: Path) -> str:
    """Keeps the files of a report as an artifact of a run of its own; returns where it is."""
    folder = os.environ.get("WANDB_DIR") or make_folder(outputs / ".wandb")
    mode: Any = os.environ.get("WANDB_MODE", "offline")
    project = os.environ.get("WANDB_PROJECT") or DEFAULT_PROJECT
    settings = {"console": "off", "silent": True}
    run = wandb.init(
        project=project, dir=folder, name=f"report {title}", job_type="report", mode=mode, settings=settings
    )
    name = re.sub(r"[^\w.-]+", "-", f"report-{title}", flags=re.ASCII)
    artifact = wandb.Artifact(name, type="report")
    for file in files:
        artifact.add_file(str(file))
    run.log_artifact(artifact)
    run.finish(exit_code=0)
    return f"Weights & Biases: project {project}, artifact {name}" + (f" ({folder})" if mode == "offline" else "")


class WandbLogger(DeduplicatingLogger):
    """History under the names of metrics.jsonl, merged by step; settings as config; results in the summary."""

    name = "wandb"

    def open(self, known: str | None) -> str:
        run = self.context.run
        called = known or uuid.uuid4().hex[:12]
        if "WANDB_DIR" not in os.environ:
            make_folder(run.path / "wandb")
        mode: Any = os.environ.get("WANDB_MODE", "offline")
        self.run = wandb.init(
            project=self.context.project(os.environ.get("WANDB_PROJECT")),
            dir=os.environ.get("WANDB_DIR") or run.path,
            id=called,
            name=run.id,
            group=run.sweep,
            tags=self.context.tags(),
            config=self.context.settings(),
            mode=mode,
            allow_val_change=True,
            resume="allow" if mode == "online" else None,
            settings={"console": "off", "silent": True},
        )
        return called

    def finish(self, status: str, step: int, summary: Mapping[str, Any] | None) -> None:
        if self.run is not None:
            self.run.summary.update(results(summary))
            self.run.finish(exit_code=0 if status == COMPLETED else 1)
