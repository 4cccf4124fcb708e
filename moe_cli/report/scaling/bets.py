"""Bets: predictions that are written before their runs exist, in outputs/SWEEP/bets/DIGEST.json.

A file is written once and never changed. It is sealed with a checksum, and its name is the digest of the configuration
with the first of the seeds, which is the digest in the id of that run. docs/reference/json.md lists its keys.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from moe_cli.config.identity import digest_of
from moe_cli.errors import ConfigError
from moe_cli.files.checksums import read_sealed, write_sealed
from moe_cli.files.reading import note_unreadable, number_in, time_in, whole_number_in
from moe_cli.files.writing import hold, make_folder

FOLDER = "bets"
# The probability of the interval, and the metrics that a bet may be on.
BET_CONFIDENCE = 0.8
METRICS = ("val_bpb", "val_loss")
TOKENS, FLOPS = "tokens", "FLOPs"


@dataclass(frozen=True)
class Bet:
    """One prediction.

    Attributes:
        digest: of the configuration with the first seed.
        sweep: the sweep whose runs it rests on.
        placed: the time in seconds since 1970.
        version: of the program.
        settings: the text that describes the configuration.
        metric: val_bpb, or val_loss if bytes are unknown.
        seeds: the predicted loss is the mean over runs with these seeds.
        loss, low, high: the median and the 80 % interval.
        baseline_loss: the median of the dense model; None without one.
        wins: the probability that the configuration has a lower mean loss than the dense model; None without one.
        equal: what the dense model has equal: tokens, or FLOPs.
        flops: of the training of one run.
        compute_factor: the FLOPs relative to the most expensive run that the prediction rests on.
        method: how the prediction was made.
        runs: the ids of the runs that it rests on.
        corpus_sha256: the hash of their data; None if it is unknown.
        commands: train the configuration and the dense model.
        configuration, baseline: the contents of config.json with the first seed.
    """

    digest: str
    sweep: str
    placed: float
    version: str
    settings: str
    metric: str
    seeds: tuple[int, ...]
    loss: float
    low: float
    high: float
    baseline_loss: float | None
    wins: float | None
    equal: str
    flops: float
    compute_factor: float
    method: str
    runs: tuple[str, ...]
    corpus_sha256: str | None
    commands: tuple[str, ...]
    configuration: Mapping[str, Any]
    baseline: Mapping[str, Any] | None

    @property
    def width(self) -> float:
        """Returns the width of the interval relative to the predicted loss."""
        return (self.high - self.low) / self.loss


def digest_with_seed(configuration: Mapping[str, Any], seed: int) -> str | None:
    """Returns the digest of the run of a configuration with another seed; None if it is no configuration."""
    return digest_of({**configuration, "seed": seed})


def bet_file(folder: Path, digest: str) -> Path:
    """Returns the file of a bet of the sweep in this folder."""
    return folder / FOLDER / f"{digest}.json"


def check_new(folder: Path, digest: str) -> None:
    """Raises ConfigError if the sweep in this folder has a bet on the configuration."""
    path = bet_file(folder, digest)
    if os.path.lexists(path):
        raise ConfigError(f"there is a bet on this configuration, and bets do not change: {path}")


def write_bet(folder: Path, bet: Bet) -> Path:
    """Writes a new bet of the sweep in this folder, and returns its file.

    Raises:
        ConfigError: there is a bet on this configuration.
        OSError: the folder cannot be written.
    """
    path = bet_file(folder, bet.digest)
    make_folder(path.parent)
    with ExitStack() as stack:
        with suppress(OSError):  # file systems without locks
            stack.enter_context(hold(path.parent / ".bets.lock"))
        check_new(folder, bet.digest)
        write_sealed(path, asdict(bet))
    return path


def read_bets(folders: Sequence[Path]) -> list[Bet]:
    """Returns the bets of the sweeps in these folders, in the order of their times. Unusable files are noted."""
    found = []
    for folder in folders:
        for path in sorted((folder / FOLDER).glob("*.json")):
            content = read_sealed(path)
            if content is None:
                continue
            try:
                found.append(_parse(content, path.stem))
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
                note_unreadable(path, f"is no bet: {str(error)[:120]}")
    return sorted(found, key=lambda bet: (bet.placed, bet.digest))


def _parse(values: Mapping[str, Any], name: str) -> Bet:
    """Returns the bet in a file. Raises KeyError, TypeError, ValueError for other contents."""
    parsed = {entry.name: _PARSERS[entry.name](values[entry.name]) for entry in fields(Bet)}
    bet = Bet(**parsed)
    if not 0 < bet.low <= bet.loss <= bet.high:
        raise ValueError("the interval does not contain the loss")
    if bet.metric not in METRICS:
        raise ValueError(f"metric is none of {', '.join(METRICS)}")
    if not bet.seeds or len(set(bet.seeds)) < len(bet.seeds):
        raise ValueError("seeds are missing, or stand twice")
    if (bet.wins is None) != (bet.baseline is None) or (bet.wins is not None and not 0 < bet.wins < 1):
        raise ValueError("wins is no probability of a winner")
    if name != bet.digest or digest_with_seed(bet.configuration, bet.seeds[0]) != bet.digest:
        raise ValueError("the digest is not that of the configuration")
    return bet


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 10_000:
        raise ValueError("a text is missing")
    return value


def _number(value: Any) -> float:
    number = number_in(value)
    if number is None or number <= 0:
        raise ValueError("a number is missing, or not above 0")
    return number


def _seed(value: Any) -> int:
    number = whole_number_in(value)
    if number is None:
        raise ValueError("a seed is no integer")
    return number


def _time(value: Any) -> float:
    time = time_in(value)
    if time is None:
        raise ValueError("the time is none")
    return time


def _settings(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("a configuration is missing")
    return value


def _list(parse: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, ...]]:
    def parsed(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list) or len(value) > 100_000:
            raise ValueError("a list is missing")
        return tuple(parse(entry) for entry in value)

    return parsed


def _optional(parse: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else parse(value)


_PARSERS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("digest", "sweep", "version", "settings", "metric", "equal", "method"), _text),
    **dict.fromkeys(("loss", "low", "high", "flops", "compute_factor"), _number),
    **dict.fromkeys(("baseline_loss", "wins"), _optional(_number)),
    "placed": _time,
    "seeds": _list(_seed),
    "runs": _list(_text),
    "commands": _list(_text),
    "corpus_sha256": _optional(_text),
    "configuration": _settings,
    "baseline": _optional(_settings),
}
