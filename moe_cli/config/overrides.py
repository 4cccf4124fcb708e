"""Parses overrides into axes: Hydra's grammar with bounds. Settings that take text keep it as typed."""

import math
import os
import re
from collections.abc import Sequence
from typing import Any

from antlr4 import CommonTokenStream, InputStream
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.overrides_visitor import HydraErrorListener, HydraOverrideVisitor
from hydra.core.override_parser.types import Glob as HydraGlob
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException
from hydra.grammar.gen.OverrideLexer import OverrideLexer
from hydra.grammar.gen.OverrideParser import OverrideParser

from moe_cli.config.axes import Axis, Glob, Interval
from moe_cli.config.bounds import VALUES, shortened
from moe_cli.config.folders import is_text
from moe_cli.config.foreign_names import explain_word
from moe_cli.config.loggers import LOG_KEYS
from moe_cli.config.schema import RunConfig
from moe_cli.errors import ConfigError

MOST_CHARACTERS = 200_000


class _TextVisitor(HydraOverrideVisitor):
    """Reads numbers, true and false as the text that they are, but for the bounds of a range or an interval."""

    reads_numbers = False

    def visitPrimitive(self, ctx: Any) -> Any:
        value = super().visitPrimitive(ctx)
        is_text = isinstance(value, bool | int | float) and not self.reads_numbers
        return ctx.getText().strip() if is_text else value

    def visitFunction(self, ctx: Any) -> Any:
        outer, own = self.reads_numbers, ctx.getChild(0).getText().strip() in ("range", "interval")
        self.reads_numbers = outer or own
        try:
            return super().visitFunction(ctx)
        finally:
            self.reads_numbers = outer


class _TextParser(OverridesParser):
    def parse_rule(self, s: str, rule_name: str) -> Any:
        lexer = OverrideLexer(InputStream(s))
        parser = OverrideParser(CommonTokenStream(lexer))
        for part in (lexer, parser):
            part.removeErrorListeners()
            part.addErrorListener(HydraErrorListener())
        override: Override = _TextVisitor(self.functions).visit(getattr(parser, rule_name)())
        override.input_line = s
        override.validate()
        return override


def parse_overrides(overrides: Sequence[str], settings: type = RunConfig) -> list[Axis]:
    """Parses Hydra's grammar: `key=value`, `key=a,b,c`, `key=range(1,5)`, `key=choice(a,b)`, `key=glob(a*)`, intervals.

    If a key occurs more than once, the last word is used.

    Args:
        settings: the dataclass of the settings, which gives their types.

    Raises:
        ConfigError: a word is not an override.
    """
    axes: dict[str, Axis] = {}
    for word in overrides:
        axis = parse_override(word, settings)
        axes[axis.key] = axis
    return list(axes.values())


def parse_override(word: str, settings: type = RunConfig) -> Axis:
    """Parses one word of `parse_overrides`."""
    key, equals, value = word.partition("=")
    _check_form(word, key, is_whole=bool(key and equals))
    if value.startswith("~/") and is_text(key, settings):
        word = f"{key}={os.path.expanduser(value)}"  # no shell does so after `data.path=`
    if not value.lstrip().startswith(("'", '"')) and re.search(r"\s[\w.]+=", value):
        raise ConfigError(f"'{word}' holds two settings in one word. Write them apart, without the quotes: {word}")
    override = _parse(word, _TextParser if is_text(key, settings) else OverridesParser)
    parsed: Any = override.value()
    if isinstance(parsed, IntervalSweep):
        return Axis(override.key_or_group, (_interval(word, parsed),))
    if isinstance(parsed, HydraGlob):
        return Axis(override.key_or_group, (Glob(tuple(parsed.include), tuple(parsed.exclude)),))
    if not override.is_sweep_override():
        return Axis(override.key_or_group, (parsed,))
    if isinstance(parsed, RangeSweep):
        _check_range(word, parsed)
    values = tuple(Override._convert_value(item) for item in override.sweep_iterator())
    if not values:
        raise ConfigError(f"'{word}' names no value.")
    if len(values) > VALUES:
        raise ConfigError(f"'{shortened(word)}' names {len(values):,} values: the most is {VALUES:,}.")
    if key in LOG_KEYS and len(values) > 1:
        raise ConfigError(f"'{word}' would log one run twice. Several loggers are: log=tensorboard+mlflow")
    return Axis(override.key_or_group, values)


def _check_form(word: str, key: str, is_whole: bool) -> None:
    """Raises ConfigError for a word that is not key=value."""
    if reason := explain_word(word):
        raise ConfigError(reason)
    if not is_whole or key[0] in "+~" or "@" in key:
        raise ConfigError(f"'{shortened(word)}' is not a setting. Write: key=value, such as expert=8")


def _parse(word: str, parser: type[OverridesParser]) -> Override:
    if len(word) > MOST_CHARACTERS:
        raise ConfigError(f"'{shortened(word)}' is too long: the most is {MOST_CHARACTERS:,} characters.")
    try:
        override: Override = parser.create().parse_overrides([word])[0]
        override.value()
    except (HydraException, ValueError, RecursionError):  # a number of thousands of digits, brackets nested as deep
        hint = f"Put quotes around a value with spaces or signs: '{word.partition('=')[0]}=\"...\"'"
        raise ConfigError(f"'{shortened(word)}' cannot be read. {hint}") from None
    return override


def _check_range(word: str, sweep: RangeSweep) -> None:
    """Raises ConfigError for a range without an end, or of more values than a sweep takes, before it is made."""
    start, stop, step = (number if number is not None else 1 for number in (sweep.start, sweep.stop, sweep.step))
    if not all(isinstance(number, int) or math.isfinite(number) for number in (start, stop, step)) or step == 0:
        raise ConfigError(f"'{shortened(word)}' has no end. Write range(START,STOP,STEP), and a step that is not 0.")
    try:
        is_endless = abs(stop - start) > VALUES * abs(step)
    except OverflowError:
        is_endless = True
    if is_endless:
        raise ConfigError(f"'{shortened(word)}' names more than {VALUES:,} values, the most of a setting.")


def _interval(word: str, sweep: IntervalSweep) -> Interval:
    low, high = sweep.start, sweep.end
    if sweep.tags - {"log"}:
        raise ConfigError(f"'{word}': a tag of an interval can be: log.")
    if low is None or high is None or not -math.inf < low < high < math.inf or (sweep.tags and low <= 0):
        raise ConfigError(
            f"'{word}' is empty. Write interval(low,high) with low below high; with tag(log,...), low must be above 0."
        )
    return Interval(low, high, bool(sweep.tags))
