"""A report as a pivot table: one setting down, another across, one metric in the cells."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moe_cli.config.build import did_you_mean
from moe_cli.config.ranges import format_setting
from moe_cli.errors import ConfigError
from moe_cli.formatting import sanitise
from moe_cli.metrics import BY_KEY
from moe_cli.report.columns import (
    column_named,
    heading_of,
    interval_of,
    make_columns,
    score_column,
    truncate_left,
    write_with_interval,
)
from moe_cli.report.configuration import Configuration
from moe_cli.report.render.terminal_chart import DERIVED, number_of
from moe_cli.report.run_row import Value, setting_applies, settings_of, varying_settings
from moe_cli.report.table import ReportTable

DENSE_LABEL, INAPPLICABLE = "dense", "-"


@dataclass(frozen=True)
class AxisValue:
    """One value of an axis.

    Attributes:
        value: the value of the setting; None where it does not apply, and for a capacity without limit.
        label: the value as text; `dense` or `-` where the setting does not apply.
        heading: the label with the name of the setting: k=2.
        applies: whether the setting has an effect in these configurations.
    """

    value: Value
    label: str
    heading: str
    applies: bool


@dataclass(frozen=True)
class PivotCell:
    """One configuration: its mean, half the width of its 95 % interval (None for one seed), and both as text."""

    row: Configuration
    value: float
    half_width: float | None
    text: str
    is_best: bool


@dataclass(frozen=True)
class Pivot:
    """Cells by the places of their values on both axes.

    Attributes:
        row_setting, column_setting: the settings of the axes.
        value: the column in the cells.
        direction: -1 if lower values are better, 1 if higher ones are, 0 for neither.
        also_varying: settings that differ between cells, but never within one.
        num_missing: configurations without a value.
    """

    row_setting: str
    column_setting: str
    value: str
    heading: str
    direction: int
    rows: tuple[AxisValue, ...]
    columns: tuple[AxisValue, ...]
    cells: Mapping[tuple[int, int], PivotCell]
    also_varying: tuple[str, ...]
    num_missing: int

    @property
    def row_heading(self) -> str:
        return sanitise(heading_of(self.row_setting))

    @property
    def column_heading(self) -> str:
        return sanitise(heading_of(self.column_setting))

    @property
    def has_intervals(self) -> bool:
        return any(cell.half_width is not None for cell in self.cells.values())

    def line(self, row: int) -> list[PivotCell | None]:
        """Returns the cells of a row; None where no configuration was run."""
        return [self.cells.get((row, column)) for column in range(len(self.columns))]


def make_pivot(table: ReportTable, request: str, value: str | None) -> Pivot:
    """Returns the pivot table of `ROWS:COLUMNS`, two settings that vary.

    Each cell is one configuration, a mean over its seeds. Configurations that share a cell are never averaged.

    Args:
        value: the column in the cells; None means the loss that configurations are ranked by.

    Raises:
        ConfigError: an axis does not vary, the column has no numbers, or a cell has several configurations.
    """
    parts = [part.strip() for part in request.split(":")]
    if len(parts) != 2 or not all(parts):
        raise ConfigError(
            f"--pivot {sanitise(request)}: give two settings as ROWS:COLUMNS, such as expert:k.\n{_axes(table)}"
        )
    down, across = (_axis(table, name, request) for name in parts)
    if down == across:
        raise ConfigError(f"--pivot {sanitise(request)}: both axes are {down}. Give two settings.\n{_axes(table)}")
    name = _value_column(table, value)
    known = [(row, number) for row in table.rows if (number := number_of(row, name)) is not None]
    if not known:
        raise ConfigError(f"--value {sanitise(name)} has no number in any row. Give another column, such as val_bpb.")
    rows, columns = (_axis_values([row for row, _ in known], setting) for setting in (down, across))
    groups: dict[tuple[int, int], list[tuple[Configuration, float]]] = {}
    for row, number in known:
        place = (rows.index(_axis_value(row, down)), columns.index(_axis_value(row, across)))
        groups.setdefault(place, []).append((row, number))
    _check_unique([[row for row, _ in group] for group in groups.values()], table, request)
    metric = BY_KEY.get(name)
    direction = metric.direction if metric else 0
    best = _best(known, direction)
    cells = {}
    for place, [(row, number)] in groups.items():
        half_width = interval_of(row, name)
        text = write_with_interval(name, row, number, half_width)
        cells[place] = PivotCell(row, number, half_width, text, any(row is other for other in best))
    return Pivot(
        down,
        across,
        name,
        make_columns([name], table.pairs is not None)[0].heading,
        direction,
        tuple(rows),
        tuple(columns),
        cells,
        tuple(setting for setting in table.varying if setting not in (down, across)),
        len(table.rows) - len(known),
    )


def _axes(table: ReportTable) -> str:
    """Returns the sentence that names the possible axes."""
    names = ", ".join(map(sanitise, table.varying))
    if len(table.varying) > 1:
        return f"Settings that vary: {names}."
    return f"Only {names} varies: a pivot table needs two settings." if names else "No setting varies in these runs."


def _axis(table: ReportTable, name: str, request: str) -> str:
    """Returns the setting of an axis, by its name or heading. Raises ConfigError if it does not vary."""
    known = table.aggregate.columns
    try:
        found = column_named(name, table.varying)
    except ConfigError:
        found = column_named(name, known) if name in {*known, *map(heading_of, known)} else name
    if found in table.varying:
        return found
    hint = ""
    if found not in known:
        reason, hint = "is no column", did_you_mean(name, table.varying)
    else:
        reason = "does not vary" if found in settings_of(known) else "is no setting that distinguishes configurations"
    raise ConfigError(f"--pivot {sanitise(request)}: {sanitise(name)} {reason}.{hint}\n{_axes(table)}")


def _value_column(table: ReportTable, name: str | None) -> str:
    if name is None:
        return score_column(table.rows)
    return column_named(name, [*table.aggregate.columns, *DERIVED], table.columns)


def _axis_value(row: Configuration, setting: str) -> AxisValue:
    if not setting_applies(setting, row.settings):
        label = DENSE_LABEL if row.is_dense else INAPPLICABLE
        return AxisValue(None, label, label, False)
    found = row.settings.get(setting)
    label = "dropless" if setting == "capacity" and found is None else truncate_left(sanitise(format_setting(found)))
    return AxisValue(found, label, f"{sanitise(heading_of(setting))}={label}", True)


def _axis_values(rows: Sequence[Configuration], setting: str) -> list[AxisValue]:
    """Returns the values of an axis in order: inapplicable ones, numbers, texts, and null."""
    found = {_axis_value(row, setting) for row in rows}

    def order(value: AxisValue) -> tuple[bool, bool, bool, Value]:
        key = 0 if value.value is None else value.value
        return value.applies, value.value is None, isinstance(key, str), key

    return sorted(found, key=order)


def _check_unique(groups: Sequence[Sequence[Configuration]], table: ReportTable, request: str) -> None:
    """Raises ConfigError if several configurations share a cell, with the settings in which they differ."""
    shared = [group for group in groups if len(group) > 1]
    if not shared:
        return
    settings = settings_of(table.aggregate.columns)
    inside = [varying_settings([row.settings for row in group], settings) for group in shared]
    names = [name for name in table.varying if any(name in found for found in inside)]
    have = "1 cell has" if len(shared) == 1 else f"{len(shared)} cells have"
    if not names:
        raise ConfigError(
            f"--pivot {sanitise(request)}: {have} several configurations. They differ in their data, or were imported. "
            "Choose some of them: --where"
        )
    first = next(group for group in shared if any(row.get(names[0]) is not None for row in group))
    choice = next(row.get(names[0]) for row in first if row.get(names[0]) is not None)
    condition = f'{names[0]} == "{choice}"' if isinstance(choice, str) else f"{names[0]} == {format_setting(choice)}"
    raise ConfigError(
        f"--pivot {sanitise(request)}: {have} up to {max(map(len, shared))} configurations. They differ in "
        f"{', '.join(map(sanitise, names))}.\nChoose one, as in --where '{sanitise(condition)}', or put "
        f"{sanitise(names[0])} on an axis."
    )


def _best(known: Sequence[tuple[Configuration, float]], direction: int) -> list[Configuration]:
    """Returns the rows with the best value of each group of equal data and budget that has several."""
    if not direction:
        return []
    groups: dict[tuple[object, ...], list[tuple[Configuration, float]]] = {}
    for row, value in known:
        groups.setdefault(row.comparison_key, []).append((row, direction * value))
    return [
        row
        for group in groups.values()
        if len(group) > 1
        for row, value in group
        if value == max(other for _, other in group)
    ]
