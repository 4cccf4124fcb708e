"""The command of the next sweep: the same question with more seeds, and with more experts at the edge of the range."""

import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from moe_cli.config.ranges import format_setting
from moe_cli.errors import MoeError
from moe_cli.report.baseline import overrides_for, resolved_settings, settings_without_choices
from moe_cli.report.configuration import Configuration
from moe_cli.report.recommend.choice import Choice
from moe_cli.report.run_row import DENSE, Settings, Value, is_baseline, is_list, setting_applies
from moe_cli.report.tuning_record import tuned_settings

MIN_SEEDS, MAX_SEEDS = 3, 20


@dataclass(frozen=True)
class NextSweep:
    """A command, and its estimated time with one run at a time, without the existing runs; None means unknown."""

    command: str
    seconds: float | None


def next_sweep(
    choice: Choice,
    rows: Sequence[Configuration],
    names: Collection[str],
    baseline: Settings,
    more: int | None,
    options: Sequence[str],
) -> NextSweep | None:
    """Returns the command of `moe sweep` over the varied settings, with the values of the contenders and enough seeds.

    Contenders are the recommended configuration, those that tie with it, the next best and the baselines. Numbers of
    experts next to those of the best are added. The other settings are those of the best. None means that this version
    cannot make its settings.

    Args:
        names: the settings that vary.
        options: further arguments of the command.
    """
    best = choice.row
    settings = _settings(best)
    if settings is None:
        return None
    contenders = [best, *choice.ties, *(other for other in (choice.runner_up, choice.passed_over) if other)]
    contenders += [row for row in rows if is_baseline(row, baseline)]
    axes: dict[str, list[Any]] = {"expert": _experts(contenders, rows, names, baseline)}
    axes["k"] = _ks(contenders, axes["expert"])
    tuned = tuned_settings(path for row in rows for path in row.paths)
    axes.update((name, _values(name, contenders, rows)) for name in names if name not in axes and name not in tuned)
    # A setting of one choice of a group does not exist in the others.
    settings = {name: value for name, value in settings.items() if name.partition(".")[0] not in axes}
    # The sweep is tuned again from the rate before tuning; finished trials are not repeated.
    settings = {name: value for name, value in settings.items() if name not in tuned}
    settings |= {name: start for name, start in tuned.items() if start is not None}
    options = [*options, *(word for name in tuned for word in ("--tune", name))]
    ks, condition = axes["k"], ""
    if 1 in axes["expert"] and 1 not in ks:  # a dense model has k=1
        condition = f" --where {shlex.quote('expert == 1 or k != 1')}"
        ks = [1, *ks]
    done = max((len(row.seeds) for row in rows), default=1)
    seeds = min(MAX_SEEDS, max(MIN_SEEDS, done + (more or (2 if done >= MIN_SEEDS else 0))))
    written = {
        name.removesuffix(".name"): ",".join(map(format_setting, values)) for name, values in {**axes, "k": ks}.items()
    }
    overrides = {**settings, **written}
    name = best.sweep if best.sweep not in ("runs", "sweep") and best.sweep.isprintable() else ""
    options = [*(["--name", name] if name else []), *options]
    command = f"moe sweep {_written(overrides, written)} --seeds {seeds}{condition} {shlex.join(options)}".rstrip()
    return NextSweep(command, _seconds(axes, rows, seeds))


def _experts(
    contenders: Sequence[Configuration], rows: Sequence[Configuration], names: Collection[str], baseline: Settings
) -> list[int]:
    """Returns the contenders' numbers of experts, those near the best if they varied, and 1 if dense was run."""
    best, there = _num_experts(contenders[0]), sorted({_num_experts(row) for row in rows})
    wanted = {number for row in contenders if (number := _num_experts(row)) > 1}
    only_experts = set(names) <= {"expert", "k"}
    if (only_experts and baseline == DENSE) or any(row.is_dense for row in rows):
        wanted.add(1)
    sparse = [number for number in there if number > 1]
    if best == 1:
        wanted |= set(sparse) or {8}
    elif only_experts or len(sparse) > 1:
        wanted |= {number for number in sparse if best / 2 <= number <= best * 2}
        wanted |= {2 * best} if best == there[-1] else set()
    # A list of widths has one for each expert, so that it fits one number of them.
    has_widths = is_list(contenders[0].get("model.d_expert"))
    return sorted(wanted & {1, best} if has_widths else wanted)


def _num_experts(row: Configuration) -> int:
    return row.expert or 1


def _ks(contenders: Sequence[Configuration], experts: Collection[int]) -> list[Value]:
    """Returns the contenders' k, numbers before lists."""
    sparse_rows = [row for row in contenders if _num_experts(row) in experts and not row.is_dense]
    numbers = sorted({row.k for row in sparse_rows if row.k})
    lists = sorted({str(k) for row in sparse_rows if is_list(k := row.get("k"))})
    return [*numbers, *lists] or [2]


def _values(name: str, contenders: Sequence[Configuration], rows: Sequence[Configuration]) -> list[Any]:
    """Returns the values of the contenders; those of all rows if contenders have one, as the setting is in question."""
    found = list(dict.fromkeys(row.settings.get(name) for row in contenders if setting_applies(name, row.settings)))
    return (
        found
        if len(found) > 1
        else list(dict.fromkeys(row.settings.get(name) for row in rows if setting_applies(name, row.settings)))
    )


def _seconds(axes: Mapping[str, Sequence[Any]], rows: Sequence[Configuration], seeds: int) -> float | None:
    """Returns the time of the missing runs (configurations x seeds), each as long as the existing runs."""
    seconds = [row.results.seconds for row in rows if row.results.seconds]
    if not seconds:
        return None
    shared = prod(
        len(values) for name, values in axes.items() if name not in ("expert", "k") and setting_applies(name, DENSE)
    )
    sparse = prod(map(len, axes.values())) // len(axes["expert"]) * sum(number > 1 for number in axes["expert"])
    planned = seeds * (sparse + shared * (1 in axes["expert"]))
    done = sum(
        min(seeds, len(row.seeds))
        for row in rows
        if all(row.settings.get(name) in values for name, values in axes.items() if setting_applies(name, row.settings))
    )
    return float(max(1, planned - done) * sum(seconds) / len(seconds))


def _settings(row: Configuration) -> dict[str, Value] | None:
    """Returns the row's differences from the defaults; None means that this version cannot make its settings."""
    from moe_cli.config.compose import Composer

    overrides: dict[str, Value] = {"expert": 8 if row.is_dense else row.expert}
    if not row.is_dense:
        overrides["k"] = row.settings.get("k")
    try:
        composer = Composer()
        for group in ("router", "balance"):
            choice = row.settings.get(group)
            if not row.is_dense and choice and "+" not in str(choice):
                overrides[group] = choice
        overrides = overrides_for(composer, overrides, settings_without_choices(row.settings))
        wanted = resolved_settings(composer, overrides)
        for group in ("router", "balance"):
            bare = {name: value for name, value in overrides.items() if name != group}
            if group in overrides and resolved_settings(composer, bare) == wanted:
                overrides = bare
    except MoeError:
        return None
    return overrides


def _written(overrides: Mapping[str, Any], axes: Collection[str]) -> str:
    return " ".join(
        shlex.quote(f"{key}={value if key in axes else format_setting(value)}") for key, value in overrides.items()
    )
