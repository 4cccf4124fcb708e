"""Looks at the verdicts of a sweep, each with more seeds, and the error rate that each may spend.

A look is a report or a recommendation that `moe report` prints or writes, in any format. A program that adds seeds
because of a verdict has also looked. Python's `recommend` and `load_runs` only read. A look with no more seeds than
before does not count again. The list `looks` of sweep.json records them.

The first look is at the usual error rate a = 5 %, look j > 1 at a * 6 / (pi^2 j^2), whose sum over all j is a. So all
later looks together spend at most 0.4 a (union bound, as in the alpha spending of Lan and DeMets, Biometrika 70, 1983,
659-663): over any number of looks, 'better' or 'worse' is false in at most 7 %, and 'better' in half of these. This is
exact if the number of added seeds does not depend on the size of the differences. tests/report/recommend/test_looks.py
simulates the numbers that the report advises, which do depend on it.
"""

import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from moe_cli.report.run_row import RunRow
from moe_cli.report.significance import ERROR_RATE
from moe_cli.report.sweep_record import change_record, entries, read_record

# Rate of false 'better' verdicts after 1, 2, ... looks that nothing counts. Simulated for one comparison at the
# two-sided 5 %: start with FIRST_SEEDS; while the verdict is inconclusive, add the advised number of seeds, at most
# MAX_ADDED_SEEDS. tests/report/recommend/test_looks.py simulates it again.
FALSE_BETTER = (0.025, 0.057, 0.074, 0.086, 0.095)
FIRST_SEEDS, MAX_ADDED_SEEDS = 3, 20
# The sum of `error_rate_at` over all looks: 7 %.
OVERALL_ERROR_RATE = ERROR_RATE * (2 - 6 / math.pi**2)


def error_rate_at(number: int) -> float:
    """Returns the error rate of the look with this number; see the top of this file."""
    return ERROR_RATE if number <= 1 else ERROR_RATE * 6 / (math.pi * number) ** 2


@dataclass(frozen=True)
class Look:
    """A look at the verdicts of a sweep.

    Attributes:
        number: the number of looks at the comparison with the most looks, including this one; 0 without a verdict.
        baseline: the baseline of the comparison; None means the lowest.
        new: by sweep folder, configurations with more seeds than at any earlier look: the path of a run, and the number
            of seeds.
        is_counted: whether a sweep.json records the looks.
    """

    number: int
    baseline: Mapping[str, Any] | None = None
    new: Mapping[Path, Mapping[str, int]] = field(default_factory=dict)
    is_counted: bool = False

    @property
    def error_rate(self) -> float:
        """Returns the error rate of the verdicts and intervals of differences at this look."""
        return error_rate_at(self.number)

    @property
    def next_error_rate(self) -> float:
        """Returns the error rate of a look with more seeds after this one."""
        return error_rate_at(self.number + 1) if self.is_counted else self.error_rate


@dataclass(frozen=True)
class Compared:
    """A configuration whose verdict is looked at: its runs, and the number of seeds that its comparison rests on."""

    runs: Sequence[RunRow]
    seeds: int


# Without a record of looks, as of rows that are compared by themselves.
UNCOUNTED = Look(0)


def look_at(compared: Sequence[Compared], baseline: Mapping[str, Any] | None) -> Look:
    """Returns the number of this look at these verdicts. Only sweeps with a sweep.json record their looks."""
    tested = [row for row in compared if row.seeds > 1]
    records = {folder: read_record(Path(folder)) for folder in {folder for row in tested for folder in _folders(row)}}
    kept = dict(baseline) if baseline is not None else None
    looks = {
        folder: [seeds_of(look) for look in entries(record, "looks") if look.get("baseline") == kept]
        for folder, record in records.items()
        if record
    }
    number = 0
    new: dict[str, dict[str, int]] = {folder: {} for folder in looks}
    for row in tested:
        folders = _folders(row)
        past = [seeds for folder in folders for seeds in looks.get(folder, ())]
        before = {seeds[run.run] for seeds in past for run in row.runs if run.run in seeds}
        is_new = row.seeds > max(before, default=0)
        number = max(number, len(before) + is_new)
        for folder in folders.keys() & new.keys() if is_new else ():
            new[folder][folders[folder]] = row.seeds
    return Look(number, kept, {Path(folder): seeds for folder, seeds in new.items() if seeds}, bool(looks))


def remember(look: Look) -> None:
    """Adds the look to sweep.json if it has more seeds than before, unless the folder cannot be written."""
    for folder, seeds in look.new.items():
        entry = {"time": time.time(), "runs": sum(seeds.values()), "baseline": look.baseline, "seeds": dict(seeds)}
        with suppress(OSError):
            change_record(folder, partial(_with_look, entry))


def _with_look(entry: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    return {**record, "looks": [*entries(record, "looks"), entry]}


def looks_sentence(look: Look) -> str:
    """Returns the sentence on what repeated looks do to the verdicts."""
    if look.number > 1:
        return (
            f"This is look {look.number} at these verdicts, each with more seeds: differences are tested at "
            f"{percent_of_rate(look.error_rate)} instead of {percent_of_rate(ERROR_RATE)}, and their intervals are "
            "wider, so that adding seeds until 'better' stays valid."
        )
    if look.is_counted:
        return (
            "Each look after adding seeds tests more strictly: the next at "
            f"{percent_of_rate(look.next_error_rate)} instead of {percent_of_rate(ERROR_RATE)}."
        )
    last = len(FALSE_BETTER)
    return (
        f"Each look after adding seeds makes a false 'better' likelier: {100 * FALSE_BETTER[0]:.1f} % at the first "
        f"look, {100 * FALSE_BETTER[-1]:.1f} % after {last} (for one comparison)."
    )


def percent_of_rate(rate: float) -> str:
    """Returns an error rate as text with two significant digits: 5 %, 0.76 %."""
    return f"{100 * rate:.2g} %"


def _folders(row: Compared) -> dict[str, str]:
    """Returns the sweep folders of a configuration, each with its first run there."""
    return {os.path.dirname(run.path): os.path.basename(run.path) for run in reversed(row.runs)}


def seeds_of(look: Mapping[str, Any]) -> dict[str, int]:
    """Returns the number of seeds of each configuration of a past look, by the name of a run."""
    found = look.get("seeds")
    known = found.items() if isinstance(found, dict) else ()
    return {name: number for name, number in known if isinstance(number, int) and not isinstance(number, bool)}
