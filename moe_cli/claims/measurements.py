"""The values that predicates read, from the runs of a claim."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from moe_cli.config.expressions import Expression
from moe_cli.config.folders import GROUPS
from moe_cli.errors import ConfigError
from moe_cli.files.reading import number_in
from moe_cli.report.baseline_runs import find_baselines
from moe_cli.report.expert_usage import read_expert_usage
from moe_cli.report.price import SPEEDUP_RATIOS, Pricer, Ratio
from moe_cli.report.run_row import DENSE, RunRow, Value, column_names, settings_of, varying_settings
from moe_cli.report.significance import Scores
from moe_cli.runs.folder import COMPLETED, Run

# A row has the choice of these groups under their names.
NAMED_GROUPS = ("router", "balance")
MAX_NAMED = 4
# Of a product of a fraction and a number of steps.
ROUNDING = 1e-6


class RunMeasurements:
    """The values of runs; see `records.Measured`.

    Args:
        rows: a row for each planned run; those that are not complete have no results.
    """

    def __init__(self, rows: Sequence[RunRow]) -> None:
        self.rows = rows

    def scores(self, metric: str, where: Expression, at: float | None = None) -> Scores:
        rows = self._only(self._matching(where), where.text)
        return self._values(rows, metric, at)

    def along(self, metric: str, setting: str, where: Expression) -> Mapping[float, Scores]:
        found: dict[float, list[RunRow]] = {}
        for row in self._matching(where):
            if (place := number_in(setting_of(row, setting))) is not None:
                found.setdefault(place, []).append(row)
        if len(found) < 2 or min(found) <= 0:
            places = ", ".join(f"{place:g}" for place in sorted(found)) or "none"
            raise ConfigError(f"{setting} needs at least two values above 0 where {where.text}. There are: {places}.")
        return {
            place: self._values(self._only(found[place], f"{where.text}, {setting}={place:g}"), metric)
            for place in sorted(found)
        }

    def table(self, metrics: Sequence[str], where: Expression) -> Sequence[Sequence[Scores]]:
        groups = _by_configuration(self._matching(where))
        if len(groups) < 3:
            raise ConfigError(f"a fit needs at least three configurations where {where.text}: there are {len(groups)}.")
        return [[self._values(rows, metric) for metric in metrics] for rows in groups]

    def _matching(self, where: Expression) -> list[RunRow]:
        return [row for row in self.rows if where.holds({name: setting_of(row, name) for name in where.names})]

    def _only(self, rows: Sequence[RunRow], where: str) -> Sequence[RunRow]:
        """Returns the rows. Raises ConfigError unless they are of one configuration."""
        groups = _by_configuration(rows)
        if len(groups) == 1:
            return groups[0]
        if not groups:
            raise ConfigError(f"no configuration of the sweep meets the condition: {where}")
        settings = [group[0].settings for group in groups]
        varying = varying_settings(settings, settings_of(column_names(self.rows)))[:MAX_NAMED]
        raise ConfigError(
            f"{len(groups)} configurations meet the condition, and it must name one: {where}\n"
            f"They differ in: {', '.join(varying) or 'the seed'}"
        )

    def _values(self, rows: Sequence[RunRow], metric: str, at: float | None = None) -> Scores:
        complete = [row for row in rows if row.status == COMPLETED and row.seed is not None]
        if metric in SPEEDUP_RATIOS:
            return self._speedup_ratios(complete, metric)
        values = {}
        for row in complete:
            value = row.number(metric) if at is None else saturation_at(row, at)
            if value is not None and row.seed is not None:
                values[row.seed] = value
        return values

    def _speedup_ratios(self, rows: Sequence[RunRow], metric: str) -> Scores:
        """Returns the ratios; none if a seed has only a bound, because the other seeds alone would be a selection."""
        ratios = {row.seed: found for row in rows if row.seed is not None and (found := self._ratio_of(row, metric))}
        if any(ratio.value is None and ratio.is_known for ratio in ratios.values()):
            return {}
        return {seed: ratio.value for seed, ratio in ratios.items() if ratio.value is not None}

    @cached_property
    def _ratio_of(self) -> Callable[[RunRow, str], Ratio | None]:
        """Returns the function that compares one run with the dense model of its seed."""
        baselines = find_baselines(self.rows, (), DENSE, settings_of(column_names(self.rows)))
        pricer = Pricer(self.rows, DENSE, baselines.shared)

        def ratio_of(row: RunRow, metric: str) -> Ratio | None:
            dense = (baselines.find(row) or {}).get(row.seed)
            found = pricer.price([row], {row.seed: dense}) if dense is not None else None
            return found.ratio(metric) if found else None

        return ratio_of


def setting_of(row: RunRow, name: str) -> Value:
    """Returns the value of a setting, or the name of the choice of a group."""
    value = row.settings.get(f"{name}.name" if name in GROUPS and name not in NAMED_GROUPS else name)
    return value if value is None or isinstance(value, str | int | float | bool) else None


def saturation_at(row: RunRow, fraction: float) -> float | None:
    """Returns the router saturation, averaged over layers, at the last evaluation within a fraction of the training.

    The step that reaches the fraction counts: an evaluation that is due at a tenth of 605 steps is after step 61.
    """
    steps = row.results.steps
    layers = read_expert_usage(Run(Path(row.path))).layers if steps else ()
    found = []
    for layer in layers:
        values = [value for step, value in layer.saturation if step - 1 < fraction * (steps or 0) - ROUNDING]
        if values:
            found.append(values[-1])
    return sum(found) / len(found) if found and len(found) == len(layers) else None


def _by_configuration(rows: Sequence[RunRow]) -> list[list[RunRow]]:
    """Returns the rows of each configuration, which differ in the seed alone."""
    groups: dict[tuple[tuple[str, Value], ...], list[RunRow]] = {}
    for row in rows:
        key = tuple(item for item in sorted(row.settings.items(), key=lambda item: item[0]) if item[0] != "seed")
        groups.setdefault(key, []).append(row)
    return list(groups.values())
