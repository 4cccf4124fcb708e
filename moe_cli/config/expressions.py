"""Conditions on named values, such as `expert >= 8 and router != "switch"`, evaluated without running code.

Names are columns or settings (`expert`, `train.steps`); values are numbers, text in quotes, true, false, null, lists.
`== null` and `!= null` test for a missing value. Every other comparison with a missing value is false.
`k == [1,2]` tests for a list; where an order or a number is needed, a list of whole numbers is its mean.
"""

import ast
import operator
import re
import warnings
from collections.abc import Callable, Collection, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from moe_cli.config.build import did_you_mean, mean_of_list
from moe_cli.config.ranges import format_setting
from moe_cli.errors import ConfigError

LONGEST = 1000
DEEPEST = 50
WORDS = {"null": None, "none": None, "true": True, "false": False}
COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda value, options: value in options,
    ast.NotIn: lambda value, options: value not in options,
}
ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


@dataclass(frozen=True)
class Expression:
    """A parsed condition; see `parse_expression`."""

    text: str
    tree: ast.expr

    @cached_property
    def names(self) -> frozenset[str]:
        """Returns the columns or settings that the condition refers to."""
        return frozenset(_names(self.tree))

    @cached_property
    def parts(self) -> tuple["Expression", ...]:
        """Returns the conditions that `and` joins; the condition itself if there is only one."""
        if isinstance(self.tree, ast.BoolOp) and isinstance(self.tree.op, ast.And):
            return tuple(Expression(self.text, part) for part in self.tree.values)
        return (self,)

    def check(self, known: Collection[str], kind: str = "column") -> None:
        """Raises ConfigError when it names something that is not among `known`, which are of this kind."""
        for name in sorted(self.names - set(known)):
            hint = did_you_mean(name, known) or f" If it is text, quote it: '{name}'."
            raise ConfigError(f"no {kind} '{name}' in '{self.text}'.{hint}")

    def renamed(self, names: Mapping[str, str]) -> "Expression":
        """Returns the same condition with other names, such as columns in place of their headings."""
        return Expression(self.text, _Renaming(names).visit(deepcopy(self.tree))) if self.names & names.keys() else self

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Returns whether the condition is true of the values; an absent value counts as null.

        Raises:
            ConfigError: it compares values that have no order, or is not a condition.
        """
        return self._truth(self.tree, values)

    def _truth(self, node: ast.expr, values: Mapping[str, Any]) -> bool:
        if isinstance(node, ast.BoolOp):
            parts = (self._truth(part, values) for part in node.values)
            return all(parts) if isinstance(node.op, ast.And) else any(parts)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return not self._truth(node.operand, values)
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            return all(self._compare(*pair, values) for pair in zip(sides, node.ops, sides[1:], strict=False))
        value = self._value(node, values)
        if value is None or isinstance(value, bool):
            return bool(value)
        source = ast.unparse(node)
        raise ConfigError(f"'{source}' in '{self.text}' is not a condition. Compare it: {source} == ...")

    def _compare(self, left: ast.expr, op: ast.cmpop, right: ast.expr, values: Mapping[str, Any]) -> bool:
        first, second = self._value(left, values), self._value(right, values)
        if isinstance(op, ast.Lt | ast.LtE | ast.Gt | ast.GtE):
            first, second = mean_of_list(first), mean_of_list(second)
        if isinstance(op, ast.Eq | ast.NotEq) and any(isinstance(side, list | tuple) for side in (first, second)):
            # As reports have the lists of settings, in text: k == [1,2].
            first, second = (
                format_setting(side) if isinstance(side, list | tuple) else side for side in (first, second)
            )
        elif isinstance(first, str):
            second = _as_text(right, second)
        elif isinstance(second, str):
            first = _as_text(left, first)
        if first is None or second is None:
            tests_null = isinstance(op, ast.Eq | ast.NotEq) and (_is_null(left) or _is_null(right))
            return tests_null and (first is second) == isinstance(op, ast.Eq)
        try:
            return bool(COMPARISONS[type(op)](first, second))
        except TypeError:
            raise ConfigError(
                f"'{self.text}' cannot compare {format_setting(first)} with {format_setting(second)}."
            ) from None

    def _value(self, node: ast.expr, values: Mapping[str, Any]) -> Any:
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.List | ast.Tuple):
            return [self._value(item, values) for item in node.elts]
        if isinstance(node, ast.UnaryOp):
            number = self._number(node.operand, values)
            return None if number is None else -number if isinstance(node.op, ast.USub) else number
        if isinstance(node, ast.BinOp):
            return self._arithmetic(node, values)
        if isinstance(node, ast.Name | ast.Attribute):
            name = _dotted(node)
            return WORDS[name.lower()] if name.lower() in WORDS else values.get(name)
        return self._truth(node, values)

    def _arithmetic(self, node: ast.BinOp, values: Mapping[str, Any]) -> Any:
        first, second = self._number(node.left, values), self._number(node.right, values)
        if first is None or second is None or (isinstance(node.op, ast.Div) and second == 0):
            return None
        try:
            return ARITHMETIC[type(node.op)](first, second)
        except OverflowError:
            return None

    def _number(self, node: ast.expr, values: Mapping[str, Any]) -> Any:
        value = mean_of_list(self._value(node, values))
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            return value
        raise ConfigError(f"'{self.text}' cannot calculate with {format_setting(value)}.")


def _as_text(node: ast.expr, value: Any) -> Any:
    """Returns the written form of a number, or of a list of them, that is compared with text: 2024_01, not 202401."""
    if isinstance(node, ast.List | ast.Tuple):
        return [_as_text(element, item) for element, item in zip(node.elts, value, strict=True)]
    if isinstance(value, bool) and isinstance(node, ast.Name):
        return node.id
    return getattr(node, "written", value)


def equalities(condition: Expression, is_text: Callable[[str], bool]) -> dict[str, Any] | None:
    """Returns the values that a condition requires, by name, if it is `name == value` or several joined by `and`.

    Args:
        is_text: whether a name takes text, and gets a number as it is written.
    """
    found = {}
    for part in condition.parts:
        match part.tree:
            case ast.Compare(
                left=ast.Name() | ast.Attribute() as name, ops=[ast.Eq()], comparators=[ast.expr() as value]
            ):
                if _names(value):
                    return None
                number = condition._value(value, {})
                found[_dotted(name)] = _as_text(value, number) if is_text(_dotted(name)) else number
            case _:
                return None
    return found


def parse_expression(text: str) -> Expression:
    """Returns the condition written in `text`.

    Raises:
        ConfigError: it cannot be read, or holds more than comparisons, and, or, not, in, + - * /, names and values.
    """
    if len(text) > LONGEST:
        raise ConfigError(f"a condition of {len(text)} characters is too long: at most {LONGEST}.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tree = ast.parse(text.strip(), mode="eval").body
            _check(tree, text)
            _keep_written(tree, text.strip())
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            single = re.search(r"(?<![=!<>])=(?!=)", text)
            hint = " Write == to compare." if single else ' Write it like: expert >= 8 and router == "topk"'
            raise ConfigError(f"'{text}' cannot be read as a condition.{hint}") from None
    return Expression(text, tree)


def _check(node: ast.expr, text: str, depth: int = 0) -> None:
    """Refuses every kind of expression that is not listed here."""
    if depth > DEEPEST:
        raise ConfigError(f"a condition nested {DEEPEST} levels deep is too much: '{text[:40]}...'")
    match node:
        case ast.BoolOp(values=parts) | ast.List(elts=parts) | ast.Tuple(elts=parts):
            pass
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.UAdd(), operand=part):
            parts = [part]
        case ast.BinOp(left=left, op=operation, right=right) if type(operation) in ARITHMETIC:
            parts = [left, right]
        case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in COMPARISONS for op in ops):
            parts = [left, *others]
        case ast.Constant(value=None | bool() | int() | float() | str()) | ast.Name():
            parts = []
        case ast.Attribute() if _dotted(node):
            parts = []
        case _:
            raise ConfigError(
                f"'{ast.unparse(node)}' in '{text}' is not allowed: use comparisons, and, or, not, in, + - * /."
            )
    for part in parts:
        _check(part, text, depth + 1)


def _keep_written(tree: ast.expr, text: str) -> None:
    """Stores the source text of every number in its node."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            node.written = ast.get_source_segment(text, node)  # type: ignore[attr-defined]


class _Renaming(ast.NodeTransformer):
    """Replaces names."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self.names = names

    def visit(self, node: ast.AST) -> Any:
        if isinstance(node, ast.Name | ast.Attribute) and (new := self.names.get(_dotted(node))):
            return ast.parse(new, mode="eval").body
        return super().visit(node)


def _dotted(node: ast.expr) -> str:
    """Returns a name as written, such as `train.steps`; "" if the node is not a name."""
    if isinstance(node, ast.Name):
        return node.id
    owner = _dotted(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{owner}.{node.attr}" if owner and isinstance(node, ast.Attribute) else ""


def _is_null(node: ast.expr) -> bool:
    if isinstance(node, ast.Constant):
        return node.value is None
    return isinstance(node, ast.Name) and node.id.lower() in ("null", "none")


def _names(node: ast.expr) -> list[str]:
    if isinstance(node, ast.Name | ast.Attribute):
        name = _dotted(node)
        return [] if name.lower() in WORDS else [name]
    return [name for part in ast.iter_child_nodes(node) if isinstance(part, ast.expr) for name in _names(part)]
