"""Notes in run and sweep folders: the tags of a run, that a sweep is being worked on, and which data it learns from."""

import dataclasses
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from moe_cli.config.data import CorpusConfig, DataConfig
from moe_cli.errors import ConfigError, DataError
from moe_cli.files.reading import Unreadable, parse_object, read_bytes
from moe_cli.files.writing import TEMPORARY, delete_abandoned, hold, is_held
from moe_cli.runs.folder import Run, read_json, write_json

LONGEST_TAG = 40
# Lies in a sweep's folder: the hash of the data by the settings that choose them.
CORPORA = "corpora.json"
# Settings of texts that change how they are cut into tokens and splits, but not their hash.
_READING = ("tokenizer", "bpe_vocab", "packing", "val_fraction", "test_fraction")


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
    delete_abandoned(folder, f".*{TEMPORARY}")
    with ExitStack() as held:
        with suppress(OSError):
            held.enter_context(hold(folder / ".at-work", fcntl.LOCK_SH))
        yield


def is_at_work(folder: Path) -> bool:
    """Whether a living process has marked the folder by `at_work`."""
    return is_held(folder / ".at-work", fcntl.LOCK_EX)


def fix_corpora(folder: Path, found: Iterable[tuple[DataConfig, Mapping[str, Any]]], replace: bool = False) -> None:
    """Notes which data the runs of a sweep learn from: its first command fixes it, every run is checked against it.

    Args:
        found: the data of configurations, with what is known of them.
        replace: forget what was noted before.

    Raises:
        DataError: data have changed since the sweep began.
    """
    path, asked = folder / CORPORA, {_key(data): meta for data, meta in found}
    known = {} if replace else _known(path)
    if asked.keys() <= known.keys():
        return _check(folder, asked, known)
    with _alone(folder):
        known = {} if replace else _known(path)
        _check(folder, asked, known)
        write_json(path, {**{key: meta["sha256"] for key, meta in asked.items()}, **known})
    return None


def check_corpus(run: Run, data: DataConfig, meta: Mapping[str, Any]) -> None:
    """Raises DataError when a run belongs to a sweep that began with other data."""
    if os.path.lexists(run.path.parent / CORPORA):
        fix_corpora(run.path.parent, [(data, meta)])


def _known(path: Path) -> dict[str, Any]:
    """What was noted, empty before anything was. Raises DataError: it cannot be read, and would be written over."""
    try:
        return parse_object(read_bytes(path))
    except FileNotFoundError:
        return {}
    except Unreadable as problem:
        raise DataError(
            f"{path} {problem}, and the runs of the sweep learn from the data that it names.\n"
            "If the data are what they were, delete it; else start another sweep: --name NAME"
        ) from None


def _check(folder: Path, asked: Mapping[str, Mapping[str, Any]], known: Mapping[str, Any]) -> None:
    for key, meta in asked.items():
        if known.get(key, meta["sha256"]) != meta["sha256"]:
            raise DataError(
                f"{meta['source']} has changed since the sweep '{folder.name}' began, and its runs learn from the same data.\n"
                "Put the data back, run every point again with --force, or start another sweep: --name NAME"
            )


def _key(data: DataConfig) -> str:
    """The settings that choose the data."""
    values = dataclasses.asdict(data)
    if isinstance(data, CorpusConfig):
        values = {key: value for key, value in values.items() if key not in _READING}
    return json.dumps(values, sort_keys=True)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Within it no other process notes data; where there are no locks, one might."""
    with ExitStack() as held:
        with suppress(OSError):
            held.enter_context(hold(folder / f".{CORPORA}.lock"))
        yield
