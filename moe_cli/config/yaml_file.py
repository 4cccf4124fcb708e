"""Reads YAML files of users, and writes YAML. Checks bounds before values are constructed, and quotes text settings.

YAML 1.1 reads 2024_01 as 202401, 010 as 8 and 1:30 as 90. What a setting of type text is given stays as it is written;
for any other setting the last two are refused.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from moe_cli.errors import ConfigError
from moe_cli.files.reading import Unreadable, read_bytes

MOST_BYTES, MOST_VALUES, MOST_DIGITS, DEEPEST = 2**20, 50_000, 400, 50
_NUMBER = re.compile(r"[-+]?\.?[0-9][0-9a-fA-FxXoO_:.+-]*|true|false|yes|no|on|off|[-+]?\.(inf|nan)", re.IGNORECASE)
_OCTAL, _SIXTIETHS = re.compile(r"[-+]?0[0-7_]+"), re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")


def read_yaml_text(file: Path, is_text: Callable[[str], bool], group: str = "") -> str:
    """Returns the text of the file, with quotes around the values of text settings.

    Args:
        is_text: returns whether the setting of a dotted name takes text.
        group: the group of the settings at the top of the file; "" means that their names are complete.

    Raises:
        ConfigError: the file cannot be read, is not YAML or too large, or contains a number that YAML reads as another.
    """
    try:
        text = read_bytes(file, MOST_BYTES).decode("utf-8-sig")
        return _Reader(text, is_text, group).quoted()
    except ConfigError as error:
        raise ConfigError(str(error) if str(file) in str(error) else f"{file}: {error}") from None
    except Unreadable as error:
        raise ConfigError(f"{file} {error}.") from None
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}.") from None
    except UnicodeError:
        raise ConfigError(f"{file} is not UTF-8 text.") from None
    except (yaml.YAMLError, RecursionError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ConfigError(f"{file}: " + "\n".join(lines[:3])) from None


def load_yaml(file: Path, is_text: Callable[[str], bool], group: str = "") -> Any:
    """Returns the content of the file, read as `read_yaml_text` does. Raises ConfigError likewise."""
    try:
        return yaml.safe_load(read_yaml_text(file, is_text, group))
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{file}: {str(error).splitlines()[0]}") from None


def format_yaml(tree: dict[str, Any]) -> str:
    """Returns the tree as YAML, its keys in their order, by the dumper in C where PyYAML has it."""
    text: str = yaml.dump(tree, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), sort_keys=False)
    return text


class _Reader:
    """One pass over the events of a text, before any value is constructed.

    Attributes:
        stack: the open lists and mappings, the innermost last.
        sizes: number of values of an anchor; None means that it is still open, so that an alias to it would be
            infinite.
    """

    def __init__(self, text: str, is_text: Callable[[str], bool], group: str) -> None:
        self.text, self.is_text, self.group = text, is_text, group
        self.stack: list[_Level] = []
        self.sizes: dict[str, int | None] = {}
        self.quotes: list[tuple[int, int]] = []

    def quoted(self) -> str:
        for event in yaml.parse(self.text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.CollectionStartEvent):
                self._open(event)
            elif isinstance(event, yaml.CollectionEndEvent):
                self._close()
            elif isinstance(event, yaml.AliasEvent):
                size = self.sizes.get(event.anchor)
                if event.anchor in self.sizes and size is None:
                    raise ConfigError(f"line {event.start_mark.line + 1}: *{event.anchor} contains itself.")
                self._count(size or 1)
                self._step(None)
            elif isinstance(event, yaml.ScalarEvent):
                self._scalar(event)
        text = self.text
        for start, end in reversed(self.quotes):
            text = f"{text[:start]}'{text[start:end]}'{text[end:]}"
        return text

    def _open(self, event: yaml.CollectionStartEvent) -> None:
        if len(self.stack) >= DEEPEST:
            raise ConfigError(f"line {event.start_mark.line + 1}: nested deeper than {DEEPEST} levels.")
        if event.anchor:
            self.sizes[event.anchor] = None
        is_mapping = isinstance(event, yaml.MappingStartEvent)
        self.stack.append(_Level(self._names(), is_mapping, event.anchor))

    def _close(self) -> None:
        level = self.stack.pop()
        if level.anchor:
            self.sizes[level.anchor] = level.size
        if self.stack:
            self._count(level.size)
            self._step(None)

    def _count(self, number: int) -> None:
        """Adds to the number of values at the current position, including those that aliases repeat."""
        if self.stack:
            self.stack[-1].size += number
            if self.stack[-1].size > MOST_VALUES:
                raise ConfigError(f"more than {MOST_VALUES:,} values, those that aliases (*name) repeat included.")

    def _step(self, key: str | None) -> None:
        """Moves from a key to its value, or to the next key."""
        if self.stack and self.stack[-1].is_mapping:
            level = self.stack[-1]
            level.key = None if level.at_value else key or ""
            level.at_value = not level.at_value

    def _names(self) -> tuple[str, ...]:
        level = self.stack[-1] if self.stack else None
        if level is None:
            return ()
        return level.names if not level.is_mapping else (*level.names, level.key or "")

    def _scalar(self, event: yaml.ScalarEvent) -> None:
        if event.anchor:
            self.sizes[event.anchor] = 1
        is_key = bool(self.stack) and self.stack[-1].is_mapping and not self.stack[-1].at_value
        if not is_key and event.implicit[0] and _NUMBER.fullmatch(event.value):
            self._number(event)
        self._count(1)
        self._step(event.value)

    def _number(self, event: yaml.ScalarEvent) -> None:
        names = self._names()
        whole = ".".join((self.group, *names) if self.group else names)
        # The key `log` of an interval is not a setting.
        if self.is_text(whole) or (names and names[-1] != "log" and self.is_text(names[-1])):
            self.quotes.append((event.start_mark.index, event.end_mark.index))
            return
        if len(event.value) > MOST_DIGITS:
            raise ConfigError(f"line {event.start_mark.line + 1}: a number of {len(event.value)} characters.")
        where, text = f"line {event.start_mark.line + 1}: {event.value}", event.value
        if _SIXTIETHS.fullmatch(text):
            raise ConfigError(f"{where} would be read in sixtieths. Write a plain number, or put quotes around it.")
        if _OCTAL.fullmatch(text):
            raise ConfigError(f"{where} would be read as octal. Leave out the 0 in front, or put quotes around it.")


class _Level:
    """An open list or mapping."""

    def __init__(self, names: tuple[str, ...], is_mapping: bool, anchor: str | None) -> None:
        self.names, self.is_mapping, self.anchor = names, is_mapping, anchor
        self.key: str | None = None
        self.at_value, self.size = False, 1
