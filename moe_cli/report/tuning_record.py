"""The learning rates that a sweep tuned before its comparison: entry `tuning` of sweep.json.

setting   the tuned setting
folder    the folder of the trials, next to that of the sweep
seed      the seed of the trials, which the comparison does not have
rates     for each configuration: label, value, tried (value, loss), steps_to_edge
"""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moe_cli.files.reading import number_in
from moe_cli.formatting import listed, plural, sanitise
from moe_cli.report.sweep_record import entries, read_record

TUNING, TRIALS_OF = "tuning", "trials_of"  # keys of sweep.json
MAX_NAMED = 3


@dataclass(frozen=True)
class TunedRate:
    """The rate of one configuration.

    Attributes:
        label: the settings that tell the configuration apart.
        value: the best rate.
        tried: every rate that was tried, with its loss; None where the run failed.
        steps_to_edge: the number of tried rates between the best one and the nearer edge, the edge included.
    """

    label: str
    value: float
    tried: tuple[tuple[float, float | None], ...]
    steps_to_edge: int


def make_tuning_record(
    setting: str, folder: str, seed: int, start: float | None, rates: Sequence[TunedRate]
) -> dict[str, Any]:
    """Returns the entry of sweep.json."""
    found = [{**asdict(rate), "tried": [list(pair) for pair in rate.tried]} for rate in rates]
    return {"setting": setting, "folder": folder, "seed": seed, "start": start, "rates": found}


def tuned_settings(paths: Iterable[str]) -> dict[str, float | None]:
    """Returns the settings that every sweep of these runs tuned for each configuration, with the rate before tuning."""
    records = [read_record(Path(folder)) for folder in {os.path.dirname(path) for path in paths}]
    names = [_setting(record) for record in records]
    if not names or names[0] is None or any(name != names[0] for name in names):
        return {}
    starts = {number_in(record[TUNING].get("start")) for record in records}
    return {names[0]: starts.pop() if len(starts) == 1 else None}


def is_trial_folder(folder: Path) -> bool:
    """Returns whether a folder has the trials of a tuned sweep."""
    return isinstance(read_record(folder).get(TRIALS_OF), str)


def tuning_sentences(paths: Iterable[str]) -> list[str]:
    """Returns a sentence on the tuning for each sweep of these runs that has tuned a setting."""
    folders = dict.fromkeys(os.path.dirname(path) for path in paths)
    records = [read_record(Path(folder)) for folder in folders]
    return [_sentence(record[TUNING]) for record in records if _setting(record) is not None]


def _setting(record: Mapping[str, Any]) -> str | None:
    """Returns the tuned setting of a sweep.json; None if nothing was tuned."""
    found = record.get(TUNING)
    name = found.get("setting") if isinstance(found, dict) else None
    return name if isinstance(name, str) else None


def _sentence(record: Mapping[str, Any]) -> str:
    rates = entries(record, "rates")
    edges = [rate for rate in rates if rate.get("steps_to_edge") == 0]
    counts = sorted({len(tried) for rate in rates if isinstance(tried := rate.get("tried"), list)})
    trials = f"{plural(counts[0], 'trial')} each, with a seed of their own" if len(counts) == 1 else "unknown trials"
    text = f"{sanitise(str(record['setting']))} was tuned for each of {plural(len(rates), 'configuration')}: {trials}"
    if not edges:
        least = min((steps for rate in rates if isinstance(steps := rate.get("steps_to_edge"), int)), default=0)
        return f"{text}; every optimum is at least {plural(least, 'step')} inside the rates that were tried"
    names = [f"{sanitise(str(rate.get('label')))} ({_number(rate.get('value'))})" for rate in edges]
    return f"{text}; at the edge of what was tried, so that a better rate may lie beyond: {listed(names, MAX_NAMED)}"


def _number(value: object) -> str:
    number = number_in(value)
    return "-" if number is None or not math.isfinite(number) else f"{number:g}"
