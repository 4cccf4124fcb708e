"""Reads MovieLens as GroupLens publishes it, or ratings in one of its formats.

u.data (user, item, rating and time between tabs), ratings.dat (the same between ::) or ratings.csv (userId, movieId,
rating, timestamp).
"""

import io
import math
import os
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from moe_cli.config.data import MovieLensConfig
from moe_cli.data.documents import HEAD_BYTES, other_encoding
from moe_cli.data.file_list import check_readable, find_named, open_file
from moe_cli.data.synthetic_ratings import Interactions
from moe_cli.errors import DataError

# The delimiter of fields by the name of the file, in the order in which the files are looked for.
DELIMITERS = {"u.data": "\t", "ratings.dat": "::", "ratings.csv": ","}
# The files that hold the names of items, and their delimiters.
TITLES = {"u.item": "|", "movies.dat": "::"}
HEADER = "userid,movieid,rating"
# A larger value is not a rating.
MAX_RATING = 1e6


def find_ratings(data: MovieLensConfig) -> Path:
    """Returns the file of ratings. Raises DataError if there is none."""
    location = data.path or ""
    check_readable(Path(location), f"data.path={location}")
    path = find_named(location, list(DELIMITERS)) if os.path.isdir(location) else Path(location)
    if path is None:
        raise DataError(f"data.path={location} has no {', '.join(DELIMITERS)}. Unpack MovieLens there.")
    if path.name not in DELIMITERS:
        raise DataError(
            f"data.path={location} has an unknown format: its name is none of {', '.join(DELIMITERS)}. Rename it."
        )
    return path


def read_movielens(data: MovieLensConfig) -> Interactions:
    """Reads the ratings of a file. Users and items are numbered in order of appearance.

    Raises:
        DataError: the file is missing, a line is not a rating, or there are fewer than two users or two items.
    """
    path = find_ratings(data)
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    columns = array("q"), array("q"), array("d")
    for user, item, rating in _lines(path):
        columns[0].append(users.setdefault(user, len(users)))
        columns[1].append(items.setdefault(item, len(items)))
        columns[2].append(rating)
    for kind, found in (("user", users), ("item", items)):
        if len(found) < 2:
            raise DataError(f"{path} has {len(found) or 'no'} {kind}, and at least 2 are needed. Give more ratings.")
    ratings = np.array(columns[2])
    names = _titles(path.parent)
    return Interactions(
        np.array(columns[0]),
        np.array(columns[1]),
        ratings,
        ratings >= data.click_threshold,
        len(users),
        len(items),
        [names.get(item, f"item {item}") for item in items],
    )


def _lines(path: Path) -> Iterator[tuple[str, str, float]]:
    """Yields user, item and rating of every line that is not empty. Raises DataError for a line in another format."""
    delimiter = DELIMITERS[path.name]
    try:
        with open_file(path) as head:
            if problem := other_encoding(head.read(HEAD_BYTES)):
                raise DataError(f"{path} {problem}")
        with io.TextIOWrapper(open_file(path), encoding="utf-8-sig", errors="replace") as file:
            for number, line in enumerate(file, 1):
                fields = line.rstrip("\n").split(delimiter)
                if number == 1 and path.suffix == ".csv" and line.lower().replace('"', "").startswith(HEADER):
                    continue
                if line.isspace():
                    continue
                try:
                    user, item, rating = fields[0], fields[1], float(fields[2])
                except (IndexError, ValueError):
                    rating = math.nan
                if not abs(rating) <= MAX_RATING or not user or not item:
                    raise DataError(
                        f"{path}, line {number:,}: {line.strip()[:60]!r} is not user{_shown(delimiter)}item"
                        f"{_shown(delimiter)}rating."
                    )
                yield user, item, rating
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None


def _shown(delimiter: str) -> str:
    return "<tab>" if delimiter == "\t" else delimiter


def _titles(folder: Path) -> dict[str, str]:
    """Returns the names of items, if MovieLens's file of them is in the folder of the ratings."""
    path = find_named(str(folder), list(TITLES))
    if path is None:
        return {}
    delimiter = TITLES[path.name]
    with io.TextIOWrapper(open_file(path), encoding="latin-1") as file:
        fields = (line.split(delimiter) for line in file.read().splitlines() if delimiter in line)
        return {item: title for item, title, *_ in fields}
