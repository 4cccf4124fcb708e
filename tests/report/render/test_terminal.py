"""Tables that never wrap, and sparklines."""

import pytest

from moe_cli.formatting import sparkline
from moe_cli.report.render.terminal import TextColumn, table_lines

TABLE = [
    TextColumn("name", ["a", "bb-long-name"], align_left=True, min_width=4),
    TextColumn("loss", ["1.5", "12.25"]),
    TextColumn("tok/s", ["10", "20"], drop_order=1),
    TextColumn("dead", ["0 %", "1 %"], drop_order=2),
]


def texts(width: int | None) -> list[str]:
    return [line.plain for line in table_lines(TABLE, width)]


def test_everything_is_shown_where_there_is_room() -> None:
    """Text to the left, numbers to the right, under their headings."""
    expected = [
        "name           loss  tok/s  dead",
        "a               1.5     10   0 %",
        "bb-long-name  12.25     20   1 %",
    ]
    assert expected == texts(None) == texts(80)


@pytest.mark.parametrize("width", range(1, 40))
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    """Whatever its width."""
    assert max(map(len, texts(width))) <= width


def test_long_text_shrinks_before_columns_leave() -> None:
    """And of columns the one of the largest number leaves first."""
    assert texts(26)[2] == "bb-lo…  12.25     20   1 %"
    assert texts(20)[0].split() == ["name", "loss", "tok/s"]
    assert texts(12)[0].split() == ["name", "loss"]


def test_wide_characters_and_escapes_do_not_shift_columns() -> None:
    """A character may be two columns wide; control characters are shown as question marks."""
    table = [TextColumn("", ["深い", "a\x1b[2J"], align_left=True), TextColumn("", ["1", "2"])]
    lines = table_lines(table, 80, header=False)
    assert [line.plain for line in lines] == ["深い   1", "a?[2J  2"]
    assert [line.cell_len for line in lines] == [8, 8]


def test_empty_columns_take_no_room() -> None:
    """A column without heading and text is as if it were not there."""
    table = [TextColumn("a", ["1"]), TextColumn("", [""]), TextColumn("b", ["2"])]
    assert table_lines(table, 80)[1].plain == "1  2"


def test_sparkline_spans_lowest_to_highest() -> None:
    """The lowest value is the lowest block, the highest the highest; neighbours are averaged beyond the width."""
    assert sparkline([1.0, 8.0, 4.5], 10)[:2] == "▁█"
    assert sparkline([3.0, 3.0], 10) == "▁▁"
    assert sparkline([0.0, 0.0, 4.0, 9.0, 10.0, 14.0], 3) == "▁▅█"
    assert sparkline([], 5) == ""
