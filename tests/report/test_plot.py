"""Charts of characters: every point where it belongs, within the width, whatever the names."""

import math
import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_cli.report.plot import Axis, Chart, Point, Series, chart_lines, make_axis
from tests.report.folders import complete
from tests.report.page.pages import HOSTILE, report, sweep

numbers = st.floats(-1e6, 1e6, allow_nan=False)


def drawn(chart: Chart, width: int = 80, height: int = 18, ascii_only: bool = False) -> list[str]:
    return [line.plain for line in chart_lines(chart, "title", width, height, ascii_only)]


def one(*points: tuple[float, float]) -> Chart:
    return Chart("y", "x", (Series("", tuple(Point(x, y, None) for x, y in points)),), 0)


def marks(lines: list[str]) -> list[tuple[int, int]]:
    """(column, row) of every o within the frame, from the bottom left."""
    body = [re.split("[┤│]", line, maxsplit=1)[1] for line in lines if re.match(r"^ *\S* [┤│]", line)]
    return [(match.start(), len(body) - 1 - row) for row, line in enumerate(body) for match in re.finditer("o", line)]


def test_corners() -> None:
    """The least is at the left and the bottom, the most at the right and the top, halfway in the middle."""
    found = sorted(marks(drawn(one((0, 0), (50, 5), (100, 10)))))
    (x0, y0), (x1, y1), (x2, y2) = found
    assert (0, 0, 17) == (x0, y0, y2)
    assert x1 == pytest.approx(x2 / 2, abs=1)
    assert y1 in (8, 9)


def test_a_wide_axis_is_logarithmic() -> None:
    """Powers of ten are evenly apart, and it is said."""
    lines = drawn(one((1, 1), (10, 2), (100, 3), (1000, 4)))
    columns = [x for x, _ in sorted(marks(lines))]
    steps = [b - a for a, b in pairwise(columns)]
    assert max(steps) - min(steps) <= 1
    assert "x: log axis" in lines[-1]


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=12), st.integers(30, 200))
def test_everything_is_within_the_width(points: list[tuple[float, float]], width: int) -> None:
    """No line is wider than asked, and no point is lost: each lies alone or under another."""
    lines = drawn(one(*points), width)
    assert max(map(len, lines)) <= width
    assert 1 <= len(marks(lines)) <= len(set(points))


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.floats(0, 1))
def test_an_axis_is_its_own_inverse(a: float, b: float, place: float) -> None:
    """The value at a place lies at that place."""
    axis = make_axis([a, b])
    if axis.high > axis.low * 1.000001:
        assert place == pytest.approx(axis.place(axis.value(place)), abs=1e-6)
    assert axis.log == (max(a, b) / min(a, b) > 8)
    assert 0.5 == Axis(2.0, 2.0, False).place(2.0)


def test_intervals_reach_as_far_as_they_are() -> None:
    """The bar of a point covers its interval, and the axis has room for it."""
    chart = Chart("y", "x", (Series("", (Point(0, 0, None), Point(1, 5, 5.0), Point(2, 10, None))),), 0)
    lines = drawn(chart)
    inside = [line.rsplit("┤", 1)[-1] if "┤" in line else line.split("│", 1)[1] for line in lines[1:-3]]
    column = max(
        place for line in inside for place, character in enumerate(line[:-1]) if character in "│o" and 10 < place < 60
    )
    assert 17 <= sum(line[column : column + 1] in ("│", "o") for line in inside)


def test_where_series_meet() -> None:
    """Two series at one place are a mark of their own, explained below."""
    series = (Series("a", (Point(0, 0, None), Point(1, 1, None))), Series("b", (Point(1, 1, None),)))
    lines = drawn(Chart("y", "x", series, 2))
    assert lines[1].strip() == "o a   x b"
    assert sum(line.count("=") for line in lines[2:-2]) == 1
    assert "= several series   2 rows without a number" in lines[-1]


def test_ascii_alone() -> None:
    """Where nothing else can be shown, nothing else is."""
    assert "".join(drawn(one((0, 0), (1, 1)), ascii_only=True)).isascii()


def test_seeds_become_one_point_each(tmp_path: Path) -> None:
    """From the command: a point for each configuration, dense apart, the columns by name."""
    sweep(tmp_path)
    for request in ("val_bpb:expert", "val_loss:sparsity", "val_bpb:active_flops", "tokens_per_second:params:expert"):
        result = report(tmp_path, "--plot", request)
        assert result.exit_code == 0, result.output
        y, x = request.split(":")[:2]
        assert f"{y} against {x}" in result.stdout
    frame = [
        line
        for line in report(tmp_path, "--plot", "val_bpb:expert").stdout.splitlines()
        if re.match(r"^ *\S* [┤│]", line)
    ]
    assert 4 == sum(line.split("┤")[-1].split("│", 1)[-1].count(mark) for line in frame for mark in "ox")


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ("val_bpb", "give two columns as Y:X"),
        ("a:b:c:d", "give two columns as Y:X"),
        ("val_bpb:expertt", "Did you mean 'expert'?"),
        ("status:expert", "no row has a number for both status and expert"),
    ],
)
def test_what_cannot_be_drawn(tmp_path: Path, request_: str, message: str) -> None:
    """With exit code 2 and what to write instead."""
    sweep(tmp_path, seeds=1, experts=(1, 4))
    result = report(tmp_path, "--plot", request_)
    assert (2, True) == (result.exit_code, message in result.stderr), result.output
    assert 2 == report(tmp_path, "--plot", "val_bpb:expert", "--format", "csv").exit_code


def test_hostile_names_are_harmless(tmp_path: Path) -> None:
    """In the title and among the marks."""
    complete(tmp_path, 1.9, "a\x1b[2J", expert=1)
    complete(tmp_path, 1.8, "a\x1b[2J", results={"note": HOSTILE}, expert=4, k=2)
    result = report(tmp_path, "--plot", "val_bpb:expert:note")
    assert (0, False) == (result.exit_code, "\x1b" in result.stdout)


def test_one_point_and_none(tmp_path: Path) -> None:
    """A single point has a chart of its own; numbers that are not finite are no points."""
    assert [(0, 0)] != marks(drawn(one((3, 3))))
    assert 1 == len(marks(drawn(one((3, 3)))))
    complete(tmp_path, math.nan, expert=4)
    assert 2 == report(tmp_path, "--plot", "val_bpb:expert").exit_code
