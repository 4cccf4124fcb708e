"""What is noted beside runs: the tags people gave one, and that a sweep's folder is being worked on."""

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moe_cli.errors import ConfigError
from moe_cli.store import Run, read_json, write_json

LONGEST_TAG = 40


def tags_of(run: Run) -> tuple[str, ...]:
    """The tags of a run, in order of their giving; none when its tags.json is no list of words."""
    return tags_in(read_json(run.path / "tags.json"))


def tags_in(content: dict[str, Any] | None) -> tuple[str, ...]:
    """The same of what its tags.json holds."""
    tags = content.get("tags") if content else None
    return tuple(tag for tag in tags if isinstance(tag, str)) if isinstance(tags, list) else ()


def check_tag(text: str) -> str:
    """The tag in `text`, in which a leading + says nothing. Raises ConfigError when it is not one word."""
    tag = text.removeprefix("+")
    if not tag.isprintable() or not tag or tag[0] in "+-" or any(mark.isspace() or mark in ",'\"" for mark in tag):
        raise ConfigError(f"{text!r} is no tag: give one word without spaces, commas or quotes, such as baseline.")
    if len(tag) > LONGEST_TAG:
        raise ConfigError(f"a tag of {len(tag)} characters is too long: at most {LONGEST_TAG}.")
    return tag


def set_tags(run: Run, tags: Sequence[str]) -> None:
    """Replaces the tags of a run, all at once. A run at work may be tagged."""
    write_json(run.path / "tags.json", {"tags": list(tags)})


@contextmanager
def at_work(folder: Path) -> Iterator[None]:
    """Marks a sweep's folder as being worked on; several may at a time. Where there are no locks, it is not marked."""
    try:
        file = open(folder / ".at-work", "a+", encoding="utf-8")  # noqa: SIM115
        fcntl.flock(file, fcntl.LOCK_SH)
    except OSError:
        yield
        return
    with file:
        yield


def is_at_work(folder: Path) -> bool:
    """Whether a living process has marked the folder by `at_work`."""
    try:
        with open(folder / ".at-work", "r+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
