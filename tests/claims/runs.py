"""Run folders of a claim as training leaves them, without training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from moe_cli.claims.plan import ClaimPlan
from moe_cli.config.schema import RunConfig
from moe_cli.files.checksums import write_sealed
from moe_cli.runs.folder import COMPLETED
from tests.report.folders import set_status, summary


def complete_runs(plan: ClaimPlan, outputs: Path, loss: Callable[[RunConfig], float], **results: Any) -> None:
    """Completes every run of a plan with a loss in bits per byte; `results` are other values of summary.json."""
    for run, point in zip(plan.sweep.create_runs(outputs), plan.sweep.points, strict=True):
        set_status(run, COMPLETED)
        write_sealed(run.path / "summary.json", summary(run, point.config, loss(point.config), **results))
