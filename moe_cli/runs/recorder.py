"""Writes the files of a run while it trains."""

import json
import os
import socket
import time
from collections.abc import Mapping
from typing import Any

from moe_cli.files.checksums import Mark, damage, mark, write_sealed
from moe_cli.files.reading import read_json, read_lines
from moe_cli.files.writing import append, json_safe, write_json, write_text
from moe_cli.formatting import print_line
from moe_cli.runs.folder import COMPLETED, Run

# Files to which a run appends records.
RECORD_FILES = ("metrics.jsonl", "routing.jsonl")


class Recorder:
    """Writes the files of a run, whose lock the caller holds."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._marks: dict[str, Mark] = {}
        self._status = {**(read_json(run.path / "status.json") or {}), "pid": os.getpid(), "host": socket.gethostname()}

    def status(self, status: str, **fields: Any) -> None:
        """Writes status.json. Its heartbeat tells other machines that this process is alive."""
        self._status.update(status=status, heartbeat=time.time(), **fields)
        write_json(self.run.path / "status.json", self._status)

    def metrics(self, record: Mapping[str, Any]) -> None:
        self._append("metrics.jsonl", record)

    def routing(self, record: Mapping[str, Any]) -> None:
        self._append("routing.jsonl", record)

    def _append(self, name: str, record: Mapping[str, Any]) -> None:
        with append(self.run.path / name) as file:
            file.write(json.dumps(json_safe(record)).encode() + b"\n")

    def mark(self) -> dict[str, Mark]:
        """Flushes the record files and returns their lengths and checksums, which a checkpoint stores."""
        self._marks = {name: mark(self.run.path / name, self._marks.get(name, Mark())) for name in RECORD_FILES}
        return self._marks

    def check(self, marks: Any, step: int) -> None:
        """Compares the record files with the marks of a checkpoint. Damage is printed and recorded with the results."""
        known = marks if isinstance(marks, dict) else {}
        found = [damage(self.run.path / name, known.get(name), step) for name in RECORD_FILES]
        if any(found):
            self._status["damage"] = "; ".join(filter(None, found))
            print_line(f"note: {self.run.id} continues, but {self._status['damage']}.")

    def rewind(self, step: int) -> None:
        """Deletes the records after `step` and those of the final evaluation, because the run repeats these steps."""
        self._marks = {}
        for name in RECORD_FILES:
            path = self.run.path / name
            if path.exists():
                kept = (record for record in read_lines(path) if not _is_final(record) and _step(record) <= step)
                write_text(path, "".join(json.dumps(record) + "\n" for record in kept))

    def meta(self, content: Mapping[str, Any]) -> None:
        write_json(self.run.path / "meta.json", content)

    def complete(self, summary: Mapping[str, Any]) -> None:
        """Writes summary.json after all other files, because its presence means that the run is complete."""
        self.status(summary.get("status", COMPLETED), reason=self._status.get("damage"))
        write_sealed(self.run.path / "summary.json", summary)


def _is_final(record: Mapping[str, Any]) -> bool:
    """Returns whether a record is of the evaluations after the training."""
    return bool(record.get("whole_split") or record.get("final"))


def _step(record: Mapping[str, Any]) -> float:
    """Returns the step of a record; 0 where it has none."""
    step = record.get("step", 0)
    return step if isinstance(step, int | float) else 0


class NullRecorder(Recorder):
    """A recorder that writes nothing, for the ranks of a training other than 0."""

    def status(self, status: str, **fields: Any) -> None: ...

    def _append(self, name: str, record: Mapping[str, Any]) -> None: ...

    def mark(self) -> dict[str, Mark]:
        return {}

    def check(self, marks: Any, step: int) -> None: ...

    def rewind(self, step: int) -> None: ...

    def meta(self, content: Mapping[str, Any]) -> None: ...

    def complete(self, summary: Mapping[str, Any]) -> None: ...
