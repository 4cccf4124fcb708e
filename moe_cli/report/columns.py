"""Columns of the report: the heading, the format of the values, and the order in which columns are dropped."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from moe_cli.config.build import did_you_mean
from moe_cli.config.ranges import format_setting
from moe_cli.errors import ConfigError
from moe_cli.formatting import first_line, format_half_width, plural, sanitise, sparkline
from moe_cli.metrics import BY_KEY, METRICS, TASK, TRAINING, Metric, keys_of
from moe_cli.plugins import names as plugin_names
from moe_cli.report.configuration import JSON_KEYS, Configuration
from moe_cli.report.intervals import mean_and_interval
from moe_cli.report.metric_plugins import metric_of
from moe_cli.report.price import Ratio
from moe_cli.report.run_row import DENSE, RESULTS, Cell, Settings, setting_applies
from moe_cli.runs.curves import validation_curve
from moe_cli.runs.folder import Run

MAX_CELL_WIDTH = 36
CURVE, CURVE_WIDTH, MAX_CURVES = "curve", 16, 60
# Joins a mean and its interval; columns are aligned at it.
PLUS_MINUS = " +- "
# What leaves first when a terminal is narrow; settings leave after these, the score never.
DROP_ORDER = (
    "flops_per_token",
    "capacity_val_loss",
    "val_loss",
    "active_params",
    "relative_speed",
    "compute_multiplier",
    "effective_speedup",
    "dead_experts",
    "dropped_fraction",
    "max_violation",
    "tokens_per_second",
    "params",
    "equal_time",
    "verdict",
    "shared_seeds",
    "vs_baseline",
)
# A setting's heading is its last part, and its group's where that says nothing.
AMBIGUOUS_KEYS = ("name", "weight", "k", "capacity")


@dataclass(frozen=True)
class Column:
    """One column: its name, its heading, the format of a row's value, and its alignment."""

    name: str
    heading: str
    write: Callable[[Configuration], str]
    left: bool = False


def result_columns(rows: Collection[Configuration], baseline: Settings, to_lowest: bool) -> list[Column]:
    """Returns the measured columns to show for these rows. Differences are to the baseline, or to the lowest."""
    measured = [name for name in keys_of(TASK) if any(row.get(name) is not None for row in rows)]
    names = [
        "params",
        "active_params",
        "flops_per_token",
        "val_loss",
        "val_bpb",
        *measured,
        "vs_baseline",
        "tokens_per_second",
    ]
    if baseline == DENSE and not to_lowest and all(row.is_dense for row in rows):
        names.remove("vs_baseline")
    if any(row.vs_baseline_interval is not None for row in rows):
        names.insert(names.index("vs_baseline") + 1, "verdict")
    if "vs_baseline" in names and any((row.shared_seeds or 0) not in (0, len(row.seeds)) for row in rows):
        names.insert(names.index("vs_baseline") + 1, "shared_seeds")
    if any(_has_equal_time(row) for row in rows):
        names.insert(names.index("tokens_per_second"), "equal_time")
    if any(_has_price(row) for row in rows):
        names += ["compute_multiplier", "relative_speed", "effective_speedup"]
    if any(row.results.max_violation is not None for row in rows):
        names.append("max_violation")
    if any(row.results.dropped_fraction for row in rows):
        names.append("dropped_fraction")
    if any(row.results.capacity_val_loss is not None for row in rows):
        names.append("capacity_val_loss")
    if any(row.results.dead_experts is not None for row in rows):
        names.append("dead_experts")
    complete = [row for row in rows if row.is_complete]
    unknown = {
        name
        for name in ("val_bpb", "tokens_per_second", "relative_speed", "effective_speedup")
        if complete and all(row.get(name) is None for row in complete)
    }
    return [_result(name, to_lowest) for name in names if name not in unknown]


def _has_equal_time(row: Configuration) -> bool:
    """Returns whether the row is compared at an equal time other than the budget of the runs."""
    found = row.at_equal_time
    return bool(found and found.difference is not None and not found.is_budget and not row.is_own_baseline)


def _has_price(row: Configuration) -> bool:
    """Returns whether the compute multiplier of the row is known, at least as a bound."""
    return row.price is not None and row.price.multiplier.is_known and not row.is_own_baseline


def _result(name: str, to_lowest: bool) -> Column:
    column = _measured(name)
    assert column is not None
    return replace(column, heading="vs lowest") if name == "vs_baseline" and to_lowest else column


def _measured(name: str) -> Column | None:
    """Returns the column of a metric, that of a plug-in included; None for a setting and the like."""
    metric = metric_of(name)
    if name in _RESULTS or metric is None or metric.kind == TRAINING:
        return _RESULTS.get(name)
    return Column(name, sanitise(metric.label), _written(metric))


def curve_column(rows: Collection[Configuration]) -> Column | None:
    """Returns the validation curve of a row's first run as a sparkline; None without curves, and for long reports."""
    if len(rows) > MAX_CURVES:
        return None
    drawn = {row.path: _sparkline(row) for row in rows}
    return Column(CURVE, CURVE, lambda row: drawn[row.path], left=True) if set(drawn.values()) - {"-"} else None


def _sparkline(row: Configuration) -> str:
    """Returns a sparkline on a logarithmic scale, which shows late gains; `-` for fewer than two evaluations."""
    values = [math.log(value) for value in validation_curve(Run(Path(row.path))).values if value > 0]
    return sparkline(values, CURVE_WIDTH) if len(values) > 1 else "-"


def score_column(rows: Collection[Configuration]) -> str:
    """Returns the column of the loss that rows are ranked by."""
    judged = [row for row in rows if row.results.val_loss is not None or row.results.val_bpb is not None]
    return "val_bpb" if all(row.results.val_bpb is not None for row in judged) else "val_loss"


def make_columns(names: Sequence[str], to_lowest: bool = False) -> list[Column]:
    """Columns by name: results as they are usually written, everything else by its value."""
    short = [heading_of(name) for name in names]
    headings = [heading if short.count(heading) == 1 else name for heading, name in zip(short, names, strict=True)]
    return [
        _result(name, to_lowest)
        if _measured(name)
        else Column(name, name, _sparkline, left=True)
        if name == CURVE
        else Column(name, sanitise(heading), _writer(name), left=name in _TEXT)
        for name, heading in zip(names, headings, strict=True)
    ]


def column_named(text: str, known: Sequence[str], shown: Sequence[Column] = ()) -> str:
    """Returns the column with this name, else the one with this heading. Columns in `shown` come before others.

    Raises:
        ConfigError: no such column exists, or several have the heading.
    """
    if text in known:
        return text
    if above := [column.name for column in shown if column.heading == text]:
        return above[0]
    under = [name for name in known if heading_of(name) == text]
    if len(under) > 1:
        raise ConfigError(f"several columns have the heading '{text}'. Give one by its name: {', '.join(under)}")
    if under:
        return under[0]
    by_heading = {heading_of(name): name for name in known}
    hint = (
        did_you_mean(text, [*known, *by_heading, *plugin_names("metric")])
        or f" There are: {', '.join(JSON_KEYS)}, and settings such as train.steps."
    )
    raise ConfigError(f"no column '{text}'.{hint}")


def heading_of(name: str) -> str:
    """Returns the heading of a column, before duplicate headings are resolved."""
    if column := _measured(name):
        return column.heading
    group, _, last = name.rpartition(".")
    if not group or last not in AMBIGUOUS_KEYS:
        return last
    return group if last == "name" else f"{group.replace('.', ' ')} {last}"


def _writer(name: str) -> Callable[[Configuration], str]:
    def write(row: Configuration) -> str:
        value = row.get(name)
        if not setting_applies(name, row.settings) and row.expert is not None:
            return "-"
        if name == "reason" and isinstance(value, str) and value:
            return sanitise(first_line(value, "-"))[:MAX_CELL_WIDTH]
        if name == "capacity" and value is None and row.expert is not None:
            return "dropless"
        return cell(value)

    return write


def cell(value: Cell) -> str:
    """Formats any value for a table: short, on one line, and without control characters."""
    if value is None or value == []:
        return "-"
    if isinstance(value, list):
        return truncate_left(sanitise(",".join(format_setting(item) for item in value)))
    if isinstance(value, float):
        return f"{value:.4g}"
    return truncate_left(sanitise(format_setting(value)))


def truncate_left(text: str) -> str:
    """Returns the end of the text, which tells paths and run ids apart, when it is too long."""
    return text if len(text) <= MAX_CELL_WIDTH else "..." + text[3 - MAX_CELL_WIDTH :]


# From this value on, numbers with an interval are written with an exponent: a run that diverged may have any loss.
LARGE = 1e6


def _with_interval(value: float | None, interval: float | None, digits: int, factor: float = 1, sign: str = "") -> str:
    if value is None:
        return "-"
    digits, form = (2, "e") if abs(value) >= LARGE else (digits, "f")
    text = f"{factor * value:{sign}z.{digits}{form}}"
    unit = " %" if factor == 100 else ""
    if interval is None:
        return text + unit
    return text + unit + PLUS_MINUS + format_half_width(factor * interval, digits, form)


def interval_of(row: Configuration, name: str) -> float | None:
    """Returns half the width of the 95 % interval of a column's mean over seeds; None if it is unknown."""
    if (stored := row.number(f"{name}_interval")) is not None or name not in RESULTS:
        return stored
    values = [value for run in row.runs if (value := run.number(name)) is not None]
    return mean_and_interval(values).half_width if values else None


def write_with_interval(name: str, row: Configuration, value: float, interval: float | None) -> str:
    """Returns the value of a column with its interval, also for columns that tables write without one."""
    metric = BY_KEY.get(name)
    if name not in _RESULTS or metric is None:
        return cell(value)
    written = _WRITERS[name](row) if name in _WRITERS else metric.write(value)
    if interval is None or PLUS_MINUS in written:
        return written
    if metric.format.endswith("percent"):
        return _with_interval(value, interval, 1, 100, "+" if metric.format.startswith("signed") else "")
    if metric.format == "number":
        return _with_interval(value, interval, metric.digits)
    return f"{written}{PLUS_MINUS}{metric.write(interval)}"


def _loss(name: str) -> Callable[[Configuration], str]:
    return lambda row: _with_interval(row.number(name), row.number(f"{name}_interval"), BY_KEY[name].digits)


def _difference(name: str) -> Callable[[Configuration], str]:
    def write(row: Configuration) -> str:
        value = row.number(name)
        if value == 0 and row.is_own_baseline:
            return "0"
        return _with_interval(value, row.number(f"{name}_interval"), 1, 100, "+")

    return write


def _ratio(name: str) -> Callable[[Configuration], str]:
    return lambda row: "-" if row.price is None else format_ratio(row.price.ratio(name))


def format_ratio(ratio: Ratio) -> str:
    """Returns a ratio such as 1.32 (1.10 to 1.61), 1.32 (above 1.10), or the bound above 1.50; `-` if unknown."""
    low, high = (None if limit is None else f"{limit:.2f}" for limit in (ratio.low, ratio.high))
    limits = f"{low} to {high}" if low and high else f"above {low}" if low else f"below {high}" if high else ""
    if ratio.value is None:
        return limits or "-"
    return f"{ratio.value:.2f}" + (f" ({limits})" if limits else "")


def _shared_seeds(row: Configuration) -> str:
    """Returns the number of the row's seeds that the baseline also has."""
    shared = row.shared_seeds
    return "-" if shared is None or row.is_own_baseline else f"{shared} of {len(row.seeds)}"


def _verdict(row: Configuration) -> str:
    """Returns the verdict, and the number of further seeds that would decide; empty without a verdict."""
    if row.verdict is None:
        return ""
    return f"{row.verdict}" + (f", +{plural(row.more_seeds, 'seed')}" if row.more_seeds else "")


def _written(metric: Metric) -> Callable[[Configuration], str]:
    def write(row: Configuration) -> str:
        value = row.number(metric.key)
        return "-" if value is None else metric.write(value)

    return write


_WRITERS: dict[str, Callable[[Configuration], str]] = {
    **{name: _loss(name) for name in ("val_loss", "val_bpb", "capacity_val_loss")},
    **{name: _difference(name) for name in ("vs_baseline", "equal_time")},
    **{name: _ratio(name) for name in ("compute_multiplier", "effective_speedup")},
    "shared_seeds": _shared_seeds,
}
_RESULTS = {
    "verdict": Column("verdict", "verdict", _verdict, left=True),
    **{
        metric.key: Column(metric.key, metric.label, _WRITERS.get(metric.key) or _written(metric))
        for metric in METRICS
        if metric.kind != TRAINING
    },
}
_TEXT = (
    "run",
    "runs",
    "sweep",
    "status",
    "reason",
    "path",
    "router",
    "balance",
    "drop",
    "match",
    "corpus",
    "corpus_sha256",
    "data.path",
    "data.name",
    "model.name",
    "task.name",
    "optim.name",
    "optim.schedule",
    "baseline",
)
