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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moe_cli.config.axes import Interval
from moe_cli.config.bounds import TRIALS
from moe_cli.config.build import LARGEST, check_choice, did_you_mean
from moe_cli.config.ranges import check_whole, format_setting
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
    parts = known_parts(content, SEARCH_PARTS, "search")
    space = known_parts(parts.get("space", {}), (), "search.space")
    sampler, trials, objective, prune = (parts.get(name) for name in ("sampler", "trials", "objective", "prune"))
    if isinstance(objective, list):
        objective = ",".join(map(str, objective))
    return SearchBlock(
        {str(key): _domain(str(key), domain) for key, domain in space.items()},
        None if sampler is None else check_choice("search.sampler", sampler, SAMPLERS),
        None if trials is None else check_whole("search.trials", trials, most=TRIALS),
        None if objective is None else str(objective),
        None if prune is None else check_choice("search.prune", prune, PRUNERS),
    )


def known_parts(content: Any, known: Sequence[str], what: str) -> dict[str, Any]:
    """Returns the content. Raises ConfigError unless it is a mapping with keys among `known`; () means any key."""
    if not isinstance(content, dict) or (known and not content):
        raise ConfigError(f"{what} must hold {'some of: ' + ', '.join(known) if known else 'settings'}.")
    for part in content:
        if known and part not in known:
            raise ConfigError(
                f"no part '{part}' in {what}.{did_you_mean(str(part), known)} There are: {', '.join(known)}."
            )
    return content


def _domain(key: str, domain: Any) -> Domain:
    if isinstance(domain, list) and domain:
        return tuple(domain)
    if not isinstance(domain, dict):
        raise ConfigError(f"search.space.{key} must be a list of values, or {{low: 1, high: 8}}.")
    parts = known_parts(domain, INTERVAL_PARTS, f"search.space.{key}")
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
        raise ConfigError(f"{name}: step must be above 0 and at most high - low, and cannot be combined with log.")
    return interval
