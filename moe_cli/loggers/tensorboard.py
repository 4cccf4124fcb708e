"""log=tensorboard: event files in RUN/tensorboard, which `tensorboard --logdir outputs` shows.

A resumed run first writes TensorBoard's restart event, at which readers drop later steps.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from moe_cli.files.writing import make_folder
from moe_cli.loggers.logger import ResumeState, RunContext, numbers, results, step_of
from moe_cli.runs.folder import COMPLETED


class TensorBoardLogger:
    """Scalars under the names of metrics.jsonl; settings as hyperparameters; results as scalars `summary/...`."""

    def __init__(self, about: RunContext) -> None:
        self.context = about
        self.folder = about.run.path / "tensorboard"
        self.writer: EventFileWriter | None = None

    def start(self, past: ResumeState) -> None:
        last = max(past.last_logged_steps.values(), default=None)
        if self.writer is None:
            files = sorted(self.folder.glob("events.out.tfevents.*"))
            last = _last_step(files)
            _wait_for_a_later_name(files)
            self.writer = EventFileWriter(str(make_folder(self.folder)))
        if last is not None:
            self._write(Event(step=past.step + 1, session_log=SessionLog(status=SessionLog.START)))
        start = plugin_data_pb2.SessionStartInfo(group_name=self.context.run.id, start_time_secs=time.time())
        for key, value in self.context.settings().items():
            if value is not None:  # the dashboard treats a column of numbers and nulls as text
                _set(start.hparams[key], value)
        self._hparams(metadata.SESSION_START_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_start_info=start))
        for record in past.kept:
            if last is None or step_of(record) > last:  # records that were not logged here
                self.metrics(record)

    def metrics(self, record: Mapping[str, Any]) -> None:
        self._scalars(numbers(record), step_of(record))

    def finish(self, status: str, step: int, summary: Mapping[str, Any] | None) -> None:
        self._scalars(results(summary), step)
        if status == COMPLETED:  # readers keep the first end; a failed run may be resumed
            end = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS, end_time_secs=time.time())
            self._hparams(metadata.SESSION_END_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_end_info=end))
        if self.writer is not None:
            self.writer.close()

    def _scalars(self, values: Mapping[str, float], step: int) -> None:
        if values:
            entries = [Summary.Value(tag=key, simple_value=value) for key, value in values.items()]
            self._write(Event(step=step, summary=Summary(value=entries)))

    def _hparams(self, tag: str, data: plugin_data_pb2.HParamsPluginData) -> None:
        value = Summary.Value(tag=tag, tensor=metadata.NULL_TENSOR, metadata=metadata.create_summary_metadata(data))
        self._write(Event(summary=Summary(value=[value])))

    def _write(self, event: Event) -> None:
        """Writes to the file immediately, so that a killed process loses no events."""
        assert self.writer is not None
        event.wall_time = time.time()
        self.writer.add_event(event)
        self.writer.flush()


def _last_step(files: list[Path]) -> int | None:
    """Returns the highest step of the events in `files`; None means no events."""
    steps = [event.step for file in files for event in EventFileLoader(str(file)).Load() if event.HasField("summary")]
    return max(steps, default=None)


def _wait_for_a_later_name(files: list[Path]) -> None:
    """Waits until a new file would be the last by name: names hold the second of creation, and readers sort by name."""
    seconds = [int(part) for file in files if (part := file.name.split(".")[3]).isdigit()]
    if 0 <= max(seconds, default=0) - int(time.time()) <= 1:
        time.sleep(max(0.0, max(seconds) + 1 - time.time()))


def _set(value: Any, setting: Any) -> None:
    """Fills a google.protobuf.Value."""
    if isinstance(setting, bool):
        value.bool_value = setting
    elif isinstance(setting, int | float):
        value.number_value = setting
    else:
        value.string_value = str(setting)
