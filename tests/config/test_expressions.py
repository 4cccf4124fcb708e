"""Conditions: what they mean, what null does, and that nothing else can be written."""

import operator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_cli.config.expressions import LONGEST, parse_expression
from moe_cli.errors import ConfigError

VALUES: dict[str, Any] = {
    "expert": 8,
    "k": 2,
    "capacity": None,
    "router": "topk",
    "train.steps": 500,
    "router.renormalise": True,
    "val_bpb": 1.75,
    "seeds": [0, 1],
    "absent": None,
}
SIGNS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq, "!=": operator.ne}


@given(st.integers(-9, 9), st.sampled_from(sorted(SIGNS)), st.integers(-9, 9))
def test_comparisons_are_those_of_numbers(left: int, sign: str, right: int) -> None:
    """Every sign compares a name with a number, and a name with a name, as Python does."""
    expected = SIGNS[sign](left, right)
    assert parse_expression(f"a {sign} {right}").holds({"a": left}) == expected
    assert parse_expression(f"a {sign} b.c").holds({"a": left, "b.c": right}) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("k <= expert", True),
        ("expert >= 8 and k == 1", False),
        ("expert >= 9 or k == 2", True),
        ("not expert == 8", False),
        ("not (expert == 8 and k == 1)", True),
        ("expert == 1 or expert == 8 and k == 1", False),
        ("1 < k < expert", True),
        ("1 < k < 2", False),
        ("router == 'topk'", True),
        ('router != "switch"', True),
        ("router == 8", False),
        ("expert in [1, 8]", True),
        ("expert in (1, 2)", False),
        ("expert not in [1, 2]", True),
        ("1 in seeds", True),
        ("2 in seeds", False),
        ("'top' in router", True),
        ("train.steps == 500", True),
        ("router.renormalise", True),
        ("not router.renormalise", False),
        ("router.renormalise == true", True),
        ("expert / k >= 4", True),
        ("expert - 2 * k == 4", True),
        ("expert + k > 10", False),
        ("val_bpb < 1.8 and -k < -1", True),
        ("true", True),
        ("false", False),
    ],
)
def test_meaning(text: str, expected: bool) -> None:
    """Each form of condition, decided by hand."""
    assert parse_expression(text).holds(VALUES) == expected


@pytest.mark.parametrize("sign", [*SIGNS, "in", "not in"])
def test_comparison_with_a_value_that_is_not_there_is_false(sign: str) -> None:
    """Null is neither less, greater, equal nor unequal, on either side."""
    other = "[1, 2]" if "in" in sign else "1"
    assert not parse_expression(f"capacity {sign} {other}").holds(VALUES)
    assert not parse_expression(f"1 {sign} capacity").holds(VALUES)
    assert not parse_expression(f"capacity {sign} absent").holds(VALUES)


@pytest.mark.parametrize("word", ["null", "none", "None", "NULL"])
def test_null_is_asked_for_by_name(word: str) -> None:
    """Only equality with the word tells whether a value is there; an order with it is false."""
    assert parse_expression(f"capacity == {word}").holds(VALUES)
    assert not parse_expression(f"capacity != {word}").holds(VALUES)
    assert parse_expression(f"{word} != expert").holds(VALUES)
    assert not parse_expression(f"expert == {word}").holds(VALUES)
    assert not parse_expression(f"expert >= {word}").holds(VALUES)


def test_arithmetic_with_nothing_or_by_zero_has_no_value() -> None:
    """A calculation that cannot be done compares as null."""
    assert not parse_expression("expert / 0 > 1").holds(VALUES)
    assert not parse_expression("expert * absent > 1").holds(VALUES)
    assert not parse_expression("-absent < 1").holds(VALUES)


def test_names_are_listed_and_checked() -> None:
    """Names are the dotted words; one that is unknown is refused with the nearest known."""
    expression = parse_expression("exprt > 3 and train.steps == none")
    assert expression.names == {"exprt", "train.steps"}
    with pytest.raises(ConfigError, match=r"no column 'exprt'.*Did you mean 'expert'"):
        expression.check(VALUES)
    parse_expression("k <= expert").check(VALUES)
    with pytest.raises(ConfigError, match="quote it: 'xyzzy'"):
        parse_expression("router == xyzzy").check(VALUES)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "k.__class__()",
        "(1).real > 0",
        "'a'.upper == 1",
        "[k for k in seeds]",
        "lambda: 1",
        "k ** 9",
        "k << 9",
        "k if expert else 1",
        "{1: 2}",
        "{1, 2}",
        "f'{k}' == '2'",
        "seeds[0] == 1",
        "1j == 1",
        "b'a' == 1",
        "(k := 3)",
        "*seeds",
        "k is None",
        "~k == 1",
        "... == 1",
    ],
)
def test_nothing_else_can_be_written(text: str) -> None:
    """Calls, subscripts, comprehensions, powers and the like are refused when read, not when they are met."""
    with pytest.raises(ConfigError):
        parse_expression(text)


@pytest.mark.parametrize("text", ["", "  ", "k >", "k == 1)", "k == 1\nk == 2", "k \0", "(" * 900, "-" * 900 + "k"])
def test_what_cannot_be_read_is_an_error_of_the_user(text: str) -> None:
    """Half a condition, two of them, or a tower of brackets: never a crash."""
    with pytest.raises(ConfigError):
        parse_expression(text).holds(VALUES)


def test_a_single_equals_sign_is_explained() -> None:
    """The likeliest slip gets its own hint."""
    with pytest.raises(ConfigError, match="Write == to compare"):
        parse_expression("expert=8")


def test_a_very_long_condition_is_refused() -> None:
    """Length is bounded, so that depth is."""
    assert parse_expression("k == 2".ljust(LONGEST)).holds(VALUES)
    with pytest.raises(ConfigError, match="too long"):
        parse_expression("k == 2".ljust(LONGEST + 1))


@pytest.mark.parametrize("text", ["expert > 'a'", "expert in 3", "router + 1 > 2", "router.renormalise * 2 > 1"])
def test_what_has_no_order_or_sum_is_an_error_of_the_user(text: str) -> None:
    """Text against a number, and sums of text, are refused in words."""
    with pytest.raises(ConfigError, match="cannot"):
        parse_expression(text).holds(VALUES)


@pytest.mark.parametrize("text", ["expert", "'a'", "3", "expert and k"])
def test_a_value_is_no_condition(text: str) -> None:
    """A number or text alone is neither true nor false."""
    with pytest.raises(ConfigError, match="is not a condition"):
        parse_expression(text).holds(VALUES)
