"""Metrics of plug-ins: columns of the report that are computed from each run, and only where their name is used."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from moe_cli.errors import ConfigError
from moe_cli.formatting import sanitise
from moe_cli.metrics import BY_KEY, Metric
from moe_cli.plugins import REASON_LENGTH, find, names, refuse_built_in
from moe_cli.report.configuration import JSON_KEYS
from moe_cli.report.run_row import RunRow, column_names
from moe_cli.runs.folder import DONE

# The metrics of plug-ins that this process has computed.
_USED: dict[str, Metric] = {}


def metric_of(name: str) -> Metric | None:
    """Returns the metric of a column: that of the program, or of a plug-in that was used; None for other columns."""
    return BY_KEY.get(name) or _USED.get(name)


def add_metrics(runs: Sequence[RunRow], texts: Iterable[str]) -> list[RunRow]:
    """Returns the runs with the metrics of plug-ins whose names occur in the texts, such as columns or a condition.

    A column of the program comes first. A run that is not complete has no value.

    Raises:
        ConfigError: a plug-in is broken, fails, or returns something else than a number or None.
    """
    named = {word for text in texts for word in re.findall(r"[A-Za-z_][\w.]*", text)}
    unknown = named.difference(column_names(runs), JSON_KEYS, BY_KEY)
    for name in named & BY_KEY.keys():
        refuse_built_in("metric", name)
    rows = list(runs)
    for name in sorted(unknown.intersection(names("metric"))) if unknown else ():
        plugin = find("metric", name)
        assert plugin is not None
        if not isinstance(plugin.metric, Metric):
            raise ConfigError(f"metric={name}: its metric is no moe_cli.metrics.Metric.")
        compute = plugin.code()
        rows = [_with_value(run, name, compute) for run in rows]
        _USED[name] = plugin.metric
    return rows


def _with_value(run: RunRow, name: str, compute: Callable[[RunRow], Any]) -> RunRow:
    value = compute_metric(run, name, compute) if run.status in DONE else None
    return replace(run, others={**run.others, name: value})


def compute_metric(run: RunRow, name: str, compute: Callable[[RunRow], Any]) -> float | None:
    """Returns the value of a metric for one run. Raises ConfigError where the plug-in fails or returns no number."""
    try:
        value = compute(run)
    except Exception as error:
        reason = sanitise(f"{type(error).__name__}: {error}".splitlines()[0][:REASON_LENGTH])
        raise ConfigError(
            f"metric={name} fails for the run {run.run}: {reason}\n"
            "A metric returns a number, or None where the run has no value for it."
        ) from None
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        found = sanitise(repr(value))[:40]
        raise ConfigError(f"metric={name} of the run {run.run} is {found}, neither a number nor None.") from None
    return number if abs(number) < float("inf") else None
