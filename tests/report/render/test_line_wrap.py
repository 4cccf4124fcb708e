"""Lines of text on a terminal."""

from hypothesis import given
from hypothesis import strategies as st

from moe_cli.report.render.line_wrap import wrap_lines

QUANTITIES = ("18.5 MB", "5.32 MFLOP", "853 B", "-0.5 %", "-0.2 % +- 0.9", "5.187 +- 0.150")


@given(st.lists(st.sampled_from([*QUANTITIES, "a", "word", "expert=8"]), min_size=1, max_size=30), st.integers(20, 60))
def test_no_quantity_is_broken(parts: list[str], width: int) -> None:
    """A number stays with its unit and its interval; the words are those of the text, and lines keep to the width."""
    text = "; ".join(parts)
    lines = wrap_lines(text, width)
    assert text == " ".join(line.strip() for line in lines)
    assert max(map(len, lines)) <= width
    for quantity in QUANTITIES:
        assert text.count(quantity) == sum(line.count(quantity) for line in lines)
