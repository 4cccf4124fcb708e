"""The tags of a run, kept in tags.json."""

from collections.abc import Sequence
from typing import Any

from moe_cli.errors import ConfigError, MoeError
from moe_cli.files.reading import read_json
from moe_cli.files.writing import is_full, write_failure_hint, write_json
from moe_cli.runs.folder import Run

MAX_TAG_LENGTH = 40


def read_tags(run: Run) -> tuple[str, ...]:
    """Returns the tags of a run, in the order of their addition; empty if its tags.json is not a list of words."""
    return parse_tags(read_json(run.path / "tags.json"))


def parse_tags(content: dict[str, Any] | None) -> tuple[str, ...]:
    """Returns the tags in the contents of a tags.json; empty if they are not a list of words."""
    tags = content.get("tags") if content else None
    return tuple(tag for tag in tags if isinstance(tag, str)) if isinstance(tags, list) else ()


def check_tag(text: str) -> str:
    """Returns the tag without a leading +. Raises ConfigError if it is not one word."""
    tag = text.removeprefix("+")
    if not tag.isprintable() or not tag or tag[0] in "+-" or any(mark.isspace() or mark in ",'\"" for mark in tag):
        raise ConfigError(f"{text!r} is no tag: give one word without spaces, commas or quotes, such as baseline.")
    if len(tag) > MAX_TAG_LENGTH:
        raise ConfigError(f"a tag of {len(tag)} characters is too long: at most {MAX_TAG_LENGTH}.")
    return tag


def set_tags(run: Run, tags: Sequence[str]) -> None:
    """Replaces the tags of a run, which may be running. Raises MoeError if they cannot be written."""
    try:
        write_json(run.path / "tags.json", {"tags": list(tags)})
    except OSError as error:
        way = write_failure_hint(error) if is_full(error) else f"Copy the run and tag the copy: cp -r {run.path} FOLDER"
        raise MoeError(f"cannot write tags to {run.path}: {error.strerror}. {way}") from None
