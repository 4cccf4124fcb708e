"""Numbers as people read them."""

import pytest

from moe_cli.formatting import (
    bars,
    count,
    duration,
    format_bytes,
    format_flops,
    format_half_width,
    parse_duration,
    percent,
    plural,
)


def test_one_has_no_s() -> None:
    """1 thread, 2 threads; thousands are set apart."""
    assert ["0 runs", "1 run", "2 runs", "1,024 runs"] == [plural(number, "run") for number in (0, 1, 2, 1024)]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (853, "853"),
        (999.6, "1.00k"),
        (24_120, "24.1k"),
        (2_000_000, "2.00M"),
        (1.31e9, "1.31G"),
        (4.16e24, "4.16Y"),
        (4.16e28, "4.16e+04Y"),
    ],
)
def test_count(value: float, text: str) -> None:
    """Three significant digits and a unit."""
    assert count(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (853, "853 B"), (93_900, "93.9 kB"), (515e6, "515 MB"), (4.16e28, "4.16e+04 YB")]
)
def test_sizes_have_a_unit_of_their_own(value: float, text: str) -> None:
    """A space stands between number and unit; FLOPs are written in the same way."""
    assert format_bytes(value) == text
    assert format_flops(value) == text.removesuffix("B") + "FLOP"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0s"), (59.6, "1m 0s"), (92, "1m 32s"), (7500, "2h 5m"), (4e9, "126 years")]
)
def test_duration(seconds: float, text: str) -> None:
    """Two units at most, and never 60 of one."""
    assert duration(seconds) == text


@pytest.mark.parametrize(("share", "text"), [(0.211, "21 %"), (0.004, "0.4 %")])
def test_percent(share: float, text: str) -> None:
    """One digit after the point below ten."""
    assert percent(share) == text
    assert percent(share, signed=True) == f"+{text}"


def test_bars() -> None:
    """A fair share is half height, twice of it the top; many experts share a bar, which shows the busiest."""
    assert bars([10, 10, 10, 10], 8) == "▅▅▅▅"
    assert bars([40, 0, 0, 0], 8) == "█▁▁▁"
    assert bars([1, 3, 1, 1], 2) == "█▃"
    assert bars([0, 0], 8) == "▁▁"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30),
        ("10m", 600),
        ("2h", 7200),
        ("1d", 86_400),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        ("", None),
        ("0s", None),
        ("5", None),
        ("m", None),
        ("-3s", None),
        ("1.5h", None),
        ("5s1h", None),
        ("\u0665s", None),
    ],
)
def test_durations_are_read(text: str, seconds: float | None) -> None:
    """Numbers with units, the largest first; nothing else, and not nothing."""
    assert seconds == parse_duration(text)


def test_an_interval_that_rounds_to_nothing_is_small_and_not_absent() -> None:
    assert ["0.1", "<0.1", "0.0", "<0.001"] == [
        format_half_width(*case) for case in [(0.05001, 1), (0.04, 1), (0.0, 1), (1e-9, 3)]
    ]
