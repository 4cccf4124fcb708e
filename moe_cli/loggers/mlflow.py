"""log=mlflow: a run in OUTPUTS/mlflow.db, or at MLFLOW_TRACKING_URI.

MLflow keeps every point it has received. A resumed run continues the same run there. A repeated step keeps its first
point: on a CPU both are identical, except for times.
"""

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

# MLflow reads these at import: no telemetry, and a server that does not answer must not delay training.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from moe_cli.config.ranges import format_setting
from moe_cli.files.writing import edit, hold
from moe_cli.loggers.logger import (
    DEFAULT_PROJECT,
    ResumeState,
    RunContext,
    StepDeduplicator,
    load_external_id,
    results,
    save_external_id,
    step_of,
)
from moe_cli.runs.folder import COMPLETED, FAILED

SECONDS = 1.0  # between two messages: each takes some milliseconds
MAX_POINTS, MAX_PARAMS = 1000, 100  # in a message
# The files that SQLite writes.
DATABASE = tuple(f"mlflow.db{ending}" for ending in ("", "-journal", "-wal", "-shm"))
ENDS = {COMPLETED: "FINISHED", FAILED: "FAILED"}


class Store:
    """The place of MLflow's runs: OUTPUTS/mlflow.db, or MLFLOW_TRACKING_URI."""

    def __init__(self, outputs: Path) -> None:
        for name in ("mlflow", "alembic"):  # they log every table that they create
            logging.getLogger(name).setLevel(logging.ERROR)
        self.outputs = outputs
        local_uri = f"sqlite:///{outputs / 'mlflow.db'}"
        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or local_uri
        self.local = self.uri == local_uri

    def connect(self, project: str) -> tuple[MlflowClient, str]:
        """Returns a client, and the id of the experiment of this name, which is created if it does not exist."""
        with self._creation_lock():
            client = MlflowClient(tracking_uri=self.uri)
            return client, self._experiment(client, project)

    @contextmanager
    def _creation_lock(self) -> Iterator[None]:
        """Lets only one of several runs create the tables and the experiment."""
        if not self.local:
            yield
            return
        for name in DATABASE:
            with suppress(FileNotFoundError):
                edit(self.outputs / name).close()  # raises UnsafePath
        with hold(self.outputs / ".mlflow.lock"):
            yield

    def _experiment(self, client: MlflowClient, name: str) -> str:
        location = (self.outputs / ".mlflow").as_uri() if self.local else None
        found = client.get_experiment_by_name(name)
        try:
            return str(found.experiment_id if found else client.create_experiment(name, artifact_location=location))
        except MlflowException:
            if found := client.get_experiment_by_name(name):  # another run has just created it
                return str(found.experiment_id)
            raise


def send_report(files: Sequence[Path], title: str, outputs: Path) -> str:
    """Keeps the files of a report as artifacts of a run of its own; returns where they are."""
    store, project = Store(outputs), os.environ.get("MLFLOW_EXPERIMENT_NAME") or DEFAULT_PROJECT
    client, experiment = store.connect(project)
    run_id = client.create_run(experiment, run_name=f"report {title}", tags={"moe.report": title}).info.run_id
    for file in files:
        client.log_artifact(run_id, str(file))
    client.set_terminated(run_id)
    return f"MLflow: experiment {project}, run 'report {title}' ({store.uri})"


class MLflowLogger:
    """Metrics under the names of metrics.jsonl; settings as params; results as metrics `summary/...`; tags `moe.*`."""

    def __init__(self, about: RunContext) -> None:
        self.context = about
        self.store = Store(about.outputs)
        self.client: MlflowClient | None = None
        self.run_id = ""
        self.once = StepDeduplicator({})
        self.waiting: list[Metric] = []
        self.sent = 0.0

    def start(self, past: ResumeState) -> None:
        if self.client is not None:  # the run returns to a checkpoint
            return
        self.client, experiment = self.store.connect(self.context.project(os.environ.get("MLFLOW_EXPERIMENT_NAME")))
        found = self._found()
        self.run_id = found or self._create(experiment)
        if found:
            self.client.update_run(found, status="RUNNING")
            self.once = StepDeduplicator({key: self._last_step(key) for key in self.client.get_run(found).data.metrics})
        for record in past.kept:
            self.metrics(record)

    def metrics(self, record: Mapping[str, Any]) -> None:
        self._add(record)
        if time.monotonic() - self.sent > SECONDS:
            self._send()

    def finish(self, status: str, step: int, summary: Mapping[str, Any] | None) -> None:
        if self.client is None:
            return
        self._add({"step": step, **results(summary)})
        self._send()
        texts = {key: value for key, value in (summary or {}).items() if isinstance(value, str)}
        tags = [RunTag(f"moe.{key}", value) for key, value in texts.items()]
        self.client.log_batch(self.run_id, tags=[*tags, RunTag("moe.tags", ", ".join(self.context.tags()))])
        self.client.set_terminated(self.run_id, ENDS.get(status, "KILLED"))

    def _add(self, record: Mapping[str, Any]) -> None:
        now = int(1000 * time.time())
        for key, value in self.once.new(record).items():
            self.waiting.append(Metric(key, float(value), now, step_of(record)))

    def _send(self) -> None:
        assert self.client is not None
        while self.waiting:
            self.client.log_batch(self.run_id, metrics=self.waiting[:MAX_POINTS])
            del self.waiting[:MAX_POINTS]
        self.sent = time.monotonic()

    def _found(self) -> str | None:
        """Returns the id of the run if it exists at this URI and was not deleted; else None."""
        assert self.client is not None
        run_id = load_external_id(self.context.run, "mlflow")
        try:
            run = self.client.get_run(run_id) if run_id else None
        except MlflowException:
            return None
        return run_id if run and run.info.lifecycle_stage == "active" else None

    def _create(self, experiment: str) -> str:
        assert self.client is not None
        run = self.context.run
        tags = {"moe.sweep": run.sweep, "moe.folder": str(run.path), "moe.tags": ", ".join(self.context.tags())}
        run_id = str(self.client.create_run(experiment, run_name=run.id, tags=tags).info.run_id)
        save_external_id(run, "mlflow", run_id)
        params = [Param(key, format_setting(value)) for key, value in self.context.settings().items()]
        for first in range(0, len(params), MAX_PARAMS):
            self.client.log_batch(run_id, params=params[first : first + MAX_PARAMS])
        return run_id

    def _last_step(self, key: str) -> int:
        assert self.client is not None
        return max(point.step for point in self.client.get_metric_history(self.run_id, key))
