"""Output of moe runs diff: two runs side by side."""

from rich.text import Text

from moe_cli.cli.console import CommandConsole, print_lines, text_width
from moe_cli.cli.echo import ascii_only
from moe_cli.config.ranges import format_setting
from moe_cli.formatting import BARS, DIGITS, bars, percent, sanitise
from moe_cli.metrics import BY_KEY
from moe_cli.moe.max_violation import max_violation
from moe_cli.report.expert_usage import expert_load
from moe_cli.report.render.terminal import TextColumn, table_lines, wrap
from moe_cli.report.render.terminal_chart import Chart, Point, Series, chart_lines
from moe_cli.report.run_comparison import RunComparison, curves_over_tokens

PLOT_HEIGHT = 12


def print_comparison(comparison: RunComparison) -> None:
    """Prints the settings that differ, the metrics, the curves and the load of both runs."""
    console = CommandConsole()
    width = text_width(console)
    lines = []
    for letter, status in (("A", comparison.a), ("B", comparison.b)):
        lines.append(
            Text.assemble(
                (letter, "bold"), f"  {sanitise(status.run.sweep)}/{sanitise(status.run.id)}   {status.status}"
            )
        )
    lines += [Text(f"   not comparable: {caveat}", "yellow") for caveat in comparison.caveats]
    lines += _settings(comparison, width) + _measures(comparison, width)
    lines += _curves(comparison, width) + _loads(comparison, width)
    print_lines(console, lines)


def _settings(comparison: RunComparison, width: int) -> list[Text]:
    if not comparison.settings:
        return [Text(), Text("no setting differs", "bold")]
    pairs = comparison.settings
    table = table_lines(
        [
            TextColumn("settings", list(pairs), align_left=True, min_width=12),
            TextColumn("A", [format_setting(a) for a, _ in pairs.values()], align_left=True, min_width=8),
            TextColumn("B", [format_setting(b) for _, b in pairs.values()], align_left=True, min_width=8),
        ],
        width,
    )
    return [Text(), *table]


def _measures(comparison: RunComparison, width: int) -> list[Text]:
    shown = comparison.measures
    if not shown:
        return [Text(), Text("no results yet", "dim")]
    styles = {"better": "green", "worse": "red", "": ""}
    return [
        Text(),
        *table_lines(
            [
                TextColumn("results", [row.name for row in shown], align_left=True),
                TextColumn("A", [_written(row.name, row.a) for row in shown]),
                TextColumn("B", [_written(row.name, row.b) for row in shown]),
                TextColumn("B - A", [_written(row.name, row.difference, signed=True) for row in shown]),
                TextColumn("", ["" if row.relative is None else percent(row.relative, signed=True) for row in shown]),
                TextColumn(
                    "",
                    [row.verdict and f"B {row.verdict}" for row in shown],
                    align_left=True,
                    styles=[styles[row.verdict] for row in shown],
                ),
            ],
            width,
        ),
        *wrap("One run each: a difference may be due to the seed. Means over seeds: moe report", width, "dim"),
    ]


def _written(name: str, value: float | None, signed: bool = False) -> str:
    if value is None:
        return "-"
    metric = BY_KEY[name]
    if signed and not value:
        return "0"
    if metric.format in ("count", "bytes"):
        return ("+" if signed and value > 0 else "") + metric.write(value)
    # One digit more than in a table, because small differences matter here.
    return f"{value:{'+' if signed else ''}.{metric.digits + 1}f}"


def _curves(comparison: RunComparison, width: int) -> list[Text]:
    curves = {name: curve for name, curve in curves_over_tokens(comparison).items() if curve.points}
    if not curves:
        return []
    series = tuple(Series(name, tuple(Point(*point, None) for point in curve.points)) for name, curve in curves.items())
    units = ", ".join(dict.fromkeys(curve.unit for curve in curves.values()))
    chart = Chart(f"validation, {units},", "training tokens", series, 0)
    return [Text(), *chart_lines(chart, "curves", min(width, 100), PLOT_HEIGHT, ascii_only())]


def _loads(comparison: RunComparison, width: int) -> list[Text]:
    loads = expert_load(comparison.a.run), expert_load(comparison.b.run)
    layers = sorted({*loads[0], *loads[1]})
    if not layers:
        return []
    room = max(4, min(32, (width - 24) // 2))

    def drawn(load: list[float] | None) -> tuple[str, str]:
        if load is None:
            return "dense", "-"
        return bars(load, room, DIGITS if ascii_only() else BARS), percent(max_violation(load), signed=True)

    first, second = [drawn(loads[0].get(layer)) for layer in layers], [drawn(loads[1].get(layer)) for layer in layers]
    return [
        Text(),
        *table_lines(
            [
                TextColumn("load", [f"L{layer + 1}" for layer in layers], align_left=True),
                TextColumn("A", [bar for bar, _ in first], align_left=True),
                TextColumn("MaxVio", [worst for _, worst in first]),
                TextColumn("B", [bar for bar, _ in second], align_left=True),
                TextColumn("MaxVio", [worst for _, worst in second]),
            ],
            width,
        ),
    ]
