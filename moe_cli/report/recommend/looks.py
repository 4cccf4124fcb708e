"""The number of looks at the verdicts of a sweep, each with more seeds. The list `looks` of sweep.json records them.

A look is a report or a recommendation that `moe report` prints or writes, in any format. A program that adds seeds
because of a verdict has also looked. Python's `recommend` and `load_runs` only read. A look with no more seeds than
before does not count again.
"""

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from moe_cli.report.configuration import Configuration
from moe_cli.report.sweep_record import change_record, entries, read_record

# Rate of false 'better' verdicts after 1, 2, ... looks. Simulated for one comparison at the two-sided 5 %: start with
# FIRST_SEEDS; while the verdict is inconclusive, add the advised number of seeds, at most MAX_ADDED_SEEDS.
# tests/report/recommend/test_looks.py simulates it again.
FALSE_BETTER = (0.025, 0.057, 0.074, 0.086, 0.095)
FIRST_SEEDS, MAX_ADDED_SEEDS = 3, 20


@dataclass(frozen=True)
class Look:
    """A look at the verdicts of a sweep.

    Attributes:
        number: the number of looks at the comparison with the most looks, including this one; 0 without a verdict.
        baseline: the baseline of the comparison; None means the lowest.
        new: by sweep folder, configurations with more seeds than at any earlier look: the path of a run, and the number
            of seeds.
    """

    number: int
    baseline: Mapping[str, Any] | None = None
    new: Mapping[Path, Mapping[str, int]] = field(default_factory=dict)


def look_at(rows: Sequence[Configuration], baseline: Mapping[str, Any] | None) -> Look:
    """Returns the number of this look at the rows' verdicts. Only sweeps with a sweep.json record their looks."""
    judged = [(row, row.shared_seeds) for row in rows if row.verdict is not None and (row.shared_seeds or 0) > 1]
    records = {
        folder: read_record(Path(folder)) for folder in {folder for row, _ in judged for folder in _folders(row)}
    }
    kept = dict(baseline) if baseline is not None else None
    looks = {
        folder: [look for look in entries(record, "looks") if look.get("baseline") == kept]
        for folder, record in records.items()
        if record
    }
    number = 0
    new: dict[str, dict[str, int]] = {folder: {} for folder in looks}
    for row, shared_seeds in judged:
        folders = _folders(row)
        before = {seeds for folder in folders for look in looks.get(folder, ()) for seeds in _seeds(look, row)}
        is_new = (shared_seeds or 0) > max(before, default=0)
        number = max(number, len(before) + is_new)
        for folder in folders.keys() & new.keys() if is_new else ():
            new[folder][folders[folder]] = shared_seeds or 0
    return Look(number, kept, {Path(folder): seeds for folder, seeds in new.items() if seeds})


def remember(look: Look) -> None:
    """Adds the look to sweep.json if it has more seeds than before, unless the folder cannot be written."""
    for folder, seeds in look.new.items():
        entry = {"time": time.time(), "runs": sum(seeds.values()), "baseline": look.baseline, "seeds": dict(seeds)}
        with suppress(OSError):
            change_record(folder, partial(_with_look, entry))


def _with_look(entry: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    return {**record, "looks": [*entries(record, "looks"), entry]}


def looks_sentence(look: Look) -> str:
    """Returns the sentence on how repeated looks raise the rate of false verdicts."""
    last = len(FALSE_BETTER)
    text = (
        f"Each look after adding seeds makes a false 'better' likelier: {100 * FALSE_BETTER[0]:.1f} % at the first "
        f"look, {100 * FALSE_BETTER[-1]:.1f} % after {last} (for one comparison)."
    )
    return text + (f" This is look {look.number}." if look.number > 1 else "")


def _folders(row: Configuration) -> dict[str, str]:
    """Returns the sweep folders of a configuration, each with its first run there."""
    return {os.path.dirname(path): os.path.basename(path) for path in reversed(row.paths)}


def _seeds(look: Mapping[str, Any], row: Configuration) -> set[int]:
    """Returns the numbers of seeds of the configuration that a past look had."""
    known = look.get("seeds")
    found = [known.get(run.run) for run in row.runs] if isinstance(known, dict) else []
    return {seeds for seeds in found if isinstance(seeds, int)}
