"""The part `search` of a sweep file: where a search draws from, and how.

search:
  space:
    optim.lr: {low: 0.002, high: 0.1, log: true}
    model.num_layers: {low: 2, high: 6, step: 2}
    k: [1, 2, 4]
  sampler: tpe
  trials: 20
  objective: val_bpb
  prune: asha
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moe_cli.config.axes import Interval
from moe_cli.config.bounds import TRIALS, shortened
from moe_cli.config.build import LARGEST, did_you_mean
from moe_cli.config.ranges import format_setting
from moe_cli.errors import ConfigError

SAMPLERS = ("tpe", "random")
PRUNERS = ("asha", "hyperband", "median")
SEARCH_PARTS = ("space", "sampler", "trials", "objective", "prune")
INTERVAL_PARTS = ("low", "high", "log", "step")

# Where a setting is drawn from: an interval, or one of several values.
Domain = Interval | tuple[Any, ...]


@dataclass(frozen=True)
class SearchBlock:
    """The search of a file; None leaves an option to the command line, or to its default."""

    space: Mapping[str, Domain]
    sampler: str | None = None
    trials: int | None = None
    objective: str | None = None
    prune: str | None = None


def parse_search(content: Any) -> SearchBlock:
    """Raises ConfigError when the part is of another shape."""
    parts = _parts(content, SEARCH_PARTS, "search")
    space = _parts(parts.get("space", {}), None, "search.space")
    objective = parts.get("objective")
    if isinstance(objective, list):
        objective = ",".join(map(str, objective))
    return SearchBlock(
        {str(key): _domain(str(key), given) for key, given in space.items()},
        one_of("search.sampler", parts.get("sampler"), SAMPLERS),
        check_trials("search.trials", parts.get("trials")),
        None if objective is None else str(objective),
        one_of("search.prune", parts.get("prune"), PRUNERS),
    )


def _parts(content: Any, known: tuple[str, ...] | None, what: str) -> Mapping[Any, Any]:
    if not isinstance(content, dict) or (known and not content):
        raise ConfigError(f"{what} must hold {'some of: ' + ', '.join(known) if known else 'settings'}.")
    for part in content:
        if known and part not in known:
            raise ConfigError(
                f"no part '{part}' in {what}.{did_you_mean(str(part), known)} There are: {', '.join(known)}."
            )
    return content


def one_of(name: str, given: Any, choices: tuple[str, ...]) -> str | None:
    """Returns the choice, or None if none is made. Raises ConfigError when it is not one of them."""
    if given is not None and given not in choices:
        raise ConfigError(
            f"{name} {format_setting(given)} is not one of: "
            f"{', '.join(choices)}.{did_you_mean(format_setting(given), choices)}"
        )
    return given  # type: ignore[no-any-return]


def check_trials(name: str, given: Any) -> int | None:
    """Returns the number of trials; None means open. Raises ConfigError unless it is an integer of at least 1."""
    if given is not None and (isinstance(given, bool) or not isinstance(given, int) or not 1 <= given <= TRIALS):
        raise ConfigError(
            f"{name} {shortened(format_setting(given))} is not a whole number of at least 1 and at most {TRIALS}."
        )
    return given


def _domain(key: str, given: Any) -> Domain:
    if isinstance(given, list) and given:
        return tuple(given)
    if not isinstance(given, dict):
        raise ConfigError(f"search.space.{key} must be a list of values, or {{low: 1, high: 8}}.")
    parts = _parts(given, INTERVAL_PARTS, f"search.space.{key}")
    low, high, log, step = (parts.get(part) for part in INTERVAL_PARTS)
    for name, value in (("low", low), ("high", high), *([("step", step)] if step is not None else [])):
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
            raise ConfigError(f"search.space.{key}: {name} {format_setting(value)} is not a number.")
    if log not in (None, True, False):
        raise ConfigError(f"search.space.{key}: log {format_setting(log)} is not true or false.")
    return checked(f"search.space.{key}", Interval(low, high, bool(log), step))  # type: ignore[arg-type]


def checked(name: str, interval: Interval) -> Interval:
    """Returns the interval. Raises ConfigError when nothing can be drawn from it."""
    if not interval.low < interval.high:
        raise ConfigError(f"{name}: low {interval.low:g} is not below high {interval.high:g}.")
    if interval.log and interval.low <= 0:
        raise ConfigError(f"{name}: a logarithmic scale begins above 0, not at {interval.low:g}.")
    if interval.step is not None and (interval.log or not 0 < interval.step <= interval.high - interval.low):
        raise ConfigError(f"{name}: a step is above 0, at most high - low, and goes without log.")
    return interval
