"""The settings in which runs differ, for lists and labels of runs."""

from collections.abc import Sequence
from pathlib import Path

from moe_cli.config.ranges import format_setting
from moe_cli.report.columns import cell
from moe_cli.report.load import flat_settings
from moe_cli.report.run_row import setting_applies, settings_of, varying_settings
from moe_cli.runs.folder import Run


class DifferingSettings:
    """The settings in which runs differ, apart from the seed.

    Attributes:
        names: dotted names of settings, the most important first.
        rows: the settings of each run whose config.json is readable.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        rows = {run: flat_settings(values) for run in runs if (values := run.config_dict())}
        keys = list(dict.fromkeys(key for row in rows.values() for key in row))
        self.rows = {run: {**dict.fromkeys(keys), **row} for run, row in rows.items()}
        self.names = varying_settings(list(self.rows.values()), settings_of(keys))

    def text(self, run: Run, name: str) -> str:
        """Returns a run's value of a setting as a table shows it: `-` where the setting has no effect."""
        row = self.rows.get(run)
        if row is None or not setting_applies(name, row):
            return "-"
        return "dropless" if name == "capacity" and row[name] is None else cell(row[name])


def run_labels(runs: Sequence[Run]) -> dict[Path, str]:
    """Returns labels such as expert=8 k=2 seed=0 from the differing settings; the id if settings are unreadable."""
    found = DifferingSettings(runs)
    labels = {run.path: run.id for run in runs}
    for run, row in found.rows.items():
        parts = [f"{name}={format_setting(row[name])}" for name in found.names if setting_applies(name, row)] or [
            run.id
        ]
        labels[run.path] = " ".join([*parts, f"seed={format_setting(row.get('seed'))}"])
    return labels
