"""The chart of a report: points where they belong, intervals, axes, and hostile names."""

from pathlib import Path
from typing import Any

import pytest

from moe_cli.errors import ConfigError
from moe_cli.report.load import rows_below
from moe_cli.report.render.terminal_chart import Chart, Point, Series, chart_lines, make_axis, make_chart
from moe_cli.report.table import ReportQuery, ReportTable, build_table
from tests.report.folders import complete, stopped, sweep_of_three_seeds


@pytest.fixture
def view(tmp_path: Path) -> ReportTable:
    sweep_of_three_seeds(tmp_path)
    return build_table(rows_below(tmp_path), ReportQuery())


def drawn(chart: Chart, width: int = 60, **more: Any) -> list[str]:
    return [each.plain for each in chart_lines(chart, "t", width, **more)]


def test_points_are_the_means_of_rows(view: ReportTable) -> None:
    """Mean over seeds against the column, a series for each k, with the half width of the interval of the table."""
    chart = make_chart(view, "val_bpb:expert:k")
    assert ["dense", "k=1", "k=2"] == [each.name for each in chart.series]
    assert [(8.0, pytest.approx(1.768)), (16.0, pytest.approx(1.718))] == [
        (point.x, point.y) for point in chart.series[2].points
    ]
    [row] = [row for row in view.rows if row["expert"] == 16]
    assert row["val_bpb_interval"] == chart.series[2].points[1].half_width
    assert chart == make_chart(view, "val_bpb:expert")


def test_derived_columns(view: ReportTable) -> None:
    """Sparsity is 1 - k/E, 0 for a dense model; FLOPs are those of the forward pass, of the whole training, and of its parts."""
    chart = make_chart(view, "val_bpb:sparsity")
    assert {0.0, 1 - 1 / 8, 1 - 2 / 8, 1 - 2 / 16} == {point.x for each in chart.series for point in each.points}
    tokens = view.rows[0]["tokens"]
    expected_flops = {
        "active_flops": 2e6,
        "train_flops": 6e6 * tokens,
        "model_flops": 5e6 * tokens,
        "optimizer_flops": 1e6 * tokens,
    }
    for name, expected in expected_flops.items():
        chart = make_chart(view, f"val_bpb:{name}")
        assert {expected} == {point.x for each in chart.series for point in each.points}


def test_rows_without_a_number_are_counted(tmp_path: Path) -> None:
    """A run that has no result is left out, and it is said."""
    complete(tmp_path, 1.8, expert=8)
    complete(tmp_path, 1.7, expert=16, results={"max_violation": None})
    stopped(tmp_path, "failed", expert=4)
    chart = make_chart(build_table(rows_below(tmp_path), ReportQuery()), "max_violation:expert")
    assert 1 == chart.left_out
    assert "1 row without a number" in drawn(chart)[-1]


def test_marks_stand_where_their_values_are() -> None:
    """Corners of the frame for the extremes, an interval as a bar through its point, `=` where series meet."""
    one = Series("a", (Point(0.0, 1.0, None), Point(2.0, 3.0, None)))
    two = Series("b", (Point(2.0, 3.0, None), Point(1.0, 2.0, 0.5)))
    lines = drawn(Chart("y", "x", (one, two), 0), width=40, height=9)
    body = [line.partition("┤" if "┤" in line else "│")[2] for line in lines[2:11]]
    assert "=" == body[0].strip()
    assert "o" == body[-1][0]
    assert len(body[0]) == max(map(len, body))
    column = round((len(body[0]) - 1) / 2)
    middle = [row[column] if len(row) > column else " " for row in body]
    assert "  │" == "".join(middle)[:3]
    assert "x" == middle[4]
    assert "│x│" == "".join(middle)[3:6]


@pytest.mark.parametrize(
    ("values", "log"),
    [((1.0, 16.0), True), ((1.0, 8.0), False), ((0.0, 100.0), False), ((-5.0, 100.0), False), ((3.0, 3.0), False)],
)
def test_axes_are_logarithmic_beyond_a_factor_of_eight(values: tuple[float, float], log: bool) -> None:
    """Only where all values are above zero; place and value are each other's inverse."""
    axis = make_axis(values)
    assert log == axis.log
    assert 0.3 == pytest.approx(axis.place(axis.value(0.3))) if values[0] != values[1] else axis.place(3.0) == 0.5


def test_a_log_axis_puts_equal_factors_at_equal_distances() -> None:
    """1, 4 and 16: the middle is in the middle, and it is said."""
    lines = drawn(Chart("y", "x", (Series("", (Point(1, 1, None), Point(4, 1, None), Point(16, 1, None))),), 0), 44)
    [row] = [line for line in lines if line.count("o") == 3]
    first, middle, last = (place for place, character in enumerate(row) if character == "o")
    assert abs((middle - first) - (last - middle)) <= 1
    assert any("x: log axis" in line for line in lines)


def test_labels_of_a_short_axis_differ() -> None:
    """1,200,100 to 1,200,900 is not five times 1.20M."""
    lines = drawn(Chart("y", "x", (Series("", (Point(1_200_100, 1, None), Point(1_200_900, 2, None))),), 0), 80)
    labels = next(line for line in lines if "1,200,100" in line).split()
    assert len(labels) == len(set(labels)) > 2


def test_labels_are_those_of_the_points_where_they_have_room() -> None:
    """1, 4 and 8 experts have a label each; of 40 values only even steps are labelled."""
    few = Series("", tuple(Point(x, x, None) for x in (1, 4, 8)))
    assert any(line.split() == ["1", "4", "8"] for line in drawn(Chart("y", "x", (few,), 0), 80))
    many = Series("", tuple(Point(x, x, None) for x in range(1, 8)))
    assert not any(line.split() == [*"1234567"] for line in drawn(Chart("y", "x", (many,), 0), 15))


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("plain", [False, True])
def test_lines_keep_to_the_width(width: int, plain: bool) -> None:
    """Also with many series; in ASCII nothing else."""
    series = tuple(Series(f"setting={n}", (Point(n, n * n, 0.5),)) for n in range(1, 12))
    lines = drawn(Chart("y", "x", series, 2), width, ascii_only=plain)
    assert max(map(len, lines)) <= width
    assert plain == all(line.isascii() for line in lines)
    assert any("marks repeat" in line for line in lines)


def test_hostile_names_are_shown_not_obeyed(tmp_path: Path) -> None:
    """A title and a setting with escapes are printable."""
    for expert in (2, 4):
        for name in ("a\x1b[2J", "[red]b"):
            complete(tmp_path, 1.8, expert=expert, data="text", data__path=name)
    chart = make_chart(build_table(rows_below(tmp_path), ReportQuery()), "val_bpb:expert:data.path")
    lines = [each.plain for each in chart_lines(chart, "t\x1b]0;x\x07\n", 100)]
    assert all(line.isprintable() for line in lines)
    assert "[red]b" in lines[1]


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ("val_bpb", "as Y:X"),
        ("a:b:c:d", "as Y:X"),
        (":expert", "as Y:X"),
        ("val_bpb:nope", "no column 'nope'"),
        ("router:expert", "no row has a number"),
    ],
)
def test_wrong_requests_are_refused(view: ReportTable, request_: str, says: str) -> None:
    """With what to give instead."""
    with pytest.raises(ConfigError, match=says):
        make_chart(view, request_)
